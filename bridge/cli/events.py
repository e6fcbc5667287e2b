"""`edk-bridge check` and `edk-bridge publish`: events from files or a pipe."""

import sys
from collections.abc import Iterator
from pathlib import Path

import click
import uvloop

from bridge import logs
from bridge.amqp.nodes import Node
from bridge.amqp.publish.preflight import check_broker
from bridge.amqp.publish.publisher import Publisher
from bridge.amqp.topology import is_reserved as is_reserved_exchange
from bridge.app import load_schemas
from bridge.cli.check import Problem
from bridge.cli.check import check as check_events
from bridge.cli.common.documents import lines_of
from bridge.cli.common.options import (
    INTERRUPTED,
    complete_type,
    effective_settings,
    fail,
    failing,
    setting_options,
    warn_of_schemas,
)
from bridge.cli.common.progress import Progress
from bridge.cli.common.streams import echo, echo_json
from bridge.cli.publish import Count
from bridge.cli.publish import publish as publish_events
from bridge.config.settings import Settings
from bridge.contract.catalog import is_reserved
from bridge.contract.deduplication import DuplicateWindow
from bridge.contract.pipeline import Pipeline
from bridge.contract.text import printable
from bridge.errors import BridgeError, ConfigurationError

# Names: as many as a shell's pattern finds, each open only while it is read, and only once, for it may be a pipe.
_FILES: click.Parameter = click.Argument(
    ["files"],
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    nargs=-1,
    default=["-"],
    metavar="[FILE|-]...",
)
_TYPE: click.Parameter = click.Option(
    ["--type", "update_type"],
    shell_complete=complete_type,
    help="the update type of all events; without it, each may say its own, or is what its exchange carries",
)
_EVENTS = "FILE (standard input unless given) holds JSON, or one event a line (NDJSON), as a bridge would get them."


def _lines(name: str) -> Iterator[bytes]:
    """The lines of a file, or of standard input for `-`. Raises ConfigurationError where it can't be read."""
    try:
        if name == "-":
            if sys.stdin is None:
                raise ConfigurationError(["-: can't be read: standard input is closed"])
            stdin = sys.stdin.buffer
            yield from lines_of(getattr(stdin, "raw", stdin))
        else:
            with Path(name).open("rb", buffering=0) as file:
                yield from lines_of(file)
    except OSError as error:
        raise ConfigurationError([f"{printable(name)}: can't be read: {error.strerror}"]) from error


def _check(files: tuple[str, ...], update_type: str | None, in_json: bool, **flags: str | None) -> None:
    events = invalid = 0

    def say(problem: Problem) -> None:
        if in_json:
            echo_json(problem.as_json())
        else:
            echo(problem.as_text())

    try:
        effective = effective_settings(flags)
        pipeline = _pipeline(effective, update_type)
        _, default_type = _exchange_for(effective, update_type)
        for name in files:
            found = check_events(_lines(name), name, update_type, default_type, pipeline, say)
            events, invalid = events + found[0], invalid + found[1]
    except BridgeError as error:
        fail(error)
    except KeyboardInterrupt:
        # Not click's 1, which says that something is invalid.
        sys.exit(INTERRUPTED)
    echo(f"{events:,} {'event' if events == 1 else 'events'}, {invalid:,} invalid", err=True)
    sys.exit(1 if invalid else 0)


CHECK = click.Command(
    "check",
    callback=_check,
    params=[
        _TYPE,
        click.Option(
            ["--json", "in_json"],
            is_flag=True,
            help="NDJSON: for each violation an object with file, line, column, pointer, reason, detail and schema",
        ),
        *setting_options("schemas", "max_message_bytes"),
        _FILES,
    ],
    short_help="Says what is wrong with events, without a broker.",
    help="Says what is wrong with events, without a broker: a line for each violation. The numbers of events, and "
    f"warnings of schema files, are on standard error.\n\n{_EVENTS}",
    epilog="Exit codes: 0 all are valid, 1 some are not, 2 options or files that can't be used, 130 Ctrl-C.",
)


def _publish(files: tuple[str, ...], update_type: str | None, exchange: str | None, **flags: str | None) -> None:
    with failing():
        effective = effective_settings(flags)
        # For a person, whatever is set: what is lost and back again, but not the libraries' tracebacks of it.
        logs.configure(logs.LogLevel.INFO, logs.LogFormat.TEXT)
        pipeline = _pipeline(effective, update_type)
        usual, default_type = _exchange_for(effective, update_type)
        exchange = usual if exchange is None else exchange
        default_type = effective.exchanges.get(exchange, default_type)
        may_declare = exchange in effective.exchanges and not is_reserved_exchange(exchange)
        publisher = _publisher(effective, exchange, declare=may_declare)
        # A fetcher may come before the bridge: what the settings name may be made. Of any other name, a slip of the
        # hand would become an exchange that nobody reads.
        uvloop.run(check_broker(tuple(map(Node, effective.amqp_url)), None if may_declare else exchange))
    count = Count(DuplicateWindow(Settings().duplicate_window))
    progress = Progress(sys.stderr, lambda: f"{count.published:,} published, {count.invalid:,} invalid")

    async def run() -> None:
        async with publisher:
            for name in files:
                await publish_events(
                    _lines(name),
                    name,
                    update_type,
                    default_type,
                    pipeline,
                    publisher,
                    count,
                    progress.say,
                    progress.tick,
                )

    try:
        uvloop.run(run())
    except BridgeError as error:
        progress.say(_summary(count, exchange))
        fail(error)
    except KeyboardInterrupt:
        progress.say(f"interrupted: {_summary(count, exchange)}")
        sys.exit(INTERRUPTED)
    progress.say(_summary(count, exchange))
    sys.exit(1 if count.invalid or count.unheard else 0)


PUBLISH = click.Command(
    "publish",
    callback=_publish,
    params=[
        _TYPE,
        click.Option(
            ["--exchange"],
            metavar="NAME",
            help="where to, one that exists; without it, the exchange that BRIDGE_EXCHANGES has for the type, or its "
            "first one, which is made where there is none",
        ),
        *setting_options("amqp_url", "schemas", "max_message_bytes"),
        _FILES,
    ],
    short_help="Publishes events from a file or a pipe.",
    help="Publishes events to RabbitMQ, each validated before and confirmed after; says what is wrong with those "
    f"that are invalid, and goes on.\n\n{_EVENTS}",
    epilog="Exit codes: 0 all are published, 1 some are invalid, were not confirmed or reached no queue, or no broker "
    "can be reached, 2 options or files that can't be used, or no such exchange, 3 the broker refuses, 130 Ctrl-C.",
)


def _pipeline(effective: Settings, update_type: str | None) -> Pipeline:
    schemas = load_schemas(effective)
    warn_of_schemas(schemas)
    if update_type is not None and is_reserved(update_type):
        raise ConfigurationError(
            [f"--type {printable(update_type)}: this type is reserved for messages of the bridge itself"]
        )
    if update_type is not None and update_type not in schemas.types:
        known = ", ".join(sorted(schemas.types))
        hint = "" if effective.schemas else " (and BRIDGE_SCHEMAS, for types of your own, is not set)"
        raise ConfigurationError(
            [f"--type {printable(update_type)}: there is no schema for this type; known: {known}{hint}"]
        )
    return Pipeline(schemas, effective.max_message_bytes)


def _publisher(effective: Settings, exchange: str, *, declare: bool) -> Publisher:
    try:
        return Publisher(
            ",".join(effective.amqp_url),
            exchange,
            declare=declare,
            schemas=effective.schemas,
            max_message_bytes=effective.max_message_bytes,
        )
    except ValueError as error:
        raise ConfigurationError([str(error)]) from error


def _exchange_for(effective: Settings, update_type: str | None) -> tuple[str, str]:
    """The exchange that carries the type, or else the first one; and the type that it carries by default."""
    exchanges = list(effective.exchanges.items())
    return next((each for each in exchanges if each[1] == update_type), exchanges[0])


def _summary(count: Count, exchange: str) -> str:
    unheard = (
        f"; of the published, {count.unheard:,} reached no queue: no bridge consumes from the exchange {exchange}"
        if count.unheard
        else ""
    )
    repeated = (
        f"; of the published, {count.repeated:,} have the identity of an earlier one, so a bridge does not send them"
        if count.repeated
        else ""
    )
    return f"{count.published:,} published, {count.invalid:,} invalid{unheard}{repeated}"
