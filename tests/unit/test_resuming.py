"""Clients that come back: what each is told, what it costs the others, and that nothing of them stays."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import orjson
import pytest

from bridge.contract import envelope
from bridge.contract.ids import Id
from bridge.fanout.history import SEGMENT_UPDATES, History
from bridge.fanout.hub import Hub
from bridge.fanout.lagging import BUDGETS, LEAST_BYTES, RETURNING
from bridge.fanout.log import ENTRY_BYTES, Log
from bridge.fanout.resuming import Resuming
from bridge.metrics import Metrics
from tests.support.clients import server_frames
from tests.support.fakes import FakeSubscriber, Turns

NOW_MS = 1_700_000_000_000
CHECK = 7
PAYLOAD = envelope.wrap("a", 1, NOW_MS)


@dataclass(frozen=True, slots=True)
class Everything:
    """A filter that matches, once it was asked."""

    def matches(self, update_type: str, data: object) -> bool:
        return True


class Bridge:
    """A hub with a loop that is turned by hand, and the part of it that is tested, with the same log."""

    def __init__(self, room: int = 10_000, *, check: int | None = CHECK) -> None:
        """`room` is how many updates the log holds."""
        log_bytes = room * (ENTRY_BYTES + len(PAYLOAD) + 2)
        self.turns = Turns()
        self.history = History(Log(log_bytes), check)
        self.hub = Hub(self.history, Metrics(), self.turns.call_soon, log_bytes, lambda: NOW_MS)
        self.told: list[tuple[bool, int]] = []
        self.resuming = Resuming(self.history, lambda: NOW_MS, lambda *told: self.told.append(told))

    def publish(self, count: int) -> None:
        for _ in range(count):
            given = None if self.history._check is not None else Id(self.history.log.head + 1, CHECK)
            self.hub.publish(PAYLOAD, given=given)
        self.hub.flush()

    def message(self, client: FakeSubscriber) -> dict[str, object] | None:
        """What a client is told; None where it has to wait for another turn."""
        frame = self.resuming.message(client, self.history.log.head)
        if frame is None:
            return None
        [(_, payload)] = server_frames(frame)
        data: dict[str, object] = orjson.loads(payload)["data"]
        return data


def test_client_is_told_once_all_segments_were_counted() -> None:
    bridge = Bridge()
    bridge.publish(3 * SEGMENT_UPDATES)
    client = FakeSubscriber(bridge.hub)
    bridge.resuming.begin(client, Everything(), str(Id(10, CHECK)))
    assert [bridge.message(client) for _ in range(2)] == [None, None]
    assert client in bridge.resuming
    count = 3 * SEGMENT_UPDATES - 10
    assert bridge.message(client) == {"complete": True, "replayed": count, "id": str(Id(10, CHECK))}
    assert bridge.told == [(True, count)]
    assert client not in bridge.resuming


def test_client_that_is_overtaken_while_it_is_counted_begins_again_once_and_then_at_the_end() -> None:
    room = 3 * SEGMENT_UPDATES
    bridge = Bridge(room)
    bridge.publish(room)
    client = FakeSubscriber(bridge.hub)
    bridge.resuming.begin(client, Everything(), str(Id(1, CHECK)))
    assert bridge.message(client) is None
    bridge.publish(room)
    assert bridge.message(client) is None
    log = bridge.history.log
    assert log.tail <= client.cursor < log.head, "it begins again at what is kept"
    bridge.publish(room)
    assert bridge.message(client) == {"complete": False, "replayed": 0, "id": str(Id(log.head, CHECK))}
    assert client.cursor == log.head
    assert bridge.told == [(False, 0)]


def test_client_that_is_overtaken_is_told_only_what_it_still_gets() -> None:
    room = 3 * SEGMENT_UPDATES
    bridge = Bridge(room)
    bridge.publish(room)
    client = FakeSubscriber(bridge.hub)
    bridge.resuming.begin(client, Everything(), str(Id(1, CHECK)))
    assert bridge.message(client) is None
    bridge.publish(100)
    data = None
    while data is None:
        data = bridge.message(client)
    assert data == {
        "complete": False,
        "replayed": bridge.history.log.head - client.cursor,
        "id": str(Id(client.cursor, CHECK)),
    }


def test_client_that_is_forgotten_is_counted_no_more() -> None:
    bridge = Bridge()
    client = FakeSubscriber(bridge.hub)
    bridge.resuming.begin(client, None, "")
    assert list(bridge.resuming) == [client]
    bridge.resuming.forget(client)
    assert list(bridge.resuming) == []


def test_clients_that_come_back_to_nothing_new_count_too_in_a_turn() -> None:
    bridge = Bridge()
    bridge.publish(1)
    clients = [FakeSubscriber(bridge.hub) for _ in range(2 * BUDGETS[RETURNING] // LEAST_BYTES)]
    for client in clients:
        bridge.hub.join(client, None, str(Id(1, CHECK)))
    bridge.turns.turn()
    assert sum(bool(client.writes) for client in clients) == BUDGETS[RETURNING] // LEAST_BYTES
    bridge.turns.settle()
    assert all(len(client.writes) == 1 for client in clients)


@pytest.mark.parametrize("state", ["live", "live with ids", "lagging", "congested", "counting", "due", "pending"])
@pytest.mark.parametrize("filtered", [False, True])
def test_client_that_left_is_garbage_collected(state: str, *, filtered: bool) -> None:
    bridge = Bridge(check=None)
    bridge.publish(3 * SEGMENT_UPDATES)
    client = FakeSubscriber(bridge.hub)
    client.congested = state == "congested"
    client.full = state == "lagging"
    old, ahead = str(Id(1, CHECK)), str(Id(10**6, CHECK))
    after = {"live with ids": "", "counting": old, "due": old, "pending": ahead}.get(state)
    bridge.hub.join(client, Everything() if filtered else None, after)
    bridge.publish(1)
    if state == "counting":
        bridge.turns.turn()
    if state == "pending":
        bridge.hub.tick()
        assert bridge.hub.waiting == 1
    bridge.hub.leave(client)
    assert (len(bridge.hub), bridge.hub.lagging, bridge.hub.waiting) == (0, 0, 0)
    gone = weakref.ref(client)
    del client
    bridge.turns.settle()
    assert gone() is None
