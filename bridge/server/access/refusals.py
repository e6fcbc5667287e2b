"""The rules for which the bridge refuses a client before the upgrade.

Each rule is a value of the label `rule` of `bridge_clients_refused_total`, and of the field `rule` in the log. From
0.1.0 on, these values are a promise.
"""

from enum import StrEnum


class Rule(StrEnum):
    """What a client must comply with to get a connection."""

    PEER = "peer"
    """The client's address is in the allowed networks."""
    FORWARDED = "forwarded"
    """The addresses in the forwarding headers are in the allowed networks."""
    HOST = "host"
    ORIGIN = "origin"
    MALFORMED = "malformed"
    """The request is valid HTTP/1.1 or HTTP/1.0, without a body."""
    SIZE = "size"
    """The request is not larger than the limits of `http_request`."""
    QUERY = "query"
    UPGRADE = "upgrade"
    """The request asks for the WebSocket protocol, as RFC 6455 requires."""
    TLS = "tls"
    TIMEOUT = "timeout"
    """The request, and the TLS handshake before it, is complete in time."""
    PENDING = "pending"
    """Not too many connections are without a complete request. The oldest one is closed."""
    ADDRESS_LIMIT = "address-limit"
    """The client's address is below its limit of connections."""
    FULL = "full"
    """The bridge is below its limit of connections."""
    LOST = "lost"
    """The event loop can use the accepted socket."""
