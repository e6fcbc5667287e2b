"""Whether what events flow through is still there: asked again and again, as long as the bridge consumes.

An exchange that is deleted and declared again takes the binding with it, and nobody is told: no error, no messages. One
that was declared again as a direct exchange takes the binding, and delivers nothing.

Each question has a channel of its own. The broker closes the channel on which it refuses one, and a node of a cluster
without its majority (seen with RabbitMQ 4.3) leaves some without an answer and answers the others. Neither ends what
still delivers: it is a warning, until the broker answers again.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import aiormq
import structlog

from bridge.amqp.connection import Connection
from bridge.amqp.connection_errors import error_text
from bridge.amqp.timeouts import TICKS, no_reply_error
from bridge.amqp.topology import ROUTING_KEY, Exchange, Request, Topology
from bridge.timing import DEFAULT, Timing

_log = structlog.get_logger("bridge.amqp")


UNPROVEN = "the user may not bind the queue, and nobody can ask the broker whether somebody else has"
"""Said once for each connection: where they have not, nothing comes, and nothing else says so."""

HIDDEN = "the user may not look at the exchange, and is not told whether it exists"
"""Said once for each connection: from RabbitMQ 4.3 on, a look takes some permission on the exchange."""


@dataclass(slots=True)
class Question:
    """A request that is made again and again, and how that goes."""

    purpose: str
    """What it is for, after "to"."""
    request: Request
    """Returns something true if more is to be waited for, though all is in its place."""
    waits: bool = False
    """True from the request to its answer."""
    waited: int = 0
    """How long it has waited, in hundredths of the limit (see patience)."""
    refusal: str | None = None
    """The broker's words, if it refused the last request."""
    fine_s: float | None = None
    """When it was last asked, if the answer was that all is in its place (monotonic seconds)."""


class Watch:
    """Checks a topology until something is missing. What it can't find out is among its warnings."""

    def __init__(
        self,
        amqp: Connection,
        found: Topology,
        on_answer: Callable[[float], None],
        on_complete: Callable[[float], None],
        deaf: Callable[[], bool] = lambda: False,
        *,
        named: bool,
        timing: Timing = DEFAULT,
    ) -> None:
        """`on_answer` is told of each answer, with the time at which the broker was asked (monotonic seconds), and
        `on_complete` of the time until which everything was in its place, and no message waited in the queue: as far
        as the broker tells, which it does not of a binding that is gone, and is there again by the next question.

        While `deaf()`, nothing is read from the broker, and it is not blamed for its silence. `named` is True for a
        named queue, which others may consume too.
        """
        self._amqp = amqp
        self._found = found
        self._on_answer = on_answer
        self._on_complete = on_complete
        self._deaf = deaf
        self.answered = False
        """True once the broker has answered anything."""
        self.others = 0
        """How many others consume the named queue, as far as the broker knows."""
        self._named = named
        self._timing = timing
        self._questions = tuple(self._of(found))
        self._over = False
        self._silent = 0
        """Hundredths of the limit since the last answer, while one is due."""

    async def run(self) -> None:
        """Runs until it is cancelled. Raises if something is gone or has become something else, ConnectionError if the
        broker answers nothing any more."""
        found = self._found
        if found.unverified_bindings:
            _log.warning(UNPROVEN, queue=found.queue, exchanges=found.unverified_bindings)
        if found.hidden:
            _log.warning(HIDDEN, exchanges=found.hidden)
        asking = {asyncio.create_task(self._repeat(question)): question for question in self._questions}
        judging = asyncio.create_task(self._judge())
        try:
            ended, _ = await asyncio.wait([*asking, judging], return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        finally:
            judging.cancel()
            # aiormq closes the channel of a request that is cancelled. If the broker closes it at the same time, to say
            # no, it then ends the whole connection.
            waiting = [task for task, question in asking.items() if question.waits and not task.done()]
            for task in asking.keys() - waiting:
                task.cancel()
            self._over = True
            if waiting:
                await asyncio.wait(waiting, timeout=self._timing.give_up_s)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*asking, judging, return_exceptions=True)

    @property
    def warnings(self) -> list[str]:
        """What can't be found out, and why, for `/readyz`."""
        warnings = []
        if self._found.unverified_bindings:
            exchanges = ", ".join(self._found.unverified_bindings)
            warnings.append(
                f"the user of BRIDGE_AMQP_URL may not bind the queue to {exchanges}, and can't "
                "see whether it is bound: whoever made the queue must see to that, again whenever one of these "
                "exchanges was made anew"
            )
        if self._found.hidden:
            warnings.append(
                f"the user of BRIDGE_AMQP_URL may not look at {', '.join(self._found.hidden)}, and is not told whether "
                "it exists: the permission to read it would be enough"
            )
        return [*warnings, *filter(None, map(self._warning, self._questions))]

    def _of(self, found: Topology) -> Iterator[Question]:
        for exchange in found.exchanges:
            if exchange.name not in found.hidden:
                yield Question(f"look at the exchange {exchange.name!r}", _looking_at(exchange))
        yield Question(f"look at the queue {found.queue!r}", self._count_consumers(found.queue))
        for exchange in found.exchanges:
            if exchange.name not in found.unverified_bindings:
                yield Question(
                    f"bind the queue {found.queue!r} to the exchange {exchange.name!r}",
                    _binding(found.queue, exchange.name),
                )

    def _count_consumers(self, queue: str) -> Request:
        async def request(channel: aiormq.abc.AbstractChannel) -> int:
            declared = await channel.queue_declare(queue, passive=True)
            if self._named:
                self._count_others(queue, (declared.consumer_count or 0) - 1)
            return declared.message_count or 0

        return request

    def _count_others(self, queue: str, others: int) -> None:
        if others > 0 and not self.others:
            _log.error(
                "others consume this bridge's queue, and each event goes to one of them only; give every bridge a "
                "BRIDGE_QUEUE of its own (right after a lost connection it may be its own old one, and passes)",
                queue=queue,
                others=others,
            )
        elif others <= 0 and self.others:
            _log.info("nobody else consumes this bridge's queue any more", queue=queue)
        self.others = max(0, others)

    async def _repeat(self, question: Question) -> None:
        channel: aiormq.abc.AbstractChannel | None = None
        opened_s = 0.0
        pause_s = self._timing.check_interval_s
        while not self._over:
            await asyncio.sleep(pause_s)
            question.waits, question.waited, asked_s = True, 0, time.monotonic()
            if channel is not None and time.monotonic() - opened_s >= self._timing.refused_interval_s:
                # The broker keeps what it has found out about permissions for as long as a channel is open.
                await channel.close()
            if channel is None or channel.is_closed:
                channel, opened_s = await self._amqp.channel(publisher_confirms=False), time.monotonic()
            refusal = None
            try:
                if not await question.request(channel):
                    question.fine_s = asked_s
            except aiormq.exceptions.ChannelAccessRefused as error:
                refusal = error_text(error)
            self._answered(question, asked_s, refusal)
            # A broker writes each refusal into its log.
            pause_s = self._timing.check_interval_s if refusal is None else self._timing.refused_interval_s

    def _answered(self, question: Question, asked_s: float, refusal: str | None) -> None:
        doubted = self._warning(question) is not None
        question.waits, question.refusal = False, refusal
        self._silent = 0
        self.answered = True
        self._on_answer(asked_s)
        fine_s = [each.fine_s for each in self._questions if each.fine_s is not None]
        if len(fine_s) == len(self._questions):
            self._on_complete(min(fine_s))
        warning = self._warning(question)
        if warning and not doubted:
            _log.warning(warning)
        elif doubted and not warning:
            _log.info(f"the bridge can {question.purpose} again")

    async def _judge(self) -> None:
        limit_s = self._timing.check_timeout_s
        while True:
            await asyncio.sleep(limit_s / TICKS)
            if self._deaf():
                continue
            waiting = [question for question in self._questions if question.waits]
            self._silent = self._silent + 1 if waiting else 0
            if self._silent >= TICKS:
                raise no_reply_error(limit_s)
            for question in waiting:
                question.waited += 1
                if question.waited == TICKS:
                    _log.warning(self._warning(question))

    def _warning(self, question: Question) -> str | None:
        if question.refusal is not None:
            return f"the user of BRIDGE_AMQP_URL may no longer {question.purpose}: {question.refusal}"
        if question.waits and question.waited >= TICKS:
            return (
                f"the broker answers, but not when it is asked to {question.purpose}: a node of a cluster does that "
                "while it has no majority"
            )
        return None


def _looking_at(exchange: Exchange) -> Request:
    async def request(channel: aiormq.abc.AbstractChannel) -> None:
        # First whether it is there: the second declaration would make it.
        await channel.exchange_declare(exchange.name, passive=True)
        if exchange.kind is not None:
            await channel.exchange_declare(exchange.name, exchange_type=exchange.kind, durable=exchange.durable)

    return request


def _binding(queue: str, exchange: str) -> Request:
    async def request(channel: aiormq.abc.AbstractChannel) -> None:
        await channel.queue_bind(queue, exchange, ROUTING_KEY)

    return request
