"""When nothing is read from the broker, and how much the next session takes."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from bridge.amqp.consume.flow_control import Intake
from bridge.amqp.consume.session import ConsumerSession
from bridge.amqp.wire.fast_channel import FastChannel
from tests.support.delivery_handler import Recorder

MOST = 200


class Held:
    """An intake, and what its channel was told."""

    def __init__(self) -> None:
        self.told: list[bool] = []
        self.intake = Intake(MOST)

    @property
    def fast_channel(self) -> FastChannel:
        fast_channel = ConsumerSession(Recorder(), MOST).fast_channel
        fast_channel.hold = self.told.append
        return fast_channel


@pytest.fixture
async def held() -> Held:
    return Held()


async def test_reading_stops_and_goes_on(held: Held) -> None:
    held.intake.begin(held.fast_channel)
    held.intake.hold(True)
    assert held.intake.held
    held.intake.hold(False)
    assert (held.told, held.intake.held) == ([True, False], False)
    held.intake.end(7)
    assert held.intake.prefetch == MOST


@pytest.mark.parametrize(("outstanding", "prefetch"), [(3, 3), (0, 1)])
async def test_session_that_follows_one_in_which_nothing_was_read_takes_what_there_was_room_for(
    held: Held, outstanding: int, prefetch: int
) -> None:
    held.intake.begin(held.fast_channel)
    held.intake.hold(True)
    with capture_logs() as logged:
        held.intake.end(outstanding)
    assert held.intake.prefetch == prefetch
    assert [(line["log_level"], line["prefetch"]) for line in logged] == [("warning", prefetch)]
    assert held.told == [True, False], "what the broker says at the end is heard"


async def test_with_a_reduced_prefetch_all_is_read_until_there_is_room_for_more(held: Held) -> None:
    held.intake.begin(held.fast_channel)
    held.intake.hold(True)
    held.intake.end(3)
    held.told.clear()
    held.intake.begin(held.fast_channel)
    held.intake.hold(True)
    assert (held.told, held.intake.held, held.intake.relieved.is_set()) == ([], False, False)
    held.intake.hold(False)
    assert held.intake.relieved.is_set()
    held.intake.restore()
    assert (held.told, held.intake.prefetch, held.intake.relieved.is_set()) == ([], MOST, False)
    held.intake.hold(True)
    assert held.told == [True]


async def test_room_that_fills_while_the_full_prefetch_is_agreed_ends_the_reading(held: Held) -> None:
    held.intake.begin(held.fast_channel)
    held.intake.hold(True)
    held.intake.end(3)
    held.told.clear()
    held.intake.begin(held.fast_channel)
    for full in (True, False, True):
        held.intake.hold(full)
    assert held.told == [], "the broker's consent is still to be read"
    held.intake.restore()
    assert (held.told, held.intake.held) == ([True], True)


async def test_reduced_prefetch_lasts_for_one_session(held: Held) -> None:
    held.intake.begin(held.fast_channel)
    held.intake.hold(True)
    held.intake.end(3)
    held.intake.begin(held.fast_channel)
    held.intake.hold(True)
    held.intake.end(3)
    assert held.intake.prefetch == MOST


async def test_one_delivery_at_a_time_is_always_read() -> None:
    """The broker sends nothing more, and a connection from which nothing is read is lost."""
    held = Held()
    held.intake = Intake(1)
    held.intake.begin(held.fast_channel)
    held.intake.hold(True)
    assert (held.told, held.intake.held) == ([], False)
    held.intake.hold(False)
    assert not held.intake.relieved.is_set(), "there is nothing to restore"


async def test_between_two_sessions_there_is_nothing_to_hold(held: Held) -> None:
    held.intake.hold(True)
    held.intake.begin(held.fast_channel)
    assert (held.told, held.intake.held) == ([], False)
