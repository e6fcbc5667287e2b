"""Ctrl-C at many moments while a command starts: the command ends with 130 and prints nothing."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from tests.support.commands import AWAY, plain_environment
from tests.support.waiting import LIMIT_S

START = """
import os, signal, sys

class Reporter:
    def find_spec(name, *_):
        if name not in {"bridge", "bridge.__main__", "bridge.interrupts"}:
            sys.meta_path.remove(Reporter)
            os.write(1, b'started\\n')

sys.meta_path.insert(0, Reporter)
from bridge.__main__ import main
main()
"""
"""A program that prints a line when it first imports a module that the handler of Ctrl-C does not need.

When the program prints its line, the handler must exist. An earlier interrupt may arrive before any code of the bridge
runs."""

DELAYS_MS = (0, 1, 2, 5, 10, 20, 30, 45, 60, 80, 100, 130, 160, 200, 250, 320, 400, 500, 700)


@pytest.fixture
async def silent_port() -> AsyncIterator[int]:
    """The port of a server that accepts connections and sends nothing, so that no command finishes its start."""
    held: list[asyncio.StreamWriter] = []

    async def hold(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for writer in held:
        writer.transport.abort()
    await server.wait_closed()


async def interrupted(delay_ms: int | None, *arguments: str) -> tuple[int | None, str]:
    """Returns the exit code and all output of a command.

    If `delay_ms` is not None, the command gets SIGINT after this delay.
    """
    process = await asyncio.create_subprocess_exec(
        *("env", "--default-signal=INT", sys.executable, "-c", START, *arguments),
        env=plain_environment(),
        cwd=AWAY,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(LIMIT_S):
            assert await process.stdout.readline() == b"started\n"
            if delay_ms is not None:
                # This sleep does not wait for a condition: each delay interrupts the start at a different moment.
                await asyncio.sleep(delay_ms / 1000)
                with suppress(ProcessLookupError):  # a command that only prints may have ended
                    # If the process has ended, send_signal would fetch the exit code, and asyncio would miss it.
                    os.kill(process.pid, signal.SIGINT)
            output = await process.stdout.read()
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    return process.returncode, output.decode()


@pytest.mark.parametrize(
    "arguments",
    [
        ["check"],
        ["publish"],
        ["rejects", "list"],
        ["rejects", "requeue", "--all"],
        ["tail"],
        ["demo", "--publish-only"],
    ],
    ids=" ".join,
)
async def test_interrupt_at_any_moment_of_the_start_ends_quietly(silent_port: int, arguments: list[str]) -> None:
    where = f"ws://127.0.0.1:{silent_port}/" if arguments == ["tail"] else f"--amqp-url=amqp://127.0.0.1:{silent_port}"
    where = "--type=killmail" if arguments == ["check"] else where
    for delay_ms in DELAYS_MS:
        ended = await interrupted(delay_ms, *arguments, where)
        if arguments[0] == "demo" and ended[0] == 0:
            # The demo was already running, and Ctrl-C stopped it.
            assert "Traceback" not in ended[1]
        else:
            assert ended == (130, ""), delay_ms


@pytest.mark.parametrize("arguments", [["config"], ["completion", "bash"], ["--version"], ["serve", "--help"]])
async def test_interrupted_command_that_only_prints_ends_quietly_or_has_ended(arguments: list[str]) -> None:
    _, complete = await interrupted(None, *arguments)
    for delay_ms in DELAYS_MS:
        code, output = await interrupted(delay_ms, *arguments)
        # When Python shuts down, it removes its signal handler some time before the process ends. If SIGINT kills a
        # process, a shell reports the exit code 130.
        assert code in (0, 130, -signal.SIGINT), output
        assert complete.startswith(output), delay_ms


async def test_interrupted_bridge_ends_quietly_or_stops_in_order(silent_port: int) -> None:
    for delay_ms in DELAYS_MS:
        code, output = await interrupted(delay_ms, "serve", "--port=0", f"--amqp-url=amqp://127.0.0.1:{silent_port}")
        assert "Traceback" not in output, output
        if code == 0:
            assert '"event":"stopped"' in output.splitlines()[-1]
        else:
            assert (code, output) == (130, ""), delay_ms
