"""Tests when the bridge pauses reading from the broker, and which prefetch the next session gets."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from bridge.amqp.consume.flow_control import FlowControl
from bridge.amqp.wire.fast_channel import FastChannel
from tests.support.fake_amqp import FakeTransport

MAX_PREFETCH = 200


class Stage:
    """A `FlowControl`, and the fake transport of the sessions that it controls."""

    def __init__(self, max_prefetch: int = MAX_PREFETCH) -> None:
        self.transport = FakeTransport()
        self.flow_control = FlowControl(max_prefetch)

    def begin_session(self) -> None:
        fast_channel = FastChannel()
        fast_channel.attach(self.transport)
        self.flow_control.begin_session(fast_channel)

    @property
    def paused(self) -> list[bool]:
        """The calls that the transport got, with True for each pause and False for each resume."""
        return self.transport.paused


@pytest.fixture
async def stage() -> Stage:
    return Stage()


async def test_reading_pauses_and_resumes(stage: Stage) -> None:
    stage.begin_session()
    stage.flow_control.set_full(True)
    assert stage.flow_control.paused
    stage.flow_control.set_full(False)
    assert (stage.paused, stage.flow_control.paused) == ([True, False], False)
    stage.flow_control.end_session(7)
    assert stage.flow_control.prefetch == MAX_PREFETCH


@pytest.mark.parametrize(("outstanding", "prefetch"), [(3, 3), (0, 1)])
async def test_session_after_a_paused_one_has_a_reduced_prefetch(stage: Stage, outstanding: int, prefetch: int) -> None:
    stage.begin_session()
    stage.flow_control.set_full(True)
    with capture_logs() as logged:
        stage.flow_control.end_session(outstanding)
    assert stage.flow_control.prefetch == prefetch
    assert [(line["log_level"], line["prefetch"]) for line in logged] == [("warning", prefetch)]
    assert stage.paused == [True, False], "the broker's last frames are read"


async def test_with_a_reduced_prefetch_reading_does_not_pause(stage: Stage) -> None:
    stage.begin_session()
    stage.flow_control.set_full(True)
    stage.flow_control.end_session(3)
    stage.paused.clear()
    stage.begin_session()
    stage.flow_control.set_full(True)
    assert (stage.paused, stage.flow_control.paused, stage.flow_control.prefetch_restorable.is_set()) == (
        [],
        False,
        False,
    )
    stage.flow_control.set_full(False)
    assert stage.flow_control.prefetch_restorable.is_set()
    stage.flow_control.on_prefetch_restored()
    assert (stage.paused, stage.flow_control.prefetch, stage.flow_control.prefetch_restorable.is_set()) == (
        [],
        MAX_PREFETCH,
        False,
    )
    stage.flow_control.set_full(True)
    assert stage.paused == [True]


async def test_reading_pauses_if_the_room_is_filled_while_the_prefetch_is_restored(stage: Stage) -> None:
    stage.begin_session()
    stage.flow_control.set_full(True)
    stage.flow_control.end_session(3)
    stage.paused.clear()
    stage.begin_session()
    for full in (True, False, True):
        stage.flow_control.set_full(full)
    assert stage.paused == [], "the broker's answer must still be read"
    stage.flow_control.on_prefetch_restored()
    assert (stage.paused, stage.flow_control.paused) == ([True], True)


async def test_reduced_prefetch_lasts_for_one_session(stage: Stage) -> None:
    stage.begin_session()
    stage.flow_control.set_full(True)
    stage.flow_control.end_session(3)
    stage.begin_session()
    stage.flow_control.set_full(True)
    stage.flow_control.end_session(3)
    assert stage.flow_control.prefetch == MAX_PREFETCH


async def test_reading_pauses_while_updates_wait(stage: Stage) -> None:
    stage.begin_session()
    stage.flow_control.set_behind(True)
    stage.flow_control.set_behind(False)
    assert (stage.paused, stage.flow_control.paused) == ([True, False], False)


@pytest.mark.parametrize("first", ["held events", "updates"])
async def test_reading_resumes_when_neither_events_are_held_nor_updates_wait(stage: Stage, first: str) -> None:
    stage.begin_session()
    stage.flow_control.set_full(True)
    stage.flow_control.set_behind(True)
    if first == "updates":
        stage.flow_control.set_behind(False)
    else:
        stage.flow_control.set_full(False)
    assert set(stage.paused) == {True}
    stage.flow_control.set_full(False)
    stage.flow_control.set_behind(False)
    assert stage.paused[-1] is False


async def test_session_that_begins_while_updates_wait_is_paused(stage: Stage) -> None:
    stage.flow_control.set_behind(True)
    stage.begin_session()
    assert stage.paused == [True]
    with capture_logs() as logged:
        stage.flow_control.end_session(3)
    assert (logged, stage.flow_control.prefetch) == ([], MAX_PREFETCH)
    assert stage.paused == [True, False], "the broker's last frames are read"
    stage.flow_control.set_behind(False)
    assert stage.paused == [True, False]


async def test_one_delivery_at_a_time_is_always_read() -> None:
    """The prefetch can't be 0, because 0 means that there is no limit.

    The bridge must not stop reading, because the broker would then close the connection.
    """
    stage = Stage(1)
    stage.begin_session()
    stage.flow_control.set_full(True)
    assert (stage.paused, stage.flow_control.paused) == ([], False)
    stage.flow_control.set_full(False)
    assert not stage.flow_control.prefetch_restorable.is_set(), "there is nothing to restore"


async def test_between_two_sessions_nothing_is_paused(stage: Stage) -> None:
    stage.flow_control.set_full(True)
    stage.begin_session()
    assert (stage.paused, stage.flow_control.paused) == ([], False)
