"""Tests where a client that resumes begins, and which `resume` message and updates it gets.

The last tests of this file generate events in any order.
"""

from __future__ import annotations

import weakref
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from math import floor
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import Mock

import orjson
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bridge.broadcast import join_storm, live_set, replay
from bridge.broadcast import resume as resume_module
from bridge.broadcast.catch_up import CATCH_UP_BYTES, MIN_COST_BYTES, RETURNING, TURN_BUDGETS_BYTES
from bridge.broadcast.close_reasons import CloseReason
from bridge.broadcast.framing import Form
from bridge.broadcast.replay import REPLAY_MARGIN, SEGMENT_BYTES, SEGMENT_UPDATES, ReplayIndex, UpdateFilter
from bridge.broadcast.resume import MAX_RELEASES_PER_TURN, PendingResumes, Resume
from bridge.broadcast.subscriber import State, Subscriber
from bridge.broadcast.subscriptions import MAX_MATCHES_PER_FLUSH, Subscriptions
from bridge.broadcast.update_log import ENTRY_BYTES, UpdateLog
from bridge.contract import envelope
from bridge.contract.filters import After, SubscribeRequest
from bridge.contract.update_id import UpdateId
from tests.support.clients import CLOSE, server_frames
from tests.support.examples import examples
from tests.support.fakes import NOW_MS, TAG, FakeSubscriber, Scene, SocketSubscriber, ignore, update

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True, slots=True)
class Only:
    """A filter that matches updates of one type."""

    kind: str

    def matches(self, update_type: str, data: object) -> bool:
        return update_type == self.kind


class Raising:
    """A filter that raises an error for each update."""

    def matches(self, update_type: str, data: object) -> bool:
        raise RuntimeError("a fault")


@dataclass(slots=True)
class Counting:
    """A filter that counts its calls, and is equal only to itself."""

    asked: int = 0

    def matches(self, update_type: str, data: object) -> bool:
        self.asked += 1
        return True

    def __hash__(self) -> int:
        return id(self)


def all_messages(stream: bytes) -> list[dict[str, Any]]:
    return [orjson.loads(payload) for opcode, payload in server_frames(stream) if opcode != CLOSE]


def messages(stream: bytes) -> list[dict[str, Any]]:
    """Returns the messages except heartbeats, which have a test file of their own."""
    return [message for message in all_messages(stream) if message["type"] != "heartbeat"]


def asking(after: str | None, wanted: Any = None) -> SubscribeRequest:
    return SubscribeRequest(wanted, None if after is None else After.parse(after))


def gap(reason: str = "so it is") -> Callable[[str], bytes]:
    return lambda gap_id: envelope.gap("then", "now", reason, gap_id, NOW_MS)


def gap_message(gap_id: str) -> dict[str, Any]:
    message: dict[str, Any] = orjson.loads(gap()(gap_id))
    return message


@pytest.fixture
def scene() -> Iterator[Scene]:
    with closing(Scene()) as scene:
        yield scene


def resumed(complete: bool, replayed: int, after: str) -> dict[str, Any]:
    return {
        "type": "resume",
        "data": {"complete": complete, "replayed": replayed, "id": after},
        "timestamp": NOW_MS,
    }


def with_id(number: int, kind: str = "a", tag: int = TAG, own_messages: int = 0) -> dict[str, Any]:
    """Returns an update with an id.

    The sequence number in the id also counts the bridge's own messages before the update.
    """
    return {**orjson.loads(update(number, kind)), "id": str(UpdateId(number + own_messages, tag))}


# Clients without an id


def test_client_that_asks_for_ids_gets_a_resume_message_and_updates_with_ids(scene: Scene) -> None:
    scene.publish("a")
    client = scene.join("")
    assert messages(client.received) == [resumed(True, 0, "1-0000abcd")]
    scene.publish("a")
    assert messages(client.received)[1:] == [with_id(2)]
    assert client.writes[-1][2:].endswith(b',"timestamp":1700000000000,"id":"2-0000abcd"}')


def test_client_that_joins_before_the_first_update_can_resume_from_there(scene: Scene) -> None:
    first = scene.join("")
    assert messages(first.received) == [resumed(True, 0, "0-0000abcd")]
    scene.publish("a", "a")
    second = scene.join("0-0000abcd")
    scene.turns.settle()
    assert messages(second.received) == [resumed(True, 2, "0-0000abcd"), with_id(1), with_id(2)]


def test_plain_clients_see_no_difference(scene: Scene) -> None:
    plain, _ = scene.join(), scene.join("")
    scene.publish("a")
    scene.hub.send_own_message(gap())
    scene.publish("b")
    assert messages(plain.received) == [orjson.loads(update(1)), orjson.loads(update(2, "b"))]
    assert len(plain.writes) == 2


# Clients with an id


def test_client_gets_the_missed_updates_and_then_the_new_ones(scene: Scene) -> None:
    scene.publish("a", "b", "a")
    client = scene.join("1-0000abcd")
    scene.publish("b")
    scene.turns.settle()
    scene.publish("a")
    expected = [with_id(2, "b"), with_id(3), with_id(4, "b"), with_id(5)]
    assert messages(client.received) == [resumed(True, 3, "1-0000abcd"), *expected]


def test_client_that_missed_nothing_gets_a_complete_resume(scene: Scene) -> None:
    scene.publish("a")
    client = scene.join("1-0000abcd")
    scene.turns.settle()
    assert messages(client.received) == [resumed(True, 0, "1-0000abcd")]
    assert scene.hub.lagging == 0


@pytest.mark.parametrize("after", ["1-00000001", "9-0000abcd", "nonsense", "1", "0-00000000", "x" * 5000])
def test_client_with_an_unknown_id_gets_an_incomplete_resume_and_a_full_replay(scene: Scene, after: str) -> None:
    scene.publish("a", "a")
    client = scene.join(after)
    scene.turns.settle()
    assert messages(client.received) == [resumed(False, 2, "0-0000abcd"), with_id(1), with_id(2)]


def test_client_with_an_evicted_id_gets_an_incomplete_resume_and_a_full_replay() -> None:
    scene = Scene(log_bytes=1000)
    scene.publish(*"a" * 10)
    assert scene.index.update_log.tail > 2
    tail = scene.index.update_log.tail
    kept = [with_id(number) for number in range(tail + 1, 11)]
    client = scene.join("1-0000abcd")
    scene.turns.settle()
    assert messages(client.received) == [resumed(False, len(kept), str(UpdateId(tail, TAG))), *kept]
    # The client has already received the newest evicted update, so it misses nothing.
    client = scene.join(str(UpdateId(tail, TAG)))
    scene.turns.settle()
    assert messages(client.received) == [resumed(True, len(kept), str(UpdateId(tail, TAG))), *kept]


def test_id_of_a_dropped_segment_is_unknown() -> None:
    scene = Scene(log_bytes=40_000)
    scene.publish(*"a" * (3 * SEGMENT_UPDATES))
    assert scene.index.update_log.tail > 2 * SEGMENT_UPDATES
    client = scene.join("1-0000abcd")
    scene.turns.settle()
    assert messages(client.received)[0]["data"]["complete"] is False


def test_updates_dropped_before_the_resume_message_make_it_incomplete() -> None:
    with closing(Scene(log_bytes=4000)) as scene:
        scene.publish("a", "a")
        client = scene.join("1-0000abcd", Only("a"), full=False)
        scene.publish(*"a" * 100)
        scene.turns.settle()
        first, *rest = messages(client.received)
        assert first == resumed(False, len(rest), str(UpdateId(scene.index.update_log.tail, TAG)))
        assert [each["data"]["n"] for each in rest] == list(range(scene.index.update_log.tail + 1, 103))
        assert client.closed is None


def test_full_replay_starts_after_a_margin_of_the_oldest_updates() -> None:
    """If a full replay began at the oldest update, the next update would evict the first update of the replay."""
    log_bytes = 400_000
    scene = Scene(log_bytes)
    scene.publish(*"a" * 3000, size=50)
    log = scene.index.update_log
    assert log.tail > 0
    client = scene.join("unknown")
    begun_at, dropped = client.cursor, log.tail
    while log.tail <= begun_at:
        scene.publish("a", size=50)
    entry_bytes = log_bytes / len(log)
    lasted_bytes = (log.tail - dropped) * entry_bytes
    assert 0 <= lasted_bytes - log_bytes / REPLAY_MARGIN <= SEGMENT_UPDATES * entry_bytes
    scene.turns.settle()
    first, *rest = messages(client.received)
    assert first["data"]["complete"] is False
    assert first["data"]["replayed"] == len(rest) > 0
    assert client.closed is None


def test_full_replay_starts_at_the_tail_if_the_log_has_room_left() -> None:
    scene = Scene(2**20)
    scene.publish(*"a" * 3000)
    assert scene.index.oldest == scene.index.update_log.tail == 0


@pytest.mark.parametrize("first", [0, 1])
def test_full_replay_of_a_new_stream_starts_at_the_tail_while_its_log_fills(first: int) -> None:
    """The first message of a stream has the sequence number 0."""
    with closing(Scene(log_bytes=10_000, shared=True)) as scene:
        sequence = first
        while not scene.log.tail:
            scene.publish_with_ids(UpdateId(sequence, TAG))
            client = scene.join("earliest")
            scene.turns.settle()
            received = messages(client.received)
            assert [message["type"] for message in received] == ["resume", *"a" * len(scene.log)]
            sequence += 1


def test_client_that_falls_off_the_log_after_its_resume_message_is_too_slow() -> None:
    scene = Scene(log_bytes=4000)
    scene.publish("a", "a", "a")
    client = scene.join("1-0000abcd", full=True)
    scene.turns.settle()
    assert messages(client.received) == [resumed(True, 2, "1-0000abcd")]
    scene.publish(*"a" * 100)
    assert client.closed is CloseReason.TOO_SLOW


def test_client_that_was_congested_when_it_joined_gets_its_resume_message_after_the_drain(scene: Scene) -> None:
    scene.publish("a", "a")
    client = FakeSubscriber(scene.hub)
    client.congested = True
    scene.hub.join(client, asking(""), Form.TEXT_WITH_ID)
    scene.publish("a")
    scene.turns.settle()
    assert client.writes == []
    client.drain()
    scene.turns.settle()
    assert messages(client.received) == [resumed(True, 1, "2-0000abcd"), with_id(3)]


def test_client_that_leaves_before_its_resume_message_is_forgotten(scene: Scene) -> None:
    scene.publish("a")
    client = scene.join("1-0000abcd", Only("a"))
    scene.hub.leave(client)
    scene.turns.settle()
    assert client.writes == []
    assert (len(scene.hub), scene.hub.lagging) == (0, 0)


def test_client_that_fails_at_its_resume_message_is_closed(scene: Scene) -> None:
    client = FakeSubscriber(scene.hub)
    client.fault = RuntimeError("gone")
    scene.hub.join(client, asking(""), Form.TEXT_WITH_ID)
    assert client.closed is CloseReason.INTERNAL
    assert len(scene.hub) == 0


# Filters


def test_client_gets_the_updates_that_its_filter_matches(scene: Scene) -> None:
    client, with_socket = scene.join(None, Only("b")), scene.join_with_socket(wanted=Only("b"))
    scene.publish("a", "b", "a", "b")
    scene.publish("a")
    with_socket.read()
    for received in (client.received, with_socket.received):
        assert messages(received) == [orjson.loads(update(2, "b")), orjson.loads(update(4, "b"))]
    assert len(client.writes) == 1
    assert (scene.metrics.written, scene.metrics.enqueued) == (4, 0)


def test_filter_and_ids_go_together(scene: Scene) -> None:
    scene.publish("a", "b", "a", "b")
    client = scene.join("1-0000abcd", Only("b"))
    scene.turns.settle()
    scene.publish("a", "b")
    expected = [with_id(2, "b"), with_id(4, "b"), with_id(6, "b")]
    assert messages(client.received) == [resumed(True, 2, "1-0000abcd"), *expected]


def test_filter_is_applied_once_to_an_update_for_all_its_clients(scene: Scene) -> None:
    wanted = Counting()
    clients = [scene.join(after, wanted) for after in (None, "") for _ in range(10)]
    scene.publish("a", "b")
    assert wanted.asked == 2
    assert all(len(messages(client.received)) >= 2 for client in clients)


def test_filter_is_applied_once_to_the_log_for_all_clients_that_resume_with_it(scene: Scene) -> None:
    scene.publish(*"a" * 600)
    wanted = Counting()
    clients = [scene.join("1-0000abcd", wanted) for _ in range(20)]
    scene.turns.settle()
    assert all(len(messages(client.received)) == 600 for client in clients)
    assert wanted.asked == 600


def test_matches_of_few_filters_are_cached_and_all_are_right(scene: Scene) -> None:
    scene.publish(*"ab" * 20)
    wanted = [Counting() for _ in range(40)]
    clients = [scene.join("1-0000abcd", each) for each in wanted]
    scene.turns.settle()
    assert all(len(messages(client.received)) == 40 for client in clients)
    assert len(scene.index._segments[0].match_cache) <= 32


def test_filter_with_many_updates_to_search_takes_many_turns(scene: Scene) -> None:
    scene.publish(*"a" * 3000)
    wanted = Counting()
    scene.join("1-0000abcd", wanted)
    most, before = 0, 0
    while scene.turns.turn():
        most, before = max(most, wanted.asked - before), wanted.asked
    assert 0 < most <= SEGMENT_UPDATES


def test_large_updates_are_searched_few_at_a_time(scene: Scene) -> None:
    scene.publish(*"a" * 20, size=30_000)
    wanted = Counting()
    scene.join("1-0000abcd", wanted)
    most, before = 0, 0
    while scene.turns.turn():
        most, before = max(most, wanted.asked - before), wanted.asked
    assert 0 < most <= 3


def test_search_of_all_filters_together_in_a_turn_is_bounded(scene: Scene) -> None:
    scene.publish(*"a" * 100, size=10_000)
    for number in range(50):
        scene.join("1-0000abcd", Only(f"x{number}"))
    most = before = 0
    while scene.turns.turn():
        most, before = max(most, scene.index.work_bytes - before), scene.index.work_bytes
    # A whole segment is searched at once, and a segment holds 7 of these updates.
    assert most < sum(TURN_BUDGETS_BYTES[RETURNING:]) + 8 * 10_200


def test_lagging_clients_are_served_before_resuming_ones_and_filters_last(scene: Scene) -> None:
    slow = scene.join(full=True)
    scene.publish(*"a" * 600, size=1000)
    for number in range(200):
        scene.join("1-0000abcd", Only(f"x{number}"))
    returning = [scene.join("1-0000abcd") for _ in range(3)]
    slow.drain()
    scene.turns.turn()
    assert len(slow.writes) == 2, "the client gets one piece"
    assert all(client.writes for client in returning)


def test_many_filters_are_applied_in_later_turns(scene: Scene) -> None:
    """After a burst of updates, some of the many filters are applied only in later turns of the event loop."""
    updates = 200
    wanted = [Counting() for _ in range(2 * MAX_MATCHES_PER_FLUSH // updates)]
    clients = [scene.join(None, each) for each in wanted]
    plain = scene.join()
    scene.publish(*"a" * updates)
    assert len(messages(plain.received)) == updates
    assert 0 < sum(each.asked for each in wanted) <= MAX_MATCHES_PER_FLUSH + updates
    assert 0 < scene.hub.lagging < len(clients)
    scene.turns.settle()
    assert all(len(messages(client.received)) == updates for client in clients)
    assert scene.hub.lagging == 0


def test_cached_matches_are_dropped_with_the_last_client_of_a_filter(scene: Scene) -> None:
    scene.publish(*"a" * 600)
    clients = [scene.join(after, Only("a")) for after in (None, "1-0000abcd", "unknown")]
    scene.turns.settle()
    for client in clients[:2]:
        scene.hub.leave(client)
    assert any(segment.match_cache for segment in scene.index._segments)
    scene.hub.leave(clients[2])
    assert not any(segment.match_cache for segment in scene.index._segments)


def test_filter_is_not_applied_again_when_a_socket_stops_within_a_flush(scene: Scene) -> None:
    wanted = Counting()
    scene.publish(*"a" * 200)
    scene.join_with_socket(1, wanted=wanted)
    scene.publish("a", size=5000)
    assert wanted.asked == 1


def test_client_without_matches_gets_a_newer_id_and_a_shorter_search_later(scene: Scene) -> None:
    scene.publish(*"a" * 9)
    client = scene.join("1-0000abcd", Only("b"))
    scene.turns.settle()
    assert messages(client.received) == [resumed(True, 0, "9-0000abcd")]
    scene.hub.send_own_message(gap())
    client = scene.join("5-0000abcd", Only("b"))
    scene.turns.settle()
    assert [message["type"] for message in messages(client.received)] == ["resume", "gap"]


def test_client_gets_its_resume_message_even_if_the_whole_log_is_replaced_meanwhile() -> None:
    with closing(Scene(2**20)) as scene:
        scene.publish(*"a" * 4000)
        clients = [scene.join("5-00000000", Only(f"x{number}")) for number in range(100)]
        # The log holds about 4300 updates, so all its content is replaced three times.
        for _ in range(80):
            scene.publish(*"a" * 200)
            scene.turns.turn()
        assert all(messages(client.received)[0]["data"]["complete"] is False for client in clients)


def test_subscription_ends_with_its_last_connection(scene: Scene) -> None:
    clients = [scene.join(None, Only("b")), scene.join(None, Only("b")), scene.join("", Only("b"))]
    assert scene.hub.subscriptions == 2
    for client in clients:
        scene.hub.leave(client)
        scene.hub.leave(client)
    assert scene.hub.subscriptions == 0
    assert len(scene.hub) == 0


def test_update_without_a_filter_input_is_filtered_by_its_payload(scene: Scene) -> None:
    client = scene.join(None, Only("b"))
    scene.hub.publish(update(1, "a"))
    scene.hub.publish(update(2, "b"))
    scene.hub.flush()
    assert messages(client.received) == [orjson.loads(update(2, "b"))]


# Many clients that resume, next to live clients


def test_bytes_for_resuming_clients_in_one_turn_are_bounded(scene: Scene) -> None:
    scene.publish(*"a" * 100, size=1000)
    clients = [scene.join("1-0000abcd") for _ in range(300)]
    most_bytes = before = 0
    while scene.turns.turn():
        written = sum(len(client.received) for client in clients)
        most_bytes, before = max(most_bytes, written - before), written
    # These clients use TLS, so each of their bytes counts twice.
    assert TURN_BUDGETS_BYTES[RETURNING] / 4 < most_bytes <= TURN_BUDGETS_BYTES[RETURNING] / 2 + CATCH_UP_BYTES
    assert all(len(messages(client.received)) == 100 for client in clients)


def test_resuming_client_gets_one_piece_in_a_turn(scene: Scene) -> None:
    scene.publish(*"a" * 200, size=1000)
    client = scene.join("1-0000abcd")
    scene.turns.settle()
    assert max(map(len, client.writes)) <= CATCH_UP_BYTES


def test_client_with_little_room_gets_each_frame_whole_and_once() -> None:
    with closing(Scene()) as scene:
        scene.publish(*"ab" * 300, size=300)
        client = scene.join_with_socket(1, after="1-0000abcd", wanted=Only("b"))
        live_one = scene.join_with_socket(1, after="", wanted=Only("b"))
        scene.turns.settle()
        scene.publish(*"ab" * 300, size=300)
        for each, first in ((client, 2), (live_one, 602)):
            while each.read(700) or each.held:
                each.drain()
                scene.turns.settle()
            numbers = [message["data"]["n"] for message in messages(each.received)[1:]]
            assert numbers == list(range(first, 1201, 2))


@pytest.mark.parametrize("room_bytes", [10_000, 20_000, 30_000])
def test_client_that_stops_in_a_later_segment_continues_there(room_bytes: int) -> None:
    with closing(Scene()) as scene:
        client = scene.join_with_socket(room_bytes, after="")
        scene.publish(*"a" * 900)
        while client.read(3000) or client.held:
            client.drain()
            scene.turns.settle()
        assert [message["data"]["n"] for message in messages(client.received)[1:]] == list(range(1, 901))


# A backlog


def test_client_that_asks_for_the_earliest_updates_gets_all_that_is_kept(scene: Scene) -> None:
    scene.publish("a", "b")
    client = scene.join("earliest")
    scene.turns.settle()
    assert messages(client.received) == [resumed(True, 2, "0-0000abcd"), with_id(1), with_id(2, "b")]


def test_earliest_updates_leave_out_the_margin_that_the_next_updates_evict() -> None:
    scene = Scene(1000 * (ENTRY_BYTES + len(update(1)) + 4))
    scene.publish(*"a" * 3000)
    client = scene.join("earliest")
    scene.turns.settle()
    resume, *updates = messages(client.received)
    first = scene.index.oldest
    assert first > scene.log.tail
    assert resume == resumed(True, scene.log.head - first, f"{first}-0000abcd")
    assert len(updates) == scene.log.head - first


@pytest.mark.parametrize("after", [None, ""], ids=["without ids", "with ids"])
@pytest.mark.parametrize("wanted", [None, Only("a")], ids=["all", "filtered"])
@pytest.mark.parametrize("last", [1, 3, 1000])
def test_client_that_asks_for_the_last_updates_begins_with_the_newest_that_match(
    scene: Scene, after: str | None, wanted: Only | None, last: int
) -> None:
    kinds = "abaabbbab" * 90 + "bbb"
    scene.publish(*kinds)
    client = scene.join(after, wanted, last=last)
    scene.turns.settle()
    scene.publish("a")
    scene.turns.settle()
    matching = [number for number, kind in enumerate(kinds, 1) if wanted is None or kind == "a"]
    expected = matching[-last:]
    received = messages(client.received)
    if after is not None:
        # The id is the one before the first update that is sent.
        assert received.pop(0) == resumed(True, len(expected), f"{expected[0] - 1}-0000abcd")
        assert received == [with_id(number, kinds[number - 1]) for number in expected] + [with_id(len(kinds) + 1)]
    else:
        assert [message["data"]["n"] for message in received] == [*expected, len(kinds) + 1]
        assert all(set(message) == {"type", "data", "timestamp"} for message in received)


def test_client_that_asks_for_the_last_updates_without_a_match_gets_the_newest_id(scene: Scene) -> None:
    scene.publish(*"a" * 600)
    client = scene.join("", Only("b"), last=5)
    scene.turns.settle()
    assert messages(client.received) == [resumed(True, 0, "600-0000abcd")]


def test_client_that_asks_for_the_last_updates_of_an_empty_log_gets_none(scene: Scene) -> None:
    client, plain = scene.join("", last=5), scene.join(last=5)
    scene.turns.settle()
    assert messages(client.received) == [resumed(True, 0, "0-0000abcd")]
    scene.publish("a")
    assert [message["data"]["n"] for message in messages(plain.received)] == [1]


@pytest.mark.parametrize(("after", "complete"), [("2-0000abcd", True), ("unknown", False), ("9-00000001", False)])
def test_number_of_last_updates_applies_only_to_an_unknown_id(scene: Scene, after: str, *, complete: bool) -> None:
    scene.publish(*"a" * 6)
    client = scene.join(after, last=1)
    scene.turns.settle()
    count = 4 if complete else 1
    assert messages(client.received)[0] == resumed(complete, count, f"{6 - count}-0000abcd")
    assert len(messages(client.received)) == 1 + count


def test_number_of_last_updates_applies_to_an_evicted_id() -> None:
    scene = Scene(log_bytes=2000)
    scene.publish(*"a" * 50)
    client = scene.join("1-0000abcd", last=2)
    scene.turns.settle()
    assert messages(client.received) == [resumed(False, 2, "48-0000abcd"), with_id(49), with_id(50)]


def test_gap_among_the_last_updates_is_sent_and_an_earlier_one_is_not(scene: Scene) -> None:
    scene.hub.send_own_message(gap())
    scene.publish("a", "a")
    scene.hub.send_own_message(gap())
    scene.publish("a")
    client, plain = scene.join("", last=2), scene.join(last=2)
    scene.turns.settle()
    assert messages(client.received) == [
        resumed(True, 2, "2-0000abcd"),
        with_id(2, own_messages=1),
        gap_message("4-0000abcd"),
        with_id(3, own_messages=2),
    ]
    assert [message["data"]["n"] for message in messages(plain.received)] == [2, 3]


def test_search_for_the_last_updates_takes_one_segment_in_a_turn(scene: Scene) -> None:
    scene.publish("b", *"a" * (3 * SEGMENT_UPDATES))
    wanted = Counting()
    client = scene.join("", wanted, last=1000)
    asked = []
    while not client.writes:
        asked.append(wanted.asked)
        assert scene.turns.turn()
    steps = [after - before for before, after in pairwise([*asked, wanted.asked])]
    assert max(steps) <= SEGMENT_UPDATES
    assert len(steps) >= 4


def test_update_that_arrives_during_the_search_is_sent_in_addition(scene: Scene) -> None:
    scene.publish(*"a" * (3 * SEGMENT_UPDATES))
    client = scene.join(None, Only("b"), last=1)
    scene.turns.turn()
    scene.publish("b")
    scene.turns.settle()
    assert [message["type"] for message in messages(client.received)] == ["b"]


@pytest.mark.parametrize("after", [None, ""], ids=["without ids", "with ids"])
def test_client_whose_last_updates_are_dropped_during_the_search_begins_later(after: str | None) -> None:
    with closing(Scene(log_bytes=400_000)) as scene:
        scene.publish(*"a" * 1000)
        client = scene.join(after, Only("a"), last=1000)
        scene.turns.turn()
        while scene.log.tail < 1000:
            scene.publish("a")
        scene.turns.settle()
        received = messages(client.received)
        if after is not None:
            assert received.pop(0)["data"]["complete"] is True, "the client has not asked for updates after an id"
        numbers = [message["data"]["n"] for message in received]
        assert numbers == [*range(numbers[0], scene.published + 1)]


def test_client_with_a_backlog_waits_until_the_stream_is_read_back() -> None:
    with closing(Scene(shared=True, replaying=True)) as scene:
        scene.publish_with_ids(*(UpdateId(number, TAG) for number in range(1, 4)))
        clients = [scene.join(last=2), scene.join("", last=2), scene.join("earliest")]
        scene.turns.settle()
        assert [client.received for client in clients] == [b"", b"", b""]
        scene.hub.end_replay()
        scene.turns.settle()
        numbers = [[message["data"].get("n") for message in messages(client.received)] for client in clients]
        assert numbers == [[2, 3], [None, 2, 3], [None, 1, 2, 3]]
        assert messages(clients[2].received)[0] == resumed(True, 3, "before-1-0000abcd")
        again = scene.join("before-1-0000abcd")
        scene.turns.settle()
        assert messages(again.received)[0] == resumed(True, 3, "before-1-0000abcd")


def test_replayed_updates_of_a_backlog_are_counted(scene: Scene) -> None:
    scene.publish("a", "a", "a")
    scene.join(last=2)
    scene.turns.settle()
    assert scene.metrics.replayed == 2
    assert scene.metrics.registry.get_sample_value("bridge_resumes_total", {"complete": "true"}) is None


# Own messages


def test_gap_is_sent_in_order_to_all_clients_with_ids_and_no_filter_hides_it(scene: Scene) -> None:
    filtered, everything = scene.join("", Only("b")), scene.join("")
    with_socket = scene.join_with_socket(after="", wanted=Only("x"))
    scene.publish("a", "b")
    scene.hub.send_own_message(gap())
    scene.publish("b")
    with_socket.read()
    reported, last = gap_message("3-0000abcd"), with_id(3, "b", own_messages=1)
    assert messages(filtered.received)[1:] == [with_id(2, "b"), reported, last]
    assert messages(everything.received)[1:] == [with_id(1), with_id(2, "b"), reported, last]
    assert messages(with_socket.received)[1:] == [reported]
    late = scene.join("1-0000abcd")
    scene.turns.settle()
    assert messages(late.received) == [
        resumed(True, 2, "1-0000abcd"),
        with_id(2, "b"),
        reported,
        last,
    ]


@pytest.mark.parametrize("wanted", [None, Only("x")], ids=["all", "filtered"])
def test_client_that_resumes_before_a_gap_gets_it_and_after_its_id_does_not(scene: Scene, wanted: Only | None) -> None:
    scene.hub.send_own_message(gap())
    scene.publish("x")
    scene.hub.send_own_message(gap())
    clients = [scene.join(f"{number}-0000abcd", wanted) for number in range(4)]
    scene.turns.settle()
    first, number, second = gap_message("1-0000abcd"), with_id(1, "x", own_messages=1), gap_message("3-0000abcd")
    expected = [first, number, second]
    for after, client in enumerate(clients):
        replayed = sum(message is number for message in expected[after:])
        assert messages(client.received) == [resumed(True, replayed, f"{after}-0000abcd"), *expected[after:]]


def test_resumes_are_counted_by_completeness(scene: Scene) -> None:
    scene.publish("a")
    for after in ("", "1-0000abcd", "unknown"):
        scene.join(after)
    scene.turns.settle()
    value = scene.metrics.registry.get_sample_value
    assert value("bridge_resumes_total", {"complete": "true"}) == 2
    assert value("bridge_resumes_total", {"complete": "false"}) == 1


def test_gap_is_sent_in_order_to_a_slow_client_too() -> None:
    with closing(Scene()) as scene:
        slow = scene.join_with_socket(1, after="")
        scene.publish("a", size=9000)
        scene.hub.send_own_message(gap())
        scene.publish("a")
        while slow.read() or slow.held:
            slow.drain()
            scene.turns.settle()
        assert [message["type"] for message in messages(slow.received)] == ["resume", "a", "gap", "a"]


# Tests of a stream that several bridges read


def ids(*numbers: int) -> list[UpdateId]:
    return [UpdateId(number, 1000 + number) for number in numbers]


def test_replayed_updates_are_sent_only_to_clients_that_resume_before_them() -> None:
    scene = Scene(shared=True, replaying=True)
    plain, new = scene.join(), scene.join("")
    old, unknown = scene.join(str(ids(3)[0])), scene.join("5-00000005")
    scene.publish_with_ids(*ids(3, 5, 6))
    assert plain.writes == new.writes == old.writes == []
    scene.hub.end_replay()
    scene.turns.settle()
    scene.publish_with_ids(*ids(9))
    assert [message["data"]["n"] for message in messages(plain.received)] == [9]
    last = [with_id(number, tag=1000 + number) for number in (5, 6, 9)]
    assert messages(new.received) == [resumed(True, 0, str(ids(6)[0])), last[-1]]
    assert messages(old.received) == [resumed(True, 2, str(ids(3)[0])), *last]
    assert messages(unknown.received)[0]["data"]["complete"] is False
    assert len(messages(unknown.received)) == 5


def test_plain_client_that_is_congested_during_the_replay_gets_no_replayed_update() -> None:
    scene = Scene(shared=True, replaying=True)
    client = FakeSubscriber(scene.hub)
    client.congested = True
    scene.hub.join(client)
    scene.publish_with_ids(*ids(1, 2))
    scene.hub.end_replay()
    client.drain()
    scene.turns.settle()
    scene.publish_with_ids(*ids(3))
    assert [message["data"]["n"] for message in messages(client.received)] == [3]


def test_client_that_is_ahead_waits_until_its_update_arrives() -> None:
    scene = Scene(shared=True)
    scene.publish_with_ids(*ids(1))
    client = scene.join(str(ids(3)[0]))
    scene.publish_with_ids(*ids(2))
    scene.turns.settle()
    assert client.writes == []
    assert len(scene.hub) == 1
    scene.publish_with_ids(*ids(3, 4))
    scene.turns.settle()
    assert messages(client.received) == [resumed(True, 1, str(ids(3)[0])), with_id(4, tag=1004)]


def test_client_that_is_ahead_of_everything_gets_an_incomplete_resume_at_the_second_tick() -> None:
    scene = Scene(shared=True)
    scene.publish_with_ids(*ids(1))
    client = scene.join("99-00000001")
    assert scene.hub.pending == 1
    scene.hub.tick()
    assert client.writes == []
    scene.hub.tick()
    assert scene.hub.pending == 0
    scene.turns.settle()
    assert messages(client.received)[0]["data"]["complete"] is False
    scene.hub.tick()


def test_client_whose_update_arrives_before_the_second_tick_does_not_get_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live_set, "GROUP_SOCKETS", 1)
    with closing(Scene(shared=True)) as scene:
        for _ in range(2):
            scene.join_with_socket()
        scene.publish_with_ids(*ids(1))
        client = scene.join(str(ids(3)[0]))
        scene.hub.tick()
        scene.turn.steps = 1
        scene.publish_with_ids(*ids(2))
        scene.publish_with_ids(*ids(3))
        scene.hub.tick()
        assert scene.hub.pending == 1
        scene.turns.settle()
        assert messages(client.received) == [resumed(True, 0, str(ids(3)[0]))]


def test_no_wait_ends_while_the_source_is_not_live() -> None:
    scene = Scene(shared=True)
    client = scene.join("99-00000001")
    scene.hub.tick()
    scene.source.is_live = False
    for _ in range(5):
        scene.hub.tick()
    scene.source.is_live = True
    scene.hub.tick()
    assert client.writes == []
    scene.hub.tick()
    scene.turns.settle()
    assert messages(client.received)[0]["data"]["complete"] is False


def test_client_that_leaves_while_it_waits_is_forgotten() -> None:
    scene = Scene(shared=True)
    client = scene.join("99-00000001")
    scene.hub.tick()
    scene.hub.leave(client)
    scene.hub.tick()
    scene.turns.settle()
    assert client.writes == []
    assert len(scene.hub) == 0


def test_pending_client_is_closed_when_the_bridge_stops() -> None:
    scene = Scene(shared=True, replaying=True)
    client = scene.join("99-00000001")
    scene.hub.drain(ignore)
    assert client.closed is CloseReason.STOPPING


def test_client_that_resumes_when_the_bridge_stops_gets_everything_before_it_is_closed(scene: Scene) -> None:
    scene.publish(*"a" * 50, size=1000)
    client, live_one = scene.join("1-0000abcd"), scene.join("")
    scene.turns.turn()
    late = scene.join("1-0000abcd", Only("a"))
    scene.hub.drain(ignore)
    assert live_one.closed is CloseReason.STOPPING
    assert late.closed is CloseReason.STOPPING, "the client has received nothing yet, so it misses nothing"
    scene.turns.settle()
    assert len(messages(client.received)) == 50
    assert client.closed is CloseReason.STOPPING


def test_id_without_an_update_is_not_sent_and_clients_can_resume_after_it() -> None:
    scene = Scene(shared=True)
    plain, with_ids = scene.join(), scene.join("")
    scene.hub.record_id(UpdateId(7, 77))
    new = scene.join("")
    assert messages(new.received) == [resumed(True, 0, "7-0000004d")]
    scene.publish_with_ids(*ids(8))
    back = scene.join("7-0000004d")
    scene.turns.settle()
    assert messages(back.received) == [resumed(True, 1, "7-0000004d"), with_id(8, tag=1008)]
    assert len(messages(plain.received)) == 1
    assert len(messages(with_ids.received)) == 2
    assert scene.metrics.written == 3


@pytest.mark.parametrize(("before", "size"), [(SEGMENT_UPDATES, 0), (1, 70_000)])
def test_gap_that_begins_a_segment_is_sent_to_a_client_that_resumes_before_it(before: int, size: int) -> None:
    with closing(Scene(shared=True)) as scene:
        for number in range(before):
            scene.hub.publish(update(number, size=size), ("a", {}), ids(number)[0])
        scene.hub.send_own_message(gap(), ids(before)[0]._replace(before=True))
        scene.publish_with_ids(*ids(before))
        client = scene.join(str(ids(before - 1)[0]))
        scene.turns.settle()
        assert [message["type"] for message in messages(client.received)] == ["resume", "gap", "a"]


def test_recreated_stream_may_begin_with_the_last_sequence() -> None:
    scene = Scene(shared=True)
    scene.publish_with_ids(UpdateId(0, 1))
    scene.publish_with_ids(UpdateId(0, 2), UpdateId(1, 3))
    for after, behind in (("0-00000001", 2), ("0-00000002", 1)):
        client = scene.join(after)
        scene.turns.settle()
        assert messages(client.received)[0] == resumed(True, behind, after)


def test_known_id_of_the_previous_stream_is_answered_at_once() -> None:
    scene = Scene(shared=True)
    scene.publish_with_ids(*ids(1000, 1001))
    scene.publish_with_ids(UpdateId(0, 2))
    client = scene.join(str(ids(1000)[0]))
    scene.turns.settle()
    assert [message["type"] for message in messages(client.received)] == ["resume", "a", "a"]


def test_many_pending_clients_begin_a_few_in_a_turn() -> None:
    scene = Scene(shared=True, replaying=True)
    clients = [scene.join("") for _ in range(3 * MAX_RELEASES_PER_TURN)]
    scene.hub.end_replay()
    scene.hub.flush()
    assert sum(bool(client.writes) for client in clients) == MAX_RELEASES_PER_TURN
    scene.turns.settle()
    assert all(len(messages(client.received)) == 1 for client in clients)


def test_each_waits_for_its_own_update() -> None:
    scene = Scene(shared=True)
    clients = [scene.join(str(each)) for each in ids(9, 3, 6)]
    scene.publish_with_ids(*ids(1, 3, 4))
    scene.turns.settle()
    assert [bool(client.writes) for client in clients] == [False, True, False]
    scene.publish_with_ids(*ids(6, 9))
    scene.turns.settle()
    assert [len(messages(client.received)) for client in clients] == [1, 4, 2]
    assert scene.hub.pending == 0


def test_many_clients_with_unknown_ids_begin_a_few_in_a_turn() -> None:
    scene = Scene(shared=True)
    clients = [scene.join(f"{10**9 + number}-00000001") for number in range(3 * MAX_RELEASES_PER_TURN)]
    scene.hub.tick()
    scene.hub.tick()
    assert scene.hub.pending == 2 * MAX_RELEASES_PER_TURN
    scene.turns.settle()
    assert all(messages(client.received)[0]["data"]["complete"] is False for client in clients)


def test_client_that_fails_after_its_wait_is_closed_and_the_others_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(shared=True, replaying=True)
    clients = [scene.join(""), scene.join("3-00000001"), scene.join("")]
    scene.publish_with_ids(*ids(1, 2))
    monkeypatch.setattr(scene.index, "after", Mock(side_effect=RuntimeError("a fault")))
    scene.hub.end_replay()
    scene.hub.tick()
    scene.hub.tick()
    scene.turns.settle()
    assert [client.closed for client in clients] == [None, CloseReason.INTERNAL, None]
    assert [client.state for client in clients] == [State.LIVE, State.CLOSED, State.LIVE]
    assert len(scene.hub) == 2


def test_ids_without_an_update_evict_nothing_that_is_not_flushed() -> None:
    scene = Scene(log_bytes=40_000, shared=True)
    client = scene.join()
    scene.hub.publish(update(1, size=39_000), ("a", {}), UpdateId(1, 1))
    for number in range(2, 1000):
        scene.hub.record_id(UpdateId(number, 1))
    scene.hub.flush()
    scene.turns.settle()
    assert [message["data"]["n"] for message in messages(client.received)] == [1]


def test_own_messages_count_for_the_bound_of_the_log() -> None:
    scene = Scene(log_bytes=40_000)
    for _ in range(1000):
        scene.hub.send_own_message(gap("." * 500))
    kept = sum(len(frame) for segment in scene.index._segments for frame in segment.own_messages.values())
    assert kept < 40_000 + SEGMENT_BYTES
    assert scene.index.update_log.size_bytes <= 40_000
    scene.publish(*"a" * 300)
    assert scene.index.update_log._extra_bytes == {}


def test_client_that_drains_repeatedly_gets_one_piece_in_a_turn(scene: Scene) -> None:
    slow = scene.join(full=True)
    scene.publish(*"a" * 300, size=2000)
    for _ in range(5):
        slow.congested = True
        slow.drain()
        slow.drain()
        before = len(slow.writes)
        scene.turns.turn()
        assert len(slow.writes) == before + 1


def test_flush_of_updates_and_ids_alone_shows_only_updates() -> None:
    scene = Scene(shared=True)
    plain, filtered, with_ids = scene.join(), scene.join(None, Only("a")), scene.join("")
    scene.hub.record_id(UpdateId(1, 1))
    scene.hub.publish(update(2), ("a", {}), UpdateId(2, 2))
    scene.hub.record_id(UpdateId(3, 3))
    scene.hub.publish(update(4, "b"), ("b", {}), UpdateId(4, 4))
    scene.hub.flush()
    assert [len(messages(each.received)) for each in (plain, filtered, with_ids)] == [2, 1, 3]
    assert scene.metrics.written == 5


def test_updates_that_were_not_replayed_are_not_counted_as_dropped(scene: Scene) -> None:
    scene.publish(*"a" * 500)
    for _ in range(10):
        scene.hub.leave(scene.join("0-0000abcd", full=True))
    assert (scene.metrics.dropped, scene.metrics.enqueued, scene.metrics.replayed) == (0, 0, 0)
    scene.join("0-0000abcd")
    scene.turns.settle()
    assert scene.metrics.replayed == 500


def test_connection_that_raises_unexpectedly_does_not_delay_those_after_it(scene: Scene) -> None:
    scene.publish("a")
    bad, good = scene.join("0-0000abcd", Raising()), scene.join("0-0000abcd", Only("a"))
    scene.turns.settle()
    assert bad.closed is CloseReason.INTERNAL
    assert len(messages(good.received)) == 2
    assert len(scene.hub) == 1


def test_ids_of_a_recreated_stream_are_distinguished() -> None:
    scene = Scene(shared=True)
    scene.publish_with_ids(*ids(1, 2, 3))
    scene.publish_with_ids(UpdateId(0, 500), UpdateId(1, 501), UpdateId(2, 502))
    new, old = scene.join("1-000001f5"), scene.join(str(ids(2)[0]))
    scene.turns.settle()
    assert [each["id"] for each in messages(new.received)[1:]] == ["2-000001f6"]
    assert [each["id"] for each in messages(old.received)[1:]] == [
        str(ids(3)[0]),
        "0-000001f4",
        "1-000001f5",
        "2-000001f6",
    ]


# The position and the count in one client's `resume`


PAYLOAD = envelope.wrap("a", 1, NOW_MS)


@dataclass(frozen=True, slots=True)
class Everything:
    """A filter that matches every update."""

    def matches(self, update_type: str, data: object) -> bool:
        return True


class ResumeScene:
    """A hub and a `Resume` on the hub's log.

    The test runs the turns of the event loop, and calls the `Resume` directly.
    """

    def __init__(self, room: int = 10_000, *, tag: int | None = TAG, replaying: bool = False) -> None:
        """`room` is the number of updates that the log holds."""
        self.scene = Scene(room * (ENTRY_BYTES + len(PAYLOAD) + 2), shared=tag is None, replaying=replaying)
        self.turns, self.index, self.hub = self.scene.turns, self.scene.index, self.scene.hub
        self.resumed: list[tuple[bool, int]] = []
        self.resume = Resume(
            self.index,
            lambda: NOW_MS,
            self.turns.call_soon,
            lambda client, event: None,
            # A real hub would flush at this point. Even without this flush, no client's cursor may be after the flushed
            # position.
            lambda: None,
            lambda _, *resumed: self.resumed.append(resumed),
            ignore,
        )

    @property
    def flushed(self) -> int:
        return self.index.update_log.flushed

    def begin(self, client: FakeSubscriber, update_filter: UpdateFilter | None, after: str) -> None:
        client.subscription = Subscriptions(self.index).join(update_filter, Form.TEXT_WITH_ID)
        self.resume._begin(client, asking(after, update_filter))

    def publish(self, count: int) -> None:
        for _ in range(count):
            update_id = None if self.index._tag is not None else UpdateId(self.index.update_log.head + 1, TAG)
            self.hub.publish(PAYLOAD, update_id=update_id)
        self.hub.flush()

    def message(self, client: FakeSubscriber) -> dict[str, object] | None:
        """Returns the data of a client's `resume`, or None if the updates have not all been counted yet."""
        frame = self.resume.next_message(client)
        if frame is None:
            return None
        self.resume.forget(client)
        [(_, payload)] = server_frames(frame)
        data: dict[str, object] = orjson.loads(payload)["data"]
        return data


def test_resume_message_follows_when_all_segments_are_counted() -> None:
    bridge = ResumeScene()
    bridge.publish(3 * SEGMENT_UPDATES)
    client = FakeSubscriber(bridge.hub)
    bridge.begin(client, Everything(), str(UpdateId(10, TAG)))
    assert [bridge.message(client) for _ in range(2)] == [None, None]
    assert client in bridge.resume
    count = 3 * SEGMENT_UPDATES - 10
    assert bridge.message(client) == {"complete": True, "replayed": count, "id": str(UpdateId(10, TAG))}
    assert bridge.resumed == [(True, count)]
    assert client not in bridge.resume


def test_client_overtaken_during_its_count_begins_again_once_and_then_at_the_head() -> None:
    room = 3 * SEGMENT_UPDATES
    bridge = ResumeScene(room)
    bridge.publish(room)
    client = FakeSubscriber(bridge.hub)
    bridge.begin(client, Everything(), str(UpdateId(1, TAG)))
    assert bridge.message(client) is None
    bridge.publish(room)
    assert bridge.message(client) is None
    log = bridge.index.update_log
    assert log.tail <= client.cursor < log.head, "the client begins again at the oldest update"
    bridge.publish(room)
    assert bridge.message(client) == {"complete": False, "replayed": 0, "id": str(UpdateId(log.head, TAG))}
    assert client.cursor == log.head
    assert bridge.resumed == [(False, 0)]


def test_resume_message_of_an_overtaken_client_counts_only_the_updates_that_it_gets() -> None:
    room = 3 * SEGMENT_UPDATES
    bridge = ResumeScene(room)
    bridge.publish(room)
    client = FakeSubscriber(bridge.hub)
    bridge.begin(client, Everything(), str(UpdateId(1, TAG)))
    assert bridge.message(client) is None
    bridge.publish(100)
    data = None
    while data is None:
        data = bridge.message(client)
    assert data == {
        "complete": False,
        "replayed": bridge.index.update_log.head - client.cursor,
        "id": str(UpdateId(client.cursor, TAG)),
    }


def test_client_that_is_forgotten_is_counted_no_more() -> None:
    bridge = ResumeScene()
    client = FakeSubscriber(bridge.hub)
    bridge.begin(client, None, "")
    assert list(bridge.resume) == [client]
    bridge.resume.forget(client)
    assert list(bridge.resume) == []


def test_clients_that_resume_without_new_updates_count_as_work_too() -> None:
    bridge = ResumeScene()
    bridge.publish(1)
    clients = [FakeSubscriber(bridge.hub) for _ in range(2 * TURN_BUDGETS_BYTES[RETURNING] // MIN_COST_BYTES)]
    for client in clients:
        bridge.hub.join(client, asking(str(UpdateId(1, TAG))), Form.TEXT_WITH_ID)
    bridge.turns.turn()
    assert sum(bool(client.writes) for client in clients) == TURN_BUDGETS_BYTES[RETURNING] // MIN_COST_BYTES
    bridge.turns.settle()
    assert all(len(client.writes) == 1 for client in clients)


@pytest.mark.parametrize("state", ["live", "live with ids", "lagging", "congested", "counting", "due", "pending"])
@pytest.mark.parametrize("filtered", [False, True])
def test_client_that_left_is_garbage_collected(state: str, *, filtered: bool) -> None:
    bridge = ResumeScene(tag=None)
    bridge.publish(3 * SEGMENT_UPDATES)
    client = FakeSubscriber(bridge.hub)
    client.congested = state == "congested"
    client.full = state == "lagging"
    old, ahead = str(UpdateId(1, TAG)), str(UpdateId(10**6, TAG))
    after = {"live with ids": "", "counting": old, "due": old, "pending": ahead}.get(state)
    bridge.hub.join(
        client,
        asking(after, Everything() if filtered else None),
        Form.TEXT if after is None else Form.TEXT_WITH_ID,
    )
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


@pytest.mark.parametrize("after", ["", str(UpdateId(2, TAG)), str(UpdateId(99, TAG))], ids=["new", "ahead", "unknown"])
def test_cursor_is_never_after_the_flushed_position(after: str) -> None:
    bridge = ResumeScene(tag=None)
    bridge.publish(1)
    bridge.hub.publish(PAYLOAD, update_id=UpdateId(2, TAG))
    bridge.hub.publish(PAYLOAD, update_id=UpdateId(1, TAG))
    client = FakeSubscriber(bridge.hub)
    bridge.begin(client, None, after)
    assert client.cursor <= bridge.flushed
    data = bridge.message(client)
    assert data is not None
    assert data["replayed"] == bridge.flushed - client.cursor


def test_client_overtaken_before_a_flush_begins_no_later_than_the_unflushed_updates() -> None:
    bridge = ResumeScene(8, tag=None)
    bridge.publish(8)
    client = FakeSubscriber(bridge.hub)
    bridge.begin(client, Everything(), str(UpdateId(1, TAG)))
    bridge.hub.flush()
    # Each update begins a new segment, because its sequence number is lower than the previous update's.
    for number in range(4):
        bridge.hub.publish(PAYLOAD, update_id=UpdateId(100 - number, TAG))
    assert client.cursor < bridge.index.update_log.tail <= bridge.flushed
    assert bridge.message(client) is not None
    assert bridge.resumed[0][1] == bridge.flushed - client.cursor


def test_clients_that_begin_in_a_later_turn_get_unflushed_updates_as_new() -> None:
    bridge = ResumeScene(tag=None, replaying=True)
    clients = [FakeSubscriber(bridge.hub) for _ in range(3 * resume_module.MAX_RELEASES_PER_TURN)]
    for client in clients:
        bridge.hub.join(client, asking(""), Form.TEXT_WITH_ID)
    bridge.hub.end_replay()
    bridge.hub.publish(PAYLOAD, update_id=UpdateId(1, TAG))
    bridge.turns.settle()
    bridge.hub.flush()
    for client in clients:
        resume, *updates = messages(client.received)
        assert resume["data"]["replayed"] == 0
        assert len(updates) == (resume["data"]["id"].startswith("before-"))


def test_client_with_an_unflushed_update_does_not_get_it_again() -> None:
    bridge = ResumeScene(tag=None)
    client = FakeSubscriber(bridge.hub)
    bridge.hub.join(client, asking(str(UpdateId(2, TAG))), Form.TEXT_WITH_ID)
    for number in (1, 2, 3):
        bridge.hub.publish(PAYLOAD, update_id=UpdateId(number, TAG))
    bridge.hub.tick()
    bridge.turns.settle()
    bridge.hub.flush()
    resume, *updates = messages(client.received)
    assert resume["data"] == {"complete": True, "replayed": 1, "id": str(UpdateId(2, TAG))}
    assert [update["id"] for update in updates] == [str(UpdateId(3, TAG))]


# Clients that wait for an update that arrives later


AHEAD = asking("99-00000001")


def client() -> Subscriber:
    """Returns a plain object in place of a client, because these tests use only the identity of a client."""
    return cast("Subscriber", object())


class CountingIndex(ReplayIndex):
    """An index that counts the calls of `is_ahead`."""

    def __init__(self) -> None:
        super().__init__(UpdateLog(2**20))
        self.asked = 0

    def is_ahead(self, sought: UpdateId) -> bool:
        self.asked += 1
        return super().is_ahead(sought)

    def append_sequences(self, *numbers: int) -> None:
        for number in numbers:
            self.append(b"frame", UpdateId(number, 1))
        self.update_log.skip()


@pytest.fixture
def index() -> CountingIndex:
    return CountingIndex()


@pytest.fixture
def pending(index: CountingIndex) -> PendingResumes:
    return PendingResumes(index, replaying=False)


def test_client_stays_pending_when_the_source_goes_away_between_two_ticks(pending: PendingResumes) -> None:
    one = client()
    assert pending.defer(one, AHEAD)
    pending.tick(source_is_live=True)
    pending.tick(source_is_live=False)
    assert pending.ready() == []
    pending.tick(source_is_live=True)
    assert pending.ready() == [], "a tick without a source starts the wait again"
    pending.tick(source_is_live=True)
    assert pending.ready() == [(one, AHEAD)]
    assert len(pending) == 0


def test_client_waits_after_the_ticks_for_the_flush_of_an_update_that_has_arrived(
    pending: PendingResumes, index: CountingIndex
) -> None:
    one = client()
    assert pending.defer(one, AHEAD)
    pending.tick(source_is_live=True)
    index.append(b"frame", UpdateId(99, 1))
    pending.tick(source_is_live=True)
    assert pending.ready() == []
    index.update_log.skip()
    assert pending.ready() == [(one, AHEAD)]


def test_ticks_do_not_count_while_older_updates_are_read_back(index: CountingIndex) -> None:
    pending = PendingResumes(index, replaying=True)
    one = client()
    assert pending.defer(one, AHEAD)
    pending.tick(source_is_live=True)
    pending.end_replay()
    assert pending.ready() == []
    pending.tick(source_is_live=True)
    assert pending.ready() == []
    pending.tick(source_is_live=True)
    assert pending.ready() == [(one, AHEAD)]


def test_client_that_is_forgotten_is_never_ready(pending: PendingResumes) -> None:
    gone, stays = client(), client()
    for each in (gone, stays):
        assert pending.defer(each, AHEAD)
    pending.tick(source_is_live=True)
    pending.forget(gone)
    assert list(pending) == [stays]
    pending.tick(source_is_live=True)
    assert pending.ready() == [(stays, AHEAD)]
    pending.forget(stays)


@pytest.mark.parametrize("after", ["nonsense", ""])
def test_client_with_a_malformed_or_empty_id_does_not_wait(pending: PendingResumes, after: str) -> None:
    assert not pending.defer(client(), asking(after))


def test_each_client_is_ready_as_soon_as_its_own_update_arrives(pending: PendingResumes, index: CountingIndex) -> None:
    index.append_sequences(1)
    clients = {number: client() for number in (9, 3, 6)}
    for number, each in clients.items():
        assert pending.defer(each, asking(f"{number}-00000001"))
    for number in (3, 6, 9):
        index.append_sequences(number - 1)
        assert pending.ready() == []
        index.append_sequences(number)
        assert pending.ready() == [(clients[number], asking(f"{number}-00000001"))]


def test_clients_are_not_searched_before_an_awaited_update_may_have_arrived(
    pending: PendingResumes, index: CountingIndex
) -> None:
    for number in (50, 60):
        assert pending.defer(client(), asking(f"{number}-00000001"))
    index.asked = 0
    for number in range(1, 50):
        index.append_sequences(number)
        assert pending.ready() == []
    assert index.asked == 0
    index.append_sequences(50)
    assert len(pending.ready()) == 1
    asked = index.asked
    index.append_sequences(*range(51, 60))
    assert pending.ready() == []
    assert index.asked == asked


# Any order of events


LOG_BYTES = 60_000

FILTERS = (None, Only("a"), Only("b"))


class ModelClient:
    """A client that can resume on any of the bridges. It sends the last id that it received."""

    def __init__(self, wanted: Only | None) -> None:
        self.wanted = wanted
        self.last = ""
        self.numbers: list[int] = []
        """The updates that the client has received since its last incomplete `resume`."""
        self.begin: float | None = None
        """The client must receive all updates after this place in the stream.

        `begin` is None if no id determines where the client's updates begin.
        """
        self.connection: FakeSubscriber | SocketSubscriber | None = None
        self.bridge = 0
        self.seen = 0
        self.place: float | None = None
        """The place in the stream of the last id that the client has received on its current connection.

        An id from before an entry has the place of this entry, minus a half. `place` is None if no id determines it.
        """
        self.gaps: list[str] = []
        """The reasons for the gaps that the client has received since its last update or `resume`."""
        self.before = 0
        """The number of gaps that the bridge had sent when the client joined for the first time.

        A client does not receive gaps that the bridge sent before the client joined.
        """

    def look(self, bridge: Bridge, index: dict[str, float], stream: list[tuple[UpdateId, str]]) -> None:
        """Reads the messages that the client has received from a bridge."""
        if self.connection is None:
            return
        received = all_messages(self.connection.received)
        for message in received[self.seen :]:
            if message["type"] == "resume":
                assert self.seen == 0
                asked, self.last = self.last, message["data"]["id"]
                self.place, self.gaps = index.get(self.last), []
                if not message["data"]["complete"]:
                    self.numbers, self.begin, self.place = [], None, None
                elif asked == "":
                    self.numbers, self.begin = [], self.place
                else:
                    # If the id in `resume` is newer than the client's id, no update between the two ids may match the
                    # client's filter.
                    assert self.place is not None
                    assert self.wants(between(stream, index[asked], self.place)) == []
            elif message["type"] == "gap":
                self.gaps.append(message["data"]["reason"])
                self.last = message["data"]["id"]
                self.advance(index[self.last], bridge, stream)
            elif message["type"] == "heartbeat":
                self.last = message["data"]["id"]
                self.advance(index[self.last], bridge, stream)
            else:
                assert self.seen > 0, "the resume message comes first"
                self.last = message["id"]
                number = message["data"]["n"]
                self.numbers.append(number)
                self.advance(number, bridge, stream)
            self.seen += 1

    def advance(self, place: float, bridge: Bridge, stream: list[tuple[UpdateId, str]]) -> None:
        """Checks that the client has got everything up to a place."""
        if self.place is not None:
            expected = [reason for at, reason in bridge.gaps[self.before :] if self.place < at <= place]
            assert self.gaps == expected, "a gap is sent in order with the updates"
            missed = self.wants(between(stream, self.place, place))
            assert missed in ([], [stream[int(place)][0]]), "an id is not sent before the updates up to it"
        self.place, self.gaps = place, []

    def wants(self, part: list[tuple[UpdateId, str]]) -> list[UpdateId]:
        return [each for each, kind in part if kind in ("a", "b") and self.wanted in (None, Only(kind))]

    def check(self, stream: list[tuple[UpdateId, str]]) -> list[int]:
        """Checks that the client has received the updates after `begin` in order, and none of them twice.

        Returns the updates that the client must still receive.
        """
        wanted = [place for place, (each, kind) in enumerate(stream) if self.wants([(each, kind)])]
        begin = self.begin
        if begin is None:
            if not self.numbers:
                return []
            begin = self.numbers[0] - 1
        wanted = [place for place in wanted if place > begin]
        assert self.numbers == wanted[: len(self.numbers)], "each update is received once and in order"
        return wanted[len(self.numbers) :]


def between(stream: list[tuple[UpdateId, str]], start: float, end: float) -> list[tuple[UpdateId, str]]:
    """Returns the entries after the place `start`, up to and including the place `end`."""
    return stream[floor(start) + 1 : floor(end) + 1]


@dataclass(slots=True)
class Bridge:
    """One of the bridges, which all read the same stream."""

    scene: Scene
    fed: int
    """The place in the stream up to which the bridge has read."""
    gaps: list[tuple[float, str]] = field(default_factory=list)
    """For each gap, its place in the stream and its reason."""
    gap_positions: list[int] = field(default_factory=list)
    """The position of each gap in the log."""

    @property
    def flushed_gaps(self) -> int:
        """The number of gaps that are flushed. A client that joins now, without an id, gets only later gaps."""
        return sum(position < self.scene.log.flushed for position in self.gap_positions)


@settings(max_examples=examples(100), stateful_step_count=50)
class AnyOrder(RuleBasedStateMachine):
    """Two bridges that read the same stream and sometimes restart, and clients that move between the bridges."""

    def __init__(self) -> None:
        super().__init__()
        self.stream: list[tuple[UpdateId, str]] = [(UpdateId(0, 0), "marker")]
        self.index = {"0-00000000": 0.0, "before-0-00000000": -0.5}
        self.payloads: dict[int, bytes] = {}
        self.bridges = [self.started(), self.started()]
        self.clients: list[ModelClient] = []
        self._limits = live_set.MIN_BATCHED_SOCKETS, replay.SEGMENT_UPDATES, join_storm.MAX_JOINS
        self._group = live_set.GROUP_SOCKETS, live_set.ENCRYPTED_BYTES

    def started(self) -> Bridge:
        bridge = Bridge(Scene(LOG_BYTES, shared=True, replaying=True, storms=True), max(0, len(self.stream) - 200))
        self.feed_to(bridge, len(self.stream))
        bridge.scene.hub.end_replay()
        return bridge

    def feed_to(self, bridge: Bridge, end: int) -> None:
        for place in range(bridge.fed, end):
            each, kind = self.stream[place]
            if kind == "gap marker":
                reason = f"gap marker {place}"
                bridge.gaps.append((place, reason))
                bridge.gap_positions.append(bridge.scene.log.head)
                bridge.scene.hub.send_own_message(gap(reason), each)
            elif kind in ("marker", "gap marker"):
                bridge.scene.hub.record_id(each)
            elif kind in ("a", "b"):
                bridge.scene.hub.publish(self.payloads[place], (kind, {}), each)
        bridge.fed = max(bridge.fed, end)

    @initialize(
        many=st.sampled_from([1, 3, 1000]),
        segment=st.sampled_from([1, 3, 256]),
        group=st.sampled_from([1, 3, 512]),
        joins=st.sampled_from([1, 3, 512]),
    )
    def limits_are_small_or_large(self, many: int, segment: int, group: int, joins: int) -> None:
        live_set.MIN_BATCHED_SOCKETS, replay.SEGMENT_UPDATES, join_storm.MAX_JOINS = many, segment, joins
        live_set.GROUP_SOCKETS, live_set.ENCRYPTED_BYTES = group, group * 1000

    @rule(which=st.integers(0, 1), steps=st.sampled_from([None, 1, 2, 5]))
    def end_turns_after(self, which: int, steps: int | None) -> None:
        self.bridges[which].scene.turn.steps = steps

    @rule(
        kind=st.sampled_from(["a", "b", "marker", "gap marker", "rejected"]),
        times=st.integers(1, 12),
        size=st.integers(0, 5000),
    )
    def publish(self, kind: str, times: int, size: int) -> None:
        for _ in range(times):
            place = len(self.stream)
            each = UpdateId(2 * place, place * 7919 % 2**32)
            self.stream.append((each, kind))
            self.index[str(each)], self.index[str(each._replace(before=True))] = place, place - 0.5
            self.payloads[place] = update(place, kind, size)

    @rule(which=st.integers(0, 1), count=st.integers(1, 30), flush=st.booleans())
    def feed(self, which: int, count: int, *, flush: bool) -> None:
        bridge = self.bridges[which]
        self.feed_to(bridge, min(len(self.stream), bridge.fed + count))
        if flush:
            bridge.scene.hub.flush()

    @rule(which=st.integers(0, 1))
    def restart(self, which: int) -> None:
        for client in self.clients:
            if client.bridge == which:
                self.part(client)
        self.bridges[which].scene.close()
        self.bridges[which] = self.started()

    @rule(update_filter=st.sampled_from(FILTERS))
    def arrive(self, update_filter: Only | None) -> None:
        if len(self.clients) < 6:
            self.clients.append(ModelClient(update_filter))

    @rule(
        number=st.integers(0, 5),
        which=st.integers(0, 1),
        room_bytes=st.sampled_from([0, 1, 10_000, None]),
        full=st.booleans(),
    )
    def connect(self, number: int, which: int, room_bytes: int | None, *, full: bool) -> None:
        for client in self.clients[number : number + 1]:
            self.part(client)
            scene = self.bridges[which].scene
            client.bridge, client.seen = which, 0
            if room_bytes == 0:
                client.connection = scene.join(client.last, client.wanted, full=full)
            else:
                client.connection = scene.join_with_socket(room_bytes, after=client.last, wanted=client.wanted)
            client.before = 0 if client.last else self.bridges[which].flushed_gaps

    def look(self, client: ModelClient) -> None:
        client.look(self.bridges[client.bridge], self.index, self.stream)

    def part(self, client: ModelClient) -> None:
        self.look(client)
        if client.connection is not None:
            client.connection.hub.leave(client.connection)
        client.connection = None

    @rule(number=st.integers(0, 5))
    def disconnect(self, number: int) -> None:
        for client in self.clients[number : number + 1]:
            self.part(client)

    @rule(number=st.integers(0, 5), max_bytes=st.sampled_from([1, 100, 5000, 1_000_000]))
    def read(self, number: int, max_bytes: int) -> None:
        for client in self.clients[number : number + 1]:
            if isinstance(client.connection, SocketSubscriber):
                client.connection.read(max_bytes)

    @rule(number=st.integers(0, 5), full=st.booleans())
    def drain(self, number: int, *, full: bool) -> None:
        for client in self.clients[number : number + 1]:
            if client.connection is not None and client.connection.congested:
                client.connection.drain(full=full)

    @rule(which=st.integers(0, 1))
    def turn(self, which: int) -> None:
        self.bridges[which].scene.turns.turn()

    @rule(which=st.integers(0, 1))
    def end_window(self, which: int) -> None:
        self.bridges[which].scene.turns.end_timers()

    @rule(which=st.integers(0, 1))
    def gap(self, which: int) -> None:
        # A bridge reports a gap before the next entry that it reads.
        bridge = self.bridges[which]
        if bridge.fed < len(self.stream):
            reason = f"gap {len(bridge.gaps)}"
            bridge.gaps.append((bridge.fed - 0.5, reason))
            bridge.gap_positions.append(bridge.scene.log.head)
            bridge.scene.hub.send_own_message(gap(reason), self.stream[bridge.fed][0]._replace(before=True))
            self.feed_to(bridge, bridge.fed + 1)

    @invariant()
    def no_client_misses_an_update(self) -> None:
        for client in self.clients:
            self.look(client)
            client.check(self.stream)

    def teardown(self) -> None:
        live_set.MIN_BATCHED_SOCKETS, replay.SEGMENT_UPDATES, join_storm.MAX_JOINS = self._limits
        live_set.GROUP_SOCKETS, live_set.ENCRYPTED_BYTES = self._group
        for bridge in self.bridges:
            self.feed_to(bridge, len(self.stream))
            bridge.scene.hub.flush()
        for client in self.clients:
            if client.connection is None or client.connection.closed is not None:
                self.part(client)
                client.seen = 0
                client.connection = self.bridges[0].scene.join(client.last, client.wanted)
                client.before = 0 if client.last else self.bridges[0].flushed_gaps
                client.bridge = 0
        for _ in range(300):
            for bridge in self.bridges:
                bridge.scene.turns.end_timers()
                bridge.scene.turns.settle()
            for client in self.clients:
                connection = client.connection
                assert connection is not None
                if isinstance(connection, SocketSubscriber):
                    connection.read()
                if connection.congested:
                    connection.drain()
        for client in self.clients:
            self.look(client)
            assert client.seen > 0
            if client.connection is not None and client.connection.closed is None:
                assert client.check(self.stream) == []
        for bridge in self.bridges:
            assert bridge.scene.hub.lagging == 0
            bridge.scene.close()


test_each_client_receives_each_update_once_and_in_order_or_an_incomplete_resume = AnyOrder.TestCase


@dataclass(frozen=True, slots=True)
class Even:
    """A filter that matches half of the updates."""

    def matches(self, update_type: str, data: object) -> bool:
        assert isinstance(data, int)
        return data % 2 == 0


@settings(max_examples=examples(60), stateful_step_count=40)
class AnyTurn(RuleBasedStateMachine):
    """Updates, markers, gaps and clients arrive in any order, with and without flushes in between.

    The data of an update is its position in the log. The time in a `resume` message is the position up to which updates
    had been flushed when the message was made. A `resume` must count the updates whose data is less than the time in
    this `resume`.
    """

    @initialize(
        room=st.sampled_from([4, 40, 4000]),
        replaying=st.booleans(),
        at_once=st.sampled_from([1, 2, 64]),
        segment=st.sampled_from([1, 3, 256]),
    )
    def start(self, room: int, at_once: int, segment: int, *, replaying: bool) -> None:
        self.scene = Scene(
            room * (ENTRY_BYTES + len(PAYLOAD) + 2),
            shared=True,
            replaying=replaying,
            now_ms=lambda: self.scene.log.flushed,
        )
        self.turns, self.log, self.hub = self.scene.turns, self.scene.log, self.scene.hub
        self.clients: list[tuple[FakeSubscriber, int]] = []
        """The clients.

        Each client is paired with the position that follows the id that it sent, or with 0 if it sent no id.
        """
        self._limits = resume_module.MAX_RELEASES_PER_TURN, replay.SEGMENT_UPDATES
        resume_module.MAX_RELEASES_PER_TURN, replay.SEGMENT_UPDATES = at_once, segment

    @rule(kinds=st.lists(st.sampled_from(["update", "update", "marker", "gap"]), min_size=1, max_size=6))
    def publish(self, kinds: list[str]) -> None:
        for kind in kinds:
            position = self.log.head
            if kind == "update":
                self.hub.publish(envelope.wrap("a", position, NOW_MS), ("a", position), UpdateId(position + 1, TAG))
            elif kind == "marker":
                self.hub.record_id(UpdateId(position + 1, TAG))
            else:
                self.hub.send_own_message(gap(), UpdateId(position + 1, TAG))

    @rule(name=st.sampled_from(["flush", "end_replay"]))
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
        """`back` says how many positions the client's id is behind the newest position.

        If `back` is negative, the client's id belongs to an update that is not published yet. `back` is None for a
        client without an id.
        """
        position = 0 if back is None else max(0, self.log.head - back)
        for _ in range(times):
            client = FakeSubscriber(self.hub)
            client.congested = full
            self.clients.append((client, position))
            after = "" if back is None else str(UpdateId(position, TAG))
            self.hub.join(client, asking(after, wanted), Form.TEXT_WITH_ID)

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
        """Returns how many of the counted updates have reached the client, and the count that its `resume` contains."""
        received = messages(client.received)
        if not received:
            return 0, 0
        resume = received[0]
        assert resume["type"] == "resume"
        positions = [each["data"] for each in received[1:] if each["type"] == "a"]
        assert positions == sorted(set(positions)), "each update is received once, and in order"
        if resume["data"]["complete"]:
            assert all(position >= after for position in positions), "no update is received twice"
        return sum(position < resume["timestamp"] for position in positions), resume["data"]["replayed"]

    @invariant()
    def number_of_replayed_updates_is_never_exceeded_nor_negative(self) -> None:
        for client, after in self.clients:
            got, replayed = self.counted(client, after)
            assert 0 <= got <= replayed

    def teardown(self) -> None:
        resume_module.MAX_RELEASES_PER_TURN, replay.SEGMENT_UPDATES = self._limits
        self.hub.end_replay()
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


test_resume_has_the_exact_number_of_replayed_updates = AnyTurn.TestCase
