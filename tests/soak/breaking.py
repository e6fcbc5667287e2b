"""Breaks the line to the broker, and the broker where it is ours, one fault after the other."""

import asyncio
from collections import Counter
from collections.abc import Callable

from tests.soak.plan import Fault, Plan, rotation
from tests.support.broker.find import Broker
from tests.support.proxy import Direction, Proxy

SLOW_BYTES_S = 200_000
"""Three times what the steady rate needs."""


class Breaking:
    """All faults of a run; `done` counts them."""

    def __init__(self, plan: Plan, line: Proxy, broker: Broker, say: Callable[[str], None], *, mortal: bool) -> None:
        self._plan = plan
        self._line = line
        self._broker = broker
        self._say = say
        self._mortal = mortal
        self.done: Counter[Fault] = Counter()

    async def run(self) -> None:
        """Returns when the last one is over, and the line is as it was."""
        loop = asyncio.get_running_loop()
        next_s = loop.time() + self._plan.warm_up_s
        try:
            for fault in rotation(self._plan.faults, mortal=self._mortal):
                await asyncio.sleep(next_s - loop.time())
                next_s += self._plan.fault_every_s
                self._say(f"fault: {fault.value}")
                await self._cause(fault)
                self.done[fault] += 1
        finally:
            self._line.release()

    async def _cause(self, fault: Fault) -> None:
        line = self._line
        match fault:
            case Fault.CUT:
                line.cut()
                return
            case Fault.FORSAKEN:
                line.forsake()
                return
            case Fault.KILLED:
                await asyncio.to_thread(self._broker.kill)
                await asyncio.to_thread(self._broker.start)
                return
            case Fault.HELD:
                line.hold()
            case Fault.ONE_WAY:
                line.hold(Direction.DOWN)
            case Fault.SLOW:
                line.slow(SLOW_BYTES_S)
        await asyncio.sleep(self._plan.fault_s)
        line.release()
