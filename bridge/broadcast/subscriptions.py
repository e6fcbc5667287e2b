"""All that clients have asked for: a view for each different wish, and which of them show the same of an update.

A filter is asked about an update once, however many clients have it, and views that show the same are written to
together. This file must never know how bytes reach a socket.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bridge.broadcast.framing import Framing
from bridge.broadcast.replay import History
from bridge.broadcast.segment import Filter
from bridge.broadcast.subscriber import Subscriber
from bridge.broadcast.view import View

ASKED = 8192
"""Answers of filters to wait for when updates are handed out: 4 ms. Whoever has one of the other filters gets them in
one of the next turns of the loop, as those that are behind do."""


class Group(NamedTuple):
    """Views that show the same of what is new."""

    views: Sequence[View[Subscriber]]
    frames: bytes
    positions: Sequence[int]
    updates: int
    """How many these are."""


class Views:
    """Those that somebody has, and that of everything as it is."""

    def __init__(self, history: History) -> None:
        self._framing = Framing(history)
        self.plain: View[Subscriber] = View(history, self._framing, None, ids=False)
        self._only_plain = (self.plain,)
        self._history = history
        self._others: dict[tuple[Filter | None, bool], View[Subscriber]] = {}

    def __len__(self) -> int:
        """How many there are beside the plain one."""
        return len(self._others)

    def __iter__(self) -> Iterator[View[Subscriber]]:
        """Over a copy: whoever is closed meanwhile may have been the last of a view."""
        return iter((self.plain, *self._others.values()))

    def of(self, wanted: Filter | None, *, ids: bool) -> View[Subscriber]:
        """The view for a wish."""
        if wanted is None and not ids:
            return self.plain
        view = self._others.get((wanted, ids))
        if view is None:
            # With the same object for a filter, with ids and without: by that it is known that it was asked already.
            twin = self._others.get((wanted, not ids))
            view = self._others[wanted, ids] = View(self._history, self._framing, twin.filter if twin else wanted, ids)
        return view

    def forget(self, view: View[Subscriber]) -> None:
        """To be called when nobody has a view any more."""
        self._others.pop((view.filter, view.ids), None)
        if view.filter is not None and (view.filter, not view.ids) not in self._others:
            self._history.forget(view.filter)

    def groups(self, start: int, end: int, frames: bytes) -> tuple[Sequence[Group], Sequence[View[Subscriber]]]:
        """Who shows what of the newest positions, and the views for which that is to be found out later.

        `frames` is how they are in the log.
        """
        positions = self._history.updates(start, end)
        if not self._others:
            return ((Group(self._only_plain, frames, positions, len(positions)),) if frames else ()), ()
        if frames:
            return self._grouped(frames, positions)
        # A notice is alone (see Hub.notify), and for all that have ids.
        notice = self._history.notice_at(start)
        with_ids = [view for view in self._others.values() if view.ids]
        return ((Group(with_ids, notice, (start,), 0),) if notice and with_ids else ()), ()

    def _grouped(self, frames: bytes, positions: Sequence[int]) -> tuple[list[Group], list[View[Subscriber]]]:
        contents = [self._history.content(position) for position in positions]
        everything = (True,) * len(contents)
        known: dict[int, tuple[bool, ...]] = {}
        alike: dict[tuple[bool, tuple[bool, ...]], list[View[Subscriber]]] = {(False, everything): [self.plain]}
        later = []
        for view in self._others.values():
            wanted = view.filter
            if wanted is None:
                answers = everything
            elif id(wanted) in known:
                answers = known[id(wanted)]
            elif len(known) * len(contents) < ASKED:
                answers = known[id(wanted)] = tuple([wanted.matches(*content) for content in contents])
            else:
                later.append(view)
                continue
            alike.setdefault((view.ids, answers), []).append(view)
        groups = []
        for (ids, answers), views in alike.items():
            shown = [position for position, answer in zip(positions, answers, strict=True) if answer]
            if shown and (ids or len(shown) < len(positions)):
                run = b"".join(self._framing.frame(position, ids=ids) for position in shown)
                groups.append(Group(views, run, shown, len(shown)))
            elif shown:
                groups.append(Group(views, frames, positions, len(shown)))
        return groups, later
