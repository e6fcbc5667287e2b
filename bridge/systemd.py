"""Telling the service manager how the bridge is doing: systemd's `sd_notify`, in `Type=notify` units.

Where `NOTIFY_SOCKET` is not set nobody asked, and nothing is said. A manager that does not listen keeps no bridge from
its work: it will find out by itself.
"""

import asyncio
import os
import socket
import time
from collections.abc import Mapping

import structlog

_log = structlog.get_logger("bridge")


class Notifier:
    """Sends datagrams to the manager, each some lines of `NAME=value` (sd_notify(3))."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Reads NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID from the environment."""
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self.watchdog_s = _watchdog_s(environment) if self._address else None
        """How long the manager goes without a sign of life before it ends the bridge; None where it does not care."""

    def ready(self) -> None:
        """The bridge listens. The broker may be away: it comes and goes, and clients need not."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """The certificate is being read again; `ready` says when that is over."""
        # What a unit of Type=notify-reload asks for beside it: when that began, on the manager's own clock.
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The bridge is on its way out."""
        self._tell("STOPPING=1")

    async def watch(self) -> None:
        """Says twice within `watchdog_s` that the loop turns, for as long as it does; returns where nobody cares."""
        while self.watchdog_s:
            self._tell("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s / 2)

    def _tell(self, *lines: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
                # Never a wait: a manager whose queue is full is told the next time.
                line.setblocking(False)
                line.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            _log.warning("the service manager can't be told", what=lines[0], error=error.strerror or str(error))


def _address(text: str) -> str | None:
    """Of a Unix socket: a path, or an abstract name behind @. Anything else is not for this program."""
    if text.startswith("@"):
        return f"\0{text[1:]}"
    return text if text.startswith("/") else None


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """None where the watchdog is off, or is another process's."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        return int(environment.get("WATCHDOG_USEC", "0")) / 1e6 or None
    except ValueError:
        return None
