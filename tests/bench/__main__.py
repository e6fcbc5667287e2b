"""`python -m tests.bench [SCENARIO ...]`: measures what the bridge costs, in comparison with similar programs.

Each round measures all candidates in turn, so that the ratios between candidates stay right even if the machine becomes
slower or faster from round to round. The benchmark never fails because something takes too long. The benchmark fails if
the bridge loses, duplicates or reorders an update, or refuses or evicts a client that reads.
"""

import argparse
import resource
import signal
import sys
from collections.abc import Iterable
from typing import NoReturn

from tests.bench import build, machine
from tests.bench.amqp import Channel
from tests.bench.candidates import NAMES, OURS, Candidate, Place, named
from tests.bench.cases import Case, Row, faults, head, lines
from tests.bench.process import Failed
from tests.bench.scenarios import connect, filters, idle, memory, requests, resume, sends, slow, stalled
from tests.support.broker.find import Broker
from tests.support.broker.session import broker_or_reason, say
from tests.support.running import unique

SCENARIOS = {
    "paced": sends.paced,
    "saturated": sends.saturated,
    "memory": memory.cases,
    "slow": slow.cases,
    "connect": connect.cases,
    "idle": idle.cases,
    "filters": filters.cases,
    "resume": resume.cases,
    "requests": requests.cases,
    "stalled": stalled.cases,
}
SPARE_DESCRIPTORS = 200
CANDIDATES = "; ".join(f"{name}: {what}" for name, what in NAMES.items())
LEGEND = (
    f"{CANDIDATES}. A figure is the median of all rounds. A ratio is the median of the ratios within each round. Less "
    "is better, except for rates per second."
)
EPILOG = f"""{CANDIDATES}. The COMMAND of another candidate is started with the variables AMQP, EXCHANGE and PORT. The
variables BRIDGE_AMQP_URL, BRIDGE_EXCHANGES, BRIDGE_HOST and BRIDGE_PORT say the same."""


def out(text: str) -> None:
    """Prints a part of the result to standard output. Progress goes to standard error."""
    print(text, flush=True)  # noqa: T201 - the output of the program


def candidates_of(words: Iterable[str]) -> list[Candidate]:
    """Returns the named candidates that are available on this machine."""
    found = []
    for word in words:
        try:
            found.append(named(word))
        except Failed as reason:
            say(f"without {word}: {reason}")
    return found


def measure(case: Case, place: Place, candidates: list[Candidate], rounds: int) -> tuple[dict[str, list[Row]], bool]:
    """Returns the rows of each candidate, and whether the bridge could be measured in every round."""
    taking = [candidate for candidate in candidates if case.takes(candidate)]
    rows: dict[str, list[Row]] = {candidate.name: [] for candidate in taking}
    whole = True
    for number in range(1, rounds + 1):
        for candidate in taking:
            say(f"{case.title}; round {number} of {rounds}: {candidate.name}")
            try:
                rows[candidate.name].append(case.measure(place, candidate))
            except Failed as reason:
                say(f"{candidate.name} could not be measured: {reason}")
                # Ratios compare rows of the same round, so a failed measurement leaves an empty row in its round.
                rows[candidate.name].append({})
                whole = whole and candidate.name != OURS
    return rows, whole


def run(place: Place, cases: list[Case], candidates: list[Candidate], rounds: int) -> bool:
    """Prints the table, line by line. Returns False if the bridge had a fault, or could not be measured."""
    wrong: list[str] = []
    names = [candidate.name for candidate in candidates]
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    out(head(names))
    for case in cases:
        if case.clients + SPARE_DESCRIPTORS > descriptors:
            say(f"without {case.title}: a process can have only {descriptors} file descriptors here; raise `ulimit -n`")
            continue
        rows, whole = measure(case, place, candidates, case.rounds or rounds)
        out(lines(case, names, rows))
        wrong += faults(case, rows) if whole else [f"{case.title}: {OURS} could not be measured"]
    for sentence in wrong:
        out(f"\nWRONG: {sentence}")
    return not wrong


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__, epilog=EPILOG)
    known = (
        "paced, saturated, memory, slow, connect (also a storm of reconnects), idle (also the start), filters, resume, "
        "requests, stalled; default: all"
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=known)
    parser.add_argument(
        "--candidates", default=",".join(NAMES), help="the candidates, separated by commas; default: %(default)s"
    )
    parser.add_argument("--also", action="append", default=[], metavar="NAME=COMMAND", help="another candidate")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds; default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="fewer clients and updates, for a test of the benchmark")
    asked = parser.parse_intermixed_args(words)
    # A positional argument that contains = declares a candidate.
    asked.also += [word for word in asked.scenarios if "=" in word]
    asked.scenarios = [word for word in asked.scenarios if "=" not in word] or list(SCENARIOS)
    if unknown := [word for word in asked.scenarios if word not in SCENARIOS]:
        parser.error(f"unknown scenario: {', '.join(unknown)}; known: {', '.join(SCENARIOS)}")
    asked.candidates = [word for word in asked.candidates.split(",") if word]
    if unknown := [word for word in asked.candidates if word not in NAMES]:
        parser.error(f"unknown candidate: {', '.join(unknown)}; known: {', '.join(NAMES)}, and --also NAME=COMMAND")
    if unknown := [word for word in asked.also if not all(word.partition("="))]:
        parser.error(f"--also {unknown[0]}: expected NAME=COMMAND")
    if asked.rounds < 1:
        parser.error(f"--rounds {asked.rounds}: expected 1 or more")
    if not asked.candidates and not asked.also:
        parser.error("--candidates is empty: name one, or add one with --also NAME=COMMAND")
    return asked


def on_broker(broker: Broker, asked: argparse.Namespace) -> bool:
    """Runs the requested scenarios on a separate exchange, and deletes the exchange at the end."""
    build.build()
    place = Place(broker.url, unique("bench"), build.BUILT / "servers.log")
    place.log.write_bytes(b"")
    version = machine.broker_version(broker.url)
    candidates = candidates_of([*asked.candidates, *asked.also])
    out(f"{machine.line(version)}\n\n{LEGEND}\n")
    with Channel(broker.url) as channel:
        channel.declare(place.exchange)
    try:
        cases = [case for name in asked.scenarios for case in SCENARIOS[name](asked.quick)]
        return run(place, cases, candidates, asked.rounds)
    finally:
        with Channel(broker.url) as channel:
            channel.delete(place.exchange)


def interrupted(_number: int, _frame: object) -> NoReturn:
    """Handles SIGTERM like Ctrl-C, so that all child processes end first."""
    raise KeyboardInterrupt


def main() -> int:
    """Runs the program and returns its exit code."""
    asked = parsed()
    signal.signal(signal.SIGTERM, interrupted)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # child processes inherit this limit
    broker = broker_or_reason()
    if broker is None:
        return 1
    try:
        return 0 if on_broker(broker, asked) else 1
    except Failed as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        broker.stop()


if __name__ == "__main__":
    sys.exit(main())
