"""Certificates, made by the openssl command: what a client is shown, before and after they are exchanged."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from bridge.fanout.tls import Tls

if TYPE_CHECKING:
    from pathlib import Path

OPENSSL = shutil.which("openssl")
pytestmark = pytest.mark.skipif(OPENSSL is None, reason="the openssl command, which makes the certificates, is missing")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two certificates and their keys: a.pem, a.key, b.pem, b.key."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("a", "b"):
        kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-days", "1"]
        output = ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem")]
        subprocess.run(
            [str(OPENSSL), "req", *kind, "-subj", f"/CN={name}.example.org", *output], check=True, capture_output=True
        )
    return folder


class Files:
    """The certificate and key that the settings name, with contents that change."""

    def __init__(self, folder: Path, certificates: Path) -> None:
        self.certificate, self.key = folder / "tls.pem", folder / "tls.key"
        self._certificates = certificates

    def hold(self, certificate: str, key: str) -> None:
        shutil.copy(self._certificates / f"{certificate}.pem", self.certificate)
        shutil.copy(self._certificates / f"{key}.key", self.key)


@pytest.fixture
def files(tmp_path: Path, certificates: Path) -> Files:
    return Files(tmp_path, certificates)


def shown(context: ssl.SSLContext) -> bytes:
    """The certificate that a client is shown, as PEM."""
    client_context = ssl.create_default_context()
    client_context.check_hostname = False
    client_context.verify_mode = ssl.CERT_NONE
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(5)
        theirs.settimeout(5)
        server = threading.Thread(target=lambda: context.wrap_socket(ours, server_side=True).close())
        server.start()
        with client_context.wrap_socket(theirs) as client:
            certificate = client.getpeercert(binary_form=True)
        server.join(5)
    assert certificate is not None
    return ssl.DER_cert_to_PEM_cert(certificate).encode()


def test_client_is_shown_the_certificate(files: Files) -> None:
    files.hold("a", "a")
    assert shown(Tls(files.certificate, files.key).context) == files.certificate.read_bytes()


def test_new_client_is_shown_what_the_files_hold_after_a_reload(files: Files) -> None:
    files.hold("a", "a")
    tls = Tls(files.certificate, files.key)
    files.hold("b", "b")
    context = tls.context
    tls.reload()
    assert tls.context is context, "whoever listens holds this context"
    assert shown(context) == files.certificate.read_bytes()


@pytest.mark.parametrize(("certificate", "key"), [("a", "b"), ("b", "a")])
def test_reload_of_a_pair_that_does_not_fit_raises_and_changes_nothing(
    files: Files, certificate: str, key: str
) -> None:
    files.hold("a", "a")
    before = files.certificate.read_bytes()
    tls = Tls(files.certificate, files.key)
    files.hold(certificate, key)
    with pytest.raises(OSError, match=r"the key in .*tls\.key is not that of the certificate in .*tls\.pem"):
        tls.reload()
    assert shown(tls.context) == before


def test_reload_of_files_that_are_gone_raises_and_changes_nothing(files: Files) -> None:
    files.hold("a", "a")
    before = files.certificate.read_bytes()
    tls = Tls(files.certificate, files.key)
    files.certificate.unlink()
    with pytest.raises(FileNotFoundError, match=r"tls\.pem"):
        tls.reload()
    assert shown(tls.context) == before


@pytest.mark.parametrize("content", [b"", b"not a certificate"])
def test_file_without_a_certificate_raises(files: Files, content: bytes) -> None:
    files.hold("a", "a")
    files.certificate.write_bytes(content)
    with pytest.raises(OSError, match=r"tls\.pem holds no certificate"):
        Tls(files.certificate, files.key)


@pytest.mark.parametrize("content", [b"", b"not a key"])
def test_file_without_a_key_raises(files: Files, content: bytes) -> None:
    files.hold("a", "a")
    files.key.write_bytes(content)
    with pytest.raises(OSError, match=r"tls\.key holds no private key"):
        Tls(files.certificate, files.key)


def test_damaged_certificate_raises_and_names_the_files(files: Files) -> None:
    files.hold("a", "a")
    files.certificate.write_bytes(files.certificate.read_bytes().replace(b"M", b"!"))
    with pytest.raises(OSError, match=r"tls\.pem, .*tls\.key: "):
        Tls(files.certificate, files.key)


def test_pair_that_does_not_fit_raises(files: Files) -> None:
    files.hold("a", "b")
    with pytest.raises(OSError, match=r"is not that of the certificate"):
        Tls(files.certificate, files.key)


def test_old_protocols_are_off_and_clients_need_no_certificate(files: Files) -> None:
    files.hold("a", "a")
    context = Tls(files.certificate, files.key).context
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_NONE
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION


def test_encrypted_key_is_an_error_and_not_a_question_at_the_terminal(files: Files) -> None:
    files.hold("a", "a")
    encrypted = ["ec", "-in", str(files.key), "-aes256", "-passout", "pass:secret", "-out", str(files.key)]
    subprocess.run([str(OPENSSL), *encrypted], check=True, capture_output=True)
    with pytest.raises(OSError, match="is encrypted, and must not be"):
        Tls(files.certificate, files.key)
