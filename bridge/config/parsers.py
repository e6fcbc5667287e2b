"""The parsers of settings.

Each parser converts a text to a value, or raises ValueError with a description of the expected value.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from bridge.authority import canonical_host, canonical_origin
from bridge.config.listen_addresses import canonical_listener
from bridge.config.networks import Network, parse_network
from bridge.contract.text import printable
from bridge.errors import SHOWN_CHARACTERS, may_be_key

_Value = TypeVar("_Value")
_Choice = TypeVar("_Choice", bound=StrEnum)

SIZES = {
    "": 1,
    "b": 1,
    **{
        f"{letter}{suffix}": 2 ** (10 * (power + 1))
        for power, letter in enumerate("kmgt")
        for suffix in ("", "i", "ib")
    },
    **{f"{letter}b": 10 ** (3 * (power + 1)) for power, letter in enumerate("kmgt")},
}
"""The number of bytes in each unit of size. MB means a million bytes, but M means the same as MiB."""

DURATIONS = {
    "ms": 0.001,
    **dict.fromkeys(("", "s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
}
"""The number of seconds in each unit of time."""

PATH_CHARACTERS = 1024
"""The maximum length of a path. A request line can have at most 8190 bytes, and the query needs most of them."""

_SWITCH_WORDS = frozenset({"off", "on", "none", "null", "false", "true", "no", "yes"})
"""The words that a switch accepts as its value. These words are not accepted as names of queues."""

NAME_BYTES = 255
"""The maximum length, in bytes, of a name that the broker shows (a short string of AMQP 0-9-1)."""

AMQP_NAME = re.compile(r"[A-Za-z0-9_.:@#,/+ -]{1,127}")
"""Matches the names of exchanges and queues that the library accepts (pamqp 4.0). The broker accepts more names than
the library."""


def whole(low: int, high: int) -> Callable[[str], int]:
    """Returns a parser for a whole number in a range."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", text) or not low <= int(text) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(text)

    return parse


def limit(high: int) -> Callable[[str], int]:
    """Returns a parser for a limit: a number from 1 to `high`, or `off`, which becomes 0."""
    parse_whole = whole(1, high)

    def parse(text: str) -> int:
        if text.lower() == "off":
            return 0
        try:
            return parse_whole(text)
        except ValueError as error:
            raise ValueError(f"{error}, or off") from error

    return parse


def size(low: int, high: int) -> Callable[[str], int]:
    """Returns a parser for a size such as `4194304`, `4 MiB`, `4M` or `1.5 GB`."""

    def parse(text: str) -> int:
        match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) *([a-zA-Z]*)", text)
        unit = SIZES.get(match[2].lower()) if match else None
        found = None if match is None or unit is None else int(Fraction(match[1]) * unit)
        if found is None or not low <= found <= high:
            raise ValueError(
                f"a size from {_in_units(low, _BINARY)} to {_in_units(high, _BINARY)}, as in 4194304, 4 MiB or 4 MB "
                "(kB, MB, GB, TB or KiB, MiB, GiB, TiB)"
            )
        return found

    return parse


def duration(low_s: float, high_s: float) -> Callable[[str], float]:
    """Returns a parser for a duration such as `120`, `120s`, `500ms`, `2m` or `7 days`."""

    def parse(text: str) -> float:
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) *([a-zA-Z]*)", text)
        unit = DURATIONS.get(match[2].lower()) if match else None
        if match is None or unit is None or not low_s <= float(match[1]) * unit <= high_s:
            raise ValueError(
                f"a time from {_in_units(low_s, _TIMES)} to {_in_units(high_s, _TIMES)}, as in 120, 500ms, 2m, 3h or 7d"
            )
        return float(match[1]) * unit

    return parse


def duration_or_zero(low_s: float, high_s: float) -> Callable[[str], float]:
    """Returns a parser for a duration, as `duration` does, or for `0`, which switches something off."""
    parse_duration = duration(low_s, high_s)

    def parse(text: str) -> float:
        if text == "0":
            return 0.0
        try:
            return parse_duration(text)
        except ValueError as error:
            raise ValueError(f"0 or {error}") from None

    return parse


_BINARY = {"TiB": 2**40, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "bytes": 1}
_TIMES = {"d": 86400, "h": 3600, "min": 60, "s": 1, "ms": 0.001}


def _in_units(number: float, units: Mapping[str, float]) -> str:
    """A number with the largest suitable unit, as in `512 MiB`."""
    unit, size = next(((unit, size) for unit, size in units.items() if number >= size))
    return f"{number / size:g} {unit}"


def boolean(text: str) -> bool:
    """Parses `true` or `false`, or another common spelling of these words."""
    match text.lower():
        case "true" | "yes" | "on" | "1":
            return True
        case "false" | "no" | "off" | "0":
            return False
    raise ValueError("true or false")


def one_of(*choices: str) -> Callable[[str], str]:
    """Returns a parser that accepts one of the given words."""

    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(f"{', '.join(choices[:-1])} or {choices[-1]}")
        return text.lower()

    return parse


def member_of(choices: type[_Choice]) -> Callable[[str], _Choice]:
    """One of the values of an enum."""
    parse_word = one_of(*choices)

    def parse(text: str) -> _Choice:
        return choices(parse_word(text))

    return parse


def name(text: str) -> str:
    """The name of an instance."""
    if not text or not text.isprintable() or len(text.encode()) > NAME_BYTES:
        raise ValueError(f"a name of 1 to {NAME_BYTES} bytes without control characters")
    return text


def amqp_name(text: str) -> str:
    """The name of an exchange or a queue."""
    if not AMQP_NAME.fullmatch(text):
        raise ValueError("a name of 1 to 127 letters, digits, spaces or -_.:@#,/+ (the AMQP library accepts no others)")
    return text


def made_name(text: str) -> str:
    """The name of an exchange or a queue that the bridge declares."""
    if text.startswith("amq."):
        raise ValueError("a name that does not begin with amq., because RabbitMQ reserves that prefix")
    return amqp_name(text)


def queue_name(text: str) -> str:
    """The name of a queue that exists or that the bridge declares."""
    if text.lower() in _SWITCH_WORDS:
        raise ValueError("the name of a queue; leave it empty for no queue")
    # The prefix `amq.` is allowed here, because RabbitMQ itself may have chosen the name of a durable queue.
    return amqp_name(text) if text.startswith("amq.gen-") else made_name(text)


def unless_off(parse: Callable[[str], str]) -> Callable[[str], str | None]:
    """A name, or None if the text is `off`."""

    def parse_name(text: str) -> str | None:
        if text.lower() == "off":
            return None
        if text.lower() in _SWITCH_WORDS:
            raise ValueError("a name, or off")
        return parse(text)

    return parse_name


def hosts(text: str) -> tuple[str, ...]:
    """Addresses and names to listen on, separated by commas: at least one, in canonical form, without repetitions."""
    expected = "addresses or names of this machine, separated by commas, as in 127.0.0.1,::1"
    found = tuple(_each(text, canonical_listener, expected))
    if not found:
        raise ValueError(expected)
    return found


def exchanges(text: str) -> Mapping[str, str]:
    """Pairs `exchange=type`, separated by commas. The order of the pairs is kept."""
    found: dict[str, str] = {}
    for item in _split(text):
        exchange, separator, update_type = item.partition("=")
        if not (separator and exchange.strip() and update_type.strip()) or exchange.strip() in found:
            raise ValueError(
                "exchange=type, or several separated by commas, each exchange once, as in killmails=killmail"
            )
        found[amqp_name(exchange.strip())] = update_type.strip()
    if not found:
        raise ValueError("exchange=type, as in killmails=killmail")
    return MappingProxyType(found)


def path(text: str) -> str:
    """An absolute URL path."""
    if not re.fullmatch(rf"/[A-Za-z0-9._~/-]{{0,{PATH_CHARACTERS - 1}}}", text):
        raise ValueError(
            f"a path such as /updates: it begins with / and has at most {PATH_CHARACTERS} letters (a to z), digits and "
            "._~/-"
        )
    # Browsers resolve dots, and parse //host/x as a host. Proxies merge several slashes into one slash.
    if not {"", ".", ".."}.isdisjoint(text[1:].removesuffix("/").split("/")) and text != "/":
        raise ValueError("a path such as /updates, without empty parts and without . or .. as a part")
    return text


def networks(text: str) -> tuple[Network, ...]:
    """Networks or addresses, separated by commas: at least one."""
    expected = "networks such as 10.0.0.0/8, separated by commas"
    found = tuple(_each(text, parse_network, expected))
    if not found:
        raise ValueError(expected)
    return found


def host_names(text: str) -> frozenset[str]:
    """Host names in canonical form, separated by commas, or no host names at all."""
    return frozenset(_each(text, canonical_host, "host names or addresses, separated by commas"))


def origins(text: str) -> frozenset[str]:
    """Origins in canonical form, separated by commas, or no origins at all."""
    return frozenset(_each(text, canonical_origin, "origins such as https://kills.example.org, separated by commas"))


def folder(text: str) -> Path:
    """A folder that can be read."""
    try:
        with os.scandir(text):
            return Path(text)
    except OSError as error:
        raise ValueError(f"a folder that exists and can be read ({error.strerror})") from error


def file(text: str) -> Path:
    """A file that can be read."""
    try:
        with Path(text).open("rb"):
            return Path(text)
    except OSError as error:
        raise ValueError(f"a file that can be read ({error.strerror})") from error


def _each(text: str, parse: Callable[[str], _Value], expected: str) -> Iterable[_Value]:
    """The values of all items in a list, in the same order, without repetitions."""
    found: dict[_Value, None] = {}
    for item in _split(text):
        try:
            found[parse(item)] = None
        except ValueError as error:
            if "@" in text or may_be_key(text):
                # The error may contain an item of the list. Such an item may be a part of a password that contains a
                # comma, or a part of a private key.
                raise ValueError(f"{expected}, without @ and line breaks") from None
            shown, reason = printable(item, SHOWN_CHARACTERS), printable(str(error), 2 * SHOWN_CHARACTERS)
            raise ValueError(f"{expected} ({shown}: {reason})") from error
    return found


def _split(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())
