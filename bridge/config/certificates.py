"""A certificate and its private key from files, with errors that say which file is wrong, and how."""

import ssl
from pathlib import Path


def load_pair(context: ssl.SSLContext, certificate: Path, key: Path | None = None) -> None:
    """Loads both into the context; with `key` None, the key is in the certificate's file. Raises OSError."""
    # Looked into first: of what is no PEM, OpenSSL says neither what it is nor in which file.
    if b"-----BEGIN CERTIFICATE" not in certificate.read_bytes():
        raise OSError(f"{certificate} holds no certificate (PEM)")
    key = key or certificate
    text = key.read_bytes()
    if b"PRIVATE KEY-----" not in text:
        raise OSError(f"{key} holds no private key (PEM)")
    if b"ENCRYPTED" in text:
        raise OSError(f"the key in {key} is encrypted, and must not be: nobody is there to give its passphrase")
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise OSError(f"the key in {key} is not that of the certificate in {certificate}") from error
        raise OSError(f"{certificate}, {key}: {error.reason or error}") from error


def _no_password() -> str:
    """For an encrypted key all the same, instead of OpenSSL's question at the terminal."""
    return ""
