"""The errors that end the program, each with an exit code, and functions that hide passwords in errors.

Each error that is not in this module is defined in the package where it occurs. For example, `server` defines the
errors for refused clients.
"""

import re
from collections.abc import Sequence

from bridge.contract.text import printable

SHOWN_CHARACTERS = 80
"""The maximum length of a value in an error, in characters."""


class BridgeError(Exception):
    """Ends the program with `exit_code`. The error's text is for the operator."""

    exit_code = 1


class ConfigurationError(BridgeError):
    """The settings or the schema files can't be used. The error lists all problems, and not only the first one."""

    exit_code = 2

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


def redact(text: str) -> str:
    """Hides all text before the last @, because a URL's password may be in this text, and may itself contain an @."""
    return re.sub(r".*@", "***@", text, flags=re.DOTALL)


def shown_argument(text: str) -> str:
    """Redacts, escapes and shortens an argument, so that an error can show it.

    A misplaced argument may be a URL with a password.
    """
    return printable(redact(text))


def may_be_key(text: str) -> bool:
    """Whether a value may be a private key (PEM), because it has a PEM header or a line break."""
    return "-----BEGIN" in text or len(f"{text}.".splitlines()) > 1


def shown_value(text: str) -> str:
    """Quotes, redacts, escapes and shortens an invalid value, so that an error can show it. Hides a private key."""
    if may_be_key(text):
        return "its value"
    return repr(printable(redact(text), SHOWN_CHARACTERS))


def redact_url(url: str) -> str:
    """Returns a broker's URL without its password, and without the values of options that may be secret."""
    before, separator, behind = url.partition("?")
    scheme, _, address = before.partition("://")
    user, at, host = address.rpartition("@")
    name, colon, _ = user.partition(":")
    options = [option.partition("=") for option in behind.split("&") if option]
    # The option `cadata` is a certificate, and an unknown option may be a secret.
    shown = "&".join(f"{key}{equals}{value if key in _PRINTABLE_OPTIONS else '***'}" for key, equals, value in options)
    return f"{scheme}://{name}{colon}{'***' if colon else ''}{at}{host}{separator}{shown}"


_PRINTABLE_OPTIONS = frozenset({"auth", "cafile", "capath", "certfile", "heartbeat", "keyfile", "name", "timeout"})


class AddressUnavailable(BridgeError):
    """The bridge can't listen on an address, so BRIDGE_HOST or BRIDGE_PORT must be changed."""

    exit_code = 2


class BrokerRefusal(BridgeError):
    """The broker refuses the password, the virtual host or a permission, or an exchange is of the wrong kind."""

    exit_code = 3
