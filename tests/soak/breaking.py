"""Causes one fault after another: in the connection to the broker, and in the broker itself if the soak started it."""

import asyncio
from collections import Counter
from collections.abc import Callable

from tests.soak.plan import Fault, Plan, rotation
from tests.support.broker.find import Broker
from tests.support.proxy import Direction, Proxy

SLOW_BYTES_S = 200_000
"""The speed of a slow connection, which is enough for three times the steady rate of events."""


class Breaking:
    """Causes all faults of a run. `done` counts the faults."""

    def __init__(self, plan: Plan, tunnel: Proxy, broker: Broker, say: Callable[[str], None], *, mortal: bool) -> None:
        self._plan = plan
        self._tunnel = tunnel
        self._broker = broker
        self._say = say
        self._mortal = mortal
        self.done: Counter[Fault] = Counter()

    async def run(self) -> None:
        """Returns when the last fault is over and the connection works."""
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
            self._tunnel.release()

    async def _cause(self, fault: Fault) -> None:
        tunnel = self._tunnel
        match fault:
            case Fault.CUT:
                tunnel.cut()
                return
            case Fault.HALF_OPEN:
                tunnel.cut_client_side()
                return
            case Fault.KILLED:
                await asyncio.to_thread(self._broker.kill)
                await asyncio.to_thread(self._broker.start)
                return
            case Fault.HELD:
                tunnel.hold()
            case Fault.ONE_WAY:
                tunnel.hold(Direction.DOWN)
            case Fault.SLOW:
                tunnel.slow(SLOW_BYTES_S)
        await asyncio.sleep(self._plan.fault_s)
        tunnel.release()
