"""Runs Autobahn's cases against a server that never answers a message.

The program writes the outcomes as JSON to standard output. Run this module only as a separate process (`python -m
tests.conformance.autobahn URL`), because kosoku changes the module `binascii` and puts its own folders at the front of
Python's path. The frames of the cases are sent unchanged. If a case waits for an echo, the program sends a ping after
the message, and the case waits for the pong instead. The pong shows that the bridge has read everything that was sent
before the ping, and that the connection still works.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import orjson

SECTIONS = ("1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*")
STILL_THERE = "still there?"
PING = 9

CONCURRENCY = 64
"""The number of cases that run at the same time. The run spends most of its time in cases that wait for one second."""

TIMEOUT_S = 10.0
"""The timeout that replaces the cases' own timeouts of 0.5 or 1 s, because the machine may be busy."""


class CaseProtocol:
    """A wrapper of a case's protocol that sends a ping after the last message of the case."""

    def __init__(self, protocol: Any, case: Any) -> None:
        vars(self).update(_protocol=protocol, _case=case)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._protocol, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._protocol, name, value)

    def killAfter(self, _seconds: float) -> None:  # noqa: N802 - the cases call it
        self._expect_no_echo()
        self._protocol.killAfter(TIMEOUT_S)

    def closeAfter(self, seconds: float) -> None:  # noqa: N802 - the cases call it
        self._expect_no_echo()
        self._protocol.closeAfter(seconds)

    def _expect_no_echo(self) -> None:
        case = self._case
        expected = [event for event in case.expected[case.OK] if event[0] != "message"]
        # A case does not wait for an echo if the server must fail the connection, or if the case itself closes it.
        if expected != case.expected[case.OK] and case.expectedClose["closedByMe"] and not case.suppressClose:
            case.expected = {case.OK: [*expected, ("pong", STILL_THERE)]}
            self._protocol.sendFrame(opcode=PING, payload=STILL_THERE)


def without_echo(case: type) -> type:
    """Returns a case that uses a `CaseProtocol`."""

    def __init__(self: Any, protocol: Any) -> None:  # noqa: N807 - a method of the class below
        case.__init__(self, CaseProtocol(protocol, self))  # type: ignore[misc]  # `self` is of the class below

    return type(case.__name__, (case,), {"__init__": __init__})


async def outcomes(url: str) -> list[dict[str, Any]]:
    """Runs all cases with kosoku, and returns the result of each case."""
    import kosoku  # noqa: PLC0415 - it changes sys.path and binascii, so it is imported last
    from kosoku.cases import CASES  # noqa: PLC0415 - importable only after kosoku

    CASES.update({number: without_echo(case) for number, case in CASES.items()})
    try:
        results = await kosoku.run_fuzzingclient(url, cases=SECTIONS, concurrency=CONCURRENCY)
    except kosoku.FailureError as failure:
        results = failure.results
    return [
        {
            "case": result.case_id,
            "passed": result.passed,
            "received": result.received or [],
            "code": result.remote_close_code,
            "reason": result.remote_close_reason or "",
            "clean": result.was_clean and not result.dropped_by_me,
            "closes_first": "client" if result.closed_by_me else "bridge",
            "frames": sum(result.rx_frame_stats.values()),
            "octets": sum(size * count for size, count in result.rx_octet_stats.items()),
        }
        for result in results
    ]


if __name__ == "__main__":
    sys.stdout.buffer.write(orjson.dumps(asyncio.run(outcomes(sys.argv[1]))))
    sys.stdout.flush()
    # A thread of kosoku may still run, and could abort the process during the interpreter's shutdown, so `os._exit`
    # skips this shutdown.
    os._exit(0)
