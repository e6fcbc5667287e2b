"""TLS for `wss://`: the certificate and its key, which may be exchanged while the bridge runs."""

import ssl
from pathlib import Path


class Tls:
    """A server context that can read its certificate again without dropping anyone."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises OSError (ssl.SSLError is one) where the files can't be used."""
        self._files = (certificate, key)
        self.context = _context(certificate, key)

    def reload(self) -> None:
        """New connections get what the files hold now; where they are unusable, raises OSError and changes nothing."""
        _context(*self._files)
        self.context.load_cert_chain(*self._files, password=_no_password)


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    # OpenSSL 3 does without it, unless it was built or configured otherwise: one small record asks for a handshake's
    # work, again and again.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.load_cert_chain(certificate, key, password=_no_password)
    return context


def _no_password() -> str:
    """For an encrypted key, instead of OpenSSL's question at the terminal, which nobody may be there to answer."""
    return ""
