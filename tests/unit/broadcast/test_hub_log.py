"""Tests of the debug lines of the hub."""

from __future__ import annotations

from contextlib import closing

from structlog.testing import capture_logs

from bridge.broadcast import hub_log
from bridge.broadcast.catch_up import CATCH_UP_BYTES
from bridge.broadcast.close_reasons import CloseReason
from bridge.broadcast.hub_log import HubLog
from tests.support.fakes import Scene


def test_each_change_of_a_state_is_logged_with_the_cursor_if_one_is_used() -> None:
    scene = Scene(trace=HubLog())
    with capture_logs() as logged:
        client = scene.join(full=True)
        scene.publish(b"first")
        scene.publish(b"second")
        client.drain()
        scene.turns.settle()
        client.full = True
        scene.publish(b"third")
        client.close(CloseReason.IDLE)
        scene.hub.leave(client)
    changes = [each for each in logged if each["event"] == "connection state"]
    assert [(each["from"], each["to"], each["cause"], each.get("cursor")) for each in changes] == [
        ("new", "live", "join", None),
        ("live", "lagging", "congested", None),
        ("lagging", "live", "caught_up", None),
        ("live", "lagging", "congested", None),
        ("lagging", "closing", "close", 3),
        ("closing", "closed", "leave", None),
    ]
    assert {(each["log_level"], each["peer"]) for each in changes} == {("debug", client.peer)}


def test_each_flush_that_sends_something_is_one_line() -> None:
    with closing(Scene(trace=HubLog())) as scene:
        scene.join_with_socket()
        slow = scene.join_with_socket(1)
        with capture_logs() as logged:
            scene.publish(b"x" * 20_000, b"y")
            scene.publish(b"z")
            scene.publish()
        assert slow in scene.hub._catch_up.lagging
    flushes = [each for each in logged if each["event"] == "flush"]
    assert flushes == [
        {"event": "flush", "log_level": "debug", "positions": 2, "live": 1, "short_writes": 1, "postponed": 0},
        {"event": "flush", "log_level": "debug", "positions": 1, "live": 1, "short_writes": 0, "postponed": 0},
    ]


def test_flush_counts_the_connections_that_get_it_later() -> None:
    scene = Scene(trace=HubLog())
    scene.join()
    with capture_logs() as logged:
        scene.publish(b"x" * (CATCH_UP_BYTES + 1))
    [flush] = [each for each in logged if each["event"] == "flush"]
    assert (flush["positions"], flush["postponed"], flush["short_writes"]) == (1, 1, 0)


def test_lines_belong_to_a_logger_of_the_broadcast() -> None:
    assert hub_log.LOGGER == "bridge.broadcast"
