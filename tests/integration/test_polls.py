"""Updates as JSON from a real RabbitMQ to raw sockets: each request gets one response, at once or after a wait."""

import asyncio
import ssl
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio
from aio_pika.abc import AbstractConnection

from bridge.app import Bridge
from bridge.broadcast.polls import MAX_RESPONSE_BYTES
from bridge.contract.update_id import UpdateId
from bridge.timing import Timing
from tests.support import module_loop
from tests.support.broker.find import Broker
from tests.support.clients import RawClient
from tests.support.event_streams import StreamClient, stream_request
from tests.support.killmail import killmail
from tests.support.namespaces import NEAR, island
from tests.support.proxy import proxy
from tests.support.publishing import publish
from tests.support.running import bridge_process, port_of, running, sample, secure, started, unique
from tests.support.waiting import eventually

pytestmark = module_loop.MARK
amqp, exchange = module_loop.amqp, module_loop.exchange

ORIGIN = "http://localhost:5173"
POLL = "/updates?format=json"


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


class Answer:
    """A response with JSON."""

    def __init__(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.status = status
        self.headers = dict(headers)
        assert len(self.headers) == len(headers), "no header is there twice"
        self.content = content

    @property
    def body(self) -> dict[str, Any]:
        assert (self.status, self.headers["Content-Type"]) == (200, "application/json")
        assert self.headers["Content-Length"] == str(len(self.content))
        parsed: dict[str, Any] = orjson.loads(self.content)
        assert list(parsed) == ["updates", "gaps", "id", "complete", "more", "consuming"]
        return parsed

    @property
    def id(self) -> str:
        return str(self.body["id"])

    @property
    def numbers(self) -> list[int]:
        return [update["data"]["killmailId"] for update in self.body["updates"]]


async def ask(
    bridge: Bridge,
    query: str = "",
    *headers: str,
    method: str = "GET",
    version: str = "1.1",
    context: ssl.SSLContext | None = None,
) -> Answer:
    """Returns the response to one request."""
    client = await StreamClient.open(
        port_of(bridge), POLL + query, headers, method=method, version=version, context=context
    )
    answer = Answer(client.status, client.headers, await client.rest())
    await client.close()
    return answer


def waiting(bridge: Bridge) -> float:
    return sample(bridge, "bridge_connections", transport="poll")


async def asking(bridge: Bridge, query: str) -> "asyncio.Task[Answer]":
    """Starts a request, and returns once it waits."""
    before = waiting(bridge)
    task = asyncio.create_task(ask(bridge, query))
    await eventually("the request waits", lambda: waiting(bridge) > before)
    return task


# The response


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_response_has_a_length_and_the_headers_of_an_allowed_origin(shared: Bridge, version: str) -> None:
    answer = await ask(shared, "", f"Origin: {ORIGIN}", version=version)
    assert answer.body["complete"]
    for name in ("Date", "Content-Length", "Content-Security-Policy"):
        del answer.headers[name]
    assert answer.headers == {
        "Content-Type": "application/json",
        "Cache-Control": "no-store",
        "Connection": "close",
        "Vary": "Accept, Origin",
        "Access-Control-Allow-Origin": ORIGIN,
        "Access-Control-Expose-Headers": "Retry-After",
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Resource-Policy": "same-origin",
    }


async def test_accept_asks_for_json_too(shared: Bridge) -> None:
    client = await StreamClient.open(port_of(shared), "/updates", ["Accept: application/json"])
    assert client.header("Content-Type") == "application/json"
    await client.close()


async def test_head_gets_the_headers_at_once_and_keeps_nothing_open(shared: Bridge) -> None:
    answer = await ask(shared, "&after=&wait=30", method="HEAD")
    assert (answer.status, answer.headers["Content-Type"], answer.content) == (200, "application/json", b"")
    assert waiting(shared) == 0


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("", ["Origin: http://evil.example"], 403),
        ("", ["X-Forwarded-For: 8.8.8.8"], 403),
        ("&wait=31", [f"Origin: {ORIGIN}"], 400),
        ("&after=earliest&last=3", [], 400),
    ],
)
async def test_request_that_breaks_a_rule_is_refused(
    shared: Bridge, query: str, headers: list[str], status: int
) -> None:
    answer = await ask(shared, query, *headers)
    assert (answer.status, answer.headers["Vary"]) == (status, "Accept, Origin")
    echoed = answer.headers.get("Access-Control-Allow-Origin")
    assert echoed == (ORIGIN if f"Origin: {ORIGIN}" in headers else None)


async def test_updates_have_the_same_bytes_as_over_a_websocket_with_ids(
    shared: Bridge, amqp: AbstractConnection, shared_exchange: str
) -> None:
    websocket = await RawClient.open(port_of(shared), path="/updates?after=")
    before = orjson.loads(await websocket.text())["data"]["id"]
    await publish(amqp, shared_exchange, *(killmail(1000 + number) for number in range(10)))
    texts = [await websocket.text() for _ in range(10)]
    answer = await ask(shared, f"&after={before}")
    assert answer.content.startswith(b'{"updates":[' + b",".join(texts) + b'],"gaps":[],"id":"')
    assert answer.id == orjson.loads(texts[-1])["id"]
    assert (await ask(shared, "&last=3")).numbers == [1007, 1008, 1009]
    header = await ask(shared, "&last=3", f"Last-Event-ID: {orjson.loads(texts[7])['id']}")
    assert header.numbers == [1008, 1009]
    await websocket.close()


async def test_response_over_tls_has_the_same_updates(
    broker: Broker, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    async with secure(broker, exchange, tmp_path) as (bridge, chain):
        context = ssl.create_default_context(cafile=chain)
        context.check_hostname = False
        padding = "x" * 2000
        await publish(amqp, exchange, *(killmail(number) | {"padding": padding} for number in range(300)))
        await eventually("all updates are there", lambda: bridge._hub.logged_updates == 300)
        assert (await ask(bridge, "&limit=300", context=context)).numbers == list(range(300))


async def test_client_that_asks_again_after_each_id_gets_every_update_once(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        last = (await ask(bridge, "&after=")).id
        publishing = asyncio.create_task(publish(amqp, exchange, *map(killmail, range(500))))
        numbers: list[int] = []
        while len(numbers) < 500:
            answer = await ask(bridge, f"&after={last}&limit=7&wait=30")
            assert answer.body["complete"]
            assert len(answer.numbers) <= 7
            numbers += answer.numbers
            last = answer.id
        await publishing
        assert numbers == list(range(500))
        assert not (await ask(bridge, f"&after={last}")).body["more"]
        assert not (await ask(bridge, "&after=1-00000000")).body["complete"]


async def test_large_response_ends_at_its_maximum_size(broker: Broker, amqp: AbstractConnection, exchange: str) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        size = MAX_RESPONSE_BYTES // 3
        large = [killmail(number) | {"padding": "x" * each} for number, each in enumerate([size, size, 2**21, 10])]
        last = (await ask(bridge, "&after=")).id
        await publish(amqp, exchange, *large)
        await eventually("all updates are there", lambda: bridge._hub.logged_updates == len(large))
        received: list[list[int]] = []
        more = True
        while more:
            answer = await ask(bridge, f"&after={last}")
            received.append(answer.numbers)
            last, more = answer.id, answer.body["more"]
        assert received == [[0, 1], [2], [3]]


# The wait


async def test_wait_ends_with_the_first_update_that_matches(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        every, some = await asking(bridge, "&after=&wait=30"), await asking(bridge, "&after=&wait=30&systemId=5")
        await publish(amqp, exchange, killmail(1) | {"systemId": 6})
        assert (await every).numbers == [1]
        assert waiting(bridge) == 1
        await publish(amqp, exchange, killmail(2) | {"systemId": 5})
        assert (await some).numbers == [2]
        assert waiting(bridge) == 0


async def test_wait_without_an_update_ends_with_a_fresh_id(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        before = (await ask(bridge, "&after=")).id
        await publish(amqp, exchange, killmail(1) | {"systemId": 6})
        await eventually("the update is there", lambda: bridge._hub.head == 1)
        answer = await ask(bridge, f"&after={before}&wait=1&systemId=5")
        assert (answer.numbers, answer.body["complete"], answer.body["more"]) == ([], True, False)
        assert answer.id == str(bridge._hub.newest_id)


async def test_gap_ends_the_wait_of_every_filter(broker: Broker, exchange: str) -> None:
    async with proxy(broker.url) as broker_proxy:
        await broker_proxy.open()
        async with running(broker_proxy.url, exchanges=f"{exchange}=killmail") as bridge:
            requests = [await asking(bridge, f"&after=&wait=30{each}") for each in ("", "&systemId=5")]
            broker_proxy.cut()
            for answer in await asyncio.gather(*requests):
                [gap] = answer.body["gaps"]
                assert (gap["reason"], gap["id"]) == ("broker-away", answer.id)
                assert list(gap) == ["since", "until", "reason", "id"]
                assert answer.numbers == []
            assert (await ask(bridge, f"&after={answer.id}")).body["gaps"] == []


async def test_stopping_bridge_answers_waiting_requests(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        requests = [await asking(bridge, f"&after=&wait=30{each}") for each in ("&systemId=5", "&systemId=5", "")]
        await publish(amqp, exchange, killmail(1) | {"systemId": 6})
        assert (await requests.pop()).numbers == [1]
        stopping = asyncio.create_task(bridge.stop())
        for answer in await asyncio.gather(*requests):
            assert (answer.numbers, answer.id) == ([], str(bridge._hub.newest_id))
        await stopping


async def test_client_that_leaves_while_it_waits_is_forgotten(shared: Bridge) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(shared))
    writer.write(stream_request(port_of(shared), f"{POLL}&after=&wait=30"))
    await eventually("the request waits", lambda: waiting(shared) == 1)
    writer.transport.abort()
    await eventually("the client is forgotten", lambda: waiting(shared) == 0)
    assert await reader.read() == b""


async def test_thousands_of_waiting_requests_are_answered_with_one_update(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    count = 2000
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        request = stream_request(port_of(bridge), f"{POLL}&after=&wait=30")
        streams = []
        for _ in range(count):
            reader, writer = await asyncio.open_connection("127.0.0.1", port_of(bridge))
            writer.write(request)
            streams.append((reader, writer))
        await eventually("all requests wait", lambda: waiting(bridge) == count)
        await publish(amqp, exchange, killmail(1))
        contents = {(await reader.read()).partition(b"\r\n\r\n")[2] for reader, _ in streams}
        [content] = contents
        assert [update["data"]["killmailId"] for update in orjson.loads(content)["updates"]] == [1]
        assert waiting(bridge) == 0
        assert sample(bridge, "bridge_sent_bytes_total", transport="poll") == count * len(content)
        for _, writer in streams:
            writer.transport.abort()


# Limits


async def test_full_bridge_refuses_a_request_until_a_waiting_one_has_ended(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail", max_connections=1) as bridge:
        first = await asking(bridge, "&after=&wait=30")
        refused = await ask(bridge)
        assert (refused.status, refused.headers["Retry-After"]) == (503, "30")
        assert refused.headers["Vary"] == "Accept, Origin"
        assert sample(bridge, "bridge_evictions_total", reason="full") == 1
        await publish(amqp, exchange, killmail(1))
        assert (await first).numbers == [1]
        await eventually("the first client is gone", lambda: not bridge._server._connections)
        assert (await ask(bridge)).numbers == [1]


async def test_request_beyond_the_limit_of_its_address_is_refused(broker: Broker, exchange: str) -> None:
    variables = {
        "BRIDGE_EXCHANGES": f"{exchange}=killmail",
        "BRIDGE_HOST": "0.0.0.0",
        "BRIDGE_MAX_CONNECTIONS_PER_ADDRESS": "1",
    }
    async with island(broker.url) as net, bridge_process(net.broker_url, **variables) as process:
        port = await process.port()
        await process.consuming()

        async def opened(path: str) -> StreamClient:
            client_socket = await net.connect_from_outside(port)
            client_socket.settimeout(0)
            reader, writer = await asyncio.open_connection(sock=client_socket)
            return await StreamClient.over(reader, writer, stream_request(port, path, host=NEAR))

        served, refused = await opened("/updates?format=sse"), await opened(POLL)
        assert (served.status, refused.status, refused.header("Retry-After")) == (200, 429, "30")
        for client in (served, refused):
            await client.close()


async def test_client_that_reads_slowly_gets_the_whole_response(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        await publish(amqp, exchange, *(killmail(number) | {"padding": "x" * 10_000} for number in range(90)))
        await eventually("all updates are there", lambda: bridge._hub.logged_updates == 90)
        client = await StreamClient.open(port_of(bridge), POLL, receive_bytes=4096)
        client.pause()
        assert (await ask(bridge)).numbers == list(range(90))
        client.resume()
        answer = Answer(client.status, client.headers, await client.rest())
        assert answer.numbers == list(range(90))
        await client.close()


async def test_client_whose_updates_are_dropped_before_it_reads_them_is_reset(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    flags = {"exchanges": f"{exchange}=killmail", "log_bytes": 2**20, "max_message_bytes": "100 KiB"}
    async with running(broker.url, **flags) as bridge:
        large = [killmail(number) | {"padding": "x" * 10_000} for number in range(160)]
        await publish(amqp, exchange, *large[:80])
        await eventually("all updates are there", lambda: bridge._hub.head == 80)
        client = await StreamClient.open(port_of(bridge), POLL, receive_bytes=4096)
        client.pause()
        await publish(amqp, exchange, *large[80:])
        await eventually("all updates are there", lambda: bridge._hub.head == 160)
        client.resume()
        with pytest.raises(ConnectionResetError):
            await client.rest()
        await client.close()
        await eventually("the client is gone", lambda: not bridge._server._connections)


async def test_client_that_does_not_read_is_reset_after_the_close_timeout(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    timing = Timing(close_timeout_s=0.2, keepalive_tick_s=0.1)
    async with running(broker.url, timing, exchanges=f"{exchange}=killmail") as bridge:
        await publish(amqp, exchange, *(killmail(number) | {"padding": "x" * 10_000} for number in range(90)))
        await eventually("all updates are there", lambda: bridge._hub.logged_updates == 90)
        client = await StreamClient.open(port_of(bridge), POLL, receive_bytes=4096)
        client.pause()
        await eventually("the client is gone", lambda: not bridge._server._connections)
        await client.close()


# A bridge without its broker


async def test_bridge_without_a_broker_answers_from_its_log(broker: Broker, exchange: str) -> None:
    async with proxy(broker.url) as broker_proxy, started(broker_proxy.url, exchanges=f"{exchange}=killmail") as bridge:
        answer = await ask(bridge)
        assert (answer.numbers, answer.body["consuming"]) == ([], False)
        await broker_proxy.open()
        await eventually("the bridge is ready", lambda: bridge.readiness.report()[0])
        assert (await ask(bridge)).body["consuming"]


async def test_bridge_that_has_not_read_the_stream_back_refuses_requests(broker: Broker, exchange: str) -> None:
    flags = {"exchanges": f"{exchange}=killmail", "history": "stream", "history_stream": unique("stream")}
    async with proxy(broker.url) as broker_proxy, started(broker_proxy.url, **flags) as bridge:
        for method in ("GET", "HEAD"):
            refused = await ask(bridge, "&wait=30", method=method)
            assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
        await broker_proxy.open()
        await eventually("the bridge is ready", lambda: bridge.readiness.report()[0])
        await eventually("the stream is read back", lambda: not bridge._hub.replaying)
        assert (await ask(bridge)).numbers == []


async def test_request_waits_for_an_id_that_another_instance_has_handed_out(
    broker: Broker, amqp: AbstractConnection, exchange: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = {"history": "stream", "history_stream": unique("stream")}
    bodies = [orjson.dumps(killmail(number)) for number in range(4)]
    async with running(broker.url, exchanges=f"{exchange}=killmail", **history) as bridge:
        first = await asking(bridge, "&after=&wait=30")
        await publish(amqp, exchange, bodies[0])
        known = UpdateId.parse((await first).id)
        assert known is not None
        ahead = UpdateId(known.sequence + 2, zlib.crc32(bodies[2]))
        request = await asking(bridge, f"&after={ahead}&wait=30")
        await publish(amqp, exchange, *bodies[1:3])
        await publish(amqp, exchange, bodies[3])
        answer = await request
        assert (answer.numbers, answer.body["complete"]) == ([3], True)
        monkeypatch.setattr(Bridge, "is_consuming", property(lambda _: False))
        refused = await ask(bridge, f"&after={UpdateId(known.sequence + 9, 1)}")
        assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
