"""`edk-bridge tail`: prints the updates that a bridge sends, and reconnects when the connection is lost.

The command uses only functions of the bridge that every other client can use too.
"""

import asyncio
import errno
import shlex
import shutil
import signal
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import NoReturn
from urllib.parse import quote, urlsplit

import click
import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus, InvalidURI

from bridge import queued_output
from bridge.backoff import Backoff
from bridge.cli.common.endpoint import endpoint, shown_url, tls_context
from bridge.cli.common.errors import exit_on_error
from bridge.cli.common.options import complete_type, exit_codes
from bridge.cli.common.output import Output, echo, json_encoding
from bridge.cli.common.progress import Spinner
from bridge.cli.common.update_line import as_line
from bridge.contract.text import printable
from bridge.counts import counted
from bridge.errors import BridgeError, ConfigurationError, shown_argument
from bridge.terminal import takes_color

DEFAULT_URL = "ws://localhost:3000/updates"

COLORS = ("auto", "always", "never")

FORMATS = ("auto", "line", "json")


@click.command(
    short_help="Prints updates as they arrive.",
    epilog=exit_codes(
        _0="The reader of the output has closed it.",
        _1="Another error.",
        _2="Options can't be used, or the bridge refuses the request.",
        _130="Ctrl-C.",
        _143="SIGTERM.",
    ),
)
@click.argument("url", default=DEFAULT_URL)
@click.option(
    "--type",
    "types",
    multiple=True,
    metavar="TYPE",
    shell_complete=complete_type,
    help="Only updates of this type. Can be repeated.",
)
@click.option(
    "--where",
    multiple=True,
    metavar="MEMBER=VALUE",
    help="Only updates whose data has this value. Can be repeated: each member must have one of its values.",
)
@click.option("--after", metavar="ID", default="", help="Begin after the update with this id. Without it: from now on.")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(FORMATS),
    default="auto",
    show_default=True,
    help="line: a short line for a person. json: the update as the bridge sends it. auto: line on a terminal, "
    "otherwise json.",
)
@click.option(
    "--color",
    type=click.Choice(COLORS),
    default="auto",
    show_default=True,
    help="auto: on a terminal, unless NO_COLOR is set or TERM is dumb.",
)
@click.option("--cafile", metavar="FILE", help="For wss://, trust the authorities in this file (PEM).")
def tail(
    url: str,
    types: tuple[str, ...],
    where: tuple[str, ...],
    after: str,
    output_format: str,
    color: str,
    cafile: str | None,
) -> None:
    """Prints updates as they arrive.

    If the connection is lost, the command reconnects, and then prints the updates that it has missed. Messages on
    standard error say when the connection is lost, and where updates are missing.

    On a terminal, a line shows the time (UTC) at which the bridge sent the update, the type of the update, and the most
    important data. For a killmail, the line shows the type of the ship, the system, the number of attackers and the id
    of the killmail. In a pipe, a line is the update as JSON, with the members type, data, timestamp and id.

    URL is the endpoint of the bridge. Without URL, the command uses ws://localhost:3000/updates.
    """
    with exit_on_error():
        asked = endpoint(url, types, where)
        in_color = takes_color(sys.stdout) if color == "auto" else color == "always"
        on_terminal = sys.stdout is not None and sys.stdout.isatty()
        as_lines = on_terminal if output_format == "auto" else output_format == "line"
        run(asked, after, tls_context(asked, cafile), as_lines=as_lines, in_color=in_color)


FIRST_PAUSE_S, LONGEST_PAUSE_S, PAUSE_WHEN_FULL_S = 1.0, 30.0, 8.0
"""The pauses before the client connects again. The contract prescribes these pauses for every client."""

STABLE_S = 10.0
"""A connection that ends within this time counts as failed.

Otherwise, the client would reconnect to a full bridge every second.
"""

HANDSHAKE_TIMEOUT_S, PING_S, CLOSE_TIMEOUT_S = 10.0, 20.0, 1.0
"""PING_S is the interval between pings, and also the time in which each ping must be answered."""

SILENCE_S = 2.0
"""The time after which the command reports that the bridge has sent nothing.

The bridge may still be reading its history, or may have no connection to the broker.
"""

TRANSIENT = frozenset({408, 429})
"""The HTTP statuses from 400 to 499 after which the same request may succeed later."""

TRANSIENT_LATER = frozenset({401, 403, 404})
"""The HTTP statuses after which a request may succeed later, if the client was connected before.

An operator may be in the middle of changing a proxy or the allowed networks.
"""

REASONS = {
    1001: "the bridge is stopping",
    1006: "the connection was cut",
    1011: "the bridge had an error",
    1013: "the bridge is full",
    4008: "the reader of the output was too slow for the bridge",
    4009: "the bridge received nothing from this client",
}

GAPS = {
    "broker-away": "it had no broker",
    "stream-truncated": "the stream dropped events before the bridge had read them",
    "stream-recreated": "the stream was deleted and created again",
}
"""The meanings of the reasons that a `gap` message can have. A newer bridge may send other reasons, which are printed
unchanged."""


class Refused(BridgeError):
    """The bridge refuses the request permanently. The error's text has the reason that the bridge gives."""

    exit_code = 2


class Tail:
    """Receives the updates of one bridge, and reconnects when the connection is lost."""

    def __init__(
        self,
        url: str,
        after: str,
        tls: ssl.SSLContext | None,
        write: Callable[[str, Mapping[str, object]], Awaitable[None]],
        say: Callable[[str], None],
        wait: Callable[[str], None],
    ) -> None:
        """`url` is a result of `endpoint`.

        `after` is the id of the update after which to begin, or an empty text to begin with new updates. `write` is
        called with each update, both as text and parsed. `say` is called with each line for the user. `wait` is called
        with a text that says what the client waits for now, or with an empty text.
        """
        self.last_id = after
        """The id of the newest update that was written.

        Before the first update, this is the id that the user has given, or an empty text.
        """
        self._url = url
        self._shown = shown_url(url)
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
        """Receives the updates of the bridge until the task is cancelled.

        Raises Refused if the bridge refuses the request, BridgeError if the server is not a bridge, and the errors of
        `write`.
        """
        while True:
            self._connected_at = None
            self._wait(f"connecting to {self._shown}")
            why = await self._connection()
            now = time.monotonic()
            if self._connected_at is not None:
                self._lost_at = now
                self._why = ""
                if now - self._connected_at >= STABLE_S:
                    self._pauses.reset()
            if why != self._why:
                # A reason is printed only once, even if several attempts in a row fail for the same reason.
                self._why = why
                what = "can't connect to" if self._connected_at is None else "disconnected from"
                self._say(f"{what} {self._shown}: {why}; trying again")
            self._wait(f"waiting to connect to {self._shown} again")
            await asyncio.sleep(self._pauses.pause_s(PAUSE_WHEN_FULL_S if why == REASONS[1013] else 0.0))

    async def _connection(self) -> str:
        """Receives the updates of one connection. Returns the reason why the connection ended."""
        separator = "&" if urlsplit(self._url).query else "?"
        try:
            socket = await connect(
                f"{self._url}{separator}after={quote(self.last_id, safe='', errors='surrogateescape')}",
                ssl=self._tls,
                # The client ignores environment variables that name a proxy, because a bridge has an internal address.
                proxy=None,
                compression=None,
                # The library queues one message at a time, of any size. With a size limit, a message that is too large
                # would end the connection, and then each new connection too.
                max_queue=1,
                max_size=None,
                open_timeout=HANDSHAKE_TIMEOUT_S,
                ping_interval=PING_S,
                ping_timeout=PING_S,
                close_timeout=CLOSE_TIMEOUT_S,
            )
        except InvalidStatus as error:
            return self._refusal(error.response.status_code, bytes(error.response.body or b""))
        except ssl.SSLCertVerificationError as error:
            raise ConfigurationError(
                [f"{self._shown}: the certificate can't be trusted: {printable(error.verify_message)}; see --cafile"]
            ) from error
        except InvalidURI:
            return "it redirects to an address that is not a WebSocket URL"
        except (OSError, InvalidHandshake) as error:
            if not self._was_connected:
                await self._refuse_wrong_scheme(error)
            return _error_text(error)
        try:
            return await self._messages(socket)
        finally:
            await socket.close()

    async def _refuse_wrong_scheme(self, error: Exception) -> None:
        """Raises Refused if the first request failed because only the client or only the bridge uses TLS."""
        if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
            raise Refused(f"{self._shown}: the bridge does not use TLS: use ws://") from error
        if isinstance(error, InvalidMessage) and self._tls is None and await _speaks_tls(self._url):
            raise Refused(f"{self._shown}: the bridge uses TLS: use wss://") from error

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
            await asyncio.wait([receiving], timeout=SILENCE_S)
            if not receiving.done():
                self._say(f"connected to {self._shown}, which does not send updates yet; see its /readyz")
            return await receiving
        finally:
            receiving.cancel()

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
        match message:
            case {"id": str(own)}:
                if not self._has_any:
                    self._has_any = True
                    self._wait("")
                await self._write(text if isinstance(text, str) else text.decode(), message)
                self.last_id = own
            case {"type": "gap", "data": {"since": str(since), "until": str(until), "reason": str(reason)}}:
                why = printable(GAPS.get(reason, reason))
                self._say(
                    "updates may be missing: the bridge may have missed events "
                    f"from {printable(since)} until {printable(until)}: {why}"
                )

    def _refusal(self, status: int, body: bytes) -> str:
        text = printable(body.decode(errors="replace").strip()) or "no reason given"
        if status == 200:
            raise Refused(f"{self._shown} is a page and not the WebSocket endpoint, whose default path is /updates")
        is_transient = status in TRANSIENT or (self._was_connected and status in TRANSIENT_LATER)
        if 400 <= status < 500 and not is_transient:
            raise Refused(f"{self._shown} refuses ({status}): {text}")
        return f"it answers {status}: {text}"


def run(url: str, after: str, tls: ssl.SSLContext | None, *, as_lines: bool, in_color: bool) -> None:
    """Prints updates until the reader of standard output has ended. `url`, `after` and `tls` are as in `Tail`.

    Raises BridgeError, and also SystemExit after SIGINT and SIGTERM.
    """
    # A program can be started without standard output.
    if sys.stdout is None:
        raise ConfigurationError(["standard output is closed"])
    descriptor = sys.stdout.fileno()
    encoding = sys.stdout.encoding if as_lines else json_encoding(sys.stdout)
    # On a terminal, lines are cut at its width. In a pipe, a line can have any length.
    cut = sys.stdout.isatty()
    queued_output.install("stderr", _report_dropped, queued_output.IN_ORDER_S)
    ended_by: list[int] = []

    async def main() -> None:
        output = Output(descriptor, in_color, encoding)
        spinner = Spinner(sys.stderr)

        async def write(text: str, message: Mapping[str, object]) -> None:
            if as_lines:
                width = shutil.get_terminal_size().columns if cut else None
                await output.styled_line(as_line(message, width, in_color=in_color, text=text))
            else:
                await output.line(text)

        def stop(number: int) -> None:
            ended_by.append(number)
            following.cancel()

        tail = Tail(url, after, tls, write, spinner.say, spinner.wait)
        following = asyncio.ensure_future(_follow(tail, output.abandoned()))
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop, number)
        try:
            await following
        except asyncio.CancelledError:
            # The hint is printed only for a printable id, because a user can't pass an escaped id to --after. A bridge
            # sends only printable ids.
            if tail.last_id and tail.last_id == shown_argument(tail.last_id):
                spinner.say(f"to continue from here: --after {shlex.quote(tail.last_id)}")
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
        sys.exit(128 + ended_by[0])


def _report_dropped(lines: int) -> None:
    echo(f"{counted(lines, 'line')} dropped: standard error could not be written", err=True)


async def _follow(tail: Tail, abandoned: Awaitable[None]) -> None:
    """Runs the tail until `abandoned` returns. Raises the errors of `Tail.run`."""
    tasks = asyncio.ensure_future(tail.run()), asyncio.ensure_future(abandoned)
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _speaks_tls(url: str) -> bool:
    """Returns whether the server answers a TLS handshake, although its URL begins with ws://.

    Sends no data except the handshake.
    """
    parts = urlsplit(url)
    try:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            _, writer = await asyncio.open_connection(
                parts.hostname, parts.port or 80, ssl=ssl.create_default_context()
            )
    except ssl.SSLCertVerificationError:
        return True
    except OSError:
        return False
    writer.close()
    return True


def _error_text(error: Exception) -> str:
    """Returns the reason why there is no connection.

    If a host has several addresses, asyncio joins the errors of all attempts.
    """
    if isinstance(error, TimeoutError):
        return f"no answer within {HANDSHAKE_TIMEOUT_S:g} s"
    if f"[Errno {errno.ECONNREFUSED}]" in str(error):
        return "no program listens there"
    return shown_argument(str(error)) or type(error).__name__
