"""The clients: the load generator as a child process, and what it saw."""

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.build import BUILT
from tests.bench.candidates import Place, Server
from tests.bench.process import Failed, await_true, started

OPEN_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Ends:
    """How many connections ended how."""

    connected: int
    reset: int
    eof: int
    codes: dict[str, int]
    """By the code of the server's close frame."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the load generator prints; times in its units."""

    refused: int
    open_s: float
    refused_back: int
    back_s: float
    """How long it took until all were open again; 0 where they were not dropped."""
    resumes: int
    """Answers to a resume, each the first message of its connection."""
    incomplete: int
    """Of them those that said that something is missing."""
    caught_s: float
    """How long it took until the last client had what was asked of it, from the first connection on."""
    frames: int
    lost: int
    extra: int
    doubled: int
    disorder: int
    cut: int
    pings: int
    span_s: float
    """From the first update to the last."""
    cpu_us: float
    p50_us: float
    p90_us: float
    p99_us: float
    p999_us: float
    max_us: float
    readers: Ends
    stalled: Ends

    @property
    def misplaced(self) -> int:
        """Updates that came twice, or behind a later one."""
        return self.doubled + self.disorder


class Crowd:
    """Clients of one server, in one process."""

    def __init__(self, running: "subprocess.Popen[bytes]", flag: Path) -> None:
        self._process = running
        self._flag = flag

    def ready(self) -> None:
        """Returns when all connections are open, or refused."""
        await_true("all clients are connected", lambda: self._flag.exists() or self._ended(), OPEN_LIMIT_S, 0.01)
        if self._ended():
            raise Failed("the load generator ended")

    def drop(self) -> None:
        """All connections at once; `ready` returns when they are open anew."""
        self._flag.unlink()
        self._process.send_signal(signal.SIGUSR1)

    def seen(self) -> Seen:
        """What there was to see, once it is over. The connections stay open."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Failed("the load generator said nothing")
        found = json.loads(line)
        return Seen(**found | {name: Ends(**found[name]) for name in ("readers", "stalled")})

    def stop(self) -> Seen:
        """Tells clients that hold to leave."""
        self._process.terminate()
        return self.seen()

    def _ended(self) -> bool:
        return self._process.poll() is not None


@contextlib.contextmanager
def crowd(
    place: Place, server: Server, clients: int, paths: Sequence[str] = (), **options: int | bool
) -> Iterator[Crowd]:
    """So many clients of the server; `options` are the load generator's, as in `quiet_s=5` and `hold=True`.

    `paths` are what the clients ask for, in turn; without any, all of them for all updates.
    """
    words = [f"--{name.replace('_', '-')}" + ("" if text is True else f" {text}") for name, text in options.items()]
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
    """A publisher at work; it ends by itself when the broker has everything."""
    numbers = map(str, (count, rate, pad, systems))
    command = [sys.executable, "-m", "tests.bench.publish", place.exchange, *numbers]
    with place.log.open("ab") as log, started(command, log, place.variables()) as running:
        yield running
