"""`python -m tests.bench [SCENARIO ...]`: measures what the bridge costs, in comparison with similar programs.

Each round measures all candidates in turn, so that the ratios between candidates stay right even if the machine becomes
slower or faster from round to round. The benchmark never fails because something takes too long. The benchmark fails if
the bridge loses, duplicates or reorders an update, or refuses or evicts a client that reads.
"""

import argparse
import resource
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from typing import NoReturn

from tests.bench import build, guard, machine
from tests.bench.amqp import Channel
from tests.bench.candidates import NAMES, OURS, Candidate, Place, named
from tests.bench.cases import Case, Row, faults, misses
from tests.bench.curves import run as curves
from tests.bench.process import Failed
from tests.bench.scenarios import (
    connect,
    filters,
    idle,
    memory,
    requests,
    resume,
    sends,
    slow,
    stalled,
    transports,
    turns,
)
from tests.bench.table import README, columns, document, filled, has_targets, head, lines
from tests.support.broker.find import Broker
from tests.support.broker.node import PrivateNode
from tests.support.broker.session import broker_or_reason, say
from tests.support.running import unique

SCENARIOS = {
    "paced": sends.paced,
    "saturated": sends.saturated,
    "tls": sends.tls,
    "memory": memory.cases,
    "slow": slow.cases,
    "connect": connect.cases,
    "overload": connect.overload,
    "idle": idle.cases,
    "filters": filters.cases,
    "resume": resume.cases,
    "transports": transports.cases,
    "requests": requests.cases,
    "stalled": stalled.cases,
    "turns": turns.cases,
}
CURVES = "curves"
"""Measures the curves in the documentation and nothing else. The word is followed by the names of some curves, or by
none."""

GUARD = "guard"
"""Compares ratios with the committed ones. This word stands first, because the guard has its own options."""

SPARE_DESCRIPTORS = 200
Results = dict[str, list[Row]]
CANDIDATES = "; ".join(f"{name}: {what}" for name, what in NAMES.items())
LEGEND = (
    f"{CANDIDATES}. A figure is the median of all rounds. A ratio is the median of the ratios within each round. Less "
    "is better, except for rates per second and their ratios."
)
EPILOG = f"""{CANDIDATES}. The COMMAND of another candidate is started with the variables AMQP, EXCHANGE and PORT. The
variables BRIDGE_AMQP_URL, BRIDGE_EXCHANGES, BRIDGE_HOST and BRIDGE_PORT say the same. `python -m tests.bench
{GUARD}` compares ratios with the committed ones. `python -m tests.bench {GUARD} --help` shows its own options."""


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


def measure(case: Case, place: Place, candidates: list[Candidate], override: int | None) -> tuple[Results, bool]:
    """Returns the rows of each candidate, and whether the bridge could be measured in every round.

    `override` replaces the case's numbers of rounds.
    """
    taking = [each for each in candidates if case.takes(each.name)]
    rounds = {each.name: case.rounds_of(each.name, override) for each in taking}
    rows: Results = {each.name: [] for each in taking}
    whole = True
    for number in range(1, max(rounds.values(), default=0) + 1):
        for candidate in taking:
            if number > rounds[candidate.name]:
                continue
            say(f"{case.title}; round {number} of {rounds[candidate.name]}: {candidate.name}")
            try:
                rows[candidate.name].append(case.measure(place, candidate))
            except Failed as reason:
                say(f"{candidate.name} could not be measured: {reason}")
                # Ratios compare rows of the same round, so a failed measurement leaves an empty row in its round.
                rows[candidate.name].append({})
                whole = whole and candidate.name != OURS
    return rows, whole


def obstacle(case: Case) -> str | None:
    """Returns why this machine can't run the case, or None."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if case.clients + SPARE_DESCRIPTORS > descriptors:
        return f"a process has only {descriptors} file descriptors; raise `ulimit -n`"
    try:
        for program in case.needs:
            build.installed(program)
    except Failed as reason:
        return str(reason)
    return None


def run(
    place: Place, scenarios: Mapping[str, list[Case]], candidates: list[Candidate], override: int | None
) -> tuple[list[str], list[str], list[str]]:
    """Prints the tables, line by line.

    Returns the tables, and sentences about faults of the bridge and about missed targets.
    """
    tables, wrong, missed = [], [], []
    for scenario, cases in scenarios.items():
        names, targets = columns(cases, [candidate.name for candidate in candidates]), has_targets(cases)
        table = [head(scenario, cases, names)]
        out(table[0])
        for case in cases:
            if reason := obstacle(case):
                say(f"without {case.title}: {reason}")
                continue
            began = time.monotonic()
            rows, whole = measure(case, place, candidates, override)
            say(f"{case.title}: took {time.monotonic() - began:.0f} s")
            table.append(lines(case, names, rows, targets))
            out(table[-1])
            wrong += faults(case, rows) if whole else [f"{case.title}: {OURS} could not be measured"]
            missed += misses(case, rows)
        out("")
        tables.append("\n".join(table))
    return tables, wrong, missed


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__, epilog=EPILOG)
    known = f"{', '.join(SCENARIOS)}; default: all; or {CURVES} alone, or with the names of curves after it"
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=known)
    parser.add_argument(
        "--candidates", default=",".join(NAMES), help="the candidates, separated by commas; default: %(default)s"
    )
    parser.add_argument("--also", action="append", default=[], metavar="NAME=COMMAND", help="another candidate")
    parser.add_argument("--rounds", type=int, help="number of rounds; default: 1 to 5, depending on the scenario")
    parser.add_argument("--quick", action="store_true", help="fewer clients and updates, for a test of the benchmark")
    parser.add_argument(
        "--write", action="store_true", help="also write the figures into README.md; only for a run of everything"
    )
    parser.set_defaults(curves=[])
    asked = parser.parse_intermixed_args(words)
    # A positional argument that contains = declares a candidate.
    asked.also += [word for word in asked.scenarios if "=" in word]
    asked.scenarios = [word for word in asked.scenarios if "=" not in word] or list(SCENARIOS)
    if asked.scenarios[0] == CURVES:
        asked.curves = asked.scenarios[1:] or list(curves.NAMES)
        if unknown := [word for word in asked.curves if word not in curves.NAMES]:
            parser.error(f"unknown curve: {', '.join(unknown)}; known: {', '.join(curves.NAMES)}")
        asked.scenarios, asked.candidates = [], []
        return asked
    if unknown := [word for word in asked.scenarios if word not in SCENARIOS]:
        parser.error(f"unknown scenario: {', '.join(unknown)}; known: {', '.join(SCENARIOS)}")
    asked.candidates = [word for word in asked.candidates.split(",") if word]
    if unknown := [word for word in asked.candidates if word not in NAMES]:
        parser.error(f"unknown candidate: {', '.join(unknown)}; known: {', '.join(NAMES)}, and --also NAME=COMMAND")
    if unknown := [word for word in asked.also if not all(word.partition("="))]:
        parser.error(f"--also {unknown[0]}: expected NAME=COMMAND")
    if asked.rounds is not None and asked.rounds < 1:
        parser.error(f"--rounds {asked.rounds}: expected 1 or more")
    if not asked.candidates and not asked.also:
        parser.error("--candidates is empty: name one, or add one with --also NAME=COMMAND")
    if asked.write and (
        asked.quick or asked.rounds or (asked.scenarios, asked.candidates) != (list(SCENARIOS), list(NAMES))
    ):
        parser.error("--write needs a run of all scenarios and candidates, without --quick and --rounds")
    return asked


def on_broker(broker: Broker, asked: argparse.Namespace) -> bool:
    """Runs the requested scenarios on a separate exchange, and deletes the exchange at the end.

    Returns False if the bridge had a fault, or could not be measured.
    """
    build.build()
    place = Place(broker.url, unique("bench"), build.BUILT / "servers.log")
    place.log.write_bytes(b"")
    version = machine.broker_version(broker.url)
    candidates = candidates_of([*asked.candidates, *asked.also])
    description = machine.line(version)
    scenarios = {name: SCENARIOS[name](asked.quick) for name in asked.scenarios}
    if asked.write and (
        len(candidates) < len(NAMES) or any(obstacle(case) for each in scenarios.values() for case in each)
    ):
        raise Failed("--write needs everything, but this machine can't run all candidates and scenarios")
    began = time.monotonic()
    out(f"{description}\n\n{LEGEND}\n")
    with Channel(broker.url) as channel:
        channel.declare(place.exchange)
    try:
        if asked.curves:
            pid = broker.pid if isinstance(broker, PrivateNode) else None
            return curves.run(place, pid, description, asked.curves, out)
        tables, wrong, missed = run(place, scenarios, candidates, asked.rounds)
    finally:
        with Channel(broker.url) as channel:
            channel.delete(place.exchange)
    description += f". This run took {(time.monotonic() - began) / 60:.0f} minutes."
    for sentence in missed:
        out(f"MISSED: {sentence}")
    for sentence in wrong:
        out(f"WRONG: {sentence}")
    if asked.write and not wrong:
        README.write_text(filled(README.read_text(), document(description, missed, tables)))
    return not wrong


def interrupted(_number: int, _frame: object) -> NoReturn:
    """Handles SIGTERM like Ctrl-C, so that all child processes end first."""
    raise KeyboardInterrupt


def main() -> int:
    """Runs the program and returns its exit code."""
    guarding = sys.argv[1:2] == [GUARD]
    asked = guard.parsed(sys.argv[2:]) if guarding else parsed()
    signal.signal(signal.SIGTERM, interrupted)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # child processes inherit this limit
    broker = broker_or_reason()
    if broker is None:
        return 1
    try:
        return 0 if (guard.run(broker, asked, out) if guarding else on_broker(broker, asked)) else 1
    except Failed as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        broker.stop()


if __name__ == "__main__":
    sys.exit(main())
