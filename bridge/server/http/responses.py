"""Builds HTTP responses and serializes them.

Every response ends its connection. Nothing here knows which response belongs to which request.
"""

import functools
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from email.utils import formatdate
from http import HTTPStatus

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"

NOT_IN_A_FRAME = "frame-ancestors 'none'"
"""The policy of everything that is not a page for people: no other page shows it as its own."""

# A browser takes it for nothing else than it is, and hands it to no page of another origin without CORS.
_FOR_BROWSERS = (("X-Content-Type-Options", "nosniff"), ("Cross-Origin-Resource-Policy", "same-origin"))

Header = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Response:
    """Status, headers and body."""

    status: HTTPStatus
    body: bytes
    content_type: str = TEXT
    headers: tuple[Header, ...] = ()
    policy: str = NOT_IN_A_FRAME
    """Its Content-Security-Policy."""
    etag: str | None = None
    """The entity tag of a document, which clients may cache and revalidate."""

    def with_headers(self, *headers: Header) -> "Response":
        """The same with more headers."""
        return replace(self, headers=(*self.headers, *headers)) if headers else self


def sentence(status: HTTPStatus, text: str, *headers: Header) -> Response:
    """A refusal or an error: one plain sentence."""
    return Response(status, text.encode() + b"\n", TEXT, headers)


def document(body: bytes, content_type: str) -> Response:
    """A body that stays the same for long, with a strong entity tag."""
    digest = hashlib.sha256(body).hexdigest()[:32]
    return Response(HTTPStatus.OK, body, content_type, etag=f'"{digest}"')


def unless_matched(response: Response, if_none_match: Sequence[str]) -> Response:
    """304 instead of a document that the client has already (RFC 9110, section 13.1.2: a weak comparison)."""
    if response.etag is None or not if_none_match:
        return response
    # A tag is quoted, and so no part of another one.
    matches = any(response.etag in value or value.strip(" \t") == "*" for value in if_none_match)
    return replace(response, status=HTTPStatus.NOT_MODIFIED, body=b"") if matches else response


def serialized(response: Response, *, has_body: bool = True) -> bytes:
    """The response as bytes. `has_body` is False for HEAD: the headers are those of GET (RFC 9110, section 9.3.2)."""
    has_content = response.status not in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}
    headers: list[Header] = []
    if has_content:
        headers += ("Content-Type", response.content_type), ("Content-Length", str(len(response.body)))
    headers.append(("Date", _date(int(time.time()))))
    headers.append(("Cache-Control", "no-cache" if response.etag is not None else "no-store"))
    if response.etag is not None:
        headers.append(("ETag", response.etag))
    headers += *_FOR_BROWSERS, ("Content-Security-Policy", response.policy)
    # A 426 has a Connection of its own.
    if not any(name == "Connection" for name, _ in response.headers):
        headers.append(("Connection", "close"))
    headers += response.headers
    lines = [f"HTTP/1.1 {response.status.value} {response.status.phrase}", *(f"{n}: {value}" for n, value in headers)]
    head = "".join(f"{line}\r\n" for line in lines).encode("ascii") + b"\r\n"
    return head + response.body if has_body and has_content else head


@functools.lru_cache(maxsize=1)
def _date(now_s: int) -> str:
    """RFC 9110, section 6.6.1."""
    return formatdate(now_s, usegmt=True)
