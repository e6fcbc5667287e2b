"""`python -m tests.soak`: ten minutes of everything at once against one bridge, and a verdict.

Events at a steady rate and in bursts, poison among them; clients that read, come and go, stall, read slowly or break
the protocol; and every 20 seconds something happens to the broker or the line to it. It fails on an update that a
healthy client lost or got twice, on memory that grows, and on a task or a descriptor that is left.
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
"""In less there is no room for each fault, nor for the bridge to come back after it."""


def out(text: str) -> None:
    """The result; what is said meanwhile goes to standard error."""
    print(text, flush=True)  # noqa: T201 - its output


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    """The command line; `seconds` is how long it takes."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description=__doc__,
        epilog="To start, to prime and to come to rest takes a minute or two beside. The broker is TEST_AMQP_URL, where"
        " that is set, and is left alone then; one of its own is killed too.",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=10.0, help="how long: %(default)g")
    length.add_argument("--seconds", type=float, help="the same in seconds")
    asked = parser.parse_args(words)
    if asked.seconds is None:
        asked.seconds = 60 * asked.minutes
    if not SHORTEST_S <= asked.seconds < float("inf"):
        parser.error(f"{asked.seconds:g} seconds: at least {SHORTEST_S:g}")
    return asked


async def judged(broker: Broker, seconds: float) -> bool:
    """Prints what happened, and what is wrong; whether that is nothing. SIGTERM ends it as Ctrl-C does."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    outcome = await soak(broker, plan_of(seconds), say)
    before_kb, after_kb = memory_kb(outcome.evidence)
    counted = {one.what: f"{one.before}, in the end {one.after}" for one in outcome.evidence.counted}
    figures = {
        "broker": broker.origin,
        **outcome.figures,
        "memory, second tenth of the time": f"{before_kb:,.0f} KB",
        "memory, last tenth": f"{after_kb:,.0f} KB ({after_kb - before_kb:+,.0f})",
        **{f"{what}, with the healthy clients alone": text for what, text in counted.items()},
    }
    out(f"| {seconds:g} seconds |  |\n| --- | ---: |")
    for what, figure in figures.items():
        out(f"| {what} | {figure} |")
    sentences = wrong(outcome.evidence)
    out("")
    for sentence in sentences:
        out(f"WRONG: {sentence}")
    if not sentences:
        out("Nothing was lost, nothing came twice, and nothing is left.")
    return not sentences


def main() -> int:
    """The program; its exit code."""
    asked = parsed()
    # The fetcher's library, which says at length that a broker can't be reached: it is meant to be so for a while.
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
