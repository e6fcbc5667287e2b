"""Parses an HTTP response that arrives in pieces, with the library httptools. Reads no socket."""

from dataclasses import dataclass, field

import httptools

MAX_HEAD_BYTES = 2**16
"""The limit of the bytes before the body. Common servers send at most 8 to 16 KiB."""


class BadResponse(ValueError):
    """The server's bytes are not an HTTP response."""


@dataclass(slots=True)
class Head:
    """The status line and the headers of a response."""

    version: str
    """Such as `1.1`."""
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    """The headers. The names are in lower case. The values of repeated headers are joined with `, `."""


class ResponseParser:
    """Parses one response. Skips responses with a status from 100 to 199, which come before it."""

    def __init__(self) -> None:
        self.head: Head | None = None
        """The head, once it is complete."""
        self.is_complete = False
        """Whether the body is complete. A body that ends with the connection never becomes complete."""
        self.error: BadResponse | None = None
        """The error in the bytes after the last byte of the body that `feed` has returned, or None."""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._head_bytes = 0
        self._parser = httptools.HttpResponseParser(self)

    @property
    def ends_with_connection(self) -> bool:
        """Whether only the end of the connection ends the body: no length was given, and the body has no chunks."""
        return self.head is not None and not {"content-length", "transfer-encoding"} & self.head.headers.keys()

    def feed(self, piece: bytes) -> bytes:
        """Returns the bytes of the body in the next piece of the response.

        Sets `error` if the bytes after them are not HTTP. Ignores bytes after the end of the response.
        """
        if self.is_complete or self.error is not None:
            return b""
        if self.head is None:
            self._head_bytes += len(piece)
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            self.error = BadResponse("it switches to another protocol")
        except httptools.HttpParserError:
            if not self.is_complete:
                self.error = BadResponse("its answer is not HTTP")
        if self.head is None and self._head_bytes > MAX_HEAD_BYTES:
            self.error = BadResponse(f"its headers have more than {MAX_HEAD_BYTES} bytes")
        body = b"".join(self._body)
        self._body.clear()
        return body

    def on_message_begin(self) -> None:
        """Implements httptools' protocol, as the methods below."""
        self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        """Takes a header. A trailer comes after the head, and is ignored."""
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        self._headers[key] = f"{self._headers[key]}, {text}" if key in self._headers else text

    def on_headers_complete(self) -> None:
        """Takes the head."""
        status = self._parser.get_status_code()
        if status >= 200 and self.head is None:
            self.head = Head(self._parser.get_http_version(), status, dict(self._headers))

    def on_body(self, body: bytes) -> None:
        """Takes a part of the body."""
        if not self.is_complete:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """Takes the end of a response."""
        self.is_complete = self.head is not None
