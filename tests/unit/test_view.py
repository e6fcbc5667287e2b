"""Views: where a run of frames stopped of which not all bytes were taken, and what is left of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.contract import envelope
from bridge.fanout.frames import text_frame
from bridge.fanout.framing import Framing
from bridge.fanout.history import History
from bridge.fanout.log import ENTRY_BYTES, Log
from bridge.fanout.recent import Recent
from bridge.fanout.view import View


def filled(*sizes: int, max_bytes: int = 1_000_000) -> History:
    history = History(Log(max_bytes), 7)
    for number, size in enumerate(sizes):
        history.append(text_frame(envelope.wrap("a", {"n": number, "pad": "." * size}, 1)))
    return history


@pytest.mark.parametrize("ids", [True, False])
@given(
    sizes=st.lists(st.integers(0, 200) | st.integers(65_000, 66_000), min_size=1, max_size=8),
    first=st.integers(0, 7),
    share=st.floats(0, 1, exclude_max=True),
)
def test_run_is_split_where_its_bytes_were_counted_off(ids: bool, sizes: list[int], first: int, share: float) -> None:
    history = filled(*sizes)
    view: View[Any] = View(history, Framing(history), None, ids)
    position = min(first, len(sizes) - 1)
    run, positions, end = view.read(position, len(sizes), 10_000_000)
    taken = int(share * len(run))
    stopped, parts = view.split(positions, taken)
    rest = b"".join(parts)
    # What is left of its frame, and all frames behind it, is what was not taken; and there is something left of it.
    behind = b"".join(Framing(history).frame(at, ids=ids) for at in range(stopped + 1, end))
    assert rest + behind == run[taken:]
    assert 0 < len(rest) <= len(Framing(history).frame(stopped, ids=ids))


@pytest.mark.parametrize("ids", [True, False])
def test_rest_of_a_large_update_is_no_copy(ids: bool) -> None:
    history = filled(100_000)
    view: View[Any] = View(history, Framing(history), None, ids)
    _, parts = view.split((0,), 10)
    largest = max(parts, key=len)
    assert isinstance(largest, memoryview)
    assert largest.obj is history.log.frame(0)
    assert sum(map(len, parts)) - len(largest) < 50


@pytest.mark.parametrize("ids", [True, False])
def test_rest_of_a_frame_outlives_the_frames_place_in_the_log(ids: bool) -> None:
    history = filled(0, 0, max_bytes=2 * (60 + ENTRY_BYTES))
    view: View[Any] = View(history, Framing(history), None, ids)
    frame = Framing(history).frame(0, ids=ids)
    _, parts = view.split((0,), 1)
    history.append(b"x" * 100)
    assert history.log.tail > 0
    assert b"".join(parts) == frame[1:]


def test_recent_ones_are_bounded_and_the_newest_stays() -> None:
    recent: Recent[str] = Recent(100)
    for position in range(5):
        recent.put(position, str(position), 30)
    assert [recent.get(position) for position in range(5)] == [None, None, "2", "3", "4"]
    recent.put(5, "large", 1000)
    assert [recent.get(position) for position in range(6)] == [None, None, None, None, None, "large"]
    assert len(recent) == 1
