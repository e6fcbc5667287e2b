"""What is wrong with a broker's TLS, in words that say what to do, instead of OpenSSL's."""

import ssl

FOR_ANOTHER_HOST = frozenset({62, 64})
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""

OF_AN_UNKNOWN_AUTHORITY = frozenset({18, 19, 20, 21})
"""OpenSSL's X509_V_ERR_ of self-signed certificates, by themselves or in a chain, and of issuers that are not known."""

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
    if reason == "WRONG_VERSION_NUMBER":
        return "it does not speak TLS on this port: amqps:// is usually on 5671, amqp:// on 5672"
    return f"the TLS handshake failed: {reason or error}"
