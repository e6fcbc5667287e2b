"""Simulates two machines: this thread in one network, and a second network at the end of a cable that a test can cut.

A network namespace exists as long as it has a thread or a process. The simulated networks are namespaces without names,
which belong to threads of this process. Even if the test process is killed, no namespace, interface or address remains.
"""

import asyncio
import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from urllib.parse import urlsplit

from tests.support.broker.session import unavailable

CLONE_NEWNET = 0x40000000
NEAR, FAR = "10.99.0.1", "10.99.0.2"
"""The addresses at which the two simulated machines reach each other."""
NEAR_V6 = "fd00:99::1"
"""A second address of the near machine, for IPv6."""

LINK_LOCAL_LIMIT_S = 10.0
"""The maximum time until a link-local address is usable, which normally takes one or two seconds."""

_libc = ctypes.CDLL(None, use_errno=True)


class Island:
    """The network of this thread, with a machine at the other end of a cable."""

    def __init__(self, broker_url: str, far: ThreadPoolExecutor) -> None:
        self.broker_url = broker_url
        """The URL at which the simulated network reaches the broker, which runs outside of this network."""
        self._far = far

    async def connect_from_outside(self, port: int, source: str = FAR) -> socket.socket:
        """Connects from an address of the other machine to a port of this machine.

        `source` is an address that `settle` has returned.
        """
        to = NEAR_V6 if ":" in source else NEAR
        if source.startswith("fe80:"):
            # The destination is the link-local address of this machine. The zone in the address names the other
            # machine's end of the cable.
            to = f"{_link_local('near')}%far"
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._far, _connected, to, port, source)

    async def settle(self, source: str) -> str:
        """Gives the other machine another address that this machine can reach.

        Returns the address for `connect_from_outside`.

        With `fe80::` as `source`, no address is added, and the link-local address that the other machine already has is
        returned.
        """
        loop = asyncio.get_running_loop()
        if source == "fe80::":
            found = await loop.run_in_executor(self._far, _link_local, "far")
            return f"{found}%far"
        length, flag = (128, " nodad") if ":" in source else (32, "")
        await loop.run_in_executor(self._far, _ip, f"address add {source}/{length} dev far{flag}")
        _ip(f"route add {source}/{length} dev near")
        return source

    async def cut(self) -> None:
        """Cuts the cable: no packet from or to the other machine arrives any more."""
        await asyncio.get_running_loop().run_in_executor(self._far, _ip, "link set far down")


@asynccontextmanager
async def island(broker_url: str) -> AsyncIterator[Island]:
    """Moves this thread to a separate network, and back at the end.

    Skips the test if the system does not allow a process to make a network namespace.
    """
    if sys.platform != "linux" or shutil.which("ip") is None:
        unavailable("network namespaces need Linux and the ip command")
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
            unavailable(f"network namespaces can't be made here: {error}")
        stack.callback(_enter, home)
        _ip("link set lo up")
        _ip(f"link add near type veth peer name far netns {far.submit(threading.get_native_id).result()}")
        _ip(f"address add {NEAR}/24 dev near")
        _ip("link set near up")
        far.submit(_ip, f"address add {FAR}/24 dev far").result()
        far.submit(_ip, "link set far up").result()
        if socket.has_ipv6:
            _ip(f"address add {NEAR_V6}/64 dev near nodad")
            far.submit(_ip, "address add fd00:99::2/64 dev far nodad").result()
        yield Island(await stack.enter_async_context(_forwarded(broker_url, outside)), far)


@asynccontextmanager
async def _forwarded(broker_url: str, outside: ThreadPoolExecutor) -> AsyncIterator[str]:
    """Returns the URL of a port in this network.

    A thread outside of this network forwards the connections to the broker.
    """
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


def _connected(to: str, port: int, source: str) -> socket.socket:
    line = socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET)
    try:
        line.settimeout(10)
        # The address is looked up here, because the socket's methods would drop the zone of a link-local address.
        line.bind(socket.getaddrinfo(source, 0, type=socket.SOCK_STREAM)[0][4])
        line.connect(socket.getaddrinfo(to, port, type=socket.SOCK_STREAM)[0][4])
    except BaseException:
        line.close()
        raise
    return line


def _link_local(device: str) -> str:
    """Waits until the link-local address of a device is usable, and returns it.

    The kernel first checks that no other machine has the same address.
    """
    deadline_s = time.monotonic() + LINK_LOCAL_LIMIT_S
    while time.monotonic() < deadline_s:
        told = subprocess.run(
            ["ip", "-json", "-6", "address", "show", "dev", device, "scope", "link"], check=True, capture_output=True
        )
        for entry in filter(None, json.loads(told.stdout)[0].get("addr_info", ())):
            if "tentative" not in entry:
                return str(entry["local"])
        time.sleep(0.05)
    raise AssertionError(f"{device} has no link-local address")


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)
