"""Implements `edk-bridge demo`, which runs the bridge with invented killmails from RabbitMQ or from a feed.

When the demo ends, even after an error, it removes everything that it has started or declared.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

import aiormq
import uvloop

from bridge import logs, queued_output
from bridge.amqp.cancellation import CancellationGuard
from bridge.amqp.nodes import Node
from bridge.app import serve
from bridge.config.listen_addresses import announced_host
from bridge.config.settings import DOTENV, PREFIX, SETTINGS, Settings, is_set, load
from bridge.counts import counted
from bridge.demo.broker import Broker
from bridge.demo.child import Child
from bridge.demo.feed import Feed
from bridge.demo.guide import Guide
from bridge.demo.publisher import DemoPublisher
from bridge.errors import BridgeError, ConfigurationError
from bridge.server.listeners.sockets import address_unavailable, open_listeners, source_address

StartBroker = Callable[[str, Callable[[str], None]], Broker]
"""A function that starts a broker from an image.

The second argument is a function that prints a line. If the broker can't be started, the function raises BridgeError.
"""

READY_TIMEOUT_S = 30.0
REPORT_INTERVAL_S = 10.0
CHECK_INTERVAL_S = 1.0

IMAGE = "rabbitmq:4-management"

OWN_EXCHANGE = "killmails"
"""The demo's exchange if the demo has started its own broker.

By default, BRIDGE_EXCHANGES and the command `publish` use an exchange of the same name.
"""

SEPARATE_EXCHANGE = "bridge.demo"
"""The demo's exchange if other programs use the same broker.

On a shared broker, the demo has its own exchange, so that other programs' clients do not receive invented killmails.
"""

SEPARATE = {"exchanges": f"{SEPARATE_EXCHANGE}=killmail", "queue": "", "history": "memory", "reject_exchange": "off"}
"""With these settings, the demo's bridge declares nothing that outlasts the demo."""


@dataclass(frozen=True, slots=True)
class Demo:
    """The options of a demo."""

    rate: float
    """The number of killmails per second."""
    flags: Mapping[str, str | None]
    """The values of the flags in `setting_options`, which are `port`, `amqp_url`, `schemas` and `env_file`.

    If a flag is not given, its value is None.
    """

    def settings(self, **decided: str) -> Settings:
        """Returns the effective settings, including the settings that the demo itself chooses.

        Raises ConfigurationError.
        """
        given = {name: text for name, text in self.flags.items() if name in SETTINGS and text is not None}
        must_exist = self.flags.get("env_file") is not None
        return load({**given, **decided}, os.environ, self._dotenv, must_exist=must_exist)

    @property
    def has_broker(self) -> bool:
        """Whether the operator has configured a broker by the flag, in the environment, or in the file of settings."""
        return self.flags.get("amqp_url") is not None or self.sets("amqp_url")

    def sets(self, name: str) -> bool:
        """Returns whether the environment or the file of settings contains the setting `name`."""
        return is_set(name, os.environ, self._dotenv)

    @property
    def _dotenv(self) -> Path:
        file = self.flags.get("env_file")
        return DOTENV if file is None else Path(file)


class _Stopped(BaseException):
    """Raised if a signal arrives while no event loop is running."""


class Signals:
    """The first SIGINT, SIGTERM or SIGHUP ends the demo.

    After the first signal, all others are ignored, so that the demo can clean up.
    """

    def __init__(self) -> None:
        self._received = False
        self._task: asyncio.Task[int] | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._handle)

    def ignore(self) -> None:
        """Ignores all signals from now on."""
        self._received = True

    async def interrupt(self, work: Coroutine[object, object, int]) -> int:
        """Runs a coroutine and returns its result. If a signal cancels the coroutine, the result is 0."""
        self._task = asyncio.create_task(work)
        try:
            return await self._task
        except asyncio.CancelledError:
            return 0

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self._received:
            return
        self._received = True
        if self._task is None:
            raise _Stopped
        with suppress(RuntimeError):  # the event loop has just been closed
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)


def run(demo: Demo, start_broker: StartBroker) -> int:
    """Runs the demo with the configured broker, or a broker from `start_broker`, until a signal arrives.

    Returns the exit code.
    """
    signals = Signals()
    never_block()
    try:
        decided = SEPARATE if demo.has_broker else {"exchanges": f"{OWN_EXCHANGE}=killmail"}
        settings = demo.settings(**decided)
        host = free_host(settings)
        with _own_broker(demo, start_broker, signals) as broker:
            return asyncio.run(signals.interrupt(_run(signals, demo, settings, decided, host, broker)))
    except _Stopped:
        return 0
    except BridgeError as error:
        return show(error)


@contextmanager
def _own_broker(demo: Demo, start_broker: StartBroker, signals: Signals) -> Iterator[Broker | None]:
    """Starts a broker unless the operator has configured one, and stops the started broker at the end."""
    broker = None if demo.has_broker else start_broker(_image(), say)
    try:
        yield broker
    finally:
        signals.ignore()
        if broker is not None:
            broker.stop()
        say("stopped")


def run_without_broker(demo: Demo) -> int:
    """Runs the bridge in this process with a feed of killmails until a signal arrives. Returns the exit code."""
    never_block()
    try:
        settings = demo.settings(**SEPARATE)
        guide = Guide(settings, free_host(settings), demo.rate)
        if ignored := [f"{PREFIX}{name.upper()}" for name in ("amqp_url", *SEPARATE) if demo.sets(name)]:
            say(f"edk-bridge: warning: --without-broker ignores {', '.join(ignored)}", err=True)
        logs.configure(settings.log_level, _log_format(settings))
        feed = partial(Feed, demo.rate, lambda: say(guide.without_broker()))
        uvloop.run(serve(settings, make_source=feed))
    except BridgeError as error:
        return show(error)
    return 0


def publish_only(demo: Demo) -> int:
    """Publishes killmails to the configured broker's exchange until a signal arrives. Returns the exit code."""
    signals = Signals()
    never_block()
    try:
        settings = demo.settings()
        exchange = next((name for name, carried in settings.exchanges.items() if carried == "killmail"), None)
        if not demo.has_broker:
            raise ConfigurationError(["--publish-only needs a running broker; set BRIDGE_AMQP_URL"])
        if exchange is None:
            raise ConfigurationError(
                ["BRIDGE_EXCHANGES: no exchange has the type killmail; add one, such as killmails=killmail"]
            )
        publisher = DemoPublisher([Node(url) for url in settings.amqp_url], exchange, durable=True, say=say)
        say(f"publishing invented killmails, {demo.rate:g} a second, to the exchange {exchange}")
        return asyncio.run(signals.interrupt(_publish(publisher, demo.rate)))
    except _Stopped:
        return 0
    except BridgeError as error:
        return show(error)


def never_block() -> None:
    """Makes writes non-blocking, because a signal must end the demo even if Ctrl-S has stopped the terminal."""

    def report(lines: int) -> None:
        say(f"{counted(lines, 'line')} dropped: nothing read them, or they could not be written", err=True)

    queued_output.install("stdout", report, queued_output.IN_ORDER_S)
    queued_output.install("stderr", report, queued_output.IN_ORDER_S)
    logs.configure(logs.LogLevel.WARNING, logs.LogFormat.TEXT)


def show(error: BridgeError) -> int:
    """Prints an error that ends the demo. Returns the exit code of the error."""
    for line in str(error).splitlines():
        say(f"edk-bridge: {line}", err=True)
    return error.exit_code


def say(line: str, err: bool = False) -> None:
    """Prints a line. Does nothing if the terminal is closed, because the demo must still clean up after SIGHUP."""
    stream = sys.stderr if err else sys.stdout
    if stream is not None:
        with suppress(OSError):
            stream.write(f"{line}\n")
            stream.flush()


def free_host(settings: Settings) -> str:
    """Returns the host for clients' URLs. Raises AddressUnavailable if the bridge can't listen on this host."""
    try:
        listeners = open_listeners(settings.host, settings.port, settings.reuse_port)
    except OSError as error:
        raise address_unavailable(error) from error
    hosts = [str(listener.getsockname()[0]) for listener in listeners]
    for listener in listeners:
        listener.close()
    return announced_host(hosts, settings.allowed_networks, source_address)


async def _publish(publisher: DemoPublisher, rate: float) -> int:
    await _first_end(publisher.publish(rate), _report(publisher))
    return 0


async def _run(
    signals: Signals, demo: Demo, settings: Settings, decided: Mapping[str, str], host: str, broker: Broker | None
) -> int:
    nodes = [Node(url) for url in settings.amqp_url] if broker is None else [Node(broker.url)]
    exchange = SEPARATE_EXCHANGE if broker is None else OWN_EXCHANGE
    publisher = DemoPublisher(nodes, exchange, durable=broker is not None, say=say)
    arguments, environment = _arguments(demo, settings, decided), _environment(demo, broker)
    child = Child(arguments, environment, lambda line: say(f"  bridge | {line}"))
    guide = Guide(settings, host, demo.rate)
    try:
        await _declare(publisher)
        say("starting the bridge")
        await child.start()
        await child.ready(host, settings.port, settings.tls_certificate is not None, READY_TIMEOUT_S)
        if broker is None:
            say(guide.with_broker(", ".join(map(str, nodes)), exchange))
        else:
            say(guide.with_own_broker(broker.url, broker.origin, exchange))
        await _first_end(publisher.publish(demo.rate), _report(publisher), child.ended(), _ended(broker))
    finally:
        signals.ignore()
        say("stopping")
        await child.stop(settings.shutdown_timeout_s + 3)
        await publisher.remove()
    return 0


def _image() -> str:
    return os.environ.get("DEMO_RABBITMQ_IMAGE") or os.environ.get("TEST_RABBITMQ_IMAGE") or IMAGE


def _arguments(demo: Demo, settings: Settings, decided: Mapping[str, str]) -> list[str]:
    """Returns the bridge's flags.

    The broker's URL is never a flag, because other users can see a process's arguments.
    """
    given = {name: text for name, text in demo.flags.items() if text is not None and name != "amqp_url"}
    flags = {**given, **decided, "log_format": _log_format(settings)}
    return [word for name, text in flags.items() for word in (f"--{name.replace('_', '-')}", text)]


def _log_format(settings: Settings) -> logs.LogFormat:
    """Returns the format of the bridge's log, which is text unless the settings name another format."""
    return logs.LogFormat.TEXT if settings.log_format is logs.LogFormat.AUTO else settings.log_format


def _environment(demo: Demo, broker: Broker | None) -> dict[str, str]:
    """Returns the bridge's environment, with the broker's URL unless the bridge's own settings contain this URL."""
    url = demo.flags.get("amqp_url") if broker is None else broker.url
    if url is None:
        return {**os.environ}
    others = {name: text for name, text in os.environ.items() if name != "BRIDGE_AMQP_URL_FILE"}
    return {**others, "BRIDGE_AMQP_URL": url}


async def _declare(publisher: DemoPublisher) -> None:
    cancellation = CancellationGuard()
    try:
        await publisher.declare()
    except (aiormq.exceptions.AMQPError, OSError, asyncio.CancelledError) as error:
        if cancellation.requested:
            raise
        raise BridgeError(f"the broker can't be used: {error}") from error


async def _first_end(*works: Coroutine[object, object, None]) -> None:
    """Runs all coroutines until one coroutine ends.

    Raises the error of the coroutine that ends first, if this coroutine has failed.
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _report(publisher: DemoPublisher) -> NoReturn:
    while True:
        await asyncio.sleep(REPORT_INTERVAL_S)
        say(f"{counted(publisher.published, 'killmail')} published")


async def _ended(broker: Broker | None) -> NoReturn:
    """Raises BridgeError if the demo's own broker ends, because no other program would restart it."""
    while True:
        await asyncio.sleep(CHECK_INTERVAL_S)
        if broker is not None and not await asyncio.to_thread(lambda: broker.runs):
            raise BridgeError(f"the demo's broker ({broker.origin}) ended unexpectedly")
