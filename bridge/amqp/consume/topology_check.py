"""While the bridge consumes, checks at intervals that the exchanges, the queue and the bindings still exist.

If an exchange is deleted and declared again, its bindings are gone. Events then no longer arrive, and the broker
reports no error. An exchange that is declared again as a direct exchange accepts the bridge's binding, but delivers
nothing.

Each check has its own channel, because the broker closes a channel when it refuses a request on it. A cluster node that
is cut off from the majority answers some requests and leaves other requests without an answer (seen with RabbitMQ 4.3).
A session on such a node may still deliver, so a missing answer to one check does not end the session. Until the broker
answers the check again, the bridge only warns.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import aiormq
import structlog

from bridge.amqp.connection import Connection
from bridge.amqp.connection_errors import error_text
from bridge.amqp.timeouts import TICKS, no_reply_error
from bridge.amqp.topology import ROUTING_KEY, Exchange, Request, Topology
from bridge.timing import DEFAULT, Timing

_log = structlog.get_logger("bridge.amqp")

UNVERIFIED_BINDING = "the user may not bind the queue, and the bridge can't check whether it is bound"
"""A warning that is logged once for each connection. If the queue is not bound, no events arrive, and the bridge can't
detect this failure."""

INACCESSIBLE_EXCHANGE = "the user has no permission on the exchange, so the bridge can't check whether it exists"
"""A warning that is logged once for each connection. Since RabbitMQ 4.3, a passive declaration of an exchange needs a
permission on the exchange."""


class Reading(Protocol):
    """Tells whether the bridge reads from the connection or has paused."""

    paused: bool


@dataclass(slots=True)
class Check:
    """A request to the broker that is repeated at intervals, with its last result."""

    purpose: str
    """The purpose of the request. In a warning, the purpose stands after the words "to" or "may no longer"."""
    request: Request
    """The function that sends the request. Returns the number of events in a queue, or None for an exchange or a
    binding. Raises the broker's error if the request fails."""
    pending: bool = False
    """True from the request to its answer."""
    pending_ticks: int = 0
    """How long the request has been pending, in hundredths of `check_timeout_s` (see `timeouts`)."""
    refusal: str | None = None
    """The broker's error text if the broker refused the last request."""
    passed_s: float | None = None
    """The time (monotonic seconds) of the last request that succeeded and found no event waiting in the queue."""


class TopologyCheck:
    """Checks a topology until a part of it is missing. `warnings` names the parts that can't be checked."""

    def __init__(
        self,
        amqp: Connection,
        topology: Topology,
        on_answer: Callable[[float], None],
        on_complete: Callable[[float], None],
        reading: Reading,
        *,
        named: bool,
        timing: Timing = DEFAULT,
    ) -> None:
        """`on_answer` is called for each answer, with the time of the request (monotonic seconds).

        `on_complete` is called with a time at which all parts of the topology existed and no event waited in the queue.
        If a binding is deleted and created again between two requests, the check does not notice it. While
        `reading.paused` is true, the check does not count a missing answer as a failure. `named` is True for a named
        queue, which may have other consumers.
        """
        self.answered = False
        """True when the broker has answered a request."""
        self.other_consumers = 0
        """The number of other consumers of a named queue."""
        self._amqp = amqp
        self._topology = topology
        self._on_answer = on_answer
        self._on_complete = on_complete
        self._reading = reading
        self._named = named
        self._timing = timing
        self._checks = tuple(self._checks_of(topology))
        self._stopping = False
        self._silent_ticks = 0
        """For how long the broker has answered none of the requests, in hundredths of `check_timeout_s`."""

    async def run(self) -> None:
        """Runs until cancelled. Raises the broker's error if a part of the topology is missing or has changed.

        Raises ConnectionError if no request is answered within `check_timeout_s`.
        """
        topology = self._topology
        if topology.unverified_bindings:
            _log.warning(UNVERIFIED_BINDING, queue=topology.queue, exchanges=topology.unverified_bindings)
        if topology.inaccessible:
            _log.warning(INACCESSIBLE_EXCHANGE, exchanges=topology.inaccessible)
        repeating = {asyncio.create_task(self._repeat(check)): check for check in self._checks}
        watching = asyncio.create_task(self._watch_timeouts())
        try:
            ended, _ = await asyncio.wait([*repeating, watching], return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        finally:
            watching.cancel()
            # If a request is cancelled, aiormq closes its channel. If the broker refuses the request at the same
            # moment, the broker also closes the channel, and then the whole connection.
            pending = [task for task, check in repeating.items() if check.pending and not task.done()]
            for task in repeating.keys() - pending:
                task.cancel()
            self._stopping = True
            if pending:
                await asyncio.wait(pending, timeout=self._timing.give_up_s)
            for task in pending:
                task.cancel()
            await asyncio.gather(*repeating, watching, return_exceptions=True)

    @property
    def warnings(self) -> list[str]:
        """The warnings for `/readyz` about parts of the topology that can't be checked."""
        warnings = []
        if self._topology.unverified_bindings:
            warnings.append(
                f"the user of BRIDGE_AMQP_URL may not bind the queue to "
                f"{', '.join(self._topology.unverified_bindings)}, and the bridge can't check whether it is bound: the "
                "queue's owner must bind it, and bind it again whenever one of these exchanges is declared again"
            )
        if self._topology.inaccessible:
            warnings.append(
                f"the user of BRIDGE_AMQP_URL has no permission on {', '.join(self._topology.inaccessible)}, so the "
                "bridge can't check whether it exists: grant read on it"
            )
        return [*warnings, *filter(None, map(self._warning, self._checks))]

    # The checks

    def _checks_of(self, topology: Topology) -> Iterator[Check]:
        for exchange in topology.exchanges:
            if exchange.name not in topology.inaccessible:
                yield Check(f"look at the exchange {exchange.name!r}", _exchange_request(exchange))
        yield Check(f"look at the queue {topology.queue!r}", self._queue_request(topology.queue))
        for exchange in topology.exchanges:
            if exchange.name not in topology.unverified_bindings:
                yield Check(
                    f"bind the queue {topology.queue!r} to the exchange {exchange.name!r}",
                    _binding_request(topology.queue, exchange.name),
                )

    def _queue_request(self, queue: str) -> Request:
        async def request(channel: aiormq.abc.AbstractChannel) -> int:
            declared = await channel.queue_declare(queue, passive=True)
            if self._named:
                self._count_other_consumers(queue, (declared.consumer_count or 0) - 1)
            return declared.message_count or 0

        return request

    def _count_other_consumers(self, queue: str, others: int) -> None:
        if others > 0 and not self.other_consumers:
            _log.error(
                "other consumers share this bridge's queue, and each event goes to only one of them; give every bridge "
                "its own BRIDGE_QUEUE (just after a lost connection, it may be the bridge's old consumer for a while)",
                queue=queue,
                others=others,
            )
        elif others <= 0 and self.other_consumers:
            _log.info("no other consumer shares this bridge's queue any more", queue=queue)
        self.other_consumers = max(0, others)

    # Requests and answers

    async def _repeat(self, check: Check) -> None:
        channel: aiormq.abc.AbstractChannel | None = None
        opened_s = 0.0
        pause_s = self._timing.check_interval_s
        while not self._stopping:
            await asyncio.sleep(pause_s)
            check.pending, check.pending_ticks, requested_s = True, 0, time.monotonic()
            if channel is not None and time.monotonic() - opened_s >= self._timing.refused_interval_s:
                # The broker caches the user's permissions until the channel is closed.
                await channel.close()
            if channel is None or channel.is_closed:
                channel, opened_s = await self._amqp.channel(publisher_confirms=False), time.monotonic()
            refusal = None
            try:
                if not await check.request(channel):
                    check.passed_s = requested_s
            except aiormq.exceptions.ChannelAccessRefused as error:
                refusal = error_text(error)
            self._record_answer(check, requested_s, refusal)
            # Refused requests are repeated less often, because the broker logs each refusal.
            pause_s = self._timing.check_interval_s if refusal is None else self._timing.refused_interval_s

    def _record_answer(self, check: Check, requested_s: float, refusal: str | None) -> None:
        warned = self._warning(check) is not None
        check.pending, check.refusal = False, refusal
        self._silent_ticks = 0
        self.answered = True
        self._on_answer(requested_s)
        passed_s = [each.passed_s for each in self._checks if each.passed_s is not None]
        if len(passed_s) == len(self._checks):
            self._on_complete(min(passed_s))
        warning = self._warning(check)
        if warning and not warned:
            _log.warning(warning)
        elif warned and not warning:
            _log.info(f"the bridge can {check.purpose} again")

    async def _watch_timeouts(self) -> None:
        limit_s = self._timing.check_timeout_s
        while True:
            await asyncio.sleep(limit_s / TICKS)
            if self._reading.paused:
                continue
            pending = [check for check in self._checks if check.pending]
            self._silent_ticks = self._silent_ticks + 1 if pending else 0
            if self._silent_ticks >= TICKS:
                raise no_reply_error(limit_s)
            for check in pending:
                check.pending_ticks += 1
                if check.pending_ticks == TICKS:
                    _log.warning(self._warning(check))

    def _warning(self, check: Check) -> str | None:
        if check.refusal is not None:
            return f"the user of BRIDGE_AMQP_URL may no longer {check.purpose}: {check.refusal}"
        if check.pending and check.pending_ticks >= TICKS:
            return (
                f"the broker answers other requests, but not the one to {check.purpose}: a cluster node does that "
                "while it has no majority"
            )
        return None


def _exchange_request(exchange: Exchange) -> Request:
    async def request(channel: aiormq.abc.AbstractChannel) -> None:
        # A passive declaration comes first, because an active declaration alone would create a missing exchange.
        await channel.exchange_declare(exchange.name, passive=True)
        if exchange.kind is not None:
            await channel.exchange_declare(exchange.name, exchange_type=exchange.kind, durable=exchange.durable)

    return request


def _binding_request(queue: str, exchange: str) -> Request:
    async def request(channel: aiormq.abc.AbstractChannel) -> None:
        await channel.queue_bind(queue, exchange, ROUTING_KEY)

    return request
