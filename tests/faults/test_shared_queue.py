"""If two bridges consume from one named queue, the broker distributes the events: neither bridge gets all of them."""

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
    """Returns the status and the body of `/readyz`."""
    status, body = await get(await process.port(), "/readyz")
    return status, orjson.loads(body)


async def others(process: BridgeProcess) -> float:
    """Returns the number of other consumers that the bridge's metrics report."""
    _, body = await get(await process.port(), "/metrics")
    return next(
        float(line.split()[1])
        for line in body.decode().splitlines()
        if line.startswith("bridge_queue_other_consumers ")
    )


def logged(process: BridgeProcess, phrase: str) -> list[dict[str, object]]:
    """Returns the log lines that begin with the phrase."""
    return [line for line in process.lines if str(line["event"]).startswith(phrase)]


async def test_two_bridges_on_one_named_queue_report_it_until_one_is_gone(
    broker: Broker, exchange: str, queue: str
) -> None:
    """Promise: each bridge reports the other consumer within two checks, in the log, in `/readyz` and in a metric."""
    variables = {"BRIDGE_EXCHANGES": f"{exchange}=killmail", "BRIDGE_QUEUE": queue}
    async with bridge_process(broker.url, **variables) as first:
        await first.consuming()
        async with bridge_process(broker.url, **variables) as second:
            await second.consuming()
            for process in (first, second):
                await eventually("the other consumer is logged", partial(logged, process, SHARED))
                [line] = logged(process, SHARED)
                assert (line["level"], line["queue"], line["others"]) == ("error", queue, 1)
                status, body = await readyz(process)
                # An orchestrator may stop the old bridge only when the new one answers with status 200, so both bridges
                # must be ready.
                assert status == 200
                [warning] = body["warnings"]
                assert warning.startswith(f"other consumers of the queue {queue!r}: 1;")
                assert await others(process) == 1
        await eventually("the bridge is alone on its queue", lambda: logged(first, ALONE))
        assert len(logged(first, SHARED)) == 1
        assert (await readyz(first))[1]["warnings"] == []
        assert await others(first) == 0
