"""Gets the messages of a bridge over WebSocket."""

import ssl

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus, InvalidURI

from bridge.cli.common.endpoint import shown_url
from bridge.cli.follow.transport import (
    REASONS,
    Disconnected,
    FollowTiming,
    Refused,
    closed,
    failed,
    refusal,
    refuse_if_tls,
)


class WebSocketTransport:
    """Opens WebSocket connections."""

    def __init__(self, tls: ssl.SSLContext | None, timing: FollowTiming) -> None:
        """`tls` is the context for wss://, or None for ws://."""
        self._tls = tls
        self._timing = timing

    async def open(self, url: str, *, was_connected: bool) -> "WebSocketConnection":
        """Implements `Transport.open`."""
        timing = self._timing
        try:
            socket = await connect(
                url,
                ssl=self._tls,
                # The client ignores environment variables that name a proxy, because a bridge has an internal address.
                proxy=None,
                compression=None,
                # The library queues one message at a time, of any size. With a size limit, a message that is too large
                # would end the connection, and then each new connection too.
                max_queue=1,
                max_size=None,
                open_timeout=timing.handshake_timeout_s,
                ping_interval=timing.ping_s,
                ping_timeout=timing.ping_s,
                close_timeout=timing.close_timeout_s,
            )
        except InvalidStatus as error:
            status = error.response.status_code
            if status == 200:
                raise Refused(
                    f"{shown_url(url)} is a page and not the WebSocket endpoint, whose default path is /updates"
                ) from error
            raise refusal(url, status, bytes(error.response.body or b""), was_connected=was_connected) from error
        except InvalidURI as error:
            raise Disconnected("it redirects to an address that is not a WebSocket URL") from error
        except (OSError, InvalidHandshake) as error:
            if isinstance(error, InvalidMessage) and self._tls is None and not was_connected:
                await refuse_if_tls(url, timing.handshake_timeout_s)
            raise failed(url, error, timing.handshake_timeout_s, was_connected=was_connected) from error
        return WebSocketConnection(socket)


class WebSocketConnection:
    """An open WebSocket. The library sends pings, which detect a dead connection."""

    retry_s = 0.0

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    async def receive(self) -> str | bytes:
        """Implements `Connection.receive`."""
        try:
            return await self._socket.recv()
        except ConnectionClosed as error:
            if error.rcvd is None:
                unanswered = error.sent is not None
                raise Disconnected("a ping was not answered" if unanswered else REASONS[1006]) from error
            raise closed(error.rcvd.code, error.rcvd.reason) from error

    async def close(self) -> None:
        """Implements `Connection.close`."""
        await self._socket.close()
