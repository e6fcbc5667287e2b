"""`edk-bridge rejects`: lists rejected events, publishes them again, or removes them.

Each command makes one pass over the events that are in the queue when it starts. An event that is not selected is held
until the end and then returns to its place, so that the order of the queue stays the same.
"""

import asyncio
import re
import shutil
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

import click
import orjson

from bridge.amqp.nodes import Node
from bridge.amqp.rejects.queue import Reject, RejectQueue, open_reject_queue
from bridge.amqp.rejects.requeue import MAX_IN_FLIGHT, NotRequeued, Requeuer
from bridge.cli.common.errors import broker_setting_named, exit_on_error
from bridge.cli.common.options import effective_settings, setting_options
from bridge.cli.common.output import Output, echo, json_encoding
from bridge.cli.common.progress import Progress
from bridge.config.settings import Settings
from bridge.contract.pipeline import Reason
from bridge.contract.text import printable
from bridge.errors import BridgeError, ConfigurationError
from bridge.interrupts import raise_on_interrupt

Answer = TypeVar("Answer")
Callback = TypeVar("Callback", bound=Callable[..., object])

REASONS = [reason.value for reason in Reason]

CODES = "2 options that can't be used, or no such queue, 3 the broker refuses."

reason_option = click.option(
    "--reason",
    type=click.Choice(REASONS),
    metavar="REASON",
    help=f"only those with this reason: {', '.join(REASONS)}",
)

broker_options = setting_options("amqp_url", "reject_exchange")


def selection_options(command: Callback) -> Callback:
    """Adds the ids, `--all` and `--reason` to a command."""
    everything = click.option(
        "--all", "everything", is_flag=True, help="all events that are in the queue when the command starts"
    )
    return click.argument("ids", nargs=-1, metavar="[ID]...")(everything(reason_option(command)))


@click.group(short_help="Lists rejected events, publishes them again, or removes them.")
def rejects() -> None:
    """Events that could not become an update: the queue of BRIDGE_REJECT_EXCHANGE, to which the bridge publishes
    them with the reason.
    """


@rejects.command(
    "list",
    short_help="Lists them, and says what is wrong with each.",
    epilog=f"Exit codes: 0 they are listed, or nobody reads on, 1 the broker can't be reached, {CODES}",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    metavar="N",
    default=100,
    show_default=True,
    help="how many, the oldest first",
)
@reason_option
@click.option("--json", "in_json", is_flag=True, help="NDJSON, with the event itself as `body`")
@broker_options
def list_(limit: int, reason: str | None, in_json: bool, **flags: str | None) -> None:
    """Lists rejected events, the oldest first: number, time, reason, type, size, exchange, what is wrong, and the id
    by which to name it. In a pipe each is one line, its fields separated by tabulators: number, time, type, reason,
    pointer, detail, exchange, size, id.

    Nothing is removed. While it runs, those that it has read are out of the queue's sight for others; after it, they
    are in their old place.
    """
    width = shutil.get_terminal_size().columns
    on_terminal = sys.stdout is not None and sys.stdout.isatty()

    def shown(reject: Reject) -> str:
        if in_json:
            return as_json(reject)
        return as_entry(reject, width) if on_terminal else as_fields(reject)

    async def work(queue: RejectQueue) -> None:
        count = 0
        # A pager reads a page at a time, and the connection to the broker needs the event loop meanwhile.
        encoding = json_encoding(sys.stdout) if in_json else sys.stdout.encoding
        output = Output(sys.stdout.fileno(), encoding=encoding)
        try:
            async for reject in selected(queue, Selection(reason)):
                for line in shown(reject).split("\n"):
                    await output.line(line)
                count += 1
                if count == limit:
                    break
        except BrokenPipeError:
            # The reader is gone.
            return
        except OSError as error:
            raise BridgeError(f"standard output: {error.strerror}") from error
        of = "" if reason is None else f" with the reason {reason}"
        echo(f"{count:,} listed{of}; {queue.count:,} in {queue.name} in all", err=True)

    with exit_on_error(), broker_setting_named():
        if sys.stdout is None:
            raise ConfigurationError(["standard output is closed"])
        _on_queue(effective_settings(flags), work)


@rejects.command(
    short_help="Publishes them again to where they came from.",
    epilog=f"Exit codes: 0 all are requeued, 1 some are kept or not there, or the broker can't be reached, {CODES}",
)
@selection_options
@broker_options
def requeue(ids: tuple[str, ...], everything: bool, reason: str | None, **flags: str | None) -> None:
    """Publishes rejected events again to the exchange that each came from, after whatever was wrong is mended (a
    schema, a limit): body and properties as they came. Each is removed from the rejects once the broker has confirmed
    it; one that nobody's queue has got is kept.

    The exchange gives it to everyone who is bound to it, as when it was new: to every bridge, and to every other
    consumer, which may have had it already. A bridge sends an update whose identity it remembers once. What is still
    invalid is rejected again, as a new reject.
    """
    outcome = Outcome()
    progress = Progress(sys.stderr, lambda: f"{outcome.done:,} requeued, {outcome.kept.total():,} kept")
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
                progress.say(f"ended early, with {outcome.done:,} requeued; the others are kept")
            raise
    missing = _report_missing(ids, outcome, progress.say)
    for why, count in outcome.kept.items():
        progress.say(f"{count:,} kept: {why}")
    progress.say(f"{outcome.done:,} requeued, {outcome.kept.total():,} kept")
    sys.exit(1 if missing or outcome.kept else 0)


@rejects.command(
    short_help="Removes them for good.",
    epilog="Exit codes: 0 they are removed, 1 the answer was no, some are not there, or the broker can't be reached, "
    f"{CODES}",
)
@selection_options
@click.option("--yes", is_flag=True, help="without asking")
@broker_options
def purge(ids: tuple[str, ...], everything: bool, reason: str | None, yes: bool, **flags: str | None) -> None:
    """Removes rejected events for good: those with these ids, those with a reason, or all. It asks first, and removes
    none that came after the question.
    """
    outcome = Outcome()
    selection = Selection(reason, frozenset(ids) or None)
    agreed: int | None = None
    asked_at: datetime | None = None

    async def count(queue: RejectQueue) -> int:
        return queue.count

    async def work(queue: RejectQueue) -> None:
        if agreed is not None:
            # The newest events, beyond the number in the question, are kept. If others were removed meanwhile, an
            # event that came later may be within that number. Its time shows that.
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
            which = [f"the {len(selection.ids):,} named"] if selection.ids else []
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
    sys.exit(1 if _report_missing(ids, outcome, lambda line: echo(line, err=True)) else 0)


def _on_queue(settings: Settings, work: Callable[[RejectQueue], Awaitable[Answer]]) -> Answer:
    """Returns the result of some work on the queue. Raises BridgeError and ConnectionError."""
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

    raise_on_interrupt()
    return asyncio.run(run())


def _require_selection(ids: tuple[str, ...], everything: bool, reason: str | None) -> None:
    """Raises ConfigurationError unless the arguments select events."""
    if "" in ids:
        # It would select each event that has no id.
        raise ConfigurationError(["an id is empty; give ids from `edk-bridge rejects list`"])
    if everything and ids:
        raise ConfigurationError(["ids and --all can't be combined; give one of them"])
    if not (everything or ids or reason):
        raise ConfigurationError(["no events are selected; give ids from `edk-bridge rejects list`, --reason or --all"])


_NUMBER = re.compile("[0-9]{1,7}")
"""Probably the number of an event in the list. The id of a killmail has more digits."""


def _report_missing(ids: tuple[str, ...], outcome: "Outcome", say: Callable[[str], None]) -> bool:
    """Prints the ids that the queue does not have. Returns whether there are any."""
    missing = [each for each in dict.fromkeys(ids) if each not in outcome.seen]
    for each in missing:
        if _NUMBER.fullmatch(each):
            say(f"{each} is no id: the id is the last field of each event in `edk-bridge rejects list`")
        else:
            say(f"not there: {printable(each, 255)}")
    return bool(missing)


# Passes over the queue

MAX_REASONS = 20
"""The number of different reasons for kept events that are counted one by one."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Selects rejected events by reason and id."""

    reason: str | None = None
    """None: any reason."""
    ids: frozenset[str] | None = None
    """None: any id."""

    def has(self, reject: Reject) -> bool:
        """Returns whether the event is selected."""
        return self.reason in {None, reject.header("reason")} and (self.ids is None or reject.id in self.ids)


@dataclass(slots=True)
class Outcome:
    """The result of one pass over the queue."""

    begun: bool = False
    """Whether the queue was opened."""
    done: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    """How many events are kept, by reason."""
    seen: set[str] = field(default_factory=set)
    """Those of the given ids that the queue has."""


async def selected(queue: RejectQueue, selection: Selection) -> AsyncIterator[Reject]:
    """Yields the selected events, the oldest first."""
    async for reject in queue.read():
        if selection.has(reject):
            yield reject


async def remove_selected(
    queue: RejectQueue, selection: Selection, outcome: Outcome, until: datetime | None = None
) -> None:
    """Removes the selected events for good, except those that were rejected after `until`."""
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
    """Returns when the bridge rejected the event; None if its header has no valid time."""
    try:
        at = datetime.fromisoformat(reject.header("time"))
    except ValueError:
        return None
    # A time without an offset can't be compared.
    return None if at.tzinfo is None else at


async def requeue_selected(
    queue: RejectQueue, selection: Selection, user: str, outcome: Outcome, progress: Callable[[], None]
) -> None:
    """Publishes the selected events in order to the exchange that each came from, and removes each after its confirm.

    Calls `progress` after each. Raises BrokerLost if the broker is lost: the other events stay in the queue.
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
            # Raised after the task group, which would wrap it in an exception group.
            lost.append(error)
    if lost:
        raise lost[0]
    await queue.flush()


def _count(kept: Counter[str], why: str) -> None:
    # A reason may name an exchange, and a publisher may have used any number of them.
    kept[why if why in kept or len(kept) < MAX_REASONS else "and for other reasons"] += 1


def record(reject: Reject) -> dict[str, object]:
    """Returns a rejected event as `--json` prints it. A body that is not UTF-8 is in `body_hex`."""
    try:
        body: dict[str, object] = {"body": reject.body.decode()}
    except UnicodeDecodeError:
        body = {"body_hex": reject.body.hex()}
    headers = {name: reject.header(name) for name in ("time", "reason", "pointer", "detail", "exchange")}
    return {
        "number": reject.number,
        "id": reject.id,
        "type": reject.type,
        **headers,
        "routing_key": reject.routing_key,
        "size": len(reject.body),
        **body,
    }


def as_json(reject: Reject) -> str:
    """Returns one line of JSON."""
    return orjson.dumps(record(reject)).decode()


def as_fields(reject: Reject) -> str:
    """Returns one line with a tab between its fields, for `cut`, `sort` and `awk`."""
    of = record(reject)
    names = ("number", "time", "type", "reason", "pointer", "detail", "exchange", "size", "id")
    return "\t".join(printable(str(of[name]), 1000) for name in names)


def as_entry(reject: Reject, width: int) -> str:
    """Returns three lines of at most `width` characters for a person. The id is never truncated."""
    time, reason, detail = (printable(reject.header(name)) for name in ("time", "reason", "detail"))
    pointer = printable(reject.header("pointer"))
    what = f"{printable(reject.type, 60) or 'no type'}, {len(reject.body):,} bytes"
    origin = printable(reject.header("exchange"), 127) or "no exchange"
    number = f"{reject.number:>4}  "
    margin = " " * len(number)
    where = "" if detail.startswith(pointer) else f"{pointer}: "
    lines = [
        f"{number}{time.partition('.')[0].replace('T', ' ') or 'no time'}  {reason or 'no reason'}  {what}, "
        f"from {origin}",
        f"{margin}{where}{detail or 'no detail'}",
    ]
    return "\n".join([*(_truncated(line, width) for line in lines), f"{margin}{printable(reject.id, 255)}"])


def _truncated(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: max(width - 3, 0)]}..."
