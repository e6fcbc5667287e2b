"""One channel's deliveries of a stream: what was read before is settled in silence, everything else gets its id.

This file must never know what becomes of a delivery, or how a stream is made.
"""

import time
from zlib import crc32

from bridge.amqp.consume.session import ConsumerSession, Delivery, DeliveryHandler
from bridge.amqp.consume.stream_markers import MARK
from bridge.amqp.consume.stream_position import REMADE, Verdict
from bridge.amqp.consume.stream_reader import StreamReader
from bridge.amqp.wire.properties import MessageProperties, StreamPropertiesReader

NO_OFFSET = "the broker delivers a stream's message without its offset"
DOUBTFUL = "places of the stream are missing; it is read from the last event once more, to see whether any was dropped"


class StreamSession(ConsumerSession):
    """The session of a consumer that reads a stream."""

    def __init__(self, handler: DeliveryHandler, prefetch: int, history: StreamReader) -> None:
        """`history` is told of what comes, in order."""
        super().__init__(handler, prefetch, StreamPropertiesReader().read)
        self._history = history
        self._course = history.course
        self._handler = handler

    def _receive(
        self, tag: int, redelivered: bool, exchange: str, routing_key: str, properties: MessageProperties, body: bytes
    ) -> None:
        if not self.current:
            return  # it is still in the stream, and comes again
        self._due = True  # see _received
        self._settlement.deliver(tag)
        course, number = self._course, properties.offset
        if number is None:
            self._fail(NO_OFFSET)
            return
        verdict = course.judge(number, crc32(body))
        if verdict is Verdict.KNOWN:
            self.settle(tag)
            return
        if verdict is not Verdict.NEW:
            self._fail(REMADE if verdict is Verdict.FOREIGN else DOUBTFUL)
            return
        if course.lost is not None:
            self._history.missed()
        if number >= self._history.proof_at:
            self._history.prove()
        received_s = time.monotonic()
        known_as = course.last
        assert known_as is not None
        if properties.type == MARK and not exchange:
            # Who is given the mark's id, and comes back with it, was not there when the gap was.
            self._history.marked(body)
            self._handler.record_id(known_as)
            self.settle(tag)
            self._catch_up(number)
            return
        self._catch_up(number)
        self._deliver(Delivery(self, tag, redelivered, exchange, routing_key, properties, body, received_s, known_as))

    def _catch_up(self, number: int) -> None:
        if self._course.catch_up(number):
            self._history.caught_up()
            self._handler.on_caught_up()

    def _fail(self, reason: str) -> None:
        # Nothing that follows in this life is handed out, or acknowledged.
        self.current = False
        self.failed.set_result(reason)
