"""The hub, rule by rule; then, whatever clients do, each gets everything in order or is told why not."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from bridge.fanout.closing import CloseReason
from bridge.fanout.frames import text_frame
from bridge.fanout.hub import CATCH_UP_BYTES, FLUSH_BYTES, Hub
from bridge.fanout.log import ENTRY_BYTES, Log
from bridge.metrics import Metrics
from tests.support.fakes import FakeSubscriber, Turns

SMALL = b"x" * 58
"""A payload whose frame has 60 bytes."""


class Scene:
    """A hub with a loop that is turned by hand."""

    def __init__(self, log_bytes: int = 16 * 2**20) -> None:
        self.turns = Turns()
        self.log = Log(log_bytes)
        self.metrics = Metrics()
        self.hub = Hub(self.log, self.metrics, self.turns.call_soon, log_bytes)

    def join(self, *, full: bool = False) -> FakeSubscriber:
        subscriber = FakeSubscriber(self.hub)
        subscriber.full = full
        self.hub.join(subscriber)
        return subscriber

    def publish(self, *payloads: bytes) -> bytes:
        """Publishes in one turn, and turns; returns the frames."""
        for payload in payloads:
            self.hub.publish(payload)
        self.turns.turn()
        return b"".join(map(text_frame, payloads))

    def lagging(self, *payloads: bytes) -> FakeSubscriber:
        """A connection that took one update only in part, and after which these were published."""
        subscriber = self.join(full=True)
        self.publish(b"first")
        for payload in payloads:
            self.publish(payload)
        return subscriber

    def sends(self) -> tuple[float, float, float]:
        """Written, enqueued, dropped."""
        return (
            self.metrics.written._value.get(),
            self.metrics.enqueued._value.get(),
            self.metrics.dropped._value.get(),
        )


@pytest.fixture
def scene() -> Scene:
    return Scene()


# Publishing


def test_update_reaches_every_connection_in_the_same_turn(scene: Scene) -> None:
    subscribers = [scene.join() for _ in range(3)]
    frames = scene.publish(b"update")
    assert all(subscriber.writes == [frames] for subscriber in subscribers)
    assert not scene.turns.scheduled


def test_nothing_is_written_before_the_turn_ends(scene: Scene) -> None:
    subscriber = scene.join()
    scene.hub.publish(b"update")
    assert subscriber.writes == []


def test_updates_of_one_turn_travel_in_one_write_of_one_flush(scene: Scene) -> None:
    subscriber = scene.join()
    for payload in (b"a", b"b", b"c"):
        scene.hub.publish(payload)
    assert len(scene.turns.scheduled) == 1
    scene.turns.turn()
    assert subscriber.writes == [b"".join(map(text_frame, [b"a", b"b", b"c"]))]


def test_next_turn_has_a_flush_of_its_own(scene: Scene) -> None:
    subscriber = scene.join()
    frames = [scene.publish(b"a"), scene.publish(b"b")]
    assert subscriber.writes == frames


def test_publishing_to_nobody_fills_the_log(scene: Scene) -> None:
    scene.publish(b"a", b"b")
    assert len(scene.log) == 2
    assert scene.sends() == (0, 0, 0)


def test_flush_that_finds_nothing_new_writes_nothing(scene: Scene) -> None:
    subscriber = scene.join()
    scene.hub.flush()
    assert subscriber.writes == []


def test_updates_that_fill_one_write_exactly_wait_for_the_turn(scene: Scene) -> None:
    subscriber = scene.join()
    half = b"x" * (FLUSH_BYTES // 2 - 4)
    scene.hub.publish(half)
    scene.hub.publish(half)
    assert subscriber.writes == []
    scene.turns.turn()
    assert [len(write) for write in subscriber.writes] == [FLUSH_BYTES]


def test_update_that_no_longer_fits_flushes_the_ones_before_it(scene: Scene) -> None:
    subscriber = scene.join()
    half = b"x" * (FLUSH_BYTES // 2 - 4)
    scene.hub.publish(half)
    scene.hub.publish(half)
    scene.hub.publish(b"")
    assert [len(write) for write in subscriber.writes] == [FLUSH_BYTES]
    scene.turns.turn()
    assert [len(write) for write in subscriber.writes] == [FLUSH_BYTES, 2]


def test_bound_of_a_write_follows_a_small_log() -> None:
    scene = Scene(log_bytes=4000)
    subscriber = scene.join()
    scene.publish(*[SMALL] * 20)
    assert [len(write) for write in subscriber.writes] == [12 * 60, 8 * 60]


def test_update_larger_than_the_log_is_sent_all_the_same() -> None:
    scene = Scene(log_bytes=1000)
    subscriber = scene.join()
    frames = scene.publish(SMALL, b"y" * 5000, SMALL)
    assert subscriber.received == frames
    assert subscriber.closed is None


def test_connection_that_joins_later_gets_only_later_updates(scene: Scene) -> None:
    scene.publish(b"before")
    subscriber = scene.join()
    assert subscriber.received == b""
    assert subscriber.received + scene.publish(b"after") == subscriber.received


def test_connection_that_left_gets_nothing_more(scene: Scene) -> None:
    subscriber, other = scene.join(), scene.join()
    scene.hub.leave(subscriber)
    scene.publish(b"update")
    assert subscriber.writes == []
    assert len(other.writes) == 1


def test_hub_knows_how_many_are_connected_and_how_many_lag(scene: Scene) -> None:
    assert (len(scene.hub), scene.hub.lagging) == (0, 0)
    live, slow = scene.join(), scene.join(full=True)
    assert (len(scene.hub), scene.hub.lagging) == (2, 0)
    scene.publish(b"update")
    assert (len(scene.hub), scene.hub.lagging) == (2, 1)
    scene.hub.leave(live)
    scene.hub.leave(slow)
    scene.hub.leave(slow)
    assert (len(scene.hub), scene.hub.lagging) == (0, 0)
    assert scene.metrics.opened._value.get() == 2


def test_flush_is_announced_after_its_frames_were_handed_out(scene: Scene) -> None:
    subscriber = scene.join()
    seen: list[bytes] = []
    scene.hub.on_flush = lambda: seen.append(subscriber.received)
    frames = scene.publish(b"a", b"b")
    assert seen == [frames]


def test_flush_ahead_of_its_turn_is_announced_before_the_next_update_is_taken() -> None:
    scene = Scene(log_bytes=4000)
    subscriber = scene.join()
    seen: list[int] = []
    scene.hub.on_flush = lambda: seen.append(len(subscriber.received))
    scene.publish(*[SMALL] * 17)
    assert seen[:2] == [12 * 60, 17 * 60]


# A connection that does not keep up


def test_congested_connection_lags_and_gets_no_more(scene: Scene) -> None:
    subscriber = scene.join(full=True)
    frames = scene.publish(b"taken in part")
    scene.publish(b"later")
    assert subscriber.writes == [frames]
    assert scene.hub.lagging == 1


def test_drained_connection_catches_up_and_is_live_again(scene: Scene) -> None:
    subscriber = scene.lagging(b"second", b"third")
    subscriber.drain()
    assert subscriber.writes[1:] == [text_frame(b"second") + text_frame(b"third")]
    assert scene.hub.lagging == 0
    frames = scene.publish(b"fourth")
    assert subscriber.writes[2:] == [frames]


def test_drained_connection_that_missed_nothing_is_live_again(scene: Scene) -> None:
    subscriber = scene.lagging()
    subscriber.drain()
    assert len(subscriber.writes) == 1
    assert scene.hub.lagging == 0


def test_connection_far_behind_is_given_one_piece_a_turn(scene: Scene) -> None:
    large = b"x" * (CATCH_UP_BYTES // 2 - 4)
    subscriber = scene.lagging(*[large] * 5)
    subscriber.drain()
    sizes = []
    while scene.hub.lagging:
        sizes.append(len(subscriber.writes[-1]))
        assert scene.turns.turn() == 1
    assert sizes == [CATCH_UP_BYTES, CATCH_UP_BYTES]
    assert [len(write) for write in subscriber.writes[1:]] == [CATCH_UP_BYTES, CATCH_UP_BYTES, CATCH_UP_BYTES // 2]
    assert subscriber.received == b"".join(map(text_frame, [b"first", *[large] * 5]))


def test_update_larger_than_a_piece_is_given_whole(scene: Scene) -> None:
    subscriber = scene.lagging(b"x" * 3 * CATCH_UP_BYTES)
    subscriber.drain()
    assert subscriber.writes[1:] == [text_frame(b"x" * 3 * CATCH_UP_BYTES)]


def test_connection_congested_again_waits_for_the_next_drain(scene: Scene) -> None:
    subscriber = scene.lagging(b"x" * CATCH_UP_BYTES, b"y" * CATCH_UP_BYTES)
    subscriber.drain(full=True)
    assert len(subscriber.writes) == 2
    assert not scene.turns.scheduled
    subscriber.drain()
    scene.turns.settle()
    assert len(subscriber.writes) == 3
    assert scene.hub.lagging == 0


def test_connection_congested_by_something_else_before_its_turn_waits(scene: Scene) -> None:
    subscriber = scene.lagging(b"x" * CATCH_UP_BYTES, b"y" * CATCH_UP_BYTES)
    subscriber.drain()
    subscriber.congested = True
    scene.turns.settle()
    assert len(subscriber.writes) == 2
    subscriber.drain()
    assert len(subscriber.writes) == 3


def test_update_published_while_a_connection_catches_up_comes_in_its_place(scene: Scene) -> None:
    subscriber = scene.lagging(b"x" * CATCH_UP_BYTES, b"y" * CATCH_UP_BYTES)
    subscriber.drain()
    scene.hub.publish(b"new")
    scene.turns.settle()
    frames = [b"first", b"x" * CATCH_UP_BYTES, b"y" * CATCH_UP_BYTES, b"new"]
    assert subscriber.received == b"".join(map(text_frame, frames))
    assert scene.hub.lagging == 0


def test_update_not_flushed_yet_is_left_to_the_flush_when_a_connection_catches_up(scene: Scene) -> None:
    subscriber = scene.lagging(b"second")
    scene.hub.publish(b"third")
    subscriber.drain()
    scene.turns.settle()
    assert subscriber.received == b"".join(map(text_frame, [b"first", b"second", b"third"]))


def test_drained_connection_that_never_lagged_or_left_is_given_nothing(scene: Scene) -> None:
    live, gone = scene.join(), scene.lagging(b"second")
    scene.hub.leave(gone)
    before = list(live.writes)
    live.drain()
    gone.drain()
    assert live.writes == before
    assert len(gone.writes) == 1


def test_connection_that_left_before_its_turn_is_given_nothing(scene: Scene) -> None:
    subscriber = scene.lagging(b"x" * CATCH_UP_BYTES, b"y" * CATCH_UP_BYTES)
    subscriber.drain()
    scene.hub.leave(subscriber)
    scene.turns.settle()
    assert len(subscriber.writes) == 2


def test_connection_that_drops_is_live_no_more(scene: Scene) -> None:
    subscriber = scene.join()
    subscriber.drops = True
    scene.publish(b"dropped")
    subscriber.drops = False
    scene.publish(b"not sent")
    assert subscriber.writes == []
    assert len(scene.hub) == 0


def test_connection_that_raises_is_closed_and_the_others_get_theirs(scene: Scene) -> None:
    subscribers = [scene.join() for _ in range(5)]
    broken = subscribers[2]
    broken.fault = RuntimeError("the transport is gone")
    frames = scene.publish(b"update")
    assert broken.closed is CloseReason.INTERNAL
    assert broken.details == {"error": "RuntimeError('the transport is gone')"}
    assert all(subscriber.writes == [frames] for subscriber in subscribers if subscriber is not broken)
    assert len(scene.hub) == 4
    assert scene.sends()[:2] == (4, 0)


# A connection that falls off the tail


ROOM = 4 * (60 + ENTRY_BYTES)
"""A log for four small updates."""


def test_connection_at_the_tail_stays() -> None:
    scene = Scene(log_bytes=ROOM)
    subscriber = scene.join(full=True)
    scene.publish(SMALL)
    for _ in range(4):
        scene.publish(SMALL)
    assert scene.log.tail == 1
    assert subscriber.closed is None
    subscriber.drain()
    scene.turns.settle()
    assert subscriber.received == text_frame(SMALL) * 5


def test_connection_behind_the_tail_is_closed_as_too_slow() -> None:
    scene = Scene(log_bytes=ROOM)
    subscriber = scene.join(full=True)
    scene.publish(SMALL)
    for _ in range(5):
        scene.publish(SMALL)
    assert subscriber.closed is CloseReason.TOO_SLOW
    assert subscriber.details == {"updates_behind": 5}
    assert (len(scene.hub), scene.hub.lagging) == (0, 0)


def test_only_connections_behind_the_tail_are_closed() -> None:
    scene = Scene(log_bytes=ROOM)
    slower = scene.join(full=True)
    scene.publish(SMALL)
    scene.publish(SMALL)
    less_slow = scene.join(full=True)
    live = scene.join()
    for _ in range(4):
        scene.publish(SMALL)
    assert slower.closed is CloseReason.TOO_SLOW
    assert less_slow.closed is None
    assert live.closed is None
    scene.publish(SMALL)
    assert less_slow.closed is None
    scene.publish(SMALL)
    assert less_slow.closed is CloseReason.TOO_SLOW


def test_connection_that_drains_between_the_append_and_the_flush_is_closed() -> None:
    scene = Scene(log_bytes=ROOM)
    subscriber = scene.lagging(SMALL)
    scene.hub.publish(b"x" * ROOM)
    assert scene.log.tail == 2
    assert subscriber.closed is None
    subscriber.drain()
    assert subscriber.closed is CloseReason.TOO_SLOW
    assert subscriber.details == {"updates_behind": 1}


# What is counted


def test_update_is_counted_as_written_once_for_each_connection_that_took_it(scene: Scene) -> None:
    scene.join()
    scene.join()
    scene.publish(b"a", b"b", b"c")
    assert scene.sends() == (6, 0, 0)


def test_update_is_counted_as_enqueued_for_each_connection_that_is_behind(scene: Scene) -> None:
    scene.join()
    scene.join(full=True)
    scene.publish(b"a", b"b")
    assert scene.sends() == (2, 2, 0)
    scene.publish(b"c")
    assert scene.sends() == (3, 3, 0)


def test_update_is_counted_as_dropped_when_a_connection_that_is_behind_leaves(scene: Scene) -> None:
    subscriber = scene.lagging(b"second", b"third")
    scene.hub.leave(subscriber)
    assert scene.sends() == (0, 3, 2)


def test_update_is_counted_as_dropped_when_a_connection_falls_off_the_tail() -> None:
    scene = Scene(log_bytes=ROOM)
    scene.join(full=True)
    for _ in range(6):
        scene.publish(SMALL)
    assert scene.sends() == (0, 6, 5)


def test_update_that_is_not_taken_is_counted_neither_as_written_nor_as_enqueued(scene: Scene) -> None:
    scene.join().drops = True
    scene.publish(b"update")
    assert scene.sends()[:2] == (0, 0)


# The end


def test_draining_closes_live_connections_after_what_was_published(scene: Scene) -> None:
    subscriber = scene.join()
    scene.hub.publish(b"last")
    scene.hub.drain()
    assert subscriber.received == text_frame(b"last")
    assert subscriber.closed is CloseReason.STOPPING


def test_draining_lets_a_lagging_connection_catch_up_before_it_is_closed(scene: Scene) -> None:
    subscriber = scene.lagging(b"x" * CATCH_UP_BYTES, b"y" * CATCH_UP_BYTES)
    scene.hub.drain()
    assert subscriber.closed is None
    subscriber.drain()
    assert subscriber.closed is None
    scene.turns.settle()
    assert subscriber.closed is CloseReason.STOPPING
    frames = [b"first", b"x" * CATCH_UP_BYTES, b"y" * CATCH_UP_BYTES]
    assert subscriber.received == b"".join(map(text_frame, frames))


def test_draining_closes_a_connection_whose_last_write_still_waits_once_that_is_out(scene: Scene) -> None:
    subscriber = scene.lagging()
    scene.hub.drain()
    assert subscriber.closed is None
    subscriber.drain()
    assert subscriber.closed is CloseReason.STOPPING


# Whatever happens, in any order


@settings(max_examples=60, stateful_step_count=40)
class AnyOrder(RuleBasedStateMachine):
    """Publishes, congestion and drains at random: what was sent is what was published, from the first to the last."""

    def __init__(self) -> None:
        super().__init__()
        self.scene = Scene(log_bytes=40_000)
        self.frames: list[bytes] = []
        """Everything ever published."""
        self.subscribers: list[tuple[FakeSubscriber, int]] = []
        """With the number of frames that had been flushed when it joined."""

    @rule(size=st.sampled_from([60, 100, 130, 3000, 9000, 20_000, 50_000]), times=st.integers(1, 12))
    def publish(self, size: int, times: int) -> None:
        for _ in range(times):
            payload = f"{len(self.frames):06}".encode() + b"." * size
            self.frames.append(text_frame(payload))
            self.scene.hub.publish(payload)

    @rule(full=st.booleans())
    def join(self, *, full: bool) -> None:
        self.subscribers.append((self.scene.join(full=full), self.scene.hub._flushed))

    @rule(which=st.integers(0, 9), full=st.booleans())
    def congest(self, which: int, *, full: bool) -> None:
        for subscriber, _ in self.subscribers[which : which + 1]:
            subscriber.full = full

    @rule(which=st.integers(0, 9), full=st.booleans())
    def drain(self, which: int, *, full: bool) -> None:
        for subscriber, _ in self.subscribers[which : which + 1]:
            if subscriber.congested:
                subscriber.drain(full=full)

    @rule()
    def turn(self) -> None:
        self.scene.turns.turn()

    @rule(which=st.integers(0, 9))
    def leave(self, which: int) -> None:
        for subscriber, _ in self.subscribers[which : which + 1]:
            self.scene.hub.leave(subscriber)
            self.subscribers.pop(which)

    @invariant()
    def what_was_sent_is_a_run_of_what_was_published(self) -> None:
        for subscriber, first in self.subscribers:
            received = subscriber.received
            assert b"".join(self.frames[first:]).startswith(received)
            assert subscriber.closed in {None, CloseReason.TOO_SLOW}

    @invariant()
    def nobody_is_forgotten(self) -> None:
        open_ones = [subscriber for subscriber, _ in self.subscribers if subscriber.closed is None]
        assert len(self.scene.hub) == len(open_ones)

    @invariant()
    def log_is_bounded(self) -> None:
        assert self.scene.log.size_bytes <= 40_000 or len(self.scene.log) == 1

    def teardown(self) -> None:
        self.scene.turns.settle()
        self.scene.hub.flush()
        for subscriber, _ in self.subscribers:
            if subscriber.closed is None:
                subscriber.drain()
        self.scene.turns.settle()
        assert self.scene.hub.lagging == 0
        for subscriber, first in self.subscribers:
            if subscriber.closed is None:
                assert subscriber.received == b"".join(self.frames[first:])
            else:
                assert subscriber.closed is CloseReason.TOO_SLOW
                assert int(str(subscriber.details["updates_behind"])) > 0


test_every_connection_gets_everything_since_it_joined_or_is_too_slow = AnyOrder.TestCase


def test_many_tiny_updates_of_one_turn_reach_everyone() -> None:
    scene = Scene(log_bytes=65536)
    subscriber = scene.join()
    frames = scene.publish(*[b'{"type":"a","data":1,"timestamp":1700000000000}'] * 400)
    assert subscriber.received == frames


def test_connection_whose_close_raises_too_holds_up_nobody(scene: Scene) -> None:
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
    assert subscriber.closed is CloseReason.INTERNAL


def test_update_lost_with_an_internal_error_is_counted_as_dropped(scene: Scene) -> None:
    scene.join().fault = RuntimeError("gone")
    scene.publish(b"update")
    assert scene.sends() == (0, 0, 1)
