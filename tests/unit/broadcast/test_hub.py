"""Tests each rule of the hub, and the results of events in any order.

Each client gets all updates in order, or is closed.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from structlog.testing import capture_logs

from bridge.broadcast import join_storm, live_set
from bridge.broadcast.catch_up import (
    CATCH_UP_BYTES,
    MAX_EVICTIONS_PER_TURN,
    MAX_HELD_BYTES,
    MAX_PARTS_PER_TURN,
    MIN_COST_BYTES,
    RETURNING,
    TURN_BUDGETS_BYTES,
)
from bridge.broadcast.close_reasons import CloseReason
from bridge.broadcast.frames import close_frame, text_frame
from bridge.broadcast.framing import Form, FrameEncoder
from bridge.broadcast.hub import FLUSH_BYTES, TLS_FLUSH_BYTES
from bridge.broadcast.join_storm import MAX_JOINS
from bridge.broadcast.subscriber import State
from bridge.broadcast.update_log import ENTRY_BYTES
from bridge.contract.update_id import UpdateId
from tests.support.examples import examples
from tests.support.fakes import FakeSubscriber, Scene, SocketSubscriber, ignore, update

if TYPE_CHECKING:
    from collections.abc import Iterator

SMALL = b"x" * 58
"""A payload whose frame has 60 bytes."""


FILLER = b"\x8a\x7f" + (100_000).to_bytes(8, "big") + bytes(100_000)
"""A pong that is too large for a socket with a small buffer.

The tests use this pong as an example of bytes that are not updates.
"""

ONE_PIECE = CATCH_UP_BYTES - 4
"""The size of a payload whose frame fits exactly into one piece."""

LITTLE_ROOM = 1
"""The requested buffer size of a socket.

The kernel makes the buffer larger than requested: 4608 bytes. In this buffer, written data takes up more room than its
own size.
"""


TAG = 7


@dataclass(frozen=True, slots=True)
class Only:
    """A filter that matches updates of one type."""

    kind: str

    def matches(self, update_type: str, data: object) -> bool:
        return update_type == self.kind


def apart(stream: bytes) -> tuple[bytes, list[bytes], bytes]:
    """Splits what a client has received into text frames, other frames, and an incomplete frame."""
    texts, others, at, closed = bytearray(), [], 0, False
    while at + 2 <= len(stream):
        start, length = at + 2, stream[at + 1]
        if length > 125:
            start += 2 if length == 126 else 8
            length = int.from_bytes(stream[at + 2 : start], "big")
        end = start + length
        if end > len(stream):
            break
        assert not closed, "a close frame is the last frame"
        if stream[at] == 0x81:
            texts += stream[at:end]
        else:
            others.append(stream[at:end])
            closed = stream[at] == 0x88
        at = end
    return bytes(texts), others, stream[at:]


def read_on(scene: Scene, subscriber: SocketSubscriber) -> None:
    """Reads the client's end of the connection until no bytes are left."""
    while subscriber.read() or subscriber.held:
        subscriber.drain()
        scene.turns.settle()


class RecordingListener:
    """At each flush, records what a client has received so far."""

    def __init__(self) -> None:
        self.subscriber: FakeSubscriber | None = None
        self.seen: list[bytes] = []

    def on_flush(self, flushed: int) -> None:
        assert self.subscriber is not None
        self.seen.append(self.subscriber.received)


@pytest.fixture(params=["each", "many at once"])
def scene(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """Runs each test once for each way of writing to sockets, because all ways must have the same results."""
    monkeypatch.setattr(live_set, "MIN_BATCHED_SOCKETS", 1000 if request.param == "each" else 1)
    with closing(Scene()) as scene:
        yield scene


# Publishing


def test_update_reaches_every_connection_with_the_flush_and_nothing_is_left_for_later(scene: Scene) -> None:
    subscribers = [scene.join() for _ in range(3)]
    with_sockets = [scene.join_with_socket() for _ in range(3)]
    frames = scene.publish(b"update")
    assert all(subscriber.writes == [frames] for subscriber in subscribers)
    assert all(subscriber.read() == frames for subscriber in with_sockets)
    assert not scene.turns.scheduled


def test_nothing_is_written_or_scheduled_before_the_flush(scene: Scene) -> None:
    subscriber, with_socket = scene.join(), scene.join_with_socket()
    scene.hub.publish(b"update")
    assert not scene.turns.scheduled
    assert (subscriber.writes, with_socket.read()) == ([], b"")


def test_updates_of_one_flush_are_sent_in_one_write(scene: Scene) -> None:
    subscriber = scene.join()
    frames = scene.publish(b"a", b"b", b"c")
    assert subscriber.writes == [frames]


def test_each_flush_writes_the_updates_since_the_last_flush(scene: Scene) -> None:
    subscriber, with_socket = scene.join(), scene.join_with_socket()
    frames = [scene.publish(b"a"), scene.publish(b"b")]
    assert subscriber.writes == frames
    assert with_socket.read() == b"".join(frames)


def test_publishing_without_connections_fills_the_log(scene: Scene) -> None:
    scene.publish(b"a", b"b")
    assert len(scene.log) == 2
    assert scene.sends() == (0, 0, 0)


def test_flush_that_finds_nothing_new_writes_nothing(scene: Scene) -> None:
    subscriber, with_socket = scene.join(), scene.join_with_socket()
    scene.hub.flush()
    assert (subscriber.writes, with_socket.read()) == ([], b"")


def test_updates_that_fill_one_write_exactly_wait_for_the_flush(scene: Scene) -> None:
    subscriber = scene.join_with_socket()
    half = b"x" * (FLUSH_BYTES // 2 - 4)
    scene.hub.publish(half)
    scene.hub.publish(half)
    assert subscriber.read() == b""
    scene.hub.flush()
    assert len(subscriber.read()) == FLUSH_BYTES


def test_update_that_no_longer_fits_flushes_the_ones_before_it(scene: Scene) -> None:
    subscriber = scene.join_with_socket()
    half = b"x" * (FLUSH_BYTES // 2 - 4)
    scene.hub.publish(half)
    scene.hub.publish(half)
    scene.hub.publish(b"")
    assert len(subscriber.read()) == FLUSH_BYTES
    scene.hub.flush()
    assert len(subscriber.read()) == 2


def test_flush_is_sent_in_pieces_to_a_connection_without_a_descriptor(scene: Scene) -> None:
    subscriber = scene.join()
    frames = scene.publish(*[b"x" * (CATCH_UP_BYTES // 2 - 4)] * 5)
    assert [len(write) for write in subscriber.writes] == [CATCH_UP_BYTES]
    assert scene.hub.lagging == 1
    scene.turns.turn()
    assert [len(write) for write in subscriber.writes] == [CATCH_UP_BYTES, CATCH_UP_BYTES]
    scene.turns.turn()
    assert subscriber.received == frames
    assert scene.hub.lagging == 0


def test_bound_of_a_write_follows_a_small_log() -> None:
    scene = Scene(log_bytes=4000)
    subscriber = scene.join()
    scene.publish(*[SMALL] * 20)
    assert [len(write) for write in subscriber.writes] == [11 * 60, 9 * 60]


def test_update_larger_than_the_log_is_sent() -> None:
    with closing(Scene(log_bytes=1000)) as scene:
        subscriber, with_socket = scene.join(), scene.join_with_socket()
        frames = scene.publish(SMALL, b"y" * 5000, SMALL)
        assert subscriber.received == with_socket.read() == frames
        assert (subscriber.closed, with_socket.closed) == (None, None)


def test_connection_that_joins_later_gets_only_later_updates(scene: Scene) -> None:
    scene.publish(b"before")
    subscriber, with_socket = scene.join(), scene.join_with_socket()
    frames = scene.publish(b"after")
    assert subscriber.received == with_socket.read() == frames


def test_connection_that_joins_between_an_update_and_its_flush_gets_it(scene: Scene) -> None:
    scene.hub.publish(b"update")
    subscriber, with_socket = scene.join(), scene.join_with_socket()
    scene.hub.flush()
    assert subscriber.received == with_socket.read() == text_frame(b"update")


def test_connection_that_left_gets_nothing_more(scene: Scene) -> None:
    subscriber, other = scene.join(), scene.join()
    with_socket, other_with_socket = scene.join_with_socket(), scene.join_with_socket()
    scene.hub.leave(subscriber)
    scene.hub.leave(with_socket)
    frames = scene.publish(b"update")
    assert (subscriber.writes, with_socket.read()) == ([], b"")
    assert other.received == other_with_socket.read() == frames


def test_connection_that_is_congested_when_it_joins_gets_all_updates_after_the_drain(scene: Scene) -> None:
    scene.publish(b"before")
    subscriber = FakeSubscriber(scene.hub)
    subscriber.congested = True
    scene.hub.join(subscriber)
    frames = scene.publish(b"after")
    assert subscriber.writes == []
    assert (len(scene.hub), scene.hub.lagging) == (1, 1)
    subscriber.drain()
    scene.turns.turn()
    assert subscriber.writes == [frames]


def test_hub_counts_its_connections_and_the_lagging_ones(scene: Scene) -> None:
    assert (len(scene.hub), scene.hub.lagging) == (0, 0)
    ready, slow = scene.join(), scene.join(full=True)
    assert (len(scene.hub), scene.hub.lagging) == (2, 0)
    scene.publish(b"update")
    assert (len(scene.hub), scene.hub.lagging) == (2, 1)
    scene.hub.leave(ready)
    scene.hub.leave(slow)
    scene.hub.leave(slow)
    assert (len(scene.hub), scene.hub.lagging) == (0, 0)


def test_listener_is_called_after_the_frames_of_a_flush_are_sent() -> None:
    listener = RecordingListener()
    scene = Scene(flush_listener=listener)
    listener.subscriber = scene.join()
    seen = listener.seen
    frames = scene.publish(b"a", b"b")
    assert seen == [frames]


def test_listener_is_called_for_a_flush_by_the_hub_before_the_next_update_is_logged() -> None:
    listener = RecordingListener()
    scene = Scene(log_bytes=4000, flush_listener=listener)
    listener.subscriber = scene.join()
    scene.publish(*[SMALL] * 17)
    assert [len(each) for each in listener.seen[:2]] == [11 * 60, 17 * 60]


# Flushes of several turns


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a flush look at the clock after each connection."""
    monkeypatch.setattr(live_set, "GROUP_SOCKETS", 1)
    monkeypatch.setattr(live_set, "ENCRYPTED_BYTES", 1)


@pytest.fixture
def crowd(scene: Scene, small_groups: None) -> list[SocketSubscriber]:
    """Clients of a scene in which each turn sends to two clients, and later turns to one."""
    scene.turn.steps = 2
    return [scene.join_with_socket() for _ in range(5)]


def received(clients: list[SocketSubscriber]) -> list[bytes]:
    """Returns what each client has received so far."""
    for client in clients:
        client.read()
    return [client.received for client in clients]


def test_flush_continues_in_the_next_turns(scene: Scene, crowd: list[SocketSubscriber]) -> None:
    frames = scene.publish(b"update")
    counts = [sum(map(bool, received(crowd)))]
    while scene.turns.scheduled:
        assert scene.turns.turn() == 1
        counts.append(sum(map(bool, received(crowd))))
    assert counts[:4] == [2, 3, 4, 5]
    assert received(crowd) == [frames] * 5
    assert scene.sends() == (5, 0, 0)
    assert scene.hub.sent_bytes == 5 * len(frames)


def test_flush_of_connections_with_tls_continues_in_the_next_turns(scene: Scene, small_groups: None) -> None:
    clients = [scene.join() for _ in range(5)]
    scene.turn.steps = 2
    frames = scene.publish(b"update")
    assert [len(client.writes) for client in clients] == [1, 1, 0, 0, 0]
    scene.turns.settle()
    assert [client.writes for client in clients] == [[frames]] * 5
    assert scene.sends() == (5, 0, 0)


def test_flush_to_many_filters_continues_in_the_next_turns(scene: Scene) -> None:
    clients = [scene.join_with_socket(wanted=Only(kind)) for kind in "aabcd"]
    frames = {kind: scene.publish(kind) for kind in "bcda"}
    scene.turns.settle()
    first = received(clients)
    assert first == [frames[kind] for kind in "aabcd"]
    scene.turn.steps = 1
    scene.hub.publish(b"x", ("a", {}))
    scene.hub.publish(b"y", ("b", {}))
    scene.hub.flush()
    x, y = text_frame(b"x"), text_frame(b"y")
    assert received(clients) == first, "the first batch is that of the clients without a filter"
    scene.turns.turn()
    assert received(clients) == [one + other for one, other in zip(first, [x, x, b"", b"", b""], strict=True)]
    scene.turns.settle()
    assert received(clients) == [one + other for one, other in zip(first, [x, x, y, b"", b""], strict=True)]


def test_update_that_arrives_during_a_flush_follows_in_order(scene: Scene, crowd: list[SocketSubscriber]) -> None:
    frames = scene.publish(b"first")
    frames += scene.publish(b"second")
    assert sum(map(bool, received(crowd))) == 2
    scene.turns.settle()
    assert received(crowd) == [frames] * 5


def test_listener_gets_the_flushed_position_after_each_round(scene: Scene, crowd: list[SocketSubscriber]) -> None:
    scene.publish(b"first")
    assert scene.flushes.positions == []
    scene.publish(b"second")
    scene.turns.settle()
    assert scene.flushes.positions == [1, 2]


def test_connection_that_joins_during_a_flush_gets_only_later_updates(
    scene: Scene, crowd: list[SocketSubscriber]
) -> None:
    scene.publish(b"first")
    late = scene.join_with_socket()
    frames = scene.publish(b"second")
    scene.turns.settle()
    assert late.read() == frames


@pytest.mark.parametrize("which", range(5))
def test_connection_that_is_congested_during_a_flush_reads_what_it_has_not_been_sent(
    scene: Scene, crowd: list[SocketSubscriber], which: int
) -> None:
    frames = scene.publish(b"first")
    scene.hub.congested(crowd[which])
    frames += scene.publish(b"second")
    scene.turns.settle()
    scene.hub.drained(crowd[which])
    scene.turns.settle()
    assert received(crowd) == [frames] * 5
    assert (scene.hub.lagging, sum(scene.sends())) == (0, 10)


@pytest.mark.parametrize("which", range(5))
def test_connection_that_leaves_during_a_flush_does_not_affect_others(
    scene: Scene, crowd: list[SocketSubscriber], which: int
) -> None:
    frames = scene.publish(b"first")
    scene.hub.leave(crowd[which])
    frames += scene.publish(b"second")
    scene.turns.settle()
    del crowd[which]
    assert received(crowd) == [frames] * 4
    written, _, dropped = scene.sends()
    assert written + dropped == 9


def test_own_message_during_a_flush_keeps_its_place(scene: Scene, small_groups: None) -> None:
    clients = [scene.join(after="") for _ in range(3)]
    scene.turns.settle()
    scene.turn.steps = 1
    scene.publish("a")
    scene.hub.send_own_message(lambda _: b'{"type":"gap"}')
    scene.publish("b")
    scene.turns.settle()
    expected = text_frame(b'{"type":"gap"}')
    for client in clients:
        before, after = client.received.split(expected)
        assert (b'"a"' in before, b'"b"' in after) == (True, True)


def test_client_that_resumes_after_an_update_that_is_not_flushed_yet_gets_it_only_once(small_groups: None) -> None:
    with closing(Scene(shared=True)) as scene:
        crowd = [scene.join_with_socket() for _ in range(3)]
        scene.turn.steps = 1
        scene.publish_with_ids(UpdateId(1, TAG))
        scene.publish_with_ids(UpdateId(2, TAG))
        client = scene.join(str(UpdateId(2, TAG)))
        assert (client.state, client.received) == (State.PENDING, b"")
        scene.publish_with_ids(UpdateId(3, TAG))
        scene.turns.settle()
        assert received(crowd) == [b"".join(text_frame(update(number)) for number in (1, 2, 3))] * 3
        assert client.state is State.LIVE
        assert [f'"n":{number},'.encode() in client.received for number in (1, 2, 3)] == [False, False, True]


def test_drain_closes_the_connections_in_several_turns_after_the_flush(
    scene: Scene, crowd: list[SocketSubscriber]
) -> None:
    stopped: list[bool] = []
    scene.hub.publish(b"last")
    scene.hub.drain(lambda: stopped.append(True))
    gone = crowd.pop()
    assert not any(client.closed for client in crowd)
    counts = []
    while not stopped:
        scene.turns.turn()
        counts.append(sum(client.closed is CloseReason.STOPPING for client in crowd))
        if counts[-1] == 1:
            scene.hub.leave(gone)
    scene.turns.settle()
    assert sorted(set(counts)) == [0, 1, 2, 3, 4]
    assert [apart(each)[0] for each in received(crowd)] == [text_frame(b"last")] * 4


def test_updates_that_fill_half_of_the_log_during_a_flush_are_sent_at_once(small_groups: None) -> None:
    with closing(Scene(log_bytes=20_000)) as scene:
        crowd = [scene.join_with_socket() for _ in range(3)]
        scene.turn.steps = 1
        frames = b"".join(scene.publish(b"%03d" % number + b"x" * 100) for number in range(25))
        assert scene.flushes.positions == []
        for number in range(200):
            frames += scene.publish(b"%03d" % number + b"x" * 100)
        assert scene.flushes.positions != []
        scene.turns.settle()
        assert received(crowd) == [frames] * 3
        assert scene.sends()[1:] == (0, 0)


def test_source_pauses_while_the_updates_that_wait_for_a_flush_fill_a_quarter_of_the_log(small_groups: None) -> None:
    with closing(Scene(log_bytes=20_000)) as scene:
        crowd = [scene.join_with_socket() for _ in range(3)]
        scene.turn.steps = 1
        frames = scene.publish(b"first")
        while not scene.flow_control.behind:
            assert scene.log.head < 100
            frames += scene.publish(b"x" * 100)
        size = sum(len(scene.log.frame(at)) + ENTRY_BYTES for at in range(scene.log.head))
        assert scene.log.max_bytes // 8 < size < scene.log.max_bytes // 2
        frames += scene.publish(b"x" * 100)
        assert scene.flow_control.behind == [True]
        scene.turns.settle()
        assert scene.flow_control.behind == [True, False]
        assert received(crowd) == [frames] * 3


def test_source_does_not_pause_for_updates_that_are_sent_at_once(scene: Scene) -> None:
    scene.join_with_socket()
    for _ in range(100):
        scene.hub.publish(b"x" * 1000)
    scene.hub.flush()
    assert scene.flow_control.behind == []


def suspended_round(scene: Scene, size: int) -> list[SocketSubscriber]:
    """Flushes a small update, and begins to flush an update with `size` bytes of padding. Returns the clients."""
    crowd = [scene.join_with_socket() for _ in range(3)]
    scene.turn.steps = 1
    scene.publish_with_ids(UpdateId(1, TAG))
    scene.turns.settle()
    scene.hub.publish(update(2, size=size), ("a", {}), UpdateId(2, TAG))
    scene.hub.flush()
    return crowd


@pytest.mark.parametrize("own_messages", [False, True], ids=["ids", "own messages"])
def test_log_drops_no_update_of_a_suspended_round(small_groups: None, *, own_messages: bool) -> None:
    with closing(Scene(log_bytes=40_000, shared=True)) as scene:
        crowd = suspended_round(scene, 25_000)
        assert scene.flushes.positions[-1] == 1
        for number in range(3, 40_000 // 2 // ENTRY_BYTES):
            if own_messages:
                scene.hub.send_own_message(lambda _: b"{}", UpdateId(number, TAG))
            else:
                scene.hub.record_id(UpdateId(number, TAG))
            assert scene.log.tail <= scene.flushes.positions[-1], "the log drops only flushed frames"
        assert scene.log.tail > 1
        scene.turns.settle()
        assert received(crowd) == [text_frame(update(1)) + text_frame(update(2, size=25_000))] * 3


def test_log_drops_no_update_while_own_messages_wait(small_groups: None) -> None:
    with closing(Scene(log_bytes=40_000, shared=True)) as scene:
        crowd = suspended_round(scene, 10_000)
        for number in range(3, 103):
            scene.hub.send_own_message(lambda _: b"x" * 500, UpdateId(number, TAG))
            assert scene.log.tail <= scene.flushes.positions[-1], "the log drops only flushed frames"
        assert scene.log.tail > 1
        assert scene.flow_control.behind == [True]
        scene.turns.settle()
        assert scene.flow_control.behind == [True, False]
        assert received(crowd) == [text_frame(update(1)) + text_frame(update(2, size=10_000))] * 3


def test_own_messages_that_are_sent_no_longer_wait(scene: Scene, small_groups: None) -> None:
    for _ in range(3):
        scene.join(after="")
    scene.turns.settle()
    for _ in range(1000):
        scene.hub.send_own_message(lambda _: b"x" * 500)
    scene.turn.steps = 1
    scene.publish("a")
    scene.publish("b")
    assert scene.flushes.positions[-1] == 1000, "the updates wait"
    assert scene.flow_control.behind == []
    scene.turns.settle()


def fail(*_: object, **__: object) -> None:
    raise RuntimeError("a fault")


@pytest.fixture
def resets(monkeypatch: pytest.MonkeyPatch) -> list[FakeSubscriber]:
    """The connections that the hub has reset. The hub may reset a connection at any time."""
    resets: list[FakeSubscriber] = []

    def reset(connection: FakeSubscriber) -> None:
        resets.append(connection)

    for kind in (FakeSubscriber, SocketSubscriber):
        monkeypatch.setattr(kind, "reset", reset)
    return resets


def test_failed_round_resets_the_connections_without_its_frames_and_no_other(
    scene: Scene, crowd: list[SocketSubscriber], resets: list[FakeSubscriber], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_tls = scene.join()
    stopped: list[bool] = []
    frames = scene.publish(b"first")
    with monkeypatch.context() as patched, capture_logs() as logged:
        patched.setattr(live_set, "try_write_all", fail)
        patched.setattr(scene.hub._writer, "_batched_writes", fail)
        scene.turns.turn()
    assert [line["event"] for line in logged] == ["flush failed; resetting the unserved connections"]
    reached = [client for client in crowd if client not in resets]
    assert received(crowd).count(frames) == len(reached) == 2
    assert with_tls in resets
    assert len(scene.hub) == 2
    assert scene.flushes.positions == [1]
    frames += scene.publish(b"second")
    scene.turns.settle()
    assert received(reached) == [frames] * 2
    scene.hub.drain(lambda: stopped.append(True))
    scene.turns.settle()
    assert stopped == [True]


def test_round_that_fails_before_its_first_write_resets_all_live_connections(
    scene: Scene, crowd: list[SocketSubscriber], resets: list[FakeSubscriber], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frames count as flushed, so a connection that is not reset would miss them silently."""
    live = [*crowd, scene.join(), scene.join("", Only("b"))]
    scene.turns.settle()
    with monkeypatch.context() as patched, capture_logs() as logged:
        patched.setattr(scene.hub._subscriptions, "batches", fail)
        scene.publish("a")
        scene.turns.settle()
    assert [line["event"] for line in logged] == ["flush failed; resetting the unserved connections"]
    assert set(resets) == set(live)
    assert len(scene.hub) == 0


@pytest.mark.parametrize("form", [Form.TEXT, Form.TEXT_WITH_ID, Form.EVENT])
def test_filter_that_raises_closes_only_its_own_connections(scene: Scene, form: Form) -> None:
    class Raising:
        def matches(self, update_type: str, data: object) -> bool:
            raise RuntimeError("a fault")

    plain, filtered = scene.join(), scene.join(None, Only("a"))
    broken = scene.join_with_socket(wanted=Raising(), form=form)
    scene.turns.settle()
    frames = scene.publish("a")
    scene.turns.settle()
    assert (plain.received, filtered.received) == (frames, frames)
    assert broken.closed is CloseReason.INTERNAL
    assert len(scene.hub) == 2
    assert scene.publish("a") == plain.writes[-1] == filtered.writes[-1]


def test_failed_round_resets_the_connections_with_tls_whose_group_failed(
    scene: Scene, small_groups: None, resets: list[FakeSubscriber], monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = [scene.join() for _ in range(4)]
    scene.turn.steps = 2
    scene.publish(b"first")
    with monkeypatch.context() as patched:
        patched.setattr(live_set, "try_write_each", fail)
        scene.turns.turn()
    assert sorted(map(clients.index, resets)) == [2, 3]
    assert (len(scene.hub), scene.flushes.positions) == (2, [1])


def test_failed_round_during_a_drain_does_not_delay_the_end(
    scene: Scene, crowd: list[SocketSubscriber], resets: list[FakeSubscriber], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[bool] = []
    scene.publish(b"last")
    scene.hub.drain(lambda: stopped.append(True))
    with monkeypatch.context() as patched:
        patched.setattr(live_set, "try_write_all", fail)
        patched.setattr(scene.hub._writer, "_batched_writes", fail)
        scene.turns.turn()
    scene.turns.settle()
    assert stopped == [True]
    closed = [client for client in crowd if client.closed is CloseReason.STOPPING]
    assert len(closed) == len(crowd) - len(resets) == 2


def test_connection_that_fails_after_a_partial_write_is_reset_and_others_get_their_updates(
    scene: Scene, resets: list[FakeSubscriber], monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = [scene.join_with_socket(LITTLE_ROOM if number == 1 else None) for number in range(3)]
    monkeypatch.setattr(scene.hub._catch_up, "on_partial_write", fail)
    with capture_logs() as logged:
        frames = scene.publish(b"x" * 20_000)
    assert [line["event"] for line in logged] == ["connection reset after a failed write"]
    assert resets == [clients[1]]
    assert clients[1].state is State.CLOSED
    del clients[1]
    frames += scene.publish(b"second")
    assert received(clients) == [frames] * 2


class FailingListener:
    """Raises an error at each flush."""

    def on_flush(self, flushed: int) -> None:
        raise RuntimeError("a fault")


@pytest.mark.parametrize("draining", [False, True])
def test_flush_with_a_failing_listener_does_not_delay_the_end_and_the_next_flush_is_sent(*, draining: bool) -> None:
    scene = Scene(flush_listener=FailingListener())
    client = scene.join()
    stopped: list[bool] = []
    flush = partial(scene.hub.drain, lambda: stopped.append(True)) if draining else scene.hub.flush
    scene.hub.publish(b"first")
    with pytest.raises(RuntimeError):
        flush()
    assert stopped == [True] * draining
    scene.hub.publish(b"second")
    with pytest.raises(RuntimeError):
        scene.hub.flush()
    assert client.received == text_frame(b"first") + text_frame(b"second")


# Lagging connections


def test_congested_connection_lags_and_gets_no_more(scene: Scene) -> None:
    subscriber = scene.join(full=True)
    frames = scene.publish(b"taken in part")
    scene.publish(b"later")
    assert subscriber.writes == [frames]
    assert scene.hub.lagging == 1


def test_drained_connection_catches_up_and_is_live_again(scene: Scene) -> None:
    subscriber = scene.lagging(b"second", b"third")
    subscriber.drain()
    scene.turns.turn()
    assert subscriber.writes[1:] == [text_frame(b"second") + text_frame(b"third")]
    assert scene.hub.lagging == 0
    frames = scene.publish(b"fourth")
    assert subscriber.writes[2:] == [frames]


def test_drained_connection_that_missed_nothing_is_live_again(scene: Scene) -> None:
    subscriber = scene.lagging()
    subscriber.drain()
    scene.turns.turn()
    assert len(subscriber.writes) == 1
    assert scene.hub.lagging == 0


def test_connection_that_lags_far_is_sent_one_piece_a_turn(scene: Scene) -> None:
    large = b"x" * (CATCH_UP_BYTES // 2 - 4)
    subscriber = scene.lagging(*[large] * 5)
    subscriber.drain()
    scene.turns.turn()
    sizes = []
    while scene.hub.lagging:
        sizes.append(len(subscriber.writes[-1]))
        assert scene.turns.turn() == 1
    assert sizes == [CATCH_UP_BYTES, CATCH_UP_BYTES]
    assert [len(write) for write in subscriber.writes[1:]] == [CATCH_UP_BYTES, CATCH_UP_BYTES, CATCH_UP_BYTES // 2]
    assert subscriber.received == b"".join(map(text_frame, [b"first", *[large] * 5]))


@pytest.mark.parametrize("after", [None, ""], ids=["plain", "with ids"])
def test_update_larger_than_a_piece_is_sent_in_pieces(scene: Scene, after: str | None) -> None:
    subscriber = scene.join(after=after)
    scene.turns.settle()
    subscriber.full = True
    scene.publish("a")
    scene.publish("a", size=(MAX_PARTS_PER_TURN + 2) * CATCH_UP_BYTES)
    scene.publish("a")
    before = len(subscriber.writes)
    subscriber.drain()
    written = []
    while scene.hub.lagging:
        assert scene.turns.turn() == 1
        written.append(len(subscriber.writes) - before)
    pieces = subscriber.writes[before:]
    assert [len(piece) for piece in pieces[:-2]] == [CATCH_UP_BYTES] * (MAX_PARTS_PER_TURN + 2)
    assert written == [MAX_PARTS_PER_TURN, MAX_PARTS_PER_TURN + 3, MAX_PARTS_PER_TURN + 4]
    framing, form = FrameEncoder(scene.index), Form.TEXT if after is None else Form.TEXT_WITH_ID
    assert b"".join(pieces[:-1]) == framing.frame(1, form)
    assert pieces[-1] == framing.frame(2, form)
    assert subscriber.ended_frames == 1


@pytest.mark.parametrize("after", [None, ""], ids=["plain", "with ids"])
def test_only_a_piece_of_a_large_update_is_kept_outside_the_log(after: str | None) -> None:
    with closing(Scene()) as scene:
        subscriber = scene.join_with_socket(LITTLE_ROOM, after=after)
        scene.turns.settle()
        subscriber.read()
        scene.publish("a", size=100_000)
        # What is written is a copy of the data, because a memory view would keep the entire update in memory.
        assert 0 < len(subscriber.writes[-1]) <= CATCH_UP_BYTES
        assert (subscriber.cursor, subscriber.offset > 0) == (0, True)


def test_client_that_reads_on_gets_a_large_update_whole(scene: Scene) -> None:
    subscriber = scene.join_with_socket(LITTLE_ROOM)
    frames = scene.publish(b"x" * 300_000) + scene.publish(b"y")
    read_on(scene, subscriber)
    assert subscriber.received == frames
    assert (subscriber.ended_frames, scene.hub.lagging) == (1, 0)


def test_large_update_is_encrypted_for_many_clients_in_several_turns(scene: Scene) -> None:
    subscribers = [scene.join() for _ in range(15)]
    scene.turn.steps = 10
    frames = scene.publish(b"x" * 100_000)
    assert [each.received == frames for each in subscribers].count(True) == 10
    scene.turns.settle()
    assert all(each.received == frames for each in subscribers)
    assert scene.hub.lagging == 0


@pytest.mark.parametrize("size", [10, 30_000])
def test_connection_with_tls_that_raises_is_closed_and_others_get_their_updates(scene: Scene, size: int) -> None:
    subscribers = [scene.join() for _ in range(5)]
    subscribers[1].fault = RuntimeError("a bug")
    frames = scene.publish(b"x" * size)
    scene.turns.settle()
    assert subscribers[1].closed is CloseReason.INTERNAL
    assert all(each.received == frames for each in subscribers if each is not subscribers[1])


@pytest.mark.parametrize("after", [None, ""], ids=["without ids", "with ids"])
def test_flush_of_many_updates_over_tls_is_written_in_single_pieces_without_lag(after: str | None) -> None:
    """No write is larger than a piece, so that a transport never has to hold more than one."""
    with closing(Scene(flush_bytes=TLS_FLUSH_BYTES)) as scene:
        subscriber = scene.join(after=after)
        scene.turns.settle()
        before = len(subscriber.writes)
        scene.publish(*["killmail"] * 50, size=600)
        sizes = [len(write) for write in subscriber.writes[before:]]
        assert len(sizes) > 1
        assert TLS_FLUSH_BYTES - 1000 < sizes[0] <= max(sizes) <= CATCH_UP_BYTES
        assert (scene.hub.lagging, scene.metrics.enqueued) == (0, 0)


def test_clients_that_stop_in_the_same_frames_each_continue_where_they_stopped(scene: Scene) -> None:
    slow = [scene.join_with_socket(LITTLE_ROOM) for _ in range(3)]
    frames = scene.publish(*[b"x" * 3000] * 5)
    for subscriber in slow:
        read_on(scene, subscriber)
        assert subscriber.received == frames


def test_client_in_the_middle_of_a_frame_that_the_log_drops_is_reset() -> None:
    with closing(Scene(200_000)) as scene:
        subscriber = scene.join_with_socket(LITTLE_ROOM)
        frame = scene.publish(b"x" * 100_000)
        scene.publish(b"y" * 150_000)
        assert (subscriber.closed, subscriber.was_reset) == (CloseReason.TOO_SLOW, True)
        assert len(scene.hub) == scene.hub.lagging == 0
        subscriber.read()
        assert frame.startswith(subscriber.received), "a close frame would become a part of the update"


def test_client_that_is_closed_in_the_middle_of_a_frame_gets_the_rest_of_it_first(scene: Scene) -> None:
    subscriber = scene.join_with_socket(LITTLE_ROOM)
    frame = scene.publish(b"x" * 100_000)
    scene.publish(b"y")
    subscriber.close(CloseReason.IDLE)
    assert len(scene.hub) == scene.hub.lagging == 0
    read_on(scene, subscriber)
    assert subscriber.received == frame + close_frame(4009, CloseReason.IDLE.phrase)


def test_client_that_is_closing_in_the_middle_of_a_frame_that_the_log_drops_is_reset() -> None:
    with closing(Scene(200_000)) as scene:
        subscriber = scene.join_with_socket(LITTLE_ROOM)
        frame = scene.publish(b"x" * 100_000)
        subscriber.close(CloseReason.IDLE)
        scene.publish(b"y" * 150_000)
        assert subscriber.was_reset
        subscriber.read()
        assert frame.startswith(subscriber.received)


def test_closing_client_is_reset_if_the_log_has_dropped_its_frame_before_the_next_flush() -> None:
    with closing(Scene(200_000)) as scene:
        subscriber = scene.join_with_socket(LITTLE_ROOM)
        frame = scene.publish(b"x" * 100_000)
        subscriber.close(CloseReason.IDLE)
        scene.hub.publish(b"y" * 150_000)
        while subscriber.congested:
            subscriber.read()
            subscriber.drain()
        scene.turns.turn()
        assert subscriber.was_reset
        assert frame.startswith(subscriber.received)


def test_closing_client_is_reset_if_the_log_drops_its_frame_between_a_drain_and_its_turn() -> None:
    with closing(Scene(200_000)) as scene:
        subscriber = scene.join_with_socket(LITTLE_ROOM)
        frame = scene.publish(b"x" * 100_000)
        subscriber.close(CloseReason.IDLE)
        while subscriber.congested:
            subscriber.read()
            subscriber.drain()
        scene.hub.publish(b"y" * 150_000)
        assert not subscriber.was_reset
        scene.turns.turn()
        assert subscriber.was_reset
        assert frame.startswith(subscriber.received)


def test_closing_client_whose_transport_raises_in_the_middle_of_a_frame_is_forgotten(scene: Scene) -> None:
    subscriber = scene.join_with_socket(LITTLE_ROOM)
    scene.publish(b"x" * 100_000)
    subscriber.close(CloseReason.IDLE)
    subscriber.fault = RuntimeError("the transport is gone")
    while subscriber.congested:
        subscriber.read()
        subscriber.drain()
    scene.turns.settle()
    assert subscriber.state is State.CLOSED
    assert subscriber.ended_frames == 0
    assert not scene.turns.scheduled


def test_client_that_leaves_while_closing_in_the_middle_of_a_frame_gets_nothing_more(scene: Scene) -> None:
    subscriber = scene.join_with_socket(LITTLE_ROOM)
    scene.publish(b"x" * 100_000)
    subscriber.close(CloseReason.IDLE)
    scene.hub.leave(subscriber)
    written = len(subscriber.writes)
    subscriber.read()
    subscriber.drain()
    scene.turns.settle()
    assert len(subscriber.writes) == written


def test_connection_congested_again_waits_for_the_next_drain(scene: Scene) -> None:
    subscriber = scene.lagging(b"x" * ONE_PIECE, b"y" * ONE_PIECE)
    subscriber.drain(full=True)
    scene.turns.turn()
    assert len(subscriber.writes) == 2
    assert not scene.turns.scheduled
    subscriber.drain()
    scene.turns.turn()
    assert len(subscriber.writes) == 3
    scene.turns.settle()
    assert scene.hub.lagging == 0


def test_connection_congested_by_something_else_before_its_turn_waits(scene: Scene) -> None:
    subscriber = scene.lagging(b"x" * ONE_PIECE, b"y" * ONE_PIECE)
    subscriber.drain()
    scene.turns.turn()
    subscriber.congested = True
    scene.turns.settle()
    assert len(subscriber.writes) == 2
    subscriber.drain()
    scene.turns.turn()
    assert len(subscriber.writes) == 3


def test_update_published_while_a_connection_catches_up_is_sent_in_order(scene: Scene) -> None:
    subscriber = scene.lagging(b"x" * ONE_PIECE, b"y" * ONE_PIECE)
    subscriber.drain()
    scene.turns.turn()
    scene.publish(b"new")
    scene.turns.settle()
    frames = [b"first", b"x" * ONE_PIECE, b"y" * ONE_PIECE, b"new"]
    assert subscriber.received == b"".join(map(text_frame, frames))
    assert scene.hub.lagging == 0


def test_update_not_flushed_yet_is_left_to_the_flush_when_a_connection_catches_up(scene: Scene) -> None:
    subscriber = scene.lagging(b"second")
    scene.hub.publish(b"third")
    subscriber.drain()
    scene.turns.turn()
    assert scene.hub.lagging == 0
    assert subscriber.received == text_frame(b"first") + text_frame(b"second")
    scene.hub.flush()
    assert subscriber.received == b"".join(map(text_frame, [b"first", b"second", b"third"]))


def test_drained_connection_that_never_lagged_or_left_gets_nothing(scene: Scene) -> None:
    ready, gone = scene.join(), scene.lagging(b"second")
    scene.hub.leave(gone)
    before = list(ready.writes)
    ready.drain()
    scene.turns.turn()
    gone.drain()
    scene.turns.turn()
    assert ready.writes == before
    assert len(gone.writes) == 1


def test_connection_that_left_before_its_turn_gets_nothing(scene: Scene) -> None:
    subscriber = scene.lagging(b"x" * ONE_PIECE, b"y" * ONE_PIECE)
    subscriber.drain()
    scene.turns.turn()
    scene.hub.leave(subscriber)
    scene.turns.settle()
    assert len(subscriber.writes) == 2


def test_connection_that_leaves_during_a_write_is_not_live_any_more(scene: Scene) -> None:
    subscriber = scene.join()
    subscriber.leaves = True
    scene.publish(b"dropped")
    subscriber.leaves = False
    scene.publish(b"not sent")
    scene.turns.settle()
    assert subscriber.writes == []
    assert len(scene.hub) == 0


def test_connection_that_leaves_while_it_catches_up_gets_nothing_more(scene: Scene) -> None:
    subscriber = scene.lagging(b"x" * ONE_PIECE, b"y" * ONE_PIECE)
    subscriber.leaves = True
    subscriber.drain()
    scene.turns.turn()
    subscriber.leaves = False
    scene.turns.settle()
    assert len(subscriber.writes) == 1
    assert (len(scene.hub), scene.hub.lagging) == (0, 0)


def test_connection_that_raises_is_closed_and_others_get_their_updates(scene: Scene) -> None:
    subscribers = [scene.join() for _ in range(5)]
    broken = subscribers[2]
    broken.fault = RuntimeError("the transport is gone")
    frames = scene.publish(b"update")
    assert broken.closed is CloseReason.INTERNAL
    assert broken.details == {"error": "RuntimeError('the transport is gone')"}
    assert all(subscriber.writes == [frames] for subscriber in subscribers if subscriber is not broken)
    assert len(scene.hub) == 4


# Storms


@pytest.fixture
def stormy() -> Iterator[Scene]:
    with closing(Scene(storms=True)) as scene:
        yield scene


def storm(scene: Scene, connections: int = 3) -> list[SocketSubscriber]:
    """Begins a storm with as many held connections."""
    for _ in range(MAX_JOINS):
        scene.join()
    return [scene.join_with_socket() for _ in range(connections)]


def end_storm(scene: Scene) -> None:
    """Ends a storm, and sends the held connections their updates."""
    scene.turns.end_timers()
    scene.turns.end_timers()
    scene.turns.settle()


def test_held_connections_get_all_updates_since_their_join_after_the_storm(stormy: Scene) -> None:
    first, second = storm(stormy, 2)
    frames = [stormy.publish(b"one")]
    third = stormy.join_with_socket()
    frames += [stormy.publish(b"two"), stormy.publish(b"three")]
    stormy.turns.settle()
    assert received([first, second, third]) == [b"", b"", b""]
    end_storm(stormy)
    assert received([first, second, third]) == [b"".join(frames)] * 2 + [b"".join(frames[1:])]
    frames.append(stormy.publish(b"four"))
    assert received([first, second, third]) == [b"".join(frames)] * 2 + [b"".join(frames[1:])]


def test_live_connections_get_each_update_at_once_during_a_storm(stormy: Scene) -> None:
    live = stormy.join_with_socket()
    storm(stormy)
    frames = stormy.publish(b"update")
    assert received([live]) == [frames]


def test_connection_that_joins_during_a_storm_does_not_get_earlier_updates(stormy: Scene) -> None:
    storm(stormy)
    stormy.publish(b"earlier")
    stormy.hub.publish(b"not flushed")
    late = stormy.join_with_socket()
    stormy.hub.flush()
    end_storm(stormy)
    assert received([late]) == [text_frame(b"not flushed")]


def test_updates_for_held_connections_count_as_enqueued(stormy: Scene) -> None:
    storm(stormy, 3)
    stormy.publish(b"update")
    assert stormy.sends() == (MAX_JOINS, 3, 0)
    assert stormy.hub.lagging == 3
    end_storm(stormy)
    assert stormy.sends() == (MAX_JOINS, 3, 0)
    assert stormy.hub.lagging == 0


def test_held_connection_that_leaves_gets_nothing(stormy: Scene) -> None:
    held = storm(stormy)
    stormy.publish(b"update")
    stormy.hub.leave(held[1])
    end_storm(stormy)
    frames = text_frame(b"update")
    assert received(held) == [frames, b"", frames]
    assert stormy.sends() == (MAX_JOINS, 3, 1)


def test_held_connections_get_their_updates_before_they_lack_too_many(stormy: Scene) -> None:
    held = storm(stormy)
    frames = b""
    size_bytes = len(text_frame(b"x" * 1000)) + ENTRY_BYTES
    for _ in range(MAX_HELD_BYTES // size_bytes):
        frames += stormy.publish(b"x" * 1000)
        assert received(held) == [b""] * 3
    frames += stormy.publish(b"x" * 1000)
    assert received(held) == [frames] * 3
    assert stormy.hub.lagging == 0


def test_connections_that_join_later_are_held_after_earlier_ones_got_their_updates(stormy: Scene) -> None:
    first = storm(stormy, 1)
    frames = [stormy.publish(b"x" * MAX_HELD_BYTES)]
    second = stormy.join_with_socket()
    frames.append(stormy.publish(b"x"))
    assert received([*first, second]) == [b"".join(frames), b""]
    end_storm(stormy)
    assert received([*first, second]) == [b"".join(frames), frames[1]]


@pytest.mark.parametrize(("size", "count"), [(1, 1000), (1000, 200)], ids=["small", "large"])
def test_burst_in_one_turn_does_not_evict_held_connections_from_a_small_log(size: int, count: int) -> None:
    with closing(Scene(65_536, storms=True)) as scene:
        held = storm(scene)
        frames = b""
        for _ in range(count):
            frames += text_frame(b"x" * size)
            scene.hub.publish(b"x" * size)
            for each in held:
                each.read()
        scene.hub.flush()
        scene.turns.settle()
        for each in held:
            each.read()
        assert [each.received for each in held] == [frames] * 3


def test_held_connections_may_all_leave_between_two_steps_of_a_flush(stormy: Scene) -> None:
    held = storm(stormy, 3)
    stormy.turn.steps = 1
    frames = stormy.publish(b"a" * MAX_HELD_BYTES)
    for each in held[1:]:
        stormy.hub.leave(each)
    stormy.turns.settle()
    assert received(held) == [frames, b"", b""]


def test_ids_without_updates_do_not_evict_held_connections_from_a_small_log() -> None:
    with closing(Scene(65_536, shared=True, storms=True)) as scene:
        held = storm(scene)
        scene.publish_with_ids(UpdateId(1, TAG))
        for number in range(2, 1000):
            scene.hub.record_id(UpdateId(number, TAG))
        scene.hub.flush()
        end_storm(scene)
        assert [each.closed for each in held] == [None] * 3
        assert received(held) == [scene.log.frame(0) if scene.log.tail == 0 else text_frame(update(1))] * 3


def test_updates_after_a_storm_do_not_evict_connections_that_still_wait_for_their_turn() -> None:
    with closing(Scene(2**18, storms=True)) as scene:
        held = storm(scene, 500)
        frames = scene.publish(b"x")
        for _ in range(2):
            scene.turns.end_timers()
        for _ in range(20):
            scene.turns.turn()
            frames += scene.publish(b"y" * 30_000)
            for each in held:
                each.read()
        scene.turns.settle()
        for each in held:
            each.read()
        assert {each.received for each in held} == {frames}


def test_steps_of_a_flush_send_held_connections_their_updates(stormy: Scene) -> None:
    held = storm(stormy, 3)
    frames = stormy.publish(b"a")
    stormy.turn.steps = 1
    frames += stormy.publish(b"b" * MAX_HELD_BYTES)
    assert received(held) == [text_frame(b"a"), b"", b""]
    stormy.hub.leave(held[1])
    late = stormy.join_with_socket()
    stormy.turns.settle()
    assert received(held) == [frames, b"", frames]
    frames += stormy.publish(b"c")
    assert received([held[0], late]) == [frames, frames[3:]]


def test_held_connections_are_closed_when_the_bridge_stops(stormy: Scene) -> None:
    held = storm(stormy)
    stormy.publish(b"update")
    stopped: list[int] = []
    stormy.hub.drain(lambda: stopped.append(len(stormy.hub)))
    assert stopped == [0]
    close = close_frame(CloseReason.STOPPING.code, CloseReason.STOPPING.phrase)
    assert received(held) == [text_frame(b"update") + close] * 3


def test_resumed_connection_gets_its_resume_message_at_once_and_the_updates_after_the_storm() -> None:
    with closing(Scene(shared=True, storms=True)) as scene:
        scene.publish_with_ids(UpdateId(1, TAG), UpdateId(2, TAG))
        storm(scene)
        clients = [scene.join_with_socket(after=after) for after in ("", str(UpdateId(2, TAG)))]
        scene.turns.settle()
        assert [each.received.count(b'"resume"') for each in clients if each.read()] == [1, 1]
        scene.publish_with_ids(UpdateId(3, TAG))
        scene.turns.settle()
        assert [client.read() for client in clients] == [b"", b""]
        assert [client.state for client in clients] == [State.LAGGING] * 2
        end_storm(scene)
        framing = FrameEncoder(scene.index)
        frames = [framing.frame(position, Form.TEXT_WITH_ID) for position in range(3)]
        assert [client.read() for client in clients] == [frames[2]] * 2
        assert scene.sends() == (MAX_JOINS, 2 + 3, 0)


def test_replay_is_sent_at_once_during_a_storm() -> None:
    # A replay may begin at the tail of the log, so a connection that waited could fall off the tail.
    with closing(Scene(65_536, shared=True, storms=True)) as scene:
        for number in range(1, 101):
            scene.hub.publish(update(number, size=1000), ("a", {}), UpdateId(number, TAG))
            scene.hub.flush()
        storm(scene)
        client = scene.join_with_socket(after=str(scene.index.before(scene.log.tail + 1)))
        scene.turns.settle()
        client.read()
        framing = FrameEncoder(scene.index)
        replay = b"".join(framing.frame(at, Form.TEXT_WITH_ID) for at in range(scene.log.tail + 1, scene.log.head))
        _, heartbeat = client.received.split(replay)
        assert heartbeat[2:].startswith(b'{"type":"heartbeat"')
        assert client.state is State.LAGGING


def test_resuming_connection_whose_transport_fails_during_a_storm_is_forgotten() -> None:
    with closing(Scene(65_536, shared=True, storms=True)) as scene:
        scene.publish_with_ids(UpdateId(1, TAG))
        storm(scene, 1)
        client = scene.join_with_socket(after=str(UpdateId(1, TAG)))
        client.vanish()
        with capture_logs() as logs:
            scene.turns.settle()
            assert client.state is State.CLOSED
            for _ in range(100):
                scene.publish(b"x" * 1000)
            end_storm(scene)
        assert logs == []


def test_connection_that_catches_up_in_a_storm_is_closed_at_once_if_the_bridge_stops() -> None:
    with closing(Scene(shared=True, storms=True)) as scene:
        scene.publish_with_ids(UpdateId(1, TAG), UpdateId(2, TAG))
        client = scene.join(str(UpdateId(1, TAG)), full=True)
        scene.turns.settle()
        assert client.state is State.CATCHING_UP
        scene.hub.drain(ignore)
        storm(scene, 1)
        client.drain()
        scene.turns.settle()
        assert client.closed is CloseReason.STOPPING


def test_resumed_connection_that_leaves_during_a_storm_is_forgotten() -> None:
    with closing(Scene(shared=True, storms=True)) as scene:
        storm(scene, 1)
        client = scene.join_with_socket(after="")
        scene.turns.settle()
        client.read()
        scene.publish("a")
        scene.hub.leave(client)
        end_storm(scene)
        assert client.read() == b""
        assert client.state is State.CLOSED


def test_full_connection_of_a_storm_gets_its_updates_when_it_has_room(stormy: Scene) -> None:
    storm(stormy)
    client = FakeSubscriber(stormy.hub)
    client.congested = True
    stormy.hub.join(client)
    frames = stormy.publish(b"update")
    end_storm(stormy)
    assert client.received == b""
    client.drain()
    stormy.turns.settle()
    assert client.received == frames


def test_live_connections_are_not_delayed_when_a_storm_ends(stormy: Scene) -> None:
    storm(stormy, 2000)
    stormy.publish(b"update")
    stormy.turns.end_timers()
    stormy.turns.end_timers()
    before = stormy.hub.lagging
    stormy.turns.turn()
    pieces = TURN_BUDGETS_BYTES[RETURNING] // MIN_COST_BYTES
    assert before - pieces <= stormy.hub.lagging < before


# A connection whose transport fails


def test_connection_whose_transport_fails_leaves_at_once(scene: Scene) -> None:
    client, other = scene.join_with_socket(), scene.join_with_socket()
    client.vanish()
    frames = scene.publish(b"update")
    assert client.state is State.CLOSED
    assert received([other]) == [frames]
    # Without this, each flush until the transport reports the loss would write to the connection.
    assert len(scene.hub) == 1
    scene.turns.settle()
    assert client.gone


# A connection whose next update is no longer in the log


ROOM = 4 * (60 + ENTRY_BYTES)
"""The size in bytes of a log with room for four small updates."""


def test_connection_at_the_tail_stays() -> None:
    scene = Scene(log_bytes=ROOM)
    subscriber = scene.join(full=True)
    scene.publish(SMALL)
    for _ in range(4):
        scene.publish(SMALL)
    assert scene.log.tail == 1
    assert subscriber.closed is None
    subscriber.drain()
    scene.turns.turn()
    scene.turns.settle()
    assert subscriber.received == text_frame(SMALL) * 5


def test_connection_that_the_tail_has_passed_is_closed_as_too_slow() -> None:
    scene = Scene(log_bytes=ROOM)
    subscriber = scene.join(full=True)
    scene.publish(SMALL)
    for _ in range(5):
        scene.publish(SMALL)
    assert subscriber.closed is CloseReason.TOO_SLOW
    assert subscriber.details == {"updates_behind": 5}
    assert (len(scene.hub), scene.hub.lagging) == (0, 0)


def test_only_connections_that_the_tail_has_passed_are_closed() -> None:
    scene = Scene(log_bytes=ROOM)
    slower = scene.join(full=True)
    scene.publish(SMALL)
    scene.publish(SMALL)
    less_slow = scene.join(full=True)
    ready = scene.join()
    for _ in range(4):
        scene.publish(SMALL)
    assert slower.closed is CloseReason.TOO_SLOW
    assert less_slow.closed is None
    assert ready.closed is None
    scene.publish(SMALL)
    assert less_slow.closed is None
    scene.publish(SMALL)
    assert less_slow.closed is CloseReason.TOO_SLOW


def test_many_connections_that_fall_off_together_are_closed_a_few_in_a_turn() -> None:
    scene = Scene(log_bytes=ROOM)
    subscribers = [scene.join(full=True) for _ in range(2 * MAX_EVICTIONS_PER_TURN + 1)]

    def closed() -> int:
        return sum(subscriber.closed is CloseReason.TOO_SLOW for subscriber in subscribers)

    for _ in range(6):
        scene.publish(SMALL)
    assert closed() == MAX_EVICTIONS_PER_TURN
    scene.publish(SMALL)
    assert closed() == MAX_EVICTIONS_PER_TURN, "an update does not close more connections"
    scene.turns.turn()
    assert closed() == 2 * MAX_EVICTIONS_PER_TURN
    scene.turns.turn()
    assert closed() == len(subscribers)
    assert not scene.turns.scheduled
    late = scene.join(full=True)
    for _ in range(6):
        scene.publish(SMALL)
    assert late.closed is CloseReason.TOO_SLOW, "a connection that joins later can be closed too"


def test_many_closing_connections_whose_frame_is_dropped_are_reset_a_few_in_a_turn() -> None:
    with closing(Scene(200_000)) as scene:
        clients = [scene.join_with_socket(LITTLE_ROOM) for _ in range(MAX_EVICTIONS_PER_TURN + 3)]
        scene.publish(b"x" * 100_000)
        for client in clients:
            client.close(CloseReason.IDLE)
        scene.publish(b"y" * 150_000)
        assert sum(client.was_reset for client in clients) == MAX_EVICTIONS_PER_TURN
        scene.turns.settle()
        assert all(client.was_reset for client in clients)


def test_connections_catch_up_one_by_one_in_turns_that_are_full_of_other_work(scene: Scene) -> None:
    slow = [scene.join(full=True) for _ in range(3)]
    scene.publish(b"first")
    scene.publish(b"second")
    for client in slow:
        client.drain()
    scene.turn.steps = 1
    served = []
    while scene.hub.lagging:
        scene.turns.turn()
        served.append(sum(len(client.writes) == 2 for client in slow))
    assert served == [1, 2, 3]


def test_turn_that_sends_pieces_is_measured_from_its_begin(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = scene.lagging(b"second")
    writes_before: list[int] = []
    monkeypatch.setattr(scene.turn, "begin", lambda: writes_before.append(len(slow.writes)))
    slow.drain()
    scene.turns.turn()
    assert (writes_before, len(slow.writes)) == ([1], 2)


def test_connection_that_drains_between_the_append_and_the_flush_is_closed() -> None:
    scene = Scene(log_bytes=ROOM)
    subscriber = scene.lagging(SMALL)
    scene.hub.publish(b"x" * ROOM)
    assert scene.log.tail == 2
    assert subscriber.closed is None
    subscriber.drain()
    scene.turns.turn()
    assert subscriber.closed is CloseReason.TOO_SLOW
    assert subscriber.details == {"updates_behind": 1}


# Metrics of the hub


def test_update_is_counted_as_written_once_for_each_connection_that_took_it(scene: Scene) -> None:
    scene.join()
    scene.join()
    scene.publish(b"a", b"b", b"c")
    assert scene.sends() == (6, 0, 0)


def test_update_is_counted_as_enqueued_for_each_connection_that_lags(scene: Scene) -> None:
    scene.join()
    scene.join(full=True)
    scene.publish(b"a", b"b")
    assert scene.sends() == (2, 2, 0)
    scene.publish(b"c")
    assert scene.sends() == (3, 3, 0)


def test_update_is_counted_as_dropped_when_a_lagging_connection_leaves(scene: Scene) -> None:
    subscriber = scene.lagging(b"second", b"third")
    scene.hub.leave(subscriber)
    assert scene.sends() == (0, 3, 2)


def test_update_is_counted_as_dropped_when_a_connection_falls_off_the_tail() -> None:
    scene = Scene(log_bytes=ROOM)
    scene.join(full=True)
    for _ in range(6):
        scene.publish(SMALL)
    assert scene.sends() == (0, 6, 5)


def test_partly_written_update_is_counted_as_enqueued_and_later_ones_as_dropped(scene: Scene) -> None:
    subscriber = scene.join_with_socket(LITTLE_ROOM)
    scene.publish(b"x" * 100_000)
    assert scene.sends() == (0, 1, 0)
    scene.publish(b"a", b"b")
    assert scene.sends() == (0, 3, 0)
    scene.hub.leave(subscriber)
    assert scene.sends() == (0, 3, 3)


# The end


def test_drain_closes_live_connections_after_the_published_updates(scene: Scene) -> None:
    subscriber = scene.join()
    scene.hub.publish(b"last")
    scene.hub.drain(ignore)
    assert subscriber.received == text_frame(b"last")
    assert subscriber.closed is CloseReason.STOPPING


def test_drain_closes_a_lagging_connection_after_it_caught_up(scene: Scene) -> None:
    subscriber = scene.lagging(b"x" * ONE_PIECE, b"y" * ONE_PIECE)
    scene.hub.drain(ignore)
    assert subscriber.closed is None
    subscriber.drain()
    scene.turns.turn()
    assert subscriber.closed is None
    scene.turns.settle()
    assert subscriber.closed is CloseReason.STOPPING
    frames = [b"first", b"x" * ONE_PIECE, b"y" * ONE_PIECE]
    assert subscriber.received == b"".join(map(text_frame, frames))


def test_drain_closes_a_connection_after_its_transport_sent_the_last_write(scene: Scene) -> None:
    subscriber = scene.lagging()
    scene.hub.drain(ignore)
    assert subscriber.closed is None
    subscriber.drain()
    scene.turns.turn()
    assert subscriber.closed is CloseReason.STOPPING


def test_drain_closes_connections_with_a_descriptor_after_the_missed_updates(scene: Scene) -> None:
    ready, slow = scene.join_with_socket(), scene.join_with_socket(LITTLE_ROOM)
    frames = scene.publish(b"x" * 50_000)
    frames += scene.publish(b"last")
    scene.hub.drain(ignore)
    assert (ready.closed, slow.closed) == (CloseReason.STOPPING, None)
    read_on(scene, slow)
    assert slow.closed is CloseReason.STOPPING
    assert apart(ready.read())[0] == apart(slow.received)[0] == frames


# Tests of writes that bypass the transport


def test_connection_with_a_descriptor_is_written_to_past_its_transport(scene: Scene) -> None:
    subscriber = scene.join_with_socket()
    assert scene.publish(b"a") + scene.publish(b"b") == subscriber.read()
    assert subscriber.writes == []


def test_transport_gets_only_the_rest_of_the_frame_in_which_the_socket_stopped(scene: Scene) -> None:
    subscriber = scene.join_with_socket(LITTLE_ROOM)
    frames = scene.publish(b"a" * 10, b"b" * 20_000, b"c" * 20_000)
    [rest] = subscriber.writes
    assert 0 < len(rest) < 20_000
    assert set(rest) == {ord("b")}
    assert subscriber.congested
    assert (scene.hub.lagging, subscriber.cursor) == (1, 2)
    read_on(scene, subscriber)
    assert subscriber.received == frames
    assert scene.hub.lagging == 0


def test_transport_gets_the_first_frame_if_the_socket_takes_nothing(scene: Scene) -> None:
    subscriber = scene.join_with_socket(LITTLE_ROOM)
    filler = b"z" * 100_000
    subscriber._near.send(filler)
    frames = scene.publish(b"a" * 5000, b"b" * 5000)
    assert subscriber.writes == [text_frame(b"a" * 5000)]
    assert subscriber.cursor == 1
    read_on(scene, subscriber)
    assert subscriber.received.lstrip(b"z") == frames


def test_connection_continues_in_the_next_turn_after_its_transport_took_the_rest(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscriber = scene.join_with_socket(LITTLE_ROOM)
    # behaves like a transport that accepts all data at once
    monkeypatch.setattr(subscriber, "write", lambda _: True)
    scene.publish(b"a" * 20_000, b"b")
    assert not subscriber.congested
    assert scene.hub.lagging == 1
    subscriber.read()
    assert subscriber.read() == b""
    scene.turns.turn()
    assert subscriber.read() == text_frame(b"b")
    assert scene.hub.lagging == 0


def test_nothing_is_written_past_a_transport_that_holds_bytes(scene: Scene) -> None:
    subscriber = scene.join_with_socket(LITTLE_ROOM)
    frames = scene.publish(b"a" * 20_000)
    read = subscriber.read()
    frames += scene.publish(b"b")
    scene.turns.settle()
    assert subscriber.read() == b"", "the socket has room, but the transport must write first"
    read_on(scene, subscriber)
    assert subscriber.received == frames
    assert read


def test_nothing_is_written_past_a_transport_that_holds_other_bytes(scene: Scene) -> None:
    subscriber = scene.join_with_socket(LITTLE_ROOM)
    frames = scene.publish(b"before")
    subscriber.write(FILLER)
    assert (len(scene.hub), scene.hub.lagging) == (1, 1)
    frames += scene.publish(b"after")
    read_on(scene, subscriber)
    assert subscriber.received == text_frame(b"before") + FILLER + text_frame(b"after")
    assert apart(subscriber.received) == (frames, [FILLER], b"")
    assert scene.hub.lagging == 0


def test_connection_that_reports_congestion_twice_loses_nothing(scene: Scene) -> None:
    subscriber = scene.join_with_socket(LITTLE_ROOM)
    frames = scene.publish(b"a" * 20_000)
    frames += scene.publish(b"b")
    scene.hub.congested(subscriber)
    assert (len(scene.hub), scene.hub.lagging) == (1, 1)
    read_on(scene, subscriber)
    assert subscriber.received == frames


def test_connection_that_left_stays_closed_when_it_is_congested(scene: Scene) -> None:
    for subscriber in (scene.join(), scene.join_with_socket()):
        scene.hub.leave(subscriber)
        scene.hub.congested(subscriber)
        scene.hub.drained(subscriber)
    assert (len(scene.hub), scene.hub.lagging) == (0, 0)


def test_connection_with_a_descriptor_that_lags_far_is_sent_one_piece_a_turn(scene: Scene) -> None:
    subscriber = scene.join_with_socket()
    subscriber.write(FILLER * 10)
    large = b"x" * (CATCH_UP_BYTES // 2 - 4)
    frames = scene.publish(*[large] * 5)
    while subscriber.held:
        subscriber.read()
        subscriber._push()
    subscriber.read()
    assert subscriber.received == FILLER * 10
    subscriber.drain()
    scene.turns.turn()
    sizes = [len(subscriber.read())]
    while scene.hub.lagging:
        assert scene.turns.turn() == 1
        sizes.append(len(subscriber.read()))
    assert sizes == [CATCH_UP_BYTES, CATCH_UP_BYTES, CATCH_UP_BYTES // 2]
    assert subscriber.received == FILLER * 10 + frames
    assert subscriber.writes == []


def test_connection_that_stops_while_it_catches_up_passes_the_rest_of_one_frame_to_its_transport(scene: Scene) -> None:
    subscriber = scene.join_with_socket(LITTLE_ROOM)
    frames = scene.publish(*[b"x" * 3000] * 30)
    read_on(scene, subscriber)
    assert subscriber.received == frames
    assert len(subscriber.writes) > 3
    assert max(map(len, subscriber.writes)) <= len(text_frame(b"x" * 3000))


def test_transport_ends_a_client_that_is_gone_and_others_get_their_updates(scene: Scene) -> None:
    subscribers = [scene.join_with_socket() for _ in range(5)]
    subscribers[2].vanish()
    frames = scene.publish(b"update")
    assert all(each.read() == frames for each in subscribers if not each.vanished)
    scene.turns.settle()
    assert subscribers[2].gone
    assert (len(scene.hub), scene.hub.lagging) == (4, 0)


def test_connection_with_a_descriptor_is_closed_if_its_transport_raises(scene: Scene) -> None:
    subscribers = [scene.join_with_socket(LITTLE_ROOM) for _ in range(5)]
    broken = subscribers[2]
    broken.fault = RuntimeError("the transport is gone")
    frames = scene.publish(b"x" * 20_000)
    assert broken.closed is CloseReason.INTERNAL
    assert broken.details == {"error": "RuntimeError('the transport is gone')"}
    for each in subscribers:
        if each is not broken:
            read_on(scene, each)
            assert each.received == frames
    assert (len(scene.hub), scene.hub.lagging) == (4, 0)


def test_connection_with_a_descriptor_that_falls_off_the_tail_is_closed_after_the_frame_it_stopped_in() -> None:
    with closing(Scene(log_bytes=100_000)) as scene:
        slow, ready = scene.join_with_socket(LITTLE_ROOM), scene.join_with_socket()
        first = scene.publish(b"x" * 20_000)
        for _ in range(4):
            scene.publish(b"y" * 20_000)
        evicted = [slow.closed]
        scene.publish(b"y" * 20_000)
        evicted.append(slow.closed)
        assert (evicted, ready.closed) == ([None, CloseReason.TOO_SLOW], None)
        assert slow.details == {"updates_behind": 5}
        read_on(scene, slow)
        texts, [close], rest = apart(slow.received)
        assert (texts, close[:1], rest) == (first, b"\x88", b"")


def test_next_connection_may_get_the_descriptor_of_one_that_left(scene: Scene) -> None:
    left, other = scene.join_with_socket(), scene.join_with_socket()
    scene.hub.leave(left)
    left.end()
    subscriber = scene.join_with_socket()
    assert subscriber.descriptor == left.descriptor
    frames = scene.publish(b"update")
    assert subscriber.read() == other.read() == frames


def test_logged_updates_are_counted_without_other_entries_and_without_dropped_ones() -> None:
    with closing(Scene(log_bytes=100_000, shared=True)) as scene:
        assert scene.hub.logged_updates == 0
        for number in range(1, 901, 3):
            scene.hub.record_id(UpdateId(number, 1))
            scene.publish_with_ids(UpdateId(number + 1, 1))
            scene.hub.send_own_message(lambda _: b"gap", UpdateId(number + 2, 1))
        kept = range(scene.log.tail, scene.log.head)
        assert kept.start > 0
        assert scene.hub.logged_updates == sum(position % 3 == 1 for position in kept)


# Bytes sent


@dataclass(frozen=True, slots=True)
class OneType:
    """A filter that matches updates of one type."""

    wanted: str

    def matches(self, update_type: str, _: object) -> bool:
        return update_type == self.wanted


def test_connections_with_different_filters_that_match_share_a_write(scene: Scene) -> None:
    clients = [scene.join_with_socket(), *(scene.join_with_socket(wanted=OneType("a")) for _ in range(2))]
    other = scene.join_with_socket(wanted=OneType("b"))
    frames = scene.publish("a")
    assert [client.read() for client in (*clients, other)] == [frames, frames, frames, b""]


def test_bytes_written_to_live_connections_are_counted_once_for_each(scene: Scene) -> None:
    assert scene.hub.sent_bytes == 0
    frames = scene.publish(b"sent to no connection")
    assert scene.hub.sent_bytes == 0
    for _ in range(3):
        scene.join()
        scene.join_with_socket()
    frames = scene.publish(b"a", b"update")
    assert scene.hub.sent_bytes == 6 * len(frames)


def test_bytes_for_a_filter_are_counted_when_they_are_sent(scene: Scene) -> None:
    everything = scene.join_with_socket()
    some = scene.join_with_socket(wanted=OneType("b"))
    none = scene.join_with_socket(wanted=OneType("c"))
    with_ids = scene.join_with_socket(after="")
    scene.turns.settle()
    scene.publish("a", "b")
    received = [len(each.read()) for each in (everything, some, none, with_ids)]
    assert received[2] == 0
    assert scene.hub.sent_bytes == sum(received)


def test_bytes_that_a_socket_does_not_take_are_counted_when_they_are_sent(scene: Scene) -> None:
    slow, ready = scene.join_with_socket(LITTLE_ROOM), scene.join_with_socket()
    frames = scene.publish(*[b"x" * 3000] * 30)
    sent_bytes = scene.hub.sent_bytes
    assert len(frames) < sent_bytes < 2 * len(frames)
    read_on(scene, slow)
    assert slow.received == ready.read() == frames
    assert scene.hub.sent_bytes == 2 * len(frames)


@pytest.mark.parametrize("size", [100, CATCH_UP_BYTES, 2**18], ids=["small", "piece", "pieces"])
def test_bytes_of_large_updates_are_counted_with_and_without_a_descriptor(size: int) -> None:
    with closing(Scene(log_bytes=2**24)) as scene:
        subscribers = [scene.join() for _ in range(5)]
        with_socket = scene.join_with_socket()
        frames = scene.publish(b"x" * size)
        read_on(scene, with_socket)
        scene.turns.settle()
        assert all(each.received == frames for each in (*subscribers, with_socket))
        assert scene.hub.sent_bytes == 6 * len(frames)


def test_bytes_of_own_messages_are_counted(scene: Scene) -> None:
    resumed, live_one = scene.join_with_socket(after=""), scene.join(after="")
    scene.turns.settle()
    scene.hub.send_own_message(lambda _: b'{"type":"gap","data":{},"timestamp":1700000000000}')
    received = [resumed.read(), live_one.received]
    assert all(b"resume" in each and b"gap" in each for each in received)
    assert scene.hub.sent_bytes == sum(map(len, received))


def test_connections_and_their_bytes_are_counted_by_form(scene: Scene) -> None:
    congested = scene.join_with_socket(LITTLE_ROOM)
    clients: dict[Form, list[FakeSubscriber]] = {
        Form.TEXT: [congested, scene.join()],
        Form.TEXT_WITH_ID: [scene.join(after="", full=True)],
        Form.EVENT: [scene.join_with_socket(after="", form=Form.EVENT)],
    }
    scene.turns.settle()
    scene.publish("a", size=10_000)
    scene.turns.settle()
    assert {form: scene.hub.connections_in(form) for form in Form} == {form: len(clients[form]) for form in Form}
    assert {form: scene.hub.lagging_in(form) for form in Form} == {
        Form.TEXT: 1,
        Form.TEXT_WITH_ID: 1,
        Form.EVENT: 0,
    }
    while congested.congested:
        congested.read()
        congested.drain()
        scene.turns.settle()
    for each in (*clients[Form.TEXT], *clients[Form.EVENT]):
        if isinstance(each, SocketSubscriber):
            each.read()
    for form, members in clients.items():
        assert scene.hub.sent_bytes_in(form) == sum(len(each.received) for each in members)


def test_bytes_that_a_transport_refuses_and_control_frames_are_not_counted(scene: Scene) -> None:
    broken, congested, left, ready = scene.join(), scene.join(full=True), scene.join(), scene.join_with_socket()
    broken.fault = RuntimeError("gone")
    frames = scene.publish(b"update")
    assert scene.hub.sent_bytes == 3 * len(frames)
    left.leaves = True
    scene.publish(b"update")
    congested.leaves = True
    congested.drain()
    scene.turns.settle()
    ready.close(CloseReason.IDLE)
    # The transport of the live connection accepted the update, and only then reported that the connection had ended.
    assert scene.hub.sent_bytes == 5 * len(frames)


# Events in any order


LOG_BYTES = 40_000


@settings(max_examples=examples(80), stateful_step_count=40)
class AnyOrder(RuleBasedStateMachine):
    """Publishes updates, makes connections congested, and drains connections, in any order.

    Checks that each client receives the published updates in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scene = Scene(log_bytes=LOG_BYTES, storms=True)
        self.frames: list[bytes] = []
        """All published frames."""
        self.subscribers: list[tuple[FakeSubscriber, int]] = []
        """Each client, with the number of frames that were flushed before the client joined."""
        self._many = live_set.MIN_BATCHED_SOCKETS
        self._group = live_set.GROUP_SOCKETS, live_set.ENCRYPTED_BYTES
        self._max_joins = join_storm.MAX_JOINS
        self.counted = True
        """False once the test can no longer know how many bytes were sent to each client."""

    @initialize(
        many=st.sampled_from([1, 3, 1000]), group=st.sampled_from([1, 3, 512]), joins=st.sampled_from([1, 3, 512])
    )
    def limits_are_small_or_large(self, many: int, group: int, joins: int) -> None:
        live_set.MIN_BATCHED_SOCKETS, join_storm.MAX_JOINS = many, joins
        live_set.GROUP_SOCKETS, live_set.ENCRYPTED_BYTES = group, group * 1000

    @property
    def with_sockets(self) -> list[SocketSubscriber]:
        return [subscriber for subscriber, _ in self.subscribers if isinstance(subscriber, SocketSubscriber)]

    @rule(size=st.sampled_from([60, 100, 130, 3000, 9000, 20_000, 50_000]), times=st.integers(1, 12))
    def publish(self, size: int, times: int) -> None:
        for _ in range(times):
            payload = f"{len(self.frames):06}".encode() + b"." * size
            self.frames.append(text_frame(payload))
            self.scene.hub.publish(payload)

    @rule()
    def flush(self) -> None:
        self.scene.hub.flush()

    @rule(steps=st.sampled_from([None, 1, 2, 5]))
    def end_turns_after(self, steps: int | None) -> None:
        self.scene.turn.steps = steps

    @rule(full=st.booleans())
    def join(self, *, full: bool) -> None:
        self.subscribers.append((self.scene.join(full=full), self.scene.log.flushed))

    @rule(room_bytes=st.sampled_from([LITTLE_ROOM, 10_000, 40_000, None]))
    def join_with_socket(self, room_bytes: int | None) -> None:
        self.subscribers.append((self.scene.join_with_socket(room_bytes), self.scene.log.flushed))

    @rule(which=st.integers(0, 9), full=st.booleans())
    def congest(self, which: int, *, full: bool) -> None:
        for subscriber, _ in self.subscribers[which : which + 1]:
            subscriber.full = full and subscriber.descriptor is None

    @rule(which=st.integers(0, 9), full=st.booleans())
    def drain(self, which: int, *, full: bool) -> None:
        for subscriber, _ in self.subscribers[which : which + 1]:
            if subscriber.congested:
                subscriber.drain(full=full)

    @rule(which=st.integers(0, 5), max_bytes=st.sampled_from([1, 100, 5000, 1_000_000]))
    def read(self, which: int, max_bytes: int) -> None:
        for subscriber in self.with_sockets[which : which + 1]:
            if not subscriber.vanished:
                subscriber.read(max_bytes)

    @rule(which=st.integers(0, 5))
    def write_something_else(self, which: int) -> None:
        for subscriber in self.with_sockets[which : which + 1]:
            # A control frame can't be written in the middle of another frame.
            if subscriber.closed is None and not subscriber.offset:
                subscriber.write(FILLER)

    @rule(which=st.integers(0, 9))
    def close(self, which: int) -> None:
        for subscriber, _ in self.subscribers[which : which + 1]:
            if subscriber.closed is None and not (isinstance(subscriber, SocketSubscriber) and subscriber.gone):
                subscriber.close(CloseReason.IDLE)

    @rule(which=st.integers(0, 5))
    def vanish(self, which: int) -> None:
        for subscriber in self.with_sockets[which : which + 1]:
            subscriber.vanish()
            self.counted = False

    @rule()
    def turn(self) -> None:
        self.scene.turns.turn()

    @rule()
    def end_window(self) -> None:
        self.scene.turns.end_timers()

    @rule(which=st.integers(0, 9))
    def leave(self, which: int) -> None:
        for subscriber, _ in self.subscribers[which : which + 1]:
            self.scene.hub.leave(subscriber)
            if isinstance(subscriber, SocketSubscriber):
                subscriber.end()
            self.subscribers.pop(which)
            self.counted = False

    @invariant()
    def clients_receive_published_frames_in_order(self) -> None:
        for subscriber, first in self.subscribers:
            texts, others, rest = apart(subscriber.received)
            assert b"".join(self.frames[first:]).startswith(texts + (rest if rest[:1] == b"\x81" else b""))
            assert all(other == FILLER for other in others) or subscriber.closed
            assert subscriber.closed in {None, CloseReason.TOO_SLOW, CloseReason.IDLE}

    @invariant()
    def no_connection_is_forgotten(self) -> None:
        open_ones = [
            subscriber
            for subscriber, _ in self.subscribers
            if subscriber.closed is None and subscriber.state is not State.CLOSED
        ]
        assert len(self.scene.hub) == len(open_ones)

    @invariant()
    def no_connection_with_a_descriptor_is_live_and_congested_or_closed(self) -> None:
        for subscriber in self.with_sockets:
            assert subscriber.slot < 0 or not (subscriber.congested or subscriber.closed)

    @invariant()
    def log_is_bounded(self) -> None:
        assert self.scene.log.size_bytes <= LOG_BYTES or len(self.scene.log) == 1

    def teardown(self) -> None:
        live_set.MIN_BATCHED_SOCKETS, join_storm.MAX_JOINS = self._many, self._max_joins
        live_set.GROUP_SOCKETS, live_set.ENCRYPTED_BYTES = self._group
        with closing(self.scene):
            self.settle()
            assert self.scene.hub.lagging == 0
            received_bytes = 0
            for subscriber, first in self.subscribers:
                texts, others, rest = apart(subscriber.received)
                received_bytes += len(texts) + len(rest)
                self.counted = self.counted and not subscriber.was_reset
                if isinstance(subscriber, SocketSubscriber) and subscriber.vanished:
                    assert subscriber.gone
                elif subscriber.closed is None:
                    assert (texts, rest) == (b"".join(self.frames[first:]), b"")
                elif subscriber.was_reset:
                    assert others == [FILLER] * len(others), "no close frame comes in the middle of a frame"
                else:
                    if subscriber.closed is CloseReason.TOO_SLOW:
                        assert int(str(subscriber.details["updates_behind"])) > 0
                    if subscriber.descriptor is not None:
                        assert (others[-1][:1], rest) == (b"\x88", b"")
            assert not self.counted or self.scene.hub.sent_bytes == received_bytes

    def settle(self) -> None:
        while self.scene.turns.timers:
            self.scene.turns.end_timers()
        self.scene.turns.settle()
        self.scene.hub.flush()
        self.scene.turns.settle()
        for subscriber, _ in self.subscribers:
            if isinstance(subscriber, SocketSubscriber):
                if subscriber.vanished:
                    subscriber.write(FILLER)
                elif not subscriber.was_reset:
                    read_on(self.scene, subscriber)
            elif subscriber.closed is None:
                subscriber.drain()
        self.scene.turns.settle()


test_every_connection_gets_all_updates_since_it_joined_or_is_too_slow = AnyOrder.TestCase


def test_many_tiny_updates_of_one_flush_reach_all_clients() -> None:
    with closing(Scene(log_bytes=65536)) as scene:
        subscriber, with_socket = scene.join(), scene.join_with_socket()
        frames = scene.publish(*[b'{"type":"a","data":1,"timestamp":1700000000000}'] * 400)
        scene.turns.settle()
        assert subscriber.received == with_socket.read() == frames


def test_connection_whose_close_raises_too_does_not_delay_others(scene: Scene) -> None:
    subscribers = [scene.join() for _ in range(5)]
    broken = subscribers[2]

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("again")

    broken.fault = RuntimeError("gone")
    broken.close = fail  # type: ignore[method-assign]  # the fault that the test is about
    frames = scene.publish(b"update")
    assert all(each.writes == [frames] for each in subscribers if each is not broken)


def test_connection_that_raises_while_it_catches_up_is_closed(scene: Scene) -> None:
    subscriber = scene.lagging(b"second")
    subscriber.fault = RuntimeError("gone")
    subscriber.drain()
    scene.turns.turn()
    assert subscriber.closed is CloseReason.INTERNAL
