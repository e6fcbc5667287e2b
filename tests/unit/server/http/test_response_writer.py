"""Tests of a response to a slow client, with a clock that the test moves.

In the tests of a late check, the bridge was frozen for a while before the check.
"""

from __future__ import annotations

import asyncio

import pytest

from bridge.server.http.response_writer import LATE, MIN_READ_BYTES_PER_S, ResponseWriter
from bridge.server.transport import tcp
from tests.support.fakes import FakeTransport, ManualClock

TIMEOUT_S = 10.0
LEAST = int(MIN_READ_BYTES_PER_S * TIMEOUT_S)
RESPONSE = b"x" * (10 * LEAST)


class Response:
    """A response.

    This class counts the bytes that the client's kernel has acknowledged, and how often the response was aborted.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = ManualClock(monkeypatch)
        self.acknowledged = 0
        monkeypatch.setattr(tcp, "acknowledged_bytes", lambda _: self.acknowledged)
        self.cut = 0
        transport = FakeTransport(asyncio.get_running_loop().call_soon)
        self.writer = ResponseWriter(transport, RESPONSE, TIMEOUT_S, self._cut)

    def _cut(self) -> None:
        self.cut += 1


@pytest.fixture
async def response(monkeypatch: pytest.MonkeyPatch) -> Response:
    return Response(monkeypatch)


async def test_late_check_aborts_no_client_and_restarts_the_timeout(response: Response) -> None:
    # The client has read less than the minimum, because the stalled bridge gave the kernel no more data.
    response.acknowledged = LEAST - 1
    await response.clock.stall(3600.0)
    assert response.cut == 0
    await response.clock.advance(TIMEOUT_S - 0.1)
    assert response.cut == 0
    await response.clock.advance(0.1)
    assert response.cut == 1


async def test_client_that_reads_on_after_a_late_check_gets_its_response(response: Response) -> None:
    await response.clock.stall(3600.0)
    for _ in range(3):
        response.acknowledged += LEAST
        await response.clock.advance(TIMEOUT_S)
    assert response.cut == 0
    response.writer.stop()


async def test_check_that_is_a_little_late_aborts(response: Response) -> None:
    await response.clock.stall((1 + LATE) * TIMEOUT_S)
    assert response.cut == 1


async def test_checks_continue_although_each_is_a_little_late(response: Response) -> None:
    for _ in range(5):
        response.acknowledged += LEAST
        await response.clock.stall((1 + LATE) * TIMEOUT_S)
        assert response.cut == 0
    await response.clock.stall((1 + LATE) * TIMEOUT_S)
    assert response.cut == 1


async def test_client_that_has_read_everything_and_stays_is_aborted_after_a_late_check_too(response: Response) -> None:
    response.acknowledged = len(RESPONSE)
    await response.clock.stall(3600.0)
    await response.clock.advance(TIMEOUT_S)
    assert response.cut == 1
