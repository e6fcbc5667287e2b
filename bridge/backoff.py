"""The pauses between attempts."""

import random


class Backoff:
    """Pauses that grow up to a short limit, with jitter. An outage that ends is therefore noticed soon."""

    def __init__(self, first_s: float = 0.1, longest_s: float = 1.5) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._next_s = first_s

    def reset(self) -> None:
        """Starts again with the first pause. Call it after an attempt that succeeded."""
        self._next_s = self._first_s

    def pause_s(self, least_s: float = 0.0) -> float:
        """The next pause, reduced by up to a half at random, so that many bridges do not reconnect at the same time.

        `least_s` is a minimum before the reduction, from which later pauses grow.
        """
        pause_s = max(self._next_s, least_s)
        self._next_s = min(pause_s * 2, self._longest_s)
        return pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter is no secret
