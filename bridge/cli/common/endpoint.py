"""Builds the URL of the requested updates, and the TLS context for this URL, from a command's options."""

import ssl
from collections.abc import Sequence
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from bridge.config.tls import require_tls_1_2
from bridge.contract.filters import PARAMETERS, parameter
from bridge.errors import ConfigurationError, shown_argument

_HTTP = {"ws": "http", "wss": "https"}

_EXPECTED = {
    False: "a WebSocket URL such as ws://localhost:3000/updates",
    True: "a URL such as http://localhost:3000/updates or ws://localhost:3000/updates",
}
"""Descriptions of the expected URL, without and with --sse."""


def endpoint(url: str, types: Sequence[str], where: Sequence[str], *, sse: bool = False) -> str:
    """Returns the URL for updates that have these types, and these values (`systemId=30000142`) in their data.

    With `sse`, the result begins with http:// or https://, and `url` may begin so too. Raises ConfigurationError with
    all problems.
    """
    problems = []
    try:
        parts = urlsplit(url)
        parts = parts._replace(scheme=_HTTP.get(parts.scheme, parts.scheme) if sse else parts.scheme)
        schemes = _HTTP.values() if sse else _HTTP.keys()
        usable = parts.scheme in schemes and bool(parts.hostname) and not parts.fragment and parts.port != 0
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
        problems.append(f"{shown_argument(url)}: this is not {_EXPECTED[sse]}")
    elif lacks_password:
        problems.append(f"{shown_argument(url)}: give a password after the user name, or no user name")
    else:
        given = parse_qs(parts.query, keep_blank_values=True)
        problems += [
            f"{shown_argument(url)}: remove the parameter `{name}`, and give its value with --{name}"
            for name in ("after", "last")
            if name in given
        ]
    asked = [("type", name) for name in types]
    for text in where:
        member, equals, value = text.partition("=")
        if not member or not equals:
            problems.append(f"--where {shown_argument(text)}: write MEMBER=VALUE, such as systemId=30000142")
        elif member in {"type", "after", "last"}:
            problems.append(f"--where {shown_argument(text)}: give this value with --{member}")
        # A member with the name of a parameter needs a prefix. A user may also write this prefix.
        asked.append((parameter(member) if member in PARAMETERS else member, value))
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
    if not url.startswith(("wss:", "https:")):
        if cafile is not None:
            raise ConfigurationError(["--cafile: this option needs a URL with wss:// or https://"])
        return None
    try:
        context = ssl.create_default_context(cafile=cafile)
    except OSError as error:
        reason = error.strerror if not isinstance(error, ssl.SSLError) else "the file has no certificate (PEM)"
        raise ConfigurationError([f"--cafile {shown_argument(str(cafile))}: {reason}"]) from error
    require_tls_1_2(context)
    return context
