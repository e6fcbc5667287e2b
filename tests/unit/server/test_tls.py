"""Tests which certificate a client gets, before and after a reload. The openssl command makes the certificates."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import pytest

from bridge.server.tls import Tls
from tests.support.broker.session import needs

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs("openssl")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes a folder with certificates and keys: a.pem, a.key, b.pem and b.key, and rsa.pem and rsa.key for RSA."""
    folder = tmp_path_factory.mktemp("certificates")
    elliptic = ["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    for name, new_key in {"a": elliptic, "b": elliptic, "rsa": ["rsa:2048"]}.items():
        kind = ["-x509", "-newkey", *new_key, "-noenc", "-days", "1"]
        output = ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem")]
        subprocess.run(
            ["openssl", "req", *kind, "-subj", f"/CN={name}.example.org", *output], check=True, capture_output=True
        )
    return folder


class Files:
    """The files of a certificate and its key, whose contents a test changes."""

    def __init__(self, folder: Path, certificates: Path) -> None:
        self.certificate, self.key = folder / "tls.pem", folder / "tls.key"
        self._certificates = certificates

    def hold(self, certificate: str, key: str) -> None:
        shutil.copy(self._certificates / f"{certificate}.pem", self.certificate)
        shutil.copy(self._certificates / f"{key}.key", self.key)


@pytest.fixture
def files(tmp_path: Path, certificates: Path) -> Files:
    return Files(tmp_path, certificates)


def shake(context: ssl.SSLContext, line: socket.socket) -> None:
    """Runs the server's side of a handshake. If the handshake fails, the client's side reports the failure."""
    with suppress(OSError):
        context.wrap_socket(line, server_side=True).close()


class Shown(NamedTuple):
    """What a client learns from a handshake."""

    certificate: bytes
    """The certificate, as PEM."""
    cipher: str


def client_without_checks() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def connected(context: ssl.SSLContext, client_context: ssl.SSLContext) -> Shown:
    """Makes a handshake with the server's and the client's context."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(5)
        theirs.settimeout(5)
        server = threading.Thread(target=shake, args=(context, ours))
        server.start()
        try:
            with client_context.wrap_socket(theirs) as client:
                certificate, cipher = client.getpeercert(binary_form=True), client.cipher()
        finally:
            server.join(5)
    assert certificate is not None
    assert cipher is not None
    return Shown(ssl.DER_cert_to_PEM_cert(certificate).encode(), cipher[0])


def shown(context: ssl.SSLContext, ciphers: str | None = None) -> bytes:
    """Returns the certificate that a client gets, as PEM. The client's `ciphers` select the key type."""
    client_context = client_without_checks()
    if ciphers is not None:
        client_context.maximum_version = ssl.TLSVersion.TLSv1_2
        client_context.set_ciphers(ciphers)
    return connected(context, client_context).certificate


def test_client_gets_the_certificate(files: Files) -> None:
    files.hold("a", "a")
    assert shown(Tls(files.certificate, files.key).context) == files.certificate.read_bytes()


def test_new_client_gets_the_new_certificate_after_a_reload(files: Files) -> None:
    files.hold("a", "a")
    tls = Tls(files.certificate, files.key)
    files.hold("b", "b")
    tls.reload()
    assert shown(tls.context) == files.certificate.read_bytes()


@pytest.mark.parametrize(("old", "new"), [("a", "rsa"), ("rsa", "a")])
def test_old_certificate_is_not_used_after_a_reload_with_any_key_type(files: Files, old: str, new: str) -> None:
    """A TLS context has one certificate for each key type, and sends the one whose type the client prefers."""
    files.hold(old, old)
    tls = Tls(files.certificate, files.key)
    files.hold(new, new)
    tls.reload()
    kinds = {"a": "ECDHE-ECDSA-AES128-GCM-SHA256", "rsa": "ECDHE-RSA-AES128-GCM-SHA256"}
    assert shown(tls.context, kinds[new]) == files.certificate.read_bytes()
    with pytest.raises(ssl.SSLError):
        shown(tls.context, kinds[old])


@pytest.mark.parametrize(("certificate", "key"), [("a", "b"), ("b", "a")])
def test_reload_of_a_pair_that_does_not_fit_raises_and_changes_nothing(
    files: Files, certificate: str, key: str
) -> None:
    files.hold("a", "a")
    before = files.certificate.read_bytes()
    tls = Tls(files.certificate, files.key)
    files.hold(certificate, key)
    with pytest.raises(OSError, match=r"the key in .*tls\.key does not belong to the certificate in .*tls\.pem"):
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


@pytest.mark.parametrize("content", [b"", b"something else"])
@pytest.mark.parametrize(
    ("name", "words"), [("tls.pem", r"tls\.pem has no certificate"), ("tls.key", r"tls\.key has no private key")]
)
def test_file_without_its_certificate_or_key_raises(files: Files, name: str, words: str, content: bytes) -> None:
    files.hold("a", "a")
    files.certificate.with_name(name).write_bytes(content)
    with pytest.raises(OSError, match=words):
        Tls(files.certificate, files.key)


def test_damaged_certificate_raises_and_names_the_files(files: Files) -> None:
    files.hold("a", "a")
    files.certificate.write_bytes(files.certificate.read_bytes().replace(b"M", b"!"))
    with pytest.raises(OSError, match=r"tls\.pem, .*tls\.key: "):
        Tls(files.certificate, files.key)


def test_pair_that_does_not_fit_raises(files: Files) -> None:
    files.hold("a", "b")
    with pytest.raises(OSError, match=r"does not belong to the certificate"):
        Tls(files.certificate, files.key)


def test_old_protocols_are_off_and_clients_need_no_certificate(files: Files) -> None:
    files.hold("a", "a")
    context = Tls(files.certificate, files.key).context
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_NONE
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION


@pytest.mark.parametrize("first", [0, 1])
def test_client_chooses_the_cipher(files: Files, first: int) -> None:
    files.hold("a", "a")
    ciphers = ["ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-ECDSA-AES128-GCM-SHA256"]
    client_context = client_without_checks()
    client_context.maximum_version = ssl.TLSVersion.TLSv1_2
    client_context.set_ciphers(":".join([ciphers[first], ciphers[1 - first]]))
    assert connected(Tls(files.certificate, files.key).context, client_context).cipher == ciphers[first]


def test_client_gets_one_ticket(files: Files) -> None:
    files.hold("a", "a")
    assert Tls(files.certificate, files.key).context.num_tickets == 1


def test_encrypted_key_is_an_error_and_not_a_prompt(files: Files) -> None:
    files.hold("a", "a")
    encrypted = ["ec", "-in", str(files.key), "-aes256", "-passout", "pass:secret", "-out", str(files.key)]
    subprocess.run(["openssl", *encrypted], check=True, capture_output=True)
    with pytest.raises(OSError, match="is encrypted: the bridge can't ask"):
        Tls(files.certificate, files.key)
