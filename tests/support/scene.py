"""A scene for faults of the broker: a fetcher, an exchange, and two bridges with one client each.

One bridge consumes a named queue, and the other bridge an exclusive queue. Both bridges run as processes, like the
bridges of an operator. The fetcher continuously publishes numbered killmails, and records which killmails were
confirmed. The test compares the confirmed killmails with the updates of each client, and checks the log and `/readyz`
of each bridge.
"""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import datetime
from functools import partial
from typing import Any

import aio_pika
import aiormq
import orjson

from bridge.timing import DEFAULT, Timing
from tests.support import figures
from tests.support.clients import RawClient, get
from tests.support.killmail import killmail
from tests.support.publishing import connect, observer
from tests.support.running import BridgeProcess, bridge_process, timed_command, unique
from tests.support.waiting import eventually

NAMED, EXCLUSIVE = "named queue", "exclusive queue"

ATTEMPTS = "bridge_broker_connection_attempts_total"

PAUSE_S = 0.01
"""The pause between two events.

The fetcher publishes a hundred events a second. This is a hundred times the rate at which all of EVE Online produces
killmails.
"""

RECOVERY_LIMIT_S = 10.0
"""The maximum time from the end of the fault's cause until the bridge consumes again, on a busy machine.

On an idle machine, the bridge recovers in a tenth of RECOVERY_LIMIT_S.
"""

LEFTOVERS_LIMIT_S = 45.0
"""The time until the broker detects that a connection is dead and delivers its unsettled events again."""

GOODBYE_S = 5.0

SAMPLE_S = 0.1

ROUNDING_S = 0.01
"""The maximum rounding error of the times in a gap message."""

SLACK_S = 2.0
"""While no update arrives, `/readyz` may return 200 for at most SLACK_S plus `answer_valid_s`."""


class SceneFetcher:
    """Publishes continuously with confirms, reconnects by itself, and records the time of each confirm."""

    def __init__(self, broker_url: str, exchange: str) -> None:
        self._url = broker_url
        self._exchange = exchange
        self._number = 0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._is_publishing = False
        self.began: dict[int, float] = {}
        """For each killmail id, the monotonic time (s) at which the fetcher began to publish the killmail."""
        self.confirmed: dict[int, float] = {}
        """For each killmail id, the monotonic time (s) at which the fetcher read the confirm."""
        self._running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            with suppress(aiormq.exceptions.AMQPError, OSError, RuntimeError, TimeoutError):
                await self._publish()
            await asyncio.sleep(0.1)

    async def _publish(self) -> None:
        connection = await connect(self._url, timeout_s=2)
        try:
            channel = await connection.channel(publisher_confirms=True)
            target = await channel.get_exchange(self._exchange, ensure=False)
            while True:
                await self._flowing.wait()
                self._number = number = self._number + 1
                message = aio_pika.Message(orjson.dumps(killmail(number)), delivery_mode=2)
                self.began[number] = time.monotonic()
                self._is_publishing = True
                try:
                    async with asyncio.timeout(GOODBYE_S):
                        # Because `mandatory` is off, the broker confirms an event that it can't route, so this event
                        # counts as lost.
                        await target.publish(message, routing_key="", mandatory=False)
                    self.confirmed[number] = time.monotonic()
                finally:
                    self._is_publishing = False
                await asyncio.sleep(PAUSE_S)
        finally:
            closing = asyncio.ensure_future(connection.close())
            await asyncio.wait([closing], timeout=GOODBYE_S)
            closing.cancel()

    async def pause(self) -> None:
        """Pauses the fetcher, and returns as soon as no event is being published."""
        self._flowing.clear()
        await eventually("the last publish has ended", lambda: not self._is_publishing)

    def resume(self) -> None:
        """Publishes again."""
        self._flowing.set()

    async def further(self, count: int) -> None:
        """Waits until `count` more events are confirmed."""
        enough = len(self.confirmed) + count
        await eventually("more events are confirmed", lambda: len(self.confirmed) >= enough)

    async def stop(self) -> None:
        """Ends the fetcher."""
        self._running.cancel()
        await asyncio.wait([self._running])


class Watched:
    """A bridge, its client, and a task that reads the bridge's `/readyz`."""

    def __init__(self, name: str, process: BridgeProcess, port: int, client: RawClient, fetcher: SceneFetcher) -> None:
        self.name = name
        self.process = process
        self.port = port
        self.client = client
        self.received: list[int] = []
        self.arrived: dict[int, float] = {}
        """For each killmail id, the monotonic time (s) at which the killmail first arrived."""
        self.falsely_ready_s = 0.0
        """The longest time for which `/readyz` returned 200 although a confirmed event had not arrived."""
        self._fetcher = fetcher
        self._stopping = False
        self._reading, self._looking = asyncio.create_task(self._read()), asyncio.create_task(self._look())

    async def _read(self) -> None:
        while True:
            # The client has no timeout, because an outage may be long.
            number = orjson.loads(await self.client.text(limit_s=None))["data"]["killmailId"]
            self.received.append(number)
            self.arrived.setdefault(number, time.monotonic())

    async def _look(self) -> None:
        blind_since: float | None = None
        while not self._stopping:
            status, _ = await self.state()
            now_s = time.monotonic()
            # The events that were confirmed more than SLACK_S ago, and are newer than all events that the client has
            # received.
            newest = max(self.arrived, default=0)
            waiting = [at for number, at in self._fetcher.confirmed.items() if number > newest and now_s - at > SLACK_S]
            if status == 200 and waiting:
                blind_since = blind_since or now_s
                self.falsely_ready_s = max(self.falsely_ready_s, now_s - blind_since)
            else:
                blind_since = None
            await asyncio.sleep(SAMPLE_S)

    async def state(self) -> tuple[int, dict[str, Any]]:
        """Returns the status and the body of `/readyz`."""
        status, body = await get(self.port, "/readyz")
        return status, orjson.loads(body)

    async def metric(self, name: str) -> float:
        """Returns the value of a metric without labels."""
        _, body = await get(self.port, "/metrics")
        return next(float(line.split()[1]) for line in body.decode().splitlines() if line.startswith(f"{name} "))

    async def not_ready(self, *words: str) -> dict[str, Any]:
        """Waits until `/readyz` returns 503 with a last broker error that contains all the given words.

        Returns the body of the response from `/readyz`.
        """
        body: dict[str, Any] = {}

        async def is_reported() -> bool:
            nonlocal body
            status, body = await self.state()
            return status == 503 and all(word in str(body["broker"]["last_error"]) for word in words)

        try:
            await eventually(f"/readyz is 503 with {words}", is_reported, limit_s=40)
        except AssertionError as error:
            raise AssertionError(f"{error}; its body: {body}") from None
        return body

    async def stop(self) -> None:
        """Stops the bridge as its operator does."""
        self._stopping = True
        self._reading.cancel()
        await asyncio.wait([self._reading, self._looking])
        self.process.process.send_signal(signal.SIGTERM)
        await self.client.close()
        code = await self.process.ended()
        self._looking.result()
        if not self._reading.cancelled():
            self._reading.result()
        assert code == 0


class Fault:
    """One fault, with its start, its end, and the state before the fault."""

    def __init__(self, confirmed: set[int], attempts: dict[str, float], gaps: float, lines: dict[str, int]) -> None:
        self.confirmed_before = confirmed
        self.attempts_before = attempts
        """For each bridge, how often it had tried to connect before the fault."""
        self.gaps_before = gaps
        """The number of gaps that the bridge with the exclusive queue had reported before the fault."""
        self.lines_before = lines
        """For each bridge, the number of log lines before the fault."""
        self.began_s = time.monotonic()
        self.is_over = False
        self.over_s = self.over_unix_s = 0.0

    def lines(self, bridge: Watched, *events: str) -> list[dict[str, object]]:
        """Returns the bridge's log lines since the fault began.

        If `events` are given, only the lines with one of these events are returned.
        """
        lines = bridge.process.lines[self.lines_before[bridge.name] :]
        return [line for line in lines if not events or line["event"] in events]

    def over(self) -> None:
        """The test must call `over` when the cause of the fault has ended."""
        self.is_over = True
        self.over_s, self.over_unix_s = time.monotonic(), time.time()


class Scene:
    """A fetcher, an exchange, and two bridges with one client each."""

    def __init__(
        self,
        exchange: str,
        queue: str,
        rejects: str,
        fetcher: SceneFetcher,
        named: Watched,
        exclusive: Watched,
        timing: Timing,
    ) -> None:
        self.exchange = exchange
        self.queue = queue
        self.rejects = rejects
        self.fetcher = fetcher
        self.named = named
        self.exclusive = exclusive
        self.bridges = {NAMED: named, EXCLUSIVE: exclusive}
        self.timing = timing

    async def fault(self) -> Fault:
        """Records the state before a fault.

        After the call of `fault`, the test causes the fault, and `verify` checks the outcome.
        """
        # If an earlier test failed, the fetcher may still be paused, and `falsely_ready_s` may still be set.
        self.fetcher.resume()
        for bridge in self.bridges.values():
            bridge.falsely_ready_s = 0.0
        await self.fetcher.further(20)
        return Fault(
            set(self.fetcher.confirmed),
            {name: await bridge.metric(ATTEMPTS) for name, bridge in self.bridges.items()},
            await self.exclusive.metric("bridge_gaps_total"),
            {name: len(bridge.process.lines) for name, bridge in self.bridges.items()},
        )

    async def verify(
        self,
        fault: Fault,
        what: str,
        does: str,
        *,
        limit_s: float = RECOVERY_LIMIT_S,
        kept: bool = True,
        noticed: Collection[str] | None = (NAMED, EXCLUSIVE),
    ) -> None:
        """Checks the guarantees of both bridges after a fault, and adds a row to the table.

        `what` names the fault, and `does` names the reaction of the bridge. `limit_s` is the longest time that the
        recovery may take. `kept` is False if even a named queue may lose events during the fault. `noticed` names the
        bridges that lose their connection. `noticed` is None if it is not certain which bridges lose their connection,
        because this depends on when a bridge last checked the connection.
        """
        if not fault.is_over:
            fault.over()
        recovered_s = {
            name: await self._recovered(bridge, fault, limit_s, noticed is not None and name in noticed)
            for name, bridge in self.bridges.items()
        }
        await self.fetcher.further(20)
        await self.fetcher.pause()
        await asyncio.gather(*(self._all_arrived(bridge) for bridge in self.bridges.values()))
        if kept:
            # Once the broker has detected that a connection is dead, it redelivers the events of this connection.
            with suppress(AssertionError):
                await eventually(
                    "all events arrive", lambda: not self._lost(self.named, fault), limit_s=LEFTOVERS_LIMIT_S
                )
        lost = {name: self._lost(bridge, fault) for name, bridge in self.bridges.items()}
        duplicates = sum(len(bridge.received) - len(bridge.arrived) for bridge in self.bridges.values())
        assert duplicates == 0
        assert not (kept and lost[NAMED]), f"{len(lost[NAMED])} events are lost, of a named queue: {lost[NAMED][:20]}"
        outage_s = time.monotonic() - fault.began_s
        for name, bridge in self.bridges.items():
            self._check_reports(bridge, fault, None if noticed is None else name in noticed)
            tried = await bridge.metric(ATTEMPTS) - fault.attempts_before[name]
            # At first, the bridge makes a few quick attempts to connect. Once its pauses no longer grow, it makes one
            # attempt after each pause.
            assert tried <= 6 + outage_s / 0.75, f"{tried:.0f} attempts in {outage_s:.0f} s"
        if noticed:
            await self._check_gap(fault, lost[EXCLUSIVE])
        published = len(self.fetcher.confirmed) - len(fault.confirmed_before)
        figures.record(
            what,
            does,
            f"{len(lost[NAMED])} ({len(lost[EXCLUSIVE])}) of {published}",
            str(duplicates),
            f"{recovered_s[NAMED]:.1f} s ({recovered_s[EXCLUSIVE]:.1f} s)",
        )
        self.fetcher.resume()

    async def noticed(self, fault: Fault) -> None:
        """Waits until each bridge has logged the loss of its broker."""
        for bridge in self.bridges.values():
            await eventually("the loss is noticed", partial(fault.lines, bridge, "broker lost"))

    async def _recovered(self, bridge: Watched, fault: Fault, limit_s: float, noticed: bool) -> float:
        over_s, over_unix_s = fault.over_s, fault.over_unix_s

        def arrival() -> float | None:
            began = self.fetcher.began
            after = [at for number, at in bridge.arrived.items() if began[number] > over_s]
            return min(after, default=None)

        def back() -> bool:
            lost, recovered = fault.lines(bridge, "broker lost"), fault.lines(bridge, "broker recovered")
            return len(lost) == len(recovered) and bool(recovered) >= noticed

        await eventually("the connection is back", back)
        await eventually("an event that was published after the fault arrives", lambda: arrival() is not None)
        # Events that were in flight when the fault began may arrive after the fault.
        recovered = fault.lines(bridge, "broker recovered")[-1:]
        logged_s = [datetime.fromisoformat(str(line["timestamp"])).timestamp() for line in recovered]
        took_s = max([0.0, (arrival() or 0.0) - over_s, *(at_s - over_unix_s for at_s in logged_s)])
        assert took_s <= limit_s, f"consuming again after {took_s:.1f} s"

        async def ready() -> bool:
            return (await bridge.state())[0] == 200

        await eventually("/readyz returns 200", ready)
        return took_s

    async def _all_arrived(self, bridge: Watched) -> None:
        last = max(self.fetcher.confirmed)
        await eventually("the last event arrives", lambda: last in bridge.arrived)

    def _lost(self, bridge: Watched, fault: Fault) -> list[int]:
        return [n for n in self.fetcher.confirmed if n not in bridge.arrived and n not in fault.confirmed_before]

    def _check_reports(self, bridge: Watched, fault: Fault, noticed: bool | None) -> None:
        assert bridge.process.process.returncode is None
        assert bridge.process.texts == []
        limit_s = self.timing.answer_valid_s + SLACK_S
        assert bridge.falsely_ready_s <= limit_s, f"/readyz returned 200 {bridge.falsely_ready_s:.1f} s without updates"
        new = [line for line in fault.lines(bridge) if line["level"] in {"warning", "error", "info"}]
        lost = [line for line in new if line["event"] == "broker lost"]
        recovered = [line for line in new if line["event"] == "broker recovered"]
        assert len(lost) == len(recovered), new
        assert noticed is None or bool(lost) == noticed, new
        # A connection logs each change of its state once, no matter how many attempts to connect fail. Rejected events
        # have their own log lines.
        changes = [line for line in new if line["event"] != "event rejected"]
        assert len(changes) <= 8 * max(1, len(lost)), new
        assert [line for line in new if "exception" in line] == []

    async def _check_gap(self, fault: Fault, lost: list[int]) -> None:
        """Checks that the events that an exclusive queue lost are within the reported gap."""
        if not lost:
            return
        _, body = await self.exclusive.state()
        gaps = await self.exclusive.metric("bridge_gaps_total") - fault.gaps_before
        recovered = fault.lines(self.exclusive, "broker recovered")
        assert gaps == len(recovered)
        assert all(line["gap_possible"] for line in recovered)
        if gaps == 1:
            since_s, until_s = (datetime.fromisoformat(body["last_gap"][end]).timestamp() for end in ("since", "until"))
            ahead_s = time.time() - time.monotonic()
            began, confirmed = self.fetcher.began, self.fetcher.confirmed
            # The broker dropped the event at some time between the start of its publication and its confirm.
            outside = [
                n
                for n in lost
                if began[n] + ahead_s > until_s + ROUNDING_S or confirmed[n] + ahead_s < since_s - ROUNDING_S
            ]
            assert outside == [], body["last_gap"]


@asynccontextmanager
async def scene(
    broker_url: str, bridge_url: str | None = None, timing: Timing = DEFAULT, /, **variables: str
) -> AsyncIterator[Scene]:
    """Starts a scene on a broker, and waits until everything works.

    The bridges connect to `bridge_url`, and the fetcher to `broker_url`. `variables` are further settings of the
    bridges.
    """
    exchange, queue, rejects = unique("exchange"), unique("queue"), unique("rejects")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_delete_all, broker_url, (exchange, rejects), (queue, rejects))
        settings = {"BRIDGE_EXCHANGES": f"{exchange}=killmail", "BRIDGE_REJECT_EXCHANGE": rejects}
        # The idle timeout is long, because the clients answer no ping, and a scene may last for minutes.
        settings |= {"BRIDGE_IDLE_TIMEOUT": "1h", **variables}
        url = bridge_url or broker_url
        processes = [
            await stack.enter_async_context(bridge_process(url, command=timed_command(timing), **settings, **queues))
            for queues in ({"BRIDGE_QUEUE": queue}, {})
        ]
        for process in processes:
            await process.consuming()
        fetcher = SceneFetcher(broker_url, exchange)
        stack.push_async_callback(fetcher.stop)
        watched: dict[str, Watched] = {}
        for name, process in zip((NAMED, EXCLUSIVE), processes, strict=True):
            port = await process.port()
            bridge = Watched(name, process, port, await RawClient.open(port), fetcher)
            stack.push_async_callback(bridge.stop)
            watched[name] = bridge
        yield Scene(exchange, queue, rejects, fetcher, watched[NAMED], watched[EXCLUSIVE], timing)


async def _delete_all(broker_url: str, exchanges: tuple[str, ...], queues: tuple[str, ...]) -> None:
    """Deletes the exchanges and queues of the scene."""
    async with observer(broker_url) as amqp:
        channel = await amqp.channel()
        for queue in queues:
            await channel.queue_delete(queue)
        for exchange in exchanges:
            await channel.exchange_delete(exchange)
