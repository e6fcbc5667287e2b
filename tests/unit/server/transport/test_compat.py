"""Tests of the workarounds for websockets and uvloop, and of the defects that make each workaround necessary."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import websockets
from websockets import frames
from websockets.datastructures import Headers
from websockets.utils import apply_mask as apply_mask_in_python

from bridge.server.transport import compat
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
