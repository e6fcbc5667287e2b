"""Who is measured: how each is started, and how we know that it is ready, which is the same for all.

A candidate gets the broker as AMQP, the exchange as EXCHANGE and the port to listen on as PORT, and the same in the
bridge's own variables.
"""

import contextlib
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import process
from tests.bench.amqp import Channel
from tests.bench.build import BUILT, NODE, bun
from tests.bench.process import Failed, started
from tests.bench.publish import Events
from tests.support.broker.ports import LOOPBACK, free_port

READY_LIMIT_S = 30.0
OURS, FLOOR = "ours", "floor"
NAMES = {
    FLOOR: "the least that a fan-out is: a loop of bare sends in C",
    OURS: "this bridge",
    "naive": "the one that anybody would write first, with aio-pika and websockets",
    "bun": "the same on Bun with amqplib, which sends to each client",
    "bun-publish": "the same, leaving that to Bun's own topics",
}
SHIPPED = Path(__file__).parents[2] / ".venv/shipped/bin/python"
"""Where `make bench` installs what the bridge is shipped with. What tests it is not there: greenlet and rich, which
structlog loads wherever they are, are 6 MB of each bridge's memory."""

INTERPRETER = "BENCH_PYTHON"
"""Names another interpreter for the bridge and the peers in Python."""

PYTHON = (os.environ.get(INTERPRETER) or str(SHIPPED if SHIPPED.exists() else sys.executable), "-m")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A server, by the command that starts it."""

    name: str
    command: Sequence[str | Path]
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """Where candidates are measured: one broker and one exchange for all of them."""

    amqp: str
    exchange: str
    log: Path
    """Where everything goes that they have to say."""

    def variables(self, port: int = 0) -> dict[str, str]:
        """What a candidate, a feeder and a publisher are told."""
        return {
            "AMQP": self.amqp,
            "EXCHANGE": self.exchange,
            "PORT": str(port),
            "BRIDGE_AMQP_URL": self.amqp,
            "BRIDGE_EXCHANGES": f"{self.exchange}=killmail",
            "BRIDGE_HOST": LOOPBACK,
            "BRIDGE_PORT": str(port),
            # Or it would leave an exchange and a queue behind in a broker that is not ours.
            "BRIDGE_REJECT_EXCHANGE": "off",
        }


@dataclass(frozen=True, slots=True)
class Server:
    """A candidate that runs."""

    pid: int
    port: int

    def cpu_us(self) -> float:
        """CPU microseconds used so far."""
        return process.cpu_us(self.pid)

    def rss_kb(self, field: str = "VmRSS") -> float:
        """Kilobytes; `VmHWM` for the most so far."""
        return process.rss_kb(self.pid, field)

    def settle(self) -> None:
        """Returns when it has nothing left to do."""
        process.settle(self.pid)


def named(word: str) -> Candidate:
    """The candidate of this name, or the one that `name=COMMAND` makes. Raises Failed where it can't be had."""
    name, equals, command = word.partition("=")
    if equals:
        return Candidate(name, shlex.split(command))
    if name == FLOOR:
        return Candidate(name, [BUILT / "floor"])
    if name == OURS:
        return Candidate(name, [*PYTHON, "bridge", "serve"])
    if name == "naive":
        return Candidate(name, [*PYTHON, "tests.bench.peers.naive"])
    if name in ("bun", "bun-publish"):
        return Candidate(name, [bun(), "--no-install", NODE / "bun.ts"], {"TOPICS": "1"} if name != "bun" else {})
    raise ValueError(f"there is no candidate {word!r}; there are {', '.join(NAMES)}, or NAME=COMMAND")


@contextlib.contextmanager
def serving(candidate: Candidate, place: Place, **settings: str) -> Iterator[Server]:
    """The candidate, started and ready. `settings` are further variables for its environment."""
    with launched(candidate, place, **settings) as server:
        process.await_true(f"{candidate.name} is ready", lambda: _ready(server, place), READY_LIMIT_S)
        server.settle()
        yield server


@contextlib.contextmanager
def launched(candidate: Candidate, place: Place, **settings: str) -> Iterator[Server]:
    """The candidate, started and maybe not ready yet."""
    port = free_port()
    variables = {**place.variables(port), **candidate.variables, **settings}
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(place.log.open("ab"))
        if candidate.name == FLOOR:
            feed = [*PYTHON, "tests.bench.peers.feed"]
            feeder = stack.enter_context(started(feed, log, variables, stdout=subprocess.PIPE))
            assert feeder.stdout is not None
            command = [*candidate.command, str(port)]
            running = stack.enter_context(started(command, log, variables, stdin=feeder.stdout))
            feeder.stdout.close()
        else:
            running = stack.enter_context(started(candidate.command, log, variables))
        yield Server(running.pid, port)


def _ready(server: Server, place: Place) -> bool:
    """Whether it listens, and an event finds a queue of its behind the exchange: no candidate has to say so itself."""
    if not os.path.exists(f"/proc/{server.pid}/exe"):  # noqa: PTH110 - a zombie's link can't be followed
        raise Failed(f"it ended; {place.log} has its last words")
    try:
        socket.create_connection((LOOPBACK, server.port), timeout=1).close()
    except OSError:
        return False
    with Channel(place.amqp) as channel:
        return channel.routed(place.exchange, Events().next())
