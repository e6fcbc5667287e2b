"""The command `edk-bridge`. Each setting is a flag of `serve`, a variable of the environment, a line of `.env`."""

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import click
import uvloop

from bridge import __version__, logs, settings
from bridge.app import load_schemas
from bridge.app import serve as run_bridge
from bridge.broker.publisher import Publisher
from bridge.commands.check import check as check_events
from bridge.commands.documents import lines_of
from bridge.commands.endpoint import endpoint, trusting
from bridge.commands.progress import Progress
from bridge.commands.publish import Count
from bridge.commands.publish import publish as publish_events
from bridge.contract.pipeline import Pipeline
from bridge.contract.text import printable
from bridge.errors import BridgeError, ConfigurationError
from bridge.settings import FIELDS, PREFIX, Settings

INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it."""

EXIT_CODES = """\b
Exit codes: 0 stopped as asked, 2 settings or schema files that can't be used, 3 the broker refuses (password,
virtual host, permission, kind of exchange), 1 anything else."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="edk-bridge")
def cli() -> None:
    """Broadcasts killmail events from RabbitMQ to WebSocket clients."""


def _options(*names: str) -> list[click.Parameter]:
    """A flag for each setting. All are text here: the settings read them, and say all that is wrong at once."""
    options: list[click.Parameter] = []
    for name in names:
        field = FIELDS[name]
        default = field.metadata["default"]
        shown = "not set" if not default else "the host name" if name == "instance" else default
        # A flag without a value, as in --wait, means true.
        is_switch = field.type is bool
        # With these, click takes a flag without a value; no other setting may be given without one.
        switch: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if is_switch else {}
        options.append(
            click.Option(
                [f"--{name.replace('_', '-')}"],
                metavar="[true|false]" if is_switch else "TEXT",
                help=f"{field.metadata['meaning']}  [{PREFIX}{name.upper()}; {shown}]",
                **switch,
            )
        )
    return options


def _settings(flags: Mapping[str, str | None]) -> Settings:
    return settings.load({name: text for name, text in flags.items() if text is not None}, os.environ, Path(".env"))


def _serve(**flags: str | None) -> None:
    try:
        effective = _settings(flags)
        logs.configure(effective.log_level, effective.log_format)
        uvloop.run(run_bridge(effective))
    except BridgeError as error:
        _fail(error)


def _fail(error: BridgeError) -> NoReturn:
    for line in str(error).splitlines():
        click.echo(f"edk-bridge: {line}", err=True)
    sys.exit(error.exit_code)


cli.add_command(
    click.Command(
        "serve",
        callback=_serve,
        params=_options(*FIELDS),
        help="Runs the bridge until SIGTERM or SIGINT.\n\nEach setting may be given as a flag, as a variable of the "
        "environment, as a line of the file .env, or, with _FILE behind the variable's name, in a file of its own. "
        "Brackets show the variable and the default.",
        epilog=EXIT_CODES,
    )
)

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


def _check(files: tuple[str, ...], update_type: str | None, **flags: str | None) -> None:
    events = invalid = 0
    try:
        effective = _settings(flags)
        pipeline = _pipeline(effective, update_type)
        _, default_type = _exchange_for(effective, update_type)
        for name in files:
            found = check_events(_lines(name), name, update_type, default_type, pipeline, click.echo)
            events, invalid = events + found[0], invalid + found[1]
    except BridgeError as error:
        _fail(error)
    except KeyboardInterrupt:
        # Not click's 1, which says that something is invalid.
        sys.exit(INTERRUPTED)
    click.echo(f"{events:,} events, {invalid:,} invalid", err=True)
    sys.exit(1 if invalid else 0)


cli.add_command(
    click.Command(
        "check",
        callback=_check,
        params=[_TYPE, *_options("schemas", "max_message_bytes"), _FILES],
        help=f"Says what is wrong with events, without a broker: a line for each violation.\n\n{_EVENTS}",
        epilog="Exit codes: 0 all are valid, 1 some are not, 2 options or files that can't be used.",
    )
)


def _publish(files: tuple[str, ...], update_type: str | None, exchange: str | None, **flags: str | None) -> None:
    try:
        effective = _settings(flags)
        # For a person, whatever is set: what is lost and back again, but not the libraries' tracebacks of it.
        logs.configure("info", "text")
        _pipeline(effective, update_type)
        usual, default_type = _exchange_for(effective, update_type)
        exchange = exchange or usual
        default_type = effective.exchanges.get(exchange, default_type)
        publisher = _publisher(effective, exchange)
    except BridgeError as error:
        _fail(error)
    count = Count()
    progress = Progress(sys.stderr, lambda: f"{count.published:,} published, {count.invalid:,} invalid")

    async def run() -> None:
        async with publisher:
            for name in files:
                await publish_events(
                    _lines(name), name, update_type, default_type, publisher, count, progress.say, progress.tick
                )

    try:
        uvloop.run(run())
    except BridgeError as error:
        progress.say(_summary(count, exchange))
        _fail(error)
    except KeyboardInterrupt:
        progress.say(f"interrupted: {_summary(count, exchange)}")
        sys.exit(INTERRUPTED)
    progress.say(_summary(count, exchange))
    sys.exit(1 if count.invalid or count.unheard else 0)


cli.add_command(
    click.Command(
        "publish",
        callback=_publish,
        params=[
            _TYPE,
            click.Option(
                ["--exchange"],
                help="where to; without it, the exchange that BRIDGE_EXCHANGES has for the type, or its first one",
            ),
            *_options("amqp_url", "schemas", "max_message_bytes"),
            _FILES,
        ],
        help="Publishes events to RabbitMQ, each validated before and confirmed after; says what is wrong with those "
        f"that are invalid, and goes on.\n\n{_EVENTS}",
        epilog="""\b
Exit codes: 0 all are published, 1 some are invalid, were not confirmed or reached no queue, 2 options or files that
can't be used, 3 the broker refuses.""",
    )
)


def _pipeline(effective: Settings, update_type: str | None) -> Pipeline:
    schemas = load_schemas(effective)
    if update_type is not None and update_type not in schemas.types:
        known = ", ".join(sorted(schemas.types))
        hint = "" if effective.schemas else " (and BRIDGE_SCHEMAS, for types of your own, is not set)"
        raise ConfigurationError([f"--type {update_type}: there is no schema for this type; known: {known}{hint}"])
    return Pipeline(schemas, effective.max_message_bytes)


def _publisher(effective: Settings, exchange: str) -> Publisher:
    try:
        return Publisher(
            ",".join(effective.amqp_url),
            exchange,
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
        f"; {count.unheard:,} of them reached no queue: no bridge consumes from the exchange {exchange}"
        if count.unheard
        else ""
    )
    return f"{count.published:,} published, {count.invalid:,} invalid{unheard}"


@cli.command(
    epilog="""\b
Exit codes: 0 nobody reads the output any more, 2 options that can't be used or that the bridge refuses, 130 Ctrl-C,
143 SIGTERM, 1 anything else."""
)
@click.argument("url", default="ws://localhost:3000/updates")
@click.option("--type", "types", multiple=True, metavar="TYPE", help="only updates of this type; may be repeated")
@click.option(
    "--where",
    multiple=True,
    metavar="MEMBER=VALUE",
    help="only updates whose data has this value; may be repeated: each member must have one of its values",
)
@click.option("--after", metavar="ID", default="", help="begin after the update with this id; without it, from now on")
@click.option("--cafile", metavar="FILE", help="of wss://, the authorities to trust instead of the system's")
def tail(url: str, types: tuple[str, ...], where: tuple[str, ...], after: str, cafile: str | None) -> None:
    """Prints the updates that a bridge sends, one a line, as they come: JSON with the members type, data, timestamp and
    id. A lost connection is made again, and what came meanwhile is printed then; standard error says what is missing.
    """
    from bridge.commands.tail import run  # noqa: PLC0415 - what only this needs is not loaded into the bridge

    try:
        asked = endpoint(url, types, where)
        run(asked, after, trusting(asked, cafile), lambda line: click.echo(line, err=True))
    except BridgeError as error:
        _fail(error)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


@cli.command()
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True, help="the bridge's port")
@click.option("--rate", type=click.FloatRange(0.01, 1000), default=1.0, show_default=True, help="killmails a second")
def demo(port: int, rate: float) -> None:
    """Runs a broker, the bridge and a publisher of invented killmails, until Ctrl-C."""
    from bridge.demo.demo import run  # noqa: PLC0415 - what only the demo needs is not loaded into the bridge

    sys.exit(run(port=port, rate=rate))


def main() -> None:
    """The entry point."""
    cli.main(prog_name="edk-bridge")
