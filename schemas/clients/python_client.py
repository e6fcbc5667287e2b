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

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

FIRST_PAUSE_S, LONGEST_PAUSE_S, PAUSE_WHEN_FULL_S = 1.0, 30.0, 8.0
# A connection that does not last this long is a failure: the client must not retry a full bridge every second.
LASTING_S = 10.0
FULL, TRY_AGAIN = 1013, (408, 429)

log = logging.getLogger("updates")
log_connected = partial(log.info, "connected: all updates after %s follow")
log_heartbeat = partial(log.debug, "heartbeat: %s")
log_missed = partial(log.warning, "some updates may be missing: %s")
Callback = Callable[[Any], object]


class Refused(Exception):
    """The bridge refused the client: the query is invalid (400), or the access is forbidden (403)."""


async def receive(socket: ClientConnection, silence_s: float) -> Any:
    """Returns the next message, or None if the connection has ended or no message arrives for `silence_s` seconds."""
    with suppress(ConnectionClosed, TimeoutError):
        async with asyncio.timeout(silence_s):
            return json.loads(await socket.recv())
    return None


async def updates(
    url: str,
    after: str = "",
    on_missed: Callback = log_missed,
    on_connected: Callback = log_connected,
    on_heartbeat: Callback = log_heartbeat,
    silence_s: float = 75.0,
) -> AsyncGenerator[dict[str, Any], None]:
    """Yields the updates after the id `after`. Without an id, yields only new updates.

    `after` is the id of an update, an id that was passed to `on_connected`, or "earliest".

    `on_connected` is called with an id, and all updates after this id follow. `on_missed` is called if some updates are
    lost, with the data of a `gap` or of a `resume` that is not complete. `on_heartbeat` is called with the data of a
    `heartbeat`: an id that the program can store, and whether the bridge has a working broker (`consuming`). A
    connection on which no message arrives for `silence_s` seconds counts as dead, as the bridge sends a heartbeat every
    30 s.
    """
    # The size of messages has no limit: an update above a limit would end every new connection, because the bridge
    # would send it again. The client sends no pings: while the program is slow, the library would not see the pongs. A
    # dead connection does not answer a close frame, so the client waits only 1 s for an answer.
    open_connection = partial(connect, max_size=None, proxy=None, ping_interval=None, close_timeout=1)
    last_id, pause_s, level = after, FIRST_PAUSE_S, logging.WARNING
    while True:
        address = f"{url}{'&' if '?' in url else '?'}after={quote(last_id)}"
        connected_at = float("inf")
        try:
            async with open_connection(address) as socket:
                while message := await receive(socket, silence_s):
                    match message:
                        case {"id": last_id}:
                            yield message
                        case {"type": own_type, "data": data}:
                            # A message without `id` is the bridge's own. If its data has an id, nothing from before
                            # this id will follow.
                            last_id = data.get("id", last_id) if isinstance(data, dict) else last_id
                            if own_type == "resume":
                                connected_at, level = time.monotonic(), logging.WARNING
                                on_connected(last_id)
                            if own_type == "gap" or (own_type == "resume" and not data["complete"]):
                                on_missed(data)
                            if own_type == "heartbeat":
                                on_heartbeat(data)
                reason: object = socket.close_code or f"no message for {silence_s:g} s"
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
