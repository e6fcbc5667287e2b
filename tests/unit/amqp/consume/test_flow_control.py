"""When nothing is read from the broker, and how much the next session takes."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from bridge.amqp.consume.flow_control import FlowControl
from bridge.amqp.wire.fast_channel import FastChannel
from tests.support.fake_amqp import FakeTransport

MAX_PREFETCH = 200


class Stage:
    """A flow control, and the transport of its sessions."""

    def __init__(self, max_prefetch: int = MAX_PREFETCH) -> None:
        self.transport = FakeTransport()
        self.flow_control = FlowControl(max_prefetch)

    def begin_session(self) -> None:
        fast_channel = FastChannel()
        fast_channel.attach(self.transport)
        self.flow_control.begin_session(fast_channel)

    @property
    def paused(self) -> list[bool]:
        """Of each call of the transport, whether it paused reading."""
        return self.transport.paused


@pytest.fixture
async def stage() -> Stage:
    return Stage()


async def test_reading_stops_and_goes_on(stage: Stage) -> None:
    stage.begin_session()
    stage.flow_control.set_full(True)
    assert stage.flow_control.paused
    stage.flow_control.set_full(False)
    assert (stage.paused, stage.flow_control.paused) == ([True, False], False)
    stage.flow_control.end_session(7)
    assert stage.flow_control.prefetch == MAX_PREFETCH


@pytest.mark.parametrize(("outstanding", "prefetch"), [(3, 3), (0, 1)])
async def test_session_that_follows_one_in_which_nothing_was_read_takes_what_there_was_room_for(
    stage: Stage, outstanding: int, prefetch: int
) -> None:
    stage.begin_session()
    stage.flow_control.set_full(True)
    with capture_logs() as logged:
        stage.flow_control.end_session(outstanding)
    assert stage.flow_control.prefetch == prefetch
    assert [(line["log_level"], line["prefetch"]) for line in logged] == [("warning", prefetch)]
    assert stage.paused == [True, False], "what the broker says at the end is heard"


async def test_with_a_reduced_prefetch_all_is_read_until_there_is_room_for_more(stage: Stage) -> None:
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


async def test_room_that_fills_while_the_full_prefetch_is_agreed_ends_the_reading(stage: Stage) -> None:
    stage.begin_session()
    stage.flow_control.set_full(True)
    stage.flow_control.end_session(3)
    stage.paused.clear()
    stage.begin_session()
    for full in (True, False, True):
        stage.flow_control.set_full(full)
    assert stage.paused == [], "the broker's consent is still to be read"
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


async def test_one_delivery_at_a_time_is_always_read() -> None:
    """The broker sends nothing more, and a connection from which nothing is read is lost."""
    stage = Stage(1)
    stage.begin_session()
    stage.flow_control.set_full(True)
    assert (stage.paused, stage.flow_control.paused) == ([], False)
    stage.flow_control.set_full(False)
    assert not stage.flow_control.prefetch_restorable.is_set(), "there is nothing to restore"


async def test_between_two_sessions_there_is_nothing_to_hold(stage: Stage) -> None:
    stage.flow_control.set_full(True)
    stage.begin_session()
    assert (stage.paused, stage.flow_control.paused) == ([], False)
