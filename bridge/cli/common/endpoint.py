"""Builds the URL of the requested updates and its TLS context from the options of a command."""

import ssl
from collections.abc import Sequence
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from bridge.config.tls import require_tls_1_2
from bridge.contract.text import printable
from bridge.errors import ConfigurationError


def endpoint(url: str, types: Sequence[str], where: Sequence[str]) -> str:
    """Returns the URL for updates of some types, and with some values in their data (`systemId=30000142`).

    Raises ConfigurationError with all problems.
    """
    problems = []
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"ws", "wss"} and bool(parts.hostname) and not parts.fragment and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        problems.append(f"{printable(url)}: this is not a WebSocket URL such as ws://localhost:3000/updates")
    elif "after" in parse_qs(parts.query, keep_blank_values=True):
        problems.append(f"{printable(url)}: remove the parameter `after`, and give the id with --after")
    asked = [("type", name) for name in types]
    for text in where:
        member, equals, value = text.partition("=")
        if not member or not equals:
            problems.append(f"--where {printable(text)}: write MEMBER=VALUE, such as systemId=30000142")
        elif member in {"type", "after"}:
            problems.append(f"--where {printable(text)}: give this value with --{member}")
        asked.append((member, value))
    if problems:
        raise ConfigurationError(problems)
    query = "&".join(filter(None, [parts.query, urlencode(asked, quote_via=quote)]))
    return parts._replace(query=query).geturl()


def tls_context(url: str, cafile: str | None) -> ssl.SSLContext | None:
    """Returns the TLS context that verifies the bridge's certificate; None without TLS. Raises ConfigurationError."""
    if not url.startswith("wss:"):
        if cafile is not None:
            raise ConfigurationError(["--cafile: this option needs a URL with wss://"])
        return None
    try:
        context = ssl.create_default_context(cafile=cafile)
    except OSError as error:
        reason = error.strerror if not isinstance(error, ssl.SSLError) else "the file has no certificate (PEM)"
        raise ConfigurationError([f"--cafile {printable(str(cafile))}: {reason}"]) from error
    require_tls_1_2(context)
    return context
