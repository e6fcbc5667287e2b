"""One run of the soak: its participants, their order, and the evidence that is collected."""

import asyncio
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from aio_pika.abc import AbstractConnection

from bridge.metrics import Transport
from tests.soak.breaking import Breaking
from tests.soak.crowd import Crowd, Stretches
from tests.soak.fetcher import INVALID_NUMBER, Fetcher
from tests.soak.plan import DUPLICATE_WINDOW, LOG_BYTES, Fault, Plan, rotation
from tests.soak.readers import Healthy, HealthyStream, Poller, Tally, connect
from tests.soak.verdict import Counted, Evidence, Received
from tests.soak.watch import Watch
from tests.support.broker.find import Broker, NamedBroker
from tests.support.process_stats import metric
from tests.support.proxy import proxy
from tests.support.publishing import depth, observer, take
from tests.support.running import BridgeProcess, bridge_process, unique
from tests.support.waiting import eventually

LOOK_S = 0.2

DRAIN_LIMIT_S = 60.0
"""The maximum time until all confirmed events have arrived. Events on a half-open connection are redelivered late."""

UNLIMITED = (
    sys.executable,
    "-P",
    "-c",
    "from bridge.server.access import log_limiter; log_limiter.MAX_LINES = 10**9; "
    "import runpy; runpy.run_module('bridge', run_name='__main__')",
)
"""The command of a bridge that logs each eviction.

The test learns from the bridge's log when a client that reads nothing is evicted.
"""

STILL_S = 1.0
"""If an update is sent twice, the second copy arrives within this time after the queue is empty."""

GOING_AWAY = 1001


@dataclass(frozen=True, slots=True)
class Outcome:
    """The results of a run."""

    evidence: Evidence
    figures: dict[str, str]


@dataclass(frozen=True, slots=True)
class Names:
    """The names of the exchange and the queues of a run."""

    exchange: str
    queue: str
    rejects: str


class Stage:
    """All participants."""

    def __init__(
        self,
        process: BridgeProcess,
        port: int,
        fetcher: Fetcher,
        healthy: list[Healthy],
        streams: list[HealthyStream],
        plan: Plan,
    ) -> None:
        self.process = process
        self.port = port
        self.fetcher = fetcher
        self.healthy = healthy
        self.streams = streams
        self.pollers: list[Poller] = []
        self.stretches = Stretches(healthy[0].tally)
        self.crowd = Crowd(process, port, plan, self.stretches)
        self.watch = Watch(process.process.pid, port)

    @property
    def tallies(self) -> dict[str, Tally]:
        """The updates of each client that follows the bridge for the whole run, by the client's name."""
        kinds: dict[str, Sequence[Healthy | HealthyStream | Poller]] = {
            "healthy client": self.healthy,
            "healthy stream": self.streams,
            "healthy poller": self.pollers,
        }
        return {f"{name} {at}": each.tally for name, clients in kinds.items() for at, each in enumerate(clients, 1)}

    @property
    def connected(self) -> list[Healthy | HealthyStream]:
        """The clients whose connections last for the whole run."""
        return [*self.healthy, *self.streams]

    def have_all(self) -> bool:
        """Whether each healthy client has all confirmed events that it must get."""
        newest = max(self.fetcher.confirmed)
        return all(
            len(tally.counts) > newest
            and all(tally.counts[number] for number in self.fetcher.confirmed if number >= tally.first)
            for tally in self.tallies.values()
        )

    async def begin_polling(self, count: int) -> None:
        """Starts clients that poll, and waits until each has its first response. No event may be published meanwhile.

        The clients start late, because none of them could follow the events that fill the caches.
        """
        await eventually("all clients have all events", self.have_all)
        self.pollers += [Poller(self.port, max(self.fetcher.published) + 1) for _ in range(count)]
        await asyncio.gather(*(poller.started.wait() for poller in self.pollers))

    async def end_polling(self) -> None:
        """Ends the clients that poll."""
        await asyncio.gather(*(poller.leave() for poller in self.pollers))


async def soak(broker: Broker, plan: Plan, say: Callable[[str], None]) -> Outcome:
    """Runs the whole soak."""
    names = Names(unique("soak"), unique("soak"), unique("soak"))
    mortal = not isinstance(broker, NamedBroker)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_delete_all, broker.url, names)
        tunnel = await stack.enter_async_context(proxy(broker.url))
        await tunnel.open()
        process = await stack.enter_async_context(_bridge(f"{tunnel.url}?heartbeat={plan.heartbeat_s}", names))
        await process.consuming()
        port = await process.port()
        fetcher = Fetcher(broker.url, names.exchange, plan)
        stack.push_async_callback(fetcher.stop)
        healthy = [await connect(Healthy, port) for _ in range(plan.healthy)]
        for client in healthy:
            stack.push_async_callback(client.leave)
            await client.opened
        streams = [await connect(HealthyStream, port) for _ in range(plan.streams)]
        for stream in streams:
            stack.push_async_callback(stream.leave)
            await stream.opened
        stage = Stage(process, port, fetcher, healthy, streams, plan)
        say(f"priming: {plan.prime:,} updates fill caches, which must not count as growth")
        await fetcher.prime()
        stack.push_async_callback(stage.end_polling)
        await stage.begin_polling(plan.polling)
        say("primed; waiting until the numbers of tasks and descriptors are stable")
        before = await stage.watch.settled()
        say("the run begins")
        breaking = Breaking(plan, tunnel, broker, say, mortal=mortal)
        await _run_load(stage, plan, breaking)
        say("the run is over, and the other clients are gone; waiting for the remaining deliveries")
        async with observer(broker.url) as amqp:
            drain_failures = await _drain(stage, amqp, names)
            after = await stage.watch.back_at(before)
            figures = await _figures(stage, breaking)
            received = _received(stage)
            await stage.end_polling()
            ends = await _stop(stage)
            rejected = await _rejected(amqp, names.rejects)
        figures["invalid events found in the queue of rejected events"] = (
            f"{len(rejected & fetcher.invalid)} of {len(fetcher.invalid)}"
        )
        stage.stretches.judge_all()
        evidence = Evidence(
            published=fetcher.published,
            confirmed=fetcher.confirmed,
            received=received,
            invalid=fetcher.invalid,
            rejected=rejected,
            seconds=plan.seconds,
            samples=stage.watch.samples,
            counted=[Counted("tasks", before[0], after[0]), Counted("descriptors", before[1], after[1])],
            noticed=sum(
                (poller.wrong for poller in stage.pollers),
                Counter(stage.stretches.wrong) + stage.crowd.wrong + _log_failures(process) + drain_failures + ends,
            ),
            expected=_expected(stage, breaking, set(rotation(plan.faults, mortal=mortal))),
        )
        return Outcome(evidence, figures)


async def _run_load(stage: Stage, plan: Plan, breaking: Breaking) -> None:
    """Runs the fetcher, the clients and the faults together for the planned time."""
    stage.fetcher.begin()
    stage.crowd.begin()
    looking = asyncio.create_task(_notify_evicted(stage))
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(breaking.run())
            tasks.create_task(stage.watch.run(plan.seconds))
    finally:
        await stage.crowd.end()
        looking.cancel()
        await asyncio.wait([looking])
    await stage.fetcher.finish()


async def _notify_evicted(stage: Stage) -> None:
    while True:
        await asyncio.sleep(LOOK_S)
        stage.crowd.notify_evicted()


async def _drain(stage: Stage, amqp: AbstractConnection, names: Names) -> Counter[str]:
    """Waits until the queue is empty and the healthy clients have all confirmed events. Returns the failures."""
    wrong: Counter[str] = Counter()

    async def nothing_waits() -> bool:
        channel = await amqp.channel()
        declared = (await channel.declare_queue(names.queue, passive=True)).declaration_result
        await channel.close()
        return declared.consumer_count == 1 and not declared.message_count

    calm: list[tuple[str, Callable[[], object]]] = [
        ("the queue is empty, and the bridge is its only consumer", nothing_waits),
        ("each healthy client has all confirmed events", stage.have_all),
    ]
    for what, holds in calm:
        try:
            await eventually(what, holds, limit_s=DRAIN_LIMIT_S)
        except AssertionError as error:
            wrong[str(error)] += 1
    await asyncio.sleep(STILL_S)
    return wrong


async def _stop(stage: Stage) -> Counter[str]:
    """Stops the bridge with SIGTERM, and returns the failures."""
    stage.process.process.send_signal(signal.SIGTERM)
    code = await stage.process.ended()
    wrong = Counter({f"the bridge ended with exit code {code}": 1} if code else {})
    for client in stage.connected:
        if (end := await client.ended) != GOING_AWAY:
            wrong[f"a healthy client was closed with {end} when the bridge stopped, not {GOING_AWAY}"] += 1
    return wrong


def _received(stage: Stage) -> list[Received]:
    """Returns what each healthy client has received, and whether the bridge has closed its connection."""
    ends = {client.tally: client.ended for client in stage.connected if client.ended.done()}
    return [
        Received(name, tally.counts, f"code {ends[tally].result()}" if tally in ends else "", tally.first)
        for name, tally in stage.tallies.items()
    ]


def _log_failures(process: BridgeProcess) -> Counter[str]:
    """Returns the log lines that only a broken bridge writes."""
    wrong = Counter(f"the bridge failed: {line['event']}" for line in process.lines if "exception" in line)
    return wrong + Counter(f"the bridge logged: {text}" for text in process.texts)


async def _rejected(amqp: AbstractConnection, rejects: str) -> set[int]:
    count = await depth(amqp, rejects)
    bodies = [message.body for message in await take(amqp, rejects, count)] if count else []
    return {int(found[1]) for body in bodies if (found := INVALID_NUMBER.search(body))}


def _expected(stage: Stage, breaking: Breaking, faults: set[Fault]) -> dict[str, int]:
    seen = stage.crowd.seen
    return {
        "clients that stall are evicted": seen["stalled, closed with 4008"],
        "event streams that stall are ended": seen["stalled SSE, closed with 0"],
        "requests for JSON are answered": seen["JSON, answered"],
        "clients that come and go get updates": stage.stretches.right,
        "updates arrive late and out of order": stage.healthy[0].tally.late,
        "invalid events": len(stage.fetcher.invalid),
        **{f"fault: {fault.value}": breaking.done[fault] for fault in faults},
    }


async def _figures(stage: Stage, breaking: Breaking) -> dict[str, str]:
    """Returns the figures of the run by their names."""
    fetcher, watch = stage.fetcher, stage.watch

    async def count(name: str) -> str:
        return f"{await metric(stage.port, name):,.0f}"

    return {
        "confirmed events": f"{len(fetcher.confirmed):,}, with {fetcher.bursts} bursts",
        "unsure events": f"{len(fetcher.published - fetcher.confirmed):,}",
        "updates at a healthy client": f"{len(stage.healthy[0].tally.numbers):,}",
        "of these after newer ones": f"{max(client.tally.late for client in stage.healthy):,}",
        **{f"fault: {fault.value}": str(times) for fault, times in breaking.done.items()},
        "times that the bridge lost its broker": await count("bridge_broker_losses_total"),
        "redeliveries": await count("bridge_redeliveries_total"),
        "duplicates not sent": await count('bridge_duplicates_total{type="killmail"}'),
        **{f"clients: {what}": f"{times:,}" for what, times in sorted(stage.crowd.seen.items())},
        "clients whose updates match those of a healthy client": f"{stage.stretches.right:,}",
        **{
            f"connections opened: {each}": await count(f'bridge_connections_opened_total{{transport="{each}"}}')
            for each in Transport
        },
        "processor: the bridge, of a core": f"{watch.bridge_cpu:.0%}",
        "processor: this program, of a core": f"{watch.own_cpu:.0%}, at most {watch.late_s:.2f} s late",
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


async def _delete_all(broker_url: str, names: Names) -> None:
    """Deletes the queues and exchanges at the broker."""
    async with observer(broker_url) as amqp:
        channel = await amqp.channel()
        for queue in (names.queue, names.rejects):
            await channel.queue_delete(queue)
        for exchange in (names.exchange, names.rejects):
            await channel.exchange_delete(exchange)
