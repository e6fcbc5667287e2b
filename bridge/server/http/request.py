"""Parses the head of an HTTP request, which is its request line and headers, within limits (RFC 9112).

The parser llhttp reads the headers in its strictest mode, through httptools. In its strictest mode, llhttp refuses
folded lines, a space before a colon, control characters, and Content-Length with Transfer-Encoding. This module parses
the request line itself, because llhttp refuses methods that RFC 9112 allows, and accepts other protocols (HTTP/0.9,
RTSP).

The module is pure. `access` and `router` decide which requests are allowed.
"""

import re
from dataclasses import dataclass
from http import HTTPStatus

import httptools

from bridge.server.access.rules import Refusal, Rule

MAX_HEADER_BYTES = 16384
"""The maximum size of a header's value. This maximum is large because browsers send the cookies of all applications on
localhost to each service on localhost."""

MAX_REQUEST_LINE_BYTES = 8190
"""The maximum length of the request line, which has the method, the target and the version."""

MAX_HEAD_BYTES = 2 * MAX_HEADER_BYTES
"""The maximum size of a head.

This size is enough for one header and a request line of maximum size, and for 8 KiB of other headers.
"""

MAX_EMPTY_LINES = 16
"""The maximum number of empty lines before a request. Empty lines before a request are ignored."""

MAX_HEADERS = 128

MAX_MEMBERS = 64
"""The maximum number of members of a comma-separated header that the bridge interprets. The bridge ignores all further
members of the header."""

_END = re.compile(rb"\n\r?\n")
# A head whose lines end with LF instead of CRLF also counts as complete, so that its client gets status 400 at once
# instead of 408 later.
_BEGINNING = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z\r-]")

_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) ([!-~]+) HTTP/(1\.[01])\r\n")
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?]*")

_TOO_LARGE = f"A request may have at most {MAX_HEAD_BYTES} bytes."
_TOO_MANY = f"A request may have at most {MAX_HEADERS} headers."
_LARGE_HEADER = (
    f"A header may have at most {MAX_HEADER_BYTES} bytes. If a browser sent it, delete the cookies of this host."
)
_TOO_LONG = f"A request line may have at most {MAX_REQUEST_LINE_BYTES} bytes."
_UNREADABLE = "This is not a valid HTTP request"
_NO_PATH = "The request target must be a path or an absolute URL, without a fragment: GET /updates HTTP/1.1."
_BODY = "The bridge does not accept requests with a body."

_OTHER_PROTOCOLS = (
    (re.compile(rb"\x16"), "This port does not use TLS: use ws:// and http://."),
    (re.compile(rb"PRI \* HTTP/2"), "The bridge supports HTTP/1.1, not HTTP/2: set the client or proxy to HTTP/1.1."),
    # The pattern's second alternative matches version 2 of the PROXY protocol, whose signature begins with two empty
    # lines.
    (re.compile(rb"PROXY |\x00\r\nQUIT\n"), "The bridge accepts no PROXY protocol: turn it off in the proxy."),
    (re.compile(rb"[ -~]* HTTP/(?:0\.|[2-9])"), "The bridge supports HTTP/1.1 and HTTP/1.0."),
    (re.compile(rb"[ -~]+\n"), "Each line of a request must end with CR LF (\\r\\n)."),
)
"""Patterns for the first bytes of other protocols, each with the error text for the client."""


class BadRequest(Exception):
    """Raised if a request can't be parsed, or is too large."""

    def __init__(self, refusal: Refusal, request: "Request | None" = None) -> None:
        super().__init__(refusal.text)
        self.refusal = refusal
        self.request = request
        """The parts of the request that could be parsed, which are needed for the headers of the response. These parts
        have not been checked."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request without its body, and with only the headers that the bridge interprets.

    The names of headers are in lower case, and their values are decoded as Latin-1.
    """

    method: str
    target: str
    version: str
    """The version of HTTP, which is 1.0 or 1.1."""
    headers: dict[str, list[str]]
    path: str
    """The target's path as the client sent it, or `*` for an OPTIONS request about the server as a whole."""
    query: str
    """The part of the target after the `?`, percent-encoded."""

    def lists(self, name: str) -> list[str]:
        """The first MAX_MEMBERS members of a comma-separated header, in lower case (RFC 9110, section 5.6.1)."""
        values = ",".join(self.headers.get(name, ())).lower().split(",", MAX_MEMBERS)[:MAX_MEMBERS]
        return [member for value in values if (member := value.strip(" \t"))]

    def has_member(self, name: str, member: str) -> bool:
        """Whether a comma-separated header has a member. `member` is in lower case."""
        values = self.headers.get(name)
        return values is not None and (values[0].lower() == member or member in self.lists(name))

    @property
    def last_event_id(self) -> str:
        """The value of the header `Last-Event-ID`, or an empty text. The value can be any text."""
        return ", ".join(self.headers.get("last-event-id", ()))


INTERPRETED = {
    name.encode(): name
    for name in (
        "accept",
        "connection",
        "content-length",
        "forwarded",
        "host",
        "if-none-match",
        "last-event-id",
        "origin",
        "sec-fetch-site",
        "sec-websocket-key",
        "sec-websocket-protocol",
        "sec-websocket-version",
        "transfer-encoding",
        "upgrade",
        "x-forwarded-for",
        "x-real-ip",
    )
}
"""The headers that the bridge interprets.

Maps each header's name, in bytes as llhttp passes it, to its name in the bridge.
"""

NOT_FOR_UPGRADES = frozenset({"accept", "if-none-match", "last-event-id"})
"""The headers of `INTERPRETED` that make no difference to a request for an upgrade."""


class _HeaderCollector:
    """The object whose methods httptools calls."""

    def __init__(self) -> None:
        self.headers: dict[str, list[str]] = {}
        self.has_large = False
        self.is_complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(value) > MAX_HEADER_BYTES:
            self.has_large = True
        elif (known := INTERPRETED.get(name.lower())) is not None:
            self.headers.setdefault(known, []).append(value.decode("latin-1").rstrip(" \t"))

    def on_headers_complete(self) -> None:
        self.is_complete = True


class RequestReader:
    """Collects the bytes that arrive from a client, in pieces of any size, until they contain a complete head."""

    __slots__ = ("_empty_lines", "_received")

    def __init__(self) -> None:
        self._received = bytearray()
        self._empty_lines = 0

    def feed(self, data: bytes | memoryview) -> tuple[Request, bytes] | None:
        """Adds received bytes to the head.

        Returns the request and the bytes after its head, or None for an incomplete head.

        Raises BadRequest for an invalid request, even before the head is complete. Don't call `feed` again after
        BadRequest.
        """
        received = self._received
        scanned = max(0, len(received) - 2)
        received += data
        # According to RFC 9112, section 2.2, a server should ignore empty lines before a request.
        while received.startswith(b"\r\n"):
            del received[:2]
            self._empty_lines += 1
            scanned = 0
            if self._empty_lines > MAX_EMPTY_LINES:
                raise _malformed(received)
        end = _END.search(received, scanned)
        if (end.end() if end else len(received)) > MAX_HEAD_BYTES:
            raise BadRequest(_refusal(Rule.SIZE, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, _TOO_LARGE))
        if end is None:
            if received and not _BEGINNING.match(received):
                raise _malformed(received)
            return None
        return parse(bytes(received[: end.end()])), bytes(received[end.end() :])


def parse(head: bytes) -> Request:
    """Parses a head, which includes the empty line at its end. Raises BadRequest."""
    line = _REQUEST_LINE.match(head)
    if line is None:
        raise _malformed(head)
    method, target, version = (part.decode("ascii") for part in line.groups())
    collected = _HeaderCollector()
    request = Request(method, target, version, collected.headers, *_split(target))

    def refused(rule: Rule, status: HTTPStatus, text: str) -> BadRequest:
        return BadRequest(_refusal(rule, status, text), request)

    if head.count(b"\n") - 2 > MAX_HEADERS:
        raise refused(Rule.SIZE, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, _TOO_MANY)
    try:
        # A fixed request line replaces the client's request line, which llhttp might refuse before it parses the
        # headers.
        httptools.HttpRequestParser(collected).feed_data(b"GET / HTTP/1.1\r\n" + head[line.end() :])
    except httptools.HttpParserUpgrade:
        pass  # httptools raises HttpParserUpgrade at the end of the headers if the client asks for an upgrade
    except httptools.HttpParserError as error:
        # The text of httptools' error is one of the parser's constants, and quotes nothing from the client.
        raise refused(Rule.MALFORMED, HTTPStatus.BAD_REQUEST, f"{_UNREADABLE}: {error}.") from error
    assert collected.is_complete, "the parser may have left out the header that excludes the client"
    if collected.has_large:
        raise refused(Rule.SIZE, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, _LARGE_HEADER)
    if line.end() - 2 > MAX_REQUEST_LINE_BYTES:
        raise refused(Rule.SIZE, HTTPStatus.REQUEST_URI_TOO_LONG, _TOO_LONG)
    if not _is_target(method, target):
        raise refused(Rule.MALFORMED, HTTPStatus.BAD_REQUEST, _NO_PATH)
    has_body = "transfer-encoding" in request.headers or request.headers.get("content-length", ["0"]) != ["0"]
    if has_body and method in {"GET", "HEAD", "OPTIONS"}:
        raise refused(Rule.MALFORMED, HTTPStatus.BAD_REQUEST, _BODY)
    return request


def _split(target: str) -> tuple[str, str]:
    """Returns the path and the query of a target."""
    start = 0
    if not target.startswith("/") and (absolute := _ABSOLUTE.match(target)):
        start = absolute.end()
    path, _, query = target[start:].partition("?")
    return path or "/", query


def _is_target(method: str, target: str) -> bool:
    if method == "CONNECT":
        return True  # the target of CONNECT is a host and a port, and the response is 405
    # According to RFC 9112, section 3.2, a target has no fragment.
    is_path = target.startswith("/") or _ABSOLUTE.match(target) is not None or (method, target) == ("OPTIONS", "*")
    return is_path and "#" not in target


def _malformed(head: bytes | bytearray) -> BadRequest:
    for beginning, hint in _OTHER_PROTOCOLS:
        if beginning.match(head):
            return BadRequest(_refusal(Rule.MALFORMED, HTTPStatus.BAD_REQUEST, hint))
    return BadRequest(_refusal(Rule.MALFORMED, HTTPStatus.BAD_REQUEST, f"{_UNREADABLE}."))


def _refusal(rule: Rule, status: HTTPStatus, text: str) -> Refusal:
    return Refusal(status, text, rule, text)
