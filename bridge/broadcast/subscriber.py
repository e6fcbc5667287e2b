"""The interface through which the hub uses a connection, with the states and the table of transitions between them.

Each connection holds its own state. `TRANSITIONS` is only data: the hub looks up each transition, and carries it out.
The README of this folder shows the table of transitions as a diagram.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from bridge.broadcast.close_reasons import CloseReason
from bridge.broadcast.framing import Form
from bridge.broadcast.live_set import LiveSet, Slot
from bridge.broadcast.replay import UpdateFilter

# States, events and actions


class _Choice(Enum):
    # `Enum.__hash__` is slow Python code, and each transition would call it twice.
    __hash__ = object.__hash__


class State(_Choice):
    """The states of a connection. The value of each member of this enum is a description."""

    NEW = "not in the hub yet"
    PENDING = (
        "waits for an update that another instance has already sent, for its flush, or for the end of the bridge's own "
        "replay"
    )
    RESUMING = (
        "the bridge searches for the first update to replay, or counts the updates, and has not sent `resume` yet"
    )
    CATCHING_UP = "the client has received `resume` if it gets ids, and gets the log from its cursor; it was never live"
    LIVE = "at the head of the log, with an empty socket; each flush writes to it"
    LAGGING = (
        "was live until its socket was full or a flush was postponed, or joined in a storm; reads the log from there"
    )
    CLOSING = "its close frame is sent, or due after the rest of a frame"
    CLOSED = "its socket is closed, or about to be"


class ConnectionEvent(_Choice):
    """The events of a connection. The value of each member of this enum is a description."""

    JOIN = "the connection joins without ids"
    HOLD = "during a storm (many connections join at once), the connection joins without ids, or has caught up"
    START = "the connection joins with ids from now on, at once or after its wait"
    RESUME = "the connection joins after an id or with a backlog, at once or after its wait"
    DEFER = "the connection joins with ids or with a backlog, and must wait"
    RESUME_SENT = "the updates to replay are counted; the hub sends `resume` next, if the client gets ids"
    REACHED_HEAD = "the replay has reached the head of the log, but the socket is full"
    CAUGHT_UP = "the connection was sent everything that is flushed, and its socket is empty"
    PARTIAL_WRITE = "the socket took only a part of a flush"
    POSTPONED = "the connection must read the updates of a flush from the log: they are large, or many filters are due"
    CONGESTED = "the transport holds bytes that the socket did not take"
    DRAINED = "the transport is empty again"
    OVERTAKEN = "the log has dropped the update at the connection's cursor"
    STOP = "the bridge stops"
    CLOSE = "the closing handshake begins"
    LEAVE = "the socket is closed, or the connection has failed"


class Action(_Choice):
    """The actions of the hub after a transition. The value of each member of this enum is a description."""

    SEND = "send the next piece"
    SCHEDULE = "send the next piece in a later turn of the loop"
    HOLD = "send the next piece after the storm"
    CLOSE_STOPPING = "close the connection with 1001"
    CLOSE_IF_STOPPING = "close the connection with 1001 if the bridge stops"
    CLOSE_TOO_SLOW = "close the connection with 4008"
    COUNT_DROPPED = "count the updates that the connection does not receive"
    UNSUBSCRIBE = "remove the connection from its subscription"
    FINISH_FRAME = "send the rest of a frame that is sent in part"
    RESET = "reset it"


class Transition(NamedTuple):
    """A transition from one state to another, or to the same state."""

    to: State
    actions: tuple[Action, ...] = ()


# The table

TRANSITIONS: Mapping[State, Mapping[ConnectionEvent, Transition]] = {
    State.NEW: {
        # When a connection joins, its transport may be full already, because a part of the HTTP response is still in
        # the transport.
        ConnectionEvent.CONGESTED: Transition(State.NEW),
        ConnectionEvent.JOIN: Transition(State.LIVE),
        ConnectionEvent.HOLD: Transition(State.LAGGING, (Action.HOLD,)),
        ConnectionEvent.START: Transition(State.RESUMING, (Action.SEND,)),
        ConnectionEvent.RESUME: Transition(State.RESUMING, (Action.SCHEDULE,)),
        ConnectionEvent.DEFER: Transition(State.PENDING),
        # A connection that the limits do not allow, or that opens while the bridge stops, closes at once.
        ConnectionEvent.CLOSE: Transition(State.CLOSING),
        ConnectionEvent.LEAVE: Transition(State.CLOSED),
    },
    State.PENDING: {
        ConnectionEvent.START: Transition(State.RESUMING, (Action.SEND,)),
        ConnectionEvent.RESUME: Transition(State.RESUMING, (Action.SCHEDULE,)),
        ConnectionEvent.CONGESTED: Transition(State.PENDING),
        ConnectionEvent.DRAINED: Transition(State.PENDING),
        ConnectionEvent.STOP: Transition(State.PENDING, (Action.CLOSE_STOPPING,)),
        ConnectionEvent.CLOSE: Transition(State.CLOSING, (Action.UNSUBSCRIBE,)),
        ConnectionEvent.LEAVE: Transition(State.CLOSED, (Action.UNSUBSCRIBE,)),
    },
    State.RESUMING: {
        ConnectionEvent.RESUME_SENT: Transition(State.CATCHING_UP),
        ConnectionEvent.CONGESTED: Transition(State.RESUMING),
        ConnectionEvent.DRAINED: Transition(State.RESUMING, (Action.SCHEDULE,)),
        # The connection can close at once, because its client has received no message yet, and so misses no update.
        ConnectionEvent.STOP: Transition(State.RESUMING, (Action.CLOSE_STOPPING,)),
        ConnectionEvent.CLOSE: Transition(State.CLOSING, (Action.UNSUBSCRIBE,)),
        ConnectionEvent.LEAVE: Transition(State.CLOSED, (Action.UNSUBSCRIBE,)),
    },
    State.CATCHING_UP: {
        ConnectionEvent.CAUGHT_UP: Transition(State.LIVE, (Action.CLOSE_IF_STOPPING,)),
        ConnectionEvent.HOLD: Transition(State.LAGGING, (Action.HOLD, Action.CLOSE_IF_STOPPING)),
        # A connection whose socket took only a part of the heartbeat must not get another heartbeat.
        ConnectionEvent.REACHED_HEAD: Transition(State.LAGGING),
        ConnectionEvent.CONGESTED: Transition(State.CATCHING_UP),
        ConnectionEvent.DRAINED: Transition(State.CATCHING_UP, (Action.SCHEDULE,)),
        ConnectionEvent.OVERTAKEN: Transition(State.CATCHING_UP, (Action.CLOSE_TOO_SLOW,)),
        ConnectionEvent.STOP: Transition(State.CATCHING_UP),
        ConnectionEvent.CLOSE: Transition(State.CLOSING, (Action.UNSUBSCRIBE, Action.FINISH_FRAME)),
        ConnectionEvent.LEAVE: Transition(State.CLOSED, (Action.UNSUBSCRIBE,)),
    },
    State.LIVE: {
        ConnectionEvent.PARTIAL_WRITE: Transition(State.LAGGING),
        ConnectionEvent.POSTPONED: Transition(State.LAGGING),
        ConnectionEvent.CONGESTED: Transition(State.LAGGING),
        ConnectionEvent.DRAINED: Transition(State.LIVE),
        ConnectionEvent.STOP: Transition(State.LIVE, (Action.CLOSE_STOPPING,)),
        # During a flush, the connection may not have been sent the updates of this flush.
        ConnectionEvent.CLOSE: Transition(State.CLOSING, (Action.COUNT_DROPPED, Action.UNSUBSCRIBE)),
        ConnectionEvent.LEAVE: Transition(State.CLOSED, (Action.COUNT_DROPPED, Action.UNSUBSCRIBE)),
    },
    State.LAGGING: {
        ConnectionEvent.CAUGHT_UP: Transition(State.LIVE, (Action.CLOSE_IF_STOPPING,)),
        ConnectionEvent.CONGESTED: Transition(State.LAGGING),
        ConnectionEvent.DRAINED: Transition(State.LAGGING, (Action.SCHEDULE,)),
        ConnectionEvent.OVERTAKEN: Transition(State.LAGGING, (Action.CLOSE_TOO_SLOW,)),
        ConnectionEvent.STOP: Transition(State.LAGGING),
        ConnectionEvent.CLOSE: Transition(
            State.CLOSING, (Action.COUNT_DROPPED, Action.UNSUBSCRIBE, Action.FINISH_FRAME)
        ),
        ConnectionEvent.LEAVE: Transition(State.CLOSED, (Action.COUNT_DROPPED, Action.UNSUBSCRIBE)),
    },
    State.CLOSING: {
        ConnectionEvent.CONGESTED: Transition(State.CLOSING),
        ConnectionEvent.DRAINED: Transition(State.CLOSING, (Action.FINISH_FRAME,)),
        # A close frame in the middle of another frame would become a part of that frame's payload.
        ConnectionEvent.OVERTAKEN: Transition(State.CLOSED, (Action.RESET,)),
        ConnectionEvent.LEAVE: Transition(State.CLOSED),
    },
    State.CLOSED: {
        # The transport may still report events after the connection has failed. Until the transport reports the loss,
        # the connection may also be closed, for example because the client was idle.
        ConnectionEvent.CLOSE: Transition(State.CLOSED),
        ConnectionEvent.CONGESTED: Transition(State.CLOSED),
        ConnectionEvent.DRAINED: Transition(State.CLOSED),
        ConnectionEvent.LEAVE: Transition(State.CLOSED),
    },
}
"""The events that can occur in each state. An event that is not listed for a state is a bug in the bridge."""


# The connection


class Piece(NamedTuple):
    """Some frames of a subscription, or a part of one frame."""

    frames: bytes
    positions: Sequence[int]
    """The positions of the frames."""
    end: int
    """The position of the frame with which the next piece begins."""
    offset: int
    """The number of bytes of the frame at `end` that are already in this piece and earlier pieces."""


class Subscription(Protocol):
    """What connections subscribe to: a filter, and the form in which updates are sent.

    All connections with the same filter and the same form share one subscription.
    """

    @property
    def filter(self) -> UpdateFilter | None:
        """The filter that selects updates, or None for all updates."""

    @property
    def form(self) -> Form:
        """The form in which updates are sent."""

    @property
    def live(self) -> "LiveSet[Subscriber]":
        """The subscription's connections in the state LIVE."""

    connections: int
    """The number of the subscription's connections."""
    lagging_count: int
    """The number of the subscription's connections in the state LAGGING."""
    sent_at: float
    """The time of the last flush that the live connections got, in monotonic seconds."""
    heartbeat_at: float
    """The time until which no live connection needs a heartbeat, in monotonic seconds. Only `Heartbeats` changes it."""

    def read(self, position: int, offset: int, end: int, max_bytes: int) -> Piece:
        """Returns at most `max_bytes` of frames, beginning at byte `offset` of the frame at `position`."""

    def split(self, positions: Sequence[int], offset: int, taken: int) -> tuple[int, int]:
        """Returns the position and the offset at which a write stopped if the socket took only `taken` bytes."""


class Subscriber(Slot, Protocol):
    """The interface through which the hub uses a connection."""

    state: State
    """The state of the connection. Only the hub changes the state."""
    cursor: int
    """The position of the next frame to send. While the connection is live, the cursor is not updated."""
    offset: int
    """The number of bytes of the frame at the cursor that were already sent. The offset is 0 unless the frame is sent
    in parts."""
    congested: bool
    """Whether the transport holds bytes that the socket has not taken yet."""
    sent_at: float
    """The time when the hub last sent something to this connection alone, in monotonic seconds.

    While the connection is LIVE, the subscription's `sent_at` may be later."""
    subscription: Subscription
    """The subscription of the connection, which is set when the connection joins."""

    @property
    def peer(self) -> str:
        """The client's address and port, for logs."""

    def send(self, *frames: bytes | memoryview) -> int:
        """Sends frames through the transport.

        Returns the number of bytes written, -1 if some bytes are queued, or 0 if bytes are dropped, because the
        connection is closing or its transport has failed.
        """

    def frame_ended(self) -> None:
        """Called when all parts of a frame are sent, so that control frames can follow."""

    def reset(self) -> None:
        """Ends the connection at once, without a close frame."""

    def close(self, reason: CloseReason, **details: object) -> None:
        """Starts the closing handshake; `details` are numbers for the log. Calls `Hub.closing`."""


Dispatch = Callable[[Subscriber, ConnectionEvent], None]
"""A function that changes the state of a connection after an event, and carries out the actions of the transition."""
