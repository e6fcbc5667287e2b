"""All workarounds that use undocumented names of the libraries websockets and uvloop.

Each workaround states its reason, and the version of the library that needed it. `test_compat.py` has a test for each
workaround, which fails as soon as the library no longer needs the workaround.
"""

import asyncio
from typing import cast

from websockets.datastructures import Headers
from websockets.exceptions import InvalidHeader
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

try:
    # The compiled function `apply_mask` unmasks a large payload about ten times as fast as Python code. The library
    # websockets has no documented name for this function (websockets 17.4).
    from websockets.speedups import apply_mask
except ImportError:  # websockets has no compiled wheel for this platform
    from websockets.utils import apply_mask

__all__ = ["accept_handshake", "apply_mask", "as_transport"]


def accept_handshake(path: str, headers: Headers) -> tuple[Response, str]:
    """Returns the response of websockets to a handshake, and the name of the header at fault, or an empty string.

    Without the `del` statement, the protocol and the generator of its parser would refer to each other. The references
    between the protocol and its parser would leave 1.3 KB of each handshake to the garbage collector, which the bridge
    runs rarely (websockets 17.4).
    """
    protocol = ServerProtocol()
    response = protocol.accept(Request(path, headers))
    del protocol.parser
    error = protocol.handshake_exc
    return response, error.name if isinstance(error, InvalidHeader) else ""


def as_transport(transport: asyncio.BaseTransport) -> asyncio.Transport:
    """Returns a TCP transport with the type that asyncio documents for TCP transports.

    The transports of uvloop have all methods of `asyncio.Transport`, but are not instances of this class (uvloop 0.23).
    """
    return cast("asyncio.Transport", transport)
