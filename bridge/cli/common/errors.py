"""What is said of arguments that can't be used: one line, with what to do, and no password that was among them."""

import platform
import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import click

from bridge import __version__
from bridge.cli.common.options import INTERRUPTED
from bridge.cli.common.streams import echo, escape_unencodable
from bridge.contract.text import printable
from bridge.errors import redact

LIBRARIES = ("aio-pika", "websockets")
"""Whose versions matter to who reports a fault: what speaks to RabbitMQ, and what speaks to clients."""


class OneLine(click.Group):
    """A group whose errors are one line each, as all others of the bridge are; click's own have three."""

    def main(self, args: Sequence[str] | None = None, **options: Any) -> Any:  # type: ignore[override]  # click has overloads
        """As click's, which ends the program."""
        escape_unencodable()
        try:
            code = super().main(args, **{**options, "standalone_mode": False})
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            code = error.exit_code
        except click.ClickException as error:
            echo(f"edk-bridge: {complaint(error)}", err=True)
            code = error.exit_code
        except click.Abort:
            # Ctrl-C where nobody has more to say of it.
            code = INTERRUPTED
        sys.exit(code if isinstance(code, int) else 0)


_REPEATED = re.compile(r"""( ['"(])(?![-\[]).*@""", re.DOTALL)
"""What was typed, as click repeats it behind the names of options and arguments, up to the last @."""

_DID_YOU_MEAN = re.compile(r"\. \(?Did you mean (?:one of: )?([^?]*)\?\)?")

_BROKER_URL = re.compile("amqps?://")


def complaint(error: click.ClickException) -> str:
    """The error as one sentence, with where to look."""
    text = error.message if _concerns_a_file(error) else error.format_message()
    # An argument in the wrong place may be a URL, with a password in which anything may be.
    text, count = _REPEATED.subn(r"\1***@", text, count=1)
    if not count:
        text = redact(text)
    text = " ".join(text.split()).removesuffix(".")
    text = printable(_DID_YOU_MEAN.sub(r"; did you mean \1", text))
    hint = "; a broker's URL is given with --amqp-url" if _BROKER_URL.search(error.format_message()) else ""
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context is not None else "edk-bridge"
    return f"{text[:1].lower()}{text[1:]}{hint}; `{path} --help` says what there is"


def _concerns_a_file(error: click.ClickException) -> bool:
    """Whether it names the file itself: before that, click would have what stands for any in the usage."""
    param = error.param if isinstance(error, click.BadParameter) else None
    return isinstance(param, click.Argument) and isinstance(param.type, click.Path)


def print_version(context: click.Context, option: click.Parameter, asked: bool) -> None:
    """Prints the version, and those of what it stands on, and ends."""
    if asked and not context.resilient_parsing:
        libraries = "".join(f", {name} {version(name)}" for name in LIBRARIES)
        echo(f"edk-bridge, version {__version__} (Python {platform.python_version()}{libraries})")
        context.exit()
