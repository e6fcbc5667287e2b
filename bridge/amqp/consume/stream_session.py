"""Receives the deliveries of a consumer of a stream, settles those that were already read, and gives ids to new ones.

This module neither processes deliveries nor declares the stream.
"""

import time
from collections.abc import Callable
from zlib import crc32

import aiormq

from bridge.amqp.consume.session import ConsumerSession, Delivery, DeliveryHandler
from bridge.amqp.consume.stream_markers import MARKER_TYPE
from bridge.amqp.consume.stream_position import RECREATED, Verdict
from bridge.amqp.consume.stream_reader import StreamReader
from bridge.amqp.wire.fast_channel import FastChannel
from bridge.amqp.wire.properties import MessageProperties, StreamPropertiesReader

NO_OFFSET = "the broker delivers a stream's message without its offset"
POSSIBLE_GAP = "offsets of the stream are missing; reading it again from the last event, to see if events were dropped"


class StreamSession(ConsumerSession):
    """One consumer of a stream."""

    def __init__(
        self,
        handler: DeliveryHandler,
        channel: aiormq.abc.AbstractChannel,
        fast_channel: FastChannel,
        prefetch: int,
        on_open: Callable[[], None],
        reader: StreamReader,
    ) -> None:
        """`reader` keeps the position in the stream over all sessions."""
        super().__init__(
            handler, channel, fast_channel, prefetch, on_open, read_properties=StreamPropertiesReader().read
        )
        self._reader = reader
        self._position = reader.position

    def _add_delivery(
        self, tag: int, redelivered: bool, exchange: str, routing_key: str, properties: MessageProperties, body: bytes
    ) -> None:
        position, offset = self._position, properties.offset
        if offset is None:
            self._fail(NO_OFFSET)
            return
        verdict = position.observe(offset, crc32(body))
        if verdict is Verdict.ALREADY_READ:
            self.settle(tag)
            return
        if verdict is not Verdict.NEW:
            self._fail(RECREATED if verdict is Verdict.OTHER_STREAM else POSSIBLE_GAP)
            return
        if position.loss is not None:
            self._forward_deliveries()  # the queued deliveries are older than the gap
            self._reader.report_loss()
        if offset >= self._reader.expected_end:
            self._forward_deliveries()
            self._reader.on_expected_end()
        received_s = time.monotonic()
        update_id = position.last
        assert update_id is not None
        if properties.type == MARKER_TYPE and not exchange:
            self._forward_deliveries()
            # The gap has the id of its marker: a client that resumes after this id must not get the gap again.
            if not self._reader.on_marker(body, update_id):
                self._handler.record_id(update_id)
            self.settle(tag)
            self._catch_up(offset)
            return
        self._catch_up(offset)
        delivery = Delivery(self, tag, redelivered, exchange, routing_key, properties, body, received_s, update_id)
        self._deliveries.append(delivery)

    def _catch_up(self, offset: int) -> None:
        if self._position.catches_up(offset):
            self._forward_deliveries()
            self._reader.log_caught_up()
            self._handler.on_caught_up()

    def _fail(self, reason: str) -> None:
        self.end()
        self.failed.set_result(reason)
