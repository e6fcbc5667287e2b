"""Processes that are measured, and that end with whoever started them: what they cost is read from /proc."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

STOP_LIMIT_S = 10.0
SETTLE_LIMIT_S = 15.0
_POLL_S = 0.1
_QUIET_SHARE = 0.03
"""Of a core: a server that uses less has nothing left to do."""


class Failed(Exception):
    """A candidate can't be measured; the message says why."""


@contextlib.contextmanager
def started(
    command: Sequence[str | Path],
    log: IO[bytes],
    variables: Mapping[str, str] | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """The command, running. It is ended at the end, and by the kernel where there is no end: when we are killed."""
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *map(str, command)],
        env={**os.environ, **(variables or {})},
        stdin=stdin,
        stdout=log if stdout is None else stdout,
        stderr=log,
        # Ctrl-C in a terminal is for us: we end the others in their turn.
        process_group=0,
    )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL to the whole group for what is still there."""
    process.terminate()
    try:
        process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        # Also when Ctrl-C breaks the waiting off; and what a command started and left behind goes with it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def await_true(what: str, holds: Callable[[], bool], limit_s: float, poll_s: float = _POLL_S) -> None:
    """Returns as soon as it holds. Raises Failed, naming `what`, when it does not within the limit."""
    deadline = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > deadline:
            raise Failed(f"not within {limit_s:g} s: {what}")
        time.sleep(poll_s)


def cpu_us(pid: int) -> float:
    """CPU microseconds that a process and its children have used, in threads that still run."""
    return sum(int(text.split()[0]) for one in _tree(pid) for text in _texts(one, "task/*/schedstat")) / 1000


def rss_kb(pid: int, field: str = "VmRSS") -> float:
    """Resident kilobytes of a process and its children; with `VmHWM`, the most that it ever was."""
    lines = (line for one in _tree(pid) for text in _texts(one, "status") for line in text.splitlines())
    return sum(float(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def settle(pid: int) -> None:
    """Returns when the process rests and its memory no longer changes, or after SETTLE_LIMIT_S."""
    deadline = time.monotonic() + SETTLE_LIMIT_S
    quiet, cpu, rss = 0, cpu_us(pid), rss_kb(pid)
    while quiet < 10 and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        new_cpu, new_rss = cpu_us(pid), rss_kb(pid)
        rests = new_cpu - cpu < _QUIET_SHARE * _POLL_S * 1e6 and abs(new_rss - rss) < 64
        quiet = quiet + 1 if rests else 0
        cpu, rss = new_cpu, new_rss


def _tree(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        found += [int(child) for text in _texts(one, "task/*/children") for child in text.split()]
    return found


def _texts(pid: int, pattern: str) -> Iterator[str]:
    for path in Path(f"/proc/{pid}").glob(pattern):
        # A thread may end between being listed and being read.
        with contextlib.suppress(OSError):
            yield path.read_text()
