"""TLS for `wss://`: the certificate and its key, which may be exchanged while the bridge runs."""

import ssl
from pathlib import Path

from bridge.config.certificates import load_pair
from bridge.config.tls_version import require_tls_1_2


class Tls:
    """A server context that can read its certificate again without dropping anyone."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises OSError, whose text says what is wrong with which file."""
        self._files = (certificate, key)
        self.context = _context(certificate, key)
        """For whoever connects from now on."""

    def reload(self) -> None:
        """New connections get what the files hold now; where they are unusable, raises OSError and changes nothing."""
        # A new one: a context has a certificate for each kind of key, and would go on to show the old one beside.
        self.context = _context(*self._files)


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    require_tls_1_2(context)
    # OpenSSL 3 does without it, unless it was built or configured otherwise: one small record asks for a handshake's
    # work, again and again.
    context.options |= ssl.OP_NO_RENEGOTIATION
    load_pair(context, certificate, key)
    return context
