"""`python -m tests.soak` runs one bridge for ten minutes under load and faults, and prints a verdict.

A fetcher publishes valid and invalid events, at a steady rate and in bursts. Clients read, come and go, stall, read
slowly or break the protocol. Every 20 s, there is a fault of the broker or of the connection to it. The run fails if a
healthy client loses an update or gets it twice, if memory grows, or if a task or a descriptor is left over.
"""

import argparse
import asyncio
import logging
import resource
import signal
import sys

import uvloop

from tests.soak.plan import plan_of
from tests.soak.run import soak
from tests.soak.verdict import memory_kb, wrong
from tests.support.broker.find import Broker
from tests.support.broker.session import broker_or_reason, say

SHORTEST_S = 20.0
"""The duration of the shortest run that has time for each fault and the recovery from it."""


def out(text: str) -> None:
    """Prints the result. Progress goes to standard error."""
    print(text, flush=True)  # noqa: T201 - the program's output


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line. `seconds` in the result is the duration of the run."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description=__doc__,
        epilog="Start, priming and end take one or two minutes more. If TEST_AMQP_URL is set, its broker is used and"
        " not killed. Otherwise the run starts its own broker, and also kills it.",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=10.0, help="duration (default: %(default)g)")
    length.add_argument("--seconds", type=float, help="duration in seconds")
    asked = parser.parse_args(words)
    if asked.seconds is None:
        asked.seconds = 60 * asked.minutes
    if not SHORTEST_S <= asked.seconds < float("inf"):
        parser.error(f"{asked.seconds:g} seconds are too short; the minimum is {SHORTEST_S:g}")
    return asked


async def judged(broker: Broker, seconds: float) -> bool:
    """Runs the soak, prints its figures and failures, and returns whether it passed. SIGTERM acts like Ctrl-C."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    outcome = await soak(broker, plan_of(seconds), say)
    before_kb, after_kb = memory_kb(outcome.evidence)
    counted = {one.what: f"{one.before} before, {one.after} after" for one in outcome.evidence.counted}
    figures = {
        "broker": broker.origin,
        **outcome.figures,
        "memory, second tenth of the run": f"{before_kb:,.0f} KB",
        "memory, last tenth of the run": f"{after_kb:,.0f} KB ({after_kb - before_kb:+,.0f})",
        **{f"{what}, with only the healthy clients": text for what, text in counted.items()},
    }
    out(f"| {seconds:g} seconds |  |\n| --- | ---: |")
    for what, figure in figures.items():
        out(f"| {what} | {figure} |")
    failures = wrong(outcome.evidence)
    out("")
    for failure in failures:
        out(f"WRONG: {failure}")
    if not failures:
        out("No update was lost or doubled, and no task or descriptor is left.")
    return not failures


def main() -> int:
    """Runs the program, and returns its exit code."""
    asked = parsed()
    # The fetcher's library logs each failed attempt to connect at length, and the faults cause many such failures.
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    broker = broker_or_reason()
    if broker is None:
        return 1
    try:
        return 0 if uvloop.run(judged(broker, asked.seconds)) else 1
    except asyncio.CancelledError:
        return 130
    finally:
        broker.stop()


if __name__ == "__main__":
    sys.exit(main())
