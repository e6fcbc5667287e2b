"""`python -m tests.bench.contract`: measures what it costs to decode, validate, convert and wrap one event.

The figures are CPU microseconds per event in one process, without a broker and clients: the median and the fastest of
several rounds.
"""

import statistics
import time

import orjson

from bridge.contract import catalog
from bridge.contract.pipeline import Accepted, Event, Pipeline
from tests.support.killmail import ESI, EXAMPLE, packaged, r2z2, redisq

ROUNDS = 9
NOW_MS = 1_697_962_000_000

# Real killmails have about twenty attackers (the median).
MEDIAN = {**ESI, "attackers": ESI["attackers"][:1] * 20}
LARGEST = {**ESI, "attackers": ESI["attackers"][:1] * 3753}

EVENTS = {
    "update": EXAMPLE,
    "update, wrapped": {"type": "killmail", "data": EXAMPLE},
    "raw killmail, 20 attackers": MEDIAN,
    "the same, RedisQ package": packaged(redisq(MEDIAN)),
    "the same, R2Z2 document": r2z2(MEDIAN),
    "raw killmail, 3753 attackers": LARGEST,
    "update that breaks its schema": {**EXAMPLE, "systemId": "Jita"},
}


def cost_us(pipeline: Pipeline, body: bytes) -> list[float]:
    """Returns the CPU microseconds per event, for each round."""
    event = Event(body, None, "killmail", None)
    count = max(20, 4_000_000 // (len(body) + 500))
    costs = []
    for _ in range(ROUNDS):
        began_ns = time.process_time_ns()
        for _ in range(count):
            pipeline.process(event, NOW_MS)
        costs.append((time.process_time_ns() - began_ns) / count / 1000)
    return costs


def main() -> None:
    """Prints the table."""
    pipeline = Pipeline(catalog.load([catalog.PACKAGED]), 4 * 1024 * 1024)
    print(f"{'event':32}{'bytes in':>10}{'bytes out':>11}{'median':>9}{'fastest':>9}")  # noqa: T201 - its output
    for name, event in EVENTS.items():
        body = orjson.dumps(event)
        outcome = pipeline.process(Event(body, None, "killmail", None), NOW_MS)
        out = len(outcome.payload) if isinstance(outcome, Accepted) else 0
        costs = cost_us(pipeline, body)
        median, fastest = statistics.median(costs), min(costs)
        print(f"{name:32}{len(body):10,}{out:11,}{median:9.2f}{fastest:9.2f}")  # noqa: T201 - its output


if __name__ == "__main__":
    main()
