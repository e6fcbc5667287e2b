"""Remembers the requests that were upgraded recently, so that an equal request needs no parsing and no checks.

When a bridge restarts, all its clients connect at once. The requests of clients that want the same updates differ only
in their random key and in headers that the bridge ignores, for example `User-Agent` and `Cookie`. The decision about a
request depends only on the rest of its bytes and on the settings. Equal requests therefore get equal responses, except
for the value that is computed from the key.

The module is pure.
"""

import re
from dataclasses import replace

from bridge.server.http.request import INTERPRETED, MAX_HEADERS, NOT_FOR_UPGRADES, Request
from bridge.server.websocket.upgrade import KEY_CHARACTERS, Upgrade, is_key, switching_protocols

MAX_REQUESTS = 256

MAX_REQUEST_BYTES = 2048
"""Requests that exceed this size are not remembered. The cache therefore takes less than 1 MiB."""

_RELEVANT = [re.escape(name) for name, known in INTERPRETED.items() if known not in NOT_FOR_UPGRADES]

_IGNORED = re.compile(
    rb"\r\n(?!(?:%s):)[!#$%%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*(?=\r\n)"
    % b"|".join([b"proxy-connection", *_RELEVANT]),
    re.IGNORECASE,
)
"""Matches a valid header that llhttp does not interpret, and that makes no difference to an upgrade.

An invalid header does not match. It stays a part of the request, so the request is never equal to a valid one.
"""

_END = b"\r\n\r\n"
_BEFORE_KEY = b"\r\nSec-WebSocket-Key: "


class UpgradeCache:
    """The requests that were upgraded recently, without their keys and ignored headers."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[Request, Upgrade]] = {}

    def get(self, data: bytes) -> tuple[Request, Upgrade] | None:
        """Returns the request and the upgrade for `data` if an equal request was added.

        Equal requests differ at most in their keys and in ignored headers. The returned request has the header
        `Sec-WebSocket-Key` of the earlier request, and no headers that make no difference to an upgrade.
        """
        if len(data) > MAX_REQUEST_BYTES or data.count(b"\n") - 2 > MAX_HEADERS:
            return None
        before, key, after = _split(data)
        known = self._known.get(before + after)
        if known is None or not is_key(key):
            return None
        request, upgrade = known
        return request, Upgrade(switching_protocols(key, upgrade.headers), upgrade.subscribe, upgrade.headers)

    def add(self, data: bytes, request: Request, upgrade: Upgrade) -> None:
        """Adds the bytes of a whole request that is upgraded. The oldest request is dropped if the cache is full."""
        before, key, after = _split(data)
        if [key] != request.headers["sec-websocket-key"] or len(data) > MAX_REQUEST_BYTES:
            return
        if len(self._known) >= MAX_REQUESTS:
            del self._known[next(iter(self._known))]
        headers = {name: values for name, values in request.headers.items() if name not in NOT_FOR_UPGRADES}
        self._known[before + after] = replace(request, headers=headers), upgrade


def _split(data: bytes) -> tuple[bytes, str, bytes]:
    """Returns the bytes before the key, the key, and the bytes after it, without ignored headers.

    The key is empty if it can't be found, or if `data` is not exactly one head.
    """
    if data.find(_END) != len(data) - len(_END):
        return data, "", b""
    before, name, rest = _IGNORED.sub(b"", data).partition(_BEFORE_KEY)
    if rest[KEY_CHARACTERS : KEY_CHARACTERS + 2] != b"\r\n":
        return data, "", b""
    return before + name, rest[:KEY_CHARACTERS].decode("latin-1"), rest[KEY_CHARACTERS:]
