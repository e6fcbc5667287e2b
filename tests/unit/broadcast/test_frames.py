"""Tests that each byte of a frame is correct, and that the websockets library makes the same frames."""

from __future__ import annotations

import pytest
from websockets.frames import CloseCode, Frame, Opcode

from bridge.broadcast.close_reasons import CloseReason
from bridge.broadcast.frames import PING, close_frame, pong_frame, text_frame


@pytest.mark.parametrize(
    ("length", "header"),
    [
        (0, "8100"),
        (1, "8101"),
        (125, "817d"),
        (126, "817e007e"),
        (65535, "817effff"),
        (65536, "817f0000000000010000"),
    ],
)
def test_text_frame_has_the_shortest_header_for_its_length(length: int, header: str) -> None:
    payload = b"x" * length
    frame = text_frame(payload)
    assert frame == bytes.fromhex(header) + payload
    assert frame == Frame(Opcode.TEXT, payload).serialize(mask=False)


@pytest.mark.parametrize(("payload", "frame"), [(b"", b"\x8a\x00"), (b"hello", b"\x8a\x05hello")])
def test_pong_frame_carries_the_payload_of_its_ping(payload: bytes, frame: bytes) -> None:
    assert pong_frame(payload) == frame == Frame(Opcode.PONG, payload).serialize(mask=False)


def test_pong_frame_carries_the_longest_payload() -> None:
    payload = b"x" * 125
    assert pong_frame(payload) == b"\x8a\x7d" + payload == Frame(Opcode.PONG, payload).serialize(mask=False)


def test_ping_is_empty() -> None:
    assert Frame(Opcode.PING, b"").serialize(mask=False) == PING


@pytest.mark.parametrize(
    ("code", "phrase", "frame"),
    [
        (None, "", b"\x88\x00"),
        (None, "not sent without a code", b"\x88\x00"),
        (1000, "", b"\x88\x02\x03\xe8"),
        (4008, "too slow", b"\x88\x0a\x0f\xa8too slow"),
    ],
)
def test_close_frame_carries_its_code_and_phrase(code: int | None, phrase: str, frame: bytes) -> None:
    assert close_frame(code, phrase) == frame
    assert Frame(Opcode.CLOSE, frame[2:]).serialize(mask=False) == frame


def test_phrase_of_123_bytes_stays_whole() -> None:
    assert close_frame(1001, "x" * 123) == b"\x88\x7d\x03\xe9" + b"x" * 123


def test_longer_phrase_is_cut_to_123_bytes() -> None:
    assert close_frame(1001, "x" * 124) == close_frame(1001, "x" * 123)


@pytest.mark.parametrize("reason", CloseReason, ids=str)
def test_each_close_reason_fits_into_a_frame_and_has_a_code_that_may_be_sent(reason: CloseReason) -> None:
    frame = close_frame(reason.code, reason.phrase)
    assert frame[4:].decode() == reason.phrase
    assert reason.code in set(CloseCode) or 4000 <= reason.code <= 4999


@pytest.mark.parametrize(
    ("reason", "code", "slug"),
    [
        (CloseReason.STOPPING, 1001, "stopping"),
        (CloseReason.PROTOCOL_ERROR, 1002, "protocol-error"),
        (CloseReason.INVALID_UTF8, 1007, "invalid-utf8"),
        (CloseReason.INTERNAL, 1011, "internal"),
        (CloseReason.FULL, 1013, "full"),
        (CloseReason.TOO_SLOW, 4008, "too-slow"),
        (CloseReason.IDLE, 4009, "idle"),
    ],
)
def test_close_reason_has_its_documented_code_and_slug(reason: CloseReason, code: int, slug: str) -> None:
    assert (reason.code, reason.slug) == (code, slug)
