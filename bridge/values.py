"""How the text of a setting becomes its value. Pure: each function raises ValueError, its text what was expected."""

import ipaddress
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from bridge.errors import masked
from bridge.fanout.access import Network
from bridge.fanout.authority import canonical_host, canonical_origin

SIZES = {
    "": 1,
    "b": 1,
    "kib": 2**10,
    "kb": 10**3,
    "k": 2**10,
    "mib": 2**20,
    "mb": 10**6,
    "m": 2**20,
    "gib": 2**30,
    "g": 2**30,
}
DURATIONS = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "min": 60.0, "h": 3600.0}

NAME_BYTES = 255
"""Of a name that the broker shows (AMQP 0-9-1, short strings)."""

AMQP_NAME = re.compile(r"[A-Za-z0-9_.:@#,/+ -]{1,127}")
"""An exchange or a queue: not all that the broker would take, but what the library lets through (pamqp 4.0)."""


def whole(low: int, high: int) -> Callable[[str], int]:
    """A whole number in a range."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", text) or not low <= int(text) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(text)

    return parse


def size(low: int, high: int) -> Callable[[str], int]:
    """Bytes: `4194304`, `4 MiB`, `4M`."""

    def parse(text: str) -> int:
        match = re.fullmatch(r"([0-9]{1,15}) *([a-zA-Z]*)", text)
        unit = SIZES.get(match[2].lower()) if match else None
        if match is None or unit is None or not low <= int(match[1]) * unit <= high:
            raise ValueError(f"a size from {low} to {high} bytes, as in 4194304 or 4 MiB")
        return int(match[1]) * unit

    return parse


def duration(low_s: float, high_s: float) -> Callable[[str], float]:
    """Seconds: `120`, `120s`, `500ms`, `2m`."""

    def parse(text: str) -> float:
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) *([a-zA-Z]*)", text)
        unit = DURATIONS.get(match[2].lower()) if match else None
        if match is None or unit is None or not low_s <= float(match[1]) * unit <= high_s:
            raise ValueError(f"a time from {low_s:g} to {high_s:g} seconds, as in 120, 2m or 500ms")
        return float(match[1]) * unit

    return parse


def boolean(text: str) -> bool:
    """`true` or `false`, and the other spellings that people use."""
    match text.lower():
        case "true" | "yes" | "on" | "1":
            return True
        case "false" | "no" | "off" | "0":
            return False
    raise ValueError("true or false")


def one_of(*choices: str) -> Callable[[str], str]:
    """One of some words."""

    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(" or ".join(choices))
        return text.lower()

    return parse


def name(text: str) -> str:
    """The name of an instance."""
    if not text or not text.isprintable() or len(text.encode()) > NAME_BYTES:
        raise ValueError(f"a name of 1 to {NAME_BYTES} bytes without control characters")
    return text


def amqp_name(text: str) -> str:
    """The name of an exchange or a queue."""
    if not AMQP_NAME.fullmatch(text):
        raise ValueError("a name of 1 to 127 letters, digits, spaces or -_.:@#,/+ (the AMQP library takes no others)")
    return text


def unless_off(parse: Callable[[str], str]) -> Callable[[str], str | None]:
    """The same, or None for `off`."""
    return lambda text: None if text.lower() == "off" else parse(text)


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas, one at least."""
    found = _split(text)
    if not found:
        raise ValueError("a name or an address, or several separated by commas")
    return found


def exchanges(text: str) -> Mapping[str, str]:
    """`exchange=type`, separated by commas, in their order."""
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
    if not re.fullmatch(r"/[A-Za-z0-9._~/-]*", text):
        raise ValueError("a path such as /updates")
    return text


def networks(text: str) -> tuple[Network, ...]:
    """Networks or addresses separated by commas, one at least."""
    try:
        found = tuple(ipaddress.ip_network(item) for item in _split(text))
    except ValueError as error:
        reason = masked(str(error))
        raise ValueError(f"networks such as 10.0.0.0/8, separated by commas ({reason})") from error
    if not found:
        raise ValueError("networks such as 10.0.0.0/8, separated by commas")
    for network in found:
        # An address is taken for the IPv4 one that it maps, so that this would hold nobody.
        if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped:
            raise ValueError(f"IPv4 networks as such, {network.network_address.ipv4_mapped} say, and not {network}")
    return found


def host_names(text: str) -> frozenset[str]:
    """Host names separated by commas, in the form in which they are compared; none is fine."""
    return _each(text, canonical_host, "host names or addresses, separated by commas")


def origins(text: str) -> frozenset[str]:
    """Origins separated by commas, in the form in which they are compared; none is fine."""
    return _each(text, canonical_origin, "origins such as https://kills.example.org, separated by commas")


def folder(text: str) -> Path:
    """A folder that exists."""
    if not Path(text).is_dir():
        raise ValueError("a folder that exists")
    return Path(text)


def file(text: str) -> Path:
    """A file that can be read."""
    try:
        with Path(text).open("rb"):
            return Path(text)
    except OSError as error:
        raise ValueError(f"a file that can be read ({error.strerror})") from error


def _each(text: str, parse: Callable[[str], str], expected: str) -> frozenset[str]:
    found = set()
    for item in _split(text):
        try:
            found.add(parse(item))
        except ValueError as error:
            raise ValueError(f"{expected} ({masked(item)}: {error})") from error
    return frozenset(found)


def _split(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())
