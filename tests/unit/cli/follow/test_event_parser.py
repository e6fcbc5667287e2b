"""Tests of the parser of Server-Sent Events, with the examples and the rules of the HTML standard."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.cli.follow.event_parser import BlockTooLarge, EventParser, ServerSentEvent

BRIDGE = (
    b":\n"
    b'retry: 1234\nid: 0-9f86d081\ndata: {"type":"resume"}\n\n'
    b":\n"
    b'id: 1-9f86d081\ndata: {"ship":"\xc3\x9c \xf0\x9f\x9a\x80 \xe2\x80\xa8 \xc2\x85"}\n\n'
    b'data: {"type":"close"}\n\n'
)
EVENTS = [
    ServerSentEvent("message", '{"type":"resume"}', "0-9f86d081"),
    ServerSentEvent("message", '{"ship":"Ü 🚀 \u2028 \x85"}', "1-9f86d081"),
    ServerSentEvent("message", '{"type":"close"}', "1-9f86d081"),
]


def events_of(body: bytes) -> list[tuple[str, str, str]]:
    return [(event.type, event.data, event.last_id) for event in EventParser().feed(body)]


@pytest.mark.parametrize(
    ("body", "events"),
    [
        # The examples of the standard.
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", [("message", "YHOO\n+2\n10", "")]),
        (
            b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n",
            [("message", "first event", "1"), ("message", "second event", "")],
        ),
        (b"data\n\ndata\ndata\n\ndata:", [("message", "", ""), ("message", "\n", "")]),
        (b"data:test\n\ndata: test\n\n", [("message", "test", ""), ("message", "test", "")]),
        # Line breaks, in any mixture.
        (
            b"data: a\r\rdata: b\r\n\r\ndata: c\n\r\n",
            [("message", "a", ""), ("message", "b", ""), ("message", "c", "")],
        ),
        # Only a byte order mark at the start is ignored.
        (b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n", [("message", "a", "")]),
        # A type is for one event, and an id for all later events, even without an event of its own.
        (b"event: x\ndata: a\n\ndata: b\n\n", [("x", "a", ""), ("message", "b", "")]),
        (b"event: x\n\ndata: b\n\n", [("message", "b", "")]),
        (b"id: 1\n\ndata: a\n\ndata: b\n\n", [("message", "a", "1"), ("message", "b", "1")]),
        (b"id: 1\nid: 2\0\ndata: a\n\n", [("message", "a", "1")]),
        # Names must be exact, and unknown names are ignored.
        (b"Data: a\n data: b\ndata : c\nx: d\n\n", []),
        (b"data: a: b\n\n", [("message", "a: b", "")]),
        (b"data: \xff\n\n", [("message", "\ufffd", "")]),
    ],
)
def test_events_are_those_of_the_standard(body: bytes, events: list[tuple[str, str, str]]) -> None:
    assert events_of(body) == events
    # The standard's result does not depend on the pieces.
    parser = EventParser()
    found = [event for at in range(len(body)) for event in parser.feed(body[at : at + 1])]
    assert [(event.type, event.data, event.last_id) for event in found] == events


@given(st.lists(st.integers(0, len(BRIDGE)), max_size=8))
def test_events_of_a_bridge_do_not_depend_on_the_pieces(cuts: list[int]) -> None:
    parser = EventParser()
    found = []
    begin = 0
    for end in [*sorted(cuts), len(BRIDGE)]:
        found += parser.feed(BRIDGE[begin:end])
        begin = end
    assert found == EVENTS
    assert parser.retry_ms == 1234
    assert not parser.is_in_block


@pytest.mark.parametrize(
    ("body", "retry_ms"),
    [
        (b"data: a\n\n", None),
        (b"retry: 30000\n", 30000),
        (b"retry:0\n", 0),
        (b"retry: 1\nretry: 2\n", 2),
        (b"retry: 1\nretry: 2s\n", 1),
        (b"retry: -1\n", None),
        (b"retry:  1\n", None),
        ("retry: ٣\n".encode(), None),
        (b"retry: 1000000000\n", None),
        (b"retry\n", None),
    ],
)
def test_retry_is_a_number_of_milliseconds(body: bytes, retry_ms: int | None) -> None:
    parser = EventParser()
    parser.feed(body)
    assert parser.retry_ms == retry_ms


@pytest.mark.parametrize(
    ("body", "is_in_block"),
    [
        (b"", False),
        (b":", False),
        (b": comment\n: com", False),
        (b"id: 1\n", True),
        (b"retry: 1\n:\n", True),
        (b"data: a\n", True),
        (b"data: a\n\n", False),
        (b"data: a\n\nda", True),
        (b"data: a\r\n\r", False),
    ],
)
def test_end_inside_a_block_is_known(body: bytes, is_in_block: bool) -> None:
    parser = EventParser()
    parser.feed(body)
    assert parser.is_in_block is is_in_block


@pytest.mark.parametrize("size", [1, 3, 64])
def test_block_has_a_limit(size: int) -> None:
    parser = EventParser(max_block_bytes=12)
    fits = b":comment\n:comment\ndata: 345678\n\ndata: 345678\n\n"
    pieces = [fits[at : at + size] for at in range(0, len(fits), size)]
    assert len([event for piece in pieces for event in parser.feed(piece)]) == 2
    assert parser.feed(b"data: 3456") == []
    assert parser.feed(b"78") == []
    with pytest.raises(BlockTooLarge):
        parser.feed(b"9")


def test_several_lines_of_a_block_have_a_limit() -> None:
    parser = EventParser(max_block_bytes=12)
    assert parser.feed(b"id: 1\n") == []
    with pytest.raises(BlockTooLarge):
        parser.feed(b"data: 12\n")
