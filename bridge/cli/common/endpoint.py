"""Builds the URL of the requested updates, and the TLS context for this URL, from a command's options."""

import ssl
from collections.abc import Sequence
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from bridge.config.tls import require_tls_1_2
from bridge.errors import ConfigurationError, shown_argument


def endpoint(url: str, types: Sequence[str], where: Sequence[str]) -> str:
    """Returns the URL for updates that have these types, and these values (`systemId=30000142`) in their data.

    Raises ConfigurationError with all problems.
    """
    problems = []
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"ws", "wss"} and bool(parts.hostname) and not parts.fragment and parts.port != 0
        lacks_password = parts.username is not None and parts.password is None
        # The client library would raise an error later for bytes that are not UTF-8, even if these bytes are
        # percent-encoded in the user name or the password. The library would also raise an error if a label of the host
        # name is empty or too long.
        url.encode()
        unquote(f"{parts.username}{parts.password}", errors="strict")
        (parts.hostname or "").encode("idna")
    except ValueError:
        usable = False
    if not usable:
        problems.append(f"{shown_argument(url)}: this is not a WebSocket URL such as ws://localhost:3000/updates")
    elif lacks_password:
        problems.append(f"{shown_argument(url)}: give a password after the user name, or no user name")
    elif "after" in parse_qs(parts.query, keep_blank_values=True):
        problems.append(f"{shown_argument(url)}: remove the parameter `after`, and give the id with --after")
    asked = [("type", name) for name in types]
    for text in where:
        member, equals, value = text.partition("=")
        if not member or not equals:
            problems.append(f"--where {shown_argument(text)}: write MEMBER=VALUE, such as systemId=30000142")
        elif member in {"type", "after"}:
            problems.append(f"--where {shown_argument(text)}: give this value with --{member}")
        asked.append((member, value))
    if problems:
        raise ConfigurationError(problems)
    query = "&".join(filter(None, [parts.query, urlencode(asked, quote_via=quote, errors="surrogateescape")]))
    return parts._replace(query=query).geturl()


def shown_url(url: str) -> str:
    """Returns a URL as messages can show it: printable, and without user, password and query."""
    parts = urlsplit(url)
    # An @ in the path may be a part of the URL's password, if the password contains a slash.
    return f"{parts.scheme}://{shown_argument(parts.netloc.rpartition('@')[2] + parts.path)}"


def tls_context(url: str, cafile: str | None) -> ssl.SSLContext | None:
    """Returns the TLS context that verifies the bridge's certificate, or None for a URL without TLS.

    Raises ConfigurationError.
    """
    if not url.startswith("wss:"):
        if cafile is not None:
            raise ConfigurationError(["--cafile: this option needs a URL with wss://"])
        return None
    try:
        context = ssl.create_default_context(cafile=cafile)
    except OSError as error:
        reason = error.strerror if not isinstance(error, ssl.SSLError) else "the file has no certificate (PEM)"
        raise ConfigurationError([f"--cafile {shown_argument(str(cafile))}: {reason}"]) from error
    require_tls_1_2(context)
    return context
