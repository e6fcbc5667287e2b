"""Clients whose update is still to come: when each is ready, and that none waits for ever."""

from __future__ import annotations

from typing import cast

import pytest

from bridge.broadcast.replay import ReplayIndex
from bridge.broadcast.subscriber import Subscriber
from bridge.broadcast.update_log import UpdateLog
from bridge.broadcast.waiting import PendingResumes
from bridge.contract.filters import After
from bridge.contract.update_id import UpdateId

AHEAD = After.parse("99-00000001")


def client() -> Subscriber:
    """Only its identity matters here."""
    return cast("Subscriber", object())


class CountingHistory(ReplayIndex):
    """A shared history that counts how often it is asked whether an id is ahead."""

    def __init__(self) -> None:
        super().__init__(UpdateLog(2**20))
        self.asked = 0

    def is_ahead(self, sought: UpdateId) -> bool:
        self.asked += 1
        return super().is_ahead(sought)

    def give(self, *numbers: int) -> None:
        for number in numbers:
            self.append(b"frame", UpdateId(number, 1))


@pytest.fixture
def history() -> CountingHistory:
    return CountingHistory()


@pytest.fixture
def waiting(history: CountingHistory) -> PendingResumes:
    return PendingResumes(history, reads_back=False)


def test_client_keeps_waiting_when_the_source_goes_away_between_two_ticks(waiting: PendingResumes) -> None:
    one = client()
    assert waiting.defer(one, AHEAD)
    waiting.tick(fed=True)
    waiting.tick(fed=False)
    assert waiting.ready() == []
    waiting.tick(fed=True)
    assert waiting.ready() == [], "a tick without a source starts the wait again"
    waiting.tick(fed=True)
    assert waiting.ready() == [(one, AHEAD)]
    assert len(waiting) == 0


def test_ticks_do_not_count_while_older_updates_are_read_back(history: CountingHistory) -> None:
    waiting = PendingResumes(history, reads_back=True)
    one = client()
    assert waiting.defer(one, AHEAD)
    waiting.tick(fed=True)
    waiting.reads_back = False
    assert waiting.ready() == []
    waiting.tick(fed=True)
    assert waiting.ready() == []
    waiting.tick(fed=True)
    assert waiting.ready() == [(one, AHEAD)]


def test_client_that_is_forgotten_is_never_ready(waiting: PendingResumes) -> None:
    gone, stays = client(), client()
    for each in (gone, stays):
        assert waiting.defer(each, AHEAD)
    waiting.tick(fed=True)
    waiting.forget(gone)
    assert list(waiting) == [stays]
    waiting.tick(fed=True)
    assert waiting.ready() == [(stays, AHEAD)]
    waiting.forget(stays)


@pytest.mark.parametrize("after", ["nonsense", ""])
def test_client_with_an_id_that_is_none_does_not_wait(waiting: PendingResumes, after: str) -> None:
    assert not waiting.defer(client(), After.parse(after))


def test_each_client_is_ready_as_soon_as_its_own_update_has_come(
    waiting: PendingResumes, history: CountingHistory
) -> None:
    history.give(1)
    clients = {number: client() for number in (9, 3, 6)}
    for number, each in clients.items():
        assert waiting.defer(each, After.parse(f"{number}-00000001"))
    for number in (3, 6, 9):
        history.give(number - 1)
        assert waiting.ready() == []
        history.give(number)
        assert waiting.ready() == [(clients[number], After.parse(f"{number}-00000001"))]


def test_clients_are_not_looked_through_before_an_update_of_theirs_may_have_come(
    waiting: PendingResumes, history: CountingHistory
) -> None:
    for number in (50, 60):
        assert waiting.defer(client(), After.parse(f"{number}-00000001"))
    history.asked = 0
    for number in range(1, 50):
        history.give(number)
        assert waiting.ready() == []
    assert history.asked == 0
    history.give(50)
    assert len(waiting.ready()) == 1
    asked = history.asked
    history.give(*range(51, 60))
    assert waiting.ready() == []
    assert history.asked == asked
