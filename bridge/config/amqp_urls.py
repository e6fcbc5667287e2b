"""Checks the broker's URLs completely before the first connection.

aio-pika accepts any text as a URL. If the query parameters of a URL are invalid, aio-pika ignores them, or tries
forever to connect with them.
"""

import base64
import binascii
import ipaddress
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, unquote_to_bytes, urlsplit

from yarl import URL

from bridge.config import parsers
from bridge.config.tls import load_certificate
from bridge.contract.text import printable
from bridge.errors import shown_value

TLS_OPTIONS = ("cadata", "cafile", "capath", "certfile", "keyfile")
KNOWN_OPTIONS = ("auth", "heartbeat", "name", "timeout", *TLS_OPTIONS)
"""The query parameters that the library (aiormq 7.2) reads from a URL, except UNSAFE."""

UNSAFE = "no_verify_ssl"
"""The query parameter that would disable TLS verification. The only accepted value is the default, 0."""

VIRTUAL_HOST_BYTES = 255
"""The maximum length, in bytes, of a virtual host's name (a short string of AMQP 0-9-1)."""

HOST_CHARACTERS = 253
"""The maximum length of a host name.

RFC 1035, section 2.3.4, allows 255 bytes, but these include a byte for the length of each label and a byte for the
root.
"""

MAX_HEARTBEAT_S = 65_534
"""The longest interval between heartbeats. With an interval longer than this, the library would not send heartbeats."""


def amqp_urls(text: str) -> tuple[str, ...]:
    """Parses one or more URLs, separated by commas. Raises ValueError with a description of the expected value."""
    # Only a comma before a scheme is a separator, because a password may contain commas.
    *others, last = (url.strip() for url in re.split(r",\s*(?=amqps?://)", text, flags=re.IGNORECASE))
    # If there is only one URL, a comma at its end belongs to the URL. A comma at the end of a list of URLs is ignored.
    urls = (*others, last.rstrip(", ") if others else last)
    for url in urls:
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("amqp", "amqps") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        # If an @ comes after the parsed host, the password contains / ? or #, and the parsed host is really a part of
        # the password.
        if usable and "," in parts.path:
            raise ValueError("amqp:// or amqps:// before each URL of a list; write a comma in a virtual host as %2C")
        if (
            not usable
            or parts.path.startswith("//")
            or "@" in parts.path + parts.query + parts.fragment
            or "\\" in parts.netloc
        ):
            raise ValueError(
                "amqp://user:password@host:port/vhost or amqps://..., or a list with commas; write / ? # @ \\ in the "
                "user name and the password as %2F %3F %23 %40 %5C"
            )
        _check_parts(url, parts)
        _check_as_parsed_by_yarl(url, parts)
        _check_query(parts.scheme == "amqps", parse_qsl(parts.query, keep_blank_values=True))
    return urls


def virtual_host(url: str) -> str:
    """The virtual host that the URL's path names, or `/` if the path names no virtual host."""
    return unquote(urlsplit(url).path[1:]) or "/"


def _check_parts(url: str, parts: SplitResult) -> None:
    """Raises ValueError if the libraries would change or ignore parts of a URL, or would retry forever because of them.

    The error's text does not show any part of the URL, because the URL may contain a password.
    """
    if not url.isprintable():
        # urlsplit removes tabs and newlines. A lone surrogate in a URL can't be sent.
        raise ValueError("a URL without control characters")
    if "#" in url:
        raise ValueError(
            "a URL without #, because everything after it is ignored; write # in a name or password as %23"
        )
    if not _is_host(parts.hostname or ""):
        raise ValueError("a host name or an address after // or @; each URL of a list begins with amqp:// or amqps://")
    for name in (parts.username or "", parts.password or "", parts.path):
        try:
            unquote_to_bytes(name).decode()
        except UnicodeDecodeError as error:
            raise ValueError("percent escapes that are valid UTF-8; write % itself as %25") from error
    if len(unquote_to_bytes(parts.path[1:])) > VIRTUAL_HOST_BYTES:
        raise ValueError(f"a virtual host of at most {VIRTUAL_HOST_BYTES} bytes")


def _check_as_parsed_by_yarl(url: str, parts: SplitResult) -> None:
    """Raises ValueError if aiormq would use a different host or user than the URL names.

    aiormq parses with yarl. The errors that yarl raises contain the password, so they are replaced by other errors.
    """
    try:
        parsed = URL(url)
        host = "" if parsed.host is None else _resolved(parsed.host)
        login = parsed.user or "", parsed.password or "", parsed.port
        # The virtual host is decoded as in aiormq's Connection (7.2), which decodes %2F a second time.
        name = parsed.path[1:].replace("%2F", "/") or "/"
    except ValueError:
        raise ValueError(
            "a URL that the AMQP library can parse; write characters other than ASCII as percent escapes of UTF-8"
        ) from None
    if host != _resolved(parts.hostname or ""):
        raise ValueError("a host name or an address that the AMQP library does not change; write the name in ASCII")
    if login != (unquote(parts.username or ""), unquote(parts.password or ""), parts.port):
        raise ValueError(
            "a user name and a password that the AMQP library does not change; write characters other than letters "
            "and digits as percent escapes"
        )
    if name != virtual_host(url):
        raise ValueError(
            "a virtual host that the AMQP library does not change: it resolves . and .. between slashes, and reads "
            "%252F as a slash; write each / inside the name as %2F, or rename the virtual host"
        )


def _is_host(host: str) -> bool:
    if ":" not in host and not re.fullmatch(r"[\w-]+(\.[\w-]+)*\.?", host):
        return False
    try:
        name = _resolved(host)
        if ":" not in host and re.fullmatch(r"[0-9]+|0x[0-9a-f]*", name.rpartition(".")[2]):
            socket.inet_aton(name)
    except (OSError, ValueError):
        return False
    return len(name.removesuffix(".")) <= HOST_CHARACTERS


def _resolved(host: str) -> str:
    """The name that the resolver looks up for a host. Raises ValueError if the resolver can't look up the host."""
    if ":" in host:
        return str(ipaddress.IPv6Address(unquote(host)))
    name = host.encode("idna").decode()
    # The library decodes the name, and the resolver encodes it again.
    name.encode().decode("idna")
    return name


def _check_query(over_tls: bool, pairs: list[tuple[str, str]]) -> None:
    query = dict(pairs)
    unknown = sorted(query.keys() - {*KNOWN_OPTIONS, UNSAFE})
    if unknown:
        raise ValueError(
            f"no parameters except {', '.join(KNOWN_OPTIONS)}; {printable(', '.join(unknown))} would be ignored"
        )
    if any(name == UNSAFE and value != "0" for name, value in pairs):
        raise ValueError(
            f"a URL without {UNSAFE}: TLS verification can't be disabled; name the authority's certificate, "
            "or that of the broker, with cafile=/path/to/it.pem"
        )
    if len(query) < len(pairs):
        raise ValueError("each parameter only once: the library ignores a second one")
    of_tls = [name for name in TLS_OPTIONS if name in query]
    if of_tls and not over_tls:
        raise ValueError(f"amqps:// with {', '.join(of_tls)}: without TLS, these parameters would be ignored")
    for name, check in _CHECKS.items():
        if name in query:
            try:
                check(query[name])
            except ValueError as error:
                raise ValueError(f"{name} to be {error}: {shown_value(query[name])}") from error
    _check_pair(query)
    if query.get("auth", "").lower() == "external" and "certfile" not in query:
        raise ValueError("amqps://, certfile and keyfile with auth=external: the certificate names the user")


def _check_pair(query: Mapping[str, str]) -> None:
    if "certfile" not in query:
        if "keyfile" in query:
            raise ValueError("certfile with keyfile: a key needs its certificate")
        return
    key = query.get("keyfile")
    try:
        load_certificate(ssl.create_default_context(), Path(query["certfile"]), None if key is None else Path(key))
    except OSError as error:
        hint = "; name the file of the key with keyfile" if key is None and "private key" in str(error) else ""
        raise ValueError(f"a certificate in certfile and its key in keyfile, but {error}{hint}") from error


def _authorities(text: str) -> Path:
    path = parsers.file(text)
    try:
        ssl.create_default_context(cafile=path)
    except ssl.SSLError as error:
        raise ValueError("a file with certificates (PEM)") from error
    return path


def _hashed_authorities(text: str) -> Path:
    path = parsers.folder(text)
    if not any(re.fullmatch(r"[0-9a-f]{8}\.[0-9]+", file.name) for file in path.iterdir()):
        raise ValueError("a folder with certificates that `openssl rehash` has named")
    return path


def _authority(text: str) -> str:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError, ssl.SSLError) as error:
        raise ValueError("certificates (DER) in Base64") from error
    return text


_CHECKS: Mapping[str, Callable[[str], object]] = {
    "auth": parsers.one_of("plain", "external"),
    "heartbeat": parsers.whole(0, MAX_HEARTBEAT_S),
    "name": parsers.name,
    "timeout": parsers.whole(1, 3600),
    "cadata": _authority,
    "cafile": _authorities,
    "capath": _hashed_authorities,
    "certfile": parsers.file,
    "keyfile": parsers.file,
}
