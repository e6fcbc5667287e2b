"""Who is listened to, and who waits: for what one said, and for what all did."""

from __future__ import annotations

from bridge.fanout.allowance import (
    FRAME_BYTES,
    OF_ALL_BYTES,
    OF_ONE_BYTES,
    PERIOD_S,
    READ_BYTES,
    SCANT_BYTES,
    Allowance,
)
from tests.support.fakes import Hours

PONG_BYTES = 6


class Client:
    """Counts how often it is listened to again."""

    def __init__(self) -> None:
        self.heard = 0

    @property
    def peer(self) -> str:
        return "10.0.0.1 port 54321"

    def read_on(self) -> None:
        self.heard += 1


class Scene:
    def __init__(self) -> None:
        self.hours = Hours()
        self.allowance = Allowance(self.hours.time, self.hours.call_at)


def test_what_a_client_may_say_in_a_period_is_read_at_once() -> None:
    scene, client = Scene(), Client()
    assert scene.allowance.spend(client, OF_ONE_BYTES, 0)
    assert not scene.allowance.spend(client, 1, 0)
    assert len(scene.allowance) == 1


def test_nobody_is_waited_for_where_nobody_waits() -> None:
    scene = Scene()
    for _ in range(1000):
        assert scene.allowance.spend(Client(), PONG_BYTES, 1)
    assert scene.hours.pending == 0


def test_frames_count_beside_their_bytes() -> None:
    scene, client = Scene(), Client()
    most = OF_ONE_BYTES // (PONG_BYTES + FRAME_BYTES)
    for _ in range(most):
        assert scene.allowance.spend(client, PONG_BYTES, 1)
    assert not scene.allowance.spend(client, PONG_BYTES, 1)


def test_period_that_is_over_counts_for_nothing() -> None:
    scene, client = Scene(), Client()
    for _ in range(10):
        assert scene.allowance.spend(client, OF_ONE_BYTES, 0)
        scene.hours.now_s += PERIOD_S


def test_who_waits_is_listened_to_in_the_next_period_and_not_before() -> None:
    scene, client = Scene(), Client()
    scene.allowance.spend(client, OF_ONE_BYTES + 1, 0)
    scene.hours.pass_by(PERIOD_S / 2)
    assert client.heard == 0
    scene.hours.pass_by(PERIOD_S / 2)
    assert client.heard == 1
    assert len(scene.allowance) == 0
    assert scene.hours.pending == 0


def test_debt_is_paid_in_as_many_periods_as_it_takes() -> None:
    scene, client = Scene(), Client()
    scene.allowance.spend(client, 3 * OF_ONE_BYTES + 1, 0)
    for heard in (0, 0, 1):
        scene.hours.pass_by(PERIOD_S)
        assert client.heard == heard
    # One byte is owed still.
    assert scene.allowance.spend(client, OF_ONE_BYTES - 1, 0)


def test_client_that_says_something_after_the_end_of_a_period_begins_the_next_for_those_who_wait() -> None:
    scene, waiting, other = Scene(), Client(), Client()
    scene.allowance.spend(waiting, OF_ONE_BYTES + 1, 0)
    # The loop was busy: the timer is late.
    scene.hours.now_s += 2 * PERIOD_S
    assert scene.allowance.spend(other, PONG_BYTES, 1)
    assert waiting.heard == 1
    assert scene.hours.pending == 0


def test_clients_do_not_share_what_each_may_say() -> None:
    scene = Scene()
    assert not scene.allowance.spend(Client(), OF_ONE_BYTES + 1, 0)
    assert scene.allowance.spend(Client(), OF_ONE_BYTES, 0)


def test_where_all_have_said_too_much_everyone_waits_for_the_next_period_only() -> None:
    scene = Scene()
    flood = [Client() for _ in range(OF_ALL_BYTES // OF_ONE_BYTES)]
    for each in flood:
        assert scene.allowance.spend(each, OF_ONE_BYTES, 0)
    assert len(scene.allowance.buffer) == READ_BYTES
    late = [Client() for _ in range(3)]
    for each in late:
        assert not scene.allowance.spend(each, PONG_BYTES, 1)
    assert len(scene.allowance.buffer) == SCANT_BYTES
    scene.hours.pass_by(PERIOD_S)
    assert [each.heard for each in late] == [1, 1, 1]
    assert len(scene.allowance.buffer) == READ_BYTES
    assert scene.allowance.spend(late[0], OF_ONE_BYTES, 0)


def test_who_is_gone_is_forgotten() -> None:
    scene, gone, other = Scene(), Client(), Client()
    scene.allowance.spend(gone, OF_ONE_BYTES + 1, 0)
    scene.allowance.spend(other, OF_ONE_BYTES + 1, 0)
    scene.allowance.forget(gone)
    scene.allowance.forget(Client())
    assert len(scene.allowance) == 1
    scene.hours.pass_by(PERIOD_S)
    assert (gone.heard, other.heard) == (0, 1)
