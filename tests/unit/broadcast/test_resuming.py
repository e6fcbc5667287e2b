"""Clients that come back: what each is told, what it costs the others, and that nothing of them stays."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bridge.broadcast import replay, waiting
from bridge.broadcast.catch_up import CATCHING_UP, MIN_COST_BYTES, TURN_BUDGETS_BYTES
from bridge.broadcast.close_reasons import CloseReason
from bridge.broadcast.hub import Hub
from bridge.broadcast.replay import SEGMENT_UPDATES, ReplayIndex, UpdateFilter
from bridge.broadcast.resume import Resume
from bridge.broadcast.update_log import ENTRY_BYTES, UpdateLog
from bridge.contract import envelope
from bridge.contract.filters import After
from bridge.contract.update_id import UpdateId
from bridge.metrics import Metrics
from tests.support.clients import server_frames
from tests.support.examples import examples
from tests.support.fakes import FakeSubscriber, Turns

NOW_MS = 1_700_000_000_000
CHECK = 7
PAYLOAD = envelope.wrap("a", 1, NOW_MS)


@dataclass(frozen=True, slots=True)
class Everything:
    """A filter that matches, once it was asked."""

    def matches(self, update_type: str, data: object) -> bool:
        return True


class Bridge:
    """A hub with a loop that is turned by hand, and the part of it that is tested, with the same log."""

    def __init__(self, room: int = 10_000, *, check: int | None = CHECK) -> None:
        """`room` is how many updates the log holds."""
        log_bytes = room * (ENTRY_BYTES + len(PAYLOAD) + 2)
        self.turns = Turns()
        self.history = ReplayIndex(UpdateLog(log_bytes), check)
        self.hub = Hub(self.history, Metrics(), self.turns.call_soon, log_bytes, lambda: NOW_MS)
        self.told: list[tuple[bool, int]] = []
        self.resuming = Resume(self.history, lambda: NOW_MS, lambda *told: self.told.append(told))

    @property
    def flushed(self) -> int:
        return self.hub._lagging.flushed

    def begin(self, client: FakeSubscriber, wanted: UpdateFilter | None, after: str) -> None:
        self.resuming.begin(client, wanted, After.parse(after), self.flushed)

    def publish(self, count: int) -> None:
        for _ in range(count):
            update_id = None if self.history._tag is not None else UpdateId(self.history.log.head + 1, CHECK)
            self.hub.publish(PAYLOAD, update_id=update_id)
        self.hub.flush()

    def message(self, client: FakeSubscriber) -> dict[str, object] | None:
        """What a client is told; None where it has to wait for another turn."""
        frame = self.resuming.message(client, self.flushed)
        if frame is None:
            return None
        [(_, payload)] = server_frames(frame)
        data: dict[str, object] = orjson.loads(payload)["data"]
        return data


def test_client_is_told_once_all_segments_were_counted() -> None:
    bridge = Bridge()
    bridge.publish(3 * SEGMENT_UPDATES)
    client = FakeSubscriber(bridge.hub)
    bridge.begin(client, Everything(), str(UpdateId(10, CHECK)))
    assert [bridge.message(client) for _ in range(2)] == [None, None]
    assert client in bridge.resuming
    count = 3 * SEGMENT_UPDATES - 10
    assert bridge.message(client) == {"complete": True, "replayed": count, "id": str(UpdateId(10, CHECK))}
    assert bridge.told == [(True, count)]
    assert client not in bridge.resuming


def test_client_that_is_overtaken_while_it_is_counted_begins_again_once_and_then_at_the_end() -> None:
    room = 3 * SEGMENT_UPDATES
    bridge = Bridge(room)
    bridge.publish(room)
    client = FakeSubscriber(bridge.hub)
    bridge.begin(client, Everything(), str(UpdateId(1, CHECK)))
    assert bridge.message(client) is None
    bridge.publish(room)
    assert bridge.message(client) is None
    log = bridge.history.log
    assert log.tail <= client.cursor < log.head, "it begins again at what is kept"
    bridge.publish(room)
    assert bridge.message(client) == {"complete": False, "replayed": 0, "id": str(UpdateId(log.head, CHECK))}
    assert client.cursor == log.head
    assert bridge.told == [(False, 0)]


def test_client_that_is_overtaken_is_told_only_what_it_still_gets() -> None:
    room = 3 * SEGMENT_UPDATES
    bridge = Bridge(room)
    bridge.publish(room)
    client = FakeSubscriber(bridge.hub)
    bridge.begin(client, Everything(), str(UpdateId(1, CHECK)))
    assert bridge.message(client) is None
    bridge.publish(100)
    data = None
    while data is None:
        data = bridge.message(client)
    assert data == {
        "complete": False,
        "replayed": bridge.history.log.head - client.cursor,
        "id": str(UpdateId(client.cursor, CHECK)),
    }


def test_client_that_is_forgotten_is_counted_no_more() -> None:
    bridge = Bridge()
    client = FakeSubscriber(bridge.hub)
    bridge.begin(client, None, "")
    assert list(bridge.resuming) == [client]
    bridge.resuming.forget(client)
    assert list(bridge.resuming) == []


def test_clients_that_come_back_to_nothing_new_count_too_in_a_turn() -> None:
    bridge = Bridge()
    bridge.publish(1)
    clients = [FakeSubscriber(bridge.hub) for _ in range(2 * TURN_BUDGETS_BYTES[CATCHING_UP] // MIN_COST_BYTES)]
    for client in clients:
        bridge.hub.join(client, None, After.parse(str(UpdateId(1, CHECK))))
    bridge.turns.turn()
    assert sum(bool(client.writes) for client in clients) == TURN_BUDGETS_BYTES[CATCHING_UP] // MIN_COST_BYTES
    bridge.turns.settle()
    assert all(len(client.writes) == 1 for client in clients)


@pytest.mark.parametrize("state", ["live", "live with ids", "lagging", "congested", "counting", "due", "pending"])
@pytest.mark.parametrize("filtered", [False, True])
def test_client_that_left_is_garbage_collected(state: str, *, filtered: bool) -> None:
    bridge = Bridge(check=None)
    bridge.publish(3 * SEGMENT_UPDATES)
    client = FakeSubscriber(bridge.hub)
    client.congested = state == "congested"
    client.full = state == "lagging"
    old, ahead = str(UpdateId(1, CHECK)), str(UpdateId(10**6, CHECK))
    after = {"live with ids": "", "counting": old, "due": old, "pending": ahead}.get(state)
    bridge.hub.join(client, Everything() if filtered else None, None if after is None else After.parse(after))
    bridge.publish(1)
    if state == "counting":
        bridge.turns.turn()
    if state == "pending":
        bridge.hub.tick()
        assert bridge.hub.pending == 1
    bridge.hub.leave(client)
    assert (len(bridge.hub), bridge.hub.lagging, bridge.hub.pending) == (0, 0, 0)
    gone = weakref.ref(client)
    del client
    bridge.turns.settle()
    assert gone() is None


@pytest.mark.parametrize(
    "after", ["", str(UpdateId(2, CHECK)), str(UpdateId(99, CHECK))], ids=["new", "ahead", "unknown"]
)
def test_cursor_is_never_beyond_what_was_flushed(after: str) -> None:
    bridge = Bridge(check=None)
    bridge.publish(1)
    bridge.hub.publish(PAYLOAD, update_id=UpdateId(2, CHECK))
    bridge.hub.publish(PAYLOAD, update_id=UpdateId(1, CHECK))
    client = FakeSubscriber(bridge.hub)
    bridge.begin(client, None, after)
    assert client.cursor <= bridge.flushed
    data = bridge.message(client)
    assert data is not None
    assert data["replayed"] == bridge.flushed - client.cursor


def test_client_that_is_overtaken_while_updates_are_not_flushed_begins_no_later_than_these() -> None:
    bridge = Bridge(8, check=None)
    bridge.publish(8)
    client = FakeSubscriber(bridge.hub)
    bridge.begin(client, Everything(), str(UpdateId(1, CHECK)))
    bridge.hub.flush()
    # Each sequence is lower than the one before, so each update begins a new segment.
    for number in range(4):
        bridge.hub.publish(PAYLOAD, update_id=UpdateId(100 - number, CHECK))
    assert client.cursor < bridge.history.log.tail <= bridge.flushed
    assert bridge.message(client) is not None
    assert bridge.told[0][1] == bridge.flushed - client.cursor


def test_new_clients_that_begin_in_a_later_turn_get_what_is_not_flushed_as_new() -> None:
    bridge = Bridge(check=None)
    bridge.hub._pending.reads_back = True
    clients = [FakeSubscriber(bridge.hub) for _ in range(3 * waiting.MAX_RELEASES_PER_TURN)]
    for client in clients:
        bridge.hub.join(client, None, After.parse(""))
    bridge.hub.caught_up()
    bridge.hub.publish(PAYLOAD, update_id=UpdateId(1, CHECK))
    bridge.turns.settle()
    bridge.hub.flush()
    for client in clients:
        resume, *updates = messages(client)
        assert resume["data"]["replayed"] == 0
        assert len(updates) == (resume["data"]["id"] == str(UpdateId(0, 0)))


def test_client_whose_update_has_come_but_is_not_flushed_does_not_get_it_again() -> None:
    bridge = Bridge(check=None)
    client = FakeSubscriber(bridge.hub)
    bridge.hub.join(client, None, After.parse(str(UpdateId(2, CHECK))))
    for number in (1, 2, 3):
        bridge.hub.publish(PAYLOAD, update_id=UpdateId(number, CHECK))
    bridge.hub.tick()
    bridge.turns.settle()
    bridge.hub.flush()
    resume, *updates = messages(client)
    assert resume["data"] == {"complete": True, "replayed": 1, "id": str(UpdateId(2, CHECK))}
    assert [update["id"] for update in updates] == [str(UpdateId(3, CHECK))]


def messages(client: FakeSubscriber) -> list[dict[str, Any]]:
    """Returns the messages that a client was sent."""
    return [orjson.loads(payload) for _, payload in server_frames(client.received)]


@dataclass(frozen=True, slots=True)
class Even:
    """A filter that matches half of the updates."""

    def matches(self, update_type: str, data: object) -> bool:
        assert isinstance(data, int)
        return data % 2 == 0


@settings(max_examples=examples(60), stateful_step_count=40)
class AnyTurn(RuleBasedStateMachine):
    """Updates, marks, gaps and clients in any order, with and without a flush between them.

    The data of an update is its position in the log. The time of each `resume` is the position up to which updates were
    flushed at that moment. The `resume` counts the updates before this position.
    """

    @initialize(
        room=st.sampled_from([4, 40, 4000]),
        reads_back=st.booleans(),
        at_once=st.sampled_from([1, 2, 64]),
        segment=st.sampled_from([1, 3, 256]),
    )
    def start(self, room: int, at_once: int, segment: int, *, reads_back: bool) -> None:
        log_bytes = room * (ENTRY_BYTES + len(PAYLOAD) + 2)
        self.turns = Turns()
        self.log = UpdateLog(log_bytes)
        self.hub = Hub(
            ReplayIndex(self.log, None),
            Metrics(),
            self.turns.call_soon,
            log_bytes,
            lambda: self.hub._lagging.flushed,
            reads_back=reads_back,
        )
        self.clients: list[tuple[FakeSubscriber, int]] = []
        """The clients. Each has the position after the id that it sent, or 0."""
        self._limits = waiting.MAX_RELEASES_PER_TURN, replay.SEGMENT_UPDATES
        waiting.MAX_RELEASES_PER_TURN, replay.SEGMENT_UPDATES = at_once, segment

    @rule(kinds=st.lists(st.sampled_from(["update", "update", "mark", "gap"]), min_size=1, max_size=6))
    def publish(self, kinds: list[str]) -> None:
        for kind in kinds:
            position = self.log.head
            if kind == "update":
                self.hub.publish(envelope.wrap("a", position, NOW_MS), ("a", position), UpdateId(position + 1, CHECK))
            elif kind == "mark":
                self.hub.record_id(UpdateId(position + 1, CHECK))
            else:
                self.hub.send_own_message(envelope.gap("then", "now", "so it is", NOW_MS))

    @rule(name=st.sampled_from(["flush", "caught_up"]))
    def hand_out(self, name: str) -> None:
        getattr(self.hub, name)()

    @rule()
    def tick(self) -> None:
        self.hub.tick()
        self.turns.turn()

    @rule()
    def turn(self) -> None:
        self.turns.turn()

    @precondition(lambda self: len(self.clients) < 8)
    @rule(
        back=st.sampled_from([None, -6, -2, -1, 0, 1, 5, 12]),
        full=st.booleans(),
        wanted=st.sampled_from([None, Even()]),
        times=st.integers(1, 3),
    )
    def join(self, back: int | None, wanted: UpdateFilter | None, times: int, *, full: bool) -> None:
        """`back` is how far the client's id is behind the newest position.

        If it is negative, the id is not published yet. None is for a client without an id.
        """
        position = 0 if back is None else max(0, self.log.head - back)
        for _ in range(times):
            client = FakeSubscriber(self.hub)
            client.congested = full
            self.clients.append((client, position))
            self.hub.join(client, wanted, After.parse("" if back is None else str(UpdateId(position, CHECK))))

    @rule(which=st.integers(0, 7))
    def leave(self, which: int) -> None:
        for client, _ in self.clients[which : which + 1]:
            self.hub.leave(client)
            self.clients.pop(which)

    @rule(which=st.integers(0, 7))
    def drain(self, which: int) -> None:
        for client, _ in self.clients[which : which + 1]:
            if client.congested:
                client.drain()

    def counted(self, client: FakeSubscriber, after: int) -> tuple[int, int]:
        """Returns how many of the updates counted by `resume` the client got, and the number that `resume` contains."""
        received = messages(client)
        if not received:
            return 0, 0
        resume = received[0]
        assert resume["type"] == "resume"
        positions = [each["data"] for each in received[1:] if each["type"] == "a"]
        assert positions == sorted(set(positions)), "once, and in order"
        if resume["data"]["complete"]:
            assert all(position >= after for position in positions), "nothing that it had"
        return sum(position < resume["timestamp"] for position in positions), resume["data"]["replayed"]

    @invariant()
    def number_of_replayed_updates_is_never_exceeded_nor_negative(self) -> None:
        for client, after in self.clients:
            got, replayed = self.counted(client, after)
            assert 0 <= got <= replayed

    def teardown(self) -> None:
        waiting.MAX_RELEASES_PER_TURN, replay.SEGMENT_UPDATES = self._limits
        self.hub.caught_up()
        for _ in range(3):
            self.turns.settle()
            for client, _ in self.clients:
                if client.congested and client.closed is None:
                    client.drain()
            self.hub.tick()
        self.turns.settle()
        for client, after in self.clients:
            got, replayed = self.counted(client, after)
            assert got == replayed or client.closed is CloseReason.TOO_SLOW


test_resume_says_exactly_how_many_updates_come_before_the_new_ones = AnyTurn.TestCase
