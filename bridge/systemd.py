"""Sends notifications to systemd (`sd_notify(3)`), for units of `Type=notify`.

Without `NOTIFY_SOCKET` in the environment, no notification is sent. If a notification can't be sent, the bridge logs
the failure and continues.
"""

import asyncio
import os
import socket
import time
from collections.abc import Mapping

import structlog

_log = structlog.get_logger("bridge")


class SdNotifier:
    """Sends datagrams of `NAME=value` lines to the service manager."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Reads NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID from the environment."""
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self.watchdog_s = _watchdog_s(environment) if self._address else None
        """If the bridge sends no notification for `watchdog_s` seconds, the service manager kills the bridge.

        `watchdog_s` is None without a watchdog.
        """

    def ready(self) -> None:
        """Notifies the service manager that the bridge accepts clients.

        The bridge does not have to be connected to a broker at this time.
        """
        self._send("READY=1")

    def reloading(self) -> None:
        """Notifies that the bridge reads its certificate again.

        Call `ready` when the bridge has read the certificate.
        """
        # Type=notify-reload requires the time of this notification on the monotonic clock.
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """Notifies that the bridge is stopping."""
        self._send("STOPPING=1")

    async def watch(self) -> None:
        """Notifies the watchdog every `watchdog_s / 2` seconds until cancelled. Without a watchdog, returns at once."""
        while self.watchdog_s:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s / 2)

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as unix_socket:
                # If the queue of the service manager is full, this notification is lost. The event loop must not wait
                # for the service manager.
                unix_socket.setblocking(False)
                unix_socket.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            _log.warning("service manager not notified", what=lines[0], error=error.strerror or str(error))


def _address(text: str) -> str | None:
    """Returns the address of a Unix socket. `text` is a path, or @ followed by an abstract name.

    Returns None if `text` is not the address of a Unix socket.
    """
    if text.startswith("@"):
        return f"\0{text[1:]}"
    return text if text.startswith("/") else None


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """Returns the watchdog's timeout, or None if the watchdog is off or watches another process."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        return int(environment.get("WATCHDOG_USEC", "0")) / 1e6 or None
    except ValueError:
        return None
