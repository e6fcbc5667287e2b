"""Tests of the pieces that a subscription gives to clients, and of the position that a partial write has reached."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.broadcast.frames import text_frame
from bridge.broadcast.framing import Form, FrameEncoder
from bridge.broadcast.replay import ReplayIndex
from bridge.broadcast.subscriptions import SharedSubscription
from bridge.broadcast.update_log import UpdateLog
from bridge.contract import envelope

if TYPE_CHECKING:
    from collections.abc import Callable


def filled(*sizes: int, max_bytes: int = 1_000_000) -> ReplayIndex:
    index = ReplayIndex(UpdateLog(max_bytes), 7)
    for number, size in enumerate(sizes):
        index.append(text_frame(envelope.wrap("a", {"n": number, "pad": "." * size}, 1)))
    return index


def subscription_of(index: ReplayIndex, form: Form) -> tuple[SharedSubscription, Callable[[int], bytes]]:
    """Returns a subscription, and a function that returns the subscription's frame at a position."""
    framing = FrameEncoder(index)
    return SharedSubscription(index, framing, None, form), lambda position: framing.frame(position, form)


SIZES = st.lists(st.integers(0, 200) | st.integers(65_000, 66_000), min_size=1, max_size=8)


@pytest.mark.parametrize("form", Form)
@given(sizes=SIZES, first=st.integers(0, 7), share=st.floats(0, 1, exclude_max=True))
def test_split_returns_where_the_write_stopped(form: Form, sizes: list[int], first: int, share: float) -> None:
    index = filled(*sizes)
    subscription, frame = subscription_of(index, form)
    position = min(first, len(sizes) - 1)
    run, positions, end, offset = subscription.read(position, 0, len(sizes), 10_000_000)
    assert offset == 0
    taken = int(share * len(run))
    stopped, offset = subscription.split(positions, 0, taken)
    # The socket has not taken the end of one frame, which is not empty, nor any of the later frames.
    rest = frame(stopped)[offset:]
    assert rest + b"".join(map(frame, range(stopped + 1, end))) == run[taken:]
    assert rest


@pytest.mark.parametrize("form", Form)
@given(sizes=SIZES, max_bytes=st.integers(1, 70_000), taken=st.lists(st.integers(1, 70_000), max_size=5))
def test_pieces_are_bounded_and_add_up_to_the_frames_after_any_partial_write(
    form: Form, sizes: list[int], max_bytes: int, taken: list[int]
) -> None:
    index = filled(*sizes)
    subscription, frame = subscription_of(index, form)
    position = offset = 0
    read = bytearray()
    # The frames are read in a few hundred pieces at most. Reading the frames byte by byte would take a second without
    # testing more.
    max_bytes = max(max_bytes, sum(sizes) // 200)
    while position < len(sizes):
        piece = subscription.read(position, offset, len(sizes), max_bytes)
        assert len(piece.frames) <= max_bytes
        stops_at = taken.pop() if taken else len(piece.frames)
        if stops_at < len(piece.frames):
            read += piece.frames[:stops_at]
            position, offset = subscription.split(piece.positions, offset, stops_at)
        else:
            read += piece.frames
            position, offset = piece.end, piece.offset
    assert offset == 0
    assert read == b"".join(map(frame, range(len(sizes))))


@pytest.mark.parametrize("form", Form)
def test_part_of_a_large_update_does_not_keep_the_rest_in_memory(form: Form) -> None:
    subscription, frame = subscription_of(filled(100_000), form)
    piece = subscription.read(0, 50_000, 1, 1000)
    assert type(piece.frames) is bytes
    assert piece.frames == frame(0)[50_000:51_000]
    assert (piece.end, piece.offset) == (0, 51_000)
