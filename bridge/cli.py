"""The command `edk-bridge`. Each setting is a flag of `serve`, a variable of the environment, a line of `.env`."""

import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import click
import uvloop

from bridge import __version__, logs, settings
from bridge.app import serve as run_bridge
from bridge.errors import BridgeError
from bridge.settings import FIELDS, PREFIX

EXIT_CODES = """\b
Exit codes: 0 stopped as asked, 2 settings or schema files that can't be used, 3 the broker refuses (password,
virtual host, permission, kind of exchange), 1 anything else."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="edk-bridge")
def cli() -> None:
    """Broadcasts killmail events from RabbitMQ to WebSocket clients."""


def _options() -> list[click.Parameter]:
    """A flag for each setting. All are text here: the settings read them, and say all that is wrong at once."""
    options: list[click.Parameter] = []
    for name, field in FIELDS.items():
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


def _serve(**flags: str | None) -> None:
    try:
        effective = settings.load(
            {name: text for name, text in flags.items() if text is not None}, os.environ, Path(".env")
        )
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
        params=_options(),
        help="Runs the bridge until SIGTERM or SIGINT.\n\nEach setting may be given as a flag, as a variable of the "
        "environment, as a line of the file .env, or, with _FILE behind the variable's name, in a file of its own. "
        "Brackets show the variable and the default.",
        epilog=EXIT_CODES,
    )
)


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
