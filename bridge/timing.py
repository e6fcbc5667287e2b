"""Every time constant of the bridge that is not a setting, in one frozen value.

The bridge runs with `DEFAULT`. A test passes other values, so that a limit of 20 s takes it half a second.
"""

from dataclasses import dataclass

__all__ = ["DEFAULT", "Timing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Intervals and timeouts, in seconds."""

    heartbeat_s: int = 10
    """AMQP heartbeat that is negotiated where the URL names none. A dead connection is noticed after 33 s; aio-pika's
    default of 60 s makes that 183 s."""

    connect_timeout_s: float = 5.0
    """For connecting to one node, up to the open virtual host. A broker may accept and send nothing."""

    give_up_s: float = 0.2
    """For the library to release a connection that was never established."""

    setup_timeout_s: float = 20.0
    """For all requests between an open connection and the first delivery."""

    amqp_close_timeout_s: float = 2.0
    """For closing an AMQP connection. A broker that is stopped never answers, and aio-pika waits for it."""

    check_interval_s: float = 1.5
    """Between two topology checks. A check is a handful of small requests, and finds an exchange that was made anew.

    It is also what the library takes for a sign of life: under load the broker sends no heartbeats, and deliveries
    bypass the library."""

    check_timeout_s: float = 20.0
    """For one topology check. A busy broker may be slow, and giving up on it loses the events of an exclusive queue."""

    cancel_timeout_s: float = 2.0
    """For the broker to confirm `basic.cancel`. A broker that is stopped never does."""

    settle_timeout_s: float = 3.0
    """For deliveries that are still unsettled when the bridge stops. The broker keeps those that are left."""

    end_timeout_s: float = 0.5
    """For a task with a broker connection to end after it was cancelled."""

    proof_valid_s: float = 10.0
    """How long an answer of the broker counts. After that, the broker may be gone without notice."""

    stable_s: float = 5.0
    """A connection that lasted this long was good: the next attempt follows at once."""

    confirm_warning_s: float = 30.0
    """A rejected event that is not confirmed for this long is reported in the log and in `/readyz`."""

    stream_restart_s: float = 2.5
    """A broker does not restart in less time: its start alone takes 3 s on two cores."""

    marker_retry_s: float = 1.0
    """A stream marker that is not read back by then is published again. A broker that has just started confirms
    messages and drops them until the stream has a leader, or returns them as unroutable."""

    close_timeout_s: float = 10.0
    """For a client to answer a close frame, or to read what was sent before it."""

    keepalive_tick_s: float = 5.0
    """Between two passes over all connections, at most. One pass a second costs 1 % of what the bridge does for 8000
    clients (`make bench`, paced)."""

    tls_shutdown_s: float = 2.0
    """For the TLS shutdown of a refused client. What it still sends is read and discarded."""

    descriptor_check_s: float = 1.0
    """Between two checks whether file descriptors are available again."""

    trim_delay_s: float = 1.0
    """From the loss of many connections until memory is returned to the system: connections rarely end alone."""


DEFAULT = Timing()
"""What the bridge runs with."""
