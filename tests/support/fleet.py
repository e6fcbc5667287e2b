"""Several bridges behind one load balancer, each of which can be ended and started again where it was."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from bridge.demo.ports import free_port
from tests.support.clients import get
from tests.support.haproxy import Haproxy, haproxy
from tests.support.running import BridgeProcess, bridge_process
from tests.support.waiting import eventually

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
