"""Samples the memory, tasks and descriptors of the bridge's process, and the delay of this program itself."""

import asyncio
import re
import resource
import time
from pathlib import Path

from tests.soak.verdict import Sample
from tests.support.process_stats import cpu_s, descriptors, metric
from tests.support.waiting import eventually

ANONYMOUS = re.compile(r"^Anonymous:\s+(\d+) kB$", re.MULTILINE)

SAMPLES = 600
"""The maximum number of samples in a run, because at least SHORTEST_S passes between two samples."""

SHORTEST_S = 0.2
STILL_S = 1.0
LOOK_S = 0.1
LOOKS = 5

BACK_LIMIT_S = 45.0
"""The maximum time until the tasks and descriptors of the other clients are gone.

The bridge waits 10 s for the answer to a closing handshake, and 30 s for an answer on a connection to the broker.
"""


def anonymous_kb(pid: int) -> int:
    """Returns the anonymous memory of the process. The pages of files don't count, because they come and go."""
    found = ANONYMOUS.search(Path(f"/proc/{pid}/smaps_rollup").read_text())
    assert found is not None
    return int(found[1])


class Watch:
    """Watches one bridge."""

    def __init__(self, pid: int, port: int) -> None:
        self._pid = pid
        self._port = port
        self.samples: list[Sample] = []
        self.bridge_cpu, self.own_cpu = 0.0, 0.0
        """The shares of a processor core that the bridge and this program used during `run`."""
        self.late_s = 0.0
        """The longest delay with which this program took a sample."""

    async def run(self, seconds: float) -> None:
        """Takes samples for `seconds` seconds."""
        every_s = max(SHORTEST_S, seconds / SAMPLES)
        began_s, bridge_s, own_s = time.monotonic(), cpu_s(self._pid), _own_cpu_s()
        next_s = began_s
        while next_s < began_s + seconds:
            await asyncio.sleep(next_s - time.monotonic())
            self.late_s = max(self.late_s, time.monotonic() - next_s)
            self.samples.append(Sample(time.monotonic() - began_s, anonymous_kb(self._pid)))
            next_s += every_s
        took_s = time.monotonic() - began_s
        self.bridge_cpu = (cpu_s(self._pid) - bridge_s) / took_s
        self.own_cpu = (_own_cpu_s() - own_s) / took_s

    async def counts(self) -> tuple[int, int]:
        """Returns the current numbers of tasks and descriptors."""
        tasks = int(await metric(self._port, "bridge_tasks"))
        # The connection of this request may stay open for a few milliseconds.
        seen = [descriptors(self._pid)]
        for _ in range(LOOKS):
            await asyncio.sleep(LOOK_S / LOOKS)
            seen.append(descriptors(self._pid))
        return tasks, min(seen)

    async def settled(self) -> tuple[int, int]:
        """Waits until the counts are stable or a time limit has passed, and returns the counts."""
        began_s = time.monotonic()
        before, since_s = await self.counts(), began_s
        while time.monotonic() - since_s < STILL_S and time.monotonic() - began_s < BACK_LIMIT_S:
            now = await self.counts()
            if now != before:
                before, since_s = now, time.monotonic()
        return before

    async def back_at(self, counts: tuple[int, int]) -> tuple[int, int]:
        """Waits until the counts are equal to `counts` or a time limit has passed, and returns the counts."""

        async def are_back() -> bool:
            return await self.counts() == counts

        try:
            await eventually("tasks and descriptors are back", are_back, limit_s=BACK_LIMIT_S)
        except AssertionError:
            return await self.settled()
        return await self.settled()


def _own_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
