"""The connection of a poll: one response with updates as JSON, at once or after a wait.

A client that waits counts as a connection, like any other. The body is written in pieces, so that the bridge holds at
most one piece for a client that reads slowly. If the log has dropped an update that the client has not read yet, the
connection is reset, because the rest of the body does not exist any more. The client asks again with the same id.
"""

import asyncio
from collections.abc import Iterator
from http import HTTPStatus
from math import inf

from bridge.broadcast.close_reasons import CAPACITY_REASONS, CloseReason
from bridge.broadcast.polls import Overtaken, PollResult, Polls
from bridge.contract.filters import SubscribeRequest
from bridge.metrics import Transport
from bridge.server.connection.client_connection import ClientConnection, ConnectionContext
from bridge.server.http.response import JSON, Header, body_head, serialize, text_response

RETRY_AFTER_S = 5
"""The time after which a client asks again if the bridge can't answer now, in seconds."""

FULL_RETRY_AFTER_S = 30
"""The time after which a client asks again if there are too many connections, in seconds."""

_STATUSES = {CloseReason.ADDRESS_LIMIT: HTTPStatus.TOO_MANY_REQUESTS}


class PollConnection(ClientConnection):
    """Writes the response to a poll, and ignores everything that the client sends after its request."""

    __slots__ = ("_headers", "_is_head", "_limit", "_pieces", "_polls", "_wait_s")

    transport_label = Transport.POLL

    last_received_at = inf
    """`Keepalive` never finds the client idle. `Polls` limits how long it waits."""

    def __init__(
        self,
        transport: asyncio.Transport,
        address: str,
        context: ConnectionContext,
        polls: Polls,
        *,
        limit: int,
        wait_s: int,
        headers: tuple[Header, ...],
        is_head: bool,
    ) -> None:
        """`address` is the IP address of the client. `limit` and `wait_s` have the same meaning as in `Polls.start`.

        The response has additional `headers`. If `is_head` is true, the client wants only a head and no body.
        """
        self._polls = polls
        self._limit = limit
        self._wait_s = wait_s
        self._headers = headers
        self._is_head = is_head
        self._pieces: Iterator[bytes] | None = None
        """The rest of the body, or None if there is no body, or no rest."""
        super().__init__(transport, address, context)

    def join(self, request: SubscribeRequest) -> None:
        """Starts the poll. A request with HEAD gets the head at once, before anything is looked up."""
        if not self._is_head:
            self._polls.start(self, request, self._limit, self._wait_s)
        elif self._polls.is_available(request):
            self._respond(body_head(JSON, None, *self._headers))
        else:
            self.refuse()

    @property
    def last_active_at(self) -> float:
        """The connection never counts as silent."""
        return inf

    def ping(self) -> None:
        """Does nothing. Only the response may be sent."""

    # The response

    def answer(self, result: PollResult) -> None:
        """Writes the response."""
        self._pieces = result.pieces()
        self._respond(body_head(JSON, result.size_bytes, *self._headers) + next(self._pieces))

    def refuse(self) -> None:
        """Tells the client to ask again later."""
        text = "The bridge has no updates yet: it is starting, or it has no broker."
        self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, text, RETRY_AFTER_S)

    def close(self, reason: CloseReason, **details: object) -> None:
        """Tells the client why it gets no updates, unless the response has begun."""
        if self.closed_at is None and self._transport is not None:
            self.close_code = reason.code
            self._context.on_close(self, reason, details)
            self._polls.forget(self)
            status = _STATUSES.get(reason, HTTPStatus.SERVICE_UNAVAILABLE)
            retry_after_s = FULL_RETRY_AFTER_S if reason in CAPACITY_REASONS else RETRY_AFTER_S
            self._refuse(status, f"{reason.phrase.capitalize()}.", retry_after_s)

    def abort(self) -> None:
        """Ends the connection with a reset, so that the kernel does not keep the unread part of the response."""
        self.reset()

    def _refuse(self, status: HTTPStatus, text: str, retry_after_s: int) -> None:
        response = text_response(status, text, ("Retry-After", str(retry_after_s)), *self._headers)
        self._respond(serialize(response, has_body=not self._is_head))

    def _respond(self, data: bytes) -> None:
        """Writes the head and the first piece of the body. `Keepalive` limits how slowly the client may read."""
        assert self._transport is not None
        self.closed_at = self._context.clock.now_s
        self._transport.write(data)
        self._write_rest()

    def _write_rest(self) -> None:
        """Writes pieces until the socket is full. At the end of the body, ends the bridge's side."""
        while self._transport is not None and not self.congested:
            try:
                piece = None if self._pieces is None else next(self._pieces, None)
            except Overtaken:
                self.reset()
                return
            if piece is None:
                self._pieces = None
                self._end_this_side()
                return
            self._transport.write(piece)

    def pause_writing(self) -> None:
        self.congested = True

    def resume_writing(self) -> None:
        self.congested = False
        if self.closed_at is not None:
            self._write_rest()

    # The client's side

    def received(self, data: memoryview | bytes) -> None:
        """Ignores bytes from the client, and throttles the client if it sends too much."""
        if self._transport is not None and not self._context.read_limiter.consume(self, len(data), 0):
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._pieces = None
        self._polls.forget(self)
        super().connection_lost(exc)
