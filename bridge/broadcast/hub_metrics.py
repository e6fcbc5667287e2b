"""The metrics of the hub and its update log. Their values are read at each scrape."""

from collections.abc import Callable, Mapping, Sequence

from bridge.broadcast.framing import Form
from bridge.broadcast.hub import Hub
from bridge.broadcast.polls import Polls
from bridge.broadcast.update_log import UpdateLog
from bridge.metrics import Metrics, Transport

FORMS: Mapping[Transport, Sequence[Form]] = {
    Transport.WEBSOCKET: (Form.TEXT, Form.TEXT_WITH_ID),
    Transport.SSE: (Form.EVENT,),
}
"""The forms in which clients of each transport receive updates."""


_CONNECTIONS = ("bridge_connections", "Open connections of clients, and requests for JSON that have no response yet.")
_SENT_BYTES = (
    "bridge_sent_bytes",
    "Bytes of updates and own messages written to client sockets or enqueued for them, before TLS.",
)


def register_hub_metrics(metrics: Metrics, hub: Hub, update_log: UpdateLog) -> None:
    """Registers the gauges and counters of a hub and its update log."""
    for transport, forms in FORMS.items():
        metrics.gauge(*_CONNECTIONS, _sum(hub.connections_in, forms), transport=transport)
        metrics.gauge(
            "bridge_connections_lagging",
            "Connections that have not received all updates yet, because they are lagging or catching up.",
            _sum(hub.lagging_in, forms),
            transport=transport,
        )
        metrics.counter(*_SENT_BYTES, _sum(hub.sent_bytes_in, forms), transport=transport)
    metrics.gauge(
        "bridge_resumes_pending",
        "Connections that wait to resume until the bridge has the update that the client received last.",
        lambda: hub.pending,
    )
    metrics.gauge(
        "bridge_subscriptions",
        "Different subscriptions in use, apart from the default one: all updates, without ids.",
        lambda: hub.subscriptions,
    )
    metrics.gauge(
        "bridge_update_log_bytes", "Bytes of memory that the update log takes.", lambda: update_log.size_bytes
    )
    metrics.gauge("bridge_update_log_updates", "Updates in the update log.", lambda: hub.logged_updates)


def register_poll_metrics(metrics: Metrics, polls: Polls) -> None:
    """Registers the gauges and counters of polls."""
    metrics.gauge(*_CONNECTIONS, lambda: len(polls), transport=Transport.POLL)
    metrics.counter(*_SENT_BYTES, lambda: polls.sent_bytes, transport=Transport.POLL)


def _sum(count: Callable[[Form], int], forms: Sequence[Form]) -> Callable[[], int]:
    """Returns a function that adds the counts of some forms."""
    return lambda: sum(map(count, forms))
