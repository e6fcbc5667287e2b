"""Certificates for tests of TLS, made by the openssl command."""

import shutil
import subprocess
from pathlib import Path

from tests.support.broker.session import unavailable


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Makes a self-signed certificate for 127.0.0.1. Returns the paths of the certificate and its key."""
    if shutil.which("openssl") is None:
        unavailable("the openssl command, which makes the certificates, is missing")
    files = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
            ),
            *("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-out", files[0], "-keyout", files[1]),
        ],
        check=True,
        capture_output=True,
    )
    return files
