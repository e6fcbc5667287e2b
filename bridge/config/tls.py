"""TLS contexts for servers and clients: the minimum version, and the certificate with its private key."""

import ssl
from pathlib import Path


def require_tls_1_2(context: ssl.SSLContext) -> None:
    """Sets the minimum version to TLS 1.2, unless OpenSSL's configuration on this system requires a newer version.

    Debian 12 sets TLS 1.2 as the minimum for all programs. However, the default context of Debian's Python 3.14 has no
    minimum version.
    """
    context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)


def load_certificate(context: ssl.SSLContext, certificate: Path, key: Path | None = None) -> None:
    """Loads a certificate and its private key. Without `key`, the file `certificate` also contains the key.

    If a file can't be used, raises OSError with the file's name and the reason.
    """
    # If a file is not PEM, OpenSSL's error names neither the file nor the reason.
    if b"-----BEGIN CERTIFICATE" not in certificate.read_bytes():
        raise OSError(f"{certificate} has no certificate (PEM)")
    key = key or certificate
    text = key.read_bytes()
    if b"PRIVATE KEY-----" not in text:
        raise OSError(f"{key} has no private key (PEM)")
    if b"ENCRYPTED" in text:
        raise OSError(f"the key in {key} is encrypted: the bridge can't ask for its passphrase; give a key without one")
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise OSError(f"the key in {key} does not belong to the certificate in {certificate}") from error
        raise OSError(f"{certificate}, {key}: {error.reason or error}") from error


def _no_password() -> str:
    """Prevents OpenSSL from asking for the passphrase of an encrypted key at the terminal."""
    return ""
