"""Turns the errors of aiormq, OpenSSL and the operating system into texts that tell the operator what to do.

The texts never contain a password. The only address that these texts contain is the node's.
"""

import asyncio
import errno
import ipaddress
import os
import re
import ssl
from collections.abc import Callable, Mapping
from enum import StrEnum

import aiormq
from yarl import URL

from bridge.amqp.nodes import Node
from bridge.amqp.wire.compat import close_frame_of
from bridge.contract.text import printable
from bridge.errors import BrokerRefusal

# Texts


def error_text(error: BaseException) -> str:
    """Returns the error text of the broker or of the operating system, without the text that aiormq adds.

    A full stop at the end is removed, because a hint may follow the text.
    """
    text = str(error.args[-1]) if error.args else type(error).__name__
    return printable(text).rstrip(".") or type(error).__name__


_CONNECT_FAILED = re.compile(r"\[Errno (\d+)\] Connect call failed")


def os_error_text(error: OSError | UnicodeError) -> str:
    """Returns the operating system's text for an error, without addresses.

    The errors that uvloop raises have the operating system's text. The errors that asyncio raises have asyncio's own
    text, which contains the address of each attempt.
    """
    codes = dict.fromkeys(_CONNECT_FAILED.findall(str(error)))
    return "; ".join(os.strerror(int(code)) for code in codes) or error_text(error)


# Failed attempts to connect

NOT_ALLOWED = 530
"""The reply code for a virtual host that does not exist, forbids the user, or has reached its connection limit.

Only the connection limit can resolve itself; for the other causes, the operator must change something.
"""


def connect_error(node: Node, url: URL, error: aiormq.exceptions.AMQPError) -> BrokerRefusal | ConnectionError:
    """Returns the error to raise after a failed attempt to connect: a BrokerRefusal if only an operator can help."""
    if isinstance(error, aiormq.exceptions.ProbableAuthenticationError):
        return BrokerRefusal(f"{node} {_login_refused_text(url, error_text(error))}")
    if isinstance(error, aiormq.exceptions.AuthenticationError):
        return BrokerRefusal(f"{node} {_mechanism_missing_text(url, error)}")
    close = close_frame_of(error)
    if close is not None and close.reply_code == NOT_ALLOWED and "limit" not in str(close.reply_text):
        return BrokerRefusal(
            f"{node} refuses this user access to the virtual host {node.virtual_host!r}; "
            f"create the virtual host, or grant permissions on it: {printable(str(close.reply_text))}"
        )
    if close is not None:
        text = printable(str(close.reply_text))
    elif isinstance(error.__cause__, ssl.SSLError):
        text = tls_error_text(error.__cause__)
    elif isinstance(error.__cause__, asyncio.IncompleteReadError | ConnectionResetError):
        text = early_eof_text(url.scheme, has_certificate="certfile" in url.query)
    else:
        text = error_text(error)
    return ConnectionError(f"{node}: {text}")


def unreachable_text(error: OSError | UnicodeError, host: str) -> str:
    """Returns the reason why the host can't be reached, with a hint if the host is the bridge's own container."""
    text = os_error_text(error)
    hint = localhost_hint(host, detect_container()) if os.strerror(errno.ECONNREFUSED) in text else None
    return text if hint is None else f"{text}; {hint}"


def _login_refused_text(url: URL, text: str) -> str:
    if url.query.get("auth", "").lower() == "external":
        return f"refuses the user that the certificate names: {text}"
    return f"refuses the user name or the password in its URL: {text}; if the password is a token, it may have expired"


def _mechanism_missing_text(url: URL, error: aiormq.exceptions.AuthenticationError) -> str:
    """Returns advice to give if the broker does not offer the SASL mechanism that `auth` in the URL asks for."""
    asked = url.query.get("auth", "plain").lower()
    offered = printable(str(error.args[0])) if error.args else "nothing"
    if asked == "external":
        hint = "enable its plugin rabbitmq_auth_mechanism_ssl, and EXTERNAL in auth_mechanisms, or omit auth"
    else:
        hint = "allow PLAIN in its auth_mechanisms, or set auth=external with certfile and keyfile"
    return f"does not offer auth={asked}, but {offered}: {hint}"


# TLS

HOSTNAME_MISMATCH_CODES = frozenset({62, 64})
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""

UNKNOWN_ISSUER_CODES = frozenset({18, 19, 20, 21})
"""OpenSSL's X509_V_ERR_ codes for self-signed certificates (alone or in a chain) and for unknown issuers."""

CERTIFICATE = "a client certificate: add ?certfile=/path/of/it.pem&keyfile=/path/of/its/key.pem to the URL"

CERTIFICATE_REQUIRED_REASONS = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it requires",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "it refuses the TLS handshake; it may require",
}
"""The error reasons that OpenSSL gives if the broker requires a client certificate.

TLS 1.2 has no special alert for a missing client certificate.
"""

CERTIFICATE_REFUSED_REASONS = frozenset(
    {
        "SSLV3_ALERT_BAD_CERTIFICATE",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "SSLV3_ALERT_CERTIFICATE_REVOKED",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        "TLSV1_ALERT_UNKNOWN_CA",
    }
)
"""The error reasons that OpenSSL gives if the broker does not accept the client certificate."""

PLAIN_EOF_TEXT = (
    "it closed the connection before it sent anything in AMQP; if it uses TLS on this port, use amqps:// in the URL, "
    "or this is not the AMQP port (usually 5672)"
)
"""The error text for a connection without TLS that ends at once.

A plain AMQP connection is closed at once by a TLS port, by an HTTP port, and by a proxy whose broker is down.
"""


def tls_error_text(error: ssl.SSLError) -> str:
    """Returns a sentence that describes a TLS error, without the name of the broker."""
    if isinstance(error, ssl.SSLCertVerificationError):
        text = error.verify_message.rstrip(".")
        if error.verify_code in HOSTNAME_MISMATCH_CODES:
            return f"its certificate is for another host, so nothing is sent to it: {text}"
        hint = (
            "; if it is the right one, add ?cafile=/path/of/the/authority.pem, its issuer's certificate, to the URL"
            if error.verify_code in UNKNOWN_ISSUER_CODES
            else ""
        )
        return f"its certificate is not trusted, so nothing is sent to it: {text}{hint}"
    # An SSLError has no `reason` if OpenSSL did not raise it.
    reason = getattr(error, "reason", None)
    if reason in CERTIFICATE_REQUIRED_REASONS:
        return f"{CERTIFICATE_REQUIRED_REASONS[reason]} {CERTIFICATE}"
    if reason in CERTIFICATE_REFUSED_REASONS:
        return f"it does not accept the bridge's certificate (certfile in the URL): {reason}"
    if reason == "WRONG_VERSION_NUMBER":
        return "it does not speak TLS on this port: amqps:// is usually on 5671, amqp:// on 5672"
    return f"the TLS handshake failed: {reason or error}"


def early_eof_text(scheme: str, *, has_certificate: bool) -> str:
    """Returns a text that suggests why the broker closed the connection before it sent anything."""
    if scheme == "amqp":
        return PLAIN_EOF_TEXT
    if has_certificate:
        return "it closed the connection at once; it may not accept the bridge's certificate (certfile in the URL)"
    return f"it closed the connection at once; it may require {CERTIFICATE}"


# Containers (in a container, `localhost` means the container, not the machine that runs it)

_CONTAINER_FILES = ("/.dockerenv", "/run/.containerenv")
"""Files that Docker and Podman create in each container."""


class Container(StrEnum):
    """The kind of container that this process runs in. Each value is the phrase that names the container in a hint."""

    CONTAINER = "this container"
    POD = "this pod"


def detect_container(
    environment: Mapping[str, str] = os.environ, exists: Callable[[str], bool] = os.path.exists
) -> Container | None:
    """Returns the kind of container that this process runs in, or None if nothing shows that it runs in one."""
    if environment.get("KUBERNETES_SERVICE_HOST"):
        return Container.POD
    # systemd-nspawn, LXC and Podman set the environment variable `container` (systemd, "Container Interface").
    if environment.get("container") or any(map(exists, _CONTAINER_FILES)):
        return Container.CONTAINER
    return None


def localhost_hint(host: str, container: Container | None) -> str | None:
    """Returns advice if `host` is the container that this process runs in, otherwise None."""
    if container is None or not _is_loopback(host):
        return None
    machine = ", or host.docker.internal for the machine that Docker runs on"
    return (
        f"in a container, {host} is {container} itself: name the broker's service or host, as in "
        f"amqp://user:password@rabbitmq:5672/{machine if container is Container.CONTAINER else ''}"
    )


def _is_loopback(host: str) -> bool:
    name = host.lower().removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
