"""Receives the updates of one bridge over any transport, reconnects, and reports what the user should know."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import NoReturn
from urllib.parse import quote, urlsplit

import orjson

from bridge.backoff import Backoff
from bridge.cli.common.endpoint import shown_url
from bridge.cli.follow.transport import (
    FULL,
    Connection,
    Disconnected,
    FollowTiming,
    Say,
    Transport,
    closed,
    with_notice,
)
from bridge.contract.text import printable
from bridge.counts import counted
from bridge.errors import BridgeError, shown_argument

GAPS = {
    "broker-away": "it had no broker",
    "stream-truncated": "the stream dropped events before the bridge had read them",
    "stream-recreated": "the stream was deleted and created again",
}
"""The meanings of the reasons that a `gap` message can have. A newer bridge may send other reasons, which are printed
unchanged."""


class Follower:
    """Receives the updates of one bridge, and reconnects when the connection is lost."""

    def __init__(
        self,
        url: str,
        after: str,
        last: int | None,
        transport: Transport,
        timing: FollowTiming,
        write: Callable[[str, Mapping[str, object]], Awaitable[None]],
        say: Say,
        wait: Say,
    ) -> None:
        """`url` is a result of `endpoint`.

        `after` is the id of the update after which to begin, or an empty text to begin with new updates. `last` is the
        number of updates to begin with, if `after` is empty or unknown to the bridge; None is no limit. `write` is
        called with each update, both as text and parsed. `say` is called with each line for the user. `wait` is called
        with a text that says what the client waits for now, or with an empty text.
        """
        self.last_id = after
        """The newest id from the bridge: everything up to it was written, or does not match the filter.

        Before the first id from the bridge, this is the id that the user has given, or an empty text.
        """
        self._url = url
        self._shown = shown_url(url)
        self._last = last
        self._transport = transport
        self._timing = timing
        self._write = write
        self._say = say
        self._wait = wait
        self._has_any = False
        self._was_connected = False
        self._is_consuming = True
        self._pauses = Backoff(timing.first_pause_s, timing.longest_pause_s)
        self._connected_at: float | None = None
        self._lost_at: float | None = None
        self._why = ""

    async def run(self) -> NoReturn:
        """Receives the updates of the bridge until the task is cancelled.

        Raises Refused if the bridge refuses the request, BridgeError if the server is not a bridge, and the errors of
        `write`.
        """
        while True:
            self._connected_at = None
            self._wait(f"connecting to {self._shown}")
            end, retry_s = await self._follow_once()
            now = time.monotonic()
            if self._connected_at is not None:
                self._lost_at = now
                self._why = ""
                if now - self._connected_at >= self._timing.stable_s:
                    self._pauses.reset()
            if end.why != self._why:
                # A reason is printed only once, even if several attempts in a row fail for the same reason.
                self._why = end.why
                what = "can't connect to" if self._connected_at is None else "disconnected from"
                self._say(f"{what} {self._shown}: {end.why}; trying again")
            self._wait(f"waiting to connect to {self._shown} again")
            pause_s = self._pauses.pause_s(self._timing.pause_when_full_s if end.code == FULL else 0.0)
            await asyncio.sleep(max(pause_s, retry_s))

    async def _follow_once(self) -> tuple[Disconnected, float]:
        """Receives the updates of one connection.

        Returns the end of the connection, and the pause in seconds that the bridge has asked for.
        """
        try:
            connection = await self._transport.open(self._request_url(), was_connected=self._was_connected)
        except Disconnected as end:
            return end, 0.0
        try:
            await self._take_messages(connection)
        except Disconnected as end:
            return end, connection.retry_s
        finally:
            await connection.close()

    def _request_url(self) -> str:
        """Returns the URL with `after` and `last`. With both, `last` counts only if the id in `after` is unknown."""
        separator = "&" if urlsplit(self._url).query else "?"
        last = "" if self._last is None else f"&last={self._last}"
        return f"{self._url}{separator}after={quote(self.last_id, safe='', errors='surrogateescape')}{last}"

    async def _take_messages(self, connection: Connection) -> NoReturn:
        """Raises Disconnected when the connection ends."""
        text = await with_notice(
            connection.receive(),
            self._timing.notice_s,
            lambda: self._say(f"connected to {self._shown}, which does not send updates yet; see its /readyz"),
        )
        message = self._read(text)
        if message["type"] == "close":
            await self._take(text, message)
        self._begin(message)
        while True:
            text = await connection.receive()
            await self._take(text, self._read(text))

    def _read(self, text: str | bytes) -> Mapping[str, object]:
        try:
            message = orjson.loads(text)
        except orjson.JSONDecodeError:
            message = None
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            raise BridgeError(f"{self._shown}: this server is not an edk-bridge: its message is not an update")
        return message

    def _begin(self, message: Mapping[str, object]) -> None:
        match message:
            case {"type": "resume", "data": {"complete": bool(complete), "replayed": int(replayed), "id": str(first)}}:
                pass
            case _:
                raise BridgeError(
                    f"{self._shown}: this server is not an edk-bridge, or can't resume: no `resume` came first"
                )
        now = time.monotonic()
        caught_up = f"; {counted(replayed, 'update')} to catch up" if replayed else ""
        if self._lost_at is None:
            self._say(f"connected to {self._shown}{caught_up}")
        else:
            self._say(f"reconnected after {now - self._lost_at:.1f} s{caught_up}")
        if not complete:
            self._say(f"updates are missing: the bridge no longer has all updates after {shown_argument(self.last_id)}")
        self._connected_at = now
        self._was_connected = True
        self._wait("" if self._has_any else "waiting for the first update")
        # The bridge now sends all updates after the update with this id.
        self.last_id = first

    async def _take(self, text: str | bytes, message: Mapping[str, object]) -> None:
        """Writes an update, or reports a message of the bridge itself. Raises Disconnected after `close`."""
        match message:
            case {"id": str(own)}:
                if not self._has_any:
                    self._has_any = True
                    self._wait("")
                await self._write(text if isinstance(text, str) else text.decode(), message)
                self.last_id = own
                return
            case {"type": "gap", "data": {"since": str(since), "until": str(until), "reason": str(reason)}}:
                why = printable(GAPS.get(reason, reason))
                self._say(
                    "updates may be missing: the bridge may have missed events "
                    f"from {printable(since)} until {printable(until)}: {why}"
                )
            case {"type": "heartbeat", "data": {"consuming": bool(consuming)}} if consuming != self._is_consuming:
                self._is_consuming = consuming
                self._say(
                    "the bridge has its broker again"
                    if consuming
                    else "the bridge has no broker: updates stop until it has one"
                )
            case {"type": "close", "data": {"code": int(code), "reason": str(reason)}}:
                raise closed(code, reason)
        match message:
            # Nothing from before this id follows, also after a message of a type that this version does not know.
            case {"data": {"id": str(own)}}:
                self.last_id = own
