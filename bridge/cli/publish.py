"""`edk-bridge publish`: validates events, publishes them to the broker in order, and waits for the confirms."""

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
from bridge.cli.common.errors import broker_setting_named, exit_on_error, fail
from bridge.cli.common.events import (
    EventFile,
    exchange_for,
    files_argument,
    load_pipeline,
    problems,
    read_lines,
    type_option,
)
from bridge.cli.common.options import effective_settings, exit_codes, setting_options
from bridge.cli.common.progress import Progress
from bridge.config.settings import Settings
from bridge.contract.catalog import Identity
from bridge.contract.deduplication import DuplicateWindow
from bridge.contract.pipeline import Accepted, Pipeline, Rejected
from bridge.contract.text import printable
from bridge.counts import counted
from bridge.errors import BridgeError, ConfigurationError
from bridge.interrupts import INTERRUPTED, raise_on_interrupt

MAX_UNCONFIRMED = 500
"""The maximum number of published events that are not confirmed yet.

This many events are enough to keep the connection to the broker busy all the time.
"""

LARGE_BYTES = 16 * 1024
"""Finding the problems of a larger event may take seconds, and the command can't read confirms during this time."""

READ_AHEAD = 50
"""The number of events that are read in advance."""


@click.command(
    short_help="Publishes events from files or a pipe.",
    epilog=exit_codes(
        _0="All events are published.",
        _1="Some events are invalid, were not confirmed or reached no queue,\nor the broker can't be reached.",
        _2="Options, settings or files can't be used, or there is no such exchange.",
        _3="The broker refuses: password, virtual host or permission.",
        _130="Ctrl-C.",
    ),
)
@type_option
@click.option(
    "--exchange",
    metavar="NAME",
    help="An existing exchange to publish to. Without it: the exchange of BRIDGE_EXCHANGES for the type, or else its "
    "first one. The command creates this exchange if it is missing.",
)
@setting_options("amqp_url", "schemas", "max_message_bytes")
@files_argument
def publish(files: tuple[str, ...], update_type: str | None, exchange: str | None, **flags: str | None) -> None:
    """Publishes events to RabbitMQ in order.

    The command validates each event first, and waits for the broker's confirms. If an event is invalid, the command
    prints its violations, and continues with the next event.

    FILE contains one event on each line (NDJSON), or one JSON document. Without FILE, the command reads standard input.
    """
    with exit_on_error(), broker_setting_named():
        settings = effective_settings(flags)
        # A person reads the log, so it reports a lost connection to the broker, but without the tracebacks of
        # libraries.
        logs.configure(logs.LogLevel.INFO, logs.LogFormat.TEXT)
        pipeline = load_pipeline(settings, update_type)
        usual, default_type = exchange_for(settings, update_type)
        exchange = usual if exchange is None else exchange
        default_type = settings.exchanges.get(exchange, default_type)
        # A fetcher may start before the bridge, so the command declares a missing exchange if the settings name it. The
        # command does not declare any other exchange: the name may be misspelled, and then no bridge would consume from
        # the new exchange.
        may_declare = exchange in settings.exchanges and not is_reserved_exchange(exchange)
        publisher = _publisher(settings, exchange, declare=may_declare)
        uvloop.run(check_broker(tuple(map(Node, settings.amqp_url)), None if may_declare else exchange))
    count = Count(DuplicateWindow(Settings().duplicate_window))
    progress = Progress(sys.stderr, lambda: _totals(count))

    async def run() -> None:
        async with publisher:
            for name in files:
                file = EventFile(name, read_lines(name), update_type, default_type)
                await publish_events(file, pipeline, publisher, count, progress.say, progress.tick)

    try:
        raise_on_interrupt()
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


def _totals(count: "Count") -> str:
    return f"{counted(count.published, 'event')} published, {count.invalid:,} invalid"


def _summary(count: "Count", exchange: str) -> str:
    text = _totals(count)
    if count.unrouted:
        text += f"; {count.unrouted:,} reached no queue: no bridge consumes from the exchange {exchange}"
    if count.repeated:
        has, them = ("has", "it") if count.repeated == 1 else ("have", "them")
        text += f"; {count.repeated:,} {has} the identity of an earlier event, so a bridge does not send {them}"
    return text


class PublishInterrupted(BridgeError):
    """Publishing ended before the end of the input. The error's text names the line at which publishing ended."""

    def __init__(self, text: str, cause: Exception) -> None:
        super().__init__(text)
        if isinstance(cause, BridgeError):
            self.exit_code = cause.exit_code


@dataclass(slots=True)
class Count:
    """Counts the published events and the invalid events."""

    window: DuplicateWindow
    """The identities of published updates, as a bridge would remember them."""
    published: int = 0
    """The number of events that the broker has confirmed."""
    unrouted: int = 0
    """The number of published events that have reached no queue."""
    repeated: int = 0
    """The number of published events that have the identity of an earlier event."""
    invalid: int = 0
    line: int = 0
    """The number of the first line of the event that was read last."""

    def add_published(self, identity: Identity | None, *, routed: bool) -> None:
        """Counts an event that the broker has confirmed. `routed` is False if the event has reached no queue."""
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
    """Publishes the valid events of a file, and prints the problems of the invalid events with `say`.

    Adds each event to `count`, and calls `progress` after each event. Raises PublishInterrupted if the broker stops
    confirming.
    """
    free = asyncio.Semaphore(MAX_UNCONFIRMED)
    # Maps the number of each unconfirmed event to the event's first line in the file. The oldest event is first.
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
        # The error is raised further below, because if it were raised here, early releases of Python 3.11 would wrap it
        # in an exception group.
        failed = group.exceptions[0]
    if isinstance(failed, ConfigurationError):
        raise failed
    if failed is not None:
        first = next(iter(unconfirmed.values()), count.line)
        raise PublishInterrupted(
            f"{failed}\n{printable(file.name)}:{first}: not confirmed; later events may not be published either", failed
        )


async def _read(lines: Iterable[bytes]) -> AsyncIterator[Document]:
    """Yields the events.

    A daemon thread reads the events, so that Ctrl-C can end the command while it waits for data from a pipe.
    """
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
