"""Server-Sent Events from a real RabbitMQ to raw sockets, compared byte by byte where the contract requires it."""

import asyncio
import ssl
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
import pytest_asyncio
from aio_pika.abc import AbstractConnection

from bridge.app import Bridge
from bridge.broadcast.close_reasons import CloseReason
from bridge.contract.update_id import UpdateId
from bridge.timing import Timing
from tests.support import module_loop
from tests.support.broker.find import Broker
from tests.support.clients import READ_LIMIT_S, RawClient, get
from tests.support.event_streams import StreamClient, stream_request
from tests.support.killmail import killmail
from tests.support.namespaces import NEAR, island
from tests.support.publishing import publish
from tests.support.running import bridge_process, port_of, running, sample, secure, unique
from tests.support.waiting import eventually

pytestmark = module_loop.MARK
amqp, exchange = module_loop.amqp, module_loop.exchange

ORIGIN = "http://localhost:5173"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_exchange(amqp: AbstractConnection) -> AsyncIterator[str]:
    """The exchange of the module's bridge."""
    async with module_loop.own(amqp, "exchange") as name:
        yield name


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(broker: Broker, shared_exchange: str) -> AsyncIterator[Bridge]:
    """A bridge with the default settings, for all tests that need no other settings."""
    async with running(broker.url, exchanges=f"{shared_exchange}=killmail") as bridge:
        yield bridge


def streams(bridge: Bridge) -> float:
    return sample(bridge, "bridge_connections", transport="sse")


async def all_gone(bridge: Bridge) -> None:
    await eventually("no event stream is left", lambda: streams(bridge) == 0)


# The response


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_stream_begins_with_its_head_a_comment_and_the_resume_message(shared: Bridge, version: str) -> None:
    client = await StreamClient.open(port_of(shared), headers=[f"Origin: {ORIGIN}"], version=version)
    assert client.status == 200
    headers = dict(client.headers)
    assert len(headers) == len(client.headers), "no header is there twice"
    del headers["Date"], headers["Content-Security-Policy"]
    assert headers == {
        "Content-Type": "text/event-stream",
        "Cache-Control": "no-store, no-transform",
        "X-Accel-Buffering": "no",
        "Connection": "close",
        "Vary": "Accept, Origin",
        "Access-Control-Allow-Origin": ORIGIN,
        "Access-Control-Expose-Headers": "Retry-After",
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
    assert await client.line() == b":"
    resume, heartbeat = await client.event(), await client.event()
    assert 1000 <= int(str(resume.retry)) <= 5000
    assert (resume.message["type"], resume.message["data"]["complete"]) == ("resume", True)
    assert resume.id == resume.message["data"]["id"] == heartbeat.id == heartbeat.message["data"]["id"]
    assert (heartbeat.message["type"], heartbeat.message["data"]["consuming"]) == ("heartbeat", True)
    assert heartbeat.retry is None
    await client.close()
    await all_gone(shared)


async def test_accept_asks_for_a_stream_too(shared: Bridge) -> None:
    client = await StreamClient.open(port_of(shared), "/updates", ["Accept: text/event-stream"])
    assert client.header("Content-Type") == "text/event-stream"
    await client.close()
    await all_gone(shared)


async def test_head_gets_the_headers_and_keeps_nothing_open(shared: Bridge) -> None:
    opened = sample(shared, "bridge_connections_opened_total", transport="sse")
    client = await StreamClient.open(port_of(shared), method="HEAD")
    assert (client.status, client.header("Content-Type")) == (200, "text/event-stream")
    assert await client.rest() == b""
    await client.close()
    assert sample(shared, "bridge_connections_opened_total", transport="sse") == opened


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/updates?format=sse", ["Origin: http://evil.example"], 403),
        ("/updates?format=sse", ["Sec-Fetch-Site: cross-site"], 403),
        ("/updates?format=sse", ["X-Forwarded-For: 8.8.8.8"], 403),
        ("/updates?format=sse&wait=3", [f"Origin: {ORIGIN}"], 400),
        ("/updates?format=sse&nothing=3", [], 400),
    ],
)
async def test_request_that_breaks_a_rule_is_refused_with_a_final_status(
    shared: Bridge, path: str, headers: list[str], status: int
) -> None:
    client = await StreamClient.open(port_of(shared), path, headers)
    assert client.status == status
    assert client.header("Vary") == "Accept, Origin"
    echoed = client.header("Access-Control-Allow-Origin")
    assert echoed == (ORIGIN if f"Origin: {ORIGIN}" in headers else None)
    assert (await client.rest()).count(b"\n") == 1
    await client.close()


async def test_stream_over_tls_has_the_same_bytes(
    broker: Broker, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    async with secure(broker, exchange, tmp_path) as (bridge, chain):
        context = ssl.create_default_context(cafile=chain)
        context.check_hostname = False
        client = await StreamClient.open(port_of(bridge), context=context)
        websocket_like = await StreamClient.open(port_of(bridge), context=context)
        assert await client.line() == b":"
        await publish(amqp, exchange, *(killmail(number) for number in range(50)))
        received = [await client.update() for _ in range(50)]
        assert [event.message["data"]["killmailId"] for event in received] == list(range(50))
        assert [await websocket_like.update() for _ in range(50)] == received
        for each in (client, websocket_like):
            await each.close()


# Updates


async def test_stream_has_the_same_messages_as_a_websocket_connection_with_ids(
    shared: Bridge, amqp: AbstractConnection, shared_exchange: str
) -> None:
    port = port_of(shared)
    websocket = await RawClient.open(port, path="/updates?after=")
    stream = await StreamClient.open(port)
    for client in (websocket, stream):
        # The first two messages are `resume` and a heartbeat.
        for _ in range(2):
            await (client.text(heartbeats=True) if isinstance(client, RawClient) else client.event())
    await publish(amqp, shared_exchange, *(killmail(number) for number in range(1000, 1010)))
    for number in range(1000, 1010):
        event = await stream.event()
        assert event.data == await websocket.text()
        assert list(event.message) == ["type", "data", "timestamp", "id"]
        assert (event.id, event.message["data"]["killmailId"]) == (event.message["id"], number)
    for client in (websocket, stream):
        await client.close()
    await all_gone(shared)


async def test_stream_resumes_after_the_last_event_id_with_the_same_bytes(
    shared: Bridge, amqp: AbstractConnection, shared_exchange: str
) -> None:
    port = port_of(shared)
    path = "/updates?format=sse&last=1&systemId=7"
    stayed = await StreamClient.open(port, path)
    published = [killmail(number) | {"systemId": 7} for number in range(2000, 2010)]
    await publish(amqp, shared_exchange, *published)
    received = [await stayed.update() for _ in published]
    back = await StreamClient.open(port, path, [f"Last-Event-ID: {received[3].id}"])
    resume = await back.event()
    assert resume.message["data"] == {"complete": True, "replayed": 6, "id": received[3].id}
    assert [await back.update() for _ in range(6)] == received[4:]
    for client in (stayed, back):
        await client.close()
    await all_gone(shared)


async def test_filtered_stream_gets_only_matching_updates(
    shared: Bridge, amqp: AbstractConnection, shared_exchange: str
) -> None:
    client = await StreamClient.open(port_of(shared), "/updates?format=sse&systemId=5&type=killmail")
    await client.event()
    systems = [5, 6, 5]
    await publish(
        amqp, shared_exchange, *(killmail(3000 + number) | {"systemId": each} for number, each in enumerate(systems))
    )
    assert [(await client.update()).message["data"]["killmailId"] for _ in range(2)] == [3000, 3002]
    await client.close()
    await all_gone(shared)


async def test_update_of_many_pieces_is_one_block(broker: Broker, amqp: AbstractConnection, exchange: str) -> None:
    """U+2028 and U+2029 end a line in JavaScript, but not in an event stream."""
    text = "\u2028\u2029é\r\n" * 100_000
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        client = await StreamClient.open(port_of(bridge))
        await client.event()
        await publish(amqp, exchange, orjson.dumps(killmail(1) | {"text": text}), killmail(2))
        event = await client.update()
        assert (event.message["data"]["text"], b"\r" in event.data) == (text, False)
        assert (await client.update()).message["data"]["killmailId"] == 2
        await client.close()


# The first bytes, and keep-alive


async def test_first_bytes_and_comments_arrive_while_the_stream_waits_for_an_id(
    broker: Broker, amqp: AbstractConnection, exchange: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client has an id from another instance, which this instance has not read yet."""
    # While a bridge has no broker, the wait has no limit.
    monkeypatch.setattr(Bridge, "is_live", property(lambda _: False))
    history = {"history": "stream", "history_stream": unique("stream")}
    flags = {"exchanges": f"{exchange}=killmail", "ping_interval": "0.1s", "heartbeat_interval": "0", **history}
    bodies = [orjson.dumps(killmail(number)) for number in range(4)]
    async with running(broker.url, **flags) as bridge:
        first = await StreamClient.open(port_of(bridge))
        await publish(amqp, exchange, bodies[0])
        known = UpdateId.parse(str((await first.update()).id))
        assert known is not None
        ahead = UpdateId(known.sequence + 2, zlib.crc32(bodies[2]))
        waiting = await StreamClient.open(port_of(bridge), headers=[f"Last-Event-ID: {ahead}"])
        assert await waiting.line() == b":"
        assert (await waiting.line()).startswith(b"retry: ")
        for _ in range(3):
            assert await waiting.line() == b":"
        assert sample(bridge, "bridge_resumes_pending") == 1
        await publish(amqp, exchange, *bodies[1:])
        resume = await waiting.event()
        assert (resume.id, resume.message["data"]["complete"]) == (str(ahead), True)
        assert (await waiting.update()).message["data"]["killmailId"] == 3
        for client in (first, waiting):
            await client.close()


async def test_silent_stream_gets_comments_between_blocks(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    flags = {"exchanges": f"{exchange}=killmail", "ping_interval": "0.1s", "heartbeat_interval": "0"}
    async with running(broker.url, **flags) as bridge:
        client = await StreamClient.open(port_of(bridge))
        assert await client.line() == b":"
        await client.event()
        await client.event()
        for number in range(3):
            assert await client.line() == b":"
            await publish(amqp, exchange, killmail(number))
            assert (await client.update()).message["data"]["killmailId"] == number
        await client.close()


async def test_comments_do_not_delay_heartbeats(broker: Broker, exchange: str) -> None:
    flags = {"exchanges": f"{exchange}=killmail", "ping_interval": "100ms", "heartbeat_interval": "1s"}
    async with running(broker.url, **flags) as bridge, asyncio.timeout(READ_LIMIT_S):
        client = await StreamClient.open(port_of(bridge))
        messages = [(await client.event()).message["type"] for _ in range(2)]
        assert messages == ["resume", "heartbeat"]
        while client.comments < 3:
            assert (await client.event()).message["type"] == "heartbeat"
        await client.close()


async def test_client_that_sends_nothing_outlives_the_idle_timeout(broker: Broker, exchange: str) -> None:
    """The kernel of the client acknowledges the comments."""
    flags = {"exchanges": f"{exchange}=killmail", "ping_interval": "0.1s", "idle_timeout": "0.5s"}
    async with running(broker.url, **flags) as bridge:
        client = await StreamClient.open(port_of(bridge))
        comments = 0
        while comments < 20:
            comments += await client.line() == b":"
        assert streams(bridge) == 1
        await client.close()


# What the client sends


async def test_what_a_client_sends_after_its_request_is_ignored(
    shared: Bridge, amqp: AbstractConnection, shared_exchange: str
) -> None:
    client = await StreamClient.open(port_of(shared))
    await client.event()
    client.send(stream_request(port_of(shared)) + bytes(range(256)))
    await publish(amqp, shared_exchange, killmail(4000))
    assert (await client.update()).message["data"]["killmailId"] == 4000
    await client.close()
    await all_gone(shared)


async def test_end_of_the_client_ends_the_stream(shared: Bridge) -> None:
    client = await StreamClient.open(port_of(shared))
    await client.event()
    client.end()
    assert await client.ended()
    await all_gone(shared)
    await client.close()


# A bridge that is full or stops


def close_data(reason: CloseReason, body: bytes) -> dict[str, object]:
    """Returns the close message, which must be the whole body with the lines before it."""
    *lines, data, empty, end = body.split(b"\n")
    assert lines == ([b":", b"retry: 30000"] if reason is not CloseReason.STOPPING else [b":"])
    assert (empty, end) == (b"", b"")
    message: dict[str, object] = orjson.loads(data.removeprefix(b"data: "))
    assert list(message) == ["type", "data", "timestamp"]
    assert message["type"] == "close"
    assert message["data"] == {"code": reason.code, "reason": reason.phrase}
    return message


async def test_client_of_a_full_bridge_gets_200_and_a_close_message(broker: Broker, exchange: str) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail", max_connections=1) as bridge:
        served = await StreamClient.open(port_of(bridge))
        refused = await StreamClient.open(port_of(bridge))
        assert refused.status == 200
        close_data(CloseReason.FULL, await refused.rest())
        await refused.close()
        assert sample(bridge, "bridge_evictions_total", reason="full") == 1
        assert (await served.event()).message["type"] == "resume"
        await served.close()
        await all_gone(bridge)
        again = await StreamClient.open(port_of(bridge))
        assert (await again.event()).message["type"] == "resume"
        await again.close()


async def test_client_beyond_the_limit_of_its_address_gets_200_and_a_close_message(
    broker: Broker, exchange: str
) -> None:
    variables = {
        "BRIDGE_EXCHANGES": f"{exchange}=killmail",
        "BRIDGE_HOST": "0.0.0.0",
        "BRIDGE_MAX_CONNECTIONS_PER_ADDRESS": "1",
    }
    async with island(broker.url) as net, bridge_process(net.broker_url, **variables) as process:
        port = await process.port()

        async def opened() -> StreamClient:
            client_socket = await net.connect_from_outside(port)
            client_socket.settimeout(0)
            reader, writer = await asyncio.open_connection(sock=client_socket)
            return await StreamClient.over(reader, writer, stream_request(port, host=NEAR))

        served, refused = await opened(), await opened()
        assert (served.status, refused.status) == (200, 200)
        close_data(CloseReason.ADDRESS_LIMIT, await refused.rest())
        assert await served.line() == b":"
        assert (await served.line()).startswith(b"retry: ")
        for client in (served, refused):
            await client.close()


async def test_stopping_bridge_sends_each_stream_all_updates_and_a_close_message(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        client = await StreamClient.open(port_of(bridge))
        slow = await StreamClient.open(port_of(bridge), receive_bytes=4096)
        await client.event()
        slow.pause()
        padding = "x" * 100_000
        await publish(amqp, exchange, *(killmail(number) | {"padding": padding} for number in range(20)))
        assert [(await client.update()).message["data"]["killmailId"] for _ in range(20)] == list(range(20))
        stopping = asyncio.create_task(bridge.stop())
        last = await client.event()
        assert (last.id, last.retry, last.message["data"]) == (
            None,
            None,
            {"code": 1001, "reason": CloseReason.STOPPING.phrase},
        )
        assert await client.rest() == b""
        await client.close()
        slow.resume()
        assert [(await slow.update()).message["data"]["killmailId"] for _ in range(20)] == list(range(20))
        assert (await slow.event()).message["type"] == "close"
        assert await slow.rest() == b""
        await slow.close()
        await stopping
        assert sample(bridge, "bridge_connections", transport="sse") == 0


async def test_client_that_does_not_end_is_aborted_after_the_close_timeout(broker: Broker, exchange: str) -> None:
    timing = Timing(close_timeout_s=0.2, keepalive_tick_s=0.1)
    async with running(broker.url, timing, exchanges=f"{exchange}=killmail", max_connections=1) as bridge:
        served, refused = [await StreamClient.open(port_of(bridge)) for _ in range(2)]
        close_data(CloseReason.FULL, await refused.rest())
        assert len(bridge._server._connections) == 2
        await eventually("the refused connection is gone", lambda: len(bridge._server._connections) == 1)
        for client in (served, refused):
            await client.close()


# Too slow


async def test_evicted_stream_ends_after_a_whole_block_and_resumes(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    flags = {"exchanges": f"{exchange}=killmail", "log_bytes": 2**20, "max_message_bytes": "100 KiB"}
    async with running(broker.url, **flags) as bridge:
        port = port_of(bridge)
        slow, fast = await StreamClient.open(port, receive_bytes=4096), await StreamClient.open(port)
        slow.pause()
        number = 0
        while not sample(bridge, "bridge_evictions_total", reason="too-slow"):
            await publish(amqp, exchange, killmail(number) | {"padding": "x" * 10_000})
            assert (await fast.update()).message["data"]["killmailId"] == number
            number += 1
        slow.resume()
        received = 0
        body = await slow.rest()
        assert body.endswith(b"}\n\n"), "the body ends after a whole block"
        assert b'"type":"close"' not in body
        last = orjson.loads(body[body.rindex(b"\ndata: ") + 7 :])
        received = last["data"]["killmailId"]
        await slow.close()
        again = await StreamClient.open(port, headers=[f"Last-Event-ID: {last['id']}"])
        assert (await again.event()).message["data"]["complete"] is False
        assert received < (await again.update()).message["data"]["killmailId"]
        for client in (again, fast):
            await client.close()


async def test_connections_of_both_kinds_are_counted_by_transport(shared: Bridge) -> None:
    stream, websocket = await StreamClient.open(port_of(shared)), await RawClient.open(port_of(shared))
    _, text = await get(port_of(shared), "/metrics")
    assert b'bridge_connections{transport="websocket"} 1.0' in text
    assert b'bridge_connections{transport="sse"} 1.0' in text
    for client in (stream, websocket):
        await client.close()
    await all_gone(shared)
