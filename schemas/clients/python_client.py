"""Updates of an edk-bridge with asyncio, each exactly once, whatever becomes of the connection.

A file to copy, and `pip install websockets`.

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
LASTING_S = 10.0  # What ends sooner did not work: without this, a bridge that is full is asked every second.
FULL, TRY_AGAIN = 1013, (408, 429)

log = logging.getLogger("updates")
tell = partial(log.info, "connected: all after %s follows")
warn = partial(log.warning, "some updates may be missing: %s")
Told = Callable[[Any], object]


class Refused(Exception):
    """The bridge's own sentence: the query won't do (400), or whoever asks may not (403)."""


async def updates(
    url: str, after: str = "", on_missed: Told = warn, on_connected: Told = tell, ping_s: float = 20.0
) -> AsyncGenerator[dict[str, Any], None]:
    """All updates after an id, that of an update or one that `on_connected` was told, or from now on.

    `on_missed` is told what can't be had any more: the data of a `resume` that is not complete, or of a `gap`;
    `on_connected` the id after which all follows. The line is dead when a ping is not answered within `ping_s`.
    """
    # Without a limit of our own for an update: one that is too large would come again with every connection.
    line = partial(connect, max_size=None, proxy=None, ping_interval=ping_s, ping_timeout=ping_s)
    last_id, pause_s, level = after, FIRST_PAUSE_S, logging.WARNING
    while True:
        address = f"{url}{'&' if '?' in url else '?'}after={quote(last_id)}"
        connected_at = float("inf")
        try:
            async with line(address) as socket:
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
                why: object = socket.close_code
        except InvalidStatus as error:
            status, body = error.response.status_code, error.response.body or b""
            why = f"{status} {body.decode(errors='replace').strip()}"
            if 400 <= status < 500 and status not in TRY_AGAIN:
                raise Refused(why) from error
        except (OSError, InvalidHandshake) as error:
            why = error
        log.log(level, "disconnected: %s", why)
        level = logging.INFO  # Of a row of failures one is enough.
        pause_s = FIRST_PAUSE_S if time.monotonic() - connected_at >= LASTING_S else pause_s
        pause_s = max(pause_s, PAUSE_WHEN_FULL_S) if why == FULL else pause_s
        await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
