"""`edk-bridge rejects`: what was rejected, listed, published again, or removed.

One pass over what is in the queue when it begins. What does not concern it stays in hand until the end, and is then
back in its place: nothing changes its order.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime

import orjson

from bridge.amqp.rejects.queue import Reject, RejectQueue
from bridge.amqp.rejects.requeue import MAX_IN_FLIGHT, NotRequeued, Requeuer
from bridge.contract.text import printable
from bridge.errors import BridgeError

ALL_REASONS = 20
"""Different reasons for which events are kept that are said one by one."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rejects are meant."""

    reason: str | None = None
    """None: whatever the reason."""
    ids: frozenset[str] | None = None
    """None: all."""

    def has(self, reject: Reject) -> bool:
        """Whether this one is."""
        return self.reason in {None, reject.header("reason")} and (self.ids is None or reject.id in self.ids)


@dataclass(slots=True)
class Outcome:
    """What came of a pass."""

    begun: bool = False
    """Whether the queue was reached."""
    done: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    """Why some stay where they are, and how many."""
    seen: set[str] = field(default_factory=set)
    """Of the ids that were asked for, those that were there."""


async def chosen(queue: RejectQueue, choice: Choice) -> AsyncIterator[Reject]:
    """Those that are meant, the oldest first."""
    async for reject in queue.read():
        if choice.has(reject):
            yield reject


async def remove(queue: RejectQueue, choice: Choice, outcome: Outcome, until: datetime | None = None) -> None:
    """Removes those that are meant, for good; but none that was rejected after `until`, as far as its header says."""
    outcome.begun = True
    async for reject in chosen(queue, choice):
        if choice.ids is not None:
            outcome.seen.add(reject.id)
        at = _rejected_at(reject)
        if until is not None and at is not None and at > until:
            _count(outcome.kept, "rejected after the question")
            continue
        await queue.remove(reject)
        outcome.done += 1
    await queue.flush()


def _rejected_at(reject: Reject) -> datetime | None:
    """When the bridge rejected it; None if its header does not say so."""
    try:
        at = datetime.fromisoformat(reject.header("time"))
    except ValueError:
        return None
    # Of a time without an offset, nobody knows how it compares.
    return None if at.tzinfo is None else at


async def requeue(
    queue: RejectQueue, choice: Choice, user: str, outcome: Outcome, progress: Callable[[], None]
) -> None:
    """Publishes those that are meant to where they came from, in order; each is removed once that is confirmed.

    `progress` hears of each. Raises BrokerLost where the broker is lost: what is not removed by then is still there.
    """
    outcome.begun = True
    requeuing = Requeuer(queue.amqp, user)
    free = asyncio.Semaphore(MAX_IN_FLIGHT)
    lost: list[BridgeError] = []

    async def send(reject: Reject) -> None:
        try:
            await requeuing.publish(reject)
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
            async for reject in chosen(queue, choice):
                await free.acquire()
                if lost:
                    break
                if choice.ids is not None:
                    outcome.seen.add(reject.id)
                sending.create_task(send(reject))
        except BridgeError as error:
            # Not out of the group, which would put it into a group of errors.
            lost.append(error)
    if lost:
        raise lost[0]
    await queue.flush()


def _count(kept: Counter[str], why: str) -> None:
    # Each names an exchange, and whoever fills the queue may name as many as they like.
    kept[why if why in kept or len(kept) < ALL_REASONS else "and for other reasons"] += 1


def record(reject: Reject) -> dict[str, object]:
    """A reject for a program; what `--json` prints. The body is text, or, where it is no UTF-8, `body_hex`."""
    try:
        body: dict[str, object] = {"body": reject.body.decode()}
    except UnicodeDecodeError:
        body = {"body_hex": reject.body.hex()}
    said = {name: reject.header(name) for name in ("time", "reason", "pointer", "detail", "exchange")}
    return {
        "number": reject.number,
        "id": reject.id,
        "type": reject.type,
        **said,
        "routing_key": reject.routing_key,
        "size": len(reject.body),
        **body,
    }


def as_json(reject: Reject) -> str:
    """One line."""
    return orjson.dumps(record(reject)).decode()


def as_fields(reject: Reject) -> str:
    """One line with a tabulator between its fields, for `cut`, `sort` and `awk`."""
    of = record(reject)
    names = ("number", "time", "type", "reason", "pointer", "detail", "exchange", "size", "id")
    return "\t".join(printable(str(of[name]), 1000) for name in names)


def as_entry(reject: Reject, width: int) -> str:
    """Three lines for a person, none longer than `width`; the id, which is to be copied, is never cut."""
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
    return "\n".join([*(_fitting(line, width) for line in lines), f"{margin}{printable(reject.id, 255)}"])


def _fitting(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: max(width - 3, 0)]}..."
