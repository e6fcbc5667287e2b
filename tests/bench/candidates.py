"""How each measured program is started, and how the benchmark detects that the program is ready.

A candidate gets the broker in the environment variable AMQP, the exchange in EXCHANGE and the port to listen on in
PORT. For TLS, it also gets the file names of a certificate and a key in CERTIFICATE and KEY. The bridge gets these
values in its own variables.
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
from tests.bench.build import BUILT, NODE, bun, installed
from tests.bench.process import Failed, started
from tests.bench.publish import Events
from tests.support.broker.ports import LOOPBACK, free_port

READY_LIMIT_S = 30.0
OURS, FLOOR, NAIVE, BUN, BUN_PUBLISH, NGINX = "ours", "floor", "naive", "bun", "bun-publish", "nginx"
NAMES = {
    FLOOR: "a loop in C that sends to each client and does nothing else",
    OURS: "this bridge",
    NAIVE: "the simplest program with aio-pika and websockets",
    BUN: "the simplest program on Bun with amqplib, which sends to each client",
    BUN_PUBLISH: "the same, with Bun's topics instead of a loop",
    NGINX: "this bridge without TLS, behind nginx with TLS",
}
SHIPPED = Path(__file__).parents[2] / ".venv/shipped/bin/python"
"""The interpreter of an environment in which `make bench` installs only the package.

In an environment for tests, structlog would also load greenlet and rich, and each bridge would need 6 MB more.
"""

INTERPRETER = "BENCH_PYTHON"
"""This environment variable names another interpreter for the bridge and the other Python programs."""

PYTHON = (os.environ.get(INTERPRETER) or str(SHIPPED if SHIPPED.exists() else sys.executable), "-m")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A server, and the command that starts it."""

    name: str
    command: Sequence[str | Path]
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """The broker and the exchange that all candidates use."""

    amqp: str
    exchange: str
    log: Path
    """The file that gets the output of all processes."""

    def variables(self, port: int = 0) -> dict[str, str]:
        """Returns the environment variables for a candidate, a feeder or a publisher."""
        return {
            "AMQP": self.amqp,
            "EXCHANGE": self.exchange,
            "PORT": str(port),
            "BRIDGE_AMQP_URL": self.amqp,
            "BRIDGE_EXCHANGES": f"{self.exchange}=killmail",
            "BRIDGE_HOST": LOOPBACK,
            "BRIDGE_PORT": str(port),
            # With a reject exchange, the bridge would leave an exchange and a queue in the broker, which may be the
            # operator's.
            "BRIDGE_REJECT_EXCHANGE": "off",
        }


@dataclass(frozen=True, slots=True)
class Server:
    """A running candidate."""

    pid: int
    port: int
    proxies: tuple[int, ...] = ()
    """The process ids of programs in front of the server. The server's figures include theirs."""

    def cpu_us(self) -> float:
        """Returns the processor time that the server has used so far, in microseconds."""
        return process.cpu_us(self.pid, *self.proxies)

    def rss_kb(self, field: str = "VmRSS") -> float:
        """Returns the server's resident memory in kilobytes.

        With the field `VmHWM`, this is the largest resident memory so far.
        """
        return process.rss_kb(self.pid, *self.proxies, field=field)

    def settle(self, polls: int = 10) -> None:
        """Returns when the server is idle for some polls."""
        process.settle(self.pid, *self.proxies, polls=polls)


def named(word: str) -> Candidate:
    """Returns the candidate with this name, or the candidate that `name=COMMAND` declares.

    Raises Failed if the candidate can't run.
    """
    name, equals, command = word.partition("=")
    if equals:
        return Candidate(name, shlex.split(command))
    if name == FLOOR:
        return Candidate(name, [BUILT / "floor"])
    if name == NGINX:
        installed(name)
    if name in (OURS, NGINX):
        return Candidate(name, [*PYTHON, "bridge", "serve"])
    if name == NAIVE:
        return Candidate(name, [*PYTHON, "tests.bench.peers.naive"])
    if name in (BUN, BUN_PUBLISH):
        return Candidate(name, [bun(), "--no-install", NODE / "bun.ts"], {"TOPICS": "1"} if name != BUN else {})
    raise ValueError(f"unknown candidate {word!r}; known: {', '.join(NAMES)}, or NAME=COMMAND")


@contextlib.contextmanager
def serving(candidate: Candidate, place: Place, **settings: str) -> Iterator[Server]:
    """Starts the candidate and waits until it is ready. `settings` are additional environment variables."""
    with launched(candidate, place, **settings) as server:
        process.await_true(f"{candidate.name} is ready", lambda: _ready(server, place), READY_LIMIT_S)
        server.settle()
        yield server


@contextlib.contextmanager
def launched(candidate: Candidate, place: Place, **settings: str) -> Iterator[Server]:
    """Starts the candidate, and does not wait until it is ready."""
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
    """Whether the server listens, and the exchange routes events to the server's queue.

    Candidates do not have to report that they are ready, because the benchmark finds out itself.
    """
    if not os.path.exists(f"/proc/{server.pid}/exe"):  # noqa: PTH110 - the link of a zombie can't be followed
        raise Failed(f"the process ended; {place.log} has its output")
    if not listens(server.port):
        return False
    with Channel(place.amqp) as channel:
        return channel.routed(place.exchange, Events().next())


def listens(port: int) -> bool:
    """Returns whether a program accepts connections at this port."""
    try:
        socket.create_connection((LOOPBACK, port), timeout=1).close()
    except OSError:
        return False
    return True
