"""Who is listened to, and who waits: for what one said, and for what all did."""

from __future__ import annotations

import pytest

from bridge.server.access.read_limiter import (
    AT_ONCE,
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

MOST = OF_ONE_BYTES - FRAME_BYTES
"""What one read of a client may bring, without it having said too much."""


class Client:
    """Counts how often it is listened to again."""

    def __init__(self) -> None:
        self.heard = 0

    @property
    def peer(self) -> str:
        return "10.0.0.1 port 54321"

    def read_on(self) -> None:
        self.heard += 1

    def end_if_gone(self) -> None:
        """It stays."""


@pytest.fixture
def hours() -> Hours:
    return Hours()


@pytest.fixture
def allowance(hours: Hours) -> Allowance:
    return Allowance(hours.time, hours.call_at)


def test_what_a_client_may_say_in_a_period_is_read_at_once(allowance: Allowance) -> None:
    client = Client()
    assert allowance.spend(client, MOST, 0)
    assert not allowance.spend(client, 1, 0)
    assert len(allowance) == 1


def test_no_timer_runs_while_no_client_is_throttled(allowance: Allowance, hours: Hours) -> None:
    for _ in range(1000):
        assert allowance.spend(Client(), PONG_BYTES, 1)
    assert hours.pending == 0


def test_frames_count_beside_their_bytes(allowance: Allowance) -> None:
    client = Client()
    most = OF_ONE_BYTES // (PONG_BYTES + 2 * FRAME_BYTES)
    for _ in range(most):
        assert allowance.spend(client, PONG_BYTES, 1)
    assert not allowance.spend(client, PONG_BYTES, 1)


def test_period_that_is_over_counts_for_nothing(allowance: Allowance, hours: Hours) -> None:
    client = Client()
    for _ in range(10):
        assert allowance.spend(client, MOST, 0)
        hours.now_s += PERIOD_S


def test_throttled_client_is_read_again_in_the_next_period_and_not_before(allowance: Allowance, hours: Hours) -> None:
    client = Client()
    allowance.spend(client, MOST + 1, 0)
    hours.pass_by(PERIOD_S / 2)
    assert client.heard == 0
    hours.pass_by(PERIOD_S / 2)
    assert client.heard == 1
    assert len(allowance) == 0
    assert hours.pending == 0


def test_debt_is_paid_in_as_many_periods_as_it_takes(allowance: Allowance, hours: Hours) -> None:
    client = Client()
    allowance.spend(client, 3 * OF_ONE_BYTES - FRAME_BYTES + 1, 0)
    for heard in (0, 0, 1):
        hours.pass_by(PERIOD_S)
        assert client.heard == heard
    # One byte is owed still.
    assert allowance.spend(client, MOST - 1, 0)


def test_client_that_says_something_after_the_end_of_a_period_begins_the_next_for_those_who_wait(
    allowance: Allowance, hours: Hours
) -> None:
    waiting, other = Client(), Client()
    allowance.spend(waiting, MOST + 1, 0)
    # The loop was busy: the timer is late.
    hours.now_s += 2 * PERIOD_S
    assert allowance.spend(other, PONG_BYTES, 1)
    assert waiting.heard == 1
    assert hours.pending == 0


def test_clients_do_not_share_what_each_may_say(allowance: Allowance) -> None:
    assert not allowance.spend(Client(), MOST + 1, 0)
    assert allowance.spend(Client(), MOST, 0)


def test_client_throttled_by_the_total_limit_waits_for_the_next_period_only(allowance: Allowance, hours: Hours) -> None:
    flood = [Client() for _ in range(OF_ALL_BYTES // OF_ONE_BYTES)]
    for each in flood:
        assert allowance.spend(each, MOST, 0)
    assert len(allowance.buffer) == READ_BYTES
    late = [Client() for _ in range(3)]
    for each in late:
        assert not allowance.spend(each, PONG_BYTES, 1)
    assert len(allowance.buffer) == SCANT_BYTES
    hours.pass_by(PERIOD_S)
    assert [each.heard for each in late] == [1, 1, 1]
    assert len(allowance.buffer) == READ_BYTES
    assert allowance.spend(late[0], MOST, 0)


def test_client_that_is_gone_is_forgotten(allowance: Allowance, hours: Hours) -> None:
    gone, other = Client(), Client()
    allowance.spend(gone, MOST + 1, 0)
    allowance.spend(other, MOST + 1, 0)
    allowance.forget(gone)
    allowance.forget(Client())
    assert len(allowance) == 1
    hours.pass_by(PERIOD_S)
    assert (gone.heard, other.heard) == (0, 1)


def test_client_throttled_longest_is_read_first_within_the_total_limit(allowance: Allowance, hours: Hours) -> None:
    crowd = [Client() for _ in range(2 * AT_ONCE + 1)]
    allowance.spend(Client(), OF_ALL_BYTES, 0)
    for each in crowd:
        assert not allowance.spend(each, SCANT_BYTES, 5)
    # The one that used it all up pays its debt first.
    for heard in (AT_ONCE, 2 * AT_ONCE, len(crowd)):
        hours.pass_by(PERIOD_S)
        assert [each.heard for each in crowd] == [1] * heard + [0] * (len(crowd) - heard)


def test_reads_stay_scant_while_more_wait_than_are_listened_to_at_once(allowance: Allowance, hours: Hours) -> None:
    allowance.spend(Client(), OF_ALL_BYTES, 0)
    for _ in range(2 * AT_ONCE - 1):
        allowance.spend(Client(), SCANT_BYTES, 5)
    hours.pass_by(PERIOD_S)
    assert len(allowance.buffer) == SCANT_BYTES
    hours.pass_by(PERIOD_S)
    assert len(allowance.buffer) == READ_BYTES


def test_what_all_say_in_a_period_is_bounded_however_many_they_are(allowance: Allowance, hours: Hours) -> None:
    crowd = [Client() for _ in range(10_000)]
    wait = [each for each in crowd if not allowance.spend(each, SCANT_BYTES, 5)]
    periods, said = 40, 0
    for _ in range(periods):
        before = {each: each.heard for each in crowd}
        hours.pass_by(PERIOD_S)
        for each in crowd:
            # Each of them says something again as soon as it may.
            if each.heard > before[each]:
                while allowance.spend(each, SCANT_BYTES, 5):
                    said += SCANT_BYTES + 6 * FRAME_BYTES
                said += SCANT_BYTES + 6 * FRAME_BYTES
    assert said <= 2 * periods * OF_ALL_BYTES
    # And everybody who had to wait has been heard.
    assert all(each.heard for each in wait)


def test_who_waits_is_told_of() -> None:
    waiting: list[object] = []
    hours = Hours()
    allowance = Allowance(hours.time, hours.call_at, waiting.append)
    client = Client()
    allowance.spend(client, MOST + 1, 0)
    assert waiting == [client]
    assert list(allowance) == [client]


def test_client_that_is_throttled_and_read_again_is_throttled_and_read_again_the_next_time() -> None:
    hours, client = Hours(), Client()
    allowance = Allowance(hours.time, hours.call_at)
    for heard in (1, 2, 3):
        assert not allowance.spend(client, MOST + 1, 0)
        assert hours.pending == 1
        hours.pass_by(PERIOD_S)
        assert client.heard == heard
        assert hours.pending == 0
        # Another period goes by, so that the client owes nothing.
        hours.pass_by(PERIOD_S)


def test_client_that_is_throttled_again_after_another_began_the_period_is_read_again() -> None:
    hours, client = Hours(), Client()
    allowance = Allowance(hours.time, hours.call_at)
    assert not allowance.spend(client, MOST + 1, 0)
    # The loop was busy: the timer is late, and what another client sends begins the period.
    hours.now_s += 2 * PERIOD_S
    assert allowance.spend(Client(), PONG_BYTES, 1)
    assert client.heard == 1
    assert not allowance.spend(client, MOST + 1, 0)
    hours.pass_by(PERIOD_S)
    assert client.heard == 2


def test_client_is_read_again_in_the_period_after_the_one_that_pays_its_whole_debt() -> None:
    hours, client = Hours(), Client()
    allowance = Allowance(hours.time, hours.call_at)
    # After one period it owes what a client may send in one, and still may send nothing.
    assert not allowance.spend(client, 2 * OF_ONE_BYTES - FRAME_BYTES, 0)
    hours.pass_by(PERIOD_S)
    assert client.heard == 0
    assert hours.pending == 1
    hours.pass_by(PERIOD_S)
    assert client.heard == 1


def test_all_clients_together_may_send_as_much_as_is_allowed_and_not_one_byte_more() -> None:
    hours = Hours()
    allowance = Allowance(hours.time, hours.call_at)
    for _ in range(OF_ALL_BYTES // OF_ONE_BYTES):
        assert allowance.spend(Client(), MOST, 0)
    assert len(allowance.buffer) == READ_BYTES
    assert len(allowance) == 0
    assert not allowance.spend(Client(), 1, 0)
    assert len(allowance.buffer) == SCANT_BYTES


def test_period_begins_when_the_one_before_it_ends_and_not_earlier() -> None:
    hours, client = Hours(), Client()
    allowance = Allowance(hours.time, hours.call_at)
    assert allowance.spend(client, MOST, 0)
    hours.now_s += PERIOD_S * 0.9
    assert not allowance.spend(client, 0, 0)


def test_as_many_clients_as_are_read_again_at_once_leave_the_reads_scant() -> None:
    hours = Hours()
    allowance = Allowance(hours.time, hours.call_at)
    allowance.spend(Client(), OF_ALL_BYTES, 0)
    for count, size in ((AT_ONCE, SCANT_BYTES), (AT_ONCE - 1, READ_BYTES)):
        crowd = [Client() for _ in range(count)]
        allowance.spend(Client(), OF_ALL_BYTES, 0)
        for each in crowd:
            allowance.spend(each, SCANT_BYTES, 5)
        hours.pass_by(PERIOD_S)
        assert sum(each.heard for each in crowd) == count
        assert len(allowance.buffer) == size


def test_first_read_of_all_may_bring_the_most() -> None:
    hours = Hours()
    assert len(Allowance(hours.time, hours.call_at).buffer) == READ_BYTES
