"""Tests that the texts of connection errors name the fault and the cure, and contain no addresses or passwords."""

from __future__ import annotations

import asyncio
import ssl

import aiormq
import pytest

from bridge.amqp.connection_errors import (
    Container,
    detect_container,
    early_eof_text,
    error_text,
    localhost_hint,
    os_error_text,
    tls_error_text,
)

# Texts


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (OSError("Multiple exceptions: one, two"), "Multiple exceptions: one, two"),
        (
            aiormq.exceptions.ChannelNotFoundEntity("NOT_FOUND - no exchange 'killmails'"),
            "NOT_FOUND - no exchange 'killmails'",
        ),
        (aiormq.exceptions.ConnectionClosed(320, "CONNECTION_FORCED"), "CONNECTION_FORCED"),
        (asyncio.CancelledError(), "CancelledError"),
        (RuntimeError(), "RuntimeError"),
        (RuntimeError(""), "RuntimeError"),
        (RuntimeError("two\nlines"), "two\\nlines"),
        (RuntimeError("For details see the broker logfile."), "For details see the broker logfile"),
        (RuntimeError("..."), "RuntimeError"),
    ],
    ids=repr,
)
def test_error_text_is_the_last_part_of_the_error(error: BaseException, words: str) -> None:
    assert error_text(error) == words


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 5672)"), "Connection refused"),
        (
            OSError(
                "Multiple exceptions: [Errno 111] Connect call failed ('::1', 5672, 0, 0), "
                "[Errno 101] Connect call failed ('127.0.0.1', 5672)"
            ),
            "Connection refused; Network is unreachable",
        ),
        (OSError(-2, "Name or service not known"), "Name or service not known"),
    ],
    ids=str,
)
def test_text_for_a_failed_connect_has_no_addresses(error: OSError, words: str) -> None:
    assert os_error_text(error) == words


def test_long_sentence_is_cut() -> None:
    assert len(error_text(RuntimeError("x" * 100_000))) < 500


# TLS


def refused(code: int, message: str) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed (_ssl.c:1006)")
    error.verify_code, error.verify_message = code, message
    return error


def failed(reason: str | None) -> ssl.SSLError:
    error = ssl.SSLError(1, "a text of OpenSSL")
    if reason is not None:
        error.reason = reason
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            refused(18, "self-signed certificate"),
            "not trusted, so nothing is sent to it: self-signed certificate; if",
        ),
        (
            refused(10, "certificate has expired"),
            "not trusted, so nothing is sent to it: certificate has expired",
        ),
        (refused(62, "Hostname mismatch, certificate is not valid for 'mq'."), "for another host"),
        (refused(64, "IP address mismatch, certificate is not valid for '10.0.0.1'."), "for another host"),
        (failed("WRONG_VERSION_NUMBER"), "amqps:// is usually on 5671, amqp:// on 5672"),
        (failed("TLSV1_ALERT_PROTOCOL_VERSION"), "the TLS handshake failed: TLSV1_ALERT_PROTOCOL_VERSION"),
        (failed("TLSV13_ALERT_CERTIFICATE_REQUIRED"), "it requires a client certificate: add ?certfile="),
        (failed("SSLV3_ALERT_HANDSHAKE_FAILURE"), "it may require a client certificate: add ?certfile="),
        (failed("TLSV1_ALERT_UNKNOWN_CA"), "it does not accept the bridge's certificate"),
        (failed(None), "the TLS handshake failed: "),
    ],
)
def test_tls_error_text_names_the_fault(error: ssl.SSLError, words: str) -> None:
    assert words in tls_error_text(error)
    assert tls_error_text(error).isprintable()
    assert not tls_error_text(error).endswith(".")


@pytest.mark.parametrize(
    ("scheme", "has_certificate", "words"),
    [
        ("amqp", False, "use amqps:// in the URL"),
        ("amqps", False, "may require a client certificate: add ?certfile="),
        ("amqps", True, "may not accept the bridge's certificate"),
    ],
)
def test_early_eof_text_names_possible_causes(scheme: str, *, has_certificate: bool, words: str) -> None:
    assert words in early_eof_text(scheme, has_certificate=has_certificate)


# Containers


@pytest.mark.parametrize(
    ("environment", "files", "found"),
    [
        ({}, (), None),
        ({"container": "", "KUBERNETES_SERVICE_HOST": ""}, ("/etc/passwd",), None),
        ({}, ("/.dockerenv",), Container.CONTAINER),
        ({}, ("/run/.containerenv",), Container.CONTAINER),
        ({"container": "podman"}, (), Container.CONTAINER),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, (), Container.POD),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "container": "oci"}, ("/run/.containerenv",), Container.POD),
    ],
)
def test_container_is_detected_by_a_file_or_a_variable(
    environment: dict[str, str], files: tuple[str, ...], found: Container | None
) -> None:
    assert detect_container(environment, files.__contains__) is found


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST.", "mq.localhost", "127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"]
)
def test_loopback_host_is_the_container_itself(host: str) -> None:
    hint = localhost_hint(host, Container.CONTAINER)
    assert hint is not None
    assert hint.startswith(f"in a container, {host} is this container itself: name the broker's service or host")
    assert "host.docker.internal" in hint
    assert f"{host} is this pod itself" in str(localhost_hint(host, Container.POD))
    assert localhost_hint(host, None) is None


@pytest.mark.parametrize("host", ["rabbitmq", "localhost.example.org", "10.0.0.1", "fd00::1", "0.0.0.0", "mylocalhost"])
def test_other_host_is_not_the_container(host: str) -> None:
    assert localhost_hint(host, Container.CONTAINER) is None
