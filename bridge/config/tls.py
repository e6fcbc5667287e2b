"""The oldest version of TLS that the bridge and its commands speak, as a server and as a client."""

import ssl


def require_tls_1_2(context: ssl.SSLContext) -> None:
    """Set the context's minimum to TLS 1.2, unless the system's configuration of OpenSSL has set a newer one.

    Debian 12 sets this minimum for all programs. Debian's Python 3.14 has a default context without a minimum.
    """
    context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
