"""Tests of a command's status line, on a terminal and elsewhere."""

from __future__ import annotations

import asyncio
import io
import os

import pytest

from bridge.cli.common.progress import FIRST_S, ON_TERMINAL_S, STEP_S, Progress, Spinner
from tests.support.virtual_time import VirtualTime


@pytest.fixture(autouse=True)
def _capable_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that a test sets."""
    turned = Clock()
    monkeypatch.setattr("bridge.cli.common.progress.time", turned)
    return turned


def test_progress_works_if_standard_error_is_closed(clock: Clock) -> None:
    progress = Progress(None, lambda: "never said")
    clock.now_s += FIRST_S * 2
    progress.tick()
    progress.say("never said either")


def test_short_command_shows_no_progress(clock: Clock) -> None:
    for stream in (io.StringIO(), Terminal()):
        progress = Progress(stream, lambda: "never said")
        clock.now_s += FIRST_S * 0.9
        progress.tick()
        assert stream.getvalue() == ""


def test_progress_is_not_shown_without_a_terminal(clock: Clock) -> None:
    stream = io.StringIO()
    progress = Progress(stream, lambda: "never said")
    for _ in range(100):
        clock.now_s += 60
        progress.tick()
    assert stream.getvalue() == ""


def test_progress_on_a_terminal_overwrites_itself(clock: Clock) -> None:
    stream, count = Terminal(), 0
    progress = Progress(stream, lambda: f"{count} done")
    clock.now_s += FIRST_S
    for count in range(1, 10):  # noqa: B007 - the progress's own lambda reads it
        progress.tick()
        clock.now_s += ON_TERMINAL_S * 0.3
    assert stream.getvalue() == "1 done\r\x1b[K5 done\r\x1b[K9 done\r"


def test_line_that_stays_replaces_the_progress(clock: Clock) -> None:
    stream = Terminal()
    progress = Progress(stream, lambda: "half")
    clock.now_s += FIRST_S
    progress.tick()
    progress.say("an error")
    progress.say("the end")
    assert stream.getvalue() == "half\r\x1b[Kan error\nthe end\n"


def test_only_lines_that_stay_are_printed_without_a_terminal(clock: Clock) -> None:
    stream = io.StringIO()
    progress = Progress(stream, lambda: "half")
    clock.now_s += FIRST_S
    progress.tick()
    progress.say("the end")
    assert stream.getvalue() == "the end\n"


def test_terminal_whose_cursor_does_not_move_gets_only_the_lines_that_stay(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    progress = Progress(terminal, lambda: "half")
    clock.now_s += FIRST_S * 2
    progress.tick()
    progress.say("done")
    assert terminal.getvalue() == "done\n"


async def test_spinner_turns_until_the_wait_is_over_and_is_erased_by_lines_that_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    VirtualTime(monkeypatch)
    terminal = Terminal()
    spinner = Spinner(terminal)
    spinner.wait("connecting")
    assert terminal.getvalue() == "", "a short wait shows nothing"
    await asyncio.sleep(2.5 * STEP_S)
    assert terminal.getvalue() == "\r/ connecting\x1b[K\r- connecting\x1b[K"
    spinner.say("a line")
    await asyncio.sleep(STEP_S)
    spinner.close()
    spinner.close()
    await asyncio.sleep(3 * STEP_S)
    assert terminal.getvalue().partition("-")[2] == " connecting\x1b[K\r\x1b[Ka line\n\r\\ connecting\x1b[K\r\x1b[K"


@pytest.mark.parametrize("stream", [io.StringIO(), None], ids=["no terminal", "closed"])
async def test_spinner_shows_only_lines_that_stay_without_a_terminal(
    stream: io.StringIO | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    VirtualTime(monkeypatch)
    spinner = Spinner(stream)
    spinner.wait("connecting")
    await asyncio.sleep(3 * STEP_S)
    spinner.say("a line")
    spinner.close()
    assert stream is None or stream.getvalue() == "a line\n"


@pytest.mark.parametrize(("in_foreground", "shown"), [(True, True), (False, False)])
async def test_spinner_of_a_background_job_shows_nothing(
    monkeypatch: pytest.MonkeyPatch, in_foreground: bool, shown: bool
) -> None:
    VirtualTime(monkeypatch)
    terminal = Terminal()
    monkeypatch.setattr(terminal, "fileno", lambda: 0)
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp() + (not in_foreground))
    spinner = Spinner(terminal)
    spinner.wait("connecting")
    await asyncio.sleep(1.5 * STEP_S)
    spinner.close()
    assert ("connecting" in terminal.getvalue()) is shown
