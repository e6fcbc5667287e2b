"""The system calls of a bridge for a delivery to 1000 clients, counted exactly with strace.

`tests/unit/test_delivery_cost.py` counts the same without strace, but only those that the bridge's own code makes. This
test also sees those of the event loop. If it fails, see there what to do.
"""

from __future__ import annotations

import asyncio
import functools
import operator
import re
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import RawClient
from tests.support.killmail import killmail
from tests.support.prepare import STRACE, program
from tests.support.publishing import publish
from tests.support.running import UNPINGED, bridge_process
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from aio_pika.abc import AbstractConnection

    from tests.support.broker.find import Broker

pytestmark = pytest.mark.usefixtures("many_files")

CLIENTS, AT_ONCE = 1000, 100
UPDATES = 10

EXPECTED = {
    "read": 1,  # reads the delivery
    "io_submit": 2,  # writes to 512 sockets, and to the other 488
    "io_getevents": 2,  # reads the results
    "write": 1,  # acknowledges the delivery
}
"""The system calls of each delivery."""

OF_THE_LOOP = {"epoll_pwait", "getpid", "clock_gettime"}
"""Calls of each turn of the event loop, which do not count here. On a busy machine, timers cause more turns.

The clock of the processor time is read only in turns of more than 5 ms, and strace makes a turn as long.
`tests/unit/test_delivery_cost.py` checks that a delivery takes no further turn and does not read this clock."""

ACKNOWLEDGEMENT = r"\0<\0P"
"""The class and method ids of `basic.ack`, as strace shows them. An acknowledgement is the last call of a delivery."""


@asynccontextmanager
async def traced(pid: int, file: Path) -> AsyncIterator[None]:
    """Writes the system calls of all threads of a process to a file. Skips the test if tracing is not allowed."""
    tracer = await asyncio.create_subprocess_exec(
        program(STRACE), "-f", "-p", str(pid), "-o", str(file), stderr=asyncio.subprocess.PIPE
    )
    assert tracer.stderr is not None
    try:
        said = (await tracer.stderr.readline()).decode()
        if "attached" not in said:
            pytest.skip(f"{said.strip()}; tests/unit/test_delivery_cost.py counts the calls of the bridge's own code")
        yield
    finally:
        if tracer.returncode is None:
            tracer.terminate()
        await tracer.communicate()


def by_delivery(file: Path) -> list[Counter[str]]:
    """Returns the number of system calls of each name, for each complete delivery in the file of strace."""
    found = [Counter[str]()]
    for line in file.read_text().splitlines():
        if (match := re.match(r"\d+ +(\w+)\(", line)) and match[1] not in OF_THE_LOOP:
            found[-1][match[1]] += 1
            if match[1] == "write" and ACKNOWLEDGEMENT in line:
                found.append(Counter())
    return found[:-1]


def has(file: Path, deliveries: int) -> bool:
    """Whether the file of strace has so many deliveries."""
    return len(by_delivery(file)) >= deliveries


async def test_delivery_to_1000_clients_takes_six_system_calls(
    broker: Broker, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    settings = {"BRIDGE_EXCHANGES": f"{exchange}=killmail", "BRIDGE_REJECT_EXCHANGE": "off", **UNPINGED}
    async with bridge_process(broker.url, **settings) as bridge:
        await bridge.consuming()
        port = await bridge.port()
        clients: list[RawClient] = []
        while len(clients) < CLIENTS:
            clients += await asyncio.gather(*(RawClient.open(port) for _ in range(AT_ONCE)))
        file = tmp_path / "trace"
        async with traced(bridge.process.pid, file):
            for number in range(1, UPDATES + 2):
                await publish(amqp, exchange, killmail(number))
                await asyncio.gather(*(client.text() for client in clients))
                await eventually("the delivery is acknowledged", functools.partial(has, file, number))
        for client in clients:
            await client.close()
    # The first delivery also prepares the writes. A timer may run beside any other delivery, so the fewest calls of
    # each name count.
    deliveries = by_delivery(file)[1 : UPDATES + 1]
    assert functools.reduce(operator.and_, deliveries) == EXPECTED, deliveries
