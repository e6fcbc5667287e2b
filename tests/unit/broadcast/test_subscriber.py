"""Tests of a connection's states: each transition in TRANSITIONS with its real trigger, and events in any order."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from structlog.testing import capture_logs

from bridge.broadcast import join_storm, live_set
from bridge.broadcast.catch_up import CATCH_UP_BYTES
from bridge.broadcast.close_reasons import CloseReason
from bridge.broadcast.framing import Form
from bridge.broadcast.join_storm import MAX_JOINS
from bridge.broadcast.replay import SEGMENT_UPDATES
from bridge.broadcast.subscriber import TRANSITIONS, Action, ConnectionEvent, State
from bridge.contract.filters import After, SubscribeRequest
from bridge.contract.update_id import UpdateId
from tests.support.clients import server_frames
from tests.support.examples import examples
from tests.support.fakes import FakeSubscriber, Scene, SocketSubscriber, ignore, update

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

LITTLE_ROOM = 1
"""The requested buffer size of a socket. The kernel makes the buffer larger than requested: 4608 bytes."""

TAG = 7

ROWS = [(state, event) for state, steps in TRANSITIONS.items() for event in steps]
OTHERS = [(state, event) for state in State for event in ConnectionEvent if event not in TRANSITIONS[state]]


def name(value: object) -> str:
    return value.name if isinstance(value, State | ConnectionEvent) else str(value)


class RecordingSteps(dict[ConnectionEvent, Any]):
    """The transitions of one state. This dict records each event that is looked up in it."""

    def __init__(
        self, state: State, steps: Mapping[ConnectionEvent, Any], record: list[tuple[State, ConnectionEvent]]
    ) -> None:
        super().__init__(steps)
        self._state, self._record = state, record

    def __getitem__(self, event: ConnectionEvent) -> Any:
        self._record.append((self._state, event))
        return super().__getitem__(event)


def record(scene: Scene) -> list[tuple[State, ConnectionEvent]]:
    """Returns a list. Each event of a connection is appended to the list, with the state in which it occurs."""
    events: list[tuple[State, ConnectionEvent]] = []
    scene.hub._table = {state: RecordingSteps(state, steps, events) for state, steps in scene.hub._table.items()}
    return events


class FullAtHeartbeat(FakeSubscriber):
    """A connection whose socket takes everything until a heartbeat, of which it takes only a part."""

    def send(self, *frames: bytes | memoryview) -> int:
        self.full = b'"heartbeat"' in b"".join(frames)
        return super().send(*frames)


class Stage(Scene):
    """A scene with one client, which a test puts into a state."""

    def __init__(self) -> None:
        super().__init__(200_000, shared=True, replaying=True, storms=True)
        self.events = record(self)
        self.next = 1

    def send(self, count: int, size: int = 0) -> None:
        """Publishes updates with ids, and flushes."""
        for _ in range(count):
            self.hub.publish(update(self.next, size=size), ("a", {}), UpdateId(self.next, TAG))
            self.next += 1
        self.hub.flush()

    def start(self) -> None:
        """Publishes some updates, so that clients can resume after one of them, and ends the replay."""
        self.send(2 * SEGMENT_UPDATES)
        self.hub.end_replay()

    def client(self, state: State, event: ConnectionEvent) -> FakeSubscriber:
        """Returns a client in a state in which the test will cause `event`."""
        if state is State.PENDING and event is ConnectionEvent.START:
            return self.join("")
        self.start()
        if event is ConnectionEvent.PARTIAL_WRITE:
            return self.join_with_socket(LITTLE_ROOM)
        match state:
            case State.NEW:
                return FakeSubscriber(self.hub)
            case State.PENDING:
                return self.join(str(UpdateId(self.next + 1, TAG)))
            case State.RESUMING:
                return self.join(str(UpdateId(1, TAG)))
            case State.CATCHING_UP if event is ConnectionEvent.REACHED_HEAD:
                reaching = FullAtHeartbeat(self.hub)
                self.join_after(reaching, str(UpdateId(1, TAG)))
                self.turns.turn()
                return reaching
            case State.CATCHING_UP:
                client = self.join(
                    str(UpdateId(1, TAG)), full=event in {ConnectionEvent.DRAINED, ConnectionEvent.OVERTAKEN}
                )
                self.turns.turn()
                return client
            case State.LIVE:
                return self.join()
            case State.LAGGING:
                client = self.join(full=True)
                self.send(1)
                return client
            case State.CLOSING if event is ConnectionEvent.OVERTAKEN:
                client = self.join_with_socket(LITTLE_ROOM)
                self.send(1, size=100_000)
                client.close(CloseReason.IDLE)
                return client
            case State.CLOSING:
                client = self.join()
                client.close(CloseReason.IDLE)
                return client
            case State.CLOSED:
                client = self.join()
                self.hub.leave(client)
                return client

    def join_after(self, client: FakeSubscriber, after: str | None) -> None:
        request = SubscribeRequest(None, None if after is None else After.parse(after))
        self.hub.join(client, request, Form.TEXT if after is None else Form.TEXT_WITH_ID)

    def join_in_storm(self, client: FakeSubscriber) -> None:
        for _ in range(MAX_JOINS):
            self.join()
        if client.state is State.NEW:
            self.hub.join(client)
        else:
            self.join()
            self.turns.settle()

    def trigger(self, client: FakeSubscriber, event: ConnectionEvent) -> None:
        """Causes an event of the client's connection."""
        known, ahead = str(UpdateId(1, TAG)), str(UpdateId(self.next + 1, TAG))
        triggers: dict[ConnectionEvent, Callable[[], object]] = {
            ConnectionEvent.JOIN: lambda: self.hub.join(client),
            ConnectionEvent.HOLD: lambda: self.join_in_storm(client),
            ConnectionEvent.DEFER: lambda: self.join_after(client, ahead),
            ConnectionEvent.RESUME_SENT: self.turns.turn,
            ConnectionEvent.REACHED_HEAD: self.turns.settle,
            ConnectionEvent.CAUGHT_UP: self.turns.settle,
            ConnectionEvent.PARTIAL_WRITE: lambda: self.send(1, size=50_000),
            ConnectionEvent.POSTPONED: lambda: self.send(1, size=CATCH_UP_BYTES),
            ConnectionEvent.CONGESTED: lambda: self.hub.congested(client),
            ConnectionEvent.DRAINED: client.drain,
            ConnectionEvent.OVERTAKEN: lambda: self.send(2, size=150_000),
            ConnectionEvent.STOP: lambda: self.hub.drain(ignore),
            ConnectionEvent.CLOSE: lambda: client.close(CloseReason.IDLE),
            ConnectionEvent.LEAVE: lambda: self.hub.leave(client),
        }
        if event is ConnectionEvent.CAUGHT_UP and client.congested:
            client.drain()
        if event is ConnectionEvent.START:
            if client.state is State.NEW:
                self.join_after(client, "")
            else:
                self.start()
        elif event is ConnectionEvent.RESUME:
            if client.state is State.NEW:
                self.join_after(client, known)
            else:
                self.send(2)
        else:
            triggers[event]()


@pytest.fixture
def stage() -> Iterator[Stage]:
    with closing(Stage()) as stage:
        yield stage


@pytest.mark.parametrize(("state", "event"), ROWS, ids=name)
def test_row_of_the_table_is_triggered(stage: Stage, state: State, event: ConnectionEvent) -> None:
    client = stage.client(state, event)
    assert client.state is state
    seen = len(stage.events)
    after: list[State] = []
    steps = stage.hub._table[state]
    assert isinstance(steps, RecordingSteps)
    steps[event] = spied(steps.get(event), client, after)
    stage.trigger(client, event)
    assert (state, event) in stage.events[seen:]
    assert after[0] is TRANSITIONS[state][event].to


def spied(row: Any, client: FakeSubscriber, after: list[State]) -> Any:
    """Returns a transition that first appends the client's new state to `after`, and then runs the actions of `row`."""
    leave, state, calls = row
    return leave, state, (lambda _: after.append(client.state), *calls)


class ResettableSubscriber(FakeSubscriber):
    """A client. The test allows the hub to reset the client's connection at any time."""

    def reset(self) -> None:
        self.was_reset = True


@pytest.mark.parametrize(("state", "illegal"), OTHERS, ids=name)
def test_illegal_event_resets_its_connection_and_no_other(
    stage: Stage, state: State, illegal: ConnectionEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeSubscriber, "reset", ResettableSubscriber.reset)
    client = stage.client(state, ConnectionEvent.CAUGHT_UP)
    other = stage.join()
    count = len(stage.hub)
    with capture_logs() as logs:
        stage.hub._dispatch(client, illegal)
    assert logs == [
        {
            "log_level": "error",
            "event": "connection reset after an event that is illegal in its state",
            "peer": client.peer,
            "state": state.name.lower(),
            "cause": illegal.name.lower(),
        }
    ]
    assert (client.was_reset, client.state) == (True, State.CLOSED)
    joined = state in {State.PENDING, State.RESUMING, State.CATCHING_UP, State.LIVE, State.LAGGING}
    assert len(stage.hub) == count - joined
    assert collections(stage, client) == set()
    written = len(client.writes)
    stage.send(1)
    stage.turns.settle()
    assert len(client.writes) == written
    assert numbers(other)[-1] == stage.next - 1


def test_connection_whose_reset_raises_after_an_illegal_event_is_forgotten(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = stage.client(State.LIVE, ConnectionEvent.CLOSE)

    def fail(_: FakeSubscriber) -> None:
        raise RuntimeError("again")

    monkeypatch.setattr(FakeSubscriber, "reset", fail)
    stage.hub._dispatch(client, ConnectionEvent.JOIN)
    assert (client.state, len(stage.hub)) == (State.CLOSED, 0)


@pytest.mark.parametrize("after", [None, "", "1-00000007"], ids=["without ids", "from now on", "resume"])
def test_connection_that_joins_twice_is_reset(stage: Stage, monkeypatch: pytest.MonkeyPatch, after: str | None) -> None:
    monkeypatch.setattr(FakeSubscriber, "reset", ResettableSubscriber.reset)
    stage.start()
    client = stage.join(after)
    stage.join_after(client, after)
    assert (client.was_reset, client.state, len(stage.hub)) == (True, State.CLOSED, 0)
    stage.turns.settle()
    assert (stage.hub.lagging, stage.hub.pending) == (0, 0)


def test_every_state_event_and_action_is_in_the_table() -> None:
    steps = [step for each in TRANSITIONS.values() for step in each.values()]
    assert set(TRANSITIONS) == set(State)
    assert {event for each in TRANSITIONS.values() for event in each} == set(ConnectionEvent)
    assert {action for step in steps for action in step.actions} == set(Action)
    assert {step.to for step in steps} == set(State)


def test_closed_is_the_end() -> None:
    assert all(step.to is State.CLOSED for step in TRANSITIONS[State.CLOSED].values())
    assert all(
        step.to is not State.NEW for state in State if state is not State.NEW for step in TRANSITIONS[state].values()
    )


# The trace


def test_nothing_is_traced_by_default(stage: Stage) -> None:
    with capture_logs() as logs:
        stage.client(State.CLOSED, ConnectionEvent.LEAVE)
    assert logs == []


# Events in any order


def collections(scene: Scene, client: FakeSubscriber) -> set[State]:
    """The hub has a collection of clients for each state. Returns the states whose collections contain the client."""
    hub = scene.hub
    found = {
        State.PENDING: client in hub._resume.pending.waits,
        State.RESUMING: client in hub._resume._resuming,
        State.CATCHING_UP: client in hub._catch_up.catching_up,
        State.LAGGING: client in hub._catch_up.lagging,
        State.CLOSING: client in hub._catch_up.closing,
        State.LIVE: any(client in tuple(each.live) for each in hub._subscriptions),
    }
    return {state for state, holds in found.items() if holds}


def numbers(client: FakeSubscriber) -> list[int]:
    """Returns the numbers of the updates that a client has received completely."""
    texts = [orjson.loads(payload) for opcode, payload in server_frames(client.received) if opcode == 1]
    return [text["data"]["n"] for text in texts if text["type"] == "a"]


class Client:
    """A client, and the client's state in the model."""

    def __init__(self, connection: FakeSubscriber, first: int | None) -> None:
        self.connection = connection
        self.first = first
        """The number of the first update that the client must receive, or None before its `resume` arrives."""
        self.state = State.NEW

    def expected(self, flushed: int) -> list[int]:
        """Returns the numbers of the flushed updates that the client must receive."""
        if self.first is None:
            resumed = [orjson.loads(payload) for _, payload in server_frames(self.connection.received)[:1]]
            if not resumed:
                return []
            assert resumed[0]["type"] == "resume"
            after = UpdateId.parse(resumed[0]["data"]["id"])
            assert after is not None
            self.first = max(1, after.sequence + (not after.before))
        return list(range(self.first, flushed + 1))


@settings(max_examples=examples(80), stateful_step_count=40)
class AnyOrder(RuleBasedStateMachine):
    """Clients with and without ids. Any event can happen to the connections of the clients.

    The model applies TRANSITIONS to each event that the hub traces. The update with the number n has the sequence
    number n.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scene = Scene(60_000, shared=True, trace=self, storms=True)
        self.clients: dict[FakeSubscriber, Client] = {}
        self.next = 1
        self.stopped = False
        self._many = live_set.MIN_BATCHED_SOCKETS
        self._group = live_set.GROUP_SOCKETS, live_set.ENCRYPTED_BYTES
        self._max_joins = join_storm.MAX_JOINS

    @initialize(many=st.sampled_from([1, 1000]), group=st.sampled_from([1, 3, 512]), joins=st.sampled_from([1, 3, 512]))
    def limits_are_small_or_large(self, many: int, group: int, joins: int) -> None:
        live_set.MIN_BATCHED_SOCKETS, join_storm.MAX_JOINS = many, joins
        live_set.GROUP_SOCKETS, live_set.ENCRYPTED_BYTES = group, group * 1000

    def on_transition(self, connection: Any, *, before: State, event: ConnectionEvent) -> None:
        """Moves the client to the state that TRANSITIONS has for the event.

        The first event of a client adds the client to the model.
        """
        client = self.clients.setdefault(connection, Client(connection, None))
        assert client.state is before
        client.state = TRANSITIONS[before][event].to

    def on_flush(self, flushed: int, live: int) -> None:
        """Does nothing, because the model does not use flushes."""

    @property
    def flushed(self) -> int:
        return self.scene.log.flushed

    @rule(size=st.sampled_from([0, 100, 3000, 9000, 20_000]), times=st.integers(1, 8), flush=st.booleans())
    def publish(self, size: int, times: int, *, flush: bool) -> None:
        for _ in range(times):
            self.scene.hub.publish(update(self.next, size=size), ("a", {}), UpdateId(self.next, TAG))
            self.next += 1
        if flush:
            self.scene.hub.flush()

    @rule()
    def flush(self) -> None:
        self.scene.hub.flush()

    @rule(steps=st.sampled_from([None, 1, 2, 5]))
    def end_turns_after(self, steps: int | None) -> None:
        self.scene.turn.steps = steps

    @precondition(lambda self: len(self.clients) < 12 and not self.stopped)
    @rule(room_bytes=st.sampled_from([0, LITTLE_ROOM, 20_000]), full=st.booleans())
    def join(self, room_bytes: int, *, full: bool) -> None:
        first = self.flushed + 1
        joined = self.scene.join_with_socket(room_bytes) if room_bytes else self.scene.join(full=full)
        self.clients[joined].first = first

    @precondition(lambda self: len(self.clients) < 12 and not self.stopped)
    @rule(back=st.sampled_from([None, -3, -1, 0, 1, 5, 1000]), full=st.booleans())
    def resume(self, back: int | None, *, full: bool) -> None:
        after = "" if back is None else str(UpdateId(max(0, self.next - 1 - back), TAG if back != 5 else 8))
        self.scene.join(after, full=full)

    @rule(which=st.integers(0, 11), full=st.booleans())
    def fill(self, which: int, *, full: bool) -> None:
        for connection in self.chosen(which):
            connection.full = full and connection.descriptor is None

    @rule(which=st.integers(0, 11), full=st.booleans())
    def drain(self, which: int, *, full: bool) -> None:
        for connection in self.chosen(which):
            if isinstance(connection, SocketSubscriber):
                connection.read()
            if connection.congested:
                connection.drain(full=full)

    @rule(which=st.integers(0, 11))
    def close(self, which: int) -> None:
        for connection in self.chosen(which):
            if connection.closed is None and connection.state is not State.CLOSED:
                connection.close(CloseReason.IDLE)

    @rule(which=st.integers(0, 11))
    def leave(self, which: int) -> None:
        for connection in self.chosen(which):
            self.scene.hub.leave(connection)

    @rule(which=st.integers(0, 11))
    def break_transport(self, which: int) -> None:
        for connection in self.chosen(which):
            connection.fault = RuntimeError("the transport is gone")

    @rule()
    def tick(self) -> None:
        self.scene.hub.tick()

    @rule()
    def turn(self) -> None:
        self.scene.turns.turn()

    @rule()
    def end_window(self) -> None:
        self.scene.turns.end_timers()

    @precondition(lambda self: len(self.clients) > 3)
    @rule()
    def stop(self) -> None:
        self.scene.hub.drain(ignore)
        self.stopped = True

    def chosen(self, which: int) -> list[FakeSubscriber]:
        return list(self.clients)[which : which + 1]

    @invariant()
    def state_is_that_of_the_table(self) -> None:
        for connection, client in self.clients.items():
            assert connection.state is client.state

    @invariant()
    def each_connection_is_in_the_collection_of_its_state_alone(self) -> None:
        for connection in self.clients:
            state = connection.state
            held = state is not State.CLOSED and (state is not State.CLOSING or connection.offset > 0)
            assert collections(self.scene, connection) == ({state} if held else set())

    @invariant()
    def collections_hold_nothing_else(self) -> None:
        hub = self.scene.hub
        states = [connection.state for connection in self.clients]
        joined = [state for state in states if state not in {State.CLOSING, State.CLOSED}]
        assert len(hub) == len(joined) == sum(1 for _ in hub._connections())
        assert hub.pending == states.count(State.PENDING)
        assert hub.lagging == len(joined) - states.count(State.PENDING) - states.count(State.LIVE)
        assert sum(each.lagging_count for each in hub._subscriptions) == states.count(State.LAGGING)
        due = {connection for rank in hub._catch_up._due for connection in rank}
        reading = {State.RESUMING, State.CATCHING_UP, State.LAGGING, State.CLOSING}
        assert all(connection.state in reading for connection in due)

    @invariant()
    def live_connections_have_all_updates_and_others_a_part_of_them(self) -> None:
        for connection, client in self.clients.items():
            expected, received = client.expected(self.flushed), numbers(connection)
            assert received == expected[: len(received)]
            if connection.state is State.LIVE and not isinstance(connection, SocketSubscriber):
                members = connection.subscription.live.tls_sockets
                served = connection.slot < members.served
                assert received == (expected if served else client.expected(self.scene.log.flush_start))
                assert not connection.congested
            if connection.state in {State.PENDING, State.RESUMING}:
                assert connection.received == b""

    def teardown(self) -> None:
        live_set.MIN_BATCHED_SOCKETS, join_storm.MAX_JOINS = self._many, self._max_joins
        live_set.GROUP_SOCKETS, live_set.ENCRYPTED_BYTES = self._group
        with closing(self.scene):
            for _ in range(400):
                self.scene.turns.end_timers()
                self.scene.hub.flush()
                self.scene.turns.settle()
                self.scene.hub.tick()
                self.scene.turns.settle()
                for connection in self.clients:
                    if isinstance(connection, SocketSubscriber):
                        connection.read()
                    if connection.congested and not connection.was_reset:
                        connection.drain()
            for connection, client in self.clients.items():
                assert connection.state in {State.LIVE, State.CLOSING, State.CLOSED}
                if connection.state is State.LIVE:
                    assert not self.stopped
                    assert numbers(connection) == client.expected(self.flushed)


test_connection_is_always_in_one_state_and_receives_the_updates_of_this_state = AnyOrder.TestCase
