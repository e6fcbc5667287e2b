"""Tests that the output of a command is escaped for its encoding, and does not block the event loop."""

from __future__ import annotations

import asyncio
import io
import os
import sys
from contextlib import suppress
from select import select
from typing import TYPE_CHECKING

import pytest

from bridge.cli.common.output import ESCAPE, Output, echo, echo_json, escape_unencodable, json_encoding
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MORE_THAN_A_PIPE_HOLDS = "ü" * 2**20


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The two ends of a pipe. A test may close either end of the pipe."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with suppress(OSError):
            os.close(end)


async def test_event_loop_runs_while_a_pipe_is_full(pipe: tuple[int, int]) -> None:
    ours, theirs = pipe
    printing = asyncio.create_task(Output(theirs).line(MORE_THAN_A_PIPE_HOLDS))
    taken = b""
    while not printing.done() or select([ours], [], [], 0)[0]:
        # If printing blocked the event loop, this sleep would never return.
        await asyncio.sleep(0)
        if select([ours], [], [], 0)[0]:
            taken += os.read(ours, 2**20)
    assert taken.decode() == MORE_THAN_A_PIPE_HOLDS + "\n"


async def test_cancelled_line_unregisters_the_descriptor(pipe: tuple[int, int]) -> None:
    printing = asyncio.create_task(Output(pipe[1]).line(MORE_THAN_A_PIPE_HOLDS))
    await eventually("the pipe is full", lambda: not select([], [pipe[1]], [], 0)[1])
    printing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await printing
    assert asyncio.get_running_loop().remove_writer(pipe[1]) is False


async def test_pipe_without_a_reader_is_abandoned_and_raises(pipe: tuple[int, int]) -> None:
    ours, theirs = pipe
    output = Output(theirs)
    abandoned = asyncio.create_task(output.abandoned())
    await output.line("something that is not read")
    await asyncio.sleep(0)
    assert not abandoned.done()
    os.close(ours)
    async with asyncio.timeout(5):
        await abandoned
    with pytest.raises(BrokenPipeError):
        await output.line("something more")


async def test_file_is_never_abandoned(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        output = Output(file.fileno())
        abandoned = asyncio.create_task(output.abandoned())
        await output.line("\x9b2J")
        await output.line("")
        await asyncio.sleep(0)
        assert not abandoned.done()
        abandoned.cancel()
        with pytest.raises(asyncio.CancelledError):
            await abandoned
    # Control characters have an effect only on a terminal, so they are written to a file unchanged.
    assert (tmp_path / "file").read_text() == "\x9b2J\n\n"


@pytest.mark.parametrize("in_color", [False, True])
async def test_control_characters_are_escaped_in_color(pipe: tuple[int, int], in_color: bool) -> None:
    await Output(pipe[1], in_color).line('"\x9b2J"')
    assert os.read(pipe[0], 100) == (b'"\\u009b2J"\n' if in_color else '"\x9b2J"\n'.encode())


async def test_pipe_filled_by_another_program_is_tried_again(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    refusals = [BlockingIOError(), BlockingIOError()]

    def first_refuses(descriptor: int, data: memoryview) -> int:
        if refusals:
            raise refusals.pop()
        return write(descriptor, data)

    monkeypatch.setattr("bridge.cli.common.output.os.write", first_refuses)
    await Output(pipe[1]).line("line")
    assert os.read(pipe[0], 100) == b"line\n"


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("utf-8", '"\xe4\U0001f680"\n'.encode()),
        ("latin-1", b'"\xe4\\ud83d\\ude80"\n'),
        ("ascii", b'"\\u00e4\\ud83d\\ude80"\n'),
    ],
)
async def test_character_that_the_encoding_does_not_have_is_escaped(
    pipe: tuple[int, int], encoding: str, written: bytes
) -> None:
    await Output(pipe[1], encoding=encoding).line('"\xe4\U0001f680"')
    assert os.read(pipe[0], 100) == written


def replaced(monkeypatch: pytest.MonkeyPatch, name: str, encoding: str) -> io.BytesIO:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, name, io.TextIOWrapper(raw, encoding, newline="\n"))
    return raw


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("ascii", b"\\u00e4 \\u2022 \\ud83d\\ude80 \\udcff\n"),
        ("latin-1", b"\xe4 \\u2022 \\ud83d\\ude80 \\udcff\n"),
        ("utf-8", "\xe4 \u2022 \U0001f680 ".encode() + b"\\udcff\n"),
    ],
)
def test_both_streams_escape_characters_that_their_encoding_does_not_have(
    monkeypatch: pytest.MonkeyPatch, encoding: str, written: bytes
) -> None:
    out, err = (replaced(monkeypatch, name, encoding) for name in ("stdout", "stderr"))
    escape_unencodable()
    for to_stderr in (False, True):
        echo("\xe4 \u2022 \U0001f680 \udcff", err=to_stderr)
    assert (out.getvalue(), err.getvalue()) == (written, written)


@pytest.mark.parametrize(
    ("encoding", "of_json", "written"),
    [
        ("utf-8", "utf-8", '{"a": "\xe4\u2022"}\n'.encode()),
        ("UTF8", "utf-8", '{"a": "\xe4\u2022"}\n'.encode()),
        ("latin-1", "ascii", b'{"a": "\\u00e4\\u2022"}\n'),
        ("ascii", "ascii", b'{"a": "\\u00e4\\u2022"}\n'),
        ("utf-16", "ascii", '{"a": "\\u00e4\\u2022"}\n'.encode("utf-16")),
    ],
)
def test_json_is_utf_8_or_ascii(monkeypatch: pytest.MonkeyPatch, encoding: str, of_json: str, written: bytes) -> None:
    raw = replaced(monkeypatch, "stdout", encoding)
    assert json_encoding(sys.stdout) == of_json
    echo_json('{"a": "\xe4\u2022"}')
    assert raw.getvalue() == written


def test_closed_stream_and_other_stream_are_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", err := io.StringIO())
    escape_unencodable()
    echo("line")
    echo_json("{}")
    echo("line", err=True)
    assert err.getvalue() == "line\n"


def test_decoding_error_is_not_handled() -> None:
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("ascii", ESCAPE)
