"""All that clients have asked for: a view for each different wish, and which of them show the same of an update.

A filter is asked about an update once, however many clients have it, and views that show the same are written to
together. This file must never know how bytes reach a socket.
"""

from collections.abc import Iterable, Iterator, Sequence

from bridge.contract.envelope import unwrap
from bridge.fanout.frames import payload_of
from bridge.fanout.history import Filter, History
from bridge.fanout.lagging import Subscriber
from bridge.fanout.view import View

Content = tuple[str, object]
"""An update's type and data, for filters."""


Group = tuple[Sequence[View[Subscriber]], bytes, int]
"""Views that show the same of what is new, the frames of that, and how many updates they are."""


class Views:
    """Those that somebody has, and that of everything as it is."""

    def __init__(self, history: History) -> None:
        self.plain: View[Subscriber] = View(history, None, ids=False)
        self._only_plain = (self.plain,)
        self._history = history
        self._others: dict[tuple[Filter | None, bool], View[Subscriber]] = {}
        self._contents: list[Content | None] = []
        """Of the newest positions of the log."""

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
            view = self._others[wanted, ids] = View(self._history, twin.filter if twin else wanted, ids)
        return view

    def forget(self, view: View[Subscriber]) -> None:
        """To be called when nobody has a view any more."""
        self._others.pop((view.filter, view.ids), None)

    def note(self, content: Content | None) -> None:
        """To be called for each update that is added to the log; None where it is not at hand."""
        if self._others:
            self._contents.append(content)

    def forget_contents(self) -> None:
        """To be called when all updates so far have been handed out."""
        self._contents.clear()

    def groups(self, start: int, end: int, frames: bytes) -> Iterable[Group]:
        """Who shows what of the newest positions; `frames` is how they are in the log."""
        if not self._others:
            return ((self._only_plain, frames, end - start),) if frames else ()
        if frames:
            return self._groups(start, end, frames)
        # It is alone (see Hub.notify), and for all that have ids.
        notice = self._history.frame(start, ids=True)
        with_ids = [view for view in self._others.values() if view.ids]
        return ((with_ids, notice, 0),) if notice and with_ids else ()

    def _groups(self, start: int, end: int, frames: bytes) -> Iterator[Group]:
        # The newest are known: of the others nobody asked for anything when they came.
        unknown = self._history.log.head - len(self._contents)
        contents = [
            (self._contents[at - unknown] if at >= unknown else None) or self._content(at) for at in range(start, end)
        ]
        everything = (True,) * len(contents)
        known: dict[int, tuple[bool, ...]] = {}
        groups: dict[tuple[bool, tuple[bool, ...]], list[View[Subscriber]]] = {(False, everything): [self.plain]}
        for view in self._others.values():
            wanted = view.filter
            if wanted is None:
                answers = everything
            elif id(wanted) in known:
                answers = known[id(wanted)]
            else:
                answers = known[id(wanted)] = tuple([wanted.matches(*content) for content in contents])
            groups.setdefault((view.ids, answers), []).append(view)
        for (ids, answers), views in groups.items():
            updates = sum(answers)
            if updates and (ids or updates < len(answers)):
                shown = [position for position, answer in zip(range(start, end), answers, strict=True) if answer]
                yield views, b"".join(self._history.frame(position, ids=ids) for position in shown), updates
            elif updates:
                yield views, frames, updates

    def _content(self, position: int) -> Content:
        return unwrap(payload_of(self._history.log.frame(position)))
