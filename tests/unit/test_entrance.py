"""When clients are accepted: as long as there are descriptors, and again once there are; said once for each change."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from bridge.fanout.entrance import SPARE, Entrance
from bridge.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


class Scene:
    """An entrance with one listening socket."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.servers: list[asyncio.Server] = []
        self.broken = False
        self.entrance = Entrance([self.listener], self._accept, self.metrics)

    async def _accept(self, listener: socket.socket) -> asyncio.Server:
        if self.broken:
            listener.close()
            raise OSError("refused in this test")
        listener.setblocking(False)
        server = await asyncio.get_running_loop().create_server(asyncio.Protocol, sock=listener)
        self.servers.append(server)
        return server

    @property
    def serving(self) -> int:
        return sum(1 for server in self.servers if server.is_serving())

    @property
    def shortages(self) -> float:
        return self.metrics.registry.get_sample_value("bridge_descriptor_shortages_total") or 0.0


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    await scene.entrance.open()
    yield scene
    scene.entrance.close()
    assert scene.serving == 0
    assert scene.listener.fileno() == -1


@contextmanager
def left(count: int) -> Iterator[None]:
    """So many descriptors are left for this process, as long as it closes none."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.dup(0) for _ in range(100)]
    limit = taken[-1] + 1
    for descriptor in taken[100 - count :]:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for descriptor in taken[: 100 - count]:
            os.close(descriptor)


async def test_clients_are_accepted_while_there_are_descriptors_to_spare(scene: Scene) -> None:
    with left(SPARE), capture_logs() as logged:
        await scene.entrance.look()
    assert (scene.serving, len(scene.servers), scene.shortages) == (1, 1, 0)
    assert logged == []


async def test_shortage_stops_it_and_its_end_starts_it_again_each_said_once(scene: Scene) -> None:
    with capture_logs() as logged:
        with left(SPARE - 1):
            for _ in range(3):
                await scene.entrance.look()
            assert scene.serving == 0
        for _ in range(3):
            await scene.entrance.look()
    assert scene.serving == 1
    assert scene.shortages == 1
    assert [line["log_level"] for line in logged] == ["error", "info"]


async def test_own_descriptors_that_are_free_meanwhile_do_not_count(scene: Scene) -> None:
    with left(SPARE - 1):
        await scene.entrance.look()
        # The server's is free by now.
        await asyncio.sleep(0)
        await scene.entrance.look()
        assert scene.serving == 0
    await scene.entrance.look()
    assert scene.serving == 1


async def test_clients_that_come_meanwhile_wait(scene: Scene) -> None:
    with left(SPARE - 1):
        await scene.entrance.look()
    with socket.create_connection(scene.listener.getsockname()):
        await scene.entrance.look()
        assert scene.serving == 1


async def test_start_that_fails_is_tried_again(scene: Scene) -> None:
    with left(SPARE - 1):
        await scene.entrance.look()
    scene.broken = True
    await scene.entrance.look()
    assert scene.serving == 0
    scene.broken = False
    await scene.entrance.look()
    assert scene.serving == 1
    assert scene.shortages == 1
