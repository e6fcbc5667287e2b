"""Two bridges on one named queue: the broker deals its events out between them, and neither gets all."""

from functools import partial
from typing import Any

import orjson

from tests.support.broker.find import Broker
from tests.support.clients import get
from tests.support.running import BridgeProcess, bridge_process
from tests.support.waiting import eventually

SHARED = "other consumers share this bridge's queue"
ALONE = "no other consumer shares this bridge's queue any more"


async def readyz(process: BridgeProcess) -> tuple[int, dict[str, Any]]:
    """What `/readyz` says."""
    status, body = await get(await process.port(), "/readyz")
    return status, orjson.loads(body)


async def others(process: BridgeProcess) -> float:
    """How many others there are, by the metrics."""
    _, body = await get(await process.port(), "/metrics")
    return next(
        float(line.split()[1])
        for line in body.decode().splitlines()
        if line.startswith("bridge_queue_other_consumers ")
    )


def said(process: BridgeProcess, phrase: str) -> list[dict[str, object]]:
    """The log lines that begin with it."""
    return [line for line in process.lines if str(line["event"]).startswith(phrase)]


async def test_two_bridges_on_one_named_queue_say_so_until_one_is_gone(
    broker: Broker, exchange: str, queue: str
) -> None:
    """Promise: both say it within two checks: an error in the log, a warning in `/readyz`, a metric."""
    variables = {"BRIDGE_EXCHANGES": f"{exchange}=killmail", "BRIDGE_QUEUE": queue}
    async with bridge_process(broker.url, **variables) as first:
        await first.consuming()
        async with bridge_process(broker.url, **variables) as second:
            await second.consuming()
            for process in (first, second):
                await eventually("it notices", partial(said, process, SHARED))
                [line] = said(process, SHARED)
                assert (line["level"], line["queue"], line["others"]) == ("error", queue, 1)
                status, body = await readyz(process)
                # An orchestrator that starts the new one before it stops the old one waits for this.
                assert status == 200
                [warning] = body["warnings"]
                assert warning.startswith(f"other consumers of the queue {queue!r}: 1;")
                assert await others(process) == 1
        await eventually("it is alone", lambda: said(first, ALONE))
        assert len(said(first, SHARED)) == 1
        assert (await readyz(first))[1]["warnings"] == []
        assert await others(first) == 0
