"""The sources of settings: flags, the environment, a `.env` file, and files that a variable with `_FILE` names.

This module knows only two things about the settings: their names, and which of them are secret.
"""

import difflib
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from dotenv.parser import Binding, parse_stream

from bridge.config.kubernetes import is_service_variable
from bridge.config.text_files import NotPlainTextError, read_marked, read_plain
from bridge.errors import shown_argument, shown_value

PREFIX = "BRIDGE_"

_NAME = re.compile(rf"{PREFIX}[A-Za-z0-9_]{{1,64}}")
"""Matches the names that errors may show. A name with any other characters might contain a password."""


class Layer(IntEnum):
    """The kinds of sources. A source with a higher number overrides a source with a lower number."""

    DOTENV = 1
    ENVIRONMENT = 2
    FLAG = 3


@dataclass(frozen=True, slots=True)
class Found:
    """The text of a setting, and its source."""

    text: str
    source: str
    """The name of the source, as messages to the operator show it."""
    layer: Layer
    file: Path | None = None
    """The file that contains the text of this setting and nothing else, if a variable with `_FILE` names one."""


def find(
    known: Mapping[str, bool],
    flags: Mapping[str, str],
    environment: Mapping[str, str],
    dotenv: Path,
    *,
    must_exist: bool = False,
) -> tuple[dict[str, Found], list[str]]:
    """The settings that have a value, by name, and all problems that were found in the sources.

    `known` maps the name of each setting to True if the setting is secret, and otherwise to False. Flags override the
    environment, which overrides `.env`. `must_exist` says that the operator has named the file `dotenv`, so this file
    must not be missing.
    """
    problems: list[str] = []
    # Kubernetes injects variables only into the environment. A line of a file that sets such a variable is a mistake.
    own = [(name, text) for name, text in environment.items() if not is_service_variable(name, text)]
    found = _variables(known, _lines(known, dotenv, must_exist, problems), str(dotenv), Layer.DOTENV, problems)
    found |= _variables(known, own, "environment", Layer.ENVIRONMENT, problems)
    found |= {name: Found(text, f"--{name.replace('_', '-')}", Layer.FLAG) for name, text in flags.items()}
    return found, problems


def _variables(
    known: Mapping[str, bool], variables: Iterable[tuple[str, str]], source: str, layer: Layer, problems: list[str]
) -> dict[str, Found]:
    """The settings that the variables set.

    Reads the files that variables with `_FILE` name, and adds any problems to `problems`.
    """
    found: dict[str, Found] = {}
    for variable, text in variables:
        if not variable.startswith(PREFIX):
            meant = _canonical(variable)
            if meant.removeprefix(PREFIX).lower().removesuffix("_file") in known and meant.startswith(PREFIX):
                problems.append(f"{variable} ({source}): write the name of this setting as {meant}")
            continue
        name = variable.removeprefix(PREFIX).lower()
        in_file = name not in known and name.removesuffix("_file") in known
        name = name.removesuffix("_file") if in_file else name
        if name not in known:
            shown = variable if _NAME.fullmatch(variable) else f"a name that begins with {PREFIX}"
            problems.append(f"{shown} ({source}): there is no such setting{_suggestion(variable, known)}")
        elif name in found:
            first = found[name].file is not None
            names = dict.fromkeys((f"{PREFIX}{name.upper()}{'_FILE' * first}", variable))
            problems.append(f"{' and '.join(names)} ({source}): the setting is set twice; set it once")
        elif in_file and not text.strip():
            problems.append(f"{variable} ({source}): the name of the file is empty")
        elif in_file:
            place = f"the {source}" if layer is Layer.ENVIRONMENT else source
            try:
                found[name] = Found(content(Path(text)), f"{variable} in {place}", layer, Path(text))
            except (OSError, NotPlainTextError) as error:
                # A user may have put the secret itself into the variable with `_FILE`, instead of the name of a file.
                shown = "the file that it names" if known[name] else shown_value(text)
                reason = error.strerror if isinstance(error, OSError) else error
                problems.append(f"{variable} ({source}): can't read {shown}: {reason}")
        else:
            found[name] = Found(text, source, layer)
    return found


def _suggestion(variable: str, known: Iterable[str]) -> str:
    wrong = variable.removeprefix(PREFIX).lower()
    if wrong == "env_file":
        return "; name a file of settings with the flag --env-file"
    if wrong.startswith("amqp_"):
        return f"; did you mean {PREFIX}AMQP_URL{'_FILE' if wrong.endswith('_file') else ''}?"
    names = list(known)
    # Names that begin with the given text come first: if the text is a truncated name, difflib may prefer a different
    # short name.
    close = [name for name in names if wrong and name.startswith(wrong)] or difflib.get_close_matches(wrong, names)
    return f"; did you mean {PREFIX}{close[0].upper()}?" if close else "; `edk-bridge serve --help` lists them all"


def _canonical(variable: str) -> str:
    """The correct spelling of a variable's name. For example, `bridge-port` becomes `BRIDGE_PORT`."""
    return re.sub(r"[-.]", "_", variable).upper()


def content(file: Path) -> str:
    """The text of a file that contains only the value of one setting. Raises OSError and NotPlainTextError."""
    return read_plain(file).rstrip("\r\n")


def _lines(known: Mapping[str, bool], file: Path, must_exist: bool, problems: list[str]) -> list[tuple[str, str]]:
    """The names and values in a `.env` file, in the order of the file. A `$` in a value is never replaced."""
    try:
        text = read_marked(file)
    except (OSError, NotPlainTextError) as error:
        if must_exist or not isinstance(error, _NO_FILE):
            reason = error.strerror if isinstance(error, OSError) else error
            problems.append(f"{shown_argument(str(file))}: can't be read: {reason}")
        return []
    bindings = list(parse_stream(io.StringIO(text, newline="")))
    unclear = [problem for binding in bindings if (problem := _unclear(binding, known)) is not None]
    problems += [f"{file}, {problem}" for problem in unclear]
    # If only the unclear line were skipped, its setting would silently keep the default.
    return [] if unclear else [(binding.key, binding.value or "") for binding in bindings if binding.key is not None]


_NO_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)

_NEWLINE = re.compile(r"\r\n|\n|\r")


def _unclear(binding: Binding, known: Mapping[str, bool]) -> str | None:
    """The problem with a line of a `.env` file, or None if there is no problem.

    The text never shows the value, which may be a password.
    """
    whole = binding.original.string
    text = whole.strip()
    # The original text of a binding also contains the empty lines before its name.
    line = f"line {binding.original.line + len(_NEWLINE.findall(whole[: whole.find(text)]))}"
    key, value = binding.key, binding.value
    if binding.error:
        hint = "; a quote is not closed, or there is text after the closing quote" if "=" in text else ""
        return f"{line}: it can't be read as NAME=value{hint}"
    if key is None:
        return None
    if value is None:
        name = key.removeprefix(PREFIX).lower()
        is_setting = _NAME.fullmatch(key) is not None and (name in known or name.removesuffix("_file") in known)
        return f"{line}: {key if is_setting else 'a name'} must be followed by = and a value"
    if key.startswith(PREFIX) and text.partition("=")[2].startswith("#"):
        return f"{line}: the value begins with #; quote it, or put a space before the comment"
    if _NEWLINE.search(text) and (key.startswith(PREFIX) or PREFIX in value):
        # If a quote is not closed, the value includes the lines of the following settings, up to the next quote.
        return f"{line}: the value continues in the next line; close its quotes"
    return None
