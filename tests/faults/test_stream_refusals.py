"""If a bridge can't use its stream, its error names the cause and the cure in one line."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
from aio_pika.abc import AbstractConnection
from pamqp.common import FieldTable

from bridge.amqp.consume.stream_end_probe import StreamEndProbe
from bridge.amqp.consume.stream_reader import StreamConfig
from bridge.amqp.status import Gap
from bridge.errors import BrokerRefusal
from bridge.timing import Timing
from tests.support.broker.find import Broker, NoBroker, find_server
from tests.support.broker.node import PASSWORD, PrivateNode
from tests.support.broker.session import say, unavailable
from tests.support.delivery_handler import CAUGHT_UP, Recorder, reading, refused
from tests.support.publishing import depth, observer, publish
from tests.support.running import bridge_process, started, unique
from tests.support.waiting import eventually

KEPT: FieldTable = {"x-queue-type": "stream"}


@asynccontextmanager
async def place(node: PrivateNode, *, kind: FieldTable | None) -> AsyncIterator[tuple[str, StreamConfig]]:
    """Declares an exchange, and also a queue unless `kind` is None. Deletes the exchange and queue after the test."""
    exchange, stream = unique("exchange"), StreamConfig(unique("stream"), 3600.0, 2**20, 100)
    async with observer(node.url) as amqp:
        channel = await amqp.channel()
        await channel.declare_exchange(exchange, "fanout", durable=True)
        if kind is not None:
            await channel.declare_queue(stream.name, durable=True, arguments=kind)
        yield exchange, stream
        await channel.queue_delete(stream.name)
        await channel.exchange_delete(exchange)


@pytest.mark.parametrize(
    ("missing", "permissions", "words"),
    [
        ("configure", ("^$", ".*", ".*"), "configure on the queue"),
        ("write", (".*", "^amq", ".*"), "write on the queue and read on the exchange"),
        ("publish", (".*", "^test", ".*"), "write on amq.default"),
        ("read", (".*", ".*", "^test.exchange"), "read on the queue"),
        ("exchange", (".*", ".*", "^test.stream"), "write on the queue and read on the exchange"),
    ],
)
async def test_permission_that_is_missing_is_named(
    node_broker: PrivateNode, missing: str, permissions: tuple[str, str, str], words: str
) -> None:
    kind = None if missing == "configure" else KEPT
    url = await node_broker.user(*permissions)
    async with place(node_broker, kind=kind) as (exchange, stream):
        with pytest.raises(BrokerRefusal) as refusal:
            await refused(url, exchange, stream)
    text = str(refusal.value)
    assert text.startswith("the user of BRIDGE_AMQP_URL lacks a permission: ACCESS_REFUSED - ")
    assert words in text
    assert (exchange if missing == "exchange" else stream.name if missing != "publish" else "amq.default") in text
    assert "\n" not in text
    assert PASSWORD not in text


async def test_bridge_that_may_not_bind_publishes_no_markers(node_broker: PrivateNode) -> None:
    """If each failed attempt to bind published a marker, the stream would fill up with markers."""
    async with (
        place(node_broker, kind=KEPT) as (exchange, stream),
        observer(node_broker.url) as amqp,
    ):
        url = await node_broker.user(write="^amq")
        recorder = Recorder()
        async with reading(node_broker.url, exchange, stream, recorder):
            await eventually("the bridge reads", lambda: CAUGHT_UP in recorder.log)
            for _ in range(3):
                with pytest.raises(BrokerRefusal):
                    await refused(url, exchange, stream)
            await publish(amqp, exchange, b"event")
            await eventually("the event has arrived", lambda: recorder.bodies == [b"event"])
        assert len(recorder.ids) == 2, "the reader's own marker, and the event"


async def test_broker_that_hangs_during_the_probe_of_the_end_is_named(
    node_broker: PrivateNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    end, impatient = StreamEndProbe.end, Timing(setup_timeout_s=2.0)

    async def hang(probe: StreamEndProbe, token: str, gap: Callable[[], Gap | None]) -> int:
        node_broker.pause()
        return await end(probe, token, gap)

    monkeypatch.setattr(StreamEndProbe, "end", hang)
    recorder = Recorder()
    async with place(node_broker, kind=KEPT) as (exchange, stream):
        try:
            async with reading(node_broker.url, exchange, stream, recorder, timing=impatient) as consumer:
                await eventually("the status has the error", lambda: consumer.status.error)
                assert consumer.status.error == "the broker does not answer within 2 s"
                monkeypatch.setattr(StreamEndProbe, "end", end)
                node_broker.resume()
                await eventually("the bridge reads", lambda: CAUGHT_UP in recorder.log)
        finally:
            node_broker.resume()


async def test_existing_stream_needs_no_permission_to_declare_it(node_broker: PrivateNode) -> None:
    async with (
        place(node_broker, kind=KEPT) as (exchange, stream),
        observer(node_broker.url) as amqp,
    ):
        url = await node_broker.user("^$", f"^({stream.name}|amq.default)$", f"^({stream.name}|{exchange})$")
        recorder = Recorder()
        async with reading(url, exchange, stream, recorder):
            await eventually("the bridge reads", lambda: CAUGHT_UP in recorder.log)
            await publish(amqp, exchange, b"event")
            await eventually("the event has arrived", lambda: recorder.bodies == [b"event"])


@pytest.mark.parametrize("kind", [{}, {"x-queue-type": "quorum"}])
@pytest.mark.parametrize("configure", ["^$", ".*"])
async def test_queue_of_another_kind_is_refused_whatever_the_user_may_do(
    node_broker: PrivateNode, kind: FieldTable, configure: str
) -> None:
    """A bridge that may not declare the queue learns the queue's type only by trying to consume it as a stream."""
    async with (
        place(node_broker, kind=kind) as (exchange, stream),
        observer(node_broker.url) as amqp,
    ):
        url = await node_broker.user(configure)
        channel = await amqp.channel()
        await (await channel.get_queue(stream.name)).bind(exchange, "#")
        await publish(amqp, exchange, b"theirs", delivery_mode=2)
        with pytest.raises(BrokerRefusal, match="is not a stream, and the bridge leaves it as it is"):
            await refused(url, exchange, stream)
        await eventually("the queue still exists", lambda: _holds(amqp, stream.name))
        queue = await channel.get_queue(stream.name)
        message = await queue.get()
        assert message is not None
        assert (message.body, message.redelivered) == (b"theirs", False)
        await message.ack()


async def test_stream_that_is_named_as_a_queue_is_refused(broker: Broker, amqp: AbstractConnection) -> None:
    """If a bridge read a stream like a queue, it would start at the end and miss the events of an outage."""
    exchange, queue = unique("exchange"), unique("stream")
    channel = await amqp.channel()
    await channel.declare_queue(queue, durable=True, arguments=KEPT)
    try:
        flags = {"exchanges": f"{exchange}=killmail", "queue": queue}
        with pytest.raises(BrokerRefusal, match=f"is a stream.*BRIDGE_HISTORY_STREAM={queue}"):
            async with started(broker.url, **flags) as bridge:
                await bridge.wait_for_refusal()
    finally:
        await channel.queue_delete(queue)
        await channel.exchange_delete(exchange)


async def _holds(amqp: AbstractConnection, queue: str) -> bool:
    return await depth(amqp, queue) == 1


@pytest.fixture
def node_without_streams() -> Iterator[PrivateNode]:
    """Yields a broker with the feature flag stream_queue disabled.

    From RabbitMQ 3.11 on, streams are always enabled.
    """
    try:
        node = PrivateNode(find_server(say, may_install=False))
    except NoBroker as error:
        unavailable(str(error))
    node._environment["RABBITMQ_FEATURE_FLAGS"] = "quorum_queue"
    node.start()
    yield node
    node.stop()


@pytest.mark.slow
async def test_feature_that_is_disabled_is_named_until_it_is_enabled(node_without_streams: PrivateNode) -> None:
    node = node_without_streams
    flags = await node.ctl("list_feature_flags")
    if "stream_queue\tdisabled" not in flags:
        # From RabbitMQ 3.11 on, no installation can disable streams.
        pytest.skip("streams are always enabled: RabbitMQ 3.11 or newer")
    variables = {"BRIDGE_HISTORY": "stream"}
    async with bridge_process(node.url, **variables) as process:
        assert await process.ended() == 3
        [text] = process.texts
        assert "can't declare the stream 'bridge.history'" in text
        assert "feature flag stream_queue" in text
    async with bridge_process(node.url, **variables, BRIDGE_WAIT="true") as process:
        await eventually("the bridge is refused", lambda: process.logged("broker refuses; trying again"))
        await node.ctl("enable_feature_flag", "stream_queue")
        await process.consuming()


async def test_blocked_broker_is_waited_for_and_named(node_broker: PrivateNode) -> None:
    """The broker is low on memory, so it blocks every published message, including the bridge's marker."""
    recorder = Recorder()
    async with place(node_broker, kind=KEPT) as (exchange, stream):
        await node_broker.ctl("set_vm_memory_high_watermark", "absolute", "1MB")
        try:
            async with reading(node_broker.url, exchange, stream, recorder) as consumer:
                await eventually(
                    "the status has the error", lambda: "accepts no messages" in str(consumer.status.error)
                )
                assert "low on memory" in str(consumer.status.error)
                await node_broker.ctl("set_vm_memory_high_watermark", "0.4")
                await eventually("the bridge reads", lambda: CAUGHT_UP in recorder.log)
        finally:
            await node_broker.ctl("set_vm_memory_high_watermark", "0.4")
