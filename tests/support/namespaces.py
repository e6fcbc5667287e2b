"""Two machines in one: a network for this thread and its children, and one beyond a cable that can be cut.

A network namespace lasts as long as something is in it. These have no names, and belong to threads of this process:
whatever happens to it, no namespace, interface or address is left behind.
"""

import asyncio
import ctypes
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from urllib.parse import urlsplit

import pytest

CLONE_NEWNET = 0x40000000
NEAR, FAR = "10.99.0.1", "10.99.0.2"
"""The addresses of the two machines, for each other."""

_libc = ctypes.CDLL(None, use_errno=True)


class Island:
    """A network in which this thread is, with a machine on the other end of a cable."""

    def __init__(self, broker_url: str, far: ThreadPoolExecutor) -> None:
        self.broker_url = broker_url
        """How the broker, which is outside, is reached from in here."""
        self._far = far

    async def connect_from_afar(self, port: int) -> socket.socket:
        """A connection from the other machine to a port of this one."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._far, lambda: socket.create_connection((NEAR, port), timeout=10))

    async def cut(self) -> None:
        """The other machine is off the net: nothing that it sends or is sent arrives any more."""
        await asyncio.get_running_loop().run_in_executor(self._far, _ip, "link set far down")


@asynccontextmanager
async def island(broker_url: str) -> AsyncIterator[Island]:
    """Takes this thread into a network of its own, and back at the end. Skips the test where that is not allowed."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        pytest.skip("network namespaces need Linux and the ip command")
    async with AsyncExitStack() as stack:
        outside = stack.enter_context(ThreadPoolExecutor(1))
        far = stack.enter_context(ThreadPoolExecutor(1))
        outside.submit(threading.get_native_id).result()
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, home)
        try:
            far.submit(_unshare).result()
            _unshare()
        except PermissionError as error:
            pytest.skip(f"network namespaces can't be made here: {error}")
        stack.callback(_enter, home)
        _ip("link set lo up")
        _ip(f"link add near type veth peer name far netns {far.submit(threading.get_native_id).result()}")
        _ip(f"address add {NEAR}/24 dev near")
        _ip("link set near up")
        far.submit(_ip, f"address add {FAR}/24 dev far").result()
        far.submit(_ip, "link set far up").result()
        yield Island(await stack.enter_async_context(_forwarded(broker_url, outside)), far)


@asynccontextmanager
async def _forwarded(broker_url: str, outside: ThreadPoolExecutor) -> AsyncIterator[str]:
    """The URL of a port in here that leads to the broker, by way of a thread that is still outside."""
    parts = urlsplit(broker_url)
    target = parts.hostname or "localhost", parts.port or 5672
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await asyncio.get_running_loop().run_in_executor(outside, socket.create_connection, target)
        line.setblocking(False)
        up_reader, up_writer = await asyncio.open_connection(sock=line)
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(_pump(reader, up_writer))
                pumps.create_task(_pump(up_reader, writer))
        finally:
            up_writer.transport.abort()
            writer.transport.abort()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer))
        serving.add(task)
        task.add_done_callback(serving.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{port}").geturl()
    finally:
        server.close()
        for task in tuple(serving):
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


def _unshare() -> None:
    _called(_libc.unshare(CLONE_NEWNET))


def _enter(namespace: int) -> None:
    _called(_libc.setns(namespace, CLONE_NEWNET))


def _called(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)
