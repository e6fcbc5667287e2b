"""Several bridges behind one load balancer, each of which can be ended and started again where it was."""

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

# One failed check is enough, and one that went well: tests wait for both. Without `on-marked-down`, a client would stay
# with a bridge that hangs; `redispatch` lets it have another where the first one refuses, before a check has seen that.
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
    """HAProxy, as an operator puts it before several bridges: one port for clients, who are spread over the ready ones.

    It passes bytes on (`mode tcp`), asks each bridge's `/readyz` several times a second, and tries another one where a
    connection is refused. It listens on loopback only. The bridges see it as their peer, and not the clients.
    """

    def __init__(self, port: int, control: Path) -> None:
        self.port = port
        self._control = control

    async def up(self) -> set[int]:
        """The ports of the bridges that get clients now."""
        reader, writer = await asyncio.open_unix_connection(self._control)
        writer.write(b"show servers state bridges\n")
        answer = await reader.read(-1)
        writer.close()
        await writer.wait_closed()
        lines = [line.split() for line in answer.decode().splitlines()]
        names = next(line[1:] for line in lines if line[:1] == ["#"])
        rows = [dict(zip(names, line, strict=False)) for line in lines if len(line) == len(names)]
        # Of the states, 2 is "running".
        return {int(row["srv_port"]) for row in rows if row["srv_op_state"] == "2"}

    async def sees(self, *ports: int) -> None:
        """Returns when exactly these bridges get clients."""

        async def same() -> bool:
            return await self.up() == set(ports)

        await eventually(f"HAProxy finds the bridges on {ports} ready, and no other", same)


@asynccontextmanager
async def haproxy(backends: Sequence[int]) -> AsyncIterator[Haproxy]:
    """HAProxy on a free port, before bridges on these ports of loopback, which need not be there yet."""
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
                # -db: in the foreground, whatever a configuration says.
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
"""Its broker may be about to choose another leader for the stream."""


class Fleet:
    """Bridges with the same settings, by their place in the row; each keeps its port for life."""

    def __init__(self, amqp_url: str, settings: dict[str, str], ports: list[int], balancer: Haproxy) -> None:
        self.ports = ports
        self.balancer = balancer
        self.processes: list[BridgeProcess] = []
        """All that ever ran."""
        self._amqp_url = amqp_url
        self._settings = settings
        self._running: dict[int, tuple[BridgeProcess, AsyncExitStack]] = {}
        self._hanging: set[int] = set()

    @property
    def port(self) -> int:
        """Where clients connect."""
        return self.balancer.port

    async def start(self, *places: int) -> None:
        """Returns when these bridges are ready, and get clients."""
        await asyncio.gather(*map(self._start, places))
        await self.balanced()

    async def hang(self, place: int) -> None:
        """Stops a bridge where it stands, connections and all; returns when it gets no clients any more."""
        self._running[place][0].process.send_signal(signal.SIGSTOP)
        self._hanging.add(place)
        await self.balanced()

    async def end(self, *places: int, by: signal.Signals = signal.SIGKILL) -> None:
        """Ends these bridges at once; returns when they have ended, which HAProxy may not have seen yet."""
        ending = [self._running.pop(place) for place in places]
        self._hanging.difference_update(places)
        for process, _ in ending:
            process.process.send_signal(by)
        for process, stack in ending:
            code = await process.ended()
            await stack.aclose()
            assert code == (0 if by is signal.SIGTERM else -by), process.texts

    async def balanced(self) -> None:
        """Returns when those that run get clients, and nobody else."""
        await self.balancer.sees(*(self.ports[place] for place in self._running if place not in self._hanging))

    async def stop(self) -> None:
        """Ends what still runs, in whatever state it is."""
        for _, stack in self._running.values():
            await stack.aclose()

    def assert_nothing_went_wrong(self) -> None:
        """No bridge wrote anything that is no log line, nor of an exception that nobody expected."""
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
    """SIZE bridges, ready, behind HAProxy. `settings` are the variables that all of them share."""
    ports = [free_port() for _ in range(SIZE)]
    async with haproxy(ports) as balancer:
        bridges = Fleet(amqp_url, settings, ports, balancer)
        try:
            await bridges.start(*range(SIZE))
            yield bridges
        finally:
            await bridges.stop()
