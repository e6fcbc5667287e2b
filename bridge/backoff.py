"""The pauses between attempts, with exponential backoff and jitter."""

import random


class Backoff:
    """Pauses that grow up to a maximum, with jitter.

    The maximum is short, so that the end of an outage is noticed soon.
    """

    def __init__(self, first_s: float = 0.1, longest_s: float = 1.5) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._next_s = first_s

    def reset(self) -> None:
        """Makes the next pause as short as the first pause. Call this method after a successful attempt."""
        self._next_s = self._first_s

    def pause_s(self, least_s: float = 0.0) -> float:
        """Returns the next pause.

        The pause is shortened by a random amount, up to half, so that programs don't all reconnect at once.

        Before the random shortening, the pause is at least `least_s`. The following pause is twice as long, up to the
        maximum.
        """
        pause_s = max(self._next_s, least_s)
        self._next_s = min(pause_s * 2, self._longest_s)
        return pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter is no secret
