"""`edk-bridge tail` prints colors and a spinner on a real terminal, but not in a pipe."""

import asyncio
import os
import pty
import re
import signal
from collections.abc import AsyncIterator
from functools import partial
from http import HTTPStatus

import pytest

from bridge.cli.common.colors import TYPE
from tests.support.commands import IMPATIENT, TAIL_SCRIPT, OnTerminal, on_terminal, tailing
from tests.support.followers import TAG, ScriptedBridge, scripted_bridge
from tests.support.killmail import EXAMPLE
from tests.support.waiting import eventually

ERASED = re.compile(rb"(?:\r[-|/\\] [^\r\n]*\x1b\[K)+\r\x1b\[K")
"""Matches the output of a spinner that the command has erased."""
START = ("-c", TAIL_SCRIPT.format(pauses=IMPATIENT, more=""))


@pytest.fixture
async def bridge() -> AsyncIterator[ScriptedBridge]:
    """A scripted bridge."""
    async with scripted_bridge() as running:
        yield running


def plain(terminal: OnTerminal) -> list[str]:
    """Returns the lines that remain visible on a terminal, without their colors."""
    left = ERASED.sub(b"", terminal.shown)
    return re.sub(rb"\x1b\[[0-9;]*m", b"", left).decode().replace("\r\n", "\n").splitlines()


async def test_spinner_turns_until_the_first_update_and_is_erased(bridge: ScriptedBridge) -> None:
    bridge.ready.clear()
    async with on_terminal("tail", "--format", "json", bridge.url, start=START) as terminal:
        await eventually("the spinner turns", lambda: f"\r/ connecting to {bridge.url}".encode() in terminal.shown)
        bridge.ready.set()
        await eventually(
            "the command waits for the first update", lambda: b"waiting for the first update" in terminal.shown
        )
        first, second = bridge.emit({"killmailId": 1}), bridge.emit({"killmailId": 2})
        await eventually("both updates are shown", lambda: f"2-{TAG}".encode() in terminal.shown)
        turns = terminal.shown.count(b"waiting for")
        bridge.drop()
        await eventually("the command is connected again", lambda: b"reconnected after" in terminal.shown)
        third = bridge.emit({"killmailId": 3})
        await eventually("the update is shown", lambda: f"3-{TAG}".encode() in terminal.shown)
        assert terminal.shown.count(b"waiting for the first") <= turns
        terminal.process.send_signal(signal.SIGINT)
        assert await terminal.ended() == 130
    lines = [line for line in plain(terminal) if not line.startswith("connected to")]
    assert lines[:2] == [first.decode(), second.decode()]
    assert lines[2].startswith(f"disconnected from {bridge.url}")
    assert lines[3].startswith("reconnected after")
    assert lines[4:] == [third.decode(), f"to continue from here: --after 3-{TAG}"]


@pytest.mark.parametrize(
    ("arguments", "variables", "colors"),
    [
        ([], {}, True),
        ([], {"NO_COLOR": "1"}, False),
        ([], {"NO_COLOR": ""}, True),
        ([], {"TERM": "dumb"}, False),
        (["--color", "never"], {}, False),
        (["--color", "always"], {"NO_COLOR": "1", "TERM": "dumb"}, True),
    ],
)
async def test_terminal_has_colors_unless_disabled(
    bridge: ScriptedBridge, arguments: list[str], variables: dict[str, str], *, colors: bool
) -> None:
    async with on_terminal("tail", "--format", "json", *arguments, bridge.url, start=START, **variables) as terminal:
        await eventually("the command is connected", lambda: b"connected to" in terminal.shown)
        text = bridge.emit({"ship": "\x9b2J Rifter"})
        await eventually(
            "the update is shown", lambda: f"1-{TAG}".encode() in terminal.shown and b"}" in terminal.shown[-4:]
        )
    assert (TYPE('"killmail"').encode() in terminal.shown) is colors
    assert text.decode().replace("\x9b", "\\u009b") in plain(terminal)
    if variables.get("TERM") == "dumb":
        assert b"\r/" not in terminal.shown


async def test_update_is_one_line_that_fits_into_the_terminal(bridge: ScriptedBridge) -> None:
    async with on_terminal("tail", "--color", "always", bridge.url, start=START) as terminal:
        await eventually("the command is connected", lambda: b"connected to" in terminal.shown)
        bridge.emit(EXAMPLE)
        bridge.emit({"note": "long " * 100})
        bridge.send_gap(since="2024-10-22T10:30:00Z", until="2024-10-22T10:31:00Z", reason="broker-away")
        await eventually("the gap is shown", lambda: b"updates may be missing" in terminal.shown)
    assert TYPE("killmail").encode() in terminal.shown
    _, killmail, other, gap = plain(terminal)
    assert killmail.endswith("  killmail  ship 587    system 30000142    15 att.  123456789")
    assert (len(other), other[-3:]) == (80, "...")
    assert gap.startswith("updates may be missing: ")


async def test_pipe_has_neither_colors_nor_a_spinner(bridge: ScriptedBridge) -> None:
    bridge.ready.clear()
    async with tailing(bridge.url) as tail:
        # The wait is long enough for a spinner to turn.
        await tail.reports(f"connected to {bridge.url}, which does not send updates yet")
        bridge.ready.set()
        await tail.reports(f"connected to {bridge.url}", times=2)
        await tail.prints(bridge.emit({"ship": "\x9b2J"}))
        assert not any("\r" in line or "\x1b" in line for line in tail.errors)


async def test_pipe_has_requested_colors_and_escaped_control_characters(
    bridge: ScriptedBridge,
) -> None:
    async with tailing(bridge.url, "--color", "always") as tail:
        await tail.reports("connected to")
        bridge.emit({"ship": "\x9b2J"})
        assert tail.process.stdout is not None
        line = await tail.process.stdout.readline()
    assert TYPE('"killmail"').encode() in line
    assert rb"\u009b2J" in line


async def test_updates_are_in_the_pipe_and_the_spinner_on_the_terminal(bridge: ScriptedBridge) -> None:
    ours, theirs = pty.openpty()
    try:
        async with tailing(bridge.url, stderr=theirs) as tail:
            os.close(theirs)
            shown = b""
            while b"waiting for the first update" not in shown:
                shown += await asyncio.to_thread(os.read, ours, 4096)
            await tail.prints(bridge.emit({"ship": "Rifter"}))
            while not shown.endswith(b"\r\x1b[K"):
                shown += await asyncio.to_thread(os.read, ours, 4096)
    finally:
        os.close(ours)
    assert ERASED.sub(b"", shown) == f"connected to {bridge.url}\r\n".encode()


def has_asked(bridge: ScriptedBridge, often: int) -> bool:
    return len(bridge.asked) >= often


async def test_refusal_after_a_connection_is_reported_once_and_tried_again(bridge: ScriptedBridge) -> None:
    async with tailing(bridge.url) as tail:
        await tail.reports("connected to")
        for status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.FORBIDDEN):
            bridge.refusal = status, "Not now."
            if status == HTTPStatus.SERVICE_UNAVAILABLE:
                bridge.drop()
            await tail.reports(f"can't connect to {bridge.url}: it answers {status.value}: Not now.; trying again")
            enough = len(bridge.asked) + 3
            await eventually("the command sends further requests", partial(has_asked, bridge, enough))
        bridge.refusal = None
        await tail.reports("reconnected after")
        away = [line.partition(" ws:")[0] for line in tail.errors if line.endswith("trying again")]
        assert away == ["disconnected from", "can't connect to", "can't connect to"], tail.errors


async def test_permanent_refusal_after_a_connection_ends_tail(bridge: ScriptedBridge) -> None:
    async with tailing(bridge.url) as tail:
        await tail.reports("connected to")
        bridge.refusal = HTTPStatus.BAD_REQUEST, "There is no such type."
        bridge.drop()
        assert await tail.ended() == 2
        assert tail.errors[-1] == f"edk-bridge: {bridge.url} refuses (400): There is no such type."
