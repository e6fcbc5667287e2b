"""A bridge from a RabbitMQ fanout exchange to WebSocket clients, for killmails and other updates of a killboard.

Fetchers in Python use `Publisher`. Everything outside `__all__` is internal.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bridge.amqp.publish.publisher import ExchangeNotFound, InvalidUpdate, NotConfirmed, Publisher
    from bridge.errors import BrokerRefusal

__all__ = ["BrokerRefusal", "ExchangeNotFound", "InvalidUpdate", "NotConfirmed", "Publisher", "__version__"]

__version__ = version("edk-bridge")

_FOR_PUBLISHERS = {
    "BrokerRefusal": "bridge.errors",
    "ExchangeNotFound": "bridge.amqp.publish.publisher",
    "InvalidUpdate": "bridge.amqp.publish.publisher",
    "NotConfirmed": "bridge.amqp.publish.publisher",
    "Publisher": "bridge.amqp.publish.publisher",
}


if not TYPE_CHECKING:  # otherwise a type checker would accept any name

    def __getattr__(name: str) -> object:
        # Imported on first use: every module of the bridge imports this package first, and most need no broker.
        if name not in _FOR_PUBLISHERS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module  # noqa: PLC0415 - only publishing programs need it

        return getattr(import_module(_FOR_PUBLISHERS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
