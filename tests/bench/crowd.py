"""Runs the load generator (the clients) as a child process, and reads its results."""

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.build import BUILT
from tests.bench.candidates import Place, Server
from tests.bench.process import Failed, await_true, started

OPEN_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Ends:
    """The number of connections in each state at the end."""

    connected: int
    reset: int
    eof: int
    codes: dict[str, int]
    """For each close code, the number of connections that the server closed with this code."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The output of the load generator."""

    refused: int
    open_s: float
    refused_back: int
    back_s: float
    """The time until all connections were open again, or 0 if no connection was dropped.

    If the connections were dropped several times, this is the mean.
    """
    resumes: int
    """The number of `resume` messages."""
    incomplete: int
    """The number of `resume` messages that reported missing updates."""
    caught_s: float
    """The time from the first connection until every client had all the updates that it requested."""
    frames: int
    lost: int
    extra: int
    doubled: int
    disorder: int
    cut: int
    pings: int
    span_s: float
    """The time from the first update to the last update."""
    cpu_us: float
    p50_us: float
    p90_us: float
    p99_us: float
    p999_us: float
    max_us: float
    window_frames: int
    """The number of updates that arrived in a window."""
    window_p99_us: float
    readers: Ends
    stalled: Ends

    @property
    def misplaced(self) -> int:
        """The number of updates that arrived twice at a client, or out of order."""
        return self.doubled + self.disorder


class Crowd:
    """The clients of one server, in one process."""

    def __init__(self, running: "subprocess.Popen[bytes]", flag: Path) -> None:
        self._process = running
        self._flag = flag

    def ready(self) -> None:
        """Returns when each connection is open or refused. Raises Failed after OPEN_LIMIT_S."""
        await_true("all clients are connected", lambda: self._flag.exists() or self._ended(), OPEN_LIMIT_S, 0.01)
        if self._ended():
            raise Failed("the load generator ended")

    def all_open(self, limit_s: float) -> bool:
        """Returns whether each connection is open or refused within the limit, which is in seconds."""
        deadline = time.monotonic() + limit_s
        while not self._flag.exists() and not self._ended() and time.monotonic() < deadline:
            time.sleep(0.01)
        return self._flag.exists()

    def drop(self) -> None:
        """Drops all connections at once. A call of `ready` then waits until the connections are open again."""
        self._flag.unlink()
        self._process.send_signal(signal.SIGUSR1)

    @contextlib.contextmanager
    def window(self) -> Iterator[None]:
        """Counts the delays of the updates that arrive in this context separately too."""
        self._process.send_signal(signal.SIGUSR2)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGUSR2)

    def seen(self) -> Seen:
        """Waits for the results of the load generator. The connections stay open."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Failed("the load generator printed no result")
        found = json.loads(line)
        return Seen(**found | {name: Ends(**found[name]) for name in ("readers", "stalled")})

    def stop(self) -> Seen:
        """Ends clients that were started with `hold`, and returns their results."""
        self._process.terminate()
        return self.seen()

    def _ended(self) -> bool:
        return self._process.poll() is not None


@contextlib.contextmanager
def crowd(
    place: Place, server: Server, clients: int, paths: Sequence[str] = (), **options: int | bool
) -> Iterator[Crowd]:
    """Starts `clients` clients. `options` are options of the load generator, such as `quiet_s=5` and `hold=True`.

    The `paths` are distributed in turn: each client requests one of them. Without paths, each client requests all
    updates.
    """
    given = {name.replace("_", "-"): value for name, value in options.items() if value is not False}
    words = [f"--{name}" + ("" if value is True else f" {value}") for name, value in given.items()]
    with tempfile.TemporaryDirectory(prefix="bench-") as directory, place.log.open("ab") as log:
        flag = Path(directory) / "ready"
        command: list[str | Path] = [
            BUILT / "load",
            str(server.port),
            str(clients),
            "--ready",
            flag,
            *" ".join(words).split(),
        ]
        if paths:
            asked = Path(directory) / "paths"
            asked.write_text("".join(f"{path}\n" for path in paths))
            command += ["--paths", asked]
        with started(command, log, stdout=subprocess.PIPE) as running:
            yield Crowd(running, flag)


@contextlib.contextmanager
def publishing(
    place: Place, count: int, rate: float, pad: int = 0, systems: int = 1
) -> Iterator["subprocess.Popen[bytes]"]:
    """Starts a publisher, which ends when the broker has all events."""
    numbers = map(str, (count, rate, pad, systems))
    command = [sys.executable, "-m", "tests.bench.publish", place.exchange, *numbers]
    with place.log.open("ab") as log, started(command, log, place.variables()) as running:
        yield running
