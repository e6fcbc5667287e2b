"""`edk-bridge demo`: a broker, the bridge and a stand-in for a fetcher, until Ctrl-C.

Whatever was started here ends here, however the demo ends.
"""

import asyncio
import errno
import os
import shlex
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import aiormq

from bridge import logs, queued_output
from bridge.amqp.cancellation import CancellationGuard
from bridge.amqp.nodes import Node
from bridge.amqp.supervisor import cancel_requests
from bridge.cli.common.streams import echo
from bridge.config import settings
from bridge.config.listen_addresses import announced_host, authority
from bridge.demo.child import Child
from bridge.demo.fetcher import Fetcher
from bridge.errors import BridgeError, ConfigurationError
from bridge.server.listeners.sockets import open_listeners, remedy, source_address
from tests.support.broker.find import Broker, PrivateNode, find_broker

_DOTENV = Path(".env")
_IMAGE = "rabbitmq:4-management"
_READY_TIMEOUT_S = 30.0
_TELL_EVERY_S = 10.0
_LOOK_EVERY_S = 1.0

_OWN_EXCHANGE = "killmails"
# Invented killmails must never reach the clients of a real exchange, nor real ones stay unread in a real queue.
_EXCHANGE_ELSEWHERE = "bridge.demo"


class _Stopped(BaseException):
    """Somebody asked the demo to end while it was not in its event loop."""


class _Signals:
    """The first of SIGINT, SIGTERM and SIGHUP ends what is going on; all later ones would only end the tidying up."""

    def __init__(self) -> None:
        self._asked = False
        self._task: asyncio.Task[int] | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._handle)

    def ignore(self) -> None:
        """From now on nothing is interrupted."""
        self._asked = True

    async def interrupt(self, work: Coroutine[object, object, int]) -> int:
        """Run it; a signal cancels it, and 0 is the answer then."""
        self._task = asyncio.create_task(work)
        try:
            return await self._task
        except asyncio.CancelledError:
            return 0

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self._asked:
            return
        self._asked = True
        if self._task is None:
            raise _Stopped
        with suppress(RuntimeError):  # the loop has just been closed
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)


def run(port: int = 3000, rate: float = 1.0, schemas: str | None = None, env_file: str | None = None) -> int:
    """Run the demo until a signal; returns the process's exit code.

    `rate` is in killmails a second, `schemas` the folder of schema files that the bridge is to have beside its own,
    `env_file` a file of settings in place of `.env`.
    """
    signals = _Signals()
    _never_block()
    broker: Broker | None = None
    try:
        named = _named_broker(env_file)
        flags = _flags(port, named, schemas)
        effective, host = _settings(flags, env_file)
        broker = find_broker(
            ",".join(effective.amqp_url) if named else None,
            os.environ.get("DEMO_RABBITMQ_IMAGE") or os.environ.get("TEST_RABBITMQ_IMAGE") or _IMAGE,
            _say,
        )
        return asyncio.run(
            signals.interrupt(_demonstrate(signals, effective, host, flags, env_file, broker, named, rate))
        )
    except _Stopped:
        return 0
    except BridgeError as error:
        return _failed(error)
    finally:
        signals.ignore()
        if broker is not None:
            broker.stop()
            _say("stopped")


def _never_block() -> None:
    """Makes output never block: a signal must end the demo even if Ctrl-S has stopped the terminal."""

    def report(lines: int) -> None:
        _say(f"{lines:,} lines dropped: nothing read them, or they could not be written", err=True)

    queued_output.install("stdout", report, queued_output.IN_ORDER_S)
    queued_output.install("stderr", report, queued_output.IN_ORDER_S)
    logs.configure(logs.LogLevel.WARNING, logs.LogFormat.TEXT)


def _failed(error: BridgeError) -> int:
    for line in str(error).splitlines():
        _say(f"edk-bridge: {line}", err=True)
    return error.exit_code


def publish_only(rate: float, env_file: str | None = None) -> int:
    """Only publish, where whoever asks for this has named the broker, to the exchange that a bridge there consumes."""
    signals = _Signals()
    _never_block()
    try:
        effective = _loaded({}, env_file)
        exchange = next((name for name, carried in effective.exchanges.items() if carried == "killmail"), None)
        if not _named_broker(env_file):
            raise ConfigurationError(["--publish-only publishes to a broker that is there: name it in BRIDGE_AMQP_URL"])
        if exchange is None:
            raise ConfigurationError(["BRIDGE_EXCHANGES: no exchange carries killmails, to which they could go"])
        fetcher = Fetcher([Node(url) for url in effective.amqp_url], exchange, lasting=True, say=_say)
        _say(f"publishing invented killmails, {rate:g} a second, to the exchange {exchange}")
        return asyncio.run(signals.interrupt(_publish(fetcher, rate)))
    except _Stopped:
        return 0
    except BridgeError as error:
        return _failed(error)


async def _publish(fetcher: Fetcher, rate: float) -> int:
    await _first_end(fetcher.publish(rate), _tell(fetcher))
    return 0


async def _demonstrate(
    signals: _Signals,
    effective: settings.Settings,
    host: str,
    flags: dict[str, str],
    env_file: str | None,
    broker: Broker,
    named: bool,
    rate: float,
) -> int:
    nodes = [Node(url) for url in effective.amqp_url] if named else [Node(broker.url)]
    fetcher = Fetcher(nodes, _exchange(named), lasting=not named, say=_say)
    # A broker that was named is where the bridge finds it itself; its password must not appear among the arguments.
    environment = {**os.environ, **({} if named else {"BRIDGE_AMQP_URL": broker.url})}
    if effective.log_format is logs.LogFormat.AUTO:
        flags = {**flags, "log_format": "text"}
    if env_file is not None:
        flags = {**flags, "env_file": env_file}
    words = [word for name, text in flags.items() for word in (f"--{name.replace('_', '-')}", text)]
    child = Child(words, environment, lambda line: _say(f"  bridge | {line}"))
    try:
        await _usable(fetcher)
        _say("starting the bridge")
        await child.start()
        tls = effective.tls_certificate is not None
        await child.ready(host, effective.port, tls, _READY_TIMEOUT_S)
        _say(_guide(effective, host, broker, named, rate))
        await _first_end(fetcher.publish(rate), _tell(fetcher), child.ended(), _ended(broker))
    finally:
        signals.ignore()
        _say("stopping")
        await child.stop(effective.shutdown_timeout_s + 3)
        await fetcher.remove()
    return 0


async def _usable(fetcher: Fetcher) -> None:
    cancellation = CancellationGuard()
    try:
        await fetcher.declare()
    except (aiormq.exceptions.AMQPError, OSError, asyncio.CancelledError) as error:
        if cancellation.requested:
            raise
        raise BridgeError(f"the broker can't be used: {error}") from error


async def _first_end(*ways: Coroutine[object, object, None]) -> None:
    """Run them until the first ends, and let its error out."""
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _tell(fetcher: Fetcher) -> NoReturn:
    while True:
        await asyncio.sleep(_TELL_EVERY_S)
        _say(f"{fetcher.published} killmails published")


async def _ended(broker: Broker) -> NoReturn:
    """Raises BridgeError when a node that was started here has ended by itself: nobody would start it again."""
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        if isinstance(broker, PrivateNode) and not broker.runs:
            raise BridgeError(f"the broker that the demo had started ({broker.origin}) has ended by itself")


def _named_broker(env_file: str | None) -> bool:
    """Whether the operator named a broker, in one of the places where the bridge looks for it."""
    return settings.is_set("amqp_url", os.environ, _dotenv(env_file))


def _loaded(flags: dict[str, str], env_file: str | None) -> settings.Settings:
    return settings.load(flags, os.environ, _dotenv(env_file), must_exist=env_file is not None)


def _dotenv(env_file: str | None) -> Path:
    return _DOTENV if env_file is None else Path(env_file)


def _settings(flags: dict[str, str], env_file: str | None) -> tuple[settings.Settings, str]:
    """The settings that the bridge will find, and the host by which clients reach it.

    Raises ConfigurationError, also where its port is taken.
    """
    effective = _loaded(flags, env_file)
    try:
        listeners = open_listeners(effective.host, effective.port, effective.reuse_port)
    except OSError as error:
        hint = "--port takes another" if error.errno == errno.EADDRINUSE else remedy(error)
        raise ConfigurationError([f"the bridge can't listen on {error.strerror}; {hint}"]) from error
    hosts = [str(listener.getsockname()[0]) for listener in listeners]
    for listener in listeners:
        listener.close()
    return effective, announced_host(hosts, effective.allowed_networks, source_address)


def _flags(port: int, named: bool, schemas: str | None) -> dict[str, str]:
    """What the demo decides about the bridge; all other settings are the operator's."""
    flags = {"port": str(port), "exchanges": f"{_exchange(named)}=killmail"}
    if schemas is not None:
        flags["schemas"] = schemas
    return {**flags, "queue": "", "history": "memory", "reject_exchange": "off"} if named else flags


def _exchange(named: bool) -> str:
    return _EXCHANGE_ELSEWHERE if named else _OWN_EXCHANGE


def _guide(effective: settings.Settings, host: str, broker: Broker, named: bool, rate: float) -> str:
    tls = "s" if effective.tls_certificate else ""
    address = authority(host, effective.port)
    updates = f"ws{tls}://{address}{effective.path}"
    command = _command()
    # The URL of a broker that was named holds a password, and is known to who named it.
    broker_too = (
        ""
        if named
        else f"""
There, publish and rejects find the broker after:

  export BRIDGE_AMQP_URL={broker.url}
"""
    )
    where = broker.origin if named else f"{broker.url} ({broker.origin})"
    only = ", which only this demo uses; rejected events are only counted" if named else ""
    return f"""
  live page  http{tls}://{address}/
  updates    {updates}
  state      http{tls}://{address}/readyz and http{tls}://{address}/metrics
  broker     {where}
  killmails  invented, {rate:g} a second, published to the exchange {_exchange(named)}{only}

Watch them arrive on the live page, or in another terminal:

  {command} tail {updates}
{broker_too}
Ctrl-C stops it all.
"""


def _command() -> str:
    """What runs this command from the folder that it was started in, in whatever terminal."""
    beside = Path(sys.executable).with_name("edk-bridge")
    started = Path(sys.argv[0]).absolute()
    found = next((path for path in (started, beside) if path.name == beside.name and path.is_file()), None)
    path = found or Path(sys.executable)
    with suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return shlex.quote(str(path)) + ("" if found else " -m bridge")


def _say(line: str, err: bool = False) -> None:
    # The terminal may be gone: that is what SIGHUP is about, and it must not keep anything from being stopped.
    with suppress(OSError):
        echo(line, err=err)
