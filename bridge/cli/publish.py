"""`edk-bridge publish`: events from a file or a pipe to the broker, in order, each validated and confirmed."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass

from bridge.amqp.publish.publisher import Publisher
from bridge.cli.check import problems
from bridge.cli.common.documents import Document, documents
from bridge.contract.catalog import Identity
from bridge.contract.deduplication import DuplicateWindow
from bridge.contract.pipeline import Accepted, Event, Pipeline, Rejected
from bridge.contract.text import printable
from bridge.errors import BridgeError, ConfigurationError

UNDER_WAY = 500
"""Confirms that may be outstanding at once: enough to keep the line to the broker full."""

LARGE_BYTES = 16 * 1024
"""To name the violations of a larger event may take seconds, in which the broker's confirms are not read."""

READ_AHEAD = 50
"""Events that may wait for their turn."""


class Interrupted(BridgeError):
    """Publishing ended before the end of the input. Its text says where."""

    def __init__(self, text: str, cause: Exception) -> None:
        super().__init__(text)
        if isinstance(cause, BridgeError):
            self.exit_code = cause.exit_code


@dataclass(slots=True)
class Count:
    """How far it is, in events."""

    window: DuplicateWindow
    """The identities that a bridge would remember."""
    published: int = 0
    """Confirmed by the broker."""
    unheard: int = 0
    """Of these, those for which no queue was bound to the exchange."""
    repeated: int = 0
    """Of the published, those with the identity of an earlier one."""
    invalid: int = 0
    line: int = 0
    """Where the newest one begins that was read."""

    def add_published(self, identity: Identity | None, *, routed: bool) -> None:
        """Counts an event that the broker has confirmed; `routed` says whether a queue has it."""
        self.published += 1
        self.unheard += not routed
        if identity is None:
            return
        if identity in self.window:
            self.repeated += 1
        else:
            self.window.remember(identity)


async def publish(
    lines: Iterable[bytes],
    name: str,
    update_type: str | None,
    default_type: str,
    pipeline: Pipeline,
    publisher: Publisher,
    count: Count,
    say: Callable[[str], None],
    progress: Callable[[], None],
) -> None:
    """Publishes every valid event and says what is wrong with the others, counting both; `progress` hears of each.

    The types are as for `check`. Raises Interrupted where the broker no longer confirms.
    """
    free = asyncio.Semaphore(UNDER_WAY)
    # By their number, the oldest first; to the lines where they begin.
    under_way: dict[int, int] = {}

    tasks: set[asyncio.Task[None]] = set()

    async def send(number: int, document: Document, accepted: Accepted) -> None:
        routed = await publisher.publish_valid(document.body, accepted.type)
        count.add_published(accepted.identity, routed=routed)
        free.release()
        del under_way[number]
        progress()

    async def reject(document: Document, event: Event) -> None:
        if tasks and len(document.body) > LARGE_BYTES:
            await asyncio.wait(tasks)
        count.invalid += 1
        for problem in problems(document, name, event, pipeline):
            say(problem.as_text())
        progress()

    failed: Exception | None = None
    try:
        async with asyncio.TaskGroup() as sending:
            number = 0
            async for document in _read(lines):
                count.line = document.line
                event = Event(document.body, update_type, default_type, None)
                outcome = pipeline.process(event, 0)
                if isinstance(outcome, Rejected):
                    await reject(document, event)
                    continue
                await free.acquire()
                number += 1
                under_way[number] = document.line
                task = sending.create_task(send(number, document, outcome))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
    except* (OSError, BridgeError) as group:
        # Raised below: from in here, early releases of 3.11 would raise it in a group of its own.
        failed = group.exceptions[0]
    if isinstance(failed, ConfigurationError):
        raise failed
    if failed is not None:
        first = next(iter(under_way.values()), count.line)
        raise Interrupted(
            f"{failed}\n{printable(name)}:{first}: not confirmed; what follows may not be published either", failed
        )


async def _read(lines: Iterable[bytes]) -> AsyncIterator[Document]:
    """The events, read in a thread that nobody waits for: a pipe may be silent for ever, and Ctrl-C ends it all."""
    loop = asyncio.get_running_loop()
    found: asyncio.Queue[Document | Exception | None] = asyncio.Queue()
    room = threading.Semaphore(READ_AHEAD)

    def read() -> None:
        end = None
        try:
            for document in documents(lines):
                room.acquire()
                loop.call_soon_threadsafe(found.put_nowait, document)
        except Exception as error:
            end = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(found.put_nowait, end)

    threading.Thread(target=read, name="read events", daemon=True).start()
    while (document := await found.get()) is not None:
        if isinstance(document, Exception):
            raise document
        room.release()
        yield document
