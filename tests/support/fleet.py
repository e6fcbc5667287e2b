"""Several bridges behind one load balancer. A test can end each bridge, and start it again on the same port."""

import asyncio
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from bridge.demo.child import die_with_parent, signal_group
from tests.support.broker.ports import LOOPBACK, free_port
from tests.support.clients import get
from tests.support.prepare import HAPROXY, program
from tests.support.running import BridgeProcess, bridge_process
from tests.support.waiting import eventually

STOP_LIMIT_S = 5.0

# One check is enough to mark a bridge as up or down, because tests wait for both changes. Without `on-marked-down`, a
# client would stay with a bridge that hangs. With `redispatch`, a refused client gets another bridge, even before a
# check fails.
_CONFIGURATION = """
global
  nbthread 1
  maxconn 400
  stats socket {control} mode 600 level user

defaults
  mode tcp
  timeout connect 1s
  timeout client 1h
  timeout server 1h
  timeout check 2s
  retries 3
  option redispatch 1

frontend clients
  bind {host}:{port}
  default_backend bridges

backend bridges
  balance leastconn
  option httpchk
  http-check send meth GET uri /readyz ver HTTP/1.1 hdr Host localhost
  http-check expect status 200
  default-server check inter 200ms fall 1 rise 1 on-marked-down shutdown-sessions
{servers}
"""


class Haproxy:
    """HAProxy as an operator runs it in front of several bridges: one port for the clients of all ready bridges.

    HAProxy forwards bytes (`mode tcp`), requests `/readyz` of each bridge several times a second, and tries another
    bridge if a bridge refuses a connection. HAProxy listens only on loopback. For the bridges, the peer of each
    connection is HAProxy, not the client.
    """

    def __init__(self, port: int, control: Path) -> None:
        self.port = port
        self._control = control

    async def up(self) -> set[int]:
        """Returns the ports of the bridges that get clients now."""
        reader, writer = await asyncio.open_unix_connection(self._control)
        writer.write(b"show servers state bridges\n")
        answer = await reader.read(-1)
        writer.close()
        await writer.wait_closed()
        lines = [line.split() for line in answer.decode().splitlines()]
        names = next(line[1:] for line in lines if line[:1] == ["#"])
        rows = [dict(zip(names, line, strict=False)) for line in lines if len(line) == len(names)]
        # HAProxy's state 2 is "running".
        return {int(row["srv_port"]) for row in rows if row["srv_op_state"] == "2"}

    async def sees(self, *ports: int) -> None:
        """Waits until exactly these bridges get clients."""

        async def same() -> bool:
            return await self.up() == set(ports)

        await eventually(f"HAProxy finds the bridges on {ports} ready, and no other", same)


@asynccontextmanager
async def haproxy(backends: Sequence[int]) -> AsyncIterator[Haproxy]:
    """Runs HAProxy on a free port, in front of bridges on these loopback ports. The bridges may start later."""
    command = program(HAPROXY)
    directory = Path(tempfile.mkdtemp(prefix="edk-bridge-haproxy-"))
    try:
        port = free_port()
        servers = "\n".join(f"  server bridge-{number} {LOOPBACK}:{each}" for number, each in enumerate(backends, 1))
        control, configuration = directory / "control", directory / "haproxy.cfg"
        configuration.write_text(_CONFIGURATION.format(control=control, host=LOOPBACK, port=port, servers=servers))
        output = directory / "output.log"
        with output.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                # With -db, HAProxy always stays in the foreground.
                *die_with_parent(command, "-db", "-f", str(configuration)),
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=directory,
            )
        try:
            await eventually("HAProxy listens", lambda: control.exists() or process.returncode is not None)
            if process.returncode is not None:
                raise RuntimeError(f"HAProxy ended with {process.returncode}: {output.read_text()}")
            yield Haproxy(port, control)
        finally:
            assert process.stdin is not None
            try:
                signal_group(process.pid, signal.SIGTERM)
                async with asyncio.timeout(STOP_LIMIT_S):
                    await process.wait()
            finally:
                # Closing the pipe kills the process group.
                process.stdin.close()
                await process.wait()
    finally:
        shutil.rmtree(directory)


SIZE = 3

READY_LIMIT_S = 60.0
"""The time limit is long because the broker may have to elect another leader of the stream."""


class Fleet:
    """Bridges with the same settings, numbered from 0. Each bridge keeps its port when it is started again."""

    def __init__(self, amqp_url: str, settings: dict[str, str], ports: list[int], balancer: Haproxy) -> None:
        self.ports = ports
        self.balancer = balancer
        self.processes: list[BridgeProcess] = []
        """All processes of bridges so far, including those that have ended."""
        self._amqp_url = amqp_url
        self._settings = settings
        self._running: dict[int, tuple[BridgeProcess, AsyncExitStack]] = {}
        self._hanging: set[int] = set()

    @property
    def port(self) -> int:
        """The port of the load balancer."""
        return self.balancer.port

    async def start(self, *places: int) -> None:
        """Starts these bridges, and waits until they are ready and get clients."""
        await asyncio.gather(*map(self._start, places))
        await self.balanced()

    async def hang(self, place: int) -> None:
        """Freezes a bridge with SIGSTOP, keeps its connections open, and waits until it gets no more clients."""
        self._running[place][0].process.send_signal(signal.SIGSTOP)
        self._hanging.add(place)
        await self.balanced()

    async def end(self, *places: int, by: signal.Signals = signal.SIGKILL) -> None:
        """Ends these bridges at once, and waits for their end. HAProxy may detect the end later."""
        ending = [self._running.pop(place) for place in places]
        self._hanging.difference_update(places)
        for process, _ in ending:
            process.process.send_signal(by)
        for process, stack in ending:
            code = await process.ended()
            await stack.aclose()
            assert code == (0 if by is signal.SIGTERM else -by), process.texts

    async def balanced(self) -> None:
        """Waits until exactly the running bridges get clients."""
        await self.balancer.sees(*(self.ports[place] for place in self._running if place not in self._hanging))

    async def stop(self) -> None:
        """Ends all processes that still run, including processes that SIGSTOP has frozen."""
        for _, stack in self._running.values():
            await stack.aclose()

    def assert_nothing_went_wrong(self) -> None:
        """Checks that the bridges wrote only log lines, and logged no exception."""
        for process in self.processes:
            assert process.texts == []
            assert [line for line in process.lines if "exception" in line or line["level"] == "error"] == []

    async def _start(self, place: int) -> None:
        port = self.ports[place]
        stack = AsyncExitStack()
        settings = {**self._settings, "BRIDGE_PORT": str(port), "BRIDGE_INSTANCE": f"bridge-{place + 1}"}
        process = await stack.enter_async_context(bridge_process(self._amqp_url, **settings))
        self.processes.append(process)
        self._running[place] = process, stack
        await process.port()

        async def ready() -> bool:
            return (await get(port, "/readyz"))[0] == 200

        await eventually(f"bridge {place + 1} is ready", ready, READY_LIMIT_S)


@asynccontextmanager
async def fleet(amqp_url: str, **settings: str) -> AsyncIterator[Fleet]:
    """Runs SIZE ready bridges behind HAProxy. `settings` are the variables that all bridges share."""
    ports = [free_port() for _ in range(SIZE)]
    async with haproxy(ports) as balancer:
        bridges = Fleet(amqp_url, settings, ports, balancer)
        try:
            await bridges.start(*range(SIZE))
            yield bridges
        finally:
            await bridges.stop()
