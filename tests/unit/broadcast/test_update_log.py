"""Tests that the shared log is bounded in bytes, keeps the newest frame, and is read in pieces from any position."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.broadcast.update_log import ENTRY_BYTES, UpdateLog


def filled(*frames: bytes, max_bytes: int = 1_000_000) -> UpdateLog:
    log = UpdateLog(max_bytes)
    for frame in frames:
        log.append(frame)
    return log


def test_new_log_is_empty() -> None:
    log = UpdateLog(1000)
    assert (len(log), log.head, log.tail, log.size_bytes) == (0, 0, 0, 0)


def test_size_counts_frames_and_the_memory_of_entries() -> None:
    assert filled(b"abc", b"").size_bytes == 3 + 2 * ENTRY_BYTES


def test_frames_that_fit_exactly_are_kept() -> None:
    log = filled(b"a" * 10, b"b" * 10, max_bytes=2 * (10 + ENTRY_BYTES))
    assert (log.tail, log.head, len(log)) == (0, 2, 2)


def test_oldest_frame_is_dropped_if_the_bound_is_one_byte_less() -> None:
    log = filled(b"a" * 10, b"b" * 10, max_bytes=2 * (10 + ENTRY_BYTES) - 1)
    assert (log.tail, log.head, len(log)) == (1, 2, 1)
    assert log.size_bytes == 10 + ENTRY_BYTES


def test_memory_of_entries_alone_can_exceed_the_bound() -> None:
    log = filled(*[b""] * 5, max_bytes=3 * ENTRY_BYTES)
    assert (log.tail, log.head) == (2, 5)


def test_large_frame_drops_as_many_old_frames_as_necessary() -> None:
    log = filled(*[b"x"] * 10, b"y" * 5 * (1 + ENTRY_BYTES), max_bytes=10 * (1 + ENTRY_BYTES))
    assert (log.tail, log.head) == (6, 11)
    assert log.size_bytes <= 10 * (1 + ENTRY_BYTES)


def test_newest_frame_stays_even_if_it_is_larger_than_the_bound() -> None:
    log = filled(b"a", b"b" * 5000, max_bytes=1000)
    assert (log.tail, log.head, len(log)) == (1, 2, 1)
    assert log.read(1, 2, 100) == (b"b" * 5000, 2)
    log.append(b"c")
    assert log.read(2, 3, 100) == (b"c", 3)


@pytest.mark.parametrize(
    ("position", "end", "max_bytes", "piece"),
    [
        (0, 4, 100, (b"aabbbcdddd", 4)),
        (1, 4, 100, (b"bbbcdddd", 4)),
        (0, 2, 100, (b"aabbb", 2)),
        (0, 1, 100, (b"aa", 1)),
        (0, 4, 10, (b"aabbbcdddd", 4)),
        (0, 4, 9, (b"aabbbc", 3)),
        (0, 4, 5, (b"aabbb", 2)),
        (0, 4, 4, (b"aa", 1)),
        (0, 4, 2, (b"aa", 1)),
        (0, 4, 1, (b"aa", 1)),
        (3, 4, 1, (b"dddd", 4)),
    ],
)
def test_piece_ends_at_the_end_or_before_it_grows_too_large(
    position: int, end: int, max_bytes: int, piece: tuple[bytes, int]
) -> None:
    assert filled(b"aa", b"bbb", b"c", b"dddd").read(position, end, max_bytes) == piece


def test_position_that_fell_off_the_tail_can_not_be_read() -> None:
    with pytest.raises(KeyError):
        filled(b"a", b"b", max_bytes=ENTRY_BYTES).read(0, 2, 100)


@given(
    frames=st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=30),
    max_bytes=st.integers(1, 8000),
    piece_bytes=st.integers(1, 1000),
)
def test_log_agrees_with_a_list_of_all_frames(frames: list[bytes], max_bytes: int, piece_bytes: int) -> None:
    log = UpdateLog(max_bytes)
    for number, frame in enumerate(frames, start=1):
        log.append(frame)
        kept = frames[log.tail : number]
        assert log.head == number
        assert len(log) == len(kept) >= 1
        assert log.size_bytes == sum(map(len, kept)) + len(kept) * ENTRY_BYTES
        assert log.size_bytes <= max_bytes or len(log) == 1
        # The log keeps every frame that still fits into it.
        if log.tail > 0:
            with_one_more = frames[log.tail - 1 : number]
            assert sum(map(len, with_one_more)) + len(with_one_more) * ENTRY_BYTES > max_bytes
    position, read = log.tail, b""
    while position < log.head:
        piece, after = log.read(position, log.head, piece_bytes)
        assert piece == b"".join(frames[position:after])
        assert len(piece) <= piece_bytes or after == position + 1
        assert after == log.head or len(piece) + len(frames[after]) > piece_bytes
        position, read = after, read + piece
    assert read == b"".join(frames[log.tail :])
