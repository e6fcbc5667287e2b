"""TLS for `wss://`: a certificate and its key, which can be replaced while the bridge runs."""

import ssl
from pathlib import Path

from bridge.config.tls import load_certificate, require_tls_1_2


class Tls:
    """A context for TLS servers that can read its certificate again. Open connections stay open."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises OSError, with the file and its fault in the text."""
        self._files = (certificate, key)
        self.context = _context(certificate, key)
        """The context for new connections."""

    def reload(self) -> None:
        """Reads the files again, for new connections. Raises OSError, and keeps the old context, if that fails."""
        # A context holds one certificate for each type of key. With a new key type, the old one would still be used.
        self.context = _context(*self._files)


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    require_tls_1_2(context)
    # OpenSSL 3 disables renegotiation by default, but builds and configurations may differ. With renegotiation, each
    # small record of a client could start another expensive handshake.
    context.options |= ssl.OP_NO_RENEGOTIATION
    load_certificate(context, certificate, key)
    return context
