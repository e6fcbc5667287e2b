"""Tests when and where the relay settles a delivery."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import structlog

from bridge import relay as relay_module
from bridge.amqp.status import Gap, GapSlug
from bridge.broadcast import live_set
from bridge.contract import catalog
from bridge.contract.deduplication import DuplicateWindow
from bridge.contract.pipeline import Pipeline, Reason
from bridge.contract.update_id import UpdateId
from bridge.metrics import Metrics
from bridge.relay import Relay, UnflushedDeliveries
from tests.support.fakes import FakeDelivery, FakeRejects, Scene
from tests.support.killmail import killmail
from tests.support.metrics import value

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class RelayScene(Scene):
    """A relay, and a hub with one client."""

    def __init__(
        self, folder: Path, exchanges: Mapping[str, str], *, replaying: bool = False, shared: bool = False
    ) -> None:
        """`shared` has the same meaning as for a `Scene`."""
        metrics = Metrics()
        unflushed = UnflushedDeliveries(metrics)
        super().__init__(shared=shared, replaying=replaying, metrics=metrics, flush_listener=unflushed)
        (folder / "weather.json").write_text('{"type": "object"}')
        self.pipeline = Pipeline(catalog.load([catalog.PACKAGED, folder]), 100_000)
        self.rejects = FakeRejects()
        self.relay = Relay(
            exchanges,
            self.pipeline,
            DuplicateWindow(10),
            self.hub,
            unflushed,
            self.rejects,
            metrics,
            self.turn,
            replaying=replaying,
        )
        self.metrics.init_labels(["killmail"], [], [], [])
        self.client = self.join()
        self.deliveries: list[FakeDelivery] = []
        self.settled_before_flushes: list[list[int]] = []
        """For each flush, how often each delivery had been settled before this flush."""
        flush = self.hub.flush

        def recorded_flush() -> None:
            self.settled_before_flushes.append([delivery.settled for delivery in self.deliveries])
            flush()

        self.hub.flush = recorded_flush  # type: ignore[method-assign]  # the test records earlier settlements

    def deliver(self, body: object, **options: Any) -> FakeDelivery:
        """Delivers one event in a read of its own."""
        [delivery] = self.deliver_read(body, **options)
        return delivery

    def deliver_read(self, *bodies: object, **options: Any) -> list[FakeDelivery]:
        """Delivers several events in one read."""
        deliveries = [
            FakeDelivery(body if isinstance(body, bytes) else orjson.dumps(body), **options) for body in bodies
        ]
        self.deliveries += deliveries
        self.relay.deliver(deliveries)
        return deliveries

    def count(self, name: str, **labels: str) -> float:
        return value(self.metrics, name, **labels)

    @property
    def sent(self) -> list[dict[str, Any]]:
        """The updates that the client has received."""
        return messages(self.client.received)


def messages(frames: bytes) -> list[dict[str, Any]]:
    """Returns the payloads of the frames, which must be smaller than 65536 bytes each."""
    found = []
    while frames:
        start, length = (4, int.from_bytes(frames[2:4], "big")) if frames[1] == 126 else (2, frames[1])
        found.append(orjson.loads(frames[start : start + length]))
        frames = frames[start + length :]
    return found


@pytest.fixture
def scene(tmp_path: Path) -> RelayScene:
    return RelayScene(tmp_path, {"killmails": "killmail"})


def test_accepted_delivery_is_settled_after_the_flush_and_not_before(scene: RelayScene) -> None:
    delivery = scene.deliver(killmail(1))
    assert scene.settled_before_flushes == [[0]]
    assert not scene.turns.scheduled
    assert delivery.settled == 1
    [update] = scene.sent
    assert (update["type"], update["data"]) == ("killmail", killmail(1))
    assert update["timestamp"] > 1_700_000_000_000
    assert scene.rejects.taken == []


def test_each_delivery_of_a_flush_is_settled_once(scene: RelayScene) -> None:
    deliveries = scene.deliver_read(*map(killmail, range(5)))
    scene.deliver(killmail(5))
    assert [delivery.settled for delivery in deliveries] == [1] * 5
    assert len(scene.sent) == 6


def test_accepted_delivery_is_counted_and_timed(scene: RelayScene) -> None:
    scene.deliver(killmail(1))
    assert scene.count("bridge_deliveries_total") == 1
    assert scene.count("bridge_updates_total", type="killmail") == 1
    assert scene.count("bridge_receipt_to_flush_seconds_count") == 1
    assert 0 <= scene.count("bridge_receipt_to_flush_seconds_sum") < 60


def test_time_of_the_newest_update_is_0_before_the_first_and_then_the_one_in_the_update(scene: RelayScene) -> None:
    name = "bridge_last_update_timestamp_seconds"
    assert scene.count(name) == 0
    for number in (1, 2):
        scene.deliver(killmail(number))
        assert scene.count(name) == scene.sent[-1]["timestamp"] / 1000


@pytest.mark.parametrize(
    "body", [b"poison", orjson.dumps(killmail(1))], ids=["a rejected event", "a duplicate of an event"]
)
def test_time_of_the_newest_update_stays_when_nothing_is_broadcast(
    scene: RelayScene, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    monkeypatch.setattr(relay_module, "now_ms", lambda: 1_700_000_000_500)
    scene.deliver(killmail(1))
    monkeypatch.setattr(relay_module, "now_ms", lambda: 1_700_000_009_000)
    scene.deliver(body)
    scene.relay.on_gap(Gap(1_729_593_000.0, 1_729_593_012.25, "broker away"), None)
    assert scene.count("bridge_last_update_timestamp_seconds") == 1_700_000_000.5


def test_update_that_is_read_back_at_start_is_not_the_newest_broadcast_one(tmp_path: Path) -> None:
    scene = RelayScene(tmp_path, {"killmails": "killmail"}, replaying=True)
    scene.deliver(killmail(1))
    scene.deliver(killmail(2))
    scene.relay.on_caught_up()
    assert (scene.count("bridge_last_update_timestamp_seconds"), scene.sent) == (0, [])
    scene.deliver(killmail(3))
    [update] = scene.sent
    assert scene.count("bridge_last_update_timestamp_seconds") == update["timestamp"] / 1000


def test_rejected_delivery_is_passed_on_unsettled(scene: RelayScene) -> None:
    delivery = scene.deliver(b"not JSON")
    [(taken, rejected)] = scene.rejects.taken
    assert taken is delivery
    assert rejected.reason is Reason.NOT_JSON
    assert delivery.settled == 0
    assert scene.sent == []
    assert scene.count("bridge_deliveries_total") == 1


def test_duplicate_is_settled_at_once_counted_and_not_sent(scene: RelayScene) -> None:
    scene.deliver(killmail(1))
    duplicate = scene.deliver(killmail(1, attackerCount=99))
    assert duplicate.settled == 1
    assert duplicate.settled == 1
    assert len(scene.sent) == 1
    assert scene.count("bridge_duplicates_total", type="killmail") == 1
    assert scene.count("bridge_updates_total", type="killmail") == 1


def test_duplicate_before_the_flush_is_not_sent(scene: RelayScene) -> None:
    scene.deliver_read(killmail(1), killmail(1))
    assert len(scene.sent) == 1


def test_identity_that_has_left_the_window_is_sent_again(scene: RelayScene) -> None:
    scene.deliver_read(*map(killmail, [*range(11), 0]))
    assert len(scene.sent) == 12


def test_duplicate_does_not_keep_its_identity_in_the_window_for_longer(scene: RelayScene) -> None:
    # The window holds ten identities. When the eleventh identity, 10, arrives, the window forgets the identity 0. The
    # repetition of 0 did not make this identity newer.
    scene.deliver_read(*map(killmail, [*range(10), 0, 10, 0]))
    assert [update["data"]["killmailId"] for update in scene.sent] == [*range(11), 0]
    assert scene.count("bridge_duplicates_total", type="killmail") == 1


def test_rejected_event_does_not_make_a_later_one_a_duplicate(scene: RelayScene) -> None:
    scene.deliver(killmail(1, systemId=None))
    scene.deliver(killmail(1))
    assert len(scene.sent) == 1


def test_update_without_an_identity_is_sent_each_time(scene: RelayScene) -> None:
    for _ in range(2):
        scene.deliver({}, message_type="weather")
    assert len(scene.sent) == 2
    assert scene.count("bridge_updates_total", type="weather") == 2


def test_redelivery_is_counted_and_sent_if_it_was_not_sent_before(scene: RelayScene) -> None:
    scene.deliver(killmail(1), redelivered=True)
    assert scene.count("bridge_redeliveries_total") == 1
    assert len(scene.sent) == 1


def test_fault_of_the_bridge_is_a_rejection_and_a_traceback(scene: RelayScene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Pipeline, "process", fail)
    with structlog.testing.capture_logs() as logged:
        delivery = scene.deliver(killmail(1))
    [(taken, rejected)] = scene.rejects.taken
    assert taken is delivery
    assert rejected.reason is Reason.INTERNAL_ERROR
    assert [entry["log_level"] for entry in logged] == ["error", "warning"]
    monkeypatch.undo()
    scene.deliver(killmail(1))
    assert len(scene.sent) == 1


def test_event_that_fails_at_publish_is_rejected_and_is_no_duplicate_when_redelivered(
    scene: RelayScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(payload: bytes) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(scene.hub, "publish", fail)
        first = scene.deliver(killmail(1))
    assert [rejected.reason for _, rejected in scene.rejects.taken] == [Reason.INTERNAL_ERROR]
    second = scene.deliver(killmail(1))
    assert (first.settled, second.settled) == (0, 1)
    assert scene.count("bridge_duplicates_total", type="killmail") == 0
    assert scene.count("bridge_updates_total", type="killmail") == 1


def test_delivery_that_can_not_be_rejected_stays_unsettled_and_does_not_delay_others(
    scene: RelayScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(scene.rejects, "reject", fail)
    with structlog.testing.capture_logs() as logged:
        deliveries = scene.deliver_read(killmail(1), b"invalid", killmail(2))
    assert [delivery.settled for delivery in deliveries] == [1, 0, 1]
    assert [update["data"]["killmailId"] for update in scene.sent] == [1, 2]
    assert "a delivery could not be relayed; it stays unsettled" in [line["event"] for line in logged]


def test_encoding_of_the_delivery_is_checked(scene: RelayScene) -> None:
    scene.deliver(killmail(1), content_encoding="gzip")
    assert scene.rejects.taken[0][1].reason is Reason.UNSUPPORTED_ENCODING


BOTH = {"killmails": "killmail", "events": "weather"}


@pytest.mark.parametrize(
    ("exchanges", "exchange", "message_type", "update_type"),
    [
        (BOTH, "killmails", None, "killmail"),
        (BOTH, "events", None, "weather"),
        (BOTH, "events", "", "weather"),
        (BOTH, "events", "killmail", "killmail"),
        (BOTH, "elsewhere", "weather", "weather"),
        ({"killmails": "killmail"}, "elsewhere", None, "killmail"),
        ({"killmails": "killmail"}, "", None, "killmail"),
        ({"killmails": "killmail", "more": "killmail"}, "elsewhere", None, "killmail"),
    ],
)
def test_type_is_that_of_the_delivery_or_the_default_of_its_exchange(
    tmp_path: Path, exchanges: Mapping[str, str], exchange: str, message_type: str | None, update_type: str
) -> None:
    scene = RelayScene(tmp_path, exchanges)
    scene.deliver(killmail(1), exchange=exchange, message_type=message_type)
    assert [update["type"] for update in scene.sent] == [update_type]


def test_unknown_exchange_has_no_default_if_the_known_ones_differ(tmp_path: Path) -> None:
    scene = RelayScene(tmp_path, BOTH)
    scene.deliver(killmail(1), exchange="elsewhere")
    assert scene.rejects.taken[0][1].reason is Reason.UNKNOWN_TYPE


def test_large_delivery_is_settled_after_its_own_flush(scene: RelayScene) -> None:
    delivery = scene.deliver(killmail(1, more="x" * 70_000))
    assert [settled for [settled] in scene.settled_before_flushes] == [0] * len(scene.settled_before_flushes)
    assert delivery.settled == 1


def test_early_flush_settles_only_the_deliveries_of_its_updates(scene: RelayScene) -> None:
    found = scene.deliver_read(*(killmail(number, more="x" * 20_000) for number in range(4)))
    assert scene.settled_before_flushes == [[0, 0, 0, 0], [1, 1, 1, 0]]
    assert [delivery.settled for delivery in found] == [1, 1, 1, 1]


def test_delivery_that_arrives_during_a_long_flush_is_settled_after_its_own_flush(
    scene: RelayScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_set, "ENCRYPTED_BYTES", 1)
    scene.join()
    scene.turn.steps = 1
    first, second = scene.deliver(killmail(1)), scene.deliver(killmail(2))
    assert (first.settled, second.settled) == (0, 0)
    scene.turns.turn()
    assert (first.settled, second.settled) == (1, 0)
    scene.turns.settle()
    assert (first.settled, second.settled) == (1, 1)


def test_duplicate_of_an_unflushed_update_is_settled_with_the_update(
    scene: RelayScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_set, "ENCRYPTED_BYTES", 1)
    scene.join()
    scene.turn.steps = 1
    original, duplicate = scene.deliver(killmail(1)), scene.deliver(killmail(1), redelivered=True)
    assert (original.settled, duplicate.settled) == (0, 0)
    scene.turns.settle()
    assert (original.settled, duplicate.settled) == (1, 1)
    assert scene.deliver(killmail(1)).settled == 1


def test_rejected_events_are_logged_at_the_first_and_at_each_doubling(scene: RelayScene) -> None:
    with structlog.testing.capture_logs() as logged:
        for _ in range(9):
            scene.deliver(b"poison")
    assert [line["rejected_so_far"] for line in logged if line["event"] == "event rejected"] == [1, 2, 4, 8]


def test_gap_names_nothing_of_the_broker_to_clients(tmp_path: Path) -> None:
    scene = RelayScene(tmp_path, {"killmails": "killmail"})
    with_ids = scene.join(after="")
    scene.turns.settle()
    words = "user 'edk' at broker.internal:5672 was refused: Connection.Close(reply_code=403)"
    scene.relay.on_gap(Gap(1_729_593_000.0, 1_729_593_012.25, words), None)
    scene.relay.on_gap(Gap(1_729_593_000.0, 1_729_593_012.25, words, GapSlug.STREAM_TRUNCATED), None)
    scene.turns.settle()
    gaps = [message["data"] for message in messages(with_ids.received) if message["type"] == "gap"]
    assert [gap["reason"] for gap in gaps] == ["broker-away", "stream-truncated"]
    assert b"edk" not in with_ids.received
    assert b"5672" not in with_ids.received


@pytest.mark.parametrize("shared", [False, True])
def test_client_that_resumes_after_the_id_of_a_gap_does_not_get_the_gap_again(tmp_path: Path, *, shared: bool) -> None:
    """Without a stream, the hub assigns the id of the gap."""
    scene = RelayScene(tmp_path, {"killmails": "killmail"}, shared=shared)
    update_ids = [UpdateId(number, 5) if shared else None for number in range(3)]
    scene.deliver(killmail(1), update_id=update_ids[0])
    stayed = scene.join(after="")
    scene.turns.settle()
    scene.relay.on_gap(Gap(1_729_593_000.0, 1_729_593_012.25, "broker away"), update_ids[1])
    scene.turns.settle()
    [gap] = [message["data"] for message in messages(stayed.received) if message["type"] == "gap"]
    assert gap == {
        "since": "2024-10-22T10:30:00.000Z",
        "until": "2024-10-22T10:30:12.250Z",
        "reason": "broker-away",
        "id": str(update_ids[1] or scene.hub.newest_id),
    }
    back = scene.join(after=gap["id"])
    scene.turns.settle()
    scene.deliver(killmail(2), update_id=update_ids[2])
    scene.turns.settle()
    resume, heartbeat, update = messages(back.received)
    assert resume["data"] == {"complete": True, "replayed": 0, "id": gap["id"]}
    assert (heartbeat["type"], heartbeat["data"]["id"]) == ("heartbeat", gap["id"])
    assert update["data"]["killmailId"] == 2


def test_debug_level_shows_the_outcome_of_each_delivery(tmp_path: Path) -> None:
    logging.getLogger("bridge.relay").setLevel(logging.DEBUG)
    try:
        scene = RelayScene(tmp_path, {"killmails": "killmail"})
    finally:
        logging.getLogger("bridge.relay").setLevel(logging.NOTSET)
    with structlog.testing.capture_logs() as logged:
        scene.deliver_read(killmail(1), killmail(1), b"poison")
    relayed = [line for line in logged if line["event"] == "relayed"]
    assert [line["outcome"] for line in relayed] == ["update", "duplicate", "not-json"]


def test_debug_level_shows_the_id_that_clients_receive(tmp_path: Path) -> None:
    logging.getLogger("bridge.relay").setLevel(logging.DEBUG)
    try:
        scene = RelayScene(tmp_path, {"killmails": "killmail"})
    finally:
        logging.getLogger("bridge.relay").setLevel(logging.NOTSET)
    with_ids = scene.join(after="")
    scene.turns.settle()
    with structlog.testing.capture_logs() as logged:
        scene.deliver_read(killmail(1), killmail(2), killmail(2))
    scene.turns.settle()
    received = [message["id"] for message in messages(with_ids.received) if message["type"] == "killmail"]
    assert len(received) == 2
    assert [line.get("id") for line in logged if line["event"] == "relayed"] == [*received, None]


def test_other_levels_show_nothing_of_a_delivery(scene: RelayScene) -> None:
    with structlog.testing.capture_logs() as logged:
        scene.deliver_read(killmail(1), killmail(1))
    assert logged == []
