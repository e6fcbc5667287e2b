"""Runs child processes, and reads their processor time and memory from /proc."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

STOP_LIMIT_S = 10.0
SETTLE_LIMIT_S = 15.0
_POLL_S = 0.1
_QUIET_SHARE = 0.03
"""A server that uses less than this share of a core is idle."""


class Failed(Exception):
    """A candidate can't be measured. The message of the exception gives the reason."""


@contextlib.contextmanager
def started(
    command: Sequence[str | Path],
    log: IO[bytes],
    variables: Mapping[str, str] | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs the command, and ends it at the end of the context.

    If this process is killed, the kernel kills the command too.
    """
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *map(str, command)],
        env={**os.environ, **(variables or {})},
        stdin=stdin,
        stdout=log if stdout is None else stdout,
        stderr=log,
        # Ctrl-C in a terminal must not reach the child, because this process ends its children itself, in the right
        # order.
        process_group=0,
    )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Sends SIGTERM to the process, and later SIGKILL to all remaining processes of its group."""
    process.terminate()
    try:
        process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        # The group is killed even if Ctrl-C interrupts the wait. Killing the group also ends the child processes of the
        # command.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def await_true(what: str, holds: Callable[[], bool], limit_s: float, poll_s: float = _POLL_S) -> None:
    """Returns as soon as `holds` returns True.

    If `holds` does not return True within `limit_s` seconds, raises Failed with a message that names `what`.
    """
    deadline = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > deadline:
            raise Failed(f"timeout after {limit_s:g} s: {what}")
        time.sleep(poll_s)


def cpu_us(*pids: int) -> float:
    """Returns the processor time of the processes and their children, in microseconds.

    The time of threads that have ended is not included.
    """
    return sum(int(text.split()[0]) for one in _tree(pids) for text in _texts(one, "task/*/schedstat")) / 1000


def rss_kb(*pids: int, field: str = "VmRSS") -> float:
    """Returns the resident memory of the processes and their children, in kilobytes.

    With the field `VmHWM`, this is the largest resident memory so far.
    """
    lines = (line for one in _tree(pids) for text in _texts(one, "status") for line in text.splitlines())
    return sum(float(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def settle(*pids: int, polls: int = 10) -> None:
    """Returns when the processes are idle and their memory does not change for some polls, or after SETTLE_LIMIT_S."""
    deadline = time.monotonic() + SETTLE_LIMIT_S
    quiet, cpu, rss = 0, cpu_us(*pids), rss_kb(*pids)
    while quiet < polls and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        new_cpu, new_rss = cpu_us(*pids), rss_kb(*pids)
        is_idle = new_cpu - cpu < _QUIET_SHARE * _POLL_S * 1e6 and abs(new_rss - rss) < 64
        quiet = quiet + 1 if is_idle else 0
        cpu, rss = new_cpu, new_rss


def _tree(pids: Iterable[int]) -> list[int]:
    found = list(pids)
    for one in found:
        found += [int(child) for text in _texts(one, "task/*/children") for child in text.split()]
    return found


def _texts(pid: int, pattern: str) -> Iterator[str]:
    for path in Path(f"/proc/{pid}").glob(pattern):
        # A thread in the list may have ended before its file is read.
        with contextlib.suppress(OSError):
            yield path.read_text()
