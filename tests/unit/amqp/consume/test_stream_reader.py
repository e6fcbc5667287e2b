"""Tests which gaps a bridge reports, because events may be missing, or because a marker contains a gap."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import aiormq
import pytest
from structlog.testing import capture_logs

from bridge.amqp import status
from bridge.amqp.consume import gaps, stream_markers
from bridge.amqp.consume import stream_reader as module
from bridge.amqp.consume.gaps import GapReporter
from bridge.amqp.consume.stream_markers import StreamMarker
from bridge.amqp.consume.stream_position import RECREATED, TRUNCATED
from bridge.amqp.consume.stream_reader import AWAY, SEGMENTS, TOKENS, StreamConfig, StreamReader
from bridge.amqp.status import Gap, State, Status
from bridge.contract.update_id import UpdateId
from bridge.errors import BrokerRefusal
from bridge.metrics import Metrics
from tests.support.delivery_handler import Recorder
from tests.support.fake_amqp import REFUSED, FakeAmqp
from tests.support.virtual_time import VirtualTime

if TYPE_CHECKING:
    from collections.abc import Callable

STREAM = StreamConfig("kept", 3600.5, 64 * 2**20, window=100)
DECLARE = "queue kept declare durable"
LOOK = "queue kept passive"
ABSENT = aiormq.exceptions.ChannelNotFoundEntity("NOT_FOUND - no queue 'kept' in vhost '/'")


class FakeEndProbe:
    """A fake probe that finds the stream's end at once, and records the token and the gap of the marker."""

    end_at = 10
    instances: list[FakeEndProbe]

    def __init__(self) -> None:
        self.token = ""
        self.gap: Gap | None = None

    @classmethod
    async def listen(cls, _amqp: object, _stream: str, _retry_s: float) -> FakeEndProbe:
        cls.instances.append(cls())
        return cls.instances[-1]

    async def end(self, token: str, gap: Callable[[], Gap | None]) -> int:
        self.token, self.gap = token, gap()
        return self.end_at


class Reader:
    """A reader of a stream."""

    def __init__(self, *, several_nodes: bool = False) -> None:
        self.recorder = Recorder()
        self.metrics = Metrics()
        self.gaps = GapReporter(self.recorder, self.metrics)
        self.status = Status()
        self.reader = StreamReader(STREAM, self.gaps, self.status, ("one", "two") if several_nodes else ("one",))

    async def begin(self, amqp: FakeAmqp | None = None, *, created: bool = False) -> Gap | None:
        """Begins a session, and returns the gap in the session's marker."""
        await self.reader.prepare((amqp or FakeAmqp()).amqp)
        await self.reader.begin_session(created)
        return FakeEndProbe.instances[-1].gap

    @property
    def counted(self) -> float | None:
        return self.metrics.registry.get_sample_value("bridge_gaps_total")


@pytest.fixture(autouse=True)
async def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    FakeEndProbe.instances = []
    monkeypatch.setattr(module, "StreamEndProbe", FakeEndProbe)
    return VirtualTime(monkeypatch, module, status, gaps)


@pytest.fixture
async def stage(clock: VirtualTime) -> Reader:
    return Reader()


def assert_gap(gap: Gap | None, since_s: float, until_s: float, reason: str) -> None:
    """Checks the reason for a gap, and its times, which may have rounding errors."""
    assert gap is not None
    assert gap.since_s == pytest.approx(since_s)
    assert gap.until_s == pytest.approx(until_s)
    assert gap.reason == reason


# Declaration


def test_stream_is_declared_with_bounds_and_small_segments() -> None:
    assert STREAM.arguments == {
        "x-queue-type": "stream",
        "x-max-age": "3601s",
        "x-max-length-bytes": 64 * 2**20,
        "x-stream-max-segment-size-bytes": 64 * 2**20 // SEGMENTS,
    }


async def test_missing_stream_is_declared_with_its_bounds(stage: Reader) -> None:
    amqp = FakeAmqp().on(LOOK, ABSENT)
    queue = await stage.reader.prepare(amqp.amqp)
    assert (queue.name, queue.created) == ("kept", True)
    assert STREAM.arguments in [argument for channel in amqp.channels for argument in channel.arguments]


async def test_existing_stream_is_used_as_it_is(stage: Reader) -> None:
    amqp = FakeAmqp()
    with capture_logs() as logged:
        queue = await stage.reader.prepare(amqp.amqp)
    assert (queue.created, logged) == (False, [])
    assert amqp.channels[-1].is_closed


async def test_other_limits_of_an_existing_stream_are_logged_once(stage: Reader) -> None:
    words = "PRECONDITION_FAILED - inequivalent arg 'x-max-age' for queue 'kept' in vhost '/': received '1h'"
    amqp = FakeAmqp().on(DECLARE, aiormq.exceptions.ChannelPreconditionFailed(words))
    with capture_logs() as logged:
        for _ in range(2):
            assert not (await stage.reader.prepare(amqp.amqp)).created
    [line] = logged
    assert (line["log_level"], line["difference"]) == ("warning", words)


async def test_stream_that_may_not_be_declared_is_used_if_it_exists(stage: Reader) -> None:
    with capture_logs() as logged:
        assert not (await stage.reader.prepare(FakeAmqp().on(DECLARE, REFUSED).amqp)).created
    assert logged == []


NO_STREAM = "the queue 'kept' is not a stream"
TOO_OLD = r"can't declare the stream 'kept', which needs RabbitMQ 3\.9 or newer, with its feature flag stream_queue"


@pytest.mark.parametrize(
    ("look", "declare", "words"),
    [
        (
            None,
            aiormq.exceptions.ChannelPreconditionFailed("PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for"),
            NO_STREAM,
        ),
        (aiormq.exceptions.ChannelLockedResource("RESOURCE_LOCKED - exclusive access"), None, NO_STREAM),
        (ABSENT, REFUSED, r"it needs configure on the queue 'kept', which does not exist yet \(or set BRIDGE_HISTORY="),
        (
            ABSENT,
            aiormq.exceptions.ChannelPreconditionFailed("PRECONDITION_FAILED - invalid arg 'x-queue-type'"),
            TOO_OLD,
        ),
        (ABSENT, aiormq.exceptions.ConnectionClosed(541, "INTERNAL_ERROR - feature flag is disabled"), TOO_OLD),
    ],
    ids=["another queue", "an exclusive queue", "permission", "before 3.9", "feature flag"],
)
async def test_stream_that_can_not_be_used_is_a_refusal(
    stage: Reader, look: object, declare: object, words: str
) -> None:
    with pytest.raises(BrokerRefusal, match=words):
        await stage.reader.prepare(FakeAmqp().on(LOOK, look).on(DECLARE, declare).amqp)


async def test_other_error_of_the_stream_is_no_refusal(stage: Reader) -> None:
    error = aiormq.exceptions.ConnectionClosed(541, "INTERNAL_ERROR")
    with pytest.raises(aiormq.exceptions.ConnectionClosed):
        await stage.reader.prepare(FakeAmqp().on(LOOK, ABSENT).on(DECLARE, error).amqp)


# Why events may have been lost


async def test_first_session_of_a_bridge_has_missed_nothing(stage: Reader) -> None:
    assert await stage.begin() is None
    assert not stage.reader.gap_possible
    assert stage.reader.start_offset == 0
    assert stage.reader.position.end == FakeEndProbe.end_at


async def test_begin_of_a_session_proves_that_the_connection_works(stage: Reader, clock: VirtualTime) -> None:
    stage.status.failed_connects = 3
    await stage.begin()
    assert stage.status.failed_connects == 0
    assert stage.status.last_answered_s == clock.now_s


@pytest.mark.parametrize("broker_may_have_restarted", [True, False])
@pytest.mark.parametrize("away_s", [0.0, 100.0])
async def test_broker_that_was_lost_without_a_reason_may_have_lost_events_however_soon_it_is_back(
    stage: Reader, clock: VirtualTime, away_s: float, *, broker_may_have_restarted: bool
) -> None:
    await stage.begin()
    stage.status.enter(State.WORKING)
    stage.status.enter(State.LOST, "gone")
    answered_s = clock.time()
    clock.now_s += away_s
    stage.status.broker_may_have_restarted = broker_may_have_restarted
    gap = await stage.begin()
    assert (gap is not None) is broker_may_have_restarted
    assert stage.reader.gap_possible is broker_may_have_restarted
    if gap is not None:
        assert_gap(gap, answered_s, clock.time(), AWAY)
    assert not stage.status.broker_may_have_restarted, "the marker reports the loss to all readers"


@pytest.mark.parametrize(("attempts", "is_gap"), [(1, False), (2, True)])
async def test_broker_that_did_not_answer_the_first_attempt_may_have_been_restarted_before_the_next(
    stage: Reader, attempts: int, *, is_gap: bool
) -> None:
    await stage.begin()
    stage.status.enter(State.WORKING)
    stage.status.enter(State.LOST, "closed with a reason")
    stage.status.attempts = attempts
    gap = await stage.begin()
    assert (gap and gap.reason) == (AWAY if is_gap else None)


@pytest.mark.parametrize(("failed_connects", "is_gap"), [(0, False), (1, True)])
@pytest.mark.parametrize("several", [True, False])
async def test_node_that_was_away_may_have_lost_events_whatever_the_time(
    clock: VirtualTime, failed_connects: int, *, several: bool, is_gap: bool
) -> None:
    """Events may have been lost if the broker has several nodes, or if its only node started after the bridge."""
    stage = Reader(several_nodes=several)
    await stage.begin()
    if several:
        stage.status.enter(State.WORKING)
        stage.status.broker_may_have_restarted = True
        clock.now_s += 100
    stage.status.failed_connects = failed_connects
    gap = await stage.begin()
    assert (gap and gap.reason) == (AWAY if is_gap else None)


async def test_bridge_that_never_worked_does_not_blame_the_broker(stage: Reader, clock: VirtualTime) -> None:
    clock.now_s += 100
    assert await stage.begin() is None


async def test_gap_of_a_bridge_without_any_answer_begins_with_the_bridge(stage: Reader, clock: VirtualTime) -> None:
    began_s = clock.time()
    clock.now_s += 100
    stage.status.failed_connects = 1
    gap = await stage.begin()
    assert_gap(gap, began_s, clock.time(), AWAY)


async def test_stream_that_was_just_declared_has_lost_nothing(stage: Reader) -> None:
    stage.status.failed_connects = 1
    assert await stage.begin(FakeAmqp().on(LOOK, ABSENT), created=True) is None


@pytest.mark.parametrize(
    ("error", "reason"), [("gone", "gone"), (None, "an exchange, a queue or a stream was missing")]
)
async def test_missing_part_is_a_gap_with_the_last_error_as_its_reason(
    stage: Reader, error: str | None, reason: str
) -> None:
    await stage.begin()
    stage.status.enter(State.WORKING)
    if error:
        stage.status.enter(State.LOST, error)
    gap = await stage.begin(created=True)
    assert gap is not None
    assert gap.reason == reason
    assert stage.reader.gap_possible


async def test_stream_that_was_declared_again_has_a_gap_if_the_old_one_was_read(stage: Reader) -> None:
    await stage.begin()
    stage.status.enter(State.WORKING)
    stage.reader.position.observe(20, 1)
    assert await stage.begin() is None
    assert stage.reader.gap_possible
    assert stage.reader.start_offset == 0


async def test_stream_that_is_declared_again_while_it_is_read_is_reported_by_its_reader(stage: Reader) -> None:
    """If the stream is declared again, no gap is reported before the reader knows if it missed events."""
    await stage.begin()
    stage.reader.position.observe(10, 1)
    queue = await stage.reader.prepare(FakeAmqp().on(LOOK, ABSENT).amqp)
    assert not queue.created


async def test_tokens_of_two_sessions_differ_and_begin_alike(stage: Reader) -> None:
    for _ in range(2):
        await stage.begin()
    first, second = (each.token for each in FakeEndProbe.instances)
    assert first != second
    assert first[:16] == second[:16] == stage.reader._instance
    assert Reader().reader._instance != stage.reader._instance


# Markers


GAP = Gap(1.0, 2.0, "away")
MARKER_ID = UpdateId(41, 0xABCD)


def marker(token: str, gap: Gap | None = GAP) -> bytes:
    return stream_markers.encode(StreamMarker(token, gap))


async def test_gap_of_an_own_marker_is_logged_counted_and_kept(stage: Reader) -> None:
    with capture_logs() as logged:
        stage.reader.on_marker(marker(f"{stage.reader._instance}1"), MARKER_ID)
    assert (stage.recorder.gaps, stage.recorder.gap_ids) == ([GAP], [MARKER_ID])
    assert (stage.gaps.last, stage.counted) == (GAP, 1)
    assert [(line["log_level"], line["reason"]) for line in logged] == [("warning", "away")]


async def test_gap_of_marker_of_another_bridge_is_only_forwarded(stage: Reader) -> None:
    with capture_logs() as logged:
        stage.reader.on_marker(marker("theirs"), MARKER_ID)
    assert (stage.recorder.gaps, stage.recorder.gap_ids) == ([GAP], [MARKER_ID])
    assert (stage.gaps.last, stage.counted) == (None, 0)
    assert [line["event"] for line in logged] == ["events may have been missed, according to the stream"]


@pytest.mark.parametrize("own", [True, False])
async def test_marker_that_was_published_twice_is_reported_once(stage: Reader, *, own: bool) -> None:
    token = f"{stage.reader._instance if own else 'theirs'}1"
    for _ in range(3):
        stage.reader.on_marker(marker(token), MARKER_ID)
    assert stage.recorder.gaps == [GAP]


async def test_markers_of_many_bridges_that_reconnect_together_are_reported_separately(stage: Reader) -> None:
    for _ in range(2):
        for number in range(TOKENS):
            stage.reader.on_marker(marker(f"bridge {number}"), MARKER_ID)
    assert len(stage.recorder.gaps) == TOKENS
    stage.reader.on_marker(marker("one more"), MARKER_ID)
    stage.reader.on_marker(marker("bridge 0"), MARKER_ID)
    assert len(stage.recorder.gaps) == TOKENS + 2, "more tokens than that are not remembered"


@pytest.mark.parametrize("body", [b"no mark", marker("theirs", None)])
async def test_marker_without_a_gap_reports_none(stage: Reader, body: bytes) -> None:
    assert not stage.reader.on_marker(body, MARKER_ID)
    assert stage.recorder.gaps == []
    assert stage.reader.on_marker(marker("theirs"), MARKER_ID)
    assert stage.recorder.gaps == [GAP], "only markers with a gap are remembered"


# Reports


@pytest.mark.parametrize(
    ("lost", "slug"),
    [(TRUNCATED, "stream-truncated"), (RECREATED, "stream-recreated"), ("of a kind to come", "broker-away")],
)
async def test_lost_events_are_reported_once_since_the_last_proven_end(
    stage: Reader, clock: VirtualTime, lost: str, slug: str
) -> None:
    clock.now_s += 60
    last_answered_s = clock.time()
    await stage.begin()
    clock.now_s += 60
    stage.reader.position.observe(FakeEndProbe.end_at, 7)
    stage.reader.on_expected_end()
    clock.now_s += 60
    stage.reader.position.loss = lost
    with capture_logs() as logged:
        stage.reader.report_loss()
    [gap] = stage.recorder.gaps
    assert_gap(gap, last_answered_s, clock.time(), lost)
    assert gap.slug == slug
    assert stage.recorder.gap_ids == [UpdateId(FakeEndProbe.end_at, 7, before=True)]
    assert [line["reason"] for line in logged] == [lost]
    assert stage.reader.position.loss is None
    assert stage.counted == 1


async def test_end_is_proven_when_it_is_read_and_a_pending_proof_is_not_replaced(
    stage: Reader, clock: VirtualTime
) -> None:
    """If each probe replaced the pending proof, a reader that always lags behind would never prove anything."""
    began_s = clock.monotonic()
    await stage.begin()
    assert stage.reader.expected_end == FakeEndProbe.end_at
    clock.now_s += 10
    stage.reader.expect_end(20, clock.monotonic())
    assert stage.reader.expected_end == FakeEndProbe.end_at
    stage.reader.position.observe(FakeEndProbe.end_at, 7)
    stage.reader.on_expected_end()
    assert (stage.reader.expected_end, stage.gaps._complete_until_s) == (math.inf, began_s)
    stage.reader.expect_end(20, clock.monotonic())
    assert (stage.reader.expected_end, stage.gaps._complete_until_s) == (20, began_s)


async def test_end_that_is_read_already_is_proven_at_once(stage: Reader, clock: VirtualTime) -> None:
    await stage.begin()
    stage.reader.position.observe(FakeEndProbe.end_at, 7)
    clock.now_s += 10
    stage.reader.expect_end(FakeEndProbe.end_at, clock.monotonic())
    assert stage.gaps._complete_until_s == clock.monotonic()


async def test_readiness_reports_the_position_in_the_stream(stage: Reader) -> None:
    assert stage.reader.report() == {"stream": "kept", "read": False, "last": None, "end": 0}
    await stage.begin()
    stage.reader.position.observe(FakeEndProbe.end_at, 7)
    assert stage.reader.report() == {"stream": "kept", "read": True, "last": 10, "end": 10}


async def test_end_of_the_history_is_logged_with_its_time(stage: Reader, clock: VirtualTime) -> None:
    stage.reader.position.observe(5, 7)
    clock.now_s += 3
    with capture_logs() as logged:
        stage.reader.log_caught_up()
    [line] = logged
    assert (line["event"], line["last"], line["after_s"]) == ("history read", str(UpdateId(5, 7)), 3.0)
