"""Connections to RabbitMQ: which node, how long to wait, when to try again, and what a refusal means.

Plain connections, not aio-pika's robust ones: those ask for the same exclusive queue again while the broker still
thinks the old connection lives, and retry for ever after they were cancelled. Whoever holds a connection here starts
anew when it is lost.
"""

import asyncio
import errno
import os
import re
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import aio_pika
import aiormq
from pamqp import commands
from yarl import URL

from bridge.amqp import connection_errors, container
from bridge.amqp.nodes import Node
from bridge.amqp.timeouts import lag_tolerant_timeout
from bridge.amqp.wire import heartbeats
from bridge.amqp.wire.fast_channel import FastChannel
from bridge.config.tls_version import require_tls_1_2
from bridge.contract.text import printable
from bridge.errors import BrokerRefusal
from bridge.timing import DEFAULT, Timing

NOT_ALLOWED = 530
"""The reply code for a virtual host that does not exist or that the user may not use; and, which passes, for one whose
limit of connections is reached."""


@asynccontextmanager
async def open_connection(
    nodes: Sequence[Node], name: str, fast_channel: FastChannel | None = None, timing: Timing = DEFAULT
) -> AsyncIterator[aiormq.abc.AbstractConnection]:
    """A connection to the first node that takes one, closed at the end (within `amqp_close_timeout_s`).

    `name` is what the broker's management page shows; `fast_channel` gets the deliveries. Raises BrokerRefusal
    where the broker says no, ConnectionError where none can be reached; of several nodes' errors, the last.
    """
    connection, line = await _connect_to_any(nodes, name, fast_channel, timing)
    transport = connection.transport
    assert transport is not None
    heartbeats.make_patient(transport.connection)
    try:
        yield transport.connection
    finally:
        await _close(connection, line, timing)


class _Reader(asyncio.StreamReaderProtocol):
    """Where a connection's bytes arrive: the deliveries go to the fast channel, all other frames to aiormq."""

    def __init__(self, reader: asyncio.StreamReader, fast_channel: FastChannel) -> None:
        super().__init__(reader)
        self._reader = reader
        self._fast_channel = fast_channel

    def data_received(self, data: bytes) -> None:
        others = self._fast_channel.feed(data)
        if others:
            super().data_received(others)
        if self._fast_channel.broken and self._fast_channel.number:
            # aiormq gives the connection up: what it has not read yet counts for nothing.
            self._reader.set_exception(
                aiormq.exceptions.InvalidFrameError(f"the broker sent {self._fast_channel.broken}")
            )


class _TransportFactory(aiormq.connection.TransportFactory):
    """What aiormq gets its transport from, and keeps to itself: only who has it can share the line, or cut it."""

    def __init__(self, fast_channel: FastChannel | None) -> None:
        self._fast_channel = fast_channel
        self._transport: asyncio.Transport | None = None

    async def create(self, url: URL, **kwargs: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        provider = kwargs["ssl_context_provider"]
        assert isinstance(provider, aiormq.connection.SSLContextProvider)
        context = await provider.get_context() if url.scheme == "amqps" else None
        if context is not None:
            # Whatever the URL says, and however the library reads it: the password is for a broker that is who it says.
            context.verify_mode = ssl.CERT_REQUIRED
            context.check_hostname = True
            require_tls_1_2(context)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        if self._fast_channel is not None:
            self._fast_channel.begin()
        protocol = (
            asyncio.StreamReaderProtocol(reader) if self._fast_channel is None else _Reader(reader, self._fast_channel)
        )
        try:
            assert url.host is not None
            assert url.port is not None
            transport, _ = await loop.create_connection(lambda: protocol, url.host, url.port, ssl=context)
        except ssl.SSLError as error:
            raise aiormq.exceptions.AMQPConnectionError(connection_errors.complaint(error)) from error
        except (OSError, UnicodeError) as error:
            # UnicodeError: a host name that IDNA can't encode.
            raise aiormq.exceptions.AMQPConnectionError(_unreachable(error, url.raw_host or "")) from error
        self._transport = transport
        if self._fast_channel is not None:
            self._fast_channel.write = self._send
            self._fast_channel.hold = self._hold
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    def _send(self, frames: bytes) -> None:
        # Whole frames may go between aiormq's own, but not behind its last: that one ended our side.
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frames)

    def _hold(self, held: bool) -> None:
        if self._transport is not None and not self._transport.is_closing():
            (self._transport.pause_reading if held else self._transport.resume_reading)()

    def cut(self) -> None:
        """Ends the connection without a word, and without what was not sent yet."""
        if self._transport is not None:
            self._transport.abort()


Linked = tuple[aio_pika.abc.AbstractConnection, _TransportFactory]


async def _connect_to_any(nodes: Sequence[Node], name: str, fast_channel: FastChannel | None, timing: Timing) -> Linked:
    *others, last = nodes
    for node in others:
        try:
            return await _connect(node, name, fast_channel, timing)
        except (ConnectionError, BrokerRefusal):
            continue
    return await _connect(last, name, fast_channel, timing)


async def _connect(node: Node, name: str, fast_channel: FastChannel | None, timing: Timing) -> Linked:
    url = URL(node.url)
    if "heartbeat" not in url.query:
        url = url.update_query(heartbeat=timing.heartbeat_s)
    connection = aio_pika.Connection(url, client_properties={"connection_name": name, "product": "edk-bridge"})
    line = _TransportFactory(fast_channel)
    connection.kwargs["transport_factory"] = line
    loop = asyncio.get_running_loop()
    try:
        # aiormq, told to give up, says goodbye first: over TLS, to a broker that says nothing, that takes it 30 s.
        async with lag_tolerant_timeout(timing.connect_timeout_s, lambda: loop.call_later(timing.give_up_s, line.cut)):
            await connection.connect()
    except TimeoutError as error:
        raise ConnectionError(f"{node} does not answer within {timing.connect_timeout_s:g} s") from error
    except aiormq.exceptions.AMQPError as error:
        raise _meaning(node, url, error) from error
    except OSError as error:
        raise ConnectionError(f"{node}: {error_text(error)}") from error
    else:
        return connection, line
    finally:
        if connection.transport is None:
            # One that is not closed closes itself when it is collected, wherever that happens to be.
            await connection.close()


def _meaning(node: Node, url: URL, error: aiormq.exceptions.AMQPError) -> BrokerRefusal | ConnectionError:
    """What an error says of the node that was to be connected to, and what to do about it."""
    if isinstance(error, aiormq.exceptions.ProbableAuthenticationError):
        return BrokerRefusal(f"{node} {_refused(url, error_text(error))}")
    if isinstance(error, aiormq.exceptions.AuthenticationError):
        return BrokerRefusal(f"{node} {_not_offered(url, error)}")
    close = _close_frame(error)
    if close is not None and close.reply_code == NOT_ALLOWED and "limit" not in str(close.reply_text):
        return BrokerRefusal(
            f"{node} does not let this user into the virtual host {node.virtual_host!r}; "
            f"make it, or grant permissions on it: {printable(str(close.reply_text))}"
        )
    if close is not None:
        words = printable(str(close.reply_text))
    elif isinstance(error.__cause__, ssl.SSLError):
        words = connection_errors.complaint(error.__cause__)
    elif isinstance(error.__cause__, asyncio.IncompleteReadError | ConnectionResetError):
        words = connection_errors.silent_end(url.scheme, "certfile" in url.query)
    else:
        words = error_text(error)
    return ConnectionError(f"{node}: {words}")


def _refused(url: URL, words: str) -> str:
    """What to look at where a broker refuses whoever connects."""
    if url.query.get("auth", "").lower() == "external":
        return f"refuses the user that the certificate names: {words}"
    return f"refuses the user name or the password in its URL: {words}; if the password is a token, it may have expired"


def _not_offered(url: URL, error: aiormq.exceptions.AuthenticationError) -> str:
    """What to do if the broker does not offer the mechanism that `auth` asks for."""
    asked = url.query.get("auth", "plain").lower()
    offered = printable(str(error.args[0])) if error.args else "nothing"
    if asked == "external":
        hint = "enable its plugin rabbitmq_auth_mechanism_ssl, and EXTERNAL in auth_mechanisms, or leave auth out"
    else:
        hint = "allow PLAIN in its auth_mechanisms, or set auth=external with certfile and keyfile"
    return f"does not offer auth={asked}, but {offered}: {hint}"


def _close_frame(error: BaseException) -> commands.Connection.Close | None:
    """What the broker said when it closed the connection instead of opening the virtual host.

    aiormq puts only the frame's address into its error; the frame itself is still in the frames of the traceback.
    """
    step = error.__traceback__
    while step is not None:
        frame = step.tb_frame.f_locals.get("frame")
        if isinstance(frame, commands.Connection.Close):
            return frame
        step = step.tb_next
    return None


async def _close(connection: aio_pika.abc.AbstractConnection, line: _TransportFactory, timing: Timing) -> None:
    # Whatever happens here, the connection is over: the broker may be gone, or stopped, or closing it itself.
    closing = asyncio.ensure_future(connection.close())
    try:
        with suppress(TimeoutError):
            async with lag_tolerant_timeout(timing.amqp_close_timeout_s):
                await asyncio.wait([closing])
    finally:
        # Also if this task is cancelled. A broker that is short of memory stops reading, and aiormq waits until the
        # broker has read everything, even if `closing` is cancelled.
        line.cut()
        # aiormq's own task must record first that the connection is closed. If that task and `closing` are cancelled
        # together, as at the end of a program, `closing` waits forever, and so does the program.
        await asyncio.wait([closing], timeout=timing.give_up_s)
        closing.cancel()
        await asyncio.wait([closing], timeout=timing.give_up_s)
        if closing.done() and not closing.cancelled():
            closing.exception()
        # At once, where the first attempt was given up: it only marks the connection as closed (see _connect).
        await connection.close()


_FAILED_CALL = re.compile(r"\[Errno (\d+)\] Connect call failed")


def os_error_text(error: OSError | UnicodeError) -> str:
    """The system's words, which uvloop has; asyncio has its own, with an address, for each that a name stands for."""
    codes = dict.fromkeys(_FAILED_CALL.findall(str(error)))
    return "; ".join(os.strerror(int(code)) for code in codes) or error_text(error)


def _unreachable(error: OSError | UnicodeError, host: str) -> str:
    """Why no connection to the host can be had, and what to do if the host is not what it seems."""
    words = os_error_text(error)
    hint = container.localhost_hint(host, container.detected()) if os.strerror(errno.ECONNREFUSED) in words else None
    return words if hint is None else f"{words}; {hint}"


def error_text(error: BaseException) -> str:
    """The broker's or the system's own words, without the library's around them."""
    words = str(error.args[-1]) if error.args else type(error).__name__
    return printable(words) or type(error).__name__
