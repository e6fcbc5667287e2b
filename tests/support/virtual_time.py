"""A virtual clock: the event loop jumps to its next timer instead of waiting.

Don't use a virtual clock in tests with sockets, threads or processes, because their events take real time.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

    import pytest


LONGEST_S = 3600.0
"""The maximum virtual time that a test may take.

If a test's code retries forever, the test reaches this limit within a second of real time.
"""


class VirtualTime:
    """A virtual clock for the running event loop, and for the modules that the test names."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
        """Replaces the module `time` in each of `modules`."""
        loop = asyncio.get_running_loop()
        self.now_s = self._start_s = loop.time()
        self._start_unix_s = time.time()
        selector: Any = loop._selector  # type: ignore[attr-defined]  # the one place where the loop waits
        select = selector.select

        def select_at_once(timeout_s: float | None) -> object:
            assert timeout_s is not None, "no timer is pending, so the test would wait forever"
            self.now_s += timeout_s
            assert self.now_s - self._start_s < LONGEST_S, (
                f"the test waited longer than {LONGEST_S:g} s of virtual time"
            )
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
