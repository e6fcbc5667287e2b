"""The time constants of the bridge's connections to the broker and to clients. These constants are not settings.

In production, the bridge runs with the times of `DEFAULT`. Tests pass shorter times, such as 0.5 s instead of 20 s.
"""

from dataclasses import dataclass

__all__ = ["DEFAULT", "Timing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Intervals and timeouts, in seconds."""

    heartbeat_s: int = 10
    """The AMQP heartbeat if the URL sets none.

    With this heartbeat, a dead connection is detected after 33 s. aio-pika's default heartbeat of 60 s would detect a
    dead connection only after 183 s.
    """

    connect_timeout_s: float = 5.0
    """Time to connect to one node and open the virtual host. A broker may accept the connection and send nothing."""

    give_up_s: float = 0.2
    """If opening or closing a connection times out, aio-pika gets this additional time to release the connection."""

    setup_timeout_s: float = 20.0
    """Time for all requests between the opening of the connection and the first delivery."""

    amqp_close_timeout_s: float = 2.0
    """Time to close an AMQP connection. A suspended broker never answers, and aio-pika waits for its answer."""

    check_interval_s: float = 1.5
    """Interval between the answer to a request of the topology check and the next request.

    The requests of the topology check are few and small, and detect an exchange that was deleted and declared again.
    The broker's answers also show aio-pika that the connection is alive. Without these answers, aio-pika could consider
    a busy connection dead, because a broker under load sends no heartbeats, and aio-pika does not see the deliveries.
    """

    check_timeout_s: float = 20.0
    """If the broker answers no request of the topology check for this long, the bridge closes the connection.

    If a single request is not answered, the bridge only logs a warning. The timeout is long because a busy broker may
    be slow, and because closing the connection loses the events of an exclusive queue.
    """

    refused_interval_s: float = 60.0
    """Interval between a refused request of the topology check and the next attempt. The broker logs each refusal.

    The topology check also replaces its channel after this time, because the broker caches the user's permissions on an
    open channel."""

    unbind_timeout_s: float = 1.0
    """Time for the broker to unbind an exclusive queue before the connection is closed. A cluster node without a
    majority never unbinds the queue."""

    cancel_timeout_s: float = 2.0
    """Time for the broker to confirm `basic.cancel`. A suspended broker never confirms `basic.cancel`."""

    settle_timeout_s: float = 3.0
    """Time to settle the last deliveries when the bridge stops.

    If the queue is named, deliveries that are still not settled after this time return to the queue.
    """

    end_timeout_s: float = 1.0
    """Time for the consumer task or the rejects task to end after its cancellation. aio-pika may still be closing the
    connection."""

    answer_valid_s: float = 10.0
    """The bridge counts as ready for this long after the broker's last answer.

    A broker can disappear without closing the connection.
    """

    stable_s: float = 5.0
    """If a connection had lasted this long when it was lost, the bridge reconnects after the shortest pause."""

    confirm_warning_s: float = 30.0
    """A rejected event that is not confirmed for this long is reported in the log and in `/readyz`."""

    marker_retry_s: float = 1.0
    """If the bridge does not read its stream marker back within this time, it publishes the marker again.

    A broker that has just started may return the marker as unroutable, or even confirm the marker and then drop it.
    """

    stall_check_s: float = 10.0
    """If a stream delivers nothing for this long, the bridge probes the stream for newer messages.

    While the stream delivers, the bridge looks for the end of the stream at this interval. A probe also waits this long
    for the broker's answer.
    """

    close_timeout_s: float = 10.0
    """Time for a client to read what the bridge has sent, and to answer the bridge's close frame."""

    keepalive_tick_s: float = 5.0
    """Longest time between two keepalive passes over all connections. One pass a second costs 1 % of the bridge's
    processor time with 8000 clients (`make bench`, paced)."""

    tls_shutdown_s: float = 2.0
    """Time for the TLS shutdown of a refused client.

    During this time, the bridge reads and discards what the client sends.
    """

    last_lines_s: float = 0.2
    """Minimum time to write the last log lines, even if the clients have used the entire shutdown timeout."""

    descriptor_check_s: float = 1.0
    """If no file descriptor is free, the bridge checks at this interval whether one has become free."""

    accept_grace_s: float = 0.2
    """If a bridge shares its port, TCP handshakes that have begun when it stops get this time to complete.

    A TCP handshake takes one round trip.
    """

    request_grace_s: float = 1.0
    """When the bridge stops, connected clients get this time to send a request and to read the answer.

    Browsers also keep connections open on which they never send a request.
    """

    trim_delay_s: float = 1.0
    """Time from the end of many connections to the call of `malloc_trim`.

    Connections usually close in groups, and one call of `malloc_trim` is enough for a group.
    """


DEFAULT = Timing()
"""The values that the bridge uses in production."""
