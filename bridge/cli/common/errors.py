"""Errors of commands. Each error has an exit code, and is printed on standard error as one line without passwords."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from bridge.cli.common.output import echo, escape_unencodable
from bridge.contract.text import printable
from bridge.errors import BridgeError, redact
from bridge.interrupts import INTERRUPTED


class OneLineErrors(click.Group):
    """A group that prints each usage error as one line, like all other errors.

    Without this class, click would print three lines.
    """

    def main(self, args: Sequence[str] | None = None, **options: Any) -> Any:  # type: ignore[override]  # click has overloads
        """Runs the command and exits, like the method `main` of click."""
        escape_unencodable()
        try:
            code = super().main(args, **{**options, "standalone_mode": False})
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            code = error.exit_code
        except click.ClickException as error:
            echo(f"edk-bridge: {format_error(error)}", err=True)
            code = error.exit_code
        except click.Abort:
            # The user has pressed Ctrl-C while the command waited for an answer.
            code = INTERRUPTED
        sys.exit(code if isinstance(code, int) else 0)


_REPEATED = re.compile(r"""( ['"(])(?![-\[]).*@""", re.DOTALL)
"""Matches the argument that click quotes after an option's name in an error, up to the last @ in the argument."""

_DID_YOU_MEAN = re.compile(r"\. \(?Did you mean (?:one of: )?([^?]*)\?\)?")

_BROKER_URL = re.compile("amqps?://")


def format_error(error: click.ClickException) -> str:
    """Returns the error as one sentence, with a hint about what the user can do."""
    text = error.message if _concerns_a_file(error) else error.format_message()
    # A misplaced argument may be a URL with a password, and a password can contain any character.
    text, count = _REPEATED.subn(r"\1***@", text, count=1)
    if not count:
        text = redact(text)
    text = " ".join(text.split()).removesuffix(".")
    text = printable(_DID_YOU_MEAN.sub(r"; did you mean \1", text))
    hint = "; give a broker's URL with --amqp-url" if _BROKER_URL.search(error.format_message()) else ""
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context is not None else "edk-bridge"
    return f"{text[:1].lower()}{text[1:]}{hint}; see `{path} --help`"


def _concerns_a_file(error: click.ClickException) -> bool:
    """Returns whether the message names a file.

    To such a message, click would add the argument's metavar, `[FILE|-]...`.
    """
    param = error.param if isinstance(error, click.BadParameter) else None
    return isinstance(param, click.Argument) and isinstance(param.type, click.Path)


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Prints a BridgeError and exits with its code. After Ctrl-C, the exit code is 130."""
    try:
        yield
    except BridgeError as error:
        fail(error)
    except KeyboardInterrupt:
        # click would exit with the code 1, but `check` uses this code to report an invalid event.
        sys.exit(INTERRUPTED)


@contextmanager
def broker_setting_named() -> Iterator[None]:
    """Replaces a ConnectionError by a BridgeError that names the setting with the broker's address."""
    try:
        yield
    except ConnectionError as error:
        raise BridgeError(f"{error}; BRIDGE_AMQP_URL (--amqp-url) names the broker") from error


def fail(error: BridgeError) -> NoReturn:
    """Prints each line of an error, and exits with its code."""
    for line in str(error).splitlines():
        echo(f"edk-bridge: {line}", err=True)
    sys.exit(error.exit_code)
