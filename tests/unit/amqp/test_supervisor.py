"""Tests how a supervisor runs one session after another. The sessions are scripted, and there are no pauses."""

from __future__ import annotations

import asyncio
from collections import deque

import aiormq
import pytest

from bridge.amqp import supervisor
from bridge.amqp.status import State, Status
from bridge.amqp.supervisor import supervise
from bridge.errors import BrokerRefusal
from bridge.timing import DEFAULT

End = str | BaseException


class NoBackoff:
    """A Backoff without pauses. NoBackoff counts the requests for a pause, and the resets."""

    asked: int
    resets: int

    def pause_s(self) -> float:
        NoBackoff.asked += 1
        return 0.0

    def reset(self) -> None:
        NoBackoff.resets += 1


class Time:
    """The time of the monotonic clock, which a test sets."""

    def __init__(self) -> None:
        self.now_s = 500.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    NoBackoff.asked = NoBackoff.resets = 0
    monkeypatch.setattr(supervisor, "Backoff", NoBackoff)


class ScriptedSessions:
    """Scripted sessions.

    The test lists how each of the sessions ends. The last of the scripted sessions requests a stop.
    """

    def __init__(self, *ends: End, works: bool = False, wait: bool = False) -> None:
        self.status = Status()
        self.stopping = asyncio.Event()
        self.wait = wait
        self.lost: list[tuple[State, str]] = []
        self.begun = 0
        self._ends = deque(ends)
        self._works = works

    async def run_session(self) -> str:
        self.begun += 1
        if self._works:
            self.status.enter(State.WORKING)
        if not self._ends:
            self.stopping.set()
            return "stopped"
        end = self._ends.popleft()
        if isinstance(end, BaseException):
            raise end
        return end

    async def run(self) -> None:
        async with asyncio.timeout(5):
            await supervise(
                self.run_session, self.status, lambda *lost: self.lost.append(lost), self.stopping, wait=self.wait
            )


async def test_session_that_ends_is_followed_by_another() -> None:
    sessions = ScriptedSessions("channel closed", "queue gone")
    await sessions.run()
    assert sessions.begun == 3
    assert sessions.lost == [(State.LOST, "channel closed"), (State.LOST, "queue gone")]
    assert NoBackoff.asked == 2


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (TimeoutError(), "TimeoutError"),
        (aiormq.exceptions.ChannelClosed("NOT_FOUND"), "NOT_FOUND"),
        (RuntimeError("the writer is closed"), "the writer is closed"),
        (asyncio.CancelledError(), "CancelledError"),
    ],
    ids=repr,
)
async def test_lost_connection_is_followed_by_another(error: BaseException, reason: str) -> None:
    sessions = ScriptedSessions(error)
    await sessions.run()
    assert sessions.begun == 2
    assert sessions.lost == [(State.LOST, reason)]
    assert NoBackoff.asked == 1


async def test_refusal_from_the_start_is_raised() -> None:
    sessions = ScriptedSessions(BrokerRefusal("no such virtual host"))
    with pytest.raises(BrokerRefusal, match="no such virtual host"):
        await sessions.run()
    assert (sessions.begun, sessions.lost) == (1, [])


async def test_refusal_after_only_lost_connections_is_raised() -> None:
    sessions = ScriptedSessions(OSError("connection refused"), BrokerRefusal("wrong password"))
    with pytest.raises(BrokerRefusal):
        await sessions.run()
    assert sessions.begun == 2


@pytest.mark.parametrize(("works", "wait"), [(True, False), (False, True)])
async def test_refusal_after_a_working_session_or_with_wait_is_retried(*, works: bool, wait: bool) -> None:
    sessions = ScriptedSessions(BrokerRefusal("wrong password"), works=works, wait=wait)
    await sessions.run()
    assert sessions.begun == 2
    assert sessions.lost == [(State.REFUSED, "wrong password")]
    assert NoBackoff.asked == 1


async def test_unexpected_error_is_logged_with_its_frames_and_without_its_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = ValueError("netloc 'u:s3cret@mq' contains invalid characters")
    error.__cause__ = KeyError("amqp://u:s3cret@mq/")
    error.add_note("s3cret")
    sessions = ScriptedSessions(error)
    await sessions.run()
    assert sessions.begun == 2
    assert sessions.lost == [(State.LOST, "ValueError")]
    [entry] = caplog.records
    assert entry.levelname == "ERROR"
    assert "ValueError" in caplog.text
    assert "in run_session" in caplog.text, "a developer needs the frames to find the bug"
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize(("lasted_s", "resets"), [(DEFAULT.stable_s - 0.1, 0), (DEFAULT.stable_s, 1)])
@pytest.mark.parametrize("end", ["channel closed", OSError("reset by peer"), BrokerRefusal("no permission")], ids=repr)
async def test_pauses_are_reset_after_a_session_that_lasted_and_only_then(
    monkeypatch: pytest.MonkeyPatch, end: End, lasted_s: float, resets: int
) -> None:
    clock = Time()
    monkeypatch.setattr(supervisor, "time", clock)
    sessions = ScriptedSessions(end, works=True)
    run_session = sessions.run_session

    async def run_session_for_a_while() -> str:
        clock.now_s += lasted_s
        return await run_session()

    sessions.run_session = run_session_for_a_while  # type: ignore[method-assign]  # a session that lasts
    await sessions.run()
    assert sessions.begun == 2
    assert NoBackoff.resets == resets


async def test_each_attempt_is_counted_until_one_works() -> None:
    sessions = ScriptedSessions(OSError("1"), OSError("2"), OSError("3"))
    await sessions.run()
    assert sessions.status.attempts == 4
    working = ScriptedSessions("lost", works=True)
    await working.run()
    assert working.status.attempts == 0


async def test_end_is_reported_before_the_status_changes() -> None:
    status, stopping, seen = Status(), asyncio.Event(), []

    async def run_session() -> str:
        status.enter(State.WORKING)
        return "gone"

    def lost(state: State, reason: str) -> None:
        seen.append((status.state, state, reason))
        stopping.set()

    async with asyncio.timeout(5):
        await supervise(run_session, status, lost, stopping, wait=False)
    assert seen == [(State.WORKING, State.LOST, "gone")]
    assert status.state is State.STOPPED
    assert status.error == "gone"


async def test_stop_before_the_start_runs_no_session() -> None:
    sessions = ScriptedSessions()
    sessions.stopping.set()
    await sessions.run()
    assert sessions.begun == 0
    assert sessions.status.state is State.STOPPED


async def test_stop_within_a_session_is_no_loss() -> None:
    sessions = ScriptedSessions()
    await sessions.run()
    assert (sessions.begun, sessions.lost, sessions.status.state) == (1, [], State.STOPPED)


async def test_error_while_stopping_is_no_loss() -> None:
    sessions = ScriptedSessions(OSError("closed by the bridge"))
    run_session = sessions.run_session

    async def run_session_and_stop() -> str:
        sessions.stopping.set()
        return await run_session()

    sessions.run_session = run_session_and_stop  # type: ignore[method-assign]  # a session that ends with a stop
    await sessions.run()
    assert (sessions.begun, sessions.lost, sessions.status.state) == (1, [], State.STOPPED)


async def test_stop_ends_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NoBackoff, "pause_s", lambda _: 3600.0)
    sessions = ScriptedSessions("lost")
    asyncio.get_running_loop().call_soon(sessions.stopping.set)
    await sessions.run()
    assert sessions.begun == 1
    assert sessions.lost == [(State.LOST, "lost")]


async def test_cancellation_from_outside_ends_it() -> None:
    begun = asyncio.Event()

    async def run_session() -> str:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError("the session never ends")

    sessions = ScriptedSessions()
    sessions.run_session = run_session  # type: ignore[method-assign]  # a session without an end
    running = asyncio.create_task(sessions.run())
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert sessions.lost == []


async def test_stray_cancellation_of_a_task_that_continued_after_a_requested_one_is_a_loss() -> None:
    sessions = ScriptedSessions(asyncio.CancelledError("stray"))
    task = asyncio.create_task(_run_after_a_cancellation(sessions))
    await asyncio.sleep(0)
    task.cancel()
    await task
    assert sessions.lost == [(State.LOST, "stray")]
    assert sessions.begun == 2


async def _run_after_a_cancellation(sessions: ScriptedSessions) -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await sessions.run()
