"""Publishes updates from fetchers written in Python. Each update is validated, and the broker must confirm it.

Publishing needs only the broker, not the bridge. A fetcher and a bridge share nothing except the exchange.
"""

import asyncio
import dataclasses
import json
import logging
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Self

import aiormq
import orjson
from pamqp import commands

from bridge.amqp import topology
from bridge.amqp.connection import Channel, Connection
from bridge.amqp.connection_errors import error_text
from bridge.amqp.nodes import Node
from bridge.amqp.publish.confirm_channel import ConfirmChannel, Unconfirmed, Unrouted
from bridge.amqp.status import State, Status
from bridge.backoff import Backoff
from bridge.config import parsers
from bridge.config.amqp_urls import amqp_urls
from bridge.contract import catalog
from bridge.contract.pipeline import Event, Pipeline, Reason, Rejected
from bridge.errors import BrokerRefusal, shown_value

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""The default of the setting BRIDGE_MAX_MESSAGE_BYTES."""

PERSISTENT = 2
"""The delivery mode of a message that a durable queue keeps when the broker restarts."""

# This module uses the standard library's logger instead of structlog, because the module also runs in other programs.
_log = logging.getLogger("bridge.publisher")


class InvalidUpdate(ValueError):
    """The data is not a valid update, and was not sent. The error's text is the reason."""

    def __init__(self, rejected: Rejected) -> None:
        super().__init__(f"{rejected.reason.value}: {rejected.detail}")
        self.rejected = rejected
        self.reason = rejected.reason
        """The reason that a bridge would put into the header `x-reject-reason`."""
        self.pointer = rejected.pointer
        """A JSON Pointer to the invalid part of the update. An empty pointer means the whole update."""
        self.schema = rejected.schema
        """The `$id` of the violated schema, or an empty string."""
        self.detail = rejected.detail


class ExchangeNotFound(BrokerRefusal):
    """The exchange does not exist, and `declare` is false. The update was not sent."""

    exit_code = 2


class NotConfirmed(ConnectionError):
    """The broker did not confirm the update in time. The broker may still have received the update.

    If the schema of the update's type has an `x-identity`, the update can be published again: the bridge recognizes a
    repetition and sends the update to clients only once.
    """


class Publisher:
    """Publishes updates to an exchange, on a connection that is opened again whenever it is lost.

    A publisher is an asynchronous context manager. A publisher connects when its context is entered. A publisher that
    is used without `async with` connects when it gets its first update. Any number of updates can wait for their
    confirms at the same time. While the connection lasts, updates are published in the order of the calls.
    """

    def __init__(
        self,
        amqp_url: str = "amqp://guest:guest@localhost:5672/",
        exchange: str = "killmails",
        *,
        declare: bool = False,
        schemas: Path | None = None,
        timeout_s: float = 30.0,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        """`amqp_url` can contain several URLs, separated by commas.

        If `declare` is true, the publisher declares a missing exchange as a durable fanout. If `declare` is false, the
        exchange must exist when the publisher connects. A bridge declares its exchanges when it starts.

        `schemas` is a folder of schema files that are used in addition to the packaged schemas. `timeout_s` limits the
        time for each update, including the time to connect. Raises ValueError if the URL or the exchange name is
        invalid, a limit is not above zero, the schema files are unusable, or `declare` is true for a reserved exchange
        (`amq.`).
        """
        try:
            self._nodes: Sequence[Node] = tuple(map(Node, amqp_urls(amqp_url)))
        except ValueError as error:
            raise ValueError(f"amqp_url: expected {error}") from None
        try:
            name = parsers.amqp_name(exchange)
        except ValueError as error:
            raise ValueError(f"exchange: {shown_value(exchange)} is not valid: expected {error}") from None
        if declare and topology.is_reserved(exchange):
            raise ValueError(
                f"exchange: {exchange!r} can't be declared: RabbitMQ reserves names that begin with "
                f"{topology.RESERVED_PREFIX}; name another exchange, or omit declare if it exists"
            )
        # The condition is not written as `timeout_s <= 0`, which would be False for NaN.
        if not timeout_s > 0:
            raise ValueError(f"timeout_s: expected a number of seconds above 0; got {timeout_s!r}")
        if not max_message_bytes > 0:
            raise ValueError(f"max_message_bytes: expected a number of bytes above 0; got {max_message_bytes!r}")
        self._exchange = _Exchange(name, declare)
        self._timeout_s = timeout_s
        self._schemas = catalog.load([catalog.PACKAGED, *((schemas,) if schemas else ())])
        self._pipeline = Pipeline(self._schemas, max_message_bytes)
        self._stopping = asyncio.Event()
        self._channel: ConfirmChannel | None = None
        self._running: asyncio.Task[None] | None = None
        """The task that keeps the channel open.

        If the broker refuses the publisher, this task ends, and the next update starts a new task.
        """

    async def __aenter__(self) -> Self:
        self._open_channel()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def broadcast(self, update_type: str, data: object) -> bool:
        """Publishes an update and waits for the broker's confirm.

        Returns True if the update has reached at least one queue.

        Returns False if the broker dropped the update because no queue is bound to the exchange, which means that no
        bridge consumes from it. For the type `killmail`, `data` can also be in one of the source formats. A datetime in
        `data` is written in the format of RFC 3339.

        Raises InvalidUpdate or ExchangeNotFound if the update was not sent, NotConfirmed if it may have been sent, and
        BrokerRefusal if the broker refuses the password, the virtual host or a permission. Once a connection has
        succeeded, a missing exchange or a refusal raises NotConfirmed instead of ExchangeNotFound or BrokerRefusal.
        """
        # If `update_type` were not checked, data of the form `{"type": ..., "data": ...}` could be valid as another
        # type.
        if update_type in catalog.NO_TYPES:
            problem = f"{update_type!r} is no update type" if update_type else "the update type is empty"
            known = ", ".join(sorted(self._schemas.types))
            raise InvalidUpdate(Rejected(Reason.UNKNOWN_TYPE, f"{problem}; known types: {known}"))
        try:
            body = orjson.dumps(data)
            if b"null" in body:
                # orjson writes NaN as null, and a schema accepts null for an absent id.
                json.dumps(data, allow_nan=False, default=_plain)
        except (TypeError, ValueError) as error:
            raise InvalidUpdate(Rejected(Reason.NOT_JSON, f"the data can't be written as JSON: {error}")) from error
        return await self.publish(body, update_type)

    async def publish(self, body: bytes, update_type: str | None = None, default_type: str | None = None) -> bool:
        """Publishes an event that is already JSON. The results and the errors are the same as for `broadcast`.

        A wrapped event (`{type, data}`) may contain its own type. An event without a type has the type `default_type`.
        """
        outcome = self._pipeline.process(Event(body, update_type, default_type, None), 0)
        if isinstance(outcome, Rejected):
            raise InvalidUpdate(outcome)
        return await self.publish_valid(body, outcome.type)

    async def publish_valid(self, body: bytes, update_type: str) -> bool:
        """Publishes an event that is known to be valid, as `broadcast` does, but never raises InvalidUpdate."""
        properties = commands.Basic.Properties(
            content_type="application/json", message_type=update_type, delivery_mode=PERSISTENT
        )
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._publish(body, properties)
        except TimeoutError as error:
            reason = self._exchange.error or "it may be short of memory or disk"
            raise NotConfirmed(f"the broker did not confirm within {self._timeout_s:g} s: {reason}") from error

    async def close(self) -> None:
        """Closes the connection.

        Gives up all updates that are not confirmed yet, so wait for their confirms before you call `close`.
        """
        self._stopping.set()
        if self._running is not None and self._channel is not None:
            if not self._channel.is_open:
                # The task is cancelled, because it does not check `_stopping` while it connects.
                self._running.cancel()
            try:
                await asyncio.wait([self._running])
            finally:
                self._channel.fail(_closed_error())

    def _open_channel(self) -> ConfirmChannel:
        """Returns the channel, and starts a task that keeps the channel open."""
        if self._stopping.is_set():
            raise _closed_error()
        if self._channel is None or self._running is None or self._running.done():
            self._channel = ConfirmChannel(
                self._nodes, "edk-bridge publisher", self._exchange, self._exchange.status, self._stopping
            )
            self._running = asyncio.create_task(self._run(self._channel), name="publisher")
        return self._channel

    async def _run(self, channel: ConfirmChannel) -> None:
        try:
            await channel.run(wait=False)
        except BrokerRefusal as error:
            channel.fail(error)

    async def _publish(self, body: bytes, properties: commands.Basic.Properties) -> bool:
        exchange = self._exchange
        pauses = Backoff()
        while True:
            try:
                await self._open_channel().publish(body, exchange.name, "", lambda frame_max: properties)
            except Unrouted:
                exchange.error = None
                return False
            except Unconfirmed as error:
                if isinstance(error.__cause__, aiormq.exceptions.ChannelAccessRefused):
                    raise BrokerRefusal(f"the exchange {exchange.name!r} can't be used: {error}") from error
                exchange.error = str(error)
                await asyncio.sleep(pauses.pause_s())
            else:
                exchange.error = None
                return True


class _Exchange:
    """The exchange of a Publisher, with the status of the connection. Owns the Publisher's channels."""

    def __init__(self, name: str, declare: bool) -> None:
        self.name = name
        self.status = Status()
        self.error: str | None = None
        """Why the broker confirms no updates at the moment, or None if the reason is not known."""
        self._declare = declare

    async def set_up(self, amqp: Connection, channel: Channel) -> None:
        try:
            if self._declare:
                await topology.ensure_exchange(amqp, self.name)
            elif not await topology.exchange_exists(amqp, self.name):
                hint = (
                    f"RabbitMQ reserves names that begin with {topology.RESERVED_PREFIX}; name another exchange"
                    if topology.is_reserved(self.name)
                    else "check its name, start the bridge, which declares its exchanges, or pass declare=True to "
                    "declare it"
                )
                raise ExchangeNotFound(f"there is no exchange {self.name!r}: {hint}")
        except aiormq.exceptions.ChannelAccessRefused as error:
            raise BrokerRefusal(f"the exchange {self.name!r} can't be used: {error_text(error)}") from error

    def on_open(self) -> None:
        if self.status.state is not State.CONNECTING:
            _log.info("the connection to the broker is back")
        self.status.enter(State.WORKING)
        self.error = None

    def on_blocked(self, reason: str | None) -> None:
        """Does nothing: during a block, each update waits for its confirm or raises NotConfirmed at its timeout."""

    def on_lost(self, state: State, reason: str) -> None:
        self.error = reason
        if self.status.state is not state:
            _log.warning("no connection to the broker: %s", reason)


def _plain(value: object) -> object:
    """Converts a value that orjson can write and `json` can't.

    The result is used only to look for numbers that JSON can't represent.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value.value if isinstance(value, Enum) else str(value)


def _closed_error() -> RuntimeError:
    return RuntimeError("this publisher is closed")
