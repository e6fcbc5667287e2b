"""Logs connections, channels, deliveries and acknowledgements, at level debug."""

import logging
from typing import Protocol

import structlog

from bridge import logs
from bridge.amqp.wire.fast_channel import PropertiesReader, Receiver
from bridge.amqp.wire.properties import MessageProperties
from bridge.amqp.wire.settlement import Acknowledgement

LOGGER = "bridge.amqp"

_log = structlog.get_logger(LOGGER)

# Connections and channels are logged with the standard library's logger, because a Publisher runs this code in other
# programs.

_standard_log = logging.getLogger(LOGGER)


def connection_opened(connection: str, node: str) -> None:
    """Logs the name of an opened connection, and the node's address without the password."""
    _standard_log.debug("connection opened", extra={"connection": connection, "node": node})


def connection_closed(connection: str, node: str) -> None:
    """Logs that a connection is closed."""
    _standard_log.debug("connection closed", extra={"connection": connection, "node": node})


def channel_opened(connection: str, channel: int) -> None:
    """Logs that a channel is ready to consume or to publish. `channel` is the number of the channel."""
    _standard_log.debug("channel opened", extra={"connection": connection, "channel": channel})


def channel_closed(connection: str, channel: int, reason: str) -> None:
    """Logs that a channel is closed, and the reason."""
    _standard_log.debug("channel closed", extra={"connection": connection, "channel": channel, "reason": reason})


# Deliveries and acknowledgements


def delivery_received(
    tag: int, redelivered: bool, exchange: str, routing_key: str, properties: MessageProperties, body: bytes
) -> None:
    """Logs a delivery, with its exchange, its routing key and the size of its body."""
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


class DeliveryChannel(Protocol):
    """The methods of a fast channel that a session uses."""

    def consume(self, number: int, receiver: Receiver, read_properties: PropertiesReader) -> None:
        """Takes the deliveries of the channel `number`."""

    def acknowledge(self, acknowledgements: list[Acknowledgement]) -> None:
        """Sends acknowledgements."""


def traced(channel: DeliveryChannel) -> DeliveryChannel:
    """Returns the channel, with a tracing wrapper if the log level is debug.

    At all other log levels, tracing takes no time.
    """
    return _TracedChannel(channel) if logs.traces(LOGGER) else channel


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
        delivery_received(tag, redelivered, exchange, routing_key, properties, body)
        self._receiver.on_delivery(tag, redelivered, exchange, routing_key, properties, body)
