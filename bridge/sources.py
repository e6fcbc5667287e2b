"""Where the text of a setting comes from: flags, the environment, a `.env` file, and files that these name.

Of the settings, this file knows their names only, and which hold a secret.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from bridge.errors import masked

PREFIX = "BRIDGE_"


@dataclass(frozen=True, slots=True)
class Found:
    """The text of one setting."""

    text: str
    source: str
    """Where it was found, as an operator would name it."""
    file: Path | None = None
    """The file that held it alone, if a `_FILE` variant named one."""


def find(
    known: Mapping[str, bool], flags: Mapping[str, str], environment: Mapping[str, str], dotenv: Path
) -> tuple[dict[str, Found], list[str]]:
    """What is set, by the setting's name, and every problem on the way.

    `known` says of each setting whether it is a secret. Flags win over the environment, the environment over `.env`.
    """
    problems: list[str] = []
    layers = [{name: Found(text, f"--{name.replace('_', '-')}") for name, text in flags.items()}]
    layers.append(_variables(known, environment, "environment", problems))
    if dotenv.is_file():
        layers.append(_variables(known, _dotenv(dotenv, problems), str(dotenv), problems))
    found: dict[str, Found] = {}
    for layer in reversed(layers):
        found |= layer
    return found, problems


def _variables(
    known: Mapping[str, bool], variables: Mapping[str, str], source: str, problems: list[str]
) -> dict[str, Found]:
    """The settings among the variables, `_FILE` variants read; unknown names and unreadable files become problems."""
    found: dict[str, Found] = {}
    for variable, text in variables.items():
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name in known:
            found.setdefault(name, Found(text, source))
        elif (name := name.removesuffix("_file")) in known:
            if PREFIX + name.upper() in variables:
                problems.append(f"{variable} ({source}): {PREFIX}{name.upper()} is set as well; set one of them")
                continue
            try:
                found[name] = Found(content(Path(text)), f"{variable} in the {source}", Path(text))
            except (OSError, ValueError) as error:
                # The content may have been put where its file's name belongs.
                shown = "the file that it names" if known[name] else repr(masked(text))
                reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
                problems.append(f"{variable} ({source}): can't read {shown}: {reason}")
        else:
            names = [PREFIX + each.upper() for each in known]
            # What was cut short is no close match, where another name is as short.
            close = [each for each in names if each.startswith(variable)] or difflib.get_close_matches(variable, names)
            hint = f"; did you mean {close[0]}?" if close else "; `edk-bridge serve --help` lists them all"
            problems.append(f"{variable} ({source}): there is no such setting{hint}")
    return found


def content(file: Path) -> str:
    """The text of a setting that a file holds alone. Raises OSError and ValueError."""
    return file.read_text(encoding="utf-8").rstrip("\r\n")


def _dotenv(file: Path, problems: list[str]) -> dict[str, str]:
    try:
        with file.open(encoding="utf-8") as lines:
            unclear = [binding.original.line for binding in parse_stream(lines) if binding.error]
        if unclear:
            # The parser goes on without them: a setting would become its default in silence.
            problems += [f"{file}, line {line}: it can't be read as NAME=value" for line in unclear]
            return {}
        found = dotenv_values(file)
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{file}: can't be read: {error}")
        return {}
    problems += [f"{_shown(name)} ({file}): there is no = behind it" for name, text in found.items() if text is None]
    return {name: text for name, text in found.items() if text is not None}


def _shown(name: str) -> str:
    # Whatever else it is, it may hold a password.
    return name if re.fullmatch(r"\w+", name) else "a line that begins with no name"
