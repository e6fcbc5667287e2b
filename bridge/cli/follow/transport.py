"""What a follower needs from a transport, and what all transports share: errors, timeouts, texts for failures."""

import asyncio
import errno
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from bridge.cli.common.endpoint import shown_url
from bridge.contract.text import printable
from bridge.errors import BridgeError, ConfigurationError, shown_argument


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowTiming:
    """The timeouts and pauses of a follower, in seconds. The contract prescribes the pauses for every client."""

    first_pause_s: float = 1.0
    longest_pause_s: float = 30.0
    pause_when_full_s: float = 8.0
    stable_s: float = 10.0
    """A connection that ends within this time counts as failed.

    Otherwise, the client would reconnect to a full bridge every second.
    """
    handshake_timeout_s: float = 10.0
    ping_s: float = 20.0
    """The interval between WebSocket pings, and also the time in which each ping must be answered."""
    close_timeout_s: float = 1.0
    notice_s: float = 2.0
    """The time after which the command reports what has not come: the response, its first line, or `resume`.

    The bridge sends the response and its first line at once. `resume` may take longer: the bridge may still be reading
    its history, or may have no connection to the broker.
    """
    silence_s: float = 75.0
    """The time without a byte after which a response is dead. By default, the bridge sends a line every 30 s."""


DEFAULT = FollowTiming()

T = TypeVar("T")

FULL = 1013
"""The close code of a full bridge."""

REASONS = {
    1001: "the bridge is stopping",
    1006: "the connection was cut",
    1011: "the bridge had an error",
    FULL: "the bridge is full",
    4008: "the reader of the output was too slow for the bridge",
    4009: "the bridge received nothing from this client",
}

TRANSIENT = frozenset({408, 429})
"""The HTTP statuses from 400 to 499 after which the same request may succeed later."""

TRANSIENT_LATER = frozenset({401, 403, 404})
"""The HTTP statuses after which a request may succeed later, if the client was connected before.

An operator may be in the middle of changing a proxy or the allowed networks.
"""


class Refused(BridgeError):
    """The bridge refuses the request permanently. The error's text has the reason that the bridge gives."""

    exit_code = 2


class Disconnected(Exception):
    """The connection has ended, or could not be opened. The same request may succeed later."""

    def __init__(self, why: str, code: int | None = None) -> None:
        """`why` is the reason for the user, and printable. `code` is the close code that the bridge sent, if any."""
        super().__init__(why)
        self.why = why
        self.code = code


class Connection(Protocol):
    """One open connection to a bridge."""

    @property
    def retry_s(self) -> float:
        """The pause before the next connection that the bridge has asked for, in seconds, or 0."""

    async def receive(self) -> str | bytes:
        """Returns the next message. Raises Disconnected, and BridgeError if the server is not a bridge."""

    async def close(self) -> None:
        """Ends the connection."""


class Transport(Protocol):
    """One way to get the messages of a bridge."""

    async def open(self, url: str, *, was_connected: bool) -> Connection:
        """Sends the request. `url` has the complete query. Returns after the bridge has accepted the request.

        `was_connected` says whether an earlier request was accepted. Raises Disconnected, Refused, and
        ConfigurationError.
        """


Say = Callable[[str], None]
"""Prints a line for the user."""


def closed(code: int, reason: str) -> Disconnected:
    """Returns the error for a close code and a reason that the bridge sent."""
    return Disconnected(REASONS.get(code) or f"code {code} {printable(reason)}".rstrip(), code)


def refusal(url: str, status: int, body: bytes, *, was_connected: bool) -> Disconnected | Refused:
    """Returns the error for a status that does not accept the request. `body` is the body of the response."""
    text = printable(body.decode(errors="replace").strip()) or "no reason given"
    is_transient = status in TRANSIENT or (was_connected and status in TRANSIENT_LATER)
    if 400 <= status < 500 and not is_transient:
        return Refused(f"{shown_url(url)} refuses ({status}): {text}")
    return Disconnected(f"it answers {status}: {text}")


def failed(
    url: str, error: Exception, timeout_s: float, *, was_connected: bool
) -> Disconnected | Refused | ConfigurationError:
    """Returns the error for a connection that could not be opened within `timeout_s` seconds.

    If a host has several addresses, asyncio joins the errors of all attempts.
    """
    shown = shown_url(url)
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = printable(error.verify_message)
        return ConfigurationError([f"{shown}: the certificate can't be trusted: {reason}; see --cafile"])
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER" and not was_connected:
        return Refused(f"{shown}: the bridge does not use TLS: use {urlsplit(url).scheme.removesuffix('s')}://")
    if isinstance(error, TimeoutError):
        return Disconnected(f"no answer within {timeout_s:g} s")
    if f"[Errno {errno.ECONNREFUSED}]" in str(error):
        return Disconnected("no program listens there")
    return Disconnected(shown_argument(str(error)) or type(error).__name__)


async def refuse_if_tls(url: str, timeout_s: float) -> None:
    """Raises Refused if the server answers a TLS handshake, although the URL's scheme has no TLS.

    Sends no data except the handshake.
    """
    parts = urlsplit(url)
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(
                parts.hostname, parts.port or 80, ssl=ssl.create_default_context()
            )
    except ssl.SSLCertVerificationError:
        pass
    except OSError:
        return
    else:
        writer.close()
    raise Refused(f"{shown_url(url)}: the bridge uses TLS: use {parts.scheme}s://")


async def with_notice(reading: Coroutine[Any, Any, T], after_s: float, notice: Callable[[], None]) -> T:
    """Returns the result of `reading`. Calls `notice` if there is none after `after_s` seconds."""
    timer = asyncio.get_running_loop().call_later(after_s, notice)
    try:
        return await reading
    finally:
        timer.cancel()
