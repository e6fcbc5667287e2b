"""`edk-bridge tail`: prints the updates that a bridge sends, and reconnects when the connection is lost.

The command uses only functions of the bridge that every other client can use too.
"""

import asyncio
import shlex
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping

import click

from bridge import queued_output
from bridge.cli.common.endpoint import endpoint, tls_context
from bridge.cli.common.errors import exit_on_error
from bridge.cli.common.options import complete_type, exit_codes
from bridge.cli.common.output import Output, echo, json_encoding
from bridge.cli.common.progress import Spinner
from bridge.cli.common.update_line import as_line
from bridge.cli.follow import transport
from bridge.cli.follow.event_stream import EventStreamTransport
from bridge.cli.follow.follower import Follower
from bridge.cli.follow.transport import Say, Transport
from bridge.cli.follow.websocket import WebSocketTransport
from bridge.counts import counted
from bridge.errors import BridgeError, ConfigurationError, shown_argument
from bridge.terminal import takes_color

DEFAULT_URL = "ws://localhost:3000/updates"

COLORS = ("auto", "always", "never")

FORMATS = ("auto", "line", "json")

EARLIEST = "earliest"
"""The value of --after with which the bridge sends everything that it keeps."""

MAX_LAST = 1000
"""The limit of the parameter `last` in the contract."""

TIMING = transport.DEFAULT
"""The timeouts and pauses. Tests replace them."""


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
@click.option(
    "--after",
    metavar="ID",
    default="",
    help="Begin after the update with this id. `earliest`: with all that the bridge keeps. Without it: from now on.",
)
@click.option(
    "--last",
    metavar="N",
    type=click.IntRange(1, MAX_LAST),
    help=f"Begin with the newest N updates (1 to {MAX_LAST}). With --after: only if the bridge does not know the id.",
)
@click.option(
    "--sse",
    is_flag=True,
    help="Use Server-Sent Events instead of WebSocket, and report what proxies do to the response.",
)
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
@click.option("--cafile", metavar="FILE", help="For wss:// and https://, trust the authorities in this file (PEM).")
def tail(
    url: str,
    types: tuple[str, ...],
    where: tuple[str, ...],
    after: str,
    last: int | None,
    sse: bool,
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

    With --sse, the output is the same. Messages on standard error show the headers of proxies, and report a response
    that a proxy holds back.

    URL is the endpoint of the bridge. Without URL, the command uses ws://localhost:3000/updates. With --sse, the URL
    may also begin with http:// or https://.
    """
    with exit_on_error():
        asked = endpoint(url, types, where, sse=sse)
        if after == EARLIEST and last is not None:
            raise ConfigurationError(["--last: can't be combined with --after earliest; give one of them"])
        in_color = takes_color(sys.stdout) if color == "auto" else color == "always"
        on_terminal = sys.stdout is not None and sys.stdout.isatty()
        as_lines = on_terminal if output_format == "auto" else output_format == "line"
        tls = tls_context(asked, cafile)

        def follower(write: Write, say: Say, wait: Say) -> Follower:
            way: Transport = EventStreamTransport(tls, TIMING, say) if sse else WebSocketTransport(tls, TIMING)
            return Follower(asked, after, last, way, TIMING, write, say, wait)

        run(follower, as_lines=as_lines, in_color=in_color)


Write = Callable[[str, Mapping[str, object]], Awaitable[None]]
"""Writes an update, both as text and parsed."""


def run(build: Callable[[Write, Say, Say], Follower], *, as_lines: bool, in_color: bool) -> None:
    """Prints updates until the reader of standard output has ended.

    `build` makes the follower from its functions `write`, `say` and `wait`. Raises BridgeError, and also SystemExit
    after SIGINT and SIGTERM.
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

        follower = build(write, spinner.say, spinner.wait)
        following = asyncio.ensure_future(_follow(follower, output.abandoned()))
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop, number)
        try:
            await following
        except asyncio.CancelledError:
            # The hint is printed only for a printable id, because a user can't pass an escaped id to --after. A bridge
            # sends only printable ids.
            if follower.last_id and follower.last_id == shown_argument(follower.last_id):
                spinner.say(f"to continue from here: --after {shlex.quote(follower.last_id)}")
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


async def _follow(follower: Follower, abandoned: Awaitable[None]) -> None:
    """Runs the follower until `abandoned` returns. Raises the errors of `Follower.run`."""
    tasks = asyncio.ensure_future(follower.run()), asyncio.ensure_future(abandoned)
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
