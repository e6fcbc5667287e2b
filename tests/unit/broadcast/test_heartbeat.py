"""Tests when a client with ids gets a heartbeat, and which id and state of the broker the heartbeat has."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import orjson
import pytest

from bridge.broadcast.framing import Form
from bridge.broadcast.heartbeat import CHECKS, MAX_CHECK_INTERVAL_S
from bridge.broadcast.hub import HEARTBEATS_PER_ROUND
from bridge.broadcast.subscriber import State
from bridge.contract import envelope
from bridge.contract.update_id import UpdateId
from tests.support.clients import CLOSE, server_frames
from tests.support.fakes import NOW_MS, TAG, FakeSubscriber, Scene

if TYPE_CHECKING:
    from collections.abc import Iterator

INTERVAL_S = 30.0


class Nothing:
    """A filter that matches no update."""

    def matches(self, update_type: str, data: object) -> bool:
        return False


@pytest.fixture
def scene() -> Iterator[Scene]:
    with closing(Scene(heartbeat_s=INTERVAL_S)) as scene:
        yield scene


def messages(client: FakeSubscriber) -> list[dict[str, Any]]:
    return [orjson.loads(payload) for opcode, payload in server_frames(client.received) if opcode != CLOSE]


def kinds(client: FakeSubscriber) -> list[str]:
    return [message["type"] for message in messages(client)]


def heartbeat(after: str, *, consuming: bool = True) -> dict[str, Any]:
    return {"type": "heartbeat", "data": {"id": after, "consuming": consuming}, "timestamp": NOW_MS}


def crowd(scene: Scene, clients: int) -> list[FakeSubscriber]:
    """Adds many clients whose filter matches no update, and waits until none of them is held."""
    crowd = [scene.join("", Nothing()) for _ in range(clients)]
    end_storm(scene)
    return crowd


def end_storm(scene: Scene) -> None:
    for _ in range(3):
        scene.turns.end_timers()
        scene.turns.settle()


def lag(client: FakeSubscriber) -> None:
    """Fills the transport of a live client with bytes that are no message, such as a pong."""
    client.congested = True
    client.hub.congested(client)
    assert client.state is State.LAGGING


def pass_by(scene: Scene, seconds: float) -> None:
    """Moves the clock, and looks for due heartbeats."""
    scene.now_s += seconds
    scene.turns.end_timers()
    scene.turns.settle()


# The end of a replay


def test_heartbeat_follows_an_empty_replay_in_the_same_write(scene: Scene) -> None:
    scene.publish("a")
    client = scene.join("")
    assert kinds(client) == ["resume", "heartbeat"]
    assert messages(client)[1] == heartbeat("1-0000abcd")
    assert len(client.writes) == 1


def test_heartbeat_follows_the_last_update_of_a_replay(scene: Scene) -> None:
    scene.publish("a", "a", "a")
    client = scene.join("1-0000abcd")
    scene.turns.turn()
    scene.publish("a")
    scene.turns.settle()
    scene.publish("a")
    assert kinds(client) == ["resume", "a", "a", "a", "heartbeat", "a"]
    assert messages(client)[4] == heartbeat("4-0000abcd")


def test_client_without_ids_gets_no_heartbeat(scene: Scene) -> None:
    scene.publish("a")
    plain, backlog = scene.join(), scene.join(last=1)
    scene.turns.settle()
    pass_by(scene, INTERVAL_S)
    assert plain.received == b""
    assert kinds(backlog) == ["a"]


def test_heartbeat_at_the_end_of_a_replay_is_sent_once_to_a_full_socket(scene: Scene) -> None:
    client = scene.join("", full=True)
    assert client.congested
    scene.publish("a")
    client.drain()
    scene.turns.settle()
    assert kinds(client) == ["resume", "heartbeat", "a"]


def test_client_that_leaves_at_its_first_write_gets_no_further_event(scene: Scene) -> None:
    client = FakeSubscriber(scene.hub)
    client.leaves = True
    scene.hub.join(client, form=Form.TEXT_WITH_ID)
    assert client.state is State.CLOSED


def test_heartbeat_is_sent_before_a_connection_is_held_in_a_storm() -> None:
    with closing(Scene(storms=True)) as scene:
        clients = [scene.join("") for _ in range(30)]
        assert clients[-1].state is State.LAGGING
        assert all(kinds(client) == ["resume", "heartbeat"] for client in clients)
        scene.publish("a")
        end_storm(scene)
        assert all(kinds(client) == ["resume", "heartbeat", "a"] for client in clients)


def test_event_stream_gets_the_same_bytes_in_blocks(scene: Scene) -> None:
    stream, socket = scene.join_with_socket(form=Form.EVENT), scene.join("")
    scene.publish("a")
    scene.hub.send_own_message(lambda gap_id: envelope.gap("then", "now", "reason", gap_id, NOW_MS))
    scene.turns.settle()
    stream.read()
    ids = ["0-0000abcd", "0-0000abcd", "1-0000abcd", "2-0000abcd"]
    payloads = [payload.decode() for _, payload in server_frames(socket.received)]
    blocks = [f"id: {each}\ndata: {payload}\n\n" for each, payload in zip(ids, payloads, strict=True)]
    assert stream.received.decode() == "".join(blocks)


# The interval


@pytest.mark.parametrize("interval_s", [0.5, INTERVAL_S])
def test_checks_are_close_together(interval_s: float) -> None:
    with closing(Scene(heartbeat_s=interval_s)) as scene:
        delays: list[float] = []
        scene.hub._heartbeats._call_later = lambda delay_s, _: delays.append(delay_s)
        scene.join("")
        scene.join("")
        assert delays == [min(interval_s / CHECKS, MAX_CHECK_INTERVAL_S)]


def test_silent_client_gets_a_heartbeat_after_each_interval(scene: Scene) -> None:
    client = scene.join("")
    pass_by(scene, INTERVAL_S - 1)
    assert kinds(client) == ["resume", "heartbeat"]
    pass_by(scene, 1)
    assert kinds(client) == ["resume", "heartbeat", "heartbeat"]
    pass_by(scene, INTERVAL_S - 1)
    pass_by(scene, 1)
    assert kinds(client) == ["resume", "heartbeat", "heartbeat", "heartbeat"]


def test_interval_of_zero_means_no_heartbeat_except_after_a_replay() -> None:
    with closing(Scene()) as scene:
        client = scene.join("")
        pass_by(scene, 10 * INTERVAL_S)
        assert kinds(client) == ["resume", "heartbeat"]


@pytest.mark.parametrize("own_message", [False, True], ids=["update", "own message"])
def test_interval_begins_again_with_each_message(scene: Scene, *, own_message: bool) -> None:
    client = scene.join("")
    pass_by(scene, INTERVAL_S - 1)
    if own_message:
        scene.hub.send_own_message(lambda _: b'{"type":"gap"}')
    else:
        scene.publish("a")
    pass_by(scene, INTERVAL_S - 1)
    assert kinds(client).count("heartbeat") == 1
    pass_by(scene, 1)
    assert kinds(client).count("heartbeat") == 2


def test_filtered_client_gets_the_newest_id_while_others_get_updates(scene: Scene) -> None:
    filtered, other = scene.join("", Nothing()), scene.join("")
    scene.publish("a", "a")
    pass_by(scene, INTERVAL_S / 2)
    scene.publish("a")
    pass_by(scene, INTERVAL_S / 2)
    assert messages(filtered)[2:] == [heartbeat("3-0000abcd")]
    assert kinds(other).count("heartbeat") == 1


def test_each_client_of_a_subscription_has_its_own_interval(scene: Scene) -> None:
    first = scene.join("")
    pass_by(scene, 10)
    second = scene.join("")
    pass_by(scene, INTERVAL_S - 10)
    assert (kinds(first).count("heartbeat"), kinds(second).count("heartbeat")) == (2, 1)
    pass_by(scene, 10)
    assert (kinds(first).count("heartbeat"), kinds(second).count("heartbeat")) == (2, 2)


@pytest.mark.parametrize("searched", [False, True], ids=["lags before the search", "lags during the search"])
def test_client_that_lags_when_it_is_due_gets_its_heartbeat_when_it_is_live_again(
    scene: Scene, *, searched: bool
) -> None:
    first, client = scene.join(""), scene.join("")
    scene.now_s += INTERVAL_S
    if not searched:
        lag(client)
    scene.turn.steps = 1
    scene.turns.end_timers()
    if searched:
        assert (kinds(first).count("heartbeat"), kinds(client).count("heartbeat")) == (2, 1)
        lag(client)
    scene.turns.settle()
    client.drain()
    scene.turns.settle()
    assert kinds(client).count("heartbeat") == 1
    pass_by(scene, MAX_CHECK_INTERVAL_S)
    assert (kinds(first).count("heartbeat"), kinds(client).count("heartbeat")) == (2, 2)
    pass_by(scene, INTERVAL_S - 1)
    assert (kinds(first).count("heartbeat"), kinds(client).count("heartbeat")) == (3, 2)


def test_heartbeat_says_whether_the_bridge_consumes(scene: Scene) -> None:
    scene.source.is_consuming = False
    client = scene.join("")
    assert messages(client)[1] == heartbeat("0-0000abcd", consuming=False)
    scene.source.is_consuming = True
    pass_by(scene, INTERVAL_S)
    assert messages(client)[2] == heartbeat("0-0000abcd")


@pytest.mark.parametrize("state", [State.LAGGING, State.PENDING, State.RESUMING])
def test_only_live_clients_get_heartbeats(state: State) -> None:
    with closing(Scene(shared=True, heartbeat_s=INTERVAL_S)) as scene:
        scene.publish_with_ids(UpdateId(1, TAG))
        live, wanted = scene.join(""), Nothing()
        client = scene.join(
            str(UpdateId(9, TAG)) if state is State.PENDING else str(UpdateId(1, TAG)),
            wanted if state is State.RESUMING else None,
        )
        if state is State.LAGGING:
            scene.turns.settle()
            client.full = True
            scene.publish_with_ids(UpdateId(2, TAG))
        if state is State.RESUMING:
            client.congested = True
            scene.turns.settle()
        assert client.state is state
        before = kinds(client)
        pass_by(scene, INTERVAL_S)
        assert kinds(live)[-1] == "heartbeat"
        assert kinds(client) == before


def test_flush_that_fails_does_not_end_the_checks(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    client = scene.join("")
    with monkeypatch.context() as patch:
        patch.setattr(scene.hub._heartbeats, "_flush", Mock(side_effect=RuntimeError("a fault")))
        with pytest.raises(RuntimeError, match="a fault"):
            pass_by(scene, INTERVAL_S)
    pass_by(scene, 1)
    assert kinds(client) == ["resume", "heartbeat", "heartbeat"]


def test_checks_end_with_the_last_client_and_begin_with_the_next(scene: Scene) -> None:
    client, _ = scene.join(""), scene.join()
    pass_by(scene, 1)
    assert len(scene.turns.timers) > 0
    scene.hub.leave(client)
    pass_by(scene, 1)
    scene.turns.timers.clear()
    pass_by(scene, 1)
    other = scene.join("")
    pass_by(scene, INTERVAL_S)
    assert kinds(other).count("heartbeat") == 2


def test_heartbeat_that_does_not_fit_makes_the_client_lag(scene: Scene) -> None:
    client = scene.join("")
    client.full = True
    pass_by(scene, INTERVAL_S)
    assert client.state is State.LAGGING
    scene.publish("a")
    client.drain()
    scene.turns.settle()
    assert kinds(client) == ["resume", "heartbeat", "heartbeat", "a"]


def test_client_whose_transport_fails_at_a_heartbeat_leaves(scene: Scene) -> None:
    broken, failing, other = scene.join(""), scene.join(""), scene.join("")
    broken.fault = RuntimeError("gone")
    failing.leaves = True
    pass_by(scene, INTERVAL_S)
    assert (broken.state, failing.state) == (State.CLOSED, State.CLOSED)
    assert kinds(other).count("heartbeat") == 2


# Heartbeats and updates


def test_update_waits_for_a_few_heartbeats_at_most(scene: Scene) -> None:
    silent, reader = crowd(scene, 3 * HEARTBEATS_PER_ROUND), scene.join("")
    scene.now_s += INTERVAL_S
    scene.turn.steps = 1
    scene.turns.end_timers()
    scene.publish("a")
    while kinds(reader)[-1] != "a":
        assert scene.turns.turn()
    # In the turn of the update, one more heartbeat may follow.
    assert sum(kinds(client).count("heartbeat") - 1 for client in silent) <= HEARTBEATS_PER_ROUND + 1
    scene.turns.settle()
    assert all(kinds(client).count("heartbeat") == 2 for client in silent)


def test_heartbeats_are_sent_even_if_updates_always_wait(scene: Scene) -> None:
    silent = crowd(scene, 2 * HEARTBEATS_PER_ROUND)
    scene.now_s += INTERVAL_S
    scene.turn.steps = 1
    scene.turns.end_timers()
    for _ in range(10 * HEARTBEATS_PER_ROUND):
        scene.hub.publish(b'{"type":"a","data":{},"timestamp":1}')
        scene.hub.flush()
        scene.turns.turn()
    assert all(kinds(client).count("heartbeat") == 2 for client in silent)
    ids = [UpdateId.parse(messages(client)[-1]["data"]["id"]) for client in silent]
    assert all(each is not None and each.sequence <= scene.log.flushed for each in ids)


def test_client_that_gets_an_update_while_heartbeats_are_sent_needs_none(scene: Scene) -> None:
    silent, reader = crowd(scene, HEARTBEATS_PER_ROUND), scene.join("")
    scene.now_s += INTERVAL_S
    scene.turn.steps = 1
    scene.turns.end_timers()
    scene.publish("a")
    scene.turns.settle()
    assert all(kinds(client).count("heartbeat") == 2 for client in silent)
    assert kinds(reader) == ["resume", "heartbeat", "a"]


def test_client_that_leaves_while_heartbeats_are_sent_gets_none(scene: Scene) -> None:
    silent = [scene.join("") for _ in range(3)]
    scene.now_s += INTERVAL_S
    scene.turn.steps = 1
    scene.turns.end_timers()
    assert sum(kinds(client).count("heartbeat") for client in silent) == 4
    [left, _] = [client for client in silent if kinds(client).count("heartbeat") == 1]
    scene.hub.leave(left)
    scene.turns.settle()
    assert sorted(kinds(client).count("heartbeat") for client in silent) == [1, 2, 2]
    assert kinds(left).count("heartbeat") == 1
