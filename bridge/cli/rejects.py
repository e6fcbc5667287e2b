"""`edk-bridge rejects`: lists rejected events, publishes rejected events again, or removes them.

Each command reads all events that are in the queue when the command starts, each event once. Until the command ends, it
holds the events that are not selected. When the command ends, these events return to their places, so the order of the
queue stays the same.
"""

import asyncio
import re
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

import click
import orjson

from bridge.amqp.nodes import Node
from bridge.amqp.rejects.queue import Reject, RejectQueue, open_reject_queue
from bridge.amqp.rejects.requeue import MAX_IN_FLIGHT, NotRequeued, Requeuer
from bridge.cli.common.columns import truncated
from bridge.cli.common.errors import broker_setting_named, exit_on_error
from bridge.cli.common.options import effective_settings, exit_codes, setting_options
from bridge.cli.common.output import Output, echo, json_encoding
from bridge.cli.common.progress import Progress
from bridge.config.settings import Settings
from bridge.contract.pipeline import Reason
from bridge.contract.text import printable
from bridge.counts import counted
from bridge.errors import BridgeError, ConfigurationError, shown_argument
from bridge.interrupts import raise_on_interrupt

Answer = TypeVar("Answer")
Callback = TypeVar("Callback", bound=Callable[..., object])

REASONS = [reason.value for reason in Reason]

CODES = {
    "_2": "Options or settings can't be used, or there is no such queue.",
    "_3": "The broker refuses: password, virtual host or permission.",
    "_130": "Ctrl-C.",
}
"""The exit codes that all subcommands of `rejects` have in common."""

reason_option = click.option(
    "--reason",
    type=click.Choice(REASONS),
    metavar="REASON",
    help=f"Only events with this reason: {', '.join(REASONS)}.",
)

broker_options = setting_options("amqp_url", "reject_exchange")


def selection_options(command: Callback) -> Callback:
    """Adds an argument for ids and the options `--all` and `--reason` to a command."""
    everything = click.option(
        "--all", "everything", is_flag=True, help="All events that are in the queue when the command starts."
    )
    return click.argument("ids", nargs=-1, metavar="[ID]...")(everything(reason_option(command)))


@click.group(short_help="Lists, requeues or removes rejected events.")
def rejects() -> None:
    """Handles rejected events: events that could not become an update. The bridge publishes rejected events to the
    exchange BRIDGE_REJECT_EXCHANGE, whose queue has the same name.
    """


@rejects.command(
    "list",
    short_help="Lists rejected events and their problems.",
    epilog=exit_codes(
        _0="The events are listed, or the reader of the output has closed it.",
        _1="The broker can't be reached.",
        **CODES,
    ),
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    metavar="N",
    default=100,
    show_default=True,
    help="How many events to list, the oldest first.",
)
@reason_option
@click.option("--json", "in_json", is_flag=True, help="Print a JSON object for each event (NDJSON), with its `body`.")
@broker_options
def list_(limit: int, reason: str | None, in_json: bool, **flags: str | None) -> None:
    """Lists rejected events, the oldest first, with their problems. The list shows the id of each killmail, or the
    start of any other event. The last line of an event is the id for `requeue` and `purge`.

    In a pipe, each event is one line. Tabs separate the fields of an event: number, time, type, reason, pointer,
    detail, exchange, size, content, id.

    The command removes no event. While the command runs, other consumers of the queue don't see the events that it has
    read.
    """
    width = shutil.get_terminal_size().columns
    on_terminal = sys.stdout is not None and sys.stdout.isatty()

    def shown(reject: Reject) -> str:
        if in_json:
            return as_json(reject)
        return as_entry(reject, width, settings.exchanges) if on_terminal else as_fields(reject)

    async def work(queue: RejectQueue) -> None:
        count = 0
        last_id = ""
        # A pager reads one page at a time. Even while the pager does not read, the event loop must serve the connection
        # to the broker.
        encoding = json_encoding(sys.stdout) if in_json else sys.stdout.encoding
        output = Output(sys.stdout.fileno(), encoding=encoding)
        try:
            async for reject in selected(queue, Selection(reason)):
                for line in shown(reject).split("\n"):
                    await output.line(line)
                count += 1
                if _is_printed_unchanged(reject.id):
                    last_id = reject.id
                if count == limit:
                    break
        except BrokenPipeError:
            # The program that reads the output has ended.
            return
        except OSError as error:
            raise BridgeError(f"standard output: {error.strerror}") from error
        of = "" if reason is None else f" with the reason {reason}"
        echo(f"{counted(count, 'event')}{of} listed; {queue.name} has {queue.count:,}", err=True)
        if count:
            echo(_requeue_hint(last_id, reason), err=True)

    with exit_on_error(), broker_setting_named():
        if sys.stdout is None:
            raise ConfigurationError(["standard output is closed"])
        settings = effective_settings(flags)
        _on_queue(settings, work)


def _is_printed_unchanged(text: str) -> bool:
    """Returns whether standard error can show the text without escapes, so that a user can copy the text."""
    encoding = None if sys.stderr is None else sys.stderr.encoding
    try:
        return text.isprintable() and bool(text.encode(encoding or "utf-8"))
    except UnicodeEncodeError:
        return False


def _requeue_hint(event_id: str, reason: str | None) -> str:
    """Returns a hint with a `requeue` command that a shell can run. `event_id` is empty if no id can be copied."""
    if event_id:
        # The `--` is needed because an id may begin with a hyphen.
        return f"to publish an event again: edk-bridge rejects requeue -- {shlex.quote(event_id)}"
    selected_by = "--all" if reason is None else f"--reason {reason}"
    return f"to publish the events again: edk-bridge rejects requeue {selected_by}"


@rejects.command(
    short_help="Publishes rejected events again.",
    epilog=exit_codes(
        _0="All selected events are requeued.",
        _1="Some events are kept or not in the queue,\nor the broker can't be reached.",
        **CODES,
    ),
)
@selection_options
@broker_options
def requeue(ids: tuple[str, ...], everything: bool, reason: str | None, **flags: str | None) -> None:
    """Publishes each rejected event again, with unchanged body and properties, to the exchange that the event came
    from. Use this command after you have fixed the cause, such as a schema or a limit, and restarted the bridge. The
    command removes an event from the rejects when the broker has confirmed the event. An event that reaches no queue
    stays in the rejects.

    Every queue bound to the exchange gets the event again, including the queues of other consumers. A bridge does not
    send an update again if it remembers the update's identity. The bridge rejects an event again if it is still
    invalid.
    """
    outcome = Outcome()
    progress = Progress(sys.stderr, lambda: _requeued(outcome))
    selection = Selection(reason, frozenset(ids) or None)

    async def work(queue: RejectQueue) -> None:
        user = Node(settings.amqp_url[0]).user
        await requeue_selected(queue, selection, user, outcome, progress.tick)

    with exit_on_error(), broker_setting_named():
        _require_selection(ids, everything, reason)
        settings = effective_settings(flags)
        try:
            _on_queue(settings, work)
        except (BridgeError, KeyboardInterrupt):
            if outcome.begun:
                progress.say(f"ended early, with {counted(outcome.done, 'event')} requeued; the others are kept")
            raise
    missing = _report_missing(ids, outcome, progress.say)
    for why, count in outcome.kept.items():
        progress.say(f"{count:,} kept: {why}")
    progress.say(_requeued(outcome))
    sys.exit(1 if missing or outcome.kept else 0)


def _requeued(outcome: "Outcome") -> str:
    return f"{counted(outcome.done, 'event')} requeued, {outcome.kept.total():,} kept"


@rejects.command(
    short_help="Removes rejected events permanently.",
    epilog=exit_codes(
        _0="All selected events are removed.",
        _1="The answer was no, some events are not in the queue,\nor the broker can't be reached.",
        **CODES,
    ),
)
@selection_options
@click.option("--yes", is_flag=True, help="Don't ask.")
@broker_options
def purge(ids: tuple[str, ...], everything: bool, reason: str | None, yes: bool, **flags: str | None) -> None:
    """Removes rejected events permanently: the events with these ids, the events with a reason, or all events.

    The command asks for confirmation first. Events that are rejected after the command has asked are never removed.
    """
    outcome = Outcome()
    selection = Selection(reason, frozenset(ids) or None)
    agreed: int | None = None
    asked_at: datetime | None = None

    async def count(queue: RejectQueue) -> int:
        return queue.count

    async def work(queue: RejectQueue) -> None:
        if agreed is not None:
            # The command reads at most as many events as the question named, the oldest first. If events were removed
            # from the queue after the question, the command may also read events that were rejected after the question.
            # The time in an event's header shows when the event was rejected.
            queue.count = min(queue.count, agreed)
        await remove_selected(queue, selection, outcome, asked_at)

    with exit_on_error(), broker_setting_named():
        _require_selection(ids, everything, reason)
        settings = effective_settings(flags)
        if not yes:
            if sys.stdin is None or not sys.stdin.isatty():
                raise ConfigurationError(
                    ["standard input is not a terminal, so the question can't be answered; pass --yes"]
                )
            agreed, asked_at = _on_queue(settings, count), datetime.now(UTC)
            if not click.confirm(_question(selection, agreed, str(settings.reject_exchange)), err=True):
                echo("nothing is removed", err=True)
                sys.exit(1)
        try:
            _on_queue(settings, work)
        finally:
            for why, kept in outcome.kept.items():
                echo(f"{kept:,} kept: {why}", err=True)
            if outcome.begun:
                echo(f"{counted(outcome.done, 'event')} removed", err=True)
    sys.exit(1 if _report_missing(ids, outcome, lambda line: echo(line, err=True)) else 0)


def _question(selection: "Selection", count: int, queue: str) -> str:
    of = f" of the {counted(count, 'rejected event')} in {queue}"
    with_reason = f" with the reason {selection.reason}" if selection.reason else ""
    if selection.ids:
        return f"Remove {counted(len(selection.ids), 'event')} by id{with_reason}{of}?"
    if with_reason:
        return f"Remove all events{with_reason}{of}?"
    return f"Remove {counted(count, 'rejected event')} in {queue}?"


def _on_queue(settings: Settings, work: Callable[[RejectQueue], Awaitable[Answer]]) -> Answer:
    """Opens the queue of rejected events, and returns the result of `work`. Raises BridgeError and ConnectionError."""
    name = settings.reject_exchange
    if name is None:
        raise ConfigurationError(
            ["BRIDGE_REJECT_EXCHANGE: it is off, so there is no queue of rejected events; set it to a name"]
        )

    async def run() -> Answer:
        async with open_reject_queue(tuple(map(Node, settings.amqp_url)), name) as queue:
            try:
                return await work(queue)
            finally:
                if queue.delivery_count:
                    echo(
                        f"{name} is a quorum queue: each reading counts as a delivery (the highest count is "
                        f"{queue.delivery_count + 1}), and the broker drops events beyond the delivery limit: raise "
                        "this limit, or use a classic queue",
                        err=True,
                    )

    raise_on_interrupt()
    return asyncio.run(run())


def _require_selection(ids: tuple[str, ...], everything: bool, reason: str | None) -> None:
    """Raises ConfigurationError unless the arguments select events."""
    if "" in ids:
        # An empty id would select every event without an id.
        raise ConfigurationError(["an id is empty; give ids from `edk-bridge rejects list`"])
    if everything and ids:
        raise ConfigurationError(["ids and --all can't be combined; give one of them"])
    if not (everything or ids or reason):
        raise ConfigurationError(["no events are selected; give ids from `edk-bridge rejects list`, --reason or --all"])


_NUMBER = re.compile("[0-9]{1,7}")
"""Matches a number that the list shows before an event.

A user could mistake such a number for an id. The id of a killmail has more digits than such a number.
"""


def _report_missing(ids: tuple[str, ...], outcome: "Outcome", say: Callable[[str], None]) -> bool:
    """Prints each given id that no event in the queue has. Returns whether any given id is missing from the queue."""
    missing = [each for each in dict.fromkeys(ids) if each not in outcome.seen]
    for each in missing:
        if _NUMBER.fullmatch(each):
            say(f"{each} is not an id: see the last field of each event in `edk-bridge rejects list`")
        else:
            # Some publishers use ids with an @, such as the ids of e-mails, so only a URL is redacted.
            shown = shown_argument(each) if "://" in each else printable(each, 255)
            say(f"not in the queue: {shown}")
    return bool(missing)


# Reading the queue

MAX_REASONS = 20
"""The maximum number of reasons for which kept events are counted separately."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Selects rejected events by reason and id."""

    reason: str | None = None
    """The reason of the selected events, or None for events with any reason."""
    ids: frozenset[str] | None = None
    """The ids of the selected events, or None for events with any id."""

    def has(self, reject: Reject) -> bool:
        """Returns whether the event is selected."""
        return self.reason in {None, reject.header("reason")} and (self.ids is None or reject.id in self.ids)


@dataclass(slots=True)
class Outcome:
    """The result of one command that reads the queue."""

    begun: bool = False
    """Whether the command has opened the queue."""
    done: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    """The number of kept events for each reason."""
    seen: set[str] = field(default_factory=set)
    """The given ids for which the queue has an event."""


async def selected(queue: RejectQueue, selection: Selection) -> AsyncIterator[Reject]:
    """Yields the selected events, the oldest first."""
    async for reject in queue.read():
        if selection.has(reject):
            yield reject


async def remove_selected(
    queue: RejectQueue, selection: Selection, outcome: Outcome, until: datetime | None = None
) -> None:
    """Removes the selected events permanently, except events that were rejected after `until`."""
    outcome.begun = True
    async for reject in selected(queue, selection):
        if selection.ids is not None:
            outcome.seen.add(reject.id)
        at = _rejected_at(reject)
        if until is not None and at is not None and at > until:
            _count(outcome.kept, "rejected after the question")
            continue
        await queue.remove(reject)
        outcome.done += 1
    await queue.flush()


def _rejected_at(reject: Reject) -> datetime | None:
    """Returns the time when the bridge rejected the event, or None if the event's header has no valid time."""
    try:
        at = datetime.fromisoformat(reject.header("time"))
    except ValueError:
        return None
    # A time without a UTC offset can't be compared with other times.
    return None if at.tzinfo is None else at


async def requeue_selected(
    queue: RejectQueue, selection: Selection, user: str, outcome: Outcome, progress: Callable[[], None]
) -> None:
    """Publishes each selected event to the exchange that it came from, and removes the event after its confirm.

    Calls `progress` after each event. Raises BrokerLost if the connection to the broker is lost. If the connection is
    lost, the events that were not removed before then stay in the queue.
    """
    outcome.begun = True
    requeuer = Requeuer(queue.amqp, user)
    free = asyncio.Semaphore(MAX_IN_FLIGHT)
    lost: list[BridgeError] = []

    async def send(reject: Reject) -> None:
        try:
            await requeuer.publish(reject)
            await queue.remove(reject)
            outcome.done += 1
        except NotRequeued as kept:
            _count(outcome.kept, str(kept))
        except BridgeError as error:
            lost.append(error)
        finally:
            free.release()
            progress()

    async with asyncio.TaskGroup() as sending:
        try:
            async for reject in selected(queue, selection):
                await free.acquire()
                if lost:
                    break
                if selection.ids is not None:
                    outcome.seen.add(reject.id)
                sending.create_task(send(reject))
        except BridgeError as error:
            # The error is raised after the end of the task group, because the task group would wrap it in an exception
            # group.
            lost.append(error)
    if lost:
        raise lost[0]
    await queue.flush()


def _count(kept: Counter[str], why: str) -> None:
    # The number of reasons is limited, because a reason may contain the name of an exchange, and there may be any
    # number of exchanges.
    kept[why if why in kept or len(kept) < MAX_REASONS else "for other reasons"] += 1


def record(reject: Reject) -> dict[str, object]:
    """Returns a rejected event as `--json` prints it.

    If the event's body is not UTF-8, `body_hex` has the body as hexadecimal digits.
    """
    try:
        body: dict[str, object] = {"body": reject.body.decode()}
    except UnicodeDecodeError:
        body = {"body_hex": reject.body.hex()}
    headers = {name: reject.header(name) for name in ("time", "reason", "pointer", "detail", "exchange")}
    return {
        "number": reject.number,
        "id": reject.id,
        "type": reject.type,
        "killmail_id": killmail_id(reject.body),
        **headers,
        "routing_key": reject.routing_key,
        "size": len(reject.body),
        **body,
    }


_ID_MEMBERS = ("killmailId", "killmail_id", "killID")

_WRAPPERS = ("data", "package", "killmail", "esi")
"""The members in which a source may wrap a killmail."""

_MAX_DEPTH = 3


def killmail_id(body: bytes) -> int | None:
    """Returns the id of the killmail in a body, or None. The body may have any format, and may be invalid."""
    try:
        event = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return _killmail_id(event, _MAX_DEPTH)


def _killmail_id(event: object, depth: int) -> int | None:
    if not isinstance(event, dict):
        return None
    for name in _ID_MEMBERS:
        # In EDK's own format, an id may be a string.
        value = event.get(name)
        # The type of the value is checked first, because `str` raises RecursionError for a deeply nested value.
        if isinstance(value, int | str) and re.fullmatch("[0-9]{1,19}", str(value)):
            return int(value)
    inner = (_killmail_id(event.get(name), depth - 1) for name in _WRAPPERS) if depth else ()
    return next((found for found in inner if found is not None), None)


_START_BYTES = 400


def content(reject: Reject, limit: int) -> str:
    """Returns text by which a person can recognize an event: the id of the killmail, or else the start of the body."""
    if (found := killmail_id(reject.body)) is not None:
        return f"killmail {found}"
    # The cut at `_START_BYTES` may split a character, so invalid bytes are replaced.
    start = " ".join(reject.body[:_START_BYTES].decode(errors="replace").split())
    return truncated(printable(start, _START_BYTES), limit) or "empty body"


def as_json(reject: Reject) -> str:
    """Returns a rejected event as one line of JSON."""
    return orjson.dumps(record(reject)).decode()


def as_fields(reject: Reject) -> str:
    """Returns a rejected event as one line with a tab between the fields, for `cut`, `sort` and `awk`."""
    of = {**record(reject), "content": content(reject, 60)}
    names = ("number", "time", "type", "reason", "pointer", "detail", "exchange", "size", "content", "id")
    return "\t".join(printable(str(of[name]), 1000) for name in names)


def as_entry(reject: Reject, width: int, default_types: Mapping[str, str]) -> str:
    """Returns a rejected event as four lines of at most `width` columns for a person.

    The event's id is never truncated.

    If the event has no type, the lines show the type that `default_types` has for the event's exchange.
    """
    time, reason, detail = (printable(reject.header(name)) for name in ("time", "reason", "detail"))
    pointer = printable(reject.header("pointer"))
    update_type = reject.type or default_types.get(reject.header("exchange"), "")
    what = f"{printable(update_type, 60) or 'no type'}, {len(reject.body):,} bytes"
    origin = printable(reject.header("exchange"), 127) or "no exchange"
    number = f"{reject.number:>4}  "
    margin = " " * len(number)
    where = "" if detail.startswith(pointer) else f"{pointer}: "
    lines = [
        f"{number}{time.partition('.')[0].replace('T', ' ') or 'no time'}  {reason or 'no reason'}  {what}, "
        f"from {origin}",
        f"{margin}{where}{detail or 'no detail'}",
        f"{margin}{content(reject, max(width - len(margin), 0))}",
    ]
    return "\n".join([*(truncated(line, width) for line in lines), f"{margin}{printable(reject.id, 255)}"])
