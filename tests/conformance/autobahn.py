"""Autobahn's cases against a server that never answers a message; the outcomes, in JSON, go to standard output.

Run as a process of its own, `python -m tests.conformance.autobahn URL`: kosoku puts its cases' folders in front of
Python's path and changes `binascii` for them. The cases are sent as they are. Only where one waits for an echo, a ping
follows, and its pong is waited for instead: then all before it has been read, and the connection still serves.
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
"""Most of the time is spent in cases that wait for a second on purpose."""

PATIENCE_S = 10.0
"""Instead of the half or whole second after which the cases give up on a server: it may share a busy machine."""


class Line:
    """What a case sees of its connection, and the place where the end of what it sends shows."""

    def __init__(self, protocol: Any, case: Any) -> None:
        vars(self).update(_protocol=protocol, _case=case)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._protocol, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._protocol, name, value)

    def killAfter(self, _seconds: float) -> None:  # noqa: N802 - the cases' name for it
        self._expect_no_echo()
        self._protocol.killAfter(PATIENCE_S)

    def closeAfter(self, seconds: float) -> None:  # noqa: N802 - the cases call it so
        self._expect_no_echo()
        self._protocol.closeAfter(seconds)

    def _expect_no_echo(self) -> None:
        case = self._case
        owed = [event for event in case.expected[case.OK] if event[0] != "message"]
        # Where the server must fail the connection, or the case closes it by itself, no echo need come in any case.
        if owed != case.expected[case.OK] and case.expectedClose["closedByMe"] and not case.suppressClose:
            case.expected = {case.OK: [*owed, ("pong", STILL_THERE)]}
            self._protocol.sendFrame(opcode=PING, payload=STILL_THERE)


def without_echo(case: type) -> type:
    """The case, seeing its connection through a `Line`."""

    def __init__(self: Any, protocol: Any) -> None:  # noqa: N807 - of the class below
        case.__init__(self, Line(protocol, self))  # type: ignore[misc]  # of this very class

    return type(case.__name__, (case,), {"__init__": __init__})


async def outcomes(url: str) -> list[dict[str, Any]]:
    """What came of each case, as kosoku recorded it."""
    import kosoku  # noqa: PLC0415 - it changes sys.path and binascii: nothing else is to be imported behind it
    from kosoku.cases import CASES  # noqa: PLC0415 - behind kosoku, which makes it importable

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
    # Past the interpreter's own end: one of kosoku's threads may still want it then, and aborts the process.
    os._exit(0)
