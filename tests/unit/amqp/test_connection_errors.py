"""What is said of a broker's TLS: what is wrong, and what to do."""

from __future__ import annotations

import ssl

import pytest

from bridge.amqp.connection_errors import complaint, silent_end


def refused(code: int, message: str) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed (_ssl.c:1006)")
    error.verify_code, error.verify_message = code, message
    return error


def failed(reason: str | None) -> ssl.SSLError:
    error = ssl.SSLError(1, "words of OpenSSL's")
    if reason is not None:
        error.reason = reason
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            refused(18, "self-signed certificate"),
            "not trusted, so nothing is said to it: self-signed certificate; where",
        ),
        (
            refused(10, "certificate has expired"),
            "not trusted, so nothing is said to it: certificate has expired",
        ),
        (refused(62, "Hostname mismatch, certificate is not valid for 'mq'."), "for another host"),
        (refused(64, "IP address mismatch, certificate is not valid for '10.0.0.1'."), "for another host"),
        (failed("WRONG_VERSION_NUMBER"), "amqps:// is usually on 5671, amqp:// on 5672"),
        (failed("TLSV1_ALERT_PROTOCOL_VERSION"), "the TLS handshake failed: TLSV1_ALERT_PROTOCOL_VERSION"),
        (failed("TLSV13_ALERT_CERTIFICATE_REQUIRED"), "it demands a client certificate: add ?certfile="),
        (failed("SSLV3_ALERT_HANDSHAKE_FAILURE"), "and may demand a client certificate: add ?certfile="),
        (failed("TLSV1_ALERT_UNKNOWN_CA"), "it does not accept the bridge's certificate"),
        (failed(None), "the TLS handshake failed: "),
    ],
)
def test_complaint_says_what_is_wrong(error: ssl.SSLError, words: str) -> None:
    assert words in complaint(error)
    assert complaint(error).isprintable()
    assert not complaint(error).endswith(".")


@pytest.mark.parametrize(
    ("scheme", "with_certificate", "words"),
    [
        ("amqp", False, "the URL begins with amqps://"),
        ("amqps", False, "may demand a client certificate: add ?certfile="),
        ("amqps", True, "may not accept the bridge's certificate"),
    ],
)
def test_end_without_a_word_is_said_with_what_it_may_mean(scheme: str, *, with_certificate: bool, words: str) -> None:
    assert words in silent_end(scheme, with_certificate)
