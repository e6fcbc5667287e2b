"""TLS for `wss://`, with a certificate and a key that can be replaced while the bridge runs."""

import ssl
from pathlib import Path

from bridge.config.tls import load_certificate, require_tls_1_2


class Tls:
    """A TLS configuration that can reload its certificate without closing connections."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises OSError, whose text names the invalid file and its fault."""
        self._files = (certificate, key)
        self.context = _context(certificate, key)
        """The SSL context for new connections."""

    def reload(self) -> None:
        """Reads the certificate and the key again, for new connections.

        Raises OSError and keeps the old context if the files are invalid.
        """
        # The function makes a new context, because an SSL context holds one certificate for each type of key. If the
        # new key were of another type, the old context would keep the old certificate as well.
        self.context = _context(*self._files)


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    require_tls_1_2(context)
    # OpenSSL 3 disables renegotiation by default, but some builds and configurations may enable it. If renegotiation
    # were enabled, each small record of a client could start another expensive handshake.
    context.options |= ssl.OP_NO_RENEGOTIATION
    # The client chooses the cipher: a browser knows whether its processor has instructions for AES. On such a processor
    # it prefers AES-128, which takes 5 % less time for large records than OpenSSL's first choice, AES-256.
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    # A client keeps one connection open, so it does not need the second of the two tickets that OpenSSL would send. One
    # ticket less saves up to a fifth of the handshake's processor time.
    context.num_tickets = 1
    load_certificate(context, certificate, key)
    return context
