"""Tests when items expire."""

from __future__ import annotations

from bridge.broadcast.deadlines import CHECK_S, Deadlines
from tests.support.fakes import Turns


class Scene:
    """Deadlines with a clock that the test moves."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.now_s = 1000.0
        self.expired: list[str] = []
        self.deadlines: Deadlines[str] = Deadlines(self.turns.call_later, lambda: self.now_s, self.on_expired)

    def on_expired(self, item: str) -> None:
        assert item not in tuple(self.deadlines)
        self.expired.append(item)

    def pass_by(self, seconds: float) -> list[str]:
        """Moves the clock, and returns the items that expire meanwhile."""
        self.now_s += seconds
        self.turns.end_timers()
        expired, self.expired = self.expired, []
        return expired


def test_items_expire_in_order_after_their_period() -> None:
    scene = Scene()
    scene.deadlines.add("a", 2.0)
    scene.deadlines.add("b", 1.0)
    scene.now_s += 0.5
    scene.deadlines.add("c", 2.0)
    assert len(scene.deadlines) == 3
    assert set(scene.deadlines) == {"a", "b", "c"}
    assert scene.pass_by(0.4) == []
    assert scene.pass_by(0.1) == ["b"]
    assert scene.pass_by(0.9) == []
    assert scene.pass_by(0.1) == ["a"]
    assert scene.pass_by(10) == ["c"]
    assert len(scene.deadlines) == 0


def test_discarded_item_does_not_expire() -> None:
    scene = Scene()
    for item in ("a", "b"):
        scene.deadlines.add(item, 1.0)
    scene.deadlines.discard("a", 1.0)
    scene.deadlines.discard("a", 1.0)
    scene.deadlines.discard("a", 3.0)
    assert list(scene.deadlines) == ["b"]
    assert scene.pass_by(1) == ["b"]
    scene.deadlines.discard("b", 1.0)


def test_one_timer_runs_only_while_there_are_items() -> None:
    scene = Scene()
    assert scene.turns.timers == []
    scene.deadlines.add("a", CHECK_S * 2)
    scene.deadlines.add("b", CHECK_S * 3)
    assert len(scene.turns.timers) == 1
    for _ in range(2):
        scene.pass_by(CHECK_S)
        assert len(scene.turns.timers) == 1
    assert scene.pass_by(CHECK_S) == ["b"]
    assert scene.turns.timers == []
    scene.deadlines.add("c", 1.0)
    assert len(scene.turns.timers) == 1


def test_item_may_be_added_and_discarded_while_items_expire() -> None:
    scene = Scene()

    def on_expired(item: str) -> None:
        scene.expired.append(item)
        deadlines.discard("b", 1.0)
        deadlines.add("c", 1.0)

    deadlines: Deadlines[str] = Deadlines(scene.turns.call_later, lambda: scene.now_s, on_expired)
    for item in ("a", "b"):
        deadlines.add(item, 1.0)
    assert scene.pass_by(1) == ["a"]
    assert list(deadlines) == ["c"]
    assert len(scene.turns.timers) == 1


def test_periods_that_are_over_are_forgotten() -> None:
    scene = Scene()
    for number in range(1, 100):
        scene.deadlines.add("a", float(number))
        scene.deadlines.discard("a", float(number))
    assert scene.deadlines._due_s == {}
