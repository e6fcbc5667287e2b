"""Logs each delivery and each acknowledgement of a channel, at level debug."""

import logging
from typing import Protocol

import structlog

from bridge.amqp.wire.fast_channel import PropertiesReader, Receiver
from bridge.amqp.wire.properties import MessageProperties
from bridge.amqp.wire.settlement import Acknowledgement

LOGGER = "bridge.amqp"

_log = structlog.get_logger(LOGGER)


class DeliveryChannel(Protocol):
    """What a session uses of a fast channel."""

    def consume(self, number: int, receiver: Receiver, read_properties: PropertiesReader) -> None:
        """Reads deliveries on the channel with this number."""

    def acknowledge(self, acknowledgements: list[Acknowledgement]) -> None:
        """Sends acknowledgements."""


def traced(channel: DeliveryChannel) -> DeliveryChannel:
    """Returns the channel, wrapped if the level is debug now. At other levels, tracing costs nothing."""
    return _TracedChannel(channel) if logging.getLogger(LOGGER).isEnabledFor(logging.DEBUG) else channel


class _TracedChannel:
    def __init__(self, channel: DeliveryChannel) -> None:
        self._channel = channel

    def consume(self, number: int, receiver: Receiver, read_properties: PropertiesReader) -> None:
        self._channel.consume(number, _TracedReceiver(receiver), read_properties)

    def acknowledge(self, acknowledgements: list[Acknowledgement]) -> None:
        for tag, multiple in acknowledgements:
            _log.debug("acknowledged", tag=tag, multiple=multiple)
        self._channel.acknowledge(acknowledgements)


class _TracedReceiver:
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self.on_read_end = receiver.on_read_end

    def on_delivery(
        self, tag: int, redelivered: bool, exchange: str, routing_key: str, properties: MessageProperties, body: bytes
    ) -> None:
        offset = {} if properties.offset is None else {"offset": properties.offset}
        _log.debug(
            "delivery",
            tag=tag,
            **offset,
            exchange=exchange,
            routing_key=routing_key,
            type=properties.type,
            bytes=len(body),
            redelivered=redelivered,
        )
        self._receiver.on_delivery(tag, redelivered, exchange, routing_key, properties, body)
