"""Counts and logs clients that are refused, evicted or throttled, and mistakes in clients' handshakes.

Clients can cause these log lines, so `LogLimiter` limits the number of lines. At the level `debug`, the bridge also
logs the decision on each handshake, and the opening and the end of each connection.
"""

from collections.abc import Callable
from typing import TypeAlias

import structlog

from bridge import logs
from bridge.broadcast.close_reasons import CAPACITY_REASONS, CloseReason
from bridge.contract.filters import EARLIEST, FROM_NOW_ON, SubscribeRequest, UpdateFilter
from bridge.contract.text import printable
from bridge.metrics import Metrics
from bridge.server.access.log_limiter import LogLimiter
from bridge.server.access.read_limiter import Throttleable
from bridge.server.access.rules import Rule
from bridge.server.connection.client_connection import ClientConnection
from bridge.server.http.request import Request
from bridge.server.router import Answer, OpenEventStream, Poll, Refused
from bridge.server.websocket.upgrade import Upgrade

LOGGER = "bridge.server"

_log = structlog.get_logger(LOGGER)

Decision: TypeAlias = Answer | Rule
"""The decision on a handshake. If the decision is a `Rule`, the client is refused without a response."""

_TRACED_CHARACTERS = 200
"""The maximum length of a client's text in a debug line."""


class ClientLog:
    """The metrics and the log lines about clients."""

    def __init__(self, metrics: Metrics, time: Callable[[], float]) -> None:
        """`time` is a monotonic clock, in seconds."""
        self.tracing = logs.traces(LOGGER)
        """Whether lines at level debug are written."""
        self._metrics = metrics
        self._time = time
        self._limiter = LogLimiter(time)
        self._warned_of_subprotocol = False
        self._dropped = 0
        """The number of clients that were dropped since the bridge last had free capacity."""

    # Clients that do not have a connection yet

    def refused(self, rule: Rule, peer: str, detail: str) -> None:
        """Counts and logs a refused client."""
        self._metrics.refused.labels(rule).inc()
        if (suppressed := self._limiter.allow(rule)) is not None:
            _log.info("client refused", rule=rule.value, peer=peer, detail=detail, **suppressed)

    def dropped(self, clients: int) -> None:
        """Counts a client that is dropped without an answer, because the bridge has no capacity left.

        Logs only the first dropped client.
        """
        self._metrics.refused.labels(Rule.FULL).inc()
        if not self._dropped and (suppressed := self._limiter.allow("dropped")) is not None:
            _log.warning("connection limit exceeded; dropping new connections", clients=clients, **suppressed)
        self._dropped += 1

    def has_capacity(self) -> None:
        """Must be called when a client is admitted and the capacity is not exceeded.

        Logs the end of a period of dropped clients.
        """
        if self._dropped:
            if (suppressed := self._limiter.allow("room")) is not None:
                _log.info("accepting new connections again", dropped=self._dropped, **suppressed)
            self._dropped = 0

    def abandoned(self, peer: str) -> None:
        """Counts a client that ended its connection before its request was complete, and logs it at level debug."""
        self._metrics.abandoned.inc()
        # An abandoned handshake is logged only at level debug, because port scanners and TCP health checks abandon
        # handshakes all the time.
        _log.debug("handshake abandoned by client", peer=peer)

    def handshake(self, peer: str, request: Request | None, decision: Decision, duration_s: float) -> None:
        """Logs the decision on a handshake. Call `handshake` only if `tracing` is True.

        `request` is None if the request can't be parsed, or was not read. `duration_s` is the time since the socket was
        accepted.
        """
        fields: dict[str, object] = {}
        if request is not None:
            fields["method"] = request.method
            fields["path"] = printable(request.path, _TRACED_CHARACTERS)
        match decision:
            case Upgrade(subscribe=subscribe):
                fields |= {"outcome": "101", **_subscription_fields(subscribe)}
            case OpenEventStream(subscribe=subscribe):
                fields |= {"outcome": "event-stream", **_subscription_fields(subscribe)}
            case Poll(subscribe, limit, wait_s):
                fields |= {"outcome": "poll", "limit": limit, "wait_s": wait_s, **_subscription_fields(subscribe)}
            case Refused(response, refusal):
                fields |= {"outcome": "refused", "status": response.status.value, "rule": refusal.rule.value}
            case Rule():
                fields |= {"outcome": "refused", "rule": decision.value}
            case _:
                fields |= {"outcome": "response", "status": decision.status.value}
        _log.debug("handshake", peer=peer, duration_ms=round(duration_s * 1000), **fields)

    def advise(self, request: Request, subscribe: SubscribeRequest, peer: str) -> None:
        """Logs each mistake in an accepted handshake, with a hint."""
        offers = "sec-websocket-protocol" in request.headers and not self._warned_of_subprotocol
        if offers and (subprotocols := request.lists("sec-websocket-protocol")):
            self._warned_of_subprotocol = True
            _log.warning(
                "client requested a subprotocol",
                peer=peer,
                subprotocols=printable(", ".join(subprotocols), 100),
                hint="connect without a subprotocol: the bridge supports none, and some libraries then close the "
                "connection (ws, Node, Bun, websocket-client)",
            )
        after = subscribe.after
        if after is None or after.id is not None or after in {FROM_NOW_ON, EARLIEST}:
            return
        if (suppressed := self._limiter.allow("after")) is not None:
            _log.warning(
                "client requested a malformed id",
                peer=peer,
                after=printable(after.text.strip(), 40),
                hint="pass an id from the bridge, `earliest`, or an empty `after`; the bridge can't resume after any "
                "other value",
                **suppressed,
            )

    # Clients that have a connection

    def opened(self, connection: ClientConnection) -> None:
        """Counts and logs an opened connection."""
        self._metrics.opened.labels(connection.transport_label).inc()
        if self.tracing:
            _log.debug("connection opened", peer=connection.peer)

    def throttled(self, client: Throttleable) -> None:
        """Counts and logs a throttled client."""
        self._metrics.throttles.inc()
        if (suppressed := self._limiter.allow("flood")) is not None:
            _log.info("client throttled", peer=client.peer, **suppressed)

    def evicted(self, connection: ClientConnection, reason: CloseReason, details: dict[str, object]) -> None:
        """Counts and logs an eviction. Does nothing if the client is closed because the bridge stops."""
        if reason is CloseReason.STOPPING:
            return
        self._metrics.evictions.labels(reason.slug).inc()
        if (suppressed := self._limiter.allow(reason.slug)) is None:
            return
        _log.info(
            "connection limit exceeded" if reason in CAPACITY_REASONS else "client evicted",
            reason=reason.slug,
            code=reason.code,
            peer=connection.peer,
            connected_s=round(self._time() - connection.opened_at),
            **details,
            **suppressed,
        )

    def closed(self, connection: ClientConnection) -> None:
        """Logs a closed connection, at level debug."""
        if self.tracing:
            connected_s = round(self._time() - connection.opened_at)
            _log.debug("connection closed", peer=connection.peer, code=connection.close_code, connected_s=connected_s)


def _subscription_fields(subscribe: SubscribeRequest) -> dict[str, object]:
    """Returns the filter in a client's query, and where the updates start, as log fields."""
    fields: dict[str, object] = {}
    if (wanted := subscribe.filter) is not None:
        fields |= _filter_fields(wanted)
    if subscribe.after is not None:
        fields["after"] = printable(subscribe.after.text, _TRACED_CHARACTERS)
    if subscribe.last is not None:
        fields["last"] = subscribe.last
    return fields


def _filter_fields(wanted: UpdateFilter) -> dict[str, object]:
    fields: dict[str, object] = {}
    if wanted.types is not None:
        fields["types"] = sorted(wanted.types)
    if wanted.members:
        members = (
            f"{name}={','.join(sorted(map(str, scalars | booleans)))}" for name, scalars, booleans in wanted.members
        )
        fields["filter"] = printable("&".join(members), _TRACED_CHARACTERS)
    return fields
