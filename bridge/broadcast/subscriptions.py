"""All that clients have asked for: a view for each different request, and which of them show the same of an update.

A filter is asked about an update once, however many clients have it, and views that show the same are written to
together. This file must never know how bytes reach a socket.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bridge.broadcast.framing import FrameEncoder
from bridge.broadcast.live_set import LiveSet
from bridge.broadcast.replay import ReplayIndex, UpdateFilter
from bridge.broadcast.subscriber import Piece, Subscriber, Subscription

MAX_MATCHES_PER_FLUSH = 8192
"""Answers of filters to wait for when updates are handed out: 4 ms. Whoever has one of the other filters gets them in
one of the next turns of the loop, as those that are behind do."""


class SharedSubscription:
    """The log as some connections see it, and those of them that have had everything."""

    __slots__ = ("_framing", "_history", "filter", "ids", "lagging_count", "live", "members")

    def __init__(
        self, history: ReplayIndex, framing: FrameEncoder, update_filter: UpdateFilter | None, ids: bool
    ) -> None:
        """`framing` is of the history; `wanted` None wants everything."""
        self._history = history
        self._framing = framing
        self.filter = update_filter
        self.ids = ids
        self.live: LiveSet[Subscriber] = LiveSet()
        self.members = 0
        """All of its connections, also those that are not live."""
        self.lagging_count = 0
        """Of these, those that were live before."""

    def read(self, position: int, offset: int, end: int, max_bytes: int) -> Piece:
        """Returns frames of the view from byte `offset` of the frame at `position` on, in at most `max_bytes`.

        A larger frame is returned in parts. The piece stops before `end`. It also stops when enough positions were
        searched, so it may be empty. `position` must be in the log, and below `end`.
        """
        if offset:
            return self._part(position, offset, max_bytes)
        log = self._history.log
        if self.filter is None and not self.ids:
            frames, reached = log.read(position, end, max_bytes)
            if len(frames) > max_bytes:
                return self._part(position, 0, max_bytes)
            return Piece(frames, range(position, reached), reached, 0)
        run: list[bytes] = []
        size = 0
        positions, reached = self._history.matching(self.filter, position, end, own_messages=self.ids)
        for at in positions:
            size += len(log.frame(at))
            if run and size > max_bytes:
                return Piece(b"".join(run), positions[: len(run)], at, 0)
            if size > max_bytes:
                return self._part(at, 0, max_bytes)
            run.append(self._framing.frame(at, ids=self.ids))
        return Piece(b"".join(run), positions, reached, 0)

    def _part(self, position: int, offset: int, max_bytes: int) -> Piece:
        part, is_last = self._framing.part(position, offset, max_bytes, ids=self.ids)
        end, reached = (position + 1, 0) if is_last else (position, offset + len(part))
        return Piece(part, (position,), end, reached)

    def split(self, positions: Sequence[int], offset: int, taken: int) -> tuple[int, int]:
        """Finds where a client stopped that took only `taken` bytes of the frames at these positions.

        `taken` must be less than all bytes. `offset` is how many bytes of the first frame the client had before.
        Returns the position of the first incomplete frame, and how many bytes of this frame the client has.
        """
        taken += offset
        if len(positions) == 1:
            return positions[0], taken
        ends = self._framing.ends(positions, ids=self.ids)
        at = bisect_right(ends, taken)
        return positions[at], taken - (ends[at - 1] if at else 0)


class Batch(NamedTuple):
    """Views that show the same of what is new."""

    subscriptions: Sequence[SharedSubscription]
    frames: bytes
    positions: Sequence[int]
    updates: int
    """How many these are."""


class Subscriptions:
    """Those that somebody has, and that of everything as it is."""

    def __init__(self, history: ReplayIndex) -> None:
        self._framing = FrameEncoder(history)
        self.unfiltered: SharedSubscription = SharedSubscription(history, self._framing, None, ids=False)
        self._only_unfiltered = (self.unfiltered,)
        self._history = history
        self._filtered: dict[tuple[UpdateFilter | None, bool], SharedSubscription] = {}

    def __len__(self) -> int:
        """How many there are beside the plain one."""
        return len(self._filtered)

    def __iter__(self) -> Iterator[SharedSubscription]:
        """Over a copy: whoever is closed meanwhile may have been the last of a view."""
        return iter((self.unfiltered, *self._filtered.values()))

    def of(self, update_filter: UpdateFilter | None, *, ids: bool) -> SharedSubscription:
        """The view for a wish."""
        if update_filter is None and not ids:
            return self.unfiltered
        subscription = self._filtered.get((update_filter, ids))
        if subscription is None:
            # With the same object for a filter, with ids and without: by that it is known that it was asked already.
            twin = self._filtered.get((update_filter, not ids))
            subscription = self._filtered[update_filter, ids] = SharedSubscription(
                self._history, self._framing, twin.filter if twin else update_filter, ids
            )
        return subscription

    def forget(self, subscription: Subscription) -> None:
        """To be called when nobody has a view any more."""
        self._filtered.pop((subscription.filter, subscription.ids), None)
        if subscription.filter is not None and (subscription.filter, not subscription.ids) not in self._filtered:
            self._history.forget(subscription.filter)

    def batches(self, start: int, end: int, frames: bytes) -> tuple[Sequence[Batch], Sequence[SharedSubscription]]:
        """Who shows what of the newest positions, and the views for which that is to be found out later.

        `frames` is how they are in the log.
        """
        positions = self._history.updates(start, end)
        if not self._filtered:
            return ((Batch(self._only_unfiltered, frames, positions, len(positions)),) if frames else ()), ()
        if frames:
            return self._grouped(frames, positions)
        # A notice is alone (see Hub.notify), and for all that have ids.
        notice = self._history.own_message_at(start)
        with_ids = [subscription for subscription in self._filtered.values() if subscription.ids]
        return ((Batch(with_ids, notice, (start,), 0),) if notice and with_ids else ()), ()

    def _grouped(self, frames: bytes, positions: Sequence[int]) -> tuple[list[Batch], list[SharedSubscription]]:
        contents = [self._history.content(position) for position in positions]
        everything = (True,) * len(contents)
        known: dict[int, tuple[bool, ...]] = {}
        alike: dict[tuple[bool, tuple[bool, ...]], list[SharedSubscription]] = {(False, everything): [self.unfiltered]}
        later = []
        for subscription in self._filtered.values():
            update_filter = subscription.filter
            if update_filter is None:
                answers = everything
            elif id(update_filter) in known:
                answers = known[id(update_filter)]
            elif len(known) * len(contents) < MAX_MATCHES_PER_FLUSH:
                answers = known[id(update_filter)] = tuple([update_filter.matches(*content) for content in contents])
            else:
                later.append(subscription)
                continue
            alike.setdefault((subscription.ids, answers), []).append(subscription)
        batches = []
        for (ids, answers), subscriptions in alike.items():
            shown = [position for position, answer in zip(positions, answers, strict=True) if answer]
            if shown and (ids or len(shown) < len(positions)):
                run = b"".join(self._framing.frame(position, ids=ids) for position in shown)
                batches.append(Batch(subscriptions, run, shown, len(shown)))
            elif shown:
                batches.append(Batch(subscriptions, frames, positions, len(shown)))
        return batches, later
