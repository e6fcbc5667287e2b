"""Computes from the models how many bridges many clients need, and what the bridges and the broker cost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tests.bench.curves.model import Line
from tests.bench.curves.points import CURVES, Measured

ROUND_S = 0.25
"""The maximum time to send updates to all clients of a bridge. An update waits at most for one round before its own."""

HEADER_BYTES = 70
"""The bytes around an update on the network: 4 of WebSocket, 32 of TCP, 20 of IP and 14 of Ethernet."""

UPDATE_BYTES = 250
RATES = (0.3, 50)
"""The updates per second: the average of killmails, and a burst."""

FLEETS = (100_000, 1_000_000)
"""The numbers of clients."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What the curves say about one bridge and about the broker."""

    send_us: float
    """The processor time of a write to one client, in microseconds."""
    further_us: float
    """The processor time of each further update in the same write, in microseconds."""
    max_clients: int
    """The largest measured number of clients of one bridge."""
    kb_a_client: float
    kernel_kb_a_client: float
    handshakes_a_s: float
    queues: Line
    """The broker's processor time for an update, in microseconds, by the number of bridges with a queue."""
    stream: Line
    """The same for bridges that read a stream."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """The bridges for a number of clients and a rate of updates."""

    rate: float
    bridges: int
    clients: int
    """The number of clients of each bridge."""
    round_s: float
    """The time to send the waiting updates to all clients of a bridge."""
    core_share: float
    """The share of a core that each bridge uses at most."""


def costs(measured: Mapping[str, Measured]) -> Costs:
    """Returns the costs from the points of all curves, by the name of the curve. Raises KeyError if one is missing."""
    figure = next(curve.figures[0] for curve in CURVES if curve.name == "bridges")
    queues, stream = (measured["bridges"].model(series, figure) for series in ("queue", "stream"))
    assert queues is not None
    assert stream is not None
    most = measured["clients"].points["ours"][-1]
    return Costs(
        send_us=most["cpu_us"],
        further_us=measured["rates"].points["ours"][-1]["cpu_us"],
        max_clients=int(most["x"]),
        kb_a_client=most["kb_a_client"],
        kernel_kb_a_client=most["kernel_kb_a_client"],
        handshakes_a_s=most["handshakes_a_s"],
        queues=queues.line,
        stream=stream.line,
    )


def clients_of_a_bridge(found: Costs, rate: float) -> int:
    """Returns the largest number of clients to which a round takes at most ROUND_S.

    A round sends the updates that arrived during the round before it: one, or `rate * ROUND_S` if these are more.
    """
    further = max(0.0, rate * ROUND_S - 1)
    fast_enough = int(ROUND_S * 1e6 / (found.send_us + found.further_us * further))
    return min(found.max_clients, fast_enough)


def fleet(found: Costs, clients: int, rate: float) -> Fleet:
    """Returns the smallest number of bridges for the clients, and their costs."""
    bridges = math.ceil(clients / clients_of_a_bridge(found, rate))
    each = math.ceil(clients / bridges)
    write_s, further_s = each * found.send_us / 1e6, each * found.further_us / 1e6
    # If updates arrive faster than rounds end, a round takes longer: it has `rate * round_s` updates.
    round_s = write_s if rate * write_s <= 1 else (write_s - further_s) / (1 - rate * further_s)
    return Fleet(
        rate=rate,
        bridges=bridges,
        clients=each,
        round_s=round_s,
        core_share=min(1.0, rate * write_s),
    )


def table(measured: Mapping[str, Measured]) -> str:
    """Returns the table of the documentation."""
    found = costs(measured)
    cases = [(clients, rate) for clients in FLEETS for rate in RATES]
    fleets = [fleet(found, clients, rate) for clients, rate in cases]
    memory_gb = [each.clients * (found.kb_a_client + found.kernel_kb_a_client) / 2**20 for each in fleets]
    network = [clients * rate * (UPDATE_BYTES + HEADER_BYTES) * 8 / 1e9 for clients, rate in cases]
    rows = [
        ["updates per second", *(f"{rate:g}" for _, rate in cases)],
        ["bridges", *(f"{each.bridges:,}" for each in fleets)],
        ["clients of each bridge", *(f"{each.clients:,}" for each in fleets)],
        ["CPU of each bridge, at most, % of a core", *(f"{100 * each.core_share:.0f}" for each in fleets)],
        ["longest delay in the bridge, ms", *(f"{2000 * each.round_s:.0f}" for each in fleets)],
        ["memory of each bridge and its sockets, MB", *(f"{1024 * each:.0f}" for each in memory_gb)],
        ["s of handshakes after a restart", *_seconds(found, fleets)],
        ["CPU of the broker with queues, % of a core", *_broker(found.queues, fleets)],
        ["CPU of the broker with a stream, % of a core", *_broker(found.stream, fleets)],
        ["network of all bridges, Gbit/s", *(f"{each:.2f}" for each in network)],
    ]
    head = ["", *(f"{clients:,} clients" for clients, _ in cases)]
    lines = [head, ["---", *("---:" for _ in cases)], *rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


def _broker(line: Line, fleets: list[Fleet]) -> list[str]:
    return [f"{100 * each.rate * line.at(each.bridges) / 1e6:.1f}" for each in fleets]


def _seconds(found: Costs, fleets: list[Fleet]) -> list[str]:
    """Returns how long the handshakes of all clients of one bridge take, without anything else."""
    return [f"{each.clients / found.handshakes_a_s:.1f}" for each in fleets]
