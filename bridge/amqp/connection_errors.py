"""What is wrong with a broker's TLS, in words that say what to do, instead of OpenSSL's."""

import ssl

FOR_ANOTHER_HOST = frozenset({62, 64})
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""

OF_AN_UNKNOWN_AUTHORITY = frozenset({18, 19, 20, 21})
"""OpenSSL's X509_V_ERR_ of self-signed certificates, by themselves or in a chain, and of issuers that are not known."""

CERTIFICATE = "a client certificate: add ?certfile=/path/of/it.pem&keyfile=/path/of/its/key.pem to the URL"

DEMANDS = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it demands",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "it refuses the TLS handshake, and may demand",
}
"""OpenSSL's reasons where the other side wants a certificate. TLS 1.2 has no word of its own for that."""

REFUSES = frozenset(
    {
        "SSLV3_ALERT_BAD_CERTIFICATE",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "SSLV3_ALERT_CERTIFICATE_REVOKED",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        "TLSV1_ALERT_UNKNOWN_CA",
    }
)
"""OpenSSL's reasons where the other side does not want the certificate that it was given."""

SILENT_END = (
    "it ended the connection before it said anything; where it speaks TLS on this port, the URL begins with amqps://"
)
"""What a port for TLS does with who speaks AMQP to it, and so does whatever stands before a broker that is away."""


def complaint(error: ssl.SSLError) -> str:
    """One sentence, without the broker's name."""
    if isinstance(error, ssl.SSLCertVerificationError):
        words = error.verify_message.rstrip(".")
        if error.verify_code in FOR_ANOTHER_HOST:
            return f"its certificate is for another host, so nothing is said to it: {words}"
        hint = (
            "; where it is right, let ?cafile=/path/of/the/authority.pem in the URL name who vouches for it"
            if error.verify_code in OF_AN_UNKNOWN_AUTHORITY
            else ""
        )
        return f"its certificate is not trusted, so nothing is said to it: {words}{hint}"
    # One that was not raised by OpenSSL has none.
    reason = getattr(error, "reason", None)
    if reason in DEMANDS:
        return f"{DEMANDS[reason]} {CERTIFICATE}"
    if reason in REFUSES:
        return f"it does not accept the bridge's certificate (certfile in the URL): {reason}"
    if reason == "WRONG_VERSION_NUMBER":
        return "it does not speak TLS on this port: amqps:// is usually on 5671, amqp:// on 5672"
    return f"the TLS handshake failed: {reason or error}"


def silent_end(scheme: str, with_certificate: bool) -> str:
    """What it means that a broker ends the connection before it says anything."""
    if scheme == "amqp":
        return SILENT_END
    if with_certificate:
        return (
            "it ended the connection without a word, and may not accept the bridge's certificate (certfile in the URL)"
        )
    return f"it ended the connection without a word, and may demand {CERTIFICATE}"
