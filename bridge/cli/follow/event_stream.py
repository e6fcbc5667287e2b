"""Gets the messages of a bridge over Server-Sent Events, and reports what a proxy on the way does to the response."""

import asyncio
import ssl
from base64 import b64encode
from collections import deque
from urllib.parse import quote, unquote_to_bytes, urlsplit

from bridge import __version__
from bridge.cli.common.endpoint import shown_url
from bridge.cli.follow.event_parser import MAX_BLOCK_BYTES, BlockTooLarge, EventParser
from bridge.cli.follow.http_response import BadResponse, Head, ResponseParser
from bridge.cli.follow.transport import (
    REASONS,
    Disconnected,
    FollowTiming,
    Refused,
    Say,
    failed,
    refusal,
    refuse_if_tls,
    with_notice,
)
from bridge.contract.text import printable
from bridge.errors import BridgeError, shown_argument

READ_BYTES = 2**16

MAX_REFUSAL_BYTES = 2**16
"""The limit of a body that is not a stream of events. The command prints only a part of it."""

CONTENT_TYPE = "text/event-stream"


class EventStreamTransport:
    """Opens responses with Server-Sent Events. Follows no redirects, as a redirect would change the bridge."""

    def __init__(
        self,
        tls: ssl.SSLContext | None,
        timing: FollowTiming,
        say: Say,
        max_block_bytes: int = MAX_BLOCK_BYTES,
    ) -> None:
        """`tls` is the context for https://, or None for http://. `max_block_bytes` is the limit of an event."""
        self._tls = tls
        self._timing = timing
        self._say = say
        self._max_block_bytes = max_block_bytes
        self._described = ""

    async def open(self, url: str, *, was_connected: bool) -> "EventStreamConnection":
        """Implements `Transport.open`."""
        parts = urlsplit(url)
        limit_s = self._timing.handshake_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                reader, writer = await asyncio.open_connection(
                    parts.hostname, parts.port or (443 if self._tls else 80), ssl=self._tls
                )
        except OSError as error:
            raise failed(url, error, limit_s, was_connected=was_connected) from error
        events = EventParser(self._max_block_bytes)
        connection = EventStreamConnection(url, reader, writer, events, self._timing, self._say)
        try:
            writer.write(request_bytes(url))
            try:
                head = await connection.read_head()
            except (BadResponse, Disconnected) as error:
                if self._tls is None and not was_connected:
                    await refuse_if_tls(url, self._timing.notice_s)
                raise Disconnected(str(error)) from error
            await self._check(url, head, connection, was_connected=was_connected)
            self._describe(url, head)
            await connection.read_first_line()
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _check(self, url: str, head: Head, connection: "EventStreamConnection", *, was_connected: bool) -> None:
        """Raises Refused or Disconnected if the response is not a stream of events."""
        shown = shown_url(url)
        location = head.headers.get("location")
        if 300 <= head.status < 400 and location is not None:
            text = f"redirects to {shown_argument(location)} ({head.status}): give the URL of the bridge itself"
            raise Disconnected(f"it {text}") if was_connected else Refused(f"{shown} {text}")
        if head.status != 200:
            raise refusal(url, head.status, await connection.read_all(), was_connected=was_connected)
        found = head.headers.get("content-type", "")
        if found.partition(";")[0].strip().lower() != CONTENT_TYPE:
            raise Refused(
                f"{shown} answers with {printable(found) or 'no content type'} instead of {CONTENT_TYPE}: "
                "it is not the endpoint, whose default path is /updates, or the bridge is too old"
            )
        encoding = head.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise Refused(f"{shown}: a proxy on the way compresses the response ({printable(encoding)}): disable this")

    def _describe(self, url: str, head: Head) -> None:
        """Reports the headers that show proxies, unless the report is the same as before."""
        shown = [f"{name.title()}: {printable(head.headers[name])}" for name in _SHOWN if name in head.headers]
        text = "; ".join([f"HTTP/{head.version} {head.status}", *shown])
        if text != self._described:
            self._described = text
            self._say(f"response of {shown_url(url)}: {text}")


_SHOWN = ("server", "via", "transfer-encoding", "content-length")
"""The headers that show what a proxy does. A bridge sends none of them with a stream of events."""


class EventStreamConnection:
    """A response with Server-Sent Events."""

    def __init__(
        self,
        url: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        events: EventParser,
        timing: FollowTiming,
        say: Say,
    ) -> None:
        self._shown = shown_url(url)
        self._reader = reader
        self._writer = writer
        self._timing = timing
        self._say = say
        self._response = ResponseParser()
        self._events = events
        self._body = b""
        """The bytes of the body that were received with the head, or as the first line."""
        self._ready: deque[str] = deque()
        """The messages that are received and not yet returned."""

    @property
    def retry_s(self) -> float:
        """Implements `Connection.retry_s`."""
        return (self._events.retry_ms or 0) / 1000

    async def read_head(self) -> Head:
        """Reads until the head is complete. Raises Disconnected, and BadResponse."""
        notice = f"no response from {self._shown} yet: the bridge answers at once, so a proxy may buffer the response"
        limit_s = self._timing.handshake_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await with_notice(self._read_head(), self._timing.notice_s, lambda: self._say(notice))
        except TimeoutError as error:
            raise Disconnected(f"no answer within {limit_s:g} s") from error

    async def _read_head(self) -> Head:
        while self._response.head is None:
            self._body += await self._read()
        return self._response.head

    async def read_first_line(self) -> None:
        """Reads the first bytes of the body. Raises Disconnected, and BadResponse."""
        if not self._body:
            notice = f"no first line from {self._shown} yet: the bridge sends one at once, so a proxy may buffer it"
            self._body = await with_notice(self._read_body(), self._timing.notice_s, lambda: self._say(notice))

    async def read_all(self) -> bytes:
        """Returns the body up to its end or up to MAX_REFUSAL_BYTES. Returns what has come if the connection fails."""
        body = self._body
        try:
            async with asyncio.timeout(self._timing.handshake_timeout_s):
                while not self._response.is_complete and len(body) < MAX_REFUSAL_BYTES:
                    body += await self._read()
        except (Disconnected, BadResponse, TimeoutError):
            pass
        return body[:MAX_REFUSAL_BYTES]

    async def receive(self) -> str:
        """Implements `Connection.receive`."""
        while not self._ready:
            body, self._body = self._body or await self._read_body(), b""
            try:
                self._ready.extend(event.data for event in self._events.feed(body) if event.type == "message")
            except BlockTooLarge as error:
                raise BridgeError(f"{self._shown}: this server is not an edk-bridge: its event has no end") from error
        return self._ready.popleft()

    async def close(self) -> None:
        """Implements `Connection.close`. Waits neither for the server's end of TLS nor for unsent bytes."""
        self._writer.transport.abort()

    async def _read_body(self) -> bytes:
        """Returns the next bytes of the body, at least one. Raises Disconnected."""
        try:
            while True:
                async with asyncio.timeout(self._timing.silence_s):
                    body = await self._read()
                if body:
                    return body
        except TimeoutError as error:
            raise Disconnected(f"nothing was received for {self._timing.silence_s:g} s") from error
        except BadResponse as error:
            raise Disconnected(str(error)) from error

    async def _read(self) -> bytes:
        """Returns the next bytes of the body, or nothing if only other bytes have come.

        Raises Disconnected, and BadResponse.
        """
        if self._response.error is not None:
            raise self._response.error
        if self._response.is_complete:
            raise self._ended("the response ended")
        try:
            data = await self._reader.read(READ_BYTES)
        except OSError as error:
            raise self._ended(REASONS[1006]) from error
        if not data:
            raise self._ended("the response ended" if self._response.ends_with_connection else REASONS[1006])
        return self._response.feed(data)

    def _ended(self, why: str) -> Disconnected:
        return Disconnected(f"{why} in the middle of an event" if self._events.is_in_block else why)


def request_bytes(url: str) -> bytes:
    """Returns the request for a URL that `endpoint` has made."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    # The user may have typed spaces and characters that are not ASCII.
    target = quote(f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}", safe=_SAFE)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname.encode("idna").decode()
    headers = [
        f"GET {target} HTTP/1.1",
        f"Host: {host}{'' if parts.port is None else f':{parts.port}'}",
        f"Accept: {CONTENT_TYPE}",
        "Cache-Control: no-store",
        f"User-Agent: edk-bridge/{__version__}",
    ]
    if parts.username is not None:
        user = b":".join(unquote_to_bytes(part or "") for part in (parts.username, parts.password))
        headers.append(f"Authorization: Basic {b64encode(user).decode()}")
    return "\r\n".join([*headers, "", ""]).encode()


_SAFE = "%/:?#[]@!$&'()*+,;=~-._"
"""The characters that may stand in a URL unchanged (RFC 3986)."""
