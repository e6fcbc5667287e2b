"""Connects to the first RabbitMQ node that accepts a connection, and closes each connection within a bounded time.

The bridge uses plain connections, not the robust connections of aio-pika. A robust connection declares the same
exclusive queue again while the broker still keeps the old connection open. A robust connection reconnects even after
the task that uses it is cancelled. When a connection is lost, the code that opened it opens a new connection.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import cast

import aio_pika
import aiormq
from pamqp.common import FieldTable
from yarl import URL

from bridge.amqp.connection_errors import connect_error, error_text, tls_error_text, unreachable_text
from bridge.amqp.nodes import Node
from bridge.amqp.timeouts import lag_tolerant_timeout
from bridge.amqp.wire import compat, trace
from bridge.amqp.wire.fast_channel import FastChannel
from bridge.config.tls import require_tls_1_2
from bridge.errors import BrokerRefusal
from bridge.timing import DEFAULT, Timing

Connection = aiormq.abc.AbstractConnection
Channel = aiormq.abc.AbstractChannel

# Without a NullHandler for aio_pika and aiormq, Python prints their errors with tracebacks if a program does not
# configure logging. The bridge reports each lost connection in one line.
for _library in ("aio_pika", "aiormq"):
    logging.getLogger(_library).addHandler(logging.NullHandler())


@asynccontextmanager
async def open_connection(
    nodes: Sequence[Node], name: str, fast_channel: FastChannel | None = None, timing: Timing = DEFAULT
) -> AsyncIterator[Connection]:
    """Connects to the first node that accepts a connection, and closes the connection at the end of the context.

    Closing takes at most `amqp_close_timeout_s`. RabbitMQ's management page shows `name` as the name of the connection.
    The connection passes all deliveries to `fast_channel`. Raises BrokerRefusal if a node refuses the connection, and
    ConnectionError if no node can be reached. If several nodes fail, the error of the last node is raised.
    """
    connection, factory, node = await _connect_to_any(nodes, name, fast_channel, timing)
    transport = connection.transport
    assert transport is not None
    compat.tolerate_freezes(transport.connection)
    trace.connection_opened(name, str(node))
    try:
        yield transport.connection
    finally:
        await _close(connection, factory, timing)
        trace.connection_closed(name, str(node))


async def _connect_to_any(
    nodes: Sequence[Node], name: str, fast_channel: FastChannel | None, timing: Timing
) -> tuple[aio_pika.abc.AbstractConnection, "_TransportFactory", Node]:
    *others, last = nodes
    for node in others:
        try:
            return *await _connect(node, name, fast_channel, timing), node
        except (ConnectionError, BrokerRefusal):
            continue
    return *await _connect(last, name, fast_channel, timing), last


async def _connect(
    node: Node, name: str, fast_channel: FastChannel | None, timing: Timing
) -> tuple[aio_pika.abc.AbstractConnection, "_TransportFactory"]:
    url = URL(node.url)
    if "heartbeat" not in url.query:
        url = url.update_query(heartbeat=timing.heartbeat_s)
    factory = _TransportFactory(fast_channel)
    properties: FieldTable = {"connection_name": name, "product": "edk-bridge"}
    connection = compat.Connection(url, client_properties=properties, transport_factory=factory)
    loop = asyncio.get_running_loop()

    def abort_soon() -> None:
        # If `connect` is cancelled, aiormq closes the connection properly before `connect` ends. With TLS, closing
        # takes 30 s if the broker is silent.
        loop.call_later(timing.give_up_s, factory.abort)

    try:
        async with lag_tolerant_timeout(timing.connect_timeout_s, abort_soon):
            await connection.connect()
    except TimeoutError as error:
        raise ConnectionError(f"{node} does not answer within {timing.connect_timeout_s:g} s") from error
    except aiormq.exceptions.AMQPError as error:
        raise connect_error(node, url, error) from error
    except OSError as error:
        raise ConnectionError(f"{node}: {error_text(error)}") from error
    else:
        return connection, factory
    finally:
        if connection.transport is None:
            # If `close` is not called, the finalizer closes the connection at an arbitrary moment.
            await connection.close()


async def _close(connection: aio_pika.abc.AbstractConnection, factory: "_TransportFactory", timing: Timing) -> None:
    # Errors while closing don't matter, because the broker may be away or may be closing the connection itself.
    closing = asyncio.ensure_future(connection.close())
    try:
        with suppress(TimeoutError):
            async with lag_tolerant_timeout(timing.amqp_close_timeout_s):
                await asyncio.wait([closing])
    finally:
        # The connection is aborted even if this task is cancelled. A broker that is short of memory stops reading.
        # While the broker does not read, aiormq waits, even if `closing` is cancelled.
        factory.abort()
        # Before `closing` is cancelled, aiormq's own task must record that the connection is closed. If aiormq's task
        # and `closing` are cancelled at the same time (for example when a program ends), `closing` and the program
        # never end.
        await asyncio.wait([closing], timeout=timing.give_up_s)
        closing.cancel()
        await asyncio.wait([closing], timeout=timing.give_up_s)
        if closing.done() and not closing.cancelled():
            closing.exception()
        # If the first call of `close` was cancelled, the second call only marks the connection as closed, and returns
        # at once.
        await connection.close()


class _TransportFactory(aiormq.connection.TransportFactory):
    """Creates aiormq's transport, which aiormq keeps private: only this factory can share or abort the transport."""

    def __init__(self, fast_channel: FastChannel | None) -> None:
        self._fast_channel = fast_channel
        self._transport: asyncio.Transport | None = None

    async def create(self, url: URL, **kwargs: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        provider = kwargs["ssl_context_provider"]
        assert isinstance(provider, aiormq.connection.SSLContextProvider)
        context = await provider.get_context() if url.scheme == "amqps" else None
        if context is not None:
            # The password must not be sent to a broker without a valid certificate, whatever the URL contains.
            context.verify_mode = ssl.CERT_REQUIRED
            context.check_hostname = True
            require_tls_1_2(context)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        protocol = (
            asyncio.StreamReaderProtocol(reader) if self._fast_channel is None else _Reader(reader, self._fast_channel)
        )
        try:
            assert url.host is not None
            assert url.port is not None
            transport, _ = await loop.create_connection(lambda: protocol, url.host, url.port, ssl=context)
        except ssl.SSLError as error:
            raise aiormq.exceptions.AMQPConnectionError(tls_error_text(error)) from error
        except (OSError, UnicodeError) as error:
            # UnicodeError: IDNA can't encode the host name.
            raise aiormq.exceptions.AMQPConnectionError(unreachable_text(error, url.raw_host or "")) from error
        self._transport = transport
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    def abort(self) -> None:
        """Ends the connection without a close frame. Data that was not sent yet is dropped."""
        if self._transport is not None:
            self._transport.abort()


class _Reader(asyncio.StreamReaderProtocol):
    """Passes the deliveries of a connection to the fast channel, and all other frames to aiormq."""

    def __init__(self, reader: asyncio.StreamReader, fast_channel: FastChannel) -> None:
        super().__init__(reader)
        self._reader = reader
        self._fast_channel = fast_channel

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport is not a subclass of `asyncio.Transport`
        self._fast_channel.attach(cast("asyncio.Transport", transport))
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        others = self._fast_channel.feed(data)
        if others:
            super().data_received(others)
        if self._fast_channel.error and self._fast_channel.number:
            # This exception makes aiormq give up the connection and drop any received bytes that it has not read yet.
            self._reader.set_exception(
                aiormq.exceptions.InvalidFrameError(f"the broker sent {self._fast_channel.error}")
            )
