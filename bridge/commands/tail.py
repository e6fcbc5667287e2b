"""`edk-bridge tail`: what a bridge sends, an update at a time, whatever becomes of the connection.

A client like any other: it knows of a bridge what every client is told, and must never know how one serves.
"""

import asyncio
import errno
import signal
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn
from urllib.parse import quote, urlsplit

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from bridge import queued_output
from bridge.backoff import Backoff
from bridge.cli.common.output import Output
from bridge.cli.common.spinner import Spinner
from bridge.cli.common.streams import echo, json_encoding
from bridge.contract.text import printable
from bridge.errors import BridgeError, ConfigurationError

FIRST_PAUSE_S, LONGEST_PAUSE_S, PAUSE_WHEN_FULL_S = 1.0, 30.0, 8.0
"""As every client is asked to."""

LASTING_S = 10.0
"""A connection that ends sooner did not work: without this, a bridge that is full would be asked every second."""

OPEN_S, PING_S, CLOSE_S = 10.0, 20.0, 1.0
"""For a handshake; between pings, and for the answer to one; for the goodbye."""

PATIENCE_S = 2.0
"""For a bridge that takes the connection, and then says nothing: it reads its history, or has no broker yet."""

TRY_AGAIN = frozenset({408, 429})
"""Of the statuses that blame the client, those that another try may not get."""

MENDED_LATER = frozenset({401, 403, 404})
"""Those that somebody who was let in before is told while a proxy or the networks that may connect are changed."""

TERMINATED = 128 + signal.SIGTERM
"""The exit code after SIGTERM, as shells have it."""

REASONS = {
    1001: "the bridge is stopping",
    1006: "the connection was cut",
    1011: "the bridge had an error",
    1013: "the bridge is full",
    4008: "what reads the output was too slow for the bridge",
    4009: "the bridge heard nothing from here",
}

GAPS = {
    "broker-away": "it had no broker",
    "stream-truncated": "the stream dropped events before they were read",
    "stream-recreated": "the stream was deleted and made again",
}
"""What a gap's reasons mean. Another one, of a newer bridge, is said as it is."""


class Refused(BridgeError):
    """The bridge does not take the request: what it asks for, or who asks. Holds the bridge's own sentence."""

    exit_code = 2


class Tail:
    """Follows one bridge."""

    def __init__(
        self,
        url: str,
        after: str,
        tls: ssl.SSLContext | None,
        write: Callable[[str], Awaitable[None]],
        say: Callable[[str], None],
        wait: Callable[[str], None],
    ) -> None:
        """`url` is an `endpoint`, `after` an id or empty: from now on. Each update goes to `write` as it came, whatever
        else is worth a sentence to `say`; `wait` is told what is waited for at the moment, empty: nothing.
        """
        self.last_id = after
        """That of the newest update that is written, or of the one after which it began."""
        self._url = url
        parts = urlsplit(url)
        self._shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self._tls = tls
        self._write = write
        self._say = say
        self._wait = wait
        self._has_any = False
        self._was_connected = False
        self._pauses = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        self._connected_at: float | None = None
        self._lost_at: float | None = None
        self._why = ""

    async def run(self) -> NoReturn:
        """Goes on until it is cancelled. Raises Refused, BridgeError where nobody speaks as a bridge does, and whatever
        `write` raises."""
        while True:
            self._connected_at = None
            self._wait(f"connecting to {self._shown}")
            why = await self._connection()
            now = time.monotonic()
            if self._connected_at is not None:
                self._lost_at = now
                self._why = ""
                if now - self._connected_at >= LASTING_S:
                    self._pauses.reset()
            if why != self._why:
                # Once, and not for each attempt that fails alike.
                self._why = why
                what = "can't connect to" if self._connected_at is None else "disconnected from"
                self._say(f"{what} {self._shown}: {why}; trying again")
            self._wait(f"waiting to connect to {self._shown} again")
            await asyncio.sleep(self._pauses.pause_s(PAUSE_WHEN_FULL_S if why == REASONS[1013] else 0.0))

    async def _connection(self) -> str:
        """Follows one connection, and says why it has ended."""
        separator = "&" if urlsplit(self._url).query else "?"
        try:
            socket = await connect(
                f"{self._url}{separator}after={quote(self.last_id, safe='')}",
                ssl=self._tls,
                # A bridge is on an internal address.
                proxy=None,
                compression=None,
                # One at a time, of any size: one that is too large would come again with every connection.
                max_queue=1,
                max_size=None,
                open_timeout=OPEN_S,
                ping_interval=PING_S,
                ping_timeout=PING_S,
                close_timeout=CLOSE_S,
            )
        except InvalidStatus as error:
            return self._refusal(error.response.status_code, bytes(error.response.body or b""))
        except ssl.SSLCertVerificationError as error:
            raise ConfigurationError(
                [f"{self._shown}: its certificate can't be trusted: {error.verify_message} (see --cafile)"]
            ) from error
        except (OSError, InvalidHandshake) as error:
            return _words(error)
        try:
            return await self._messages(socket)
        finally:
            await socket.close()

    async def _messages(self, socket: ClientConnection) -> str:
        try:
            self._begin(self._read(await self._first(socket)))
            while True:
                text = await socket.recv()
                await self._take(text, self._read(text))
        except ConnectionClosed as closed:
            if closed.rcvd is None:
                return "a ping was not answered" if closed.sent is not None else REASONS[1006]
            return REASONS.get(closed.rcvd.code) or f"code {closed.rcvd.code} {printable(closed.rcvd.reason)}".rstrip()

    async def _first(self, socket: ClientConnection) -> str | bytes:
        receiving = asyncio.ensure_future(socket.recv())
        try:
            await asyncio.wait([receiving], timeout=PATIENCE_S)
            if not receiving.done():
                self._say(f"connected to {self._shown}, which can't say yet what follows; its /readyz may say why")
            return await receiving
        finally:
            receiving.cancel()

    def _read(self, text: str | bytes) -> Mapping[str, Any]:
        try:
            message = orjson.loads(text)
        except orjson.JSONDecodeError:
            message = None
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            raise BridgeError(f"{self._shown}: is no edk-bridge: what it sends is no update")
        return message

    def _begin(self, message: Mapping[str, Any]) -> None:
        match message:
            case {"type": "resume", "data": {"complete": bool(complete), "replayed": int(replayed), "id": str(first)}}:
                pass
            case _:
                raise BridgeError(
                    f"{self._shown}: is no edk-bridge, or one that can't resume: it does not say where it begins"
                )
        now = time.monotonic()
        caught_up = f"; updates to catch up with: {replayed:,}" if replayed else ""
        if self._lost_at is None:
            self._say(f"connected to {self._shown}{caught_up}")
        else:
            self._say(f"connected again after {now - self._lost_at:.1f} s{caught_up}")
        if not complete:
            self._say(f"updates are missing: the bridge does not have all that came after {self.last_id}")
        self._connected_at = now
        self._was_connected = True
        self._wait("" if self._has_any else "waiting for the first update")
        # All that comes after this one follows.
        self.last_id = first

    async def _take(self, text: str | bytes, message: Mapping[str, Any]) -> None:
        match message:
            case {"id": str(own)}:
                if not self._has_any:
                    self._has_any = True
                    self._wait("")
                await self._write(text if isinstance(text, str) else text.decode())
                self.last_id = own
            case {"type": "gap", "data": {"since": str(since), "until": str(until), "reason": str(reason)}}:
                words = (printable(word) for word in (since, until, GAPS.get(reason, reason)))
                self._say(
                    "updates may be missing: the bridge may have missed events from {} until {}: {}".format(*words)
                )

    def _refusal(self, status: int, body: bytes) -> str:
        sentence = printable(body.decode(errors="replace").strip()) or "without a word"
        if status == 200:
            raise Refused(f"{self._shown} is a page and no WebSocket endpoint, which is /updates, unless set otherwise")
        passing = status in TRY_AGAIN or (self._was_connected and status in MENDED_LATER)
        if 400 <= status < 500 and not passing:
            raise Refused(f"{self._shown} refuses ({status}): {sentence}")
        return f"it answers {status}: {sentence}"


def run(url: str, after: str, tls: ssl.SSLContext | None, in_color: bool) -> None:
    """Prints to standard output until nobody reads that any more. Raises BridgeError, and what ends the program after
    Ctrl-C and SIGTERM: KeyboardInterrupt and SystemExit.

    The arguments are those of a Tail.
    """
    # Not by its name alone: a program that is started without one has none.
    if sys.stdout is None:
        raise ConfigurationError(["standard output is closed"])
    descriptor, encoding = sys.stdout.fileno(), json_encoding(sys.stdout)
    queued_output.install("stderr", _report_dropped, queued_output.IN_ORDER_S)

    async def main() -> None:
        output = Output(descriptor, in_color, encoding)
        spinner = Spinner(sys.stderr)
        tail = Tail(url, after, tls, output.line, spinner.say, spinner.wait)
        following = asyncio.ensure_future(_follow(tail, output.abandoned()))
        # Ctrl-C cancels too.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, following.cancel)
        try:
            await following
        except asyncio.CancelledError:
            if tail.last_id:
                spinner.say(f"to go on from here: --after {tail.last_id}")
            raise
        finally:
            spinner.close()

    try:
        asyncio.run(main())
    except BrokenPipeError:
        return
    except OSError as error:
        raise BridgeError(f"standard output: {error.strerror}") from error
    except asyncio.CancelledError:
        sys.exit(TERMINATED)


def _report_dropped(lines: int) -> None:
    echo(f"{lines:,} lines dropped: nothing read them, or they could not be written", err=True)


async def _follow(tail: Tail, abandoned: Awaitable[None]) -> None:
    """Follows until `abandoned` returns. Raises what the tail raises."""
    tasks = asyncio.ensure_future(tail.run()), asyncio.ensure_future(abandoned)
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _words(error: Exception) -> str:
    """Why there is no connection. Of a name with several addresses, asyncio's error has a line for each."""
    if isinstance(error, TimeoutError):
        return f"no answer within {OPEN_S:g} s"
    if f"[Errno {errno.ECONNREFUSED}]" in str(error):
        return "nobody listens there"
    return printable(str(error)) or type(error).__name__
