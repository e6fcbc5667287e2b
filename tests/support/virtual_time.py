"""A clock that jumps: where the event loop would wait for a timer, it is that late at once.

Only for tests without sockets, threads and processes: what these bring would come late by that clock.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

    import pytest


LONGEST_S = 3600.0
"""Of the clock's own time: code that tries again for ever would do so within a second."""


class VirtualTime:
    """The time of the running event loop, and of the modules that a test gives it to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
        """`modules` get it in the place of their `time`."""
        loop = asyncio.get_running_loop()
        self.now_s = self._start_s = loop.time()
        self._start_unix_s = time.time()
        selector: Any = loop._selector  # type: ignore[attr-defined]  # the one place where the loop waits
        select = selector.select

        def select_at_once(timeout_s: float | None) -> object:
            assert timeout_s is not None, "nothing is due any more: the test would wait for ever"
            self.now_s += timeout_s
            assert self.now_s - self._start_s < LONGEST_S, "the test waits for something that does not come"
            return select(0)

        monkeypatch.setattr(selector, "select", select_at_once)
        monkeypatch.setattr(loop, "time", self.monotonic)
        for module in modules:
            monkeypatch.setattr(module, "time", self)

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return self._start_unix_s + self.now_s - self._start_s

    def time_ns(self) -> int:
        return int(self.time() * 1e9)
