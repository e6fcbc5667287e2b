"""The bridge declines compression, so that a client's messages can't grow when the bridge reads them."""

import asyncio

from tests.support.broker.find import Broker
from tests.support.clients import request
from tests.support.running import port_of, running

OFFER = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"


async def test_offered_compression_is_declined(broker: Broker, exchange: str) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(bridge))
        writer.write(request(port_of(bridge), headers=[OFFER]))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"extensions" not in head.lower()
        writer.close()
        await writer.wait_closed()
