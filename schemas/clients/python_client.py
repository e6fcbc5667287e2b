"""Receives the updates of an edk-bridge with asyncio, each exactly once, also across lost connections.

Copy this file, and run `pip install websockets`.

    async for update in updates("ws://localhost:3000/updates?type=killmail"):
        print(update["id"], update["data"])
"""

import asyncio
import json
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import quote

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError, InvalidHandshake, InvalidStatus

FIRST_PAUSE_S, LONGEST_PAUSE_S, PAUSE_WHEN_FULL_S = 1.0, 30.0, 8.0
# A connection that does not last this long is a failure: the client must not retry a full bridge every second.
LASTING_S = 10.0
FULL, TRY_AGAIN = 1013, (408, 429)

log = logging.getLogger("updates")
log_connected = partial(log.info, "connected: all updates after %s follow")
log_missed = partial(log.warning, "some updates may be missing: %s")
Callback = Callable[[Any], object]


class Refused(Exception):
    """The bridge refused the client: the query is invalid (400), or the access is forbidden (403)."""


async def updates(
    url: str,
    after: str = "",
    on_missed: Callback = log_missed,
    on_connected: Callback = log_connected,
    ping_s: float = 20.0,
) -> AsyncGenerator[dict[str, Any], None]:
    """Yields the updates after the id `after`. Without an id, yields only new updates.

    `after` is the id of an update, or an id that was passed to `on_connected`.

    `on_connected` is called with an id, and all updates after this id follow. `on_missed` is called if some updates are
    lost, with the data of a `gap` or of a `resume` that is not complete. If the bridge does not answer a ping within
    `ping_s` seconds, the connection counts as dead.
    """
    # The size of messages has no limit: an update above a limit would end every new connection, because the bridge
    # would send it again.
    open_connection = partial(connect, max_size=None, proxy=None, ping_interval=ping_s, ping_timeout=ping_s)
    last_id, pause_s, level = after, FIRST_PAUSE_S, logging.WARNING
    while True:
        address = f"{url}{'&' if '?' in url else '?'}after={quote(last_id)}"
        connected_at = float("inf")
        try:
            async with open_connection(address) as socket:
                with suppress(ConnectionClosedError):
                    async for text in socket:
                        match message := json.loads(text):
                            case {"id": last_id}:
                                yield message
                            case {"type": "resume", "data": {"id": last_id} as data}:
                                connected_at, level = time.monotonic(), logging.WARNING
                                on_connected(last_id)
                                if not data["complete"]:
                                    on_missed(data)
                            case {"type": "gap", "data": data}:
                                on_missed(data)
                reason: object = socket.close_code
        except InvalidStatus as error:
            status, body = error.response.status_code, error.response.body or b""
            reason = f"{status} {body.decode(errors='replace').strip()}"
            if 400 <= status < 500 and status not in TRY_AGAIN:
                raise Refused(reason) from error
        except (OSError, InvalidHandshake) as error:
            reason = error
        log.log(level, "disconnected: %s", reason)
        level = logging.INFO  # Several failures in a row cause only one warning.
        pause_s = FIRST_PAUSE_S if time.monotonic() - connected_at >= LASTING_S else pause_s
        pause_s = max(pause_s, PAUSE_WHEN_FULL_S) if reason == FULL else pause_s
        await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
