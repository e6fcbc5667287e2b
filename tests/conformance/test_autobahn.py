"""Autobahn's cases of RFC 6455 against a bridge, on either kind of loop: each has what a server owes that only emits.

Sections 9, 12 and 13 measure speed and compression; the others are here in full, 247 cases.
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
"""They take two seconds; where many fail, as long as `autobahn` has patience, a few times over."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that a client gets from the bridge in a case, with each octet counted.

    kosoku reads no further than to the close frame and what comes with it, and ends the TCP connection then: whether
    the bridge would have done so is for the integration tests.
    """

    passed: bool
    """The case's own verdict."""
    received: tuple[tuple[str, str], ...]
    """Pongs with their payloads, a character for each byte, and the pauses in between that a case told of."""
    code: int | None
    """Of the close frame that the bridge sent, and so is the reason."""
    reason: str
    closes_first: str
    clean: bool
    """Close frames went both ways."""
    frames: int
    octets: int


def pongs(*payloads: str) -> tuple[tuple[str, str], ...]:
    return tuple(("pong", payload) for payload in payloads)


def owed(
    received: tuple[tuple[str, str], ...],
    code: int | None,
    reason: str = "",
    *,
    closes_first: str = "client",
) -> Outcome:
    """What was received, in frames without a mask, and a close frame behind it; nothing else."""
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
    """The client's pings are answered, and so is its close, with its own code."""
    return owed(pongs(*payloads), code)


def ignored(*payloads: str) -> Outcome:
    """The same, and the client's message brings nothing: a ping behind it is answered."""
    return closed(1000, *payloads, STILL_THERE)


def failed(reason: CloseReason, *pauses: str) -> Outcome:
    """The bridge fails the connection, before it reads on."""
    return owed(tuple(("timeout", pause) for pause in pauses), reason.code, reason.phrase, closes_first="bridge")


def refused(reason: CloseReason) -> Outcome:
    """It is the client's close frame that breaks the protocol, and it is answered by one that says so."""
    return owed((), reason.code, reason.phrase)


VIOLATION = CloseReason.PROTOCOL_ERROR
INVALID = CloseReason.INVALID_UTF8
TEN = [f"payload-{number}" for number in range(10)]

OWED = [
    # A message of up to 128 KiB, in one frame, in reads of any size
    ("1.1.1-8 1.2.1-8", ignored()),
    # Pings, up to the longest, and pongs that nobody asked for
    ("2.1", closed(1000, "")),
    ("2.2", closed(1000, "Hello, world!")),
    ("2.3", closed(1000, "\x00\xff\xfe\xfd\xfc\xfb\x00\xff")),
    ("2.4 2.6", closed(1000, "\xfe" * 125)),
    ("2.5", failed(VIOLATION)),
    ("2.7-8", closed(1000)),
    ("2.9", closed(1000, "ping payload")),
    ("2.10-11", closed(1000, *TEN)),
    # Reserved bits, unknown opcodes
    ("3.1-7", failed(VIOLATION)),
    ("4.1.1-5 4.2.1-5", failed(VIOLATION)),
    # Fragmented control frames; fragments, with and without pings in between; continuations of nothing
    ("5.1-2", failed(VIOLATION)),
    ("5.3-5", ignored()),
    ("5.6-8", ignored("ping payload")),
    ("5.9-18", failed(VIOLATION)),
    ("5.19-20", ignored("pongme 1!", "pongme 2!")),
    # UTF-8, valid
    ("6.1.1-3 6.2.1-4 6.5.1-5 6.6.2 6.6.5 6.6.7 6.6.9 6.6.11 6.7.1-4 6.9.1-4 6.11.1-4 6.22.1-34 6.23.1-7", ignored()),
    # and not: whole characters' worth, cut short, beyond Unicode, overlong, surrogates
    ("6.3.1-2 6.6.1 6.6.3-4 6.6.6 6.6.8 6.6.10 6.8.1-2 6.10.1-3 6.11.5 6.12.1-8 6.13.1-5", failed(INVALID)),
    ("6.14.1-10 6.15.1 6.16.1-3 6.17.1-5 6.18.1-5 6.19.1-5 6.20.1-7 6.21.1-8", failed(INVALID)),
    # In pieces, with a pause before the invalid one and another behind it: failed before the second
    ("6.4.1-4", failed(INVALID, "A")),
    # A close behind a message, before other frames, between fragments
    ("7.1.1", ignored()),
    ("7.1.2-6", closed(1000)),
    # without a code, with half of one, with reasons up to the longest, with a longer one
    ("7.3.1", closed(None)),
    ("7.3.2", refused(VIOLATION)),
    ("7.3.3-5", closed(1000)),
    ("7.3.6", refused(VIOLATION)),
    ("7.5.1", refused(INVALID)),
    # with codes that may be sent, with others
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
    ("7.9.1-9 7.13.1-2", refused(VIOLATION)),
    # A message in 51 fragments
    ("10.1.1", ignored()),
]
"""Of each case. `1.2.3-5` are three."""


def cases(ranges: str) -> Iterator[str]:
    for first in ranges.split():
        form = re.fullmatch(r"([\d.]+\.)(\d+)(?:-(\d+))?", first)
        assert form is not None, first
        before, start, end = form.groups()
        for number in range(int(start), int(end or start) + 1):
            yield f"{before}{number}"


async def seen(url: str) -> dict[str, Outcome]:
    """What came of each case that kosoku has in these sections."""
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
    assert len(outcomes) == len(results), "a case came twice"
    return outcomes


@pytest.mark.parametrize("loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def test_each_case_has_the_outcome_that_a_server_owes_which_only_emits(
    broker: Broker, exchange: str, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    with capture_logs() as logged, asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_each_case(broker, exchange))
    # A line for a client that breaks the protocol or sends a message in a thousand pieces, none for what else one says.
    throttled = "client throttled"
    assert {line["log_level"] for line in logged} == {"info"}
    assert {line["event"] for line in logged} - {throttled} == {
        "listening",
        "consuming",
        "client evicted",
        "stopping",
        "stopped",
    }


async def _each_case(broker: Broker, exchange: str) -> None:
    numbers = [(number, outcome) for ranges, outcome in OWED for number in cases(ranges)]
    all_owed = dict(numbers)
    assert len(all_owed) == len(numbers) == 247
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        url = f"ws://127.0.0.1:{port_of(bridge)}/updates"
        async with connect(url) as listener:
            all_seen = await seen(url)
            wrong = [
                f"{number}:\n  owed {all_owed.get(number)}\n  seen {all_seen.get(number)}"
                for number in {**all_owed, **all_seen}
                if all_owed.get(number) != all_seen.get(number)
            ]
            assert not wrong, "\n".join([f"{len(wrong)} cases deviate", *wrong])
            await eventually(
                "only the listener is left", lambda: sample(bridge, "bridge_connections", transport="websocket") == 1
            )
            reasons = [outcome.reason for outcome in all_owed.values()]
            for reason in (VIOLATION, INVALID):
                assert sample(bridge, "bridge_evictions_total", reason=reason.slug) == reasons.count(reason.phrase)
            # None of it has reached the others, or kept them from what comes.
            async with await aio_pika.connect(broker.url, timeout=10) as amqp:
                await publish(amqp, exchange, EXAMPLE)
            assert orjson.loads(await listener.recv())["data"] == EXAMPLE
