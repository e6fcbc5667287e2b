"""Tests what a poll gets, how long it waits, and that thousands of polls are answered in short steps."""

from __future__ import annotations

import sys
import weakref
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import orjson
import pytest
from structlog.testing import capture_logs

from bridge.broadcast import polls as polls_module
from bridge.broadcast.hub import FlushListeners
from bridge.broadcast.polls import MAX_RECENT_FILTERS, MAX_RESPONSE_BYTES, PIECE_BYTES, Overtaken, PollResult, Polls
from bridge.broadcast.replay import SEGMENT_UPDATES, UpdateFilter
from bridge.broadcast.update_log import ENTRY_BYTES
from bridge.contract import envelope
from bridge.contract.filters import After, SubscribeRequest
from bridge.contract.update_id import UpdateId
from tests.support.fakes import NOW_MS, TAG, FakeFlushListener, Scene, update

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Only:
    """A filter that matches updates of one type."""

    kind: str

    def matches(self, update_type: str, data: object) -> bool:
        return update_type == self.kind


@dataclass(slots=True, eq=False)
class Counting:
    """A filter that matches nothing, counts its calls, and is equal only to itself."""

    calls: int = 0

    def matches(self, update_type: str, data: object) -> bool:
        self.calls += 1
        return False


class Raising:
    """A filter that raises an error for each update."""

    def matches(self, update_type: str, data: object) -> bool:
        raise RuntimeError("a fault")


class Client:
    """A client of a poll."""

    def __init__(self) -> None:
        self.results: list[PollResult] = []
        self.refusals = 0
        self.resets = 0

    def answer(self, result: PollResult) -> None:
        self.results.append(result)

    def refuse(self) -> None:
        self.refusals += 1

    def reset(self) -> None:
        self.resets += 1

    @property
    def is_waiting(self) -> bool:
        return not (self.results or self.refusals or self.resets)

    @property
    def is_refused(self) -> bool:
        return self.refusals == 1 and not self.results

    @property
    def body(self) -> dict[str, Any]:
        [result] = self.results
        assert not self.refusals
        body = b"".join(result.pieces())
        assert len(body) == result.size_bytes
        parsed: dict[str, Any] = orjson.loads(body)
        assert list(parsed) == ["updates", "gaps", "id", "complete", "more", "consuming"]
        return parsed

    @property
    def numbers(self) -> list[int]:
        """The numbers of the updates in the response."""
        return [each["data"]["n"] for each in self.body["updates"]]


class PollScene(Scene):
    """A hub with polls."""

    def __init__(self, log_bytes: int = 2**20, *, shared: bool = False, replaying: bool = False) -> None:
        self.poll_flushes = FakeFlushListener()
        super().__init__(
            log_bytes,
            shared=shared,
            replaying=replaying,
            flush_listener=FlushListeners(self.poll_flushes, self),
        )
        self.polls = Polls(
            self.index,
            self.metrics,
            self.turn,
            self.turns.call_later,
            lambda: self.now_s,
            lambda: self.source.is_consuming,
            lambda: self.hub.replaying,
        )

    def on_flush(self, flushed: int) -> None:
        self.polls.on_flush(flushed)

    def ask(
        self,
        after: str | None = None,
        wanted: UpdateFilter | None = None,
        *,
        last: int | None = None,
        limit: int = 100,
        wait_s: int = 0,
    ) -> Client:
        client = Client()
        self.start(client, after, wanted, last=last, limit=limit, wait_s=wait_s)
        return client

    def start(
        self,
        client: Client,
        after: str | None = None,
        wanted: Any = None,
        *,
        last: int | None = None,
        limit: int = 100,
        wait_s: int = 0,
    ) -> None:
        request = SubscribeRequest(wanted, None if after is None else After.parse(after), last)
        self.polls.start(client, request, limit, wait_s)

    def pass_by(self, seconds: float) -> None:
        """Moves the clock."""
        self.now_s += seconds
        self.turns.end_timers()

    def report_gap(self, update_id: UpdateId | None = None) -> None:
        self.hub.send_own_message(lambda gap_id: envelope.gap("then", "now", "broker-away", gap_id, NOW_MS), update_id)


@pytest.fixture
def scene() -> Iterator[PollScene]:
    with closing(PollScene()) as scene:
        yield scene


def id_of(number: int) -> str:
    return str(UpdateId(number, TAG))


# Where a poll starts


def test_poll_of_an_empty_log_gets_an_empty_response_with_an_id(scene: PollScene) -> None:
    expected = {"updates": [], "gaps": [], "id": id_of(0), "complete": True, "more": False, "consuming": True}
    assert scene.ask().body == expected
    scene.source.is_consuming = False
    assert scene.ask().body == {**expected, "consuming": False}


def test_poll_without_a_start_gets_the_newest_updates_with_ids(scene: PollScene) -> None:
    scene.publish("a", "a", "a")
    body = scene.ask(limit=2).body
    assert body["updates"] == [{**orjson.loads(update(n)), "id": id_of(n)} for n in (2, 3)]
    assert (body["id"], body["complete"], body["more"]) == (id_of(3), True, False)


def test_poll_without_a_start_gets_the_newest_updates_that_match(scene: PollScene) -> None:
    scene.publish("b", "a", "b", "a", "b", "a", "a")
    client = scene.ask(wanted=Only("b"), limit=2)
    assert client.numbers == [3, 5]
    assert (client.body["id"], client.body["more"]) == (id_of(7), False)


@pytest.mark.parametrize(
    ("after", "last", "limit", "numbers", "last_id", "complete", "more"),
    [
        (id_of(3), None, 100, [4, 5], 5, True, False),
        (id_of(3), 1, 100, [4, 5], 5, True, False),
        (id_of(3), None, 1, [4], 4, True, True),
        (id_of(5), None, 100, [], 5, True, False),
        (id_of(0), None, 100, [1, 2, 3, 4, 5], 5, True, False),
        ("", None, 100, [], 5, True, False),
        ("", 2, 100, [4, 5], 5, True, False),
        (None, 4, 2, [2, 3], 3, True, True),
        (None, 100, 100, [1, 2, 3, 4, 5], 5, True, False),
        ("earliest", None, 2, [1, 2], 2, True, True),
        ("6-0000abcd", None, 100, [1, 2, 3, 4, 5], 5, False, False),
        ("unknown", None, 100, [1, 2, 3, 4, 5], 5, False, False),
        ("unknown", 2, 100, [4, 5], 5, False, False),
    ],
)
def test_start_and_limit_choose_the_updates(
    scene: PollScene,
    after: str | None,
    last: int | None,
    limit: int,
    numbers: list[int],
    last_id: int,
    *,
    complete: bool,
    more: bool,
) -> None:
    scene.publish(*"aaaaa")
    client = scene.ask(after, last=last, limit=limit)
    assert client.numbers == numbers
    body = client.body
    assert (body["id"], body["complete"], body["more"]) == (id_of(last_id), complete, more)


def test_id_of_a_response_continues_exactly_and_more_is_false_at_the_end(scene: PollScene) -> None:
    scene.publish(*"abbabaabab")
    after, numbers = id_of(0), []
    for _ in range(5):
        client = scene.ask(after, Only("a"), limit=2)
        after = client.body["id"]
        numbers += client.numbers
        if not client.body["more"]:
            break
    assert numbers == [1, 4, 6, 7, 9]
    assert after == id_of(10)


def test_id_is_before_the_next_match_if_the_limit_is_reached(scene: PollScene) -> None:
    scene.publish(*"abba")
    assert scene.ask(id_of(0), Only("a"), limit=1).body["id"] == id_of(3)


def test_poll_has_the_gaps_after_its_id(scene: PollScene) -> None:
    scene.publish("a")
    scene.report_gap()
    scene.publish("b")
    body = scene.ask(id_of(1), Only("c")).body
    assert body["updates"] == []
    assert body["gaps"] == [{"since": "then", "until": "now", "reason": "broker-away", "id": id_of(2)}]
    assert body["id"] == id_of(3)
    assert scene.ask(id_of(2)).body["gaps"] == []


def test_gap_behind_the_limit_is_in_the_response_but_a_gap_behind_the_next_update_is_not(scene: PollScene) -> None:
    scene.publish("a")
    scene.report_gap()
    scene.publish("a")
    scene.report_gap()
    body = scene.ask(id_of(0), limit=1).body
    assert [each["id"] for each in body["gaps"]] == [id_of(2)]
    assert (body["id"], body["more"]) == (id_of(2), True)


def test_id_older_than_the_log_is_incomplete() -> None:
    small = PollScene(1000 * (ENTRY_BYTES + 80))
    small.publish(*"a" * 2000)
    # A full replay skips the oldest part of the log.
    oldest = small.index.oldest + 1
    assert oldest > small.log.tail + 1
    client, earliest = small.ask(id_of(3), limit=1000), small.ask("earliest", limit=1000)
    assert client.numbers == earliest.numbers == list(range(oldest, 2001))
    assert not client.body["complete"]
    assert earliest.body["complete"]


# Bounds of a response


def test_response_ends_before_it_exceeds_its_maximum_size() -> None:
    scene = PollScene(2**24)
    size = MAX_RESPONSE_BYTES // 4
    scene.publish(*"a" * 6, size=size - 200)
    client = scene.ask(id_of(0))
    assert client.numbers == [1, 2, 3, 4]
    assert MAX_RESPONSE_BYTES - 4096 < client.results[0].size_bytes < MAX_RESPONSE_BYTES + 4096
    assert client.body["more"]
    assert scene.ask(client.body["id"]).numbers == [5, 6]


@pytest.mark.parametrize("before", ["", "gap", "a"])
def test_response_has_at_least_one_update_however_large(before: str) -> None:
    scene = PollScene(2**24)
    if before == "gap":
        scene.report_gap()
    elif before:
        scene.publish(before)
    scene.publish("b", size=3 * MAX_RESPONSE_BYTES)
    client = scene.ask(id_of(0))
    assert len(client.numbers) == 1
    assert client.body["more"] is (before == "a")
    if before == "a":
        assert scene.ask(client.body["id"]).numbers == [2]


def test_gaps_count_towards_the_size(monkeypatch: pytest.MonkeyPatch, scene: PollScene) -> None:
    monkeypatch.setattr(polls_module, "MAX_RESPONSE_BYTES", 400)
    for _ in range(5):
        scene.report_gap()
    body = scene.ask(id_of(0)).body
    assert 1 <= len(body["gaps"]) < 5
    assert body["more"]
    assert len(scene.ask(body["id"]).body["gaps"]) > 0


def test_search_of_a_request_is_bounded(monkeypatch: pytest.MonkeyPatch, scene: PollScene) -> None:
    monkeypatch.setattr(polls_module, "MAX_SCANNED", 2 * SEGMENT_UPDATES)
    scene.publish(*"a" * (3 * SEGMENT_UPDATES), "b")
    first = scene.ask(id_of(0), Only("b"), wait_s=30)
    assert first.body["updates"] == []
    assert (first.body["id"], first.body["more"]) == (id_of(2 * SEGMENT_UPDATES), True)
    second = scene.ask(first.body["id"], Only("b"))
    assert second.numbers == [3 * SEGMENT_UPDATES + 1]
    assert not second.body["more"]


def test_backward_search_reaches_the_tail(monkeypatch: pytest.MonkeyPatch, scene: PollScene) -> None:
    monkeypatch.setattr(polls_module, "MAX_SCANNED", 2 * SEGMENT_UPDATES)
    scene.publish("b", *"a" * (3 * SEGMENT_UPDATES))
    client = scene.ask(wanted=Only("b"), last=1)
    assert client.numbers == [1]
    assert client.body["more"]


# Pieces


def test_large_response_is_made_in_pieces_of_bounded_size() -> None:
    scene = PollScene(2**24)
    scene.publish(*"a" * 30, size=1000)
    scene.publish("b", size=5 * PIECE_BYTES)
    client = scene.ask(id_of(0))
    pieces = list(client.results[0].pieces())
    assert len(pieces) > 6
    assert all(len(piece) < PIECE_BYTES + 256 for piece in pieces)
    assert client.numbers == list(range(1, 32))


@pytest.mark.parametrize("size", range(PIECE_BYTES - 220, PIECE_BYTES - 120))
def test_piece_may_end_anywhere(size: int) -> None:
    scene = PollScene()
    scene.publish("a", "b", size=size)
    assert scene.ask(id_of(0)).numbers == [1, 2]


def test_response_ends_if_the_log_drops_an_update_that_is_not_read() -> None:
    scene = PollScene(2**18)
    scene.publish(*"a" * 4, size=2 * PIECE_BYTES)
    pieces = scene.ask(id_of(0)).results[0].pieces()
    next(pieces)
    scene.publish(*"a" * 6, size=2 * PIECE_BYTES)
    with pytest.raises(Overtaken):
        list(pieces)


def test_response_that_waits_keeps_no_frame_in_memory() -> None:
    scene = PollScene(2**18)
    scene.publish("a", size=4 * PIECE_BYTES)
    pieces = scene.ask(id_of(0)).results[0].pieces()
    frame = scene.log.frame(0)
    before = sys.getrefcount(frame)
    next(pieces)
    after = sys.getrefcount(frame)
    assert after == before


# Waiting


def test_poll_that_finds_nothing_waits_for_the_next_update(scene: PollScene) -> None:
    scene.publish("a")
    client = scene.ask("", wait_s=30)
    assert client.is_waiting
    assert len(scene.polls) == 1
    scene.publish("a")
    assert client.numbers == [2]
    assert (client.body["id"], client.body["complete"], client.body["more"]) == (id_of(2), True, False)
    assert len(scene.polls) == 0


@pytest.mark.parametrize("after", ["", id_of(1), "earliest", None])
def test_poll_that_finds_something_does_not_wait(scene: PollScene, after: str | None) -> None:
    scene.publish("a", "a")
    client = scene.ask(after, wait_s=30)
    assert client.is_waiting is (after == "")


def test_wait_ends_at_the_first_match_only(scene: PollScene) -> None:
    client = scene.ask("", Only("b"), wait_s=30)
    other = scene.ask("", Only("c"), wait_s=30)
    assert scene.polls.filters == 2
    scene.publish("a", "a")
    assert client.is_waiting
    scene.publish("a", "b", "a", "b")
    assert client.numbers == [4, 6]
    assert client.body["id"] == id_of(6)
    assert other.is_waiting
    assert scene.polls.filters == 1


def test_gap_ends_every_wait(scene: PollScene) -> None:
    clients = [scene.ask("", wanted, wait_s=30) for wanted in (None, Only("b"))]
    scene.report_gap()
    for client in clients:
        assert [each["id"] for each in client.body["gaps"]] == [id_of(1)]


def test_poll_is_answered_with_a_fresh_id_when_its_wait_is_over(scene: PollScene) -> None:
    client = scene.ask("", Only("b"), wait_s=2)
    later = scene.ask("", Only("b"), wait_s=3)
    scene.publish("a", "a")
    scene.pass_by(1.9)
    assert client.is_waiting
    scene.source.is_consuming = False
    scene.pass_by(0.1)
    body = client.body
    assert body == {"updates": [], "gaps": [], "id": id_of(2), "complete": True, "more": False, "consuming": False}
    assert later.is_waiting
    scene.pass_by(1)
    assert later.body["id"] == id_of(2)
    assert len(scene.polls) == 0
    assert scene.turns.timers == []


def test_incomplete_poll_that_waits_is_still_incomplete_afterwards(scene: PollScene) -> None:
    client = scene.ask("unknown", Only("b"), wait_s=1)
    scene.publish("a")
    assert client.is_waiting
    scene.pass_by(1)
    assert not client.body["complete"]


def test_id_ahead_of_the_flushed_position_gets_only_later_updates(scene: PollScene) -> None:
    scene.publish("a")
    scene.hub.publish(update(2), ("a", {}))
    client = scene.ask(id_of(2), wait_s=30)
    at_once = scene.ask(id_of(2))
    assert (at_once.numbers, at_once.body["id"], at_once.body["complete"]) == ([], id_of(2), True)
    scene.hub.flush()
    assert client.is_waiting
    scene.published = 2
    scene.publish("a")
    assert client.numbers == [3]


def test_stopping_bridge_answers_waiting_polls_and_lets_no_other_poll_wait(scene: PollScene) -> None:
    clients = [scene.ask("", wanted, wait_s=30) for wanted in (None, Only("b"), Only("b"))]
    scene.publish("a")
    assert clients[0].numbers == [1]
    scene.polls.stop()
    for client in clients[1:]:
        assert client.body["id"] == id_of(1)
    assert scene.ask("", wait_s=30).body["updates"] == []
    assert len(scene.polls) == 0


def test_client_that_leaves_while_it_waits_is_forgotten(scene: PollScene) -> None:
    client, other = scene.ask("", Only("b"), wait_s=30), scene.ask("", wait_s=30)
    scene.polls.forget(client)
    assert (len(scene.polls), scene.polls.filters) == (1, 1)
    scene.publish("b")
    scene.pass_by(30)
    assert client.is_waiting
    assert other.numbers == [1]
    scene.polls.forget(client)
    scene.polls.forget(other)
    kept = weakref.ref(client)
    del client
    assert kept() is None


def test_waits_of_thousands_of_polls_take_one_check_of_each_filter(scene: PollScene) -> None:
    filters = [Counting() for _ in range(10)]
    for number in range(100):
        scene.ask("", filters[number % 10], wait_s=30)
    scene.publish(*"a" * 5)
    assert [each.calls for each in filters] == [5] * 10


def test_check_continues_at_the_updates_of_the_next_flush(scene: PollScene) -> None:
    wanted = Counting()
    scene.ask("", wanted, wait_s=30)
    for _ in range(3):
        scene.publish("a")
    assert wanted.calls == 3


def test_watch_that_falls_off_the_log_wakes_its_polls() -> None:
    scene = PollScene(20 * ENTRY_BYTES)
    client = scene.ask("0-0000abcd", Only("b"), wait_s=30)
    scene.polls.on_flush = lambda flushed: None  # type: ignore[method-assign]  # the polls are checked too late
    scene.publish(*"a" * 50)
    assert client.is_waiting
    del scene.polls.on_flush
    scene.publish("b")
    assert client.numbers == [51]
    assert not client.body["complete"]


# An id that this instance has not read yet


@pytest.fixture
def shared() -> Iterator[PollScene]:
    with closing(PollScene(shared=True)) as scene:
        scene.publish_with_ids(UpdateId(1, 1), UpdateId(2, 2))
        yield scene


def test_poll_with_an_id_ahead_waits_for_this_id(shared: PollScene) -> None:
    client = shared.ask(str(UpdateId(4, 4)))
    assert client.is_waiting
    shared.publish_with_ids(UpdateId(3, 3))
    assert client.is_waiting
    shared.publish_with_ids(UpdateId(4, 4), UpdateId(5, 5))
    assert client.numbers == [5]
    assert client.body["complete"]


def test_polls_with_several_ids_ahead_each_wait_for_their_own(shared: PollScene) -> None:
    clients = [shared.ask(str(UpdateId(n, n)), wait_s=30) for n in (6, 4, 5)]
    shared.publish_with_ids(UpdateId(3, 3), UpdateId(4, 4))
    assert [client.is_waiting for client in clients] == [True] * 3
    shared.publish_with_ids(UpdateId(5, 5))
    assert [client.is_waiting for client in clients] == [True, False, True]
    shared.publish_with_ids(UpdateId(6, 6))
    assert [client.is_waiting for client in clients] == [True, False, False]
    assert clients[2].numbers == [6]
    shared.publish_with_ids(UpdateId(7, 7))
    assert clients[0].numbers == [7]


def test_id_that_does_not_arrive_is_unknown_after_its_wait(shared: PollScene) -> None:
    client = shared.ask(str(UpdateId(4, 4)), wait_s=2)
    shared.pass_by(9.9)
    assert client.is_waiting
    shared.pass_by(0.1)
    assert client.numbers == [1, 2]
    assert not client.body["complete"]


def test_id_that_does_not_arrive_before_a_later_one_is_unknown(shared: PollScene) -> None:
    client = shared.ask(str(UpdateId(4, 4)))
    shared.publish_with_ids(UpdateId(5, 5))
    assert client.numbers == [1, 2, 5]
    assert not client.body["complete"]


def test_poll_with_an_id_ahead_is_refused_while_the_bridge_does_not_consume(shared: PollScene) -> None:
    waiting = shared.ask(str(UpdateId(4, 4)), wait_s=30)
    shared.source.is_consuming = False
    assert shared.ask(str(UpdateId(4, 4)), wait_s=30).is_refused
    assert shared.ask(str(UpdateId(2, 2))).numbers == []
    shared.pass_by(10)
    assert waiting.is_refused
    assert len(shared.polls) == 0


def test_tick_refuses_polls_that_wait_for_an_id_once_the_bridge_does_not_consume(shared: PollScene) -> None:
    waiting, other = shared.ask(str(UpdateId(4, 4))), shared.ask("", wait_s=30)
    shared.polls.tick()
    assert waiting.is_waiting
    shared.source.is_consuming = False
    shared.polls.tick()
    assert waiting.is_refused
    assert other.is_waiting


def test_stopping_bridge_refuses_polls_that_wait_for_an_id(shared: PollScene) -> None:
    waiting = shared.ask(str(UpdateId(4, 4)))
    shared.polls.stop()
    assert waiting.is_refused
    assert shared.ask(str(UpdateId(4, 4))).is_refused


def test_client_that_leaves_while_it_waits_for_an_id_is_forgotten(shared: PollScene) -> None:
    client = shared.ask(str(UpdateId(4, 4)))
    shared.polls.forget(client)
    shared.publish_with_ids(UpdateId(4, 4), UpdateId(5, 5))
    shared.pass_by(10)
    assert client.is_waiting
    assert len(shared.polls) == 0


def test_poll_is_refused_while_the_bridge_reads_back_the_stream() -> None:
    scene = PollScene(shared=True, replaying=True)
    scene.publish_with_ids(UpdateId(1, 1))
    assert scene.ask(wait_s=30).is_refused
    scene.hub.end_replay()
    assert scene.ask().numbers == [1]


# Steps


def test_search_is_one_segment_in_each_step(scene: PollScene) -> None:
    scene.publish(*"a" * (3 * SEGMENT_UPDATES))
    scene.turn.steps = 0
    wanted = Counting()
    client = scene.ask(id_of(0), wanted)
    assert wanted.calls == SEGMENT_UPDATES
    scene.turns.turn()
    assert wanted.calls == 2 * SEGMENT_UPDATES
    scene.turns.settle()
    assert client.numbers == []


def test_backward_search_is_one_segment_in_each_step(scene: PollScene) -> None:
    scene.publish(*"a" * (3 * SEGMENT_UPDATES))
    scene.turn.steps = 0
    wanted = Counting()
    client = scene.ask(wanted=wanted)
    assert wanted.calls == SEGMENT_UPDATES
    scene.turns.settle()
    assert wanted.calls == 3 * SEGMENT_UPDATES
    assert client.numbers == []


def test_polls_take_turns(scene: PollScene) -> None:
    scene.publish(*"a" * (4 * SEGMENT_UPDATES))
    scene.turn.steps = 0
    slow = scene.ask(id_of(0), Counting())
    fast = scene.ask(id_of(4 * SEGMENT_UPDATES - 1))
    scene.turns.turn()
    scene.turns.turn()
    assert slow.is_waiting
    assert fast.numbers == [4 * SEGMENT_UPDATES]
    scene.turns.settle()
    assert not slow.is_waiting


def test_thousands_of_woken_polls_are_answered_over_several_turns(scene: PollScene) -> None:
    clients = [scene.ask("", wait_s=30) for _ in range(2000)]
    scene.turn.steps = 100
    scene.publish("a")
    assert sum(not client.is_waiting for client in clients) == 100
    scene.turns.turn()
    assert sum(not client.is_waiting for client in clients) == 101
    scene.turn.steps = None
    scene.turns.settle()
    assert all(client.numbers == [1] for client in clients)


def test_check_of_many_filters_takes_several_steps(monkeypatch: pytest.MonkeyPatch, scene: PollScene) -> None:
    monkeypatch.setattr(polls_module, "MAX_CALLS_PER_STEP", 10)
    filters = [Counting() for _ in range(30)]
    for each in filters:
        scene.ask("", each, wait_s=30)
    last = scene.ask("", Only("a"), wait_s=30)
    scene.turn.steps = 0
    scene.publish("a")
    assert sum(each.calls for each in filters) == 10
    # Updates of another flush are checked too, although the first check has not ended.
    scene.publish("a")
    scene.turns.settle()
    assert [each.calls for each in filters] == [2] * 30
    assert last.numbers == [1, 2]


def test_many_polls_of_one_filter_are_queued_in_several_steps(
    monkeypatch: pytest.MonkeyPatch, scene: PollScene
) -> None:
    monkeypatch.setattr(polls_module, "MAX_WAKES_PER_STEP", 10)
    clients = [scene.ask("", Only("a"), wait_s=30) for _ in range(35)]
    scene.turn.steps = 0
    scene.publish("a")
    assert len(scene.polls._queue) <= 10
    scene.polls.forget(clients[-1])
    joined = scene.ask("", Only("a"), wait_s=30)
    scene.turns.settle()
    assert all(client.numbers == [1] for client in clients[:-1])
    assert clients[-1].is_waiting
    assert joined.is_waiting
    scene.publish("a")
    assert joined.numbers == [2]


def test_client_that_leaves_during_the_search_is_forgotten(scene: PollScene) -> None:
    scene.publish(*"a" * (3 * SEGMENT_UPDATES))
    scene.turn.steps = 0
    wanted = Counting()
    client = scene.ask(id_of(0), wanted)
    scene.polls.forget(client)
    scene.turns.settle()
    assert wanted.calls == SEGMENT_UPDATES
    assert client.is_waiting
    assert len(scene.polls) == 0


def test_wait_that_ends_during_the_search_is_over(scene: PollScene) -> None:
    scene.publish(*"a" * (3 * SEGMENT_UPDATES))
    scene.turn.steps = 0
    client = scene.ask(id_of(0), Only("b"), wait_s=1)
    scene.pass_by(1)
    scene.turns.settle()
    assert client.body["id"] == id_of(3 * SEGMENT_UPDATES)


@pytest.mark.parametrize(
    ("after", "last", "complete"), [(id_of(0), None, False), ("earliest", None, True), (None, 1000, True)]
)
def test_log_that_drops_what_a_search_has_found_makes_it_start_again(
    after: str | None, last: int | None, *, complete: bool
) -> None:
    scene = PollScene(600 * (ENTRY_BYTES + 80))
    scene.publish(*"a" * 600)
    scene.turn.steps = 0
    client = scene.ask(after, Only("a"), last=last, limit=1000)
    assert client.is_waiting
    scene.turn.steps = None
    scene.published = 600
    scene.publish(*"a" * 400)
    scene.turns.settle()
    numbers = client.numbers
    assert numbers == list(range(numbers[0], 1001))
    assert numbers[0] > scene.log.tail
    assert client.body["complete"] is complete


def test_updates_that_are_dropped_before_a_search_begins_are_incomplete(scene: PollScene) -> None:
    small = PollScene(20 * ENTRY_BYTES)
    small.publish("a")
    small.turn.steps = 0
    other = small.ask(id_of(0), Only("b"))
    client = small.ask(id_of(0))
    small.turn.steps = None
    small.publish(*"a" * 50)
    small.turns.settle()
    assert not other.is_waiting
    assert not client.body["complete"]


# Faults


def test_fault_with_one_poll_resets_only_this_poll(scene: PollScene) -> None:
    scene.publish("a")
    with capture_logs() as logged:
        broken = scene.ask(id_of(0), Raising())
    assert broken.resets == 1
    assert [line["event"] for line in logged] == ["poll failed; connection reset"]
    assert len(scene.polls) == 0
    assert scene.ask(id_of(0)).numbers == [1]


def test_client_that_fails_while_it_is_answered_is_reset(scene: PollScene) -> None:
    class Broken(Client):
        def answer(self, result: PollResult) -> None:
            raise RuntimeError("a fault")

    client = Broken()
    with capture_logs():
        scene.start(client)
    assert client.resets == 1
    assert len(scene.polls) == 0


def test_filter_that_raises_ends_only_its_own_polls(scene: PollScene) -> None:
    broken, other, silent = (scene.ask("", wanted, wait_s=30) for wanted in (Raising(), Only("a"), Only("b")))
    with capture_logs() as logged:
        scene.publish("a")
    assert [line["event"] for line in logged] == ["poll failed; connection reset"]
    assert broken.resets == 1
    assert other.numbers == [1]
    assert silent.is_waiting


def test_fault_in_the_check_of_waiting_polls_ends_only_this_check(
    scene: PollScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, other = scene.ask("", Raising(), wait_s=30), scene.ask("", wait_s=30)
    with monkeypatch.context() as patched, capture_logs() as logged:
        patched.setattr(scene.polls, "_is_woken", Mock(side_effect=RuntimeError("a fault")))
        scene.publish("a")
    assert [line["event"] for line in logged] == ["check of waiting polls failed"]
    assert len(scene.poll_flushes.positions) == 1
    assert broken.is_waiting
    assert other.is_waiting
    with capture_logs():
        scene.pass_by(30)
    assert broken.resets == 1
    assert other.numbers == [1]


# Metrics


def test_metrics_count_the_updates_bytes_and_resumes_of_polls(scene: PollScene) -> None:
    scene.publish("a", "a")
    clients = [scene.ask(), scene.ask(id_of(1)), scene.ask("unknown"), scene.ask("earliest"), scene.ask("")]
    assert scene.metrics.written == 2 + 1 + 2 + 2
    assert scene.polls.sent_bytes == sum(client.results[0].size_bytes for client in clients)
    samples = {
        sample.labels["complete"]: sample.value
        for sample in next(iter(scene.metrics.resumes.collect())).samples
        if sample.name == "bridge_resumes_total"
    }
    assert samples == {"true": 1.0, "false": 1.0}


def test_filters_of_ended_polls_are_forgotten_except_the_newest() -> None:
    with closing(PollScene()) as scene:
        scene.publish(*"a" * (3 * SEGMENT_UPDATES))
        for number in range(2 * MAX_RECENT_FILTERS):
            # Each poll searches another segment.
            scene.ask(str(UpdateId(number % 3 * SEGMENT_UPDATES, TAG)), Only(f"kind {number}"))
            scene.turns.settle()
        kept = {wanted for segment in scene.index._segments for wanted in segment.match_cache}
        newest = {Only(f"kind {number}") for number in range(MAX_RECENT_FILTERS, 2 * MAX_RECENT_FILTERS)}
        assert kept == newest
