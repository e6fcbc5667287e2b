"""`edk-bridge publish`: publishes events to the broker, in order, each validated and confirmed."""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass

import click
import uvloop

from bridge import logs
from bridge.amqp.nodes import Node
from bridge.amqp.publish.preflight import check_broker
from bridge.amqp.publish.publisher import Publisher
from bridge.amqp.topology import is_reserved as is_reserved_exchange
from bridge.cli.common.documents import Document, documents
from bridge.cli.common.errors import INTERRUPTED, broker_setting_named, exit_on_error, fail
from bridge.cli.common.events import (
    EventFile,
    exchange_for,
    files_argument,
    load_pipeline,
    problems,
    read_lines,
    type_option,
)
from bridge.cli.common.options import effective_settings, setting_options
from bridge.cli.common.progress import Progress
from bridge.config.settings import Settings
from bridge.contract.catalog import Identity
from bridge.contract.deduplication import DuplicateWindow
from bridge.contract.pipeline import Accepted, Pipeline, Rejected
from bridge.contract.text import printable
from bridge.errors import BridgeError, ConfigurationError

MAX_UNCONFIRMED = 500
"""The number of unconfirmed events at once. It is high enough to keep the connection to the broker busy."""

LARGE_BYTES = 16 * 1024
"""Finding the problems of a larger event may take seconds, in which confirms of the broker are not read."""

READ_AHEAD = 50
"""The number of events that are read in advance."""


@click.command(
    short_help="Publishes events from a file or a pipe.",
    epilog="Exit codes: 0 all are published, 1 some are invalid, were not confirmed or reached no queue, or no broker "
    "can be reached, 2 options or files that can't be used, or no such exchange, 3 the broker refuses, 130 Ctrl-C.",
)
@type_option
@click.option(
    "--exchange",
    metavar="NAME",
    help="where to, one that exists; without it, the exchange that BRIDGE_EXCHANGES has for the type, or its "
    "first one, which is made where there is none",
)
@setting_options("amqp_url", "schemas", "max_message_bytes")
@files_argument
def publish(files: tuple[str, ...], update_type: str | None, exchange: str | None, **flags: str | None) -> None:
    """Publishes events to RabbitMQ, each validated before and confirmed after; says what is wrong with those
    that are invalid, and goes on.

    FILE (standard input unless given) holds JSON, or one event a line (NDJSON), as a bridge would get them.
    """
    with exit_on_error(), broker_setting_named():
        settings = effective_settings(flags)
        # For a person, whatever the settings are: a lost broker is logged, the tracebacks of libraries are not.
        logs.configure(logs.LogLevel.INFO, logs.LogFormat.TEXT)
        pipeline = load_pipeline(settings, update_type)
        usual, default_type = exchange_for(settings, update_type)
        exchange = usual if exchange is None else exchange
        default_type = settings.exchanges.get(exchange, default_type)
        # A fetcher may start before the bridge, so an exchange of the settings may be declared. Another name may be
        # misspelled, and no bridge would read from that exchange.
        may_declare = exchange in settings.exchanges and not is_reserved_exchange(exchange)
        publisher = _publisher(settings, exchange, declare=may_declare)
        uvloop.run(check_broker(tuple(map(Node, settings.amqp_url)), None if may_declare else exchange))
    count = Count(DuplicateWindow(Settings().duplicate_window))
    progress = Progress(sys.stderr, lambda: f"{count.published:,} published, {count.invalid:,} invalid")

    async def run() -> None:
        async with publisher:
            for name in files:
                file = EventFile(name, read_lines(name), update_type, default_type)
                await publish_events(file, pipeline, publisher, count, progress.say, progress.tick)

    try:
        uvloop.run(run())
    except BridgeError as error:
        progress.say(_summary(count, exchange))
        fail(error)
    except KeyboardInterrupt:
        progress.say(f"interrupted: {_summary(count, exchange)}")
        sys.exit(INTERRUPTED)
    progress.say(_summary(count, exchange))
    sys.exit(1 if count.invalid or count.unrouted else 0)


def _publisher(settings: Settings, exchange: str, *, declare: bool) -> Publisher:
    try:
        return Publisher(
            ",".join(settings.amqp_url),
            exchange,
            declare=declare,
            schemas=settings.schemas,
            max_message_bytes=settings.max_message_bytes,
        )
    except ValueError as error:
        raise ConfigurationError([str(error)]) from error


def _summary(count: "Count", exchange: str) -> str:
    unrouted = (
        f"; of the published, {count.unrouted:,} reached no queue: no bridge consumes from the exchange {exchange}"
        if count.unrouted
        else ""
    )
    repeated = (
        f"; of the published, {count.repeated:,} have the identity of an earlier one, so a bridge does not send them"
        if count.repeated
        else ""
    )
    return f"{count.published:,} published, {count.invalid:,} invalid{unrouted}{repeated}"


class PublishInterrupted(BridgeError):
    """Publishing ended before the end of the input. The text has the line."""

    def __init__(self, text: str, cause: Exception) -> None:
        super().__init__(text)
        if isinstance(cause, BridgeError):
            self.exit_code = cause.exit_code


@dataclass(slots=True)
class Count:
    """Numbers of events."""

    window: DuplicateWindow
    """The identities that a bridge remembers."""
    published: int = 0
    """Confirmed by the broker."""
    unrouted: int = 0
    """Of these, those for which no queue is bound to the exchange."""
    repeated: int = 0
    """Of the published, those with the identity of an earlier one."""
    invalid: int = 0
    line: int = 0
    """The first line of the newest event that was read."""

    def add_published(self, identity: Identity | None, *, routed: bool) -> None:
        """Counts an event that the broker has confirmed. `routed` is False if no queue has got it."""
        self.published += 1
        self.unrouted += not routed
        self.repeated += identity is not None and not self.window.add(identity)


async def publish_events(
    file: EventFile,
    pipeline: Pipeline,
    publisher: Publisher,
    count: Count,
    say: Callable[[str], None],
    progress: Callable[[], None],
) -> None:
    """Publishes the valid events of a file, and prints the problems of the others with `say`.

    Counts both, and calls `progress` after each. Raises PublishInterrupted if the broker stops confirming.
    """
    free = asyncio.Semaphore(MAX_UNCONFIRMED)
    # The first lines of the unconfirmed events by the number of the event, the oldest first.
    unconfirmed: dict[int, int] = {}

    tasks: set[asyncio.Task[None]] = set()

    async def send(number: int, document: Document, accepted: Accepted) -> None:
        routed = await publisher.publish_valid(document.body, accepted.type)
        count.add_published(accepted.identity, routed=routed)
        free.release()
        del unconfirmed[number]
        progress()

    async def reject(document: Document) -> None:
        if tasks and len(document.body) > LARGE_BYTES:
            await asyncio.wait(tasks)
        count.invalid += 1
        for problem in problems(file, document, pipeline):
            say(problem.as_text())
        progress()

    failed: Exception | None = None
    try:
        async with asyncio.TaskGroup() as sending:
            number = 0
            async for document in _read(file.lines):
                count.line = document.line
                outcome = pipeline.process(file.event(document), 0)
                if isinstance(outcome, Rejected):
                    await reject(document)
                    continue
                await free.acquire()
                number += 1
                unconfirmed[number] = document.line
                task = sending.create_task(send(number, document, outcome))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
    except* (OSError, BridgeError) as group:
        # Raised below: early releases of Python 3.11 would raise it in an exception group here.
        failed = group.exceptions[0]
    if isinstance(failed, ConfigurationError):
        raise failed
    if failed is not None:
        first = next(iter(unconfirmed.values()), count.line)
        raise PublishInterrupted(
            f"{failed}\n{printable(file.name)}:{first}: not confirmed; what follows may not be published either", failed
        )


async def _read(lines: Iterable[bytes]) -> AsyncIterator[Document]:
    """Yields the events. A daemon thread reads them: a pipe may stay silent, and Ctrl-C must end the command."""
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
