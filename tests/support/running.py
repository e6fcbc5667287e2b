"""A running bridge, either in the event loop of the test, or as a process like an operator's bridge."""

import asyncio
import dataclasses
import json
import os
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from bridge.amqp.consume.consumer import Consumer
from bridge.app import Bridge
from bridge.config import settings
from bridge.timing import DEFAULT, Timing
from tests.support.broker.find import Broker
from tests.support.certificates import certificate
from tests.support.metrics import series, value
from tests.support.waiting import LIMIT_S, eventually

UNPINGED = {"BRIDGE_IDLE_TIMEOUT": "1h", "BRIDGE_PING_INTERVAL": "30m"}
"""Settings for `bridge_process` in a test whose clients must get no pings.

On a busy machine, a test can take longer than the default ping interval of 30 s.
"""

NOWHERE = Path("/nonexistent/.env")

COMMAND = (sys.executable, "-m", "bridge")
"""The command that runs the bridge from this checkout."""


TIMED_SCRIPT = """
import json, sys
from bridge.cli import cli
from bridge.timing import Timing
cli.main(sys.argv[2:], prog_name="edk-bridge", obj=Timing(**json.loads(sys.argv[1])))
"""
"""A script that runs `edk-bridge`, with the time constants in its first argument, a JSON object."""


def timed_command(timing: Timing) -> tuple[str, ...]:
    """Returns the command that runs the bridge from this checkout with changed time constants."""
    if timing == DEFAULT:
        return COMMAND
    return sys.executable, "-P", "-c", TIMED_SCRIPT, json.dumps(dataclasses.asdict(timing))


def consumer_of(bridge: Bridge) -> Consumer:
    """Returns the consumer of a bridge, typed for mypy."""
    assert isinstance(bridge._source, Consumer)
    return bridge._source


def unique(kind: str) -> str:
    """Returns a name for an exchange or a queue that no other test uses."""
    return f"test.{kind}.{uuid.uuid4().hex[:12]}"


@asynccontextmanager
async def running(amqp_url: str, timing: Timing = DEFAULT, /, **flags: object) -> AsyncIterator[Bridge]:
    """Runs a bridge on a free port of 127.0.0.1, and waits until it is ready. `flags` are settings by name."""
    async with started(amqp_url, timing, **flags) as bridge:
        await eventually("the bridge is ready", lambda: bridge.readiness.report()[0])
        yield bridge


@asynccontextmanager
async def started(amqp_url: str, timing: Timing = DEFAULT, /, **flags: object) -> AsyncIterator[Bridge]:
    """Runs a bridge as `running` does, but does not wait until the bridge is ready.

    Checks at the end that no metric series was added while the bridge ran. If a counter first appears with the value 1,
    Prometheus does not see the increase from 0.
    """
    texts = {"amqp_url": amqp_url, "host": "127.0.0.1", "port": "0", "shutdown_timeout": "5s"}
    texts |= {name: str(value) for name, value in flags.items()}
    bridge = Bridge(settings.load(texts, {}, NOWHERE), timing)
    at_start = series(bridge.metrics)
    await bridge.start()
    try:
        yield bridge
    finally:
        await bridge.stop()
    assert series(bridge.metrics) == at_start


def port_of(bridge: Bridge) -> int:
    """Returns the port that a running bridge listens on."""
    return bridge.addresses[0][1]


def sample(bridge: Bridge, name: str, **labels: str) -> float:
    """Returns the value of a metric. Raises KeyError if the metric has no series with these labels."""
    return value(bridge.metrics, name, **labels)


def pending(bridge: Bridge) -> float:
    """Returns the number of connections without a complete request."""
    return sample(bridge, "bridge_handshakes_pending")


@asynccontextmanager
async def secure(broker: Broker, exchange: str, folder: Path, **flags: object) -> AsyncIterator[tuple[Bridge, Path]]:
    """Runs a bridge with TLS. Yields the bridge and the certificate that clients must trust."""
    chain, key = certificate(folder, "limits")
    flags |= {"exchanges": f"{exchange}=killmail", "tls_certificate": chain, "tls_key": key}
    async with running(broker.url, **flags) as bridge:
        yield bridge, chain


class BridgeProcess:
    """`python -m bridge serve` as a child process. `lines` has the bridge's log lines, parsed from JSON."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, object]] = []
        self.texts: list[str] = []
        """The lines on the bridge's standard error that are not JSON."""
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            try:
                self.lines.append(json.loads(line))
            except ValueError:
                self.texts.append(line.decode().rstrip())

    def logged(self, event: str) -> dict[str, object] | None:
        """Returns the first log line with the given phrase as its event."""
        return next((line for line in self.lines if line["event"] == event), None)

    async def port(self) -> int:
        """Waits until the bridge listens, and returns its port."""
        await eventually("the bridge listens", lambda: self.logged("listening") or self.process.returncode is not None)
        line = self.logged("listening")
        assert line is not None, self.texts
        return int(str(line["port"]))

    async def consuming(self) -> None:
        """Waits until the bridge consumes events."""
        await eventually("the bridge consumes", lambda: self.logged("consuming"))

    async def ended(self, limit_s: float = LIMIT_S) -> int:
        """Waits for the end of the bridge, and returns the exit code."""
        async with asyncio.timeout(limit_s):
            code = await self.process.wait()
            await self._reading
        return code


@asynccontextmanager
async def bridge_process(
    amqp_url: str,
    *arguments: str,
    command: Sequence[str] = COMMAND,
    **variables: str,
) -> AsyncIterator[BridgeProcess]:
    """Runs a bridge as a process on a free port of 127.0.0.1. Kills the bridge at the end if it still runs.

    `command` is the start of the command line, to which `serve` and the arguments are appended. `command` may be a
    program that executes the bridge.
    """
    environment = {name: text for name, text in os.environ.items() if not name.startswith("BRIDGE_")}
    environment |= {
        "BRIDGE_AMQP_URL": amqp_url,
        "BRIDGE_HOST": "127.0.0.1",
        "BRIDGE_PORT": "0",
        **variables,
    }
    process = await asyncio.create_subprocess_exec(
        *command,
        "serve",
        *arguments,
        env=environment,
        stderr=asyncio.subprocess.PIPE,
        # The bridge starts in this folder, so that it does not read the developer's `.env`.
        cwd=Path(__file__).parent,
    )
    running_process = BridgeProcess(process)
    try:
        yield running_process
    finally:
        if process.returncode is None:
            process.kill()
        await running_process.ended()
