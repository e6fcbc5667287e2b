"""When to try again."""

import random


class Backoff:
    """Pauses between attempts: growing, jittered, never long, so that the end of an outage is soon seen."""

    def __init__(self, first_s: float = 0.1, longest_s: float = 1.5) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._next_s = first_s

    def reset(self) -> None:
        """To be called when an attempt has succeeded."""
        self._next_s = self._first_s

    def pause_s(self, least_s: float = 0.0) -> float:
        """The next pause: between half of it and all of it, so that many bridges don't come back at once.

        It grows from `least_s` on where that is longer.
        """
        pause_s = max(self._next_s, least_s)
        self._next_s = min(pause_s * 2, self._longest_s)
        return pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter is no secret
