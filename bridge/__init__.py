"""A bridge from a RabbitMQ fanout exchange to WebSocket clients, for killmails and other updates of a killboard.

Python programs that fetch killmails publish them with `Publisher`. All names outside `__all__` are internal.
"""

# Type checkers assume that the name `TYPE_CHECKING` is True. Importing `TYPE_CHECKING` from the module `typing` would
# take 10 ms, and Ctrl-C during this import would print a traceback.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from bridge.amqp.publish.publisher import ExchangeNotFound, InvalidUpdate, NotConfirmed, Publisher
    from bridge.errors import BrokerRefusal

    __version__: str

__all__ = ["BrokerRefusal", "ExchangeNotFound", "InvalidUpdate", "NotConfirmed", "Publisher", "__version__"]

_FOR_PUBLISHERS = {
    "BrokerRefusal": "bridge.errors",
    "ExchangeNotFound": "bridge.amqp.publish.publisher",
    "InvalidUpdate": "bridge.amqp.publish.publisher",
    "NotConfirmed": "bridge.amqp.publish.publisher",
    "Publisher": "bridge.amqp.publish.publisher",
}


if not TYPE_CHECKING:  # with `__getattr__`, a type checker would accept any name

    def __getattr__(name: str) -> object:
        # Names are imported on first use, because every module of the bridge imports this package first, and most
        # modules need no broker. The faster this import is, the sooner Ctrl-C ends the command quietly.
        if name == "__version__":
            from importlib.metadata import version  # noqa: PLC0415 - this import takes 20 ms

            globals()[name] = version("edk-bridge")
            return globals()[name]
        if name not in _FOR_PUBLISHERS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module  # noqa: PLC0415 - only publishing programs need it

        return getattr(import_module(_FOR_PUBLISHERS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
