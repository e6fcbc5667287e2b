"""`python -m tests.bench [SCENARIO ...]`: what the bridge costs, beside other programs that do the same.

Each round measures all candidates in turn, so that ratios hold where the machine is faster at one time than at
another. It asserts nothing about time; it fails where the bridge lost, doubled or misplaced an update, or turned a
client away.
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
from tests.bench.scenarios import connect, delivery, filters, memory, requests, rest, resume, slow, stalled
from tests.support.broker.find import Broker
from tests.support.broker.session import broker_or_reason, say
from tests.support.running import unique

SCENARIOS = {
    "paced": delivery.paced,
    "saturated": delivery.saturated,
    "memory": memory.cases,
    "slow": slow.cases,
    "connect": connect.cases,
    "rest": rest.cases,
    "filters": filters.cases,
    "resume": resume.cases,
    "requests": requests.cases,
    "stalled": stalled.cases,
}
SPARE_DESCRIPTORS = 200
WHO = "; ".join(f"{name}: {what}" for name, what in NAMES.items())
LEGEND = (
    f"{WHO}. Medians of all rounds, and of each round's own ratio. Less is better, but for what is counted a second."
)
EPILOG = f"""{WHO}. A further candidate's COMMAND is started with AMQP, EXCHANGE and PORT in its environment, and the
same in BRIDGE_AMQP_URL, BRIDGE_EXCHANGES, BRIDGE_HOST and BRIDGE_PORT."""


def out(text: str) -> None:
    """The result; what is said meanwhile goes to standard error."""
    print(text, flush=True)  # noqa: T201 - its output


def candidates_of(words: Iterable[str]) -> list[Candidate]:
    """Those of the named candidates that can be had here."""
    found = []
    for word in words:
        try:
            found.append(named(word))
        except Failed as reason:
            say(f"without {word}: {reason}")
    return found


def measure(case: Case, place: Place, candidates: list[Candidate], rounds: int) -> tuple[dict[str, list[Row]], bool]:
    """The rows by candidate, and whether the bridge could be measured in every round."""
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
                # A row all the same: ratios compare rows of the same round.
                rows[candidate.name].append({})
                whole = whole and candidate.name != OURS
    return rows, whole


def run(place: Place, cases: list[Case], candidates: list[Candidate], rounds: int) -> bool:
    """Prints a table, line by line; whether nothing is wrong with the bridge."""
    wrong: list[str] = []
    names = [candidate.name for candidate in candidates]
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    out(head(names))
    for case in cases:
        if case.clients + SPARE_DESCRIPTORS > descriptors:
            say(f"without {case.title}: a process may have only {descriptors} file descriptors here")
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
        "paced, saturated, memory, slow, connect (and a storm of reconnects), rest (and the start), filters, resume, "
        "requests, stalled; all without any"
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=known)
    parser.add_argument(
        "--candidates", default=",".join(NAMES), help="some of the usual ones, with commas: %(default)s"
    )
    parser.add_argument("--also", action="append", default=[], metavar="NAME=COMMAND", help="a further candidate")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured: %(default)s")
    parser.add_argument("--quick", action="store_true", help="fewer clients and updates: to see that it works")
    asked = parser.parse_intermixed_args(words)
    # A word with = is a candidate wherever it stands.
    asked.also += [word for word in asked.scenarios if "=" in word]
    asked.scenarios = [word for word in asked.scenarios if "=" not in word] or list(SCENARIOS)
    if unknown := [word for word in asked.scenarios if word not in SCENARIOS]:
        parser.error(f"no such scenario: {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    asked.candidates = [word for word in asked.candidates.split(",") if word]
    if unknown := [word for word in asked.candidates if word not in NAMES]:
        parser.error(f"no such candidate: {', '.join(unknown)}; there are {', '.join(NAMES)}, and --also NAME=COMMAND")
    if unknown := [word for word in asked.also if not all(word.partition("="))]:
        parser.error(f"--also {unknown[0]}: expected NAME=COMMAND")
    if asked.rounds < 1:
        parser.error(f"--rounds {asked.rounds}: at least 1")
    if not asked.candidates and not asked.also:
        parser.error("nobody to measure: --candidates is empty")
    return asked


def on_broker(broker: Broker, asked: argparse.Namespace) -> bool:
    """Everything that was asked for, on an exchange of its own that does not stay."""
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
    """SIGTERM is Ctrl-C: everything that was started ends before we do."""
    raise KeyboardInterrupt


def main() -> int:
    """The program; its exit code."""
    asked = parsed()
    signal.signal(signal.SIGTERM, interrupted)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the children inherit it
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
