"""Responses with Server-Sent Events to the byte, as a bridge or a proxy sends them, and what a client must see.

`tests/conformance/README.md` has a table of these responses, which `test_event_stream_parsers.py` compares.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from bridge.server.http.response import stream_head

TAG = "9f86d081"
RETRY_MS = 20
"""The pause in these responses. A bridge asks for 1 to 5 seconds."""

FULL_RETRY_MS = 3500
"""The pause of a full bridge in these responses. Its 30 seconds would be too long for a test.

It is longer than the 3 seconds that `EventSource` waits by default.
"""

HEAD = stream_head("text/event-stream", ("Vary", "Accept, Origin"))
CHUNKED = HEAD.replace(b"Connection: close\r\n", b"Connection: close\r\nTransfer-Encoding: chunked\r\n")

COMMENT = b":\n"
RETRY = b"retry: %d\n" % RETRY_MS
RESUME = b'{"type":"resume","data":{"complete":true,"replayed":0,"id":"0-9f86d081"},"timestamp":1729593000000}'
HEARTBEAT = b'{"type":"heartbeat","data":{"id":"0-9f86d081","consuming":true},"timestamp":1729593000000}'
"""The heartbeat after the end of the backlog."""
KILLMAIL = (
    b'{"type":"killmail","data":{"killmailId":123456789,"timestamp":"2024-10-22T10:30:00.000Z","systemId":30000142,'
    b'"shipTypeId":587,"attackerCount":15},"timestamp":1729593000123,"id":"1-9f86d081"}'
)
EVENT = (
    '{"type":"event","data":{"eventId":"1","timestamp":"2024-10-22T10:30:00Z","kind":"news","title":"Ü 🚀: a",'
    '"message":" \u2028\u2029\x85\\u000b\\r\\n"},"timestamp":1729593000456,"id":"2-9f86d081"}'
).encode()
"""An update with characters that some programs take for line breaks. JSON escapes control characters."""
GAP = (
    b'{"type":"gap","data":{"since":"2024-10-22T10:30:00.000Z","until":"2024-10-22T10:31:00.000Z",'
    b'"reason":"broker-away","id":"3-9f86d081"},"timestamp":1729593060000}'
)
LATER_HEARTBEAT = b'{"type":"heartbeat","data":{"id":"3-9f86d081","consuming":true},"timestamp":1729593090000}'
STOPPING = b'{"type":"close","data":{"code":1001,"reason":"the bridge is stopping; reconnect"},"timestamp":1729593099}'
FULL = b'{"type":"close","data":{"code":1013,"reason":"the bridge is full; reconnect later"},"timestamp":1729593099000}'
LARGE = b'{"type":"event","data":{"message":"%b"},"timestamp":1729593000456,"id":"2-9f86d081"}' % (
    "Ü🚀\u2028x".encode() * (3 * 2**20 // 10)
)
MESSAGES = frozenset({RESUME, HEARTBEAT, KILLMAIL, EVENT, GAP, LATER_HEARTBEAT, STOPPING, FULL, LARGE})


def block(text: bytes, number: int | None = None) -> bytes:
    """Returns the block of a message, with an id unless `number` is None."""
    return (b"" if number is None else b"id: %d-%b\n" % (number, TAG.encode())) + b"data: " + text + b"\n\n"


START = COMMENT + RETRY + block(RESUME, 0)
UPDATES = (
    START
    + block(HEARTBEAT, 0)
    + block(KILLMAIL, 1)
    + COMMENT
    + block(EVENT, 2)
    + block(GAP, 3)
    + COMMENT
    + block(LATER_HEARTBEAT, 3)
)


def chunked(body: bytes) -> bytes:
    """Returns the body in chunks of 100 bytes, without the last chunk."""
    pieces = [body[at : at + 100] for at in range(0, len(body), 100)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


@dataclass(frozen=True)
class Response:
    """A response, and what the HTML standard says about it."""

    name: str
    """What is special about the response."""
    head: bytes
    body: bytes
    events: Sequence[tuple[bytes, str]]
    """The data of each event and its `lastEventId`."""
    is_broken: bool = False
    """Whether the body ends before its end. A client may drop what arrived shortly before."""
    is_final: bool = False
    """Whether a client must not send the request again."""
    is_sent: bool = True
    """Whether a bridge, or a proxy before a bridge, sends such a response."""

    @property
    def last_id(self) -> str:
        """The value of `Last-Event-ID` in the next request. If it is empty, there is no such header."""
        return self.events[-1][1] if self.events else ""


def id_of(number: int) -> str:
    """Returns the id of a message."""
    return f"{number}-{TAG}"


_FIRST = (RESUME, id_of(0))
_SECOND = (KILLMAIL, id_of(1))
_ALL = (
    _FIRST,
    (HEARTBEAT, id_of(0)),
    _SECOND,
    (EVENT, id_of(2)),
    (GAP, id_of(3)),
    (LATER_HEARTBEAT, id_of(3)),
)
_TWO = (_FIRST, _SECOND)

ORDINARY = Response("updates and the bridge's own messages", HEAD, UPDATES, _ALL)

CUT = block(EVENT, 2)

RESPONSES = (
    ORDINARY,
    Response("chunks", CHUNKED, chunked(UPDATES) + b"0\r\n\r\n", _ALL),
    Response("chunks without the last chunk", CHUNKED, chunked(UPDATES), _ALL, is_broken=True),
    Response("HTTP/1.0", HEAD.replace(b"HTTP/1.1", b"HTTP/1.0"), UPDATES, _ALL),
    Response(
        "keep-alives before and in the first block",
        HEAD,
        COMMENT + RETRY + COMMENT * 3 + block(RESUME, 0) + COMMENT * 2 + block(KILLMAIL, 1),
        _TWO,
    ),
    Response(
        "update of 3 MB", HEAD, START + block(LARGE, 2) + block(GAP, 3), (_FIRST, (LARGE, id_of(2)), (GAP, id_of(3)))
    ),
    Response("cut after `id:`", HEAD, START + block(KILLMAIL, 1) + CUT[: CUT.index(b"data")], _TWO),
    Response("cut in the data", HEAD, START + block(KILLMAIL, 1) + CUT[: CUT.index(b"kind")], _TWO),
    Response("cut in a character", HEAD, START + block(KILLMAIL, 1) + CUT[: CUT.index("Ü".encode()) + 1], _TWO),
    Response("cut after the data", HEAD, START + block(KILLMAIL, 1) + CUT[:-2], _TWO),
    Response("cut before the empty line", HEAD, START + block(KILLMAIL, 1) + CUT[:-1], _TWO),
    Response("bridge that stops", HEAD, START + block(KILLMAIL, 1) + block(STOPPING), (*_TWO, (STOPPING, id_of(1)))),
    Response("full bridge", HEAD, COMMENT + b"retry: %d\n" % FULL_RETRY_MS + block(FULL), ((FULL, ""),)),
    Response("end after the first line", HEAD, COMMENT, ()),
    Response("status 502 of a proxy", b"HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\n\r\n", b"", (), is_final=True),
    Response("status 400", b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", b"No.\n", (), is_final=True),
    Response("another content type", HEAD.replace(b"text/event-stream", b"text/plain"), UPDATES, (), is_final=True),
    # A bridge never sends these responses. The table shows why.
    Response(
        "block with an id only",
        HEAD,
        START + b"id: 1-9f86d081\n\n" + block(FULL),
        (_FIRST, (FULL, id_of(1))),
        is_sent=False,
    ),
    Response("block with a pause only", HEAD, RETRY + b"\n" + block(RESUME, 0), (_FIRST,), is_sent=False),
    Response("empty line after a comment", HEAD, START + COMMENT + b"\n" + block(KILLMAIL, 1), _TWO, is_sent=False),
    Response("empty id", HEAD, START + b"id:\n" + block(FULL), (_FIRST, (FULL, "")), is_sent=False),
    Response("byte order mark", HEAD, b"\xef\xbb\xbf" + block(RESUME, 0), (_FIRST,), is_sent=False),
    Response("CR LF as line breaks", HEAD, UPDATES.replace(b"\n", b"\r\n"), _ALL, is_sent=False),
)

SEED = 20241022


def splits(body: bytes, seed: int = SEED) -> list[tuple[bytes, ...]]:
    """Returns the body in two pieces, split at each possible place, and 100 times in many random pieces."""
    found: list[tuple[bytes, ...]] = [(body[:at], body[at:]) for at in range(1, len(body))]
    random = Random(seed)
    for _ in range(100):
        cuts = [0, *sorted(random.sample(range(1, len(body)), random.randint(2, 40))), len(body)]
        found.append(tuple(body[begin:end] for begin, end in pairwise(cuts)))
    return found
