"""Which bridge to follow, what to ask it for, and whom to believe: from what was typed.

This file must never know a connection.
"""

import ssl
from collections.abc import Sequence
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from bridge.config.tls_version import require_tls_1_2
from bridge.contract.text import printable
from bridge.errors import ConfigurationError


def endpoint(url: str, types: Sequence[str], where: Sequence[str]) -> str:
    """The URL that asks a bridge for updates of some types, whose data has some values (`systemId=30000142`).

    Raises ConfigurationError with all that is wrong.
    """
    problems = []
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"ws", "wss"} and bool(parts.hostname) and not parts.fragment and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        problems.append(f"{printable(url)}: is no WebSocket URL, such as ws://localhost:3000/updates")
    elif "after" in parse_qs(parts.query, keep_blank_values=True):
        problems.append(f"{printable(url)}: has an id to start from, which is given with --after")
    asked = [("type", name) for name in types]
    for text in where:
        member, equals, value = text.partition("=")
        if not member or not equals:
            problems.append(f"--where {printable(text)}: must be MEMBER=VALUE, such as systemId=30000142")
        elif member in {"type", "after"}:
            problems.append(f"--where {printable(text)}: is given with --{member}")
        asked.append((member, value))
    if problems:
        raise ConfigurationError(problems)
    query = "&".join(filter(None, [parts.query, urlencode(asked, quote_via=quote)]))
    return parts._replace(query=query).geturl()


def trusting(url: str, cafile: str | None) -> ssl.SSLContext | None:
    """Who is believed to be the bridge: None where nobody is asked. Raises ConfigurationError."""
    if not url.startswith("wss:"):
        if cafile is not None:
            raise ConfigurationError(["--cafile: is for wss:// only"])
        return None
    try:
        context = ssl.create_default_context(cafile=cafile)
    except OSError as error:
        words = error.strerror if not isinstance(error, ssl.SSLError) else "holds no certificate"
        raise ConfigurationError([f"--cafile {printable(str(cafile))}: {words}"]) from error
    require_tls_1_2(context)
    return context
