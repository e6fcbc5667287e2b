"""Measures the turns of the event loop, and decides when the work of a turn must continue in a later turn.

A turn is the time between two polls of the event loop. During a turn, no other client and no delivery is served. Work
for thousands of connections is therefore written as an iterator of short steps. `LoopTurn.spread` runs these steps in
as many turns as they need.

A turn is measured in the processor time of this thread. The amount of work in a turn therefore does not depend on other
programs of the same machine.
"""

import time
from collections.abc import Callable, Iterator

from bridge.metrics import Metrics

TURN_S = 0.005
"""The processor time after which the steps of a turn continue in the next turn, in seconds.

The last step, and work that is not divided into steps, make a turn longer. Even then, a turn should stay below 0.05 s.
"""


class LoopTurn:
    """The current turn of the event loop, and the longest turn so far."""

    def __init__(
        self,
        call_soon: Callable[..., object],
        clock: Callable[[], float] = time.perf_counter,
        processor_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """`call_soon` is a method of the event loop. Both clocks return seconds."""
        self._call_soon = call_soon
        self._clock = clock
        self._processor_clock = processor_clock
        self._begun = False
        self._began_s = self._processor_began_s = 0.0
        self.longest_s = 0.0
        """The processor time of the longest turn that was measured, in seconds."""

    def begin(self) -> None:
        """Measures this turn, from the first call of `begin` to the next turn. Takes 2 microseconds.

        Call `begin` before work that may take more than some milliseconds.
        """
        if not self._begun:
            self._begun = True
            self._began_s = self._clock()
            self._processor_began_s = self._processor_clock()
            self._call_soon(self._end)

    def is_over(self, limit_s: float = TURN_S) -> bool:
        """Whether the turn has taken at least `limit_s` seconds of processor time."""
        self.begin()
        # The processor time is never longer than the elapsed time. Reading the processor's clock is a system call.
        if self._clock() - self._began_s < limit_s:
            return False
        return self._processor_clock() - self._processor_began_s >= limit_s

    def spread(self, steps: Iterator[object]) -> None:
        """Runs the steps of an iterator: now, until the turn is over, and the rest in later turns.

        At least one step runs in each turn. If `begin` was not called before, the first step is not measured, so that
        work of a single step needs no clock. An exception of a step ends the iterator.
        """
        for _ in steps:
            if self.is_over():
                self._call_soon(self._continue, steps)
                return

    def _continue(self, steps: Iterator[object]) -> None:
        self.begin()
        self.spread(steps)

    def _end(self) -> None:
        self._begun = False
        if self._clock() - self._began_s > self.longest_s:
            self.longest_s = max(self.longest_s, self._processor_clock() - self._processor_began_s)


def register_turn_metrics(metrics: Metrics, turn: LoopTurn) -> None:
    """Adds a gauge for the longest measured turn."""
    metrics.gauge(
        "bridge_loop_turn_seconds_max",
        "Processor time of the longest measured turn of the event loop since the start. "
        "During a turn, no client is served.",
        lambda: turn.longest_s,
    )
