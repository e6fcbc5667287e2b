"""`python -m tests.bench guard`: compares ratios of costs with the committed ratios, in three minutes.

The speed of a machine changes from minute to minute, so the guard compares no times. All servers run at the same time.
In each round, one server after the other gets a piece of work of about a second. A ratio divides the processor times of
two servers in the same round. The guard takes the median over all rounds. If the machine is slow for a while, both
servers are slow.

`guard.json` has the committed ratios and their noise, which is the standard deviation over several runs. The guard
fails if a ratio is worse than the committed one by more than 4 times its noise. The table shows for each ratio above
which change the guard fails, and the change since the last run on this machine.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import log
from pathlib import Path

from tests.bench import build, machine
from tests.bench.amqp import Channel
from tests.bench.candidates import FLOOR, OURS, Place, Server, named, serving
from tests.bench.crowd import Crowd, crowd
from tests.bench.process import Failed
from tests.bench.proxies import serving_tls
from tests.bench.publish import Events, publish
from tests.bench.scenarios import filters
from tests.support.broker.find import Broker
from tests.support.broker.session import say
from tests.support.running import UNPINGED, unique

FILE = Path(__file__).with_name("guard.json")
LAST = "guard.json"
"""The file in `build.BUILT` with the ratios of the last run on this machine. Git ignores it."""

RATE = 20
"""The number of paced updates per second."""

AT_ONCE = 256
"""The maximum number of simultaneous handshakes."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much work a run measures. The committed ratios are those of the size FULL."""

    rounds: int
    """In each round, each server gets one piece of work."""
    clients: int
    """The clients of each server with paced updates."""
    updates: int
    """The paced updates of one piece."""
    burst_clients: int
    """The clients of each server with saturated updates."""
    burst: int
    """The saturated updates of one piece."""
    handshakes: int
    """The clients that connect in one piece."""


FULL = Size(rounds=10, clients=1000, updates=20, burst_clients=100, burst=2000, handshakes=500)
QUICK = Size(rounds=1, clients=100, updates=5, burst_clients=20, burst=200, handshakes=50)
"""The size for a test of the guard itself."""

QUIET_POLLS = 3
"""A piece ends when its server is idle for this many polls."""

LIMIT_DEVIATIONS = 4.0
MIN_NOISE = 0.01
"""The noise of a ratio is at least this share of the ratio, because a few runs can agree by chance."""

LOUD_NOISE = 0.05
"""A recording with more noise than this gets a warning. The guard would miss changes of up to 20 %."""

RATIOS = {
    "paced": f"a send, {FULL.clients} clients and {RATE} updates per second: the bridge to the floor",
    "saturated": f"a send, {FULL.burst_clients} clients and {FULL.burst} updates at once: the bridge to the floor",
    "connect": f"a client that connects, {AT_ONCE} at once, and leaves: the bridge to the floor",
    "ids": "a paced send: with ids to without ids",
    "filters": f"a paced send: {filters.FILTERS} filters that match to no filter",
    "tls": "a paced send: with TLS to without TLS",
}
"""What each ratio compares."""

TO_PLAIN_SEND = frozenset({"ids", "filters", "tls"})
"""These ratios divide by the plain send, so they also change if only the plain send changes."""

Ratios = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Committed:
    """A committed ratio."""

    ratio: float
    """The median over all recorded runs."""
    noise: float
    """The standard deviation over these runs, as a share of the ratio."""

    @property
    def limit(self) -> float:
        """The largest ratio that noise explains."""
        return self.ratio * (1 + LIMIT_DEVIATIONS * self.noise)

    @property
    def best(self) -> float:
        """The smallest ratio that noise explains."""
        return self.ratio / (1 + LIMIT_DEVIATIONS * self.noise)


def committed(runs: Sequence[Ratios]) -> dict[str, Committed]:
    """Returns the ratios of at least two recorded runs, with their noise."""
    found = {}
    for key in RATIOS:
        values = [run[key] for run in runs]
        noise = max(MIN_NOISE, statistics.stdev(map(log, values)))
        found[key] = Committed(round(statistics.median(values), 3), round(noise, 3))
    return found


def verdicts(measured: Ratios, known: Mapping[str, Committed]) -> list[str]:
    """Returns a sentence for each ratio that is worse than the committed one by more than its noise."""
    return [
        f"{RATIOS[key]}: the ratio is {measured[key]:.3f}. The committed ratio is {each.ratio:.3f}, and noise explains "
        f"at most {each.limit:.3f}. Run the guard again. If it fails again, a change has made this slower"
        f"{_or_plain_send(key, 'cheaper')}."
        for key, each in known.items()
        if measured[key] > each.limit
    ]


def improvements(measured: Ratios, known: Mapping[str, Committed]) -> list[str]:
    """Returns a sentence for each ratio that is better than the committed one by more than its noise."""
    return [
        f"{RATIOS[key]}: the ratio is {measured[key]:.3f}. The committed ratio is {each.ratio:.3f}, and noise explains "
        f"at least {each.best:.3f}. A change has made this faster{_or_plain_send(key, 'slower')}. Record again, "
        "because the guard misses later changes for the worse up to the old limit."
        for key, each in known.items()
        if measured[key] < each.best
    ]


def _or_plain_send(key: str, change: str) -> str:
    """Returns the other possible cause of a change, or an empty text if there is none."""
    return f", or has made the plain send {change}: see the first ratio" if key in TO_PLAIN_SEND else ""


def warnings(known: Mapping[str, Committed]) -> list[str]:
    """Returns a sentence for each recorded ratio with a noise above LOUD_NOISE."""
    return [
        f"{RATIOS[key]}: the noise is {100 * each.noise:.1f} %, so the guard fails only above {_change(each)}. "
        "Record again on a quiet machine."
        for key, each in known.items()
        if each.noise > LOUD_NOISE
    ]


def table(measured: Ratios, known: Mapping[str, Committed], last: Ratios) -> str:
    """Returns the table of all ratios, in Markdown. `last` has the ratios of the last run, or is empty."""
    heads = ["ratio", "compares the CPU of", "measured", "committed", "fails above", "last run here", "change since"]
    lines = [_line(heads), _line(["---", "---", *("---:" for _ in heads[2:])])]
    for key, each in known.items():
        cells = [key, RATIOS[key], f"{measured[key]:.3f}", f"{each.ratio:.3f}", f"{each.limit:.3f} ({_change(each)})"]
        before = [f"{last[key]:.3f}", _percent(measured[key] / last[key])] if key in last else ["", ""]
        lines.append(_line([*cells, *before]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _percent(factor: float) -> str:
    """Returns a change in per cent, with its sign."""
    return f"{100 * (factor - 1):+.0f} %"


def _change(each: Committed) -> str:
    """Returns the smallest change that noise does not explain."""
    return _percent(each.limit / each.ratio)


def load_last() -> Ratios:
    """Returns the ratios of the last run on this machine, or nothing if there was none."""
    file = build.BUILT / LAST
    return {key: float(value) for key, value in json.loads(file.read_text()).items()} if file.exists() else {}


def keep(measured: Ratios) -> None:
    """Keeps the ratios of this run for the next run on this machine."""
    (build.BUILT / LAST).write_text(json.dumps(measured, indent=2) + "\n")


def load() -> dict[str, Committed]:
    """Returns the committed ratios of `guard.json`."""
    return {key: Committed(**each) for key, each in json.loads(FILE.read_text())["ratios"].items()}


def other_machine(here: str) -> str:
    """Returns a sentence with both machines if `guard.json` is from another one, or else an empty text.

    `here` is the processor, the kernel and the version of Python, as `machine.host` returns them.
    """
    recorded = str(json.loads(FILE.read_text())["machine"])
    # The description continues with the version of OpenSSL, or with other versions.
    if recorded.startswith((f"{here} ", f"{here};")):
        return ""
    return (
        f"{FILE.name} was recorded on another machine, or with other versions. Its limits may be "
        "wrong here: first record this machine's ratios with --record, and do not commit them.\n"
        f"recorded: {recorded}\nhere: {here}"
    )


def record(runs: Sequence[Ratios], described: str) -> None:
    """Writes the ratios of the runs to `guard.json`. `described` are the machine and the versions."""
    rounded = [{key: round(value, 3) for key, value in run.items()} for run in runs]
    ratios = {key: asdict(each) for key, each in committed(rounded).items()}
    FILE.write_text(json.dumps({"machine": described, "ratios": ratios, "runs": rounded}, indent=2) + "\n")


class Lane:
    """A server with clients that stay connected. Only its clients get the updates of its exchange."""

    def __init__(self, place: Place, server: Server, clients: Crowd, count: int) -> None:
        """`count` is the number of clients."""
        self._place = place
        self._server = server
        self._clients = clients
        self._count = count
        self._updates = 0

    def cost(self, updates: int, rate: float) -> float:
        """Returns the processor time of some updates, in microseconds. With the rate 0, all are published at once."""
        self._updates += updates
        with _cpu(self._server) as used_us, Channel(self._place.amqp) as channel:
            publish(channel, self._place.exchange, updates, rate, Events())
        return used_us()

    def check(self) -> None:
        """Ends the clients. Raises Failed if an update was lost, duplicated or reordered."""
        seen = self._clients.stop()
        expected = self._count * self._updates
        if seen.frames != expected or seen.misplaced or seen.cut:
            raise Failed(
                f"{seen.frames} of {expected} updates arrived, {seen.misplaced} twice or out of order, and {seen.cut} "
                "clients were disconnected"
            )


@contextmanager
def _cpu(server: Server) -> Iterator[Callable[[], float]]:
    """Measures the processor time that a server uses until it is idle again. The value is valid after the context."""
    before_us = server.cpu_us()
    yield lambda: server.cpu_us() - before_us
    server.settle(QUIET_POLLS)


@contextmanager
def _served(place: Place, name: str, *, tls: bool = False) -> Iterator[tuple[Place, Server]]:
    """Starts a server with an exchange of its own, and deletes the exchange at the end."""
    own = replace(place, exchange=unique("bench"))
    with Channel(place.amqp) as channel:
        channel.declare(own.exchange)
    try:
        with (serving_tls if tls else serving)(named(name), own, **UNPINGED) as server:
            yield own, server
    finally:
        with Channel(place.amqp) as channel:
            channel.delete(own.exchange)


@contextmanager
def _lane(place: Place, name: str, clients: int, paths: Sequence[str] = (), *, tls: bool = False) -> Iterator[Lane]:
    """Starts a server and its clients."""
    with _served(place, name, tls=tls) as (own, server), crowd(own, server, clients, paths, hold=True) as readers:
        readers.ready()
        server.settle()
        yield Lane(own, server, readers, clients)


def measure(place: Place, size: Size = FULL) -> dict[str, float]:
    """Returns all ratios. Raises Failed if a server can't be measured, or if an update is lost."""
    return {**_paced(place, size), **_saturated(place, size), **_connect(place, size)}


def _in_turn(pieces: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Returns the costs of all pieces, round by round. Each second round goes backwards."""
    costs: dict[str, list[float]] = {name: [] for name in pieces}
    for number in range(rounds):
        # In one direction only, a server would always follow the same other server, and find the caches in its state.
        for name in list(pieces)[:: -1 if number % 2 else 1]:
            costs[name].append(pieces[name]())
    return costs


def _ratio(costs: Mapping[str, Sequence[float]], name: str, reference: str) -> float:
    return statistics.median(ours / other for ours, other in zip(costs[name], costs[reference], strict=True))


def _costs(lanes: Mapping[str, Lane], rounds: int, updates: int, rate: float) -> dict[str, list[float]]:
    costs = _in_turn({name: partial(lane.cost, updates, rate) for name, lane in lanes.items()}, rounds)
    for lane in lanes.values():
        lane.check()
    return costs


def _paced(place: Place, size: Size) -> dict[str, float]:
    say(f"guard: {size.clients} clients, {RATE} updates per second")
    with ExitStack() as stack:
        lanes = {
            FLOOR: stack.enter_context(_lane(place, FLOOR, size.clients)),
            OURS: stack.enter_context(_lane(place, OURS, size.clients)),
            "ids": stack.enter_context(_lane(place, OURS, size.clients, filters.IDS.paths)),
            "filters": stack.enter_context(_lane(place, OURS, size.clients, filters.ALL.paths)),
            "tls": stack.enter_context(_lane(place, OURS, size.clients, tls=True)),
        }
        costs = _costs(lanes, size.rounds, size.updates, RATE)
    return {"paced": _ratio(costs, OURS, FLOOR), **{key: _ratio(costs, key, OURS) for key in ("ids", "filters", "tls")}}


def _saturated(place: Place, size: Size) -> dict[str, float]:
    say(f"guard: {size.burst_clients} clients, {size.burst} updates at once")
    with ExitStack() as stack:
        lanes = {name: stack.enter_context(_lane(place, name, size.burst_clients)) for name in (FLOOR, OURS)}
        costs = _costs(lanes, size.rounds, size.burst, 0)
    return {"saturated": _ratio(costs, OURS, FLOOR)}


def _connect(place: Place, size: Size) -> dict[str, float]:
    say(f"guard: {size.handshakes} clients connect, {AT_ONCE} at once")

    def connecting(own: Place, server: Server) -> float:
        with _cpu(server) as used_us, crowd(own, server, size.handshakes, inflight=AT_ONCE) as clients:
            if refused := clients.seen().refused:
                raise Failed(f"{refused} clients were refused")
        return used_us()

    with ExitStack() as stack:
        servers = {name: stack.enter_context(_served(place, name)) for name in (FLOOR, OURS)}
        costs = _in_turn({name: partial(connecting, *served) for name, served in servers.items()}, size.rounds)
    return {"connect": _ratio(costs, OURS, FLOOR)}


def parsed(words: list[str]) -> argparse.Namespace:
    """The command line, without the word `guard`."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench guard", description=__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--quick", action="store_true", help="measure little, compare nothing: a test of the guard")
    what.add_argument(
        "--record", type=int, default=0, metavar="RUNS", help=f"measure so often, at least twice, and write {FILE.name}"
    )
    asked = parser.parse_args(words)
    if asked.record == 1 or asked.record < 0:
        parser.error(f"--record {asked.record}: expected 2 or more, because one run has no noise")
    return asked


def run(broker: Broker, asked: argparse.Namespace, out: Callable[[str], None]) -> bool:
    """Measures as asked, and prints the result with `out`. Returns False if a ratio is worse than its limit."""
    build.build()
    place = Place(broker.url, "", build.BUILT / "servers.log")
    place.log.write_bytes(b"")
    if asked.quick:
        out(json.dumps(measure(place, QUICK)))
        return True
    if asked.record:
        runs = [measure(place) for _ in range(asked.record)]
        record(runs, machine.line(machine.broker_version(broker.url)))
        known = load()
        out(table(runs[-1], known, {}))
        for sentence in warnings(known):
            out(f"\nNOISY: {sentence}")
        return True
    measured, known = measure(place), load()
    out(table(measured, known, load_last()))
    keep(measured)
    if sentence := other_machine(machine.host()):
        out(f"\nOTHER MACHINE: {sentence}")
    for sentence in improvements(measured, known):
        out(f"\nBETTER: {sentence}")
    wrong = verdicts(measured, known)
    for sentence in wrong:
        out(f"\nWRONG: {sentence}")
    out("\nThe guard fails." if wrong else "\nThe guard passes.")
    return not wrong
