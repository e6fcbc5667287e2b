"""`edk-bridge rejects`: list, requeue and purge, on the command line."""

import asyncio
import re
import shutil
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

import click

from bridge.amqp.nodes import Node
from bridge.amqp.rejects.queue import Reject, RejectQueue, open_reject_queue
from bridge.cli.common.options import effective_settings, failing, setting_options
from bridge.cli.common.output import Output
from bridge.cli.common.progress import Progress
from bridge.cli.common.streams import echo, json_encoding
from bridge.commands import rejects
from bridge.commands.rejects import Choice, Outcome
from bridge.config.settings import Settings
from bridge.contract.pipeline import Reason
from bridge.contract.text import printable
from bridge.errors import BridgeError, ConfigurationError

Answer = TypeVar("Answer")

_REASONS = [reason.value for reason in Reason]
_REASON = click.Option(
    ["--reason"],
    type=click.Choice(_REASONS),
    metavar="REASON",
    help=f"only those with this reason: {', '.join(_REASONS)}",
)
_ALL = click.Option(
    ["--all", "everything"], is_flag=True, help="all events that are in the queue when the command starts"
)
_IDS: click.Parameter = click.Argument(["ids"], nargs=-1, metavar="[ID]...")
_BROKER = ("amqp_url", "reject_exchange")

_CODES = "2 options that can't be used, or no such queue, 3 the broker refuses."


def _on_queue(settings: Settings, work: Callable[[RejectQueue], Awaitable[Answer]]) -> Answer:
    name = settings.reject_exchange
    if name is None:
        raise ConfigurationError(["BRIDGE_REJECT_EXCHANGE: it is off, so that rejected events are not kept anywhere"])

    async def run() -> Answer:
        async with open_reject_queue(tuple(map(Node, settings.amqp_url)), name) as queue:
            try:
                return await work(queue)
            finally:
                if queue.delivery_count:
                    echo(
                        f"{name} is a quorum queue: each reading counts as a delivery (the most by now: "
                        f"{queue.delivery_count + 1}), and what exceeds its delivery limit is dropped: raise that "
                        "limit, or use a classic queue",
                        err=True,
                    )

    return asyncio.run(run())


def _list(limit: int, reason: str | None, in_json: bool, **flags: str | None) -> None:
    width = shutil.get_terminal_size().columns
    on_terminal = sys.stdout is not None and sys.stdout.isatty()

    def shown(reject: Reject) -> str:
        if in_json:
            return rejects.as_json(reject)
        return rejects.as_entry(reject, width) if on_terminal else rejects.as_fields(reject)

    async def work(queue: RejectQueue) -> None:
        count = 0
        # A pager takes no more than a page at a time, and the broker wants to hear from this end all the while.
        encoding = json_encoding(sys.stdout) if in_json else sys.stdout.encoding
        output = Output(sys.stdout.fileno(), encoding=encoding)
        try:
            async for reject in rejects.chosen(queue, Choice(reason)):
                for line in shown(reject).split("\n"):
                    await output.line(line)
                count += 1
                if count == limit:
                    break
        except BrokenPipeError:
            # Nobody reads on.
            return
        except OSError as error:
            raise BridgeError(f"standard output: {error.strerror}") from error
        of = "" if reason is None else f" with the reason {reason}"
        echo(f"{count:,} listed{of}; {queue.count:,} in {queue.name} in all", err=True)

    with failing():
        if sys.stdout is None:
            raise ConfigurationError(["standard output is closed"])
        _on_queue(effective_settings(flags), work)


def _requeue(ids: tuple[str, ...], everything: bool, reason: str | None, **flags: str | None) -> None:
    outcome = Outcome()
    progress = Progress(sys.stderr, lambda: f"{outcome.done:,} requeued, {outcome.kept.total():,} kept")
    choice = Choice(reason, frozenset(ids) or None)

    async def work(queue: RejectQueue) -> None:
        await rejects.requeue(queue, choice, Node(settings.amqp_url[0]).user, outcome, progress.tick)

    with failing():
        _require_selection(ids, everything, reason)
        settings = effective_settings(flags)
        try:
            _on_queue(settings, work)
        except (BridgeError, KeyboardInterrupt):
            if outcome.begun:
                progress.say(f"ended early, with {outcome.done:,} requeued; the others are kept")
            raise
    missing = _missing(ids, outcome, progress.say)
    for why, count in outcome.kept.items():
        progress.say(f"{count:,} kept: {why}")
    progress.say(f"{outcome.done:,} requeued, {outcome.kept.total():,} kept")
    sys.exit(1 if missing or outcome.kept else 0)


def _require_selection(ids: tuple[str, ...], everything: bool, reason: str | None) -> None:
    """Raises ConfigurationError unless the arguments say which events are meant."""
    if "" in ids:
        # It would select each event that has no id.
        raise ConfigurationError(["an id is empty; give ids from `edk-bridge rejects list`"])
    if everything and ids:
        raise ConfigurationError(["ids and --all can't be combined; give one of them"])
    if not (everything or ids or reason):
        raise ConfigurationError(["no events are selected; give ids from `edk-bridge rejects list`, --reason or --all"])


_NUMBER = re.compile("[0-9]{1,7}")
"""What may be the number of an event in the list; the ids of killmails have more digits."""


def _missing(ids: tuple[str, ...], outcome: Outcome, say: Callable[[str], None]) -> bool:
    """Says which of the ids were not there; whether any was not."""
    missing = [each for each in dict.fromkeys(ids) if each not in outcome.seen]
    for each in missing:
        if _NUMBER.fullmatch(each):
            say(f"{each} is no id: the id is the last field of each event in `edk-bridge rejects list`")
        else:
            say(f"not there: {printable(each, 255)}")
    return bool(missing)


def _purge(ids: tuple[str, ...], everything: bool, reason: str | None, yes: bool, **flags: str | None) -> None:
    outcome = Outcome()
    choice = Choice(reason, frozenset(ids) or None)
    agreed: int | None = None
    asked_at: datetime | None = None

    async def count(queue: RejectQueue) -> int:
        return queue.count

    async def work(queue: RejectQueue) -> None:
        if agreed is not None:
            # Nobody has agreed to the removal of what has come since: the newest are beyond this number, unless others
            # were removed meanwhile. Then the time of each tells.
            queue.count = min(queue.count, agreed)
        await rejects.remove(queue, choice, outcome, asked_at)

    with failing():
        _require_selection(ids, everything, reason)
        settings = effective_settings(flags)
        if not yes:
            if sys.stdin is None or not sys.stdin.isatty():
                raise ConfigurationError(
                    ["standard input is not a terminal, so the question can't be answered; pass --yes"]
                )
            agreed, asked_at = _on_queue(settings, count), datetime.now(UTC)
            which = [f"the {len(choice.ids):,} named"] if choice.ids else []
            which += [f"those with the reason {reason}"] if reason else []
            of = f" {', '.join(which)} of" if which else ""
            if not click.confirm(f"Remove{of} {agreed:,} rejected events in {settings.reject_exchange}?", err=True):
                echo("nothing is removed", err=True)
                sys.exit(1)
        try:
            _on_queue(settings, work)
        finally:
            for why, kept in outcome.kept.items():
                echo(f"{kept:,} kept: {why}", err=True)
            if outcome.begun:
                echo(f"{outcome.done:,} removed", err=True)
    sys.exit(1 if _missing(ids, outcome, lambda line: echo(line, err=True)) else 0)


REJECTS = click.Group(
    "rejects",
    short_help="Lists rejected events, publishes them again, or removes them.",
    help="Events that could not become an update: the queue of BRIDGE_REJECT_EXCHANGE, to which the bridge publishes "
    "them with the reason.",
    commands=[
        click.Command(
            "list",
            callback=_list,
            params=[
                click.Option(
                    ["--limit"],
                    type=click.IntRange(1),
                    metavar="N",
                    default=100,
                    show_default=True,
                    help="how many, the oldest first",
                ),
                _REASON,
                click.Option(["--json", "in_json"], is_flag=True, help="NDJSON, with the event itself as `body`"),
                *setting_options(*_BROKER),
            ],
            short_help="Lists them, and says what is wrong with each.",
            help="Lists rejected events, the oldest first: number, time, reason, type, size, exchange, what is wrong, "
            "and the id by which to name it. In a pipe each is one line, its fields separated by tabulators: number, "
            "time, type, reason, pointer, detail, exchange, size, id.\n\nNothing is removed. While it runs, those that "
            "it has read are out of the queue's sight for others; after it, they are in their old place.",
            epilog=f"Exit codes: 0 they are listed, or nobody reads on, 1 the broker can't be reached, {_CODES}",
        ),
        click.Command(
            "requeue",
            callback=_requeue,
            params=[
                _IDS,
                _ALL,
                _REASON,
                *setting_options(*_BROKER),
            ],
            short_help="Publishes them again to where they came from.",
            help="Publishes rejected events again to the exchange that each came from, after whatever was wrong is "
            "mended (a schema, a limit): body and properties as they came. Each is removed from the rejects once the "
            "broker has confirmed it; one that nobody's queue has got is kept.\n\nThe exchange gives it to everyone "
            "who is bound to it, as when it was new: to every bridge, and to every other consumer, which may have had "
            "it already. A bridge sends an update whose identity it remembers once. What is still invalid is rejected "
            "again, as a new reject.",
            epilog="Exit codes: 0 all are requeued, 1 some are kept or not there, or the broker can't be reached, "
            f"{_CODES}",
        ),
        click.Command(
            "purge",
            callback=_purge,
            params=[
                _IDS,
                _ALL,
                _REASON,
                click.Option(["--yes"], is_flag=True, help="without asking"),
                *setting_options(*_BROKER),
            ],
            short_help="Removes them for good.",
            help="Removes rejected events for good: those with these ids, those with a reason, or all. "
            "It asks first, and removes none that came after the question.",
            epilog="Exit codes: 0 they are removed, 1 the answer was no, some are not there, or the broker can't be "
            f"reached, {_CODES}",
        ),
    ],
)
