"""One channel's deliveries of a stream: what was read before is settled in silence, everything else gets its id.

This file must never know what becomes of a delivery, or how a stream is made.
"""

import time
from collections.abc import Callable
from zlib import crc32

from bridge.broker.content import Content, StreamContents
from bridge.broker.course import REMADE, Verdict
from bridge.broker.epoch import Delivery, Epoch, Recipient
from bridge.broker.stream import MARK, History

NO_OFFSET = "the broker delivers a stream's message without its offset"


class ReadingEpoch(Epoch):
    """An epoch of a stream's deliveries."""

    def __init__(
        self,
        recipient: Recipient,
        prefetch: int,
        history: History,
        on_missed: Callable[[], None],
        on_caught_up: Callable[[], None],
    ) -> None:
        """`on_missed` is called where `history.course.lost` says something, `on_caught_up` once in all epochs."""
        super().__init__(recipient, prefetch, StreamContents().read)
        self._history = history
        self._course = history.course
        self._mark = recipient.mark
        self._on_missed = on_missed
        self._on_caught_up = on_caught_up

    def _receive(
        self, tag: int, redelivered: bool, exchange: str, routing_key: str, content: Content, body: bytes
    ) -> None:
        if not self.current:
            return  # it is still in the stream, and comes again
        self._due = True  # see _received
        self._settlement.deliver(tag)
        course, number = self._course, content.offset
        if number is None:
            self._fail(NO_OFFSET)
            return
        verdict = course.judge(number, crc32(body))
        if verdict is not Verdict.NEW:
            if verdict is Verdict.FOREIGN:
                self._fail(REMADE)
            else:
                self.settle(tag)
            return
        if course.lost is not None:
            self._on_missed()
        self._history.read_s = received_s = time.monotonic()
        known_as = course.last
        assert known_as is not None
        if content.type == MARK and not exchange:
            self._mark(known_as)
            self.settle(tag)
            if course.catch_up(number):
                self._on_caught_up()
            return
        if course.catch_up(number):
            self._on_caught_up()
        self._deliver(Delivery(self, tag, redelivered, exchange, routing_key, content, body, received_s, known_as))

    def _fail(self, reason: str) -> None:
        # Nothing that follows in this life is handed out, or acknowledged.
        self.current = False
        self.failed.set_result(reason)
