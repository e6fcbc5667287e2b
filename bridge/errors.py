"""Errors that end the program, each with whose fault it is.

Errors that do not end it live where they are found: a rejected event in `contract`, a refused client in `fanout`, a
broker that is away in `broker`.
"""

import re
from collections.abc import Sequence

from bridge.contract.text import printable

SHOWN_CHARACTERS = 80
"""Of a value in an error: enough to recognize it."""


class BridgeError(Exception):
    """Ends the program with `exit_code`; its text is for the person who started it."""

    exit_code = 1


class ConfigurationError(BridgeError):
    """The operator's settings or schema files can't be used as they are. Holds every problem, not only the first."""

    exit_code = 2

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


def redact(text: str) -> str:
    """What an operator wrote, for an error: a URL may stand anywhere, with a password in which anything may be."""
    return re.sub(r".*@", "***@", text, flags=re.DOTALL)


def may_be_key(text: str) -> bool:
    """Whether a value may be a private key (PEM): it has a PEM header or a line break."""
    return "-----BEGIN" in text or len(f"{text}.".splitlines()) > 1


def shown_value(text: str) -> str:
    """A value that can't be used, for an error: quoted, redacted, printable and short; never a private key."""
    if may_be_key(text):
        return "its value"
    return repr(printable(redact(text), SHOWN_CHARACTERS))


def redact_url(url: str) -> str:
    """A broker's URL with everything but the password: where it leads, as whom, and with which options."""
    before, separator, behind = url.partition("?")
    scheme, _, address = before.partition("://")
    user, at, host = address.rpartition("@")
    name, colon, _ = user.partition(":")
    options = [option.partition("=") for option in behind.split("&") if option]
    # Of the certificates, the files' names: cadata is a certificate itself, and others may be anything.
    shown = "&".join(f"{key}{equals}{value if key in _PRINTABLE_OPTIONS else '***'}" for key, equals, value in options)
    return f"{scheme}://{name}{colon}{'***' if colon else ''}{at}{host}{separator}{shown}"


_PRINTABLE_OPTIONS = frozenset({"auth", "cafile", "capath", "certfile", "heartbeat", "keyfile", "name", "timeout"})


class AddressUnavailable(BridgeError):
    """An address can't be listened on now: another program has it, or this machine is still without it.

    Not a fault of the settings, though they may have to change: whoever starts the bridge again may have more luck.
    """


class BrokerRefusal(BridgeError):
    """The broker answers, and says no in a way that retrying alone won't change: password, vhost, permission, kind."""

    exit_code = 3
