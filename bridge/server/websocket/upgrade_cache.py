"""Remembers the requests that were upgraded recently, so that an equal request needs no parsing and no checks.

When a bridge restarts, all its clients connect at once. The requests of clients that run the same program, and want the
same updates, differ only in their random key. The decision about a request depends only on its bytes and on the
settings. Equal requests therefore get equal responses, except for the value that is computed from the key.

The module is pure.
"""

from bridge.server.http.request import Request
from bridge.server.websocket.upgrade import KEY_CHARACTERS, Upgrade, is_key, switching_protocols

MAX_REQUESTS = 256

MAX_REQUEST_BYTES = 2048
"""Requests that exceed this size are not remembered. The cache therefore takes less than 1 MiB."""

_BEFORE_KEY = b"\r\nSec-WebSocket-Key: "


class UpgradeCache:
    """The requests that were upgraded recently, without their keys."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[Request, Upgrade]] = {}

    def get(self, data: bytes) -> tuple[Request, Upgrade] | None:
        """Returns the request and the upgrade for `data` if a request was added that differs at most in its key.

        The header `Sec-WebSocket-Key` of the returned request is that of the earlier request.
        """
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
        self._known[before + after] = request, upgrade


def _split(data: bytes) -> tuple[bytes, str, bytes]:
    """Returns the bytes before the key, the key, and the bytes after it. The key is empty if it can't be found."""
    before, name, rest = data.partition(_BEFORE_KEY)
    if rest[KEY_CHARACTERS : KEY_CHARACTERS + 2] != b"\r\n":
        return data, "", b""
    return before + name, rest[:KEY_CHARACTERS].decode("latin-1"), rest[KEY_CHARACTERS:]
