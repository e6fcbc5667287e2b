"""Tests of pings, idle timeouts and close timeouts, with a manual clock."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from structlog.testing import capture_logs

from bridge.broadcast.close_reasons import CloseReason
from bridge.server.access.log_limiter import MAX_LINES, MINUTE_S
from bridge.server.connection.client_connection import Clock
from bridge.server.connection.keepalive import (
    CHECKED_CONNECTIONS,
    LATE_TICKS,
    MIN_READ_BYTES_PER_S,
    PING_PAUSE_S,
    Keepalive,
)
from bridge.timing import DEFAULT
from tests.support.fakes import FakeTurn, Turns
from tests.support.virtual_time import VirtualTime

IDLE_S, PING_S = 120.0, 30.0
CLOSE_TIMEOUT_S = DEFAULT.close_timeout_s


def ignore(late: bool) -> None:
    """Replaces the server's work after each pass, and does nothing."""


class Client:
    """A fake connection with the interface that the keepalive uses."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.last_received_at = self.pinged_at = clock.now_s
        self.closed_at: float | None = None
        self.acknowledged_bytes: int | None = 0
        self.said: list[tuple[float, str]] = []
        self.details: dict[str, object] = {}

    @property
    def last_active_at(self) -> float:
        return max(self.last_received_at, self.pinged_at)

    def ping(self) -> None:
        self.pinged_at = self._clock.now_s
        self.said.append((self._clock.now_s, "ping"))

    def close(self, reason: CloseReason, **details: object) -> None:
        self.closed_at = self._clock.now_s
        self.details = details
        self.said.append((self._clock.now_s, reason.slug))

    def abort(self) -> None:
        self.said.append((self._clock.now_s, "abort"))


@pytest.fixture
def clock() -> Clock:
    return Clock(0.0)


@pytest.fixture
def client(clock: Clock) -> Client:
    return Client(clock)


@pytest.fixture
def keepalive(client: Client, clock: Clock) -> Keepalive:
    return Keepalive([client], clock, IDLE_S, PING_S, ignore, FakeTurn(Turns().call_soon))


def look(keepalive: Keepalive, now_s: float) -> None:
    """Makes one pass, and sends all pings of this pass."""
    keepalive.tick(now_s)
    keepalive.send_pings()


def tick_until(keepalive: Keepalive, clock: Clock, now_s: float) -> None:
    """Ticks once a second."""
    while clock.now_s < now_s:
        look(keepalive, clock.now_s + 1)


def test_tick_sets_the_clock_that_all_connections_share(keepalive: Keepalive, clock: Clock) -> None:
    keepalive.tick(12.5)
    assert clock.now_s == 12.5


def test_silent_client_is_pinged_at_the_interval_and_not_before(
    keepalive: Keepalive, client: Client, clock: Clock
) -> None:
    tick_until(keepalive, clock, 29)
    assert client.said == []
    tick_until(keepalive, clock, 30)
    assert client.said == [(30, "ping")]


def test_client_that_stays_silent_is_pinged_at_each_interval_and_then_evicted(
    keepalive: Keepalive, client: Client, clock: Clock
) -> None:
    tick_until(keepalive, clock, 124)
    assert client.said == [(30, "ping"), (60, "ping"), (90, "ping"), (120, "ping")]
    # The client is not considered idle yet, because its last data may have arrived up to one tick after the recorded
    # time.
    tick_until(keepalive, clock, 125)
    assert client.said[4:] == [(125, "idle")]
    assert client.details == {"silent_s": 125.0}


def test_client_that_answers_its_pings_stays(keepalive: Keepalive, client: Client) -> None:
    for now_s in range(1, 1000):
        look(keepalive, now_s)
        if client.pinged_at == now_s:
            client.last_received_at = now_s
    assert {what for _, what in client.said} == {"ping"}


def test_client_that_sends_data_is_not_pinged(keepalive: Keepalive, client: Client) -> None:
    for now_s in range(1000):
        client.last_received_at = now_s - now_s % 20
        look(keepalive, now_s)
    assert client.said == []


def test_only_received_data_delays_the_eviction(keepalive: Keepalive, client: Client) -> None:
    for now_s in range(1, 126):
        client.pinged_at = now_s
        look(keepalive, now_s)
    assert client.said == [(125, "idle")]


def test_close_that_is_not_answered_is_aborted_at_its_timeout(
    keepalive: Keepalive, client: Client, clock: Clock
) -> None:
    tick_until(keepalive, clock, 5)
    client.close(CloseReason.STOPPING)
    tick_until(keepalive, clock, 5 + int(CLOSE_TIMEOUT_S) - 1)
    assert client.said == [(5, "stopping")]
    tick_until(keepalive, clock, 5 + int(CLOSE_TIMEOUT_S))
    assert client.said[1:] == [(15, "abort")]


def test_closing_client_is_neither_pinged_nor_evicted(keepalive: Keepalive, client: Client, clock: Clock) -> None:
    client.close(CloseReason.STOPPING)
    client.last_received_at = -1000.0
    tick_until(keepalive, clock, 9)
    assert client.said == [(0, "stopping")]


def test_client_that_is_removed_during_a_pass_does_not_affect_the_others(clock: Clock) -> None:
    watched = {Client(clock) for _ in range(5)}
    for client in watched:
        client.closed_at = -CLOSE_TIMEOUT_S
        client.abort = watched.clear  # type: ignore[method-assign]  # the first abort removes all connections
    Keepalive(watched, clock, IDLE_S, PING_S, ignore, FakeTurn(Turns().call_soon)).tick(1)
    assert not watched


@pytest.mark.parametrize(
    ("idle_s", "ping_s", "tick_s"), [(120, 30, 5.0), (120, 2, 0.5), (1, 0.5, 0.125), (30, 28, 1.0), (10, 9.95, 0.05)]
)
def test_tick_is_five_seconds_or_less_if_the_timeouts_are_short(idle_s: float, ping_s: float, tick_s: float) -> None:
    assert Keepalive([], Clock(0.0), idle_s, ping_s, ignore, FakeTurn(Turns().call_soon)).tick_s == tick_s


def test_closing_client_is_not_aborted_while_it_reads(keepalive: Keepalive, client: Client, clock: Clock) -> None:
    """The close frame is sent after all earlier data."""
    client.acknowledged_bytes = 5_000_000
    client.close(CloseReason.TOO_SLOW)
    least = int(MIN_READ_BYTES_PER_S * CLOSE_TIMEOUT_S)
    tick_until(keepalive, clock, 1)
    for periods in (1, 2, 3):
        client.acknowledged_bytes += least
        tick_until(keepalive, clock, periods * CLOSE_TIMEOUT_S + 1)
        assert client.said[1:] == []
    client.acknowledged_bytes += least - 1
    tick_until(keepalive, clock, 4 * CLOSE_TIMEOUT_S)
    assert client.said[1:] == [(4 * CLOSE_TIMEOUT_S, "abort")]


def test_closing_client_is_aborted_in_time_if_the_kernel_reports_nothing(
    keepalive: Keepalive, client: Client, clock: Clock
) -> None:
    client.acknowledged_bytes = None
    client.close(CloseReason.TOO_SLOW)
    tick_until(keepalive, clock, CLOSE_TIMEOUT_S)
    assert client.said[1:] == [(CLOSE_TIMEOUT_S, "abort")]


@pytest.mark.parametrize(("idle_s", "ping_s"), [(120.0, 30.0), (120.0, 117.0), (30.0, 28.0), (22.0, 21.0), (1.0, 0.9)])
def test_client_that_answers_each_ping_before_the_next_pass_is_never_closed(idle_s: float, ping_s: float) -> None:
    clock = Clock(0.0)
    client = Client(clock)
    keepalive = Keepalive([client], clock, idle_s, ping_s, ignore, FakeTurn(Turns().call_soon))
    now_s = 0.0
    while now_s < 10 * idle_s:
        now_s += keepalive.tick_s
        look(keepalive, now_s)
        if client.pinged_at == now_s:
            client.last_received_at = clock.now_s
    assert {what for _, what in client.said} == {"ping"}


@pytest.mark.parametrize("answered_s", [0.1, 2.5, 4.9])
def test_client_is_never_closed_before_its_time(answered_s: float) -> None:
    clock = Clock(0.0)
    client = Client(clock)
    keepalive = Keepalive([client], clock, IDLE_S, PING_S, ignore, FakeTurn(Turns().call_soon))
    now_s = 0.0
    while (now_s, "idle") not in client.said:
        if now_s < answered_s <= now_s + keepalive.tick_s:
            client.last_received_at = clock.now_s  # a real connection also records this time when it receives data
        now_s += keepalive.tick_s
        look(keepalive, now_s)
    assert IDLE_S <= now_s - answered_s < IDLE_S + 2 * keepalive.tick_s


async def test_run_ticks_with_the_time_of_the_loop_until_it_is_cancelled() -> None:
    loop = asyncio.get_running_loop()
    clock = Clock(0.0)
    client = Client(clock)
    client.last_received_at = loop.time()
    closed = asyncio.Event()
    client.close = lambda *_, **__: closed.set()  # type: ignore[method-assign]  # the test waits for this call
    running = asyncio.create_task(Keepalive([client], clock, 0.2, 0.1, ignore, FakeTurn(Turns().call_soon)).run())
    async with asyncio.timeout(5):
        await closed.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert clock.now_s <= loop.time()


def fail(*_: object, **__: object) -> None:
    raise RuntimeError("gone")


@pytest.mark.parametrize(("fails", "at_s"), [("ping", 30), ("close", 125)])
def test_connection_that_raises_is_aborted_and_the_others_are_checked(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, fails: str, at_s: int
) -> None:
    clients = [Client(clock) for _ in range(3)]
    broken = clients[1]
    monkeypatch.setattr(broken, fails, fail)
    tick_until(Keepalive(clients, clock, IDLE_S, PING_S, ignore, FakeTurn(Turns().call_soon)), clock, at_s)
    assert broken.said[-1] == (at_s, "abort")
    others = [client.said for client in clients if client is not broken]
    assert others == [others[0]] * 2
    assert others[0][-1][1] == {"ping": "ping", "close": "idle"}[fails]


def test_pass_follows_a_pass_that_failed(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, other = Client(clock), Client(clock)
    late_passes: list[bool] = []
    turn = FakeTurn(Turns().call_soon)
    keepalive = Keepalive([broken, other], clock, IDLE_S, PING_S, late_passes.append, turn)
    broken.close(CloseReason.TOO_SLOW)
    with monkeypatch.context() as patched:
        patched.setattr(broken, "abort", fail)
        with pytest.raises(RuntimeError):
            tick_until(keepalive, clock, CLOSE_TIMEOUT_S)
    late_passes.clear()
    tick_until(keepalive, clock, CLOSE_TIMEOUT_S + 1)
    assert late_passes == [False]
    assert broken.said[-1] == (clock.now_s, "abort")


def test_connections_that_raise_are_logged_ten_times_a_minute(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "ping", fail)
    keepalive = Keepalive(
        [Client(clock) for _ in range(MAX_LINES + 3)], clock, IDLE_S, PING_S, ignore, FakeTurn(Turns().call_soon)
    )
    with capture_logs() as logged:
        tick_until(keepalive, clock, PING_S)
        assert [line["log_level"] for line in logged] == ["error"] * MAX_LINES
        tick_until(keepalive, clock, PING_S + MINUTE_S)
    assert len(logged) == 2 * MAX_LINES
    # The suppressed failures are the failures of the first pass that exceed MAX_LINES, and all failures of the next 59
    # passes.
    assert logged[MAX_LINES]["suppressed"] == 3 + 59 * (MAX_LINES + 3)


# Passes of several turns


@pytest.fixture
def turns() -> Turns:
    return Turns()


def test_many_idle_clients_are_closed_in_several_turns(clock: Clock, turns: Turns) -> None:
    clients = [Client(clock) for _ in range(3 * CHECKED_CONNECTIONS + 1)]
    turn, late_passes = FakeTurn(turns.call_soon), list[bool]()
    keepalive = Keepalive(clients, clock, IDLE_S, PING_S, late_passes.append, turn)
    tick_until(keepalive, clock, IDLE_S)
    late_passes.clear()
    turn.steps = 1
    keepalive.tick(IDLE_S + keepalive.tick_s)
    closed = [sum(client.closed_at is not None for client in clients)]
    while turns.scheduled:
        assert late_passes == []
        turns.turn()
        closed.append(sum(client.closed_at is not None for client in clients))
    assert closed == [CHECKED_CONNECTIONS * number for number in (1, 2, 3)] + [len(clients)]
    assert late_passes == [False]


def test_no_pass_begins_before_the_previous_one_is_complete(clock: Clock, turns: Turns) -> None:
    clients = [Client(clock) for _ in range(2 * CHECKED_CONNECTIONS)]
    turn, late_passes = FakeTurn(turns.call_soon), list[bool]()
    keepalive = Keepalive(clients, clock, IDLE_S, PING_S, late_passes.append, turn)
    turn.steps = 1
    keepalive.tick(5)
    keepalive.tick(10)
    assert clock.now_s == 10
    turns.settle()
    assert late_passes == [False]
    keepalive.tick(15)
    turns.settle()
    assert late_passes == [False, False]


def test_group_of_pings_is_sent_in_several_turns(clock: Clock, turns: Turns) -> None:
    clients = [Client(clock) for _ in range(5)]
    turn = FakeTurn(turns.call_soon)
    keepalive = Keepalive(clients, clock, IDLE_S, PING_S, ignore, turn)
    for now_s in range(5, 35, 5):
        keepalive.tick(now_s)
    turn.steps = 2
    keepalive.send_pings()
    assert sum(bool(client.said) for client in clients) == 2
    turns.settle()
    assert [client.said for client in clients] == [[(30, "ping")]] * 5


def test_pings_that_a_late_pass_drops_are_not_sent(clock: Clock, turns: Turns) -> None:
    clients = [Client(clock) for _ in range(3)]
    turn = FakeTurn(turns.call_soon)
    keepalive = Keepalive(clients, clock, IDLE_S, PING_S, ignore, turn)
    for now_s in range(5, 35, 5):
        keepalive.tick(now_s)
    turn.steps = 1
    keepalive.send_pings()
    for client in clients:
        client.last_received_at = 60
    keepalive.tick(60)
    turns.settle()
    assert sum(bool(client.said) for client in clients) == 1


# Tests of the pings that one pass sends


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_pings_of_a_pass_are_spread_evenly_until_the_next(clock: Clock, count: int) -> None:
    clients = [Client(clock) for _ in range(count)]
    keepalive = Keepalive(clients, clock, IDLE_S, PING_S, ignore, FakeTurn(Turns().call_soon))
    for now_s in range(5, 35, 5):
        keepalive.tick(now_s)
    assert all(client.said == [] for client in clients), "only a turn of the loop may be between two groups"
    groups = []
    left_s = keepalive.tick_s
    while left_s > 0:
        before = sum(len(client.said) for client in clients)
        keepalive.send_pings(left_s)
        groups.append(sum(len(client.said) for client in clients) - before)
        left_s -= PING_PAUSE_S
    assert all(client.said == [(30, "ping")] for client in clients)
    assert max(groups) <= -(-count // round(keepalive.tick_s / PING_PAUSE_S))


def test_pings_not_sent_until_the_next_pass_are_sent_with_it_once(keepalive: Keepalive, client: Client) -> None:
    for now_s in range(5, 45, 5):
        keepalive.tick(now_s)
    assert client.said == [(30, "ping")]


def test_client_that_has_sent_something_since_the_pass_is_not_pinged(
    keepalive: Keepalive, client: Client, clock: Clock
) -> None:
    for now_s in range(5, 35, 5):
        keepalive.tick(now_s)
    client.last_received_at = clock.now_s
    keepalive.send_pings()
    assert client.said == []


async def test_run_pings_many_clients_in_many_turns_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    time = VirtualTime(monkeypatch)
    clock = Clock(time.now_s)
    crowd = [Client(clock) for _ in range(1000)]
    sent_at: list[float] = []
    for each in crowd:
        monkeypatch.setattr(each, "ping", lambda: sent_at.append(time.now_s))
    began_s = time.now_s
    running = asyncio.create_task(Keepalive(crowd, clock, IDLE_S, PING_S, ignore, FakeTurn(Turns().call_soon)).run())
    await asyncio.sleep(35.0 - PING_PAUSE_S / 2)
    running.cancel()
    assert len(sent_at) == len(crowd)
    assert sent_at[0] - began_s == pytest.approx(30.0)
    assert sent_at[-1] - began_s == pytest.approx(35.0, abs=2 * PING_PAUSE_S)
    assert max(Counter(sent_at).values()) <= 2 * len(crowd) * PING_PAUSE_S / 5.0


# Tests of a bridge that is frozen for a while


FREEZES_S = (15.1, 60.0, 3600.0)
"""How long the bridge is frozen, in seconds since the last pass.

The next pass is due 5 s after the last one, and counts as late if its delay is longer than two ticks.
"""


@pytest.mark.parametrize("freeze_s", FREEZES_S)
def test_late_pass_evicts_no_client_and_gives_each_a_whole_idle_timeout(
    keepalive: Keepalive, client: Client, clock: Clock, freeze_s: float
) -> None:
    tick_until(keepalive, clock, 119)
    pings = len(client.said)
    woken_s = 119 + freeze_s
    keepalive.tick(woken_s)
    assert len(client.said) == pings
    tick_until(keepalive, clock, woken_s + IDLE_S + keepalive.tick_s - 1)
    assert {what for _, what in client.said} == {"ping"}
    tick_until(keepalive, clock, woken_s + IDLE_S + keepalive.tick_s)
    assert client.said[-1] == (woken_s + IDLE_S + keepalive.tick_s, "idle")
    assert client.details == {"silent_s": round(woken_s + IDLE_S + keepalive.tick_s, 1)}


@pytest.mark.parametrize("freeze_s", FREEZES_S)
def test_late_pass_pings_and_the_client_that_answers_stays(
    keepalive: Keepalive, client: Client, clock: Clock, freeze_s: float
) -> None:
    tick_until(keepalive, clock, 25)
    woken_s = clock.now_s + freeze_s
    look(keepalive, woken_s)
    assert client.said == [(woken_s, "ping")]
    for _ in range(1000):
        if client.pinged_at == clock.now_s:
            client.last_received_at = clock.now_s
        look(keepalive, clock.now_s + 1)
    assert {what for _, what in client.said} == {"ping"}


def test_pass_that_is_two_ticks_late_evicts(keepalive: Keepalive, client: Client, clock: Clock) -> None:
    tick_until(keepalive, clock, 119)
    look(keepalive, 119 + (1 + LATE_TICKS) * keepalive.tick_s)
    assert client.said[-1] == (134, "idle")


def test_client_is_evicted_only_once_passes_are_no_longer_late() -> None:
    """In this test, each turn of the event loop takes 5 s, and the idle timeout is 4 s."""
    clock = Clock(0.0)
    client = Client(clock)
    keepalive = Keepalive([client], clock, 4.0, 1.0, ignore, FakeTurn(Turns().call_soon))
    for now_s in range(5, 500, 5):
        look(keepalive, now_s)
    assert client.said == [(float(now_s), "ping") for now_s in range(5, 500, 5)]
    while clock.now_s < 495 + 4.0 + keepalive.tick_s:
        assert client.closed_at is None
        look(keepalive, clock.now_s + keepalive.tick_s)
    assert client.said[-1][1] == "idle"


@pytest.mark.parametrize("turn_s", [1.0, 2.9, 5.0, 14.0, 40.0])
@pytest.mark.parametrize(("idle_s", "ping_s"), [(120.0, 30.0), (30.0, 28.0), (4.0, 1.0)])
def test_client_with_pongs_read_in_the_next_turn_stays_in_turns_of_any_length(
    turn_s: float, idle_s: float, ping_s: float
) -> None:
    clock = Clock(0.0)
    client = Client(clock)
    keepalive = Keepalive([client], clock, idle_s, ping_s, ignore, FakeTurn(Turns().call_soon))
    pinged_at = 0.0
    for _ in range(500):
        # Before each pass, the bridge reads the data that arrived during the slow turn. The bridge records the time of
        # the previous pass as the time of this data.
        if client.pinged_at > pinged_at:
            pinged_at = client.pinged_at
            client.last_received_at = clock.now_s
        look(keepalive, clock.now_s + max(turn_s, keepalive.tick_s))
    assert {what for _, what in client.said} == {"ping"}


def test_client_that_is_closing_has_the_whole_close_timeout_after_a_late_pass(
    keepalive: Keepalive, client: Client, clock: Clock
) -> None:
    client.close(CloseReason.STOPPING)
    tick_until(keepalive, clock, CLOSE_TIMEOUT_S - 1)
    keepalive.tick(3600)
    tick_until(keepalive, clock, 3600 + CLOSE_TIMEOUT_S - 1)
    assert client.said == [(0, "stopping")]
    tick_until(keepalive, clock, 3600 + CLOSE_TIMEOUT_S)
    assert client.said[1:] == [(3600 + CLOSE_TIMEOUT_S, "abort")]


def test_clock_that_stands_still_with_the_bridge_counts_nothing(
    keepalive: Keepalive, client: Client, clock: Clock
) -> None:
    """While a machine is suspended, its clock stops too.

    After the machine resumes, the next pass is not late, and the idle timeout continues where it stopped.
    """
    tick_until(keepalive, clock, 29)
    look(keepalive, 34.0)
    assert client.said == [(34.0, "ping")]


def test_on_tick_is_called_with_true_after_a_late_pass(clock: Clock) -> None:
    late_passes: list[bool] = []
    keepalive = Keepalive([], clock, IDLE_S, PING_S, late_passes.append, FakeTurn(Turns().call_soon))
    for now_s in (5, 20, 36, 41):
        keepalive.tick(now_s)
    assert late_passes == [False, False, True, False]


def test_late_passes_are_logged_ten_times_a_minute(clock: Clock) -> None:
    keepalive = Keepalive([], clock, 0.4, 0.2, ignore, FakeTurn(Turns().call_soon))
    with capture_logs() as logged:
        for number in range(MAX_LINES + 5):
            keepalive.tick(1.0 + number)
    assert len(logged) == MAX_LINES
    assert (logged[0]["log_level"], logged[0]["late_s"]) == ("warning", 0.9)


def test_pings_that_wait_when_the_bridge_stops_running_are_scheduled_again(clock: Clock) -> None:
    clients = [Client(clock) for _ in range(100)]
    keepalive = Keepalive(clients, clock, IDLE_S, PING_S, ignore, FakeTurn(Turns().call_soon))
    tick_until(keepalive, clock, 29)
    keepalive.tick(30)
    keepalive.send_pings(keepalive.tick_s)
    look(keepalive, 3600)
    assert {tuple(client.said) for client in clients} == {((30, "ping"), (3600, "ping")), ((3600, "ping"),)}
