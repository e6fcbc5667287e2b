"""Tests of settings, signals, and the order in which a bridge starts and stops, without a broker or a port."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import secrets
import signal
import sys
from typing import TYPE_CHECKING, Any, cast

import pytest
from structlog.testing import capture_logs

from bridge import __version__, app
from bridge.amqp.status import State
from bridge.app import BROKER_SHARE, MIN_PER_ADDRESS, Bridge, serve
from bridge.broadcast.close_reasons import CloseReason
from bridge.broadcast.hub import FLUSH_BYTES, TLS_FLUSH_BYTES
from bridge.config import settings
from bridge.contract.pipeline import Reason, Rejected
from bridge.contract.update_id import UpdateId
from bridge.errors import AddressUnavailable, BrokerRefusal, ConfigurationError
from bridge.metrics import Transport
from bridge.server.access.rules import Rule
from bridge.server.listeners import descriptors
from bridge.timing import DEFAULT
from tests.support.certificates import certificate
from tests.support.fakes import FakeDelivery, FakeSubscriber
from tests.support.metrics import series, value
from tests.support.running import consumer_of
from tests.support.virtual_time import VirtualTime
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bridge.config.settings import Settings


def configured(folder: Path, **flags: object) -> Settings:
    """Returns settings with these values, without an environment."""
    return settings.load({name: str(value) for name, value in flags.items()}, {}, folder / "none.env")


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Bridge]:
    """Builds a bridge from settings by name, without starting the bridge."""
    return lambda **flags: Bridge(configured(tmp_path, **flags))


def sample(bridge: Bridge, name: str) -> float | None:
    return bridge.metrics.registry.get_sample_value(name)


# Schema files


async def test_schema_file_that_is_probably_wrong_is_logged_once_with_its_place(
    build: Callable[..., Bridge], tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "duel.json").write_text('{"requierd": ["winner"]}')
    (own / "sighting.JSON").write_text("{}")
    with capture_logs() as logged:
        build(schemas=own)
    assert [line for line in logged if line["event"] == "schema file is probably wrong"] == [
        {
            "event": "schema file is probably wrong",
            "log_level": "warning",
            "file": str(own / "sighting.JSON"),
            "pointer": "",
            "detail": "not read: a schema file contains JSON, and its name ends with .json",
        },
        {
            "event": "schema file is probably wrong",
            "log_level": "warning",
            "file": str(own / "duel.json"),
            "pointer": "/requierd",
            "detail": "the keyword 'requierd' is unknown and has no effect; did you mean required?",
        },
    ]


async def test_packaged_schema_files_cause_no_warning(build: Callable[..., Bridge]) -> None:
    with capture_logs() as logged:
        build()
    assert [line for line in logged if line["event"] == "schema file is probably wrong"] == []


# Rejects


async def hold(bridge: Bridge, count: int) -> list[FakeDelivery]:
    """Adds `count` rejected events that can't be published, and that belong to a session that has ended."""
    deliveries = [FakeDelivery(b"[]") for _ in range(count)]
    for delivery in deliveries:
        bridge._rejects.reject(delivery, Rejected(Reason.NOT_JSON, "no"))
        delivery.lost = True
    await asyncio.sleep(0)
    return deliveries


@pytest.mark.parametrize("history", ["memory", "stream"])
async def test_rejects_that_are_not_redelivered_are_held_up_to_the_prefetch_and_losses_are_counted(
    build: Callable[..., Bridge], history: str
) -> None:
    """An exclusive queue or a stream does not redeliver events, so an event that the bridge drops is lost."""
    bridge = build(prefetch=3, history=history)
    await hold(bridge, 3)
    consumer_of(bridge)._handler.on_session_end()
    await asyncio.sleep(0)
    assert (bridge._rejects.waiting, sample(bridge, "bridge_rejects_lost_total")) == (3, 0)
    await hold(bridge, 2)
    with capture_logs() as logged:
        consumer_of(bridge)._handler.on_session_end()
    await eventually("the oldest events are dropped", lambda: bridge._rejects.waiting == 3)
    assert sample(bridge, "bridge_rejects_lost_total") == 2
    assert [(line["log_level"], line["events"]) for line in logged] == [("error", 2)]
    await bridge._rejects.close()
    assert sample(bridge, "bridge_rejects_lost_total") == 5


async def test_rejects_of_a_named_queue_are_dropped_with_the_connection_and_not_counted_as_lost(
    build: Callable[..., Bridge],
) -> None:
    bridge = build(queue="kept", prefetch=3)
    await hold(bridge, 2)
    consumer_of(bridge)._handler.on_session_end()
    await eventually("all events are dropped", lambda: bridge._rejects.waiting == 0)
    assert sample(bridge, "bridge_rejects_lost_total") == 0


async def test_rejects_are_published_to_the_configured_exchange_with_the_instance_name(
    build: Callable[..., Bridge],
) -> None:
    bridge = build(reject_exchange="elsewhere", instance="north")
    [delivery] = await hold(bridge, 1)
    assert (bridge._rejects._exchange, bridge._rejects._instance) == ("elsewhere", "north")
    assert not delivery.settled
    await bridge._rejects.close()


async def test_rejected_event_is_counted_and_settled_if_rejects_are_off(build: Callable[..., Bridge]) -> None:
    bridge = build(reject_exchange="off")
    [delivery] = await hold(bridge, 1)
    assert (delivery.settled, bridge._rejects.waiting) == (1, 0)
    assert bridge.metrics.registry.get_sample_value("bridge_rejects_total", {"reason": "not-json"}) == 1


async def test_event_that_can_not_become_an_update_is_passed_to_the_rejects(build: Callable[..., Bridge]) -> None:
    bridge = build()
    consumer_of(bridge)._handler.deliver([FakeDelivery(b"no JSON")])
    assert bridge._rejects.waiting == 1
    await bridge._rejects.close()


# Consuming


async def test_source_is_configured_by_the_settings(build: Callable[..., Bridge]) -> None:
    urls = "amqp://one/", "amqp://two/"
    bridge = build(
        amqp_url=",".join(urls), exchanges="a=killmail,b=killmail", queue="kept", prefetch=7, instance="north"
    )
    config = consumer_of(bridge)._config
    assert tuple(node.url for node in config.nodes) == urls
    assert tuple(node.url for node in bridge._rejects._channel._nodes.order()) == urls
    assert (config.exchanges, config.queue, consumer_of(bridge)._flow_control.prefetch) == (("a", "b"), "kept", 7)
    assert config.connection_name == "edk-bridge@north"
    assert config.stream is None
    assert consumer_of(bridge).stream_reader is None


async def test_stream_is_configured_by_the_settings(build: Callable[..., Bridge]) -> None:
    bridge = build(history="stream", history_stream="past", history_max_age="2h", history_max_bytes="64 MiB")
    history = consumer_of(bridge).stream_reader
    assert history is not None
    stream = history.stream
    assert (stream.name, stream.max_age_s, stream.max_bytes) == ("past", 7200.0, 64 * 2**20)
    assert stream.window == bridge._settings.history_window


@pytest.mark.parametrize("waits", [False, True])
async def test_bridge_waits_after_a_refusal_at_start_if_the_settings_say_so(
    build: Callable[..., Bridge], *, waits: bool
) -> None:
    bridge = build(wait=str(waits).lower())
    assert (consumer_of(bridge)._wait, bridge._rejects._wait) == (waits, waits)


async def test_event_larger_than_the_settings_allow_is_rejected(build: Callable[..., Bridge]) -> None:
    bridge = build(max_message_bytes=1024, reject_exchange="off")
    consumer_of(bridge)._handler.deliver([FakeDelivery(b'"%s"' % (b"x" * 1023))])
    assert bridge.metrics.registry.get_sample_value("bridge_rejects_total", {"reason": "too-large"}) == 1


@pytest.mark.parametrize(("window", "duplicates"), [(0, 0), (10, 1)])
async def test_duplicates_are_detected_within_the_configured_window(
    build: Callable[..., Bridge], window: int, duplicates: int
) -> None:
    bridge = build(duplicate_window=window)
    for _ in range(2):
        consumer_of(bridge)._handler.deliver([FakeDelivery(EVENT)])
    counted = bridge.metrics.registry.get_sample_value("bridge_duplicates_total", {"type": "killmail"})
    assert counted == duplicates


EVENT = (
    b'{"killmailId":1,"timestamp":"2024-10-22T10:30:00.000Z","victimId":1,"victimCorporationId":2,"systemId":3,'
    b'"shipTypeId":4,"attackerCount":1}'
)


# The hub


@pytest.mark.parametrize("history", ["memory", "stream"])
async def test_source_of_the_hub_is_live_while_the_consumer_is_at_the_end(
    build: Callable[..., Bridge], history: str
) -> None:
    bridge = build(history=history)
    assert not bridge._hub._source.is_live
    consumer_of(bridge).status.enter(State.WORKING)
    if (reader := consumer_of(bridge).stream_reader) is not None:
        assert not bridge._hub._source.is_live
        reader.position.begin_session(10)
        reader.position.observe(10, 0)
    assert bridge._hub._source.is_live
    consumer_of(bridge).status.enter(State.LOST, "gone")
    assert not bridge._hub._source.is_live


async def test_bridge_consumes_while_the_broker_answers(
    build: Callable[..., Bridge], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that works, but whose broker no longer answers, is not a working broker."""
    bridge = build()
    status = consumer_of(bridge).status
    assert not bridge.is_consuming
    status.enter(State.WORKING)
    assert bridge.is_consuming
    with monkeypatch.context() as patch:
        patch.setattr(status, "last_answered_s", -math.inf)
        assert status.state is State.WORKING
        assert not bridge.is_consuming
        assert not bridge.is_live, "the ids of clients would be unknown too early"
    assert bridge.is_consuming
    status.enter(State.LOST, "gone")
    assert not bridge.is_consuming


async def test_heartbeat_interval_is_configured_by_the_settings(build: Callable[..., Bridge]) -> None:
    assert build(heartbeat_interval="200ms")._hub._heartbeats._interval_s == 0.2


@pytest.mark.parametrize(("encrypted", "flush_bytes"), [(False, FLUSH_BYTES), (True, TLS_FLUSH_BYTES)])
async def test_write_to_a_client_with_tls_is_at_most_one_piece(
    build: Callable[..., Bridge], tmp_path: Path, *, encrypted: bool, flush_bytes: int
) -> None:
    chain, key = certificate(tmp_path, "localhost")
    bridge = build(**({"tls_certificate": chain, "tls_key": key} if encrypted else {}))
    assert bridge._hub._flush_bytes == flush_bytes


@pytest.mark.parametrize(("history", "replaying"), [("memory", False), ("stream", True)])
async def test_hub_and_relay_replay_a_stream_first(
    build: Callable[..., Bridge], history: str, *, replaying: bool
) -> None:
    """A replayed event that is invalid is not rejected again, because it was rejected when it was new."""
    bridge = build(history=history)
    assert bridge._hub._resume.pending.replaying is replaying
    delivery = FakeDelivery(b"no JSON")
    delivery.id = UpdateId(1, 1) if replaying else None
    consumer_of(bridge)._handler.deliver([delivery])
    assert bridge._rejects.waiting == (not replaying)
    await bridge._rejects.close()


@pytest.mark.parametrize(("level", "traced"), [(logging.DEBUG, True), (logging.INFO, False)])
async def test_changes_of_state_are_logged_only_at_the_level_debug(
    build: Callable[..., Bridge], level: int, *, traced: bool
) -> None:
    logger = logging.getLogger("bridge.broadcast")
    before = logger.level
    logger.setLevel(level)
    try:
        hub = build()._hub
    finally:
        logger.setLevel(before)
    with capture_logs() as logged:
        hub.join(FakeSubscriber(hub))
    assert [line["event"] for line in logged] == (["connection state"] if traced else [])


async def test_ids_of_two_bridges_without_a_stream_differ(
    build: Callable[..., Bridge], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "randbits", lambda bits: 70 + bits)
    assert build()._hub._index._tag == 70 + 32
    assert build(history="stream")._hub._index._tag is None


# Clients


@pytest.mark.parametrize(
    ("connections", "flags", "per_address"),
    [
        (1000, {}, 100),
        (10, {}, MIN_PER_ADDRESS),
        (1000, {"max_connections_per_address": 7}, 7),
        (1000, {"max_connections_per_address": "off"}, 1000),
    ],
)
async def test_limits_of_clients_follow_the_settings_and_the_descriptors(
    build: Callable[..., Bridge],
    monkeypatch: pytest.MonkeyPatch,
    connections: int,
    flags: dict[str, object],
    per_address: int,
) -> None:
    asked: list[int] = []

    def connection_capacity(wanted: int) -> descriptors.Capacity:
        asked.append(wanted)
        return descriptors.Capacity(connections, 5)

    monkeypatch.setattr(descriptors, "connection_capacity", connection_capacity)
    bridge = build(max_connections=4321, handshake_timeout="2s", idle_timeout="40s", ping_interval="11s", **flags)
    limits = bridge._server._limits
    assert asked == [4321]
    assert (limits.max_connections, limits.overflow, limits.max_connections_per_address) == (
        connections,
        5,
        per_address,
    )
    assert (limits.handshake_timeout_s, limits.idle_timeout_s, limits.ping_interval_s) == (2, 40, 11)


async def test_public_networks_that_may_connect_are_logged(build: Callable[..., Bridge]) -> None:
    with capture_logs() as logged:
        build(allowed_networks="10.0.0.0/8,8.8.0.0/16")
    [line] = logged
    assert (line["log_level"], line["networks"]) == ("warning", "8.8.0.0/16")
    with capture_logs() as logged:
        build()
    assert logged == []


async def test_close_reasons_have_counters_except_the_stop_which_is_no_eviction(build: Callable[..., Bridge]) -> None:
    bridge = build()
    counted = {
        sample.labels["reason"]
        for metric in bridge.metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "bridge_evictions_total"
    }
    assert counted == {reason.slug for reason in CloseReason if reason is not CloseReason.STOPPING}


async def test_every_label_value_has_a_series_from_the_start(
    build: Callable[..., Bridge],
) -> None:
    bridge = build()
    labelled = {
        "bridge_clients_refused_total": {("rule", rule.value) for rule in Rule},
        "bridge_connections": {("transport", each.value) for each in Transport},
        "bridge_connections_lagging": {("transport", "websocket"), ("transport", "sse")},
        "bridge_connections_opened_total": {("transport", each.value) for each in Transport},
        "bridge_duplicates_total": {("type", each) for each in bridge._schemas.types},
        "bridge_evictions_total": {("reason", each.slug) for each in CloseReason if each is not CloseReason.STOPPING},
        "bridge_rejects_total": {("reason", reason.value) for reason in Reason},
        "bridge_resumes_total": {("complete", "true"), ("complete", "false")},
        "bridge_sends_total": {("outcome", each) for each in ("written", "enqueued", "dropped")},
        "bridge_sent_bytes_total": {("transport", each.value) for each in Transport},
        "bridge_updates_total": {("type", each) for each in bridge._schemas.types},
    }
    found: dict[str, set[tuple[str, str]]] = {}
    for name, labels in series(bridge.metrics):
        if labels and name.startswith("bridge_") and not name.endswith(("_info", "_bucket")):
            found.setdefault(name, set()).update(labels)
            assert value(bridge.metrics, name, **dict(labels)) == 0
    assert found == labelled


async def test_update_log_counts_updates_and_not_its_other_entries(build: Callable[..., Bridge]) -> None:
    bridge = build()
    assert value(bridge.metrics, "bridge_update_log_updates") == 0
    bridge._hub.publish(b"update")
    bridge._hub.send_own_message(lambda _: b"gap")
    assert value(bridge.metrics, "bridge_update_log_updates") == 1
    assert value(bridge.metrics, "bridge_update_log_bytes") == bridge._hub._update_log.size_bytes > len(b"update")


# Tests of settings whose values are defined in other files


async def test_exchange_of_a_type_without_a_schema_is_a_configuration_error(build: Callable[..., Bridge]) -> None:
    with pytest.raises(ConfigurationError, match=r"kills=weather: there is no schema for this type; known: .*killmail"):
        build(exchanges="kills=weather")


async def test_unusable_schemas_and_certificates_are_configuration_errors(
    build: Callable[..., Bridge], tmp_path: Path
) -> None:
    (tmp_path / "schemas").mkdir()
    with pytest.raises(ConfigurationError, match="the folder has no schema files"):
        build(schemas=tmp_path / "schemas")
    (tmp_path / "no.pem").write_text("none")
    with pytest.raises(ConfigurationError, match="BRIDGE_TLS_CERTIFICATE, BRIDGE_TLS_KEY: "):
        build(tls_certificate=tmp_path / "no.pem", tls_key=tmp_path / "no.pem")


# Start


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    return VirtualTime(monkeypatch)


class Lifecycle:
    """A bridge whose parts are replaced by fakes that record the order of their calls."""

    def __init__(self, bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bridge = bridge
        self.steps: list[str] = []
        self.drained_s = -1.0
        """The number of seconds that were left for closing the clients when the bridge began to close them."""
        self.may_end: dict[str, asyncio.Event] = {"consumer": asyncio.Event(), "rejects": asyncio.Event()}
        """For each task, an asyncio event. When the test sets this event, the task ends."""
        self.failures: dict[str, BaseException] = {}
        self.ignores_cancellation = False
        """True if the tasks ignore their cancellation."""
        note = self.steps.append
        monkeypatch.setattr(bridge._server, "listen", self._listen)
        monkeypatch.setattr(bridge._server, "stop_listening", lambda: note("listens no more"))
        monkeypatch.setattr(bridge._server, "drain", self._drain)
        monkeypatch.setattr(consumer_of(bridge), "stop", lambda: self._stop("consumer"))
        monkeypatch.setattr(consumer_of(bridge), "run", lambda: self._run("consumer"))
        monkeypatch.setattr(bridge._rejects, "stop", lambda: self._stop("rejects"))
        monkeypatch.setattr(bridge._rejects, "run", lambda: self._run("rejects"))
        monkeypatch.setattr(bridge._rejects, "close", self._close)
        self.addresses = [("127.0.0.1", 4321), ("::1", 4321)]
        self.error: OSError | None = None
        """The error that `listen` raises."""
        self.hung: set[str] = set()
        """The names of the tasks that ignore `stop`."""

    def _listen(self, hosts: tuple[str, ...], port: int, reuse_port: bool) -> list[tuple[str, int]]:
        self.steps.append(f"listens on {','.join(hosts)} {port} {reuse_port}")
        if self.error is not None:
            raise self.error
        return self.addresses

    async def _drain(self, timeout_s: float) -> None:
        self.steps.append("clients closed")
        self.drained_s = timeout_s

    def _stop(self, name: str) -> None:
        self.steps.append(f"{name} asked to stop")
        if name not in self.hung:
            self.may_end[name].set()

    async def _run(self, name: str) -> None:
        self.steps.append(f"{name} begun")
        if name in self.failures:
            raise self.failures[name]
        try:
            await self.may_end[name].wait()
            self.steps.append(f"{name} ended")
        except asyncio.CancelledError:
            self.steps.append(f"{name} cancelled")
            if self.ignores_cancellation:
                await self.may_end[name].wait()
            raise

    async def _close(self) -> None:
        self.steps.append("rejects given up")

    async def start(self) -> None:
        await self.bridge.start()
        await asyncio.sleep(0)
        consumer_of(self.bridge).status.enter(State.WORKING)
        self.bridge._rejects.status.enter(State.WORKING)
        self.steps.clear()


async def test_bridge_listens_before_it_consumes_and_connects_the_rejects_first(
    build: Callable[..., Bridge], monkeypatch: pytest.MonkeyPatch, clock: VirtualTime
) -> None:
    bridge = build(host="localhost", port=4321, reuse_port="true", path="/live", instance="north")
    lifecycle = Lifecycle(bridge, monkeypatch)
    with capture_logs() as logged:
        await bridge.start()
    await asyncio.sleep(0)
    assert lifecycle.steps == ["listens on localhost 4321 True", "rejects begun", "consumer begun"]
    assert bridge.addresses == [("127.0.0.1", 4321), ("::1", 4321)]
    assert logged == [
        {
            "event": "listening",
            "log_level": "info",
            "page": "http://localhost:4321/",
            "url": "ws://localhost:4321/live",
            "addresses": "127.0.0.1, ::1",
            "port": 4321,
            "version": __version__,
        }
    ]
    for path in ("/asyncapi.json", "/openapi.json"):
        assert b"localhost:4321" in bridge._pages.get(path).body
    await bridge.stop()


async def test_wildcard_is_logged_as_an_address_that_clients_can_use(
    build: Callable[..., Bridge], monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge = build(host="::", port=4321)
    lifecycle = Lifecycle(bridge, monkeypatch)
    lifecycle.addresses = [("::", 4321), ("0.0.0.0", 4321)]
    with capture_logs() as logged:
        await bridge.start()
    assert [(line["page"], line["url"], line["addresses"]) for line in logged] == [
        ("http://localhost:4321/", "ws://localhost:4321/updates", "::, 0.0.0.0")
    ]
    await bridge.stop()


async def test_wildcard_without_an_address_that_clients_can_use_is_logged_without_a_url(
    build: Callable[..., Bridge], monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge = build(host="0.0.0.0", port=4321, allowed_networks="10.0.0.0/8")
    monkeypatch.setattr(app, "source_address", lambda network: "192.168.1.5")
    lifecycle = Lifecycle(bridge, monkeypatch)
    lifecycle.addresses = [("0.0.0.0", 4321)]
    with capture_logs() as logged:
        await bridge.start()
    [line] = logged
    assert (line["event"], line["addresses"], line["port"]) == ("listening", "0.0.0.0", 4321)
    assert not {"page", "url"} & line.keys()
    for path in ("/asyncapi.json", "/openapi.json"):
        assert b"localhost:4321" in bridge._pages.get(path).body
    await bridge.stop()


async def test_addresses_that_no_client_can_reach_are_logged_without_a_url(
    build: Callable[..., Bridge], monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge = build(host="localhost", port=4321, allowed_networks="10.0.0.0/8")
    Lifecycle(bridge, monkeypatch)
    with capture_logs() as logged:
        await bridge.start()
    assert [line["event"] for line in logged] == ["listening", *["no client can reach this address"] * 2]
    assert not {"page", "url"} & logged[0].keys()
    await bridge.stop()


async def test_address_that_no_client_can_reach_is_logged_as_a_warning(
    build: Callable[..., Bridge], monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge = build(host="localhost", port=4321, allowed_networks="127.0.0.0/8")
    Lifecycle(bridge, monkeypatch)
    with capture_logs() as logged:
        await bridge.start()
    [warning] = [line for line in logged if line["log_level"] == "warning"]
    assert (warning["address"], warning["reason"]) == ("::1", "BRIDGE_ALLOWED_NETWORKS has no IPv6 network")
    for path in ("/asyncapi.json", "/openapi.json"):
        assert b"127.0.0.1:4321" in bridge._pages.get(path).body
    await bridge.stop()


async def test_address_that_is_in_use_raises_and_nothing_is_consumed(
    build: Callable[..., Bridge], monkeypatch: pytest.MonkeyPatch
) -> None:
    lifecycle = Lifecycle(bridge := build(), monkeypatch)
    lifecycle.error = OSError(98, "127.0.0.1:3000: Address already in use")
    with pytest.raises(AddressUnavailable, match=r"can't listen on 127\.0\.0\.1:3000: Address already in use; "):
        await bridge.start()
    assert len(lifecycle.steps) == 1
    assert (bridge._source_task, bridge._rejects_task) == (None, None)


@pytest.mark.parametrize("which", ["consumer", "rejects"])
async def test_refusal_of_either_connection_is_raised(
    build: Callable[..., Bridge], monkeypatch: pytest.MonkeyPatch, clock: VirtualTime, which: str
) -> None:
    lifecycle = Lifecycle(bridge := build(), monkeypatch)
    lifecycle.failures[which] = BrokerRefusal("no such virtual host")
    await bridge.start()
    with pytest.raises(BrokerRefusal, match="no such virtual host"):
        await bridge.wait_for_refusal()
    await bridge.stop()


async def test_end_of_a_task_without_an_error_is_not_raised(
    build: Callable[..., Bridge], monkeypatch: pytest.MonkeyPatch, clock: VirtualTime
) -> None:
    lifecycle = Lifecycle(bridge := build(), monkeypatch)
    await bridge.start()
    for each in lifecycle.may_end.values():
        each.set()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(600):
            await bridge.wait_for_refusal()
    await bridge.stop()


# Stop


async def test_stop_ends_the_consumer_before_the_rejects_and_the_clients(
    build: Callable[..., Bridge], monkeypatch: pytest.MonkeyPatch, clock: VirtualTime
) -> None:
    lifecycle = Lifecycle(bridge := build(shutdown_timeout="8s"), monkeypatch)
    await lifecycle.start()
    await bridge.stop()
    assert lifecycle.steps == [
        "listens no more",
        "consumer asked to stop",
        "consumer ended",
        "rejects asked to stop",
        "rejects given up",
        "clients closed",
        "rejects ended",
    ]
    assert lifecycle.drained_s == pytest.approx(8.0)
    assert "the bridge is stopping" in str(bridge.readiness.report()[1]["missing"])


async def test_consumer_that_does_not_end_uses_only_its_share_of_the_shutdown_timeout(
    build: Callable[..., Bridge], monkeypatch: pytest.MonkeyPatch, clock: VirtualTime
) -> None:
    lifecycle = Lifecycle(bridge := build(shutdown_timeout="8s"), monkeypatch)
    await lifecycle.start()
    lifecycle.hung.add("consumer")
    await bridge.stop()
    assert lifecycle.steps[1:4] == ["consumer asked to stop", "consumer cancelled", "rejects asked to stop"]
    assert lifecycle.drained_s == pytest.approx(8.0 * (1 - BROKER_SHARE), abs=0.01)


async def test_consumer_may_use_its_share_to_settle_the_last_deliveries(
    build: Callable[..., Bridge], monkeypatch: pytest.MonkeyPatch, clock: VirtualTime
) -> None:
    lifecycle = Lifecycle(bridge := build(shutdown_timeout="8s"), monkeypatch)
    await lifecycle.start()
    lifecycle.hung.add("consumer")
    asyncio.get_running_loop().call_later(3.9, lifecycle.may_end["consumer"].set)
    await bridge.stop()
    assert lifecycle.steps[1:4] == ["consumer asked to stop", "consumer ended", "rejects asked to stop"]
    assert lifecycle.drained_s == pytest.approx(4.1, abs=0.01)


@pytest.mark.parametrize("state", [State.CONNECTING, State.LOST, State.REFUSED])
async def test_stop_does_not_wait_for_a_connection_that_does_not_work(
    build: Callable[..., Bridge], monkeypatch: pytest.MonkeyPatch, clock: VirtualTime, state: State
) -> None:
    lifecycle = Lifecycle(bridge := build(shutdown_timeout="8s"), monkeypatch)
    await lifecycle.start()
    lifecycle.hung |= {"consumer", "rejects"}
    consumer_of(bridge).status.enter(state)
    bridge._rejects.status.enter(state)
    before_s = clock.now_s
    await bridge.stop()
    assert "consumer cancelled" in lifecycle.steps
    assert "rejects cancelled" in lifecycle.steps
    assert lifecycle.drained_s == pytest.approx(8.0)
    assert clock.now_s - before_s < 0.01


async def test_rejects_that_do_not_end_are_cancelled_after_their_share(
    build: Callable[..., Bridge], monkeypatch: pytest.MonkeyPatch, clock: VirtualTime
) -> None:
    lifecycle = Lifecycle(bridge := build(shutdown_timeout="8s"), monkeypatch)
    await lifecycle.start()
    lifecycle.hung.add("rejects")
    before_s = clock.now_s
    await bridge.stop()
    assert lifecycle.steps[-2:] == ["clients closed", "rejects cancelled"]
    assert clock.now_s - before_s == pytest.approx(8.0 * BROKER_SHARE, abs=0.01)


async def test_task_that_ignores_its_cancellation_delays_the_stop_only_by_the_end_timeout(
    build: Callable[..., Bridge], monkeypatch: pytest.MonkeyPatch, clock: VirtualTime
) -> None:
    lifecycle = Lifecycle(bridge := build(shutdown_timeout="8s"), monkeypatch)
    await lifecycle.start()
    lifecycle.hung.add("consumer")
    lifecycle.ignores_cancellation = True
    await bridge.stop()
    assert lifecycle.drained_s == pytest.approx(8.0 * (1 - BROKER_SHARE) - DEFAULT.end_timeout_s, abs=0.01)
    lifecycle.may_end["consumer"].set()
    assert bridge._source_task is not None
    await asyncio.wait((bridge._source_task,))


async def test_bridge_that_was_not_started_stops(
    build: Callable[..., Bridge], monkeypatch: pytest.MonkeyPatch, clock: VirtualTime
) -> None:
    lifecycle = Lifecycle(bridge := build(), monkeypatch)
    await bridge.stop()
    assert lifecycle.steps[0] == "listens no more"


# The certificate


async def test_reload_reads_the_certificate_or_keeps_the_old_one(build: Callable[..., Bridge]) -> None:
    class Certificate:
        error: OSError | None = None
        read = 0

        def reload(self) -> None:
            if self.error is not None:
                raise self.error
            self.read += 1

    bridge, certificate = build(), Certificate()
    with capture_logs() as logged:
        bridge.reload()
        bridge._tls = cast("Any", certificate)
        bridge.reload()
        certificate.error = OSError("no such file")
        bridge.reload()
    assert certificate.read == 1
    assert [(line["log_level"], line["event"].partition(" (")[0]) for line in logged] == [
        ("info", "no certificate to reload"),
        ("info", "certificate reloaded"),
        ("error", "certificate not reloaded; the old one stays in use"),
    ]


# Signals


class Exited(BaseException):
    """The error that a fake raises at the point where the real process would end."""


class Served:
    """The command `serve`, with fakes of the bridge, the service manager and the process that record their calls."""

    log: list[str]
    handlers: dict[int, tuple[Callable[..., object], tuple[object, ...]]]
    failing: asyncio.Future[None]
    stopped: asyncio.Event
    watching: asyncio.Task[None] | None = None

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        served, loop = self, asyncio.get_running_loop()
        self.log, self.handlers = [], {}
        self.failing, self.stopped = loop.create_future(), asyncio.Event()
        self.stopped.set()

        class Recorder:
            """A fake of the bridge or of the service manager."""

            def __init__(self, *_: object) -> None:
                pass

            def __getattr__(self, name: str) -> Callable[[], None]:
                return lambda: served.log.append(name)

            async def start(self) -> None:
                served.log.append("start")

            async def wait_for_refusal(self) -> None:
                await served.failing

            async def stop(self) -> None:
                served.log.append("stop")
                await served.stopped.wait()

            async def watch(self) -> None:
                served.watching = asyncio.current_task()
                await asyncio.Event().wait()

        class Garbage:
            def __getattr__(self, name: str) -> Callable[..., None]:
                return lambda *_: None

        def leave(status: int) -> None:
            raise Exited(status)

        def handle(number: int, callback: Callable[..., object], *arguments: object) -> None:
            self.handlers[number] = (callback, arguments)

        monkeypatch.setattr(app, "Bridge", Recorder)
        monkeypatch.setattr(app, "SdNotifier", Recorder)
        monkeypatch.setattr(app, "gc", Garbage())
        monkeypatch.setattr(descriptors, "raise_nofile_limit", lambda: None)
        monkeypatch.setattr(os, "_exit", leave)
        monkeypatch.setattr(loop, "add_signal_handler", handle)

    def signal(self, number: int) -> None:
        callback, arguments = self.handlers[number]
        callback(*arguments)


@pytest.fixture
async def served(monkeypatch: pytest.MonkeyPatch, clock: VirtualTime) -> Served:
    return Served(monkeypatch)


@pytest.fixture(params=[signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def stop_signal(request: pytest.FixtureRequest) -> Iterator[int]:
    return request.param  # type: ignore[no-any-return]  # one of the two above


async def test_signal_stops_the_bridge_and_notifies_the_service_manager(
    served: Served, tmp_path: Path, stop_signal: int
) -> None:
    serving = asyncio.create_task(serve(configured(tmp_path)))
    await eventually("the bridge is ready", lambda: "ready" in served.log)
    served.signal(stop_signal)
    await serving
    assert served.log == ["start", "ready", "stopping", "stop"]
    assert served.watching is not None
    await asyncio.wait([served.watching])
    assert served.watching.cancelled()


async def test_second_signal_ends_the_process_at_once(served: Served, tmp_path: Path, stop_signal: int) -> None:
    served.stopped.clear()
    serving = asyncio.create_task(serve(configured(tmp_path)))
    await eventually("the bridge is ready", lambda: "ready" in served.log)
    served.signal(stop_signal)
    await eventually("the bridge stops", lambda: "stop" in served.log)
    with pytest.raises(Exited) as exited:
        served.signal(stop_signal)
    assert exited.value.args == (128 + stop_signal,)
    served.stopped.set()
    await serving


async def test_refusal_stops_the_bridge_in_order_and_is_raised(served: Served, tmp_path: Path) -> None:
    serving = asyncio.create_task(serve(configured(tmp_path)))
    await eventually("the bridge is ready", lambda: "ready" in served.log)
    served.failing.set_exception(BrokerRefusal("no such virtual host"))
    with pytest.raises(BrokerRefusal, match="no such virtual host"):
        await serving
    assert served.log == ["start", "ready", "stopping", "stop"]


@pytest.mark.parametrize(
    ("encrypted", "terminal", "stops"),
    [(False, False, False), (False, True, True), (True, False, False), (True, True, False)],
)
async def test_hangup_reloads_the_certificate_or_stops_a_bridge_whose_terminal_was_closed(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, encrypted: bool, terminal: bool, stops: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    (tmp_path / "a.pem").write_text("not read")
    flags = {"tls_certificate": tmp_path / "a.pem", "tls_key": tmp_path / "a.pem"} if encrypted else {}
    serving = asyncio.create_task(serve(configured(tmp_path, **flags)))
    await eventually("the bridge is ready", lambda: "ready" in served.log)
    served.signal(signal.SIGHUP)
    if stops:
        await serving
        assert served.log == ["start", "ready", "stopping", "stop"]
        return
    assert served.log == ["start", "ready", "reloading", "reload", "ready"]
    served.signal(signal.SIGTERM)
    await serving
