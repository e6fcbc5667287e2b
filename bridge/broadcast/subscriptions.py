"""The subscriptions of clients: for each filter, one subscription for each form in which clients receive updates.

Connections with the same filter and the same form share a subscription. Subscriptions that send the same bytes
share one write. Each filter is applied to an update only once, even if many clients use it.

This module does not use sockets.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bridge.broadcast.framing import Form, FrameEncoder
from bridge.broadcast.live_set import LiveSet
from bridge.broadcast.replay import ReplayIndex, UpdateFilter
from bridge.broadcast.subscriber import Piece, Subscriber, Subscription

MAX_MATCHES_PER_FLUSH = 8192
"""The maximum number of filter calls in a flush.

This many filter calls take 4 ms. If a flush does not get to every filter, the connections of the remaining filters read
the updates from the log in the next turns of the event loop, like lagging connections.
"""


class SharedSubscription:
    """Reads the log for the connections of one subscription, and knows which of the connections are live."""

    __slots__ = (
        "_encoder",
        "_index",
        "connections",
        "filter",
        "form",
        "heartbeat_at",
        "lagging_count",
        "live",
        "sent_at",
    )

    def __init__(
        self, index: ReplayIndex, encoder: FrameEncoder, update_filter: UpdateFilter | None, form: Form
    ) -> None:
        """`encoder` encodes the frames of `index`. If `update_filter` is None, the subscription sends all updates."""
        self._index = index
        self._encoder = encoder
        self.filter = update_filter
        self.form = form
        self.live: LiveSet[Subscriber] = LiveSet()
        self.connections = 0
        self.lagging_count = 0
        self.sent_at = self.heartbeat_at = 0.0

    def read(self, position: int, offset: int, end: int, max_bytes: int) -> Piece:
        """Returns at most `max_bytes` of frames, beginning at byte `offset` of the frame at `position`.

        A frame larger than `max_bytes` is returned in parts. The piece ends before `end`. Only one segment is searched
        for matching updates, so the piece may be empty. `position` must be in the log, and below `end`.
        """
        if offset:
            return self._part(position, offset, max_bytes)
        log = self._index.update_log
        if self.filter is None and self.form is Form.TEXT:
            frames, reached = log.read(position, end, max_bytes)
            if len(frames) > max_bytes:
                return self._part(position, 0, max_bytes)
            return Piece(frames, range(position, reached), reached, 0)
        run: list[bytes] = []
        size = 0
        positions, reached = self._index.matching(self.filter, position, end, own_messages=self.form.has_ids)
        for at in positions:
            # A frame that is large in the log is never encoded as a whole.
            frame = b"" if len(log.frame(at)) > max_bytes else self._encoder.frame(at, self.form)
            size += len(frame)
            if not frame or size > max_bytes:
                if run:
                    return Piece(b"".join(run), positions[: len(run)], at, 0)
                return self._part(at, 0, max_bytes)
            run.append(frame)
        return Piece(b"".join(run), positions, reached, 0)

    def _part(self, position: int, offset: int, max_bytes: int) -> Piece:
        part, is_last = self._encoder.part(position, offset, max_bytes, self.form)
        end, reached = (position + 1, 0) if is_last else (position, offset + len(part))
        return Piece(part, (position,), end, reached)

    def split(self, positions: Sequence[int], offset: int, taken: int) -> tuple[int, int]:
        """Returns where a write stopped if the socket took only `taken` bytes of the frames at `positions`.

        Returns the position of the first incomplete frame, and the number of its bytes that were sent. `taken` must be
        less than the total size of the frames. `offset` bytes of the first frame were sent before this write.
        """
        taken += offset
        if len(positions) == 1:
            return positions[0], taken
        ends = self._encoder.ends(positions, self.form)
        at = bisect_right(ends, taken)
        return positions[at], taken - (ends[at - 1] if at else 0)


class Batch(NamedTuple):
    """The subscriptions whose clients all get the same bytes in a flush."""

    subscriptions: Sequence[SharedSubscription]
    frames: bytes
    positions: Sequence[int]
    """The positions of the frames."""
    updates: int
    """The number of updates in the frames."""


class Subscriptions:
    """The subscriptions that are in use, and the default subscription, which sends all updates without ids."""

    def __init__(self, index: ReplayIndex) -> None:
        self._index = index
        self._encoder = FrameEncoder(index)
        self.unfiltered = SharedSubscription(index, self._encoder, None, Form.TEXT)
        self._only_unfiltered = (self.unfiltered,)
        self._others: dict[tuple[UpdateFilter | None, Form], SharedSubscription] = {}

    def __len__(self) -> int:
        """The number of subscriptions, not counting the default subscription."""
        return len(self._others)

    def __iter__(self) -> Iterator[SharedSubscription]:
        """Iterates over a copy, because a subscription is removed if the caller removes its last connection."""
        return iter((self.unfiltered, *self._others.values()))

    def join(self, update_filter: UpdateFilter | None, form: Form) -> SharedSubscription:
        """Returns the subscription for a new connection. The connection must leave this subscription later."""
        subscription = self._find(update_filter, form)
        subscription.connections += 1
        return subscription

    def leave(self, subscription: Subscription) -> None:
        """Removes a connection from its subscription. If this was the last connection, removes the subscription too."""
        subscription.connections -= 1
        if subscription.connections:
            return
        self._others.pop((subscription.filter, subscription.form), None)
        if subscription.filter is not None and self._twin(subscription.filter) is None:
            self._index.forget(subscription.filter)

    def _find(self, update_filter: UpdateFilter | None, form: Form) -> SharedSubscription:
        if update_filter is None and form is Form.TEXT:
            return self.unfiltered
        subscription = self._others.get((update_filter, form))
        if subscription is None:
            # All subscriptions with equal filters must share one filter object, because `_grouped` applies each filter
            # object only once.
            twin = self._twin(update_filter)
            shared = twin.filter if twin else update_filter
            subscription = SharedSubscription(self._index, self._encoder, shared, form)
            self._others[update_filter, form] = subscription
        return subscription

    def _twin(self, update_filter: UpdateFilter | None) -> SharedSubscription | None:
        """Returns a subscription with this filter, in any form."""
        return next((twin for form in Form if (twin := self._others.get((update_filter, form)))), None)

    def batches(self, start: int, end: int, frames: bytes) -> tuple[Sequence[Batch], Sequence[SharedSubscription]]:
        """Returns the batches to write in this flush, and the subscriptions to serve in later turns of the event loop.

        `frames` contains the frames at the positions from `start` to `end`, joined and without ids.
        """
        positions = self._index.updates(start, end)
        if not self._others:
            return ((Batch(self._only_unfiltered, frames, positions, len(positions)),) if frames else ()), ()
        if frames:
            return self._grouped(frames, positions)
        # If one of the bridge's own messages is flushed, nothing else is flushed with it (see `Hub.send_own_message`).
        # All subscriptions with ids get this message.
        if not self._index.own_message_at(start):
            return (), ()
        with_ids = [subscription for subscription in self._others.values() if subscription.form.has_ids]
        return [
            Batch(subscriptions, self._encoder.frame(start, form), (start,), 0)
            for form in Form
            if (subscriptions := [each for each in with_ids if each.form is form])
        ], ()

    def _grouped(self, frames: bytes, positions: Sequence[int]) -> tuple[list[Batch], list[SharedSubscription]]:
        inputs = [self._index.filter_input(position) for position in positions]
        everything = (True,) * len(inputs)
        matches_by_filter: dict[int, tuple[bool, ...]] = {}
        alike: dict[tuple[Form, tuple[bool, ...]], list[SharedSubscription]] = {
            (Form.TEXT, everything): [self.unfiltered]
        }
        later = []
        for subscription in self._others.values():
            update_filter = subscription.filter
            if update_filter is None:
                matches = everything
            elif id(update_filter) in matches_by_filter:
                matches = matches_by_filter[id(update_filter)]
            elif len(matches_by_filter) * len(inputs) < MAX_MATCHES_PER_FLUSH:
                try:
                    matches = tuple([update_filter.matches(*filter_input) for filter_input in inputs])
                except Exception:
                    # Only the connections of this filter fail, when they read these updates from the log.
                    later.append(subscription)
                    continue
                matches_by_filter[id(update_filter)] = matches
            else:
                later.append(subscription)
                continue
            alike.setdefault((subscription.form, matches), []).append(subscription)
        batches = []
        for (form, matches), subscriptions in alike.items():
            shown = [position for position, match in zip(positions, matches, strict=True) if match]
            if shown and (form is not Form.TEXT or len(shown) < len(positions)):
                run = b"".join([self._encoder.frame(position, form) for position in shown])
                batches.append(Batch(subscriptions, run, shown, len(shown)))
            elif shown:
                batches.append(Batch(subscriptions, frames, positions, len(shown)))
        return batches, later
