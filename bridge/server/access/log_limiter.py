"""Log lines that strangers can cause: so many a minute of each kind, the others are counted."""

from collections.abc import Callable

MOST = 10
"""Of a kind, in a minute: enough to see who and why, too little to fill a disk or to slow the bridge down."""

MINUTE_S = 60.0


class Lines:
    """Says which of what repeats is worth a line."""

    def __init__(self, time: Callable[[], float]) -> None:
        """`time` is in seconds, and never goes back."""
        self._time = time
        self._began_at: dict[str, float] = {}
        self._said: dict[str, int] = {}

    def due(self, kind: str) -> dict[str, int] | None:
        """None where this one is only counted; else what belongs into its line: how many were, since the last line.

        `kind` is one of a few of the program's own: each is remembered for ever.
        """
        now_s = self._time()
        said = self._said.get(kind, 0) + 1
        unsaid = 0
        if now_s >= self._began_at.get(kind, -MINUTE_S) + MINUTE_S:
            unsaid = max(0, said - 1 - MOST)
            said = 1
            self._began_at[kind] = now_s
        self._said[kind] = said
        if said > MOST:
            return None
        return {"unsaid": unsaid} if unsaid else {}
