"""Tests that the search for the newest matching updates finds where they begin, one segment at a time."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.broadcast.frames import text_frame
from bridge.broadcast.newest_search import NewestSearch
from bridge.broadcast.replay import SEGMENT_UPDATES, ReplayIndex
from bridge.broadcast.update_log import ENTRY_BYTES, UpdateLog
from bridge.contract import envelope
from bridge.contract.update_id import UpdateId

TAG = 7


@dataclass(frozen=True, slots=True)
class Only:
    """A filter that matches updates of one type."""

    kind: str

    def matches(self, update_type: str, data: object) -> bool:
        return update_type == self.kind


def filled(kinds: str, max_bytes: int = 2**24) -> ReplayIndex:
    """Returns an index with an entry for each character: `i` is an id alone, `g` a gap, all others are update types."""
    index = ReplayIndex(UpdateLog(max_bytes))
    for position, kind in enumerate(kinds):
        entry_id = UpdateId(position, TAG)
        if kind == "i":
            index.record_id(entry_id)
        elif kind == "g":
            index.append_own_message(lambda _: b"gap", entry_id)
        else:
            index.append(text_frame(envelope.wrap(kind, position, 0)), entry_id)
    return index


def steps(search: NewestSearch) -> int:
    """Runs the search to its end. Returns the number of steps."""
    count = 1
    while not search.step():
        count += 1
    return count


@given(
    kinds=st.text("aabgi", max_size=60),
    repeats=st.sampled_from([1, 20]),
    wanted=st.sampled_from([None, Only("a"), Only("b")]),
    count=st.integers(1, 40) | st.just(1000),
    share=st.floats(0, 1),
)
def test_search_finds_the_position_of_the_oldest_of_the_newest_matches(
    kinds: str, repeats: int, wanted: Only | None, count: int, share: float
) -> None:
    kinds *= repeats
    index = filled(kinds)
    end = int(share * len(kinds))
    search = NewestSearch(index, wanted, count, end)
    steps(search)
    matching = [at for at in range(end) if kinds[at] in "ab" and wanted in (None, Only(kinds[at]))]
    assert search.position == (matching[-count:][0] if matching else end)


@pytest.mark.parametrize("wanted", [None, Only("a")])
def test_step_searches_one_segment(wanted: Only | None) -> None:
    index = filled("a" * (3 * SEGMENT_UPDATES + 1))
    assert steps(NewestSearch(index, wanted, 1, index.update_log.head)) == 1
    assert steps(NewestSearch(index, wanted, 2, index.update_log.head)) == 2
    assert steps(NewestSearch(index, wanted, 1000, index.update_log.head)) == 4
    assert steps(NewestSearch(index, Only("b"), 1, index.update_log.head)) == 4


def test_search_ends_at_the_tail_of_the_log() -> None:
    frame = len(text_frame(envelope.wrap("a", 100, 0)))
    index = filled("b" * 100 + "a" * 50, max_bytes=40 * (frame + ENTRY_BYTES))
    tail = index.update_log.tail
    assert tail > 100
    search = NewestSearch(index, None, 1000, index.update_log.head)
    steps(search)
    assert search.position == tail


def test_search_that_the_tail_overtakes_ends() -> None:
    frame = len(text_frame(envelope.wrap("a", 1000, 0)))
    index = filled("a" * 3 * SEGMENT_UPDATES, max_bytes=3 * SEGMENT_UPDATES * (frame + ENTRY_BYTES))
    head = index.update_log.head
    search = NewestSearch(index, None, 1000, head)
    assert not search.step()
    for number in range(3 * SEGMENT_UPDATES):
        index.append(text_frame(envelope.wrap("a", number, 0)), UpdateId(head + number, TAG))
    assert index.update_log.tail > search.position
    assert search.step()


def test_search_in_an_empty_log_finds_nothing() -> None:
    search = NewestSearch(filled(""), None, 1, 0)
    assert search.step()
    assert search.position == 0
