"""One run: who takes part, in which order they come and go, and what is taken down as evidence."""

import asyncio
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from aio_pika.abc import AbstractConnection

from tests.soak.breaking import Breaking
from tests.soak.crowd import Crowd, Stretches
from tests.soak.fetcher import POISON_NUMBER, Fetcher
from tests.soak.plan import DUPLICATE_WINDOW, LOG_BYTES, Fault, Plan, rotation
from tests.soak.readers import Healthy, connect
from tests.soak.verdict import Counted, Evidence, Received
from tests.soak.watch import Watch
from tests.support.broker.find import Broker, NamedBroker
from tests.support.process_stats import metric
from tests.support.proxy import proxy
from tests.support.publishing import depth, observer, take
from tests.support.running import BridgeProcess, bridge_process, unique
from tests.support.waiting import eventually

LOOK_S = 0.2

REST_LIMIT_S = 60.0
"""Until all that was confirmed has come. What lies on a forsaken line comes again when the broker has missed it."""

UNLIMITED = (
    sys.executable,
    "-P",
    "-c",
    "from bridge.server.access import log_limiter; log_limiter.MAX_LINES = 10**9; "
    "import runpy; runpy.run_module('bridge', run_name='__main__')",
)
"""A bridge that logs each eviction. The test learns from these lines that a client which reads nothing was evicted."""

STILL_S = 1.0
"""What could come a second time comes within it, once the broker has nothing more to give."""

GOING_AWAY = 1001


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run has shown."""

    evidence: Evidence
    figures: dict[str, str]


@dataclass(frozen=True, slots=True)
class Names:
    """At the broker."""

    exchange: str
    queue: str
    rejects: str


class Stage:
    """Everybody who takes part."""

    def __init__(self, process: BridgeProcess, port: int, fetcher: Fetcher, healthy: list[Healthy], plan: Plan) -> None:
        self.process = process
        self.port = port
        self.fetcher = fetcher
        self.healthy = healthy
        self.stretches = Stretches(healthy[0])
        self.crowd = Crowd(process, port, plan, self.stretches)
        self.watch = Watch(process.process.pid, port)

    def have_all(self) -> bool:
        """Whether each healthy client has got whatever was confirmed."""
        newest = max(self.fetcher.confirmed)
        return all(
            len(client.counts) > newest and all(client.counts[number] for number in self.fetcher.confirmed)
            for client in self.healthy
        )


async def soak(broker: Broker, plan: Plan, say: Callable[[str], None]) -> Outcome:
    """The whole of it."""
    names = Names(unique("soak"), unique("soak"), unique("soak"))
    mortal = not isinstance(broker, NamedBroker)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_forget, broker.url, names)
        line = await stack.enter_async_context(proxy(broker.url))
        await line.open()
        process = await stack.enter_async_context(_bridge(f"{line.url}?heartbeat={plan.heartbeat_s}", names))
        await process.consuming()
        port = await process.port()
        fetcher = Fetcher(broker.url, names.exchange, plan)
        stack.push_async_callback(fetcher.stop)
        healthy = [await connect(Healthy, port) for _ in range(plan.healthy)]
        for client in healthy:
            stack.push_async_callback(client.leave)
            await client.opened
        stage = Stage(process, port, fetcher, healthy, plan)
        say(f"priming: {plan.prime:,} updates, lest what the first ones bring in count as growth")
        await fetcher.prime()
        say("primed; waiting until tasks and descriptors change no more")
        before = await stage.watch.settled()
        say("the time begins")
        breaking = Breaking(plan, line, broker, say, mortal=mortal)
        await _everything(stage, plan, breaking)
        say("the time is over, the others have gone; waiting for what the broker has to give yet")
        async with observer(broker.url) as amqp:
            at_rest = await _rest(stage, amqp, names)
            after = await stage.watch.back_at(before)
            figures = await _figures(stage, breaking)
            received = [_received(number, client) for number, client in enumerate(healthy, 1)]
            ends = await _stop(stage)
            rejected = await _rejected(amqp, names.rejects)
        figures["poison found among the rejects"] = f"{len(rejected & fetcher.poison)} of {len(fetcher.poison)}"
        stage.stretches.rest()
        evidence = Evidence(
            published=fetcher.published,
            confirmed=fetcher.confirmed,
            received=received,
            poison=fetcher.poison,
            rejected=rejected,
            seconds=plan.seconds,
            samples=stage.watch.samples,
            counted=[Counted("tasks", before[0], after[0]), Counted("descriptors", before[1], after[1])],
            sentences=Counter(stage.stretches.wrong) + stage.crowd.wrong + _said(process) + at_rest + ends,
            expected=_expected(stage, breaking, set(rotation(plan.faults, mortal=mortal))),
        )
        return Outcome(evidence, figures)


async def _everything(stage: Stage, plan: Plan, breaking: Breaking) -> None:
    """All at once, for as long as the plan says."""
    stage.fetcher.begin()
    stage.crowd.begin()
    looking = asyncio.create_task(_look(stage))
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(breaking.run())
            tasks.create_task(stage.watch.run(plan.seconds))
    finally:
        await stage.crowd.end()
        looking.cancel()
        await asyncio.wait([looking])
    await stage.fetcher.finish()


async def _look(stage: Stage) -> None:
    while True:
        await asyncio.sleep(LOOK_S)
        stage.crowd.look()


async def _rest(stage: Stage, amqp: AbstractConnection, names: Names) -> Counter[str]:
    """Waits until the broker has nothing more to give, and all have everything; says what did not come to rest."""
    wrong: Counter[str] = Counter()

    async def nothing_waits() -> bool:
        channel = await amqp.channel()
        declared = (await channel.declare_queue(names.queue, passive=True)).declaration_result
        await channel.close()
        return declared.consumer_count == 1 and not declared.message_count

    calm: list[tuple[str, Callable[[], object]]] = [
        ("the queue is empty, and the bridge its only consumer", nothing_waits),
        ("each healthy client has all that was confirmed", stage.have_all),
    ]
    for what, holds in calm:
        try:
            await eventually(what, holds, limit_s=REST_LIMIT_S)
        except AssertionError as error:
            wrong[str(error)] += 1
    await asyncio.sleep(STILL_S)
    return wrong


async def _stop(stage: Stage) -> Counter[str]:
    """Stops the bridge as its operator does; says what went wrong."""
    stage.process.process.send_signal(signal.SIGTERM)
    code = await stage.process.ended()
    wrong = Counter({f"the bridge ended with exit code {code}": 1} if code else {})
    for client in stage.healthy:
        if (end := await client.ended) != GOING_AWAY:
            wrong[f"a healthy client was closed with {end} when the bridge stopped, not {GOING_AWAY}"] += 1
    return wrong


def _received(number: int, client: Healthy) -> Received:
    end = f"code {client.ended.result()}" if client.ended.done() else ""
    return Received(f"healthy client {number}", client.counts, end)


def _said(process: BridgeProcess) -> Counter[str]:
    """What a bridge says only when it is broken."""
    wrong = Counter(f"the bridge failed: {line['event']}" for line in process.lines if "exception" in line)
    return wrong + Counter(f"the bridge said: {text}" for text in process.texts)


async def _rejected(amqp: AbstractConnection, rejects: str) -> set[int]:
    count = await depth(amqp, rejects)
    bodies = [message.body for message in await take(amqp, rejects, count)] if count else []
    return {int(found[1]) for body in bodies if (found := POISON_NUMBER.search(body))}


def _expected(stage: Stage, breaking: Breaking, faults: set[Fault]) -> dict[str, int]:
    seen = stage.crowd.seen
    return {
        "clients that stall are evicted": seen["stalled, closed with 4008"],
        "clients that come and go, and get updates": stage.stretches.right,
        "updates come late, out of order": stage.healthy[0].late,
        "poison": len(stage.fetcher.poison),
        **{f"the line, or the broker: {fault.value}": breaking.done[fault] for fault in faults},
    }


async def _figures(stage: Stage, breaking: Breaking) -> dict[str, str]:
    """What there is to tell, by what it is of."""
    fetcher, watch = stage.fetcher, stage.watch

    async def count(name: str) -> str:
        return f"{await metric(stage.port, name):,.0f}"

    return {
        "events confirmed by the broker": f"{len(fetcher.confirmed):,}, {fetcher.bursts} bursts among them",
        "events unsure": f"{len(fetcher.published - fetcher.confirmed):,}",
        "updates at a healthy client": f"{len(stage.healthy[0].numbers):,}",
        "of these behind newer ones": f"{max(client.late for client in stage.healthy):,}",
        **{f"fault: {fault.value}": str(times) for fault, times in breaking.done.items()},
        "times that the bridge lost its broker": await count("bridge_broker_losses_total"),
        "deliveries again": await count("bridge_redeliveries_total"),
        "duplicates not sent": await count('bridge_duplicates_total{type="killmail"}'),
        **{f"clients: {what}": f"{times:,}" for what, times in sorted(stage.crowd.seen.items())},
        "stretches compared with a healthy client's": f"{stage.stretches.right:,}",
        "connections opened": await count('bridge_connections_opened_total{transport="websocket"}'),
        "processor: the bridge, of a core": f"{watch.bridge_cpu:.0%}",
        "processor: this program, of a core": f"{watch.own_cpu:.0%}, late by {watch.late_s:.2f} s at most",
    }


@asynccontextmanager
async def _bridge(url: str, names: Names) -> AsyncIterator[BridgeProcess]:
    variables = {
        "BRIDGE_EXCHANGES": f"{names.exchange}=killmail",
        "BRIDGE_QUEUE": names.queue,
        "BRIDGE_REJECT_EXCHANGE": names.rejects,
        "BRIDGE_LOG_BYTES": str(LOG_BYTES),
        "BRIDGE_MAX_MESSAGE_BYTES": "64 KiB",
        "BRIDGE_DUPLICATE_WINDOW": str(DUPLICATE_WINDOW),
    }
    async with bridge_process(url, command=UNLIMITED, **variables) as process:
        yield process


async def _forget(broker_url: str, names: Names) -> None:
    """Removes what was made at the broker."""
    async with observer(broker_url) as amqp:
        channel = await amqp.channel()
        for queue in (names.queue, names.rejects):
            await channel.queue_delete(queue)
        for exchange in (names.exchange, names.rejects):
            await channel.exchange_delete(exchange)
