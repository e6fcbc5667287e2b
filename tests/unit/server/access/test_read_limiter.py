"""Tests that a client that exceeds its own budget is throttled, and that a common budget limits all clients."""

from __future__ import annotations

import pytest

from bridge.server.access.read_limiter import (
    CLIENT_BUDGET_BYTES,
    FRAME_COST_BYTES,
    MAX_READ_BYTES,
    PERIOD_S,
    RESUMED_PER_PERIOD,
    THROTTLED_READ_BYTES,
    TOTAL_BUDGET_BYTES,
    ReadLimiter,
    Throttleable,
)
from tests.support.fakes import Hours

PONG_BYTES = 6


def ignore(client: Throttleable) -> None:
    """Replaces the server's reaction to a throttled client, and does nothing."""


MAX_FREE_READ_BYTES = CLIENT_BUDGET_BYTES - FRAME_COST_BYTES
"""The number of bytes in the largest read that fits into the budget of a client."""


class Client:
    """A client that counts how often it is resumed."""

    def __init__(self) -> None:
        self.resumed = 0

    @property
    def peer(self) -> str:
        return "10.0.0.1 port 54321"

    def resume_reading(self) -> None:
        self.resumed += 1

    def close_if_eof(self) -> None:
        """Does nothing, because the client is still connected."""


@pytest.fixture
def clock() -> Hours:
    return Hours()


@pytest.fixture
def limiter(clock: Hours) -> ReadLimiter:
    return ReadLimiter(clock.time, clock.call_at, ignore)


def test_budget_of_a_client_in_a_period_is_read_at_once(limiter: ReadLimiter) -> None:
    client = Client()
    assert limiter.consume(client, MAX_FREE_READ_BYTES, 0)
    assert not limiter.consume(client, 1, 0)
    assert len(limiter) == 1


def test_no_timer_runs_while_no_client_is_throttled(limiter: ReadLimiter, clock: Hours) -> None:
    for _ in range(1000):
        assert limiter.consume(Client(), PONG_BYTES, 1)
    assert clock.pending == 0


def test_frames_count_in_addition_to_their_bytes(limiter: ReadLimiter) -> None:
    client = Client()
    most = CLIENT_BUDGET_BYTES // (PONG_BYTES + 2 * FRAME_COST_BYTES)
    for _ in range(most):
        assert limiter.consume(client, PONG_BYTES, 1)
    assert not limiter.consume(client, PONG_BYTES, 1)


def test_budget_of_an_earlier_period_does_not_count(limiter: ReadLimiter, clock: Hours) -> None:
    client = Client()
    for _ in range(10):
        assert limiter.consume(client, MAX_FREE_READ_BYTES, 0)
        clock.now_s += PERIOD_S


def test_throttled_client_is_read_again_in_the_next_period_and_not_before(limiter: ReadLimiter, clock: Hours) -> None:
    client = Client()
    limiter.consume(client, MAX_FREE_READ_BYTES + 1, 0)
    clock.pass_by(PERIOD_S / 2)
    assert client.resumed == 0
    clock.pass_by(PERIOD_S / 2)
    assert client.resumed == 1
    assert len(limiter) == 0
    assert clock.pending == 0


def test_large_debt_is_paid_over_several_periods(limiter: ReadLimiter, clock: Hours) -> None:
    client = Client()
    limiter.consume(client, 3 * CLIENT_BUDGET_BYTES - FRAME_COST_BYTES + 1, 0)
    for resumed in (0, 0, 1):
        clock.pass_by(PERIOD_S)
        assert client.resumed == resumed
    # The client still has a debt of one byte, so one byte less than MAX_FREE_READ_BYTES may be read from it.
    assert limiter.consume(client, MAX_FREE_READ_BYTES - 1, 0)


def test_client_that_sends_after_the_end_of_a_period_begins_the_next_for_throttled_clients(
    limiter: ReadLimiter, clock: Hours
) -> None:
    waiting, other = Client(), Client()
    limiter.consume(waiting, MAX_FREE_READ_BYTES + 1, 0)
    # The timer is late, because the event loop was busy.
    clock.now_s += 2 * PERIOD_S
    assert limiter.consume(other, PONG_BYTES, 1)
    assert waiting.resumed == 1
    assert clock.pending == 0


def test_clients_do_not_share_a_budget(limiter: ReadLimiter) -> None:
    assert not limiter.consume(Client(), MAX_FREE_READ_BYTES + 1, 0)
    assert limiter.consume(Client(), MAX_FREE_READ_BYTES, 0)


def test_client_throttled_by_the_total_limit_waits_for_the_next_period_only(limiter: ReadLimiter, clock: Hours) -> None:
    flood = [Client() for _ in range(TOTAL_BUDGET_BYTES // CLIENT_BUDGET_BYTES)]
    for each in flood:
        assert limiter.consume(each, MAX_FREE_READ_BYTES, 0)
    assert len(limiter.buffer) == MAX_READ_BYTES
    late = [Client() for _ in range(3)]
    for each in late:
        assert not limiter.consume(each, PONG_BYTES, 1)
    assert len(limiter.buffer) == THROTTLED_READ_BYTES
    clock.pass_by(PERIOD_S)
    assert [each.resumed for each in late] == [1, 1, 1]
    assert len(limiter.buffer) == MAX_READ_BYTES
    assert limiter.consume(late[0], MAX_FREE_READ_BYTES, 0)


def test_client_that_is_gone_is_forgotten(limiter: ReadLimiter, clock: Hours) -> None:
    gone, other = Client(), Client()
    limiter.consume(gone, MAX_FREE_READ_BYTES + 1, 0)
    limiter.consume(other, MAX_FREE_READ_BYTES + 1, 0)
    limiter.forget(gone)
    limiter.forget(Client())
    assert len(limiter) == 1
    clock.pass_by(PERIOD_S)
    assert (gone.resumed, other.resumed) == (0, 1)


def test_client_throttled_longest_is_read_first_within_the_total_limit(limiter: ReadLimiter, clock: Hours) -> None:
    clients = [Client() for _ in range(2 * RESUMED_PER_PERIOD + 1)]
    limiter.consume(Client(), TOTAL_BUDGET_BYTES, 0)
    for each in clients:
        assert not limiter.consume(each, THROTTLED_READ_BYTES, 5)
    # The client that used up the common budget is not resumed here, because it takes longer to pay off its debt.
    for resumed in (RESUMED_PER_PERIOD, 2 * RESUMED_PER_PERIOD, len(clients)):
        clock.pass_by(PERIOD_S)
        assert [each.resumed for each in clients] == [1] * resumed + [0] * (len(clients) - resumed)


def test_reads_stay_small_while_more_clients_are_throttled_than_are_resumed_in_a_period(
    limiter: ReadLimiter, clock: Hours
) -> None:
    limiter.consume(Client(), TOTAL_BUDGET_BYTES, 0)
    for _ in range(2 * RESUMED_PER_PERIOD - 1):
        limiter.consume(Client(), THROTTLED_READ_BYTES, 5)
    clock.pass_by(PERIOD_S)
    assert len(limiter.buffer) == THROTTLED_READ_BYTES
    clock.pass_by(PERIOD_S)
    assert len(limiter.buffer) == MAX_READ_BYTES


def test_total_of_any_number_of_clients_is_bounded(limiter: ReadLimiter, clock: Hours) -> None:
    clients = [Client() for _ in range(10_000)]
    wait = [each for each in clients if not limiter.consume(each, THROTTLED_READ_BYTES, 5)]
    periods, used = 40, 0
    for _ in range(periods):
        before = {each: each.resumed for each in clients}
        clock.pass_by(PERIOD_S)
        for each in clients:
            # Each client sends again as soon as it is resumed.
            if each.resumed > before[each]:
                while limiter.consume(each, THROTTLED_READ_BYTES, 5):
                    used += THROTTLED_READ_BYTES + 6 * FRAME_COST_BYTES
                used += THROTTLED_READ_BYTES + 6 * FRAME_COST_BYTES
    assert used <= 2 * periods * TOTAL_BUDGET_BYTES
    # All throttled clients have been resumed.
    assert all(each.resumed for each in wait)


def test_throttled_client_is_reported() -> None:
    waiting: list[object] = []
    clock = Hours()
    limiter = ReadLimiter(clock.time, clock.call_at, waiting.append)
    client = Client()
    limiter.consume(client, MAX_FREE_READ_BYTES + 1, 0)
    assert waiting == [client]
    assert list(limiter) == [client]


def test_client_that_is_throttled_and_read_again_is_throttled_and_read_again_the_next_time() -> None:
    clock, client = Hours(), Client()
    limiter = ReadLimiter(clock.time, clock.call_at, ignore)
    for resumed in (1, 2, 3):
        assert not limiter.consume(client, MAX_FREE_READ_BYTES + 1, 0)
        assert clock.pending == 1
        clock.pass_by(PERIOD_S)
        assert client.resumed == resumed
        assert clock.pending == 0
        # After one more period, the client has no debt.
        clock.pass_by(PERIOD_S)


def test_client_that_is_throttled_again_after_another_began_the_period_is_read_again() -> None:
    clock, client = Hours(), Client()
    limiter = ReadLimiter(clock.time, clock.call_at, ignore)
    assert not limiter.consume(client, MAX_FREE_READ_BYTES + 1, 0)
    # The event loop was busy, so the timer is late, and data from another client begins the next period.
    clock.now_s += 2 * PERIOD_S
    assert limiter.consume(Client(), PONG_BYTES, 1)
    assert client.resumed == 1
    assert not limiter.consume(client, MAX_FREE_READ_BYTES + 1, 0)
    clock.pass_by(PERIOD_S)
    assert client.resumed == 2


def test_client_is_read_again_in_the_period_after_the_one_that_pays_its_whole_debt() -> None:
    clock, client = Hours(), Client()
    limiter = ReadLimiter(clock.time, clock.call_at, ignore)
    # After one period, the client's debt equals a whole budget, so the client is still throttled.
    assert not limiter.consume(client, 2 * CLIENT_BUDGET_BYTES - FRAME_COST_BYTES, 0)
    clock.pass_by(PERIOD_S)
    assert client.resumed == 0
    assert clock.pending == 1
    clock.pass_by(PERIOD_S)
    assert client.resumed == 1


def test_all_clients_together_may_send_as_much_as_is_allowed_and_not_one_byte_more() -> None:
    clock = Hours()
    limiter = ReadLimiter(clock.time, clock.call_at, ignore)
    for _ in range(TOTAL_BUDGET_BYTES // CLIENT_BUDGET_BYTES):
        assert limiter.consume(Client(), MAX_FREE_READ_BYTES, 0)
    assert len(limiter.buffer) == MAX_READ_BYTES
    assert len(limiter) == 0
    assert not limiter.consume(Client(), 1, 0)
    assert len(limiter.buffer) == THROTTLED_READ_BYTES


def test_period_begins_when_the_one_before_it_ends_and_not_earlier() -> None:
    clock, client = Hours(), Client()
    limiter = ReadLimiter(clock.time, clock.call_at, ignore)
    assert limiter.consume(client, MAX_FREE_READ_BYTES, 0)
    clock.now_s += PERIOD_S * 0.9
    assert not limiter.consume(client, 0, 0)


def test_as_many_clients_as_are_resumed_in_a_period_leave_the_reads_small() -> None:
    clock = Hours()
    limiter = ReadLimiter(clock.time, clock.call_at, ignore)
    limiter.consume(Client(), TOTAL_BUDGET_BYTES, 0)
    for count, size in ((RESUMED_PER_PERIOD, THROTTLED_READ_BYTES), (RESUMED_PER_PERIOD - 1, MAX_READ_BYTES)):
        clients = [Client() for _ in range(count)]
        limiter.consume(Client(), TOTAL_BUDGET_BYTES, 0)
        for each in clients:
            limiter.consume(each, THROTTLED_READ_BYTES, 5)
        clock.pass_by(PERIOD_S)
        assert sum(each.resumed for each in clients) == count
        assert len(limiter.buffer) == size


def test_first_read_has_the_largest_size() -> None:
    clock = Hours()
    assert len(ReadLimiter(clock.time, clock.call_at, ignore).buffer) == MAX_READ_BYTES
