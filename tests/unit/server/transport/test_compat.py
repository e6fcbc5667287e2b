"""Tests of the workarounds for websockets and uvloop, and of the defects that make each workaround necessary."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import socket
import sys
import weakref
from http import HTTPStatus

import pytest
import uvloop
import websockets
from websockets import frames
from websockets.datastructures import Headers
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.utils import apply_mask as apply_mask_in_python

from bridge.server.transport import compat, tcp
from bridge.server.websocket import reader

HEADERS = Headers(
    [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Version", "13"),
    ]
)
MASK = b"\x37\xfa\x21\x3d"


# apply_mask


def test_websockets_documents_no_name_for_its_compiled_mask() -> None:
    assert "apply_mask" not in frames.__all__
    assert not hasattr(websockets, "apply_mask")


def test_without_the_compiled_mask_the_one_in_python_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "websockets.speedups", None)
    spec = importlib.util.spec_from_file_location("bridge.server.transport.compat_in_python", compat.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    assert module.apply_mask is apply_mask_in_python
    monkeypatch.setattr(reader, "apply_mask", module.apply_mask)
    ping = b"\x89\x85" + MASK + apply_mask_in_python(b"hello", MASK)
    text = b"\x81\x87" + MASK + apply_mask_in_python("grüße".encode(), MASK)
    assert reader.FrameReader().feed(memoryview(ping)) == [reader.Ping(b"hello")]
    assert reader.FrameReader().feed(memoryview(text + b"\x89\x80" + MASK)) == [reader.Ping(b"")]


# accept_handshake


def accepted_by_the_library() -> weakref.ref[ServerProtocol]:
    protocol = ServerProtocol()
    assert protocol.accept(Request("/", HEADERS)).status_code == HTTPStatus.SWITCHING_PROTOCOLS
    return weakref.ref(protocol)


def test_websockets_leaves_a_protocol_to_the_garbage_collector() -> None:
    gc.disable()
    try:
        assert accepted_by_the_library()() is not None
    finally:
        gc.enable()


def test_accepted_handshake_leaves_nothing_to_the_garbage_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    protocols: list[weakref.ref[ServerProtocol]] = []

    class Watched(ServerProtocol):
        def __init__(self) -> None:
            super().__init__()
            protocols.append(weakref.ref(self))

    monkeypatch.setattr(compat, "ServerProtocol", Watched)
    gc.disable()
    try:
        response, fault = compat.accept_handshake("/", HEADERS)
        assert (response.status_code, fault) == (HTTPStatus.SWITCHING_PROTOCOLS, "")
        assert [protocol() for protocol in protocols] == [None]
    finally:
        gc.enable()


@pytest.mark.parametrize(("missing", "fault"), [("Sec-WebSocket-Key", "Sec-WebSocket-Key"), ("Upgrade", "Upgrade")])
def test_refused_handshake_has_the_header_at_fault(missing: str, fault: str) -> None:
    headers = Headers([(name, value) for name, value in HEADERS.raw_items() if name != missing])
    response, found = compat.accept_handshake("/", headers)
    assert response.status_code in {HTTPStatus.BAD_REQUEST, HTTPStatus.UPGRADE_REQUIRED}
    assert found == fault


# as_transport


def test_transports_of_uvloop_are_not_those_of_asyncio() -> None:
    transport_type: type = uvloop.loop.TCPTransport  # type: ignore[attr-defined]  # uvloop has no types for it
    assert not issubclass(transport_type, asyncio.Transport)


def test_transport_is_returned_unchanged() -> None:
    transport = asyncio.BaseTransport()
    assert compat.as_transport(transport) is transport


# The second of the two reads that TlsTransport does


async def reads_of_a_client_that_sends_and_resets() -> list[bytes | type[OSError]]:
    """Reads one byte in each of 20 turns, and returns the results.

    Each read happens when the event loop reports that the socket is readable.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    client.sendall(b"x")
    tcp.reset_on_close(client)
    client.close()
    reads: list[bytes | type[OSError]] = []

    def read() -> None:
        try:
            reads.append(accepted.recv(1))
        except OSError as error:
            reads.append(type(error))

    loop = asyncio.get_running_loop()
    with accepted:
        loop.add_reader(accepted, read)
        for _ in range(20):
            await asyncio.sleep(0)
        loop.remove_reader(accepted)
    return reads


def test_uvloop_reports_data_and_a_reset_together_only_once() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(reads_of_a_client_that_sends_and_resets()) == [b"x"]
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        assert runner.run(reads_of_a_client_that_sends_and_resets())[:2] == [b"x", ConnectionResetError]
