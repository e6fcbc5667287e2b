"""Runs Autobahn's cases for RFC 6455 against a bridge with each of the two event loops.

The bridge never answers a client's message.

The tests run the 247 cases of all sections except 9, 12 and 13, which measure speed and compression.
"""

import asyncio
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import aio_pika
import orjson
import pytest
import uvloop
from structlog.testing import capture_logs
from websockets.asyncio.client import connect

from bridge.broadcast.close_reasons import CloseReason
from tests.conformance.autobahn import STILL_THERE
from tests.support.broker.find import Broker
from tests.support.killmail import EXAMPLE
from tests.support.publishing import publish
from tests.support.running import port_of, running, sample
from tests.support.waiting import eventually

CASES_LIMIT_S = 60
"""The limit in seconds for all cases together.

The cases usually take 2 s, or several times `autobahn.TIMEOUT_S` if many cases fail.
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that the client receives from the bridge in a case, and the number of octets.

    kosoku reads until the close frame, and then closes the TCP connection. The integration tests check that the bridge
    also closes the connection.
    """

    passed: bool
    """Whether Autobahn itself reports that the case passed."""
    received: tuple[tuple[str, str], ...]
    """The received pongs, each with its payload (one character per byte), and the completed pauses."""
    code: int | None
    """The code and the reason of the bridge's close frame."""
    reason: str
    closes_first: str
    clean: bool
    """Whether both sides sent a close frame."""
    frames: int
    octets: int


def pongs(*payloads: str) -> tuple[tuple[str, str], ...]:
    return tuple(("pong", payload) for payload in payloads)


def outcome(
    received: tuple[tuple[str, str], ...],
    code: int | None,
    reason: str = "",
    *,
    closes_first: str = "client",
) -> Outcome:
    """Returns the outcome if the client gets only `received` and a close frame, in unmasked frames."""
    payloads = [payload for kind, payload in received if kind == "pong"]
    close_octets = 0 if code is None else 2 + len(reason)
    return Outcome(
        passed=True,
        received=received,
        code=code,
        reason=reason,
        closes_first=closes_first,
        clean=True,
        frames=len(payloads) + 1,
        octets=sum(2 + len(payload) for payload in payloads) + 2 + close_octets,
    )


def closed(code: int | None, *payloads: str) -> Outcome:
    """Returns the outcome if the bridge answers all pings, and answers the client's close frame with the same code."""
    return outcome(pongs(*payloads), code)


def ignored(*payloads: str) -> Outcome:
    """Returns the outcome if the bridge ignores the client's message, and answers the ping after the message."""
    return closed(1000, *payloads, STILL_THERE)


def failed(reason: CloseReason, *pauses: str) -> Outcome:
    """Returns the outcome if the bridge closes the connection because of a violation, and reads no further frames."""
    return outcome(tuple(("timeout", pause) for pause in pauses), reason.code, reason.phrase, closes_first="bridge")


def invalid_close(reason: CloseReason) -> Outcome:
    """Returns the outcome if the client's close frame violates the protocol.

    The close frame that the bridge sends names the violation.
    """
    return outcome((), reason.code, reason.phrase)


VIOLATION = CloseReason.PROTOCOL_ERROR
INVALID = CloseReason.INVALID_UTF8
TEN = [f"payload-{number}" for number in range(10)]

EXPECTED = [
    # A message of up to 128 KiB in one frame, in reads of any size
    ("1.1.1-8 1.2.1-8", ignored()),
    # Pings with payloads up to the maximum length, and unsolicited pongs
    ("2.1", closed(1000, "")),
    ("2.2", closed(1000, "Hello, world!")),
    ("2.3", closed(1000, "\x00\xff\xfe\xfd\xfc\xfb\x00\xff")),
    ("2.4 2.6", closed(1000, "\xfe" * 125)),
    ("2.5", failed(VIOLATION)),
    ("2.7-8", closed(1000)),
    ("2.9", closed(1000, "ping payload")),
    ("2.10-11", closed(1000, *TEN)),
    # Reserved bits and unknown opcodes
    ("3.1-7", failed(VIOLATION)),
    ("4.1.1-5 4.2.1-5", failed(VIOLATION)),
    # Fragmented control frames, fragments with and without pings between them, continuations without a first frame
    ("5.1-2", failed(VIOLATION)),
    ("5.3-5", ignored()),
    ("5.6-8", ignored("ping payload")),
    ("5.9-18", failed(VIOLATION)),
    ("5.19-20", ignored("pongme 1!", "pongme 2!")),
    # Valid UTF-8
    ("6.1.1-3 6.2.1-4 6.5.1-5 6.6.2 6.6.5 6.6.7 6.6.9 6.6.11 6.7.1-4 6.9.1-4 6.11.1-4 6.22.1-34 6.23.1-7", ignored()),
    # Invalid UTF-8: complete and truncated sequences, code points beyond Unicode, overlong encodings, surrogates
    ("6.3.1-2 6.6.1 6.6.3-4 6.6.6 6.6.8 6.6.10 6.8.1-2 6.10.1-3 6.11.5 6.12.1-8 6.13.1-5", failed(INVALID)),
    ("6.14.1-10 6.15.1 6.16.1-3 6.17.1-5 6.18.1-5 6.19.1-5 6.20.1-7 6.21.1-8", failed(INVALID)),
    # Invalid UTF-8 in pieces, with a pause before and after the invalid piece: the bridge closes the connection before
    # the second pause
    ("6.4.1-4", failed(INVALID, "A")),
    # A close frame after a message, before other frames, and between fragments
    ("7.1.1", ignored()),
    ("7.1.2-6", closed(1000)),
    # Close frames without a code, with only one byte of a code, with reasons up to the maximum length, and with a
    # longer reason
    ("7.3.1", closed(None)),
    ("7.3.2", invalid_close(VIOLATION)),
    ("7.3.3-5", closed(1000)),
    ("7.3.6", invalid_close(VIOLATION)),
    ("7.5.1", invalid_close(INVALID)),
    # A close frame with valid and with invalid codes
    ("7.7.1", closed(1000)),
    ("7.7.2", closed(1001)),
    ("7.7.3", closed(1002)),
    ("7.7.4", closed(1003)),
    ("7.7.5", closed(1007)),
    ("7.7.6", closed(1008)),
    ("7.7.7", closed(1009)),
    ("7.7.8", closed(1010)),
    ("7.7.9", closed(1011)),
    ("7.7.10", closed(3000)),
    ("7.7.11", closed(3999)),
    ("7.7.12", closed(4000)),
    ("7.7.13", closed(4999)),
    ("7.9.1-9 7.13.1-2", invalid_close(VIOLATION)),
    # A message in 51 fragments
    ("10.1.1", ignored()),
]
"""The expected outcome of each case. In this table, `1.2.3-5` means three cases."""


def cases(ranges: str) -> Iterator[str]:
    for first in ranges.split():
        form = re.fullmatch(r"([\d.]+\.)(\d+)(?:-(\d+))?", first)
        assert form is not None, first
        before, start, end = form.groups()
        for number in range(int(start), int(end or start) + 1):
            yield f"{before}{number}"


async def run_cases(url: str) -> dict[str, Outcome]:
    """Returns the outcome of each case."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.conformance.autobahn", url, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(CASES_LIMIT_S):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    results = orjson.loads(output)
    outcomes = {
        result.pop("case"): Outcome(received=tuple(map(tuple, result.pop("received"))), **result) for result in results
    }
    assert len(outcomes) == len(results), "two cases have the same number"
    return outcomes


@pytest.mark.parametrize("loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def test_each_case_has_the_outcome_of_a_server_that_only_sends(
    broker: Broker, exchange: str, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    with capture_logs() as logged, asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_each_case(broker, exchange))
    # The log reports protocol violations. It may also report that a client was throttled because its message came in a
    # thousand pieces. Otherwise, it reports nothing about the clients' messages.
    throttled = "client throttled"
    assert {line["event"] for line in logged if line["log_level"] != "info"} == {"exchange declared"}
    assert {line["event"] for line in logged} - {throttled} == {
        "listening",
        "exchange declared",
        "consuming",
        "client evicted",
        "stopping",
        "stopped",
    }


async def _each_case(broker: Broker, exchange: str) -> None:
    numbers = [(number, outcome) for ranges, outcome in EXPECTED for number in cases(ranges)]
    expected = dict(numbers)
    assert len(expected) == len(numbers) == 247
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        url = f"ws://127.0.0.1:{port_of(bridge)}/updates"
        async with connect(url) as listener:
            actual = await run_cases(url)
            wrong = [
                f"{number}:\n  expected {expected.get(number)}\n  actual   {actual.get(number)}"
                for number in {**expected, **actual}
                if expected.get(number) != actual.get(number)
            ]
            assert not wrong, "\n".join([f"{len(wrong)} cases differ", *wrong])
            await eventually(
                "only the listener is left", lambda: sample(bridge, "bridge_connections", transport="websocket") == 1
            )
            reasons = [outcome.reason for outcome in expected.values()]
            for reason in (VIOLATION, INVALID):
                assert sample(bridge, "bridge_evictions_total", reason=reason.slug) == reasons.count(reason.phrase)
            # Another client of the bridge received nothing while the cases ran, and receives updates after them.
            async with await aio_pika.connect(broker.url, timeout=10) as amqp:
                await publish(amqp, exchange, EXAMPLE)
            assert orjson.loads(await listener.recv())["data"] == EXAMPLE
