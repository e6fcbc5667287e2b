"""HTTP responses, and their serialization.

After each response, the bridge ends the connection. The router and the pages choose the response to a request.
"""

import functools
import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from email.utils import formatdate
from http import HTTPStatus

from bridge.server.access.rules import Refusal

JSON = "application/json"
EVENT_STREAM = "text/event-stream"
"""The media type of Server-Sent Events, without the parameter `charset`: the body is always UTF-8 (HTML standard,
section 9.2.5)."""
TEXT = "text/plain; charset=utf-8"

NOT_IN_A_FRAME = "frame-ancestors 'none'"
"""The Content-Security-Policy of most responses.

This policy prevents other pages from showing the response in a frame, as if the response were their own content.
"""

# These headers tell browsers not to guess another media type, and to hide the response from pages of other origins that
# CORS does not allow.
_FOR_BROWSERS = (("X-Content-Type-Options", "nosniff"), ("Cross-Origin-Resource-Policy", "same-origin"))

Header = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Response:
    """Status, headers and body of a response."""

    status: HTTPStatus
    body: bytes
    content_type: str = TEXT
    headers: tuple[Header, ...] = ()
    policy: str = NOT_IN_A_FRAME
    """The Content-Security-Policy of the response."""
    etag: str | None = None
    """The entity tag of a document, with which clients can revalidate a cached copy of the document."""

    def with_headers(self, *headers: Header) -> "Response":
        """Returns a copy of this response with additional headers."""
        return replace(self, headers=(*self.headers, *headers)) if headers else self


def text_response(status: HTTPStatus, text: str, *headers: Header) -> Response:
    """Returns a response with one line of text as its body."""
    return Response(status, text.encode() + b"\n", TEXT, headers)


def refusal_response(refusal: Refusal, *headers: Header) -> Response:
    """Returns the response to a refused client, with the headers of the refusal and then additional headers."""
    return text_response(refusal.status, refusal.text, *refusal.headers, *headers)


def document_response(body: bytes, content_type: str) -> Response:
    """Returns a response with a rarely changing document as its body, and with a strong entity tag."""
    digest = hashlib.sha256(body).hexdigest()[:32]
    return Response(HTTPStatus.OK, body, content_type, etag=f'"{digest}"')


def revalidated(response: Response, if_none_match: Sequence[str]) -> Response:
    """Returns a 304 response if the client already has the document (RFC 9110, section 13.1.2), or else `response`."""
    if response.etag is None or not if_none_match:
        return response
    # An entity tag includes its quotes, so a tag can't be a part of another tag. The comparison is weak, which means
    # that the prefix W/ makes no difference.
    matches = any(response.etag in value or value.strip(" \t") == "*" for value in if_none_match)
    return replace(response, status=HTTPStatus.NOT_MODIFIED, body=b"") if matches else response


def serialize(response: Response, *, has_body: bool = True) -> bytes:
    """Returns the bytes of a response.

    `has_body` is False for HEAD, whose response has only headers (RFC 9110, section 9.3.2).
    """
    has_content = response.status not in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}
    headers: list[Header] = []
    if has_content:
        headers += ("Content-Type", response.content_type), ("Content-Length", str(len(response.body)))
    headers.append(("Date", date_header()))
    headers.append(("Cache-Control", "no-cache" if response.etag is not None else "no-store"))
    if response.etag is not None:
        headers.append(("ETag", response.etag))
    headers += *_FOR_BROWSERS, ("Content-Security-Policy", response.policy)
    # A response with status 426 already contains a Connection header.
    if not any(name == "Connection" for name, _ in response.headers):
        headers.append(("Connection", "close"))
    headers += response.headers
    head = _head(response.status, headers)
    return head + response.body if has_body and has_content else head


def body_head(content_type: str, size_bytes: int | None, *headers: Header) -> bytes:
    """Returns the head of a response with status 200 whose body the caller writes, with additional headers.

    `size_bytes` is the size of the body, or None if there is no body because the request has the method HEAD.
    """
    return _head(
        HTTPStatus.OK,
        (
            ("Content-Type", content_type),
            *((("Content-Length", str(size_bytes)),) if size_bytes is not None else ()),
            ("Date", date_header()),
            ("Cache-Control", "no-store"),
            *_FOR_BROWSERS,
            ("Content-Security-Policy", NOT_IN_A_FRAME),
            ("Connection", "close"),
            *headers,
        ),
    )


def stream_head(content_type: str, *headers: Header) -> bytes:
    """Returns the head of a response with status 200 whose body ends with the connection, so that it has no length.

    The head keeps proxies from storing, changing or collecting the body. It has additional `headers`.
    """
    return _head(
        HTTPStatus.OK,
        (
            ("Content-Type", content_type),
            ("Date", date_header()),
            ("Cache-Control", "no-store, no-transform"),
            # nginx collects a response by default. This header turns that off for this response.
            ("X-Accel-Buffering", "no"),
            *_FOR_BROWSERS,
            ("Content-Security-Policy", NOT_IN_A_FRAME),
            ("Connection", "close"),
            *headers,
        ),
    )


def _head(status: HTTPStatus, headers: Iterable[Header]) -> bytes:
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in headers)]
    return "".join(f"{line}\r\n" for line in lines).encode("ascii") + b"\r\n"


def date_header() -> str:
    """Returns the current time in the form that RFC 9110, section 6.6.1, requires."""
    return _date(int(time.time()))


@functools.lru_cache(maxsize=1)
def _date(now_s: int) -> str:
    return formatdate(now_s, usegmt=True)
