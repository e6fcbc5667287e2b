"""Answers requests for updates as JSON. Such a request is a poll: its client reads a part of the log, and leaves.

A poll reads the log by position, like a connection that catches up. `Polls` does all the work in short steps, so that
neither thousands of polls nor a filter that rarely matches delays other work of the event loop:

1. A poll with an id that this instance has not read yet waits for this id (see `resume`).
2. `Polls._read` finds the first position, and searches from there, one segment of the log in each step. The polls take
   turns. A poll keeps only positions, so it takes little memory while it searches.
3. If the search finds nothing, a poll may wait. All waiting polls with the same filter share a `_Watch`. After each
   flush, the filter of each watch is applied to the new updates, and a match or a gap wakes the polls of the watch.
4. The client gets a `PollResult`. It encodes the updates in pieces, when the client has read the previous piece. For a
   client that reads slowly, the bridge therefore keeps only positions and one piece.

This module has no sockets.
"""

from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import orjson
import structlog

from bridge.broadcast.deadlines import Deadlines
from bridge.broadcast.frames import payload_of
from bridge.broadcast.hub_log import LOGGER
from bridge.broadcast.newest_search import NewestSearch
from bridge.broadcast.replay import SEGMENT_UPDATES, ReplayIndex, UpdateFilter
from bridge.contract.envelope import ending
from bridge.contract.filters import EARLIEST, FROM_NOW_ON, SubscribeRequest
from bridge.loop_turn import LoopTurn
from bridge.metrics import Metrics

_log = structlog.get_logger(LOGGER)

MAX_RESPONSE_BYTES = 2**20
"""The maximum size of the updates and gaps in a response, except that a single update may be larger."""

MAX_SCANNED = 2**14
"""The maximum number of positions of the log that a poll searches forwards.

With a filter that has not been applied to these positions yet, the search takes about 30 ms of processor time. Further
positions need another request, so that the cost of a request does not grow with the log."""

MAX_CALLS_PER_STEP = 1024
"""The maximum number of filter calls in one step of the search for waiting polls. They take half a millisecond."""

MAX_WAKES_PER_STEP = 256
"""The maximum number of waiting polls that are queued in one step. This takes less than half a millisecond."""

MAX_RECENT_FILTERS = 32
"""The number of filters of ended polls whose matches stay cached, so that clients can ask again and again.

Without a maximum, each segment of the log could keep other filters in memory, of up to 72 KB each."""

MAX_AHEAD_S = 10.0
"""How long a poll waits for an id that this instance has not read yet, in seconds."""

PIECE_BYTES = 16384
"""The size of a piece of a response. The end of an update can make a piece larger, and the gaps the last piece."""

_BEGIN = b'{"updates":['

_END = object()
"""Stands for the end of an iterator."""


class Overtaken(Exception):
    """The log has dropped an update of a response that the client reads too slowly."""


class PollResult:
    """The response to a poll."""

    __slots__ = ("_end", "_index", "_positions", "size_bytes")

    def __init__(self, index: ReplayIndex, positions: Sequence[int], updates_bytes: int, end: bytes) -> None:
        """`updates_bytes` is the size of the encoded updates, without commas. `end` follows the updates."""
        self._index = index
        self._positions = positions
        self._end = end
        self.size_bytes = len(_BEGIN) + updates_bytes + max(0, len(positions) - 1) + len(end)
        """The size of the body."""

    @property
    def updates(self) -> int:
        """The number of updates in the response."""
        return len(self._positions)

    def pieces(self) -> Iterator[bytes]:
        """Returns the body (UTF-8 JSON) in pieces. Raises `Overtaken` if the log has dropped one of the updates."""
        index, piece = self._index, bytearray(_BEGIN)
        for number, position in enumerate(self._positions):
            piece += b"," if number else b""
            offset, size = 0, 1
            while offset < size:
                if len(piece) >= PIECE_BYTES:
                    yield bytes(piece)
                    piece.clear()
                if position < index.update_log.tail:
                    raise Overtaken
                # The frame is looked up again for each piece. A view of it would keep the frame in memory after the log
                # has dropped it.
                payload = payload_of(index.update_log.frame(position))[:-1]
                size = len(payload)
                part = payload[offset : offset + PIECE_BYTES - len(piece)]
                offset += len(part)
                piece += part
                del payload, part
            piece += _ending(index, position)
        yield bytes(piece + self._end)


class PollClient(Protocol):
    """The client of a poll."""

    def answer(self, result: PollResult) -> None:
        """Called with the response."""

    def refuse(self) -> None:
        """Called if the bridge can't answer now, so that the client should ask again later."""

    def reset(self) -> None:
        """Called after a fault of the bridge."""


@dataclass(slots=True, eq=False)
class _Poll:
    client: PollClient
    request: SubscribeRequest | None
    """The request, or None once the first position is known."""
    filter: UpdateFilter | None
    is_after_id: bool
    """Whether the client asked for the updates after an id."""
    limit: int
    wait_s: int
    may_wait: bool
    """Whether the time of the poll is not over."""
    cursor: int = 0
    """The position up to which the poll has searched."""
    complete: bool = True
    steps: Iterator[None] | None = None
    """The rest of the current search, or None."""
    watch: "_Watch | None" = None
    """The watch in which the poll waits, or None."""
    is_answered: bool = False
    """Whether the client has its response, or has left."""


@dataclass(slots=True, eq=False)
class _Watch:
    """The waiting polls with one filter."""

    filter: UpdateFilter | None
    cursor: int
    """The position up to which the filter matches nothing for these polls."""
    polls: dict[_Poll, None] = field(default_factory=dict)


class Polls:
    """The polls that have no response yet."""

    def __init__(
        self,
        index: ReplayIndex,
        metrics: Metrics,
        turn: LoopTurn,
        call_later: Callable[[float, Callable[[], None]], object],
        time: Callable[[], float],
        is_consuming: Callable[[], bool],
        is_replaying: Callable[[], bool],
        max_ahead_s: float = MAX_AHEAD_S,
    ) -> None:
        """`call_later` and `time` are methods of the event loop.

        `is_consuming` returns whether the bridge has a working broker. `is_replaying` returns whether the bridge is
        still reading back the stream.
        """
        self._index = index
        self._update_log = index.update_log
        self._metrics = metrics
        self._turn = turn
        self._is_consuming = is_consuming
        self._is_replaying = is_replaying
        self._polls: dict[PollClient, _Poll] = {}
        self._queue: deque[_Poll] = deque()
        """The polls that search. Those that are answered already are skipped."""
        self._watches: dict[UpdateFilter | None, _Watch] = {}
        self._recent_filters: OrderedDict[UpdateFilter, None] = OrderedDict()
        """The filters of the polls that ended last, the newest last."""
        self._checks: Iterator[None] | None = None
        """The rest of the check whether new updates wake polls, or None if there is no check."""
        self._is_running = False
        self._waits: Deadlines[_Poll] = Deadlines(call_later, time, self._on_wait_over)
        self._ahead: Deadlines[_Poll] = Deadlines(call_later, time, self._enqueue)
        """The polls that wait for an id. If the id has not arrived after `max_ahead_s`, it is unknown."""
        self._max_ahead_s = max_ahead_s
        self._ahead_from = 0
        """A lower bound for the sequence numbers of the ids that polls wait for."""
        self._stopping = False
        self.sent_bytes = 0
        """The number of bytes in responses."""

    def __len__(self) -> int:
        """The number of polls that have no response yet."""
        return len(self._polls)

    @property
    def filters(self) -> int:
        """The number of different filters of waiting polls."""
        return len(self._watches)

    # The beginning and the end of a poll

    def start(self, client: PollClient, request: SubscribeRequest, limit: int, wait_s: int) -> None:
        """Starts a poll. Its client gets an answer or a refusal, now or later, unless it is forgotten first.

        A response has at most `limit` updates. If the poll finds nothing, it waits for `wait_s` seconds.
        """
        if not self.is_available(request):
            client.refuse()
            return
        after = request.after
        is_after_id = after is not None and after not in (FROM_NOW_ON, EARLIEST)
        may_wait = bool(wait_s) and not self._stopping
        poll = _Poll(client, request, request.filter, is_after_id, limit, wait_s, may_wait)
        self._polls[client] = poll
        if may_wait:
            self._waits.add(poll, wait_s)
        sequence = self._awaited_sequence(request)
        if sequence is None:
            self._enqueue(poll)
        else:
            self._ahead_from = min(self._ahead_from, sequence) if len(self._ahead) else sequence
            self._ahead.add(poll, self._max_ahead_s)

    def is_available(self, request: SubscribeRequest) -> bool:
        """Whether the bridge can answer this request, perhaps after a wait. If not, the client should ask later."""
        if self._is_replaying():
            return False
        return self._awaited_sequence(request) is None or (self._is_consuming() and not self._stopping)

    def forget(self, client: PollClient) -> None:
        """Ends a poll without an answer, because its client has left. Does nothing if the poll is answered."""
        if (poll := self._polls.get(client)) is not None:
            self._end(poll)

    def tick(self) -> None:
        """Refuses the polls that wait for an id while the bridge does not consume. Call this every few seconds."""
        if not self._is_consuming():
            self._release_ahead()

    def stop(self) -> None:
        """Answers all waiting polls, and lets no further poll wait."""
        self._stopping = True
        for poll in self._polls.values():
            poll.may_wait = False
        for watch in tuple(self._watches.values()):
            for poll in tuple(watch.polls):
                self._resume(poll)
        self._release_ahead()

    def _end(self, poll: _Poll) -> None:
        poll.is_answered = True
        poll.steps = None
        del self._polls[poll.client]
        self._waits.discard(poll, poll.wait_s)
        self._ahead.discard(poll, self._max_ahead_s)
        self._leave_watch(poll)
        if poll.filter is not None:
            self._forget_old_filters(poll.filter)

    def _forget_old_filters(self, newest: UpdateFilter) -> None:
        recent = self._recent_filters
        recent[newest] = None
        recent.move_to_end(newest)
        if len(recent) > MAX_RECENT_FILTERS:
            oldest, _ = recent.popitem(last=False)
            # If a connection still uses the filter, its next resume applies the filter again.
            self._index.forget(oldest)

    # The wait

    def on_flush(self, flushed: int) -> None:
        """Must be called after each flush. Wakes the polls that new updates or gaps concern."""
        if self._watches or self._awaited_has_arrived():
            if self._checks is None:
                self._checks = self._check()
            self._run()

    def _check(self) -> Iterator[None]:
        """Wakes polls until they know everything that is flushed."""
        log = self._update_log
        while True:
            end, calls = log.flushed, 0
            for watch in tuple(self._watches.values()):
                while watch.polls and watch.cursor < end:
                    until = min(end, watch.cursor + SEGMENT_UPDATES)
                    calls += until - watch.cursor
                    if self._is_woken(watch, until):
                        yield from self._wake(watch)
                        break
                    watch.cursor = until
                    if calls >= MAX_CALLS_PER_STEP:
                        calls = 0
                        yield
            if self._awaited_has_arrived():
                self._release_arrived()
            if log.flushed == end:
                return

    def _is_woken(self, watch: _Watch, end: int) -> bool:
        """Whether the polls of a watch must search again, because of the positions before `end`."""
        index, start = self._index, watch.cursor
        if start < self._update_log.tail or index.has_own_message(start, end):
            return True
        # The cached matches of a segment are not used, because more filters may wait than a segment has room for.
        update_filter, positions = watch.filter, index.updates(start, end)
        if update_filter is None:
            return bool(positions)
        try:
            return any(update_filter.matches(*index.filter_input(position)) for position in positions)
        except Exception:
            # The search of these polls fails too, and ends them. Polls with other filters are not affected.
            return True

    def _wake(self, watch: _Watch) -> Iterator[None]:
        for number, poll in enumerate(tuple(watch.polls), 1):
            if poll.watch is watch:
                self._resume(poll)
            if not number % MAX_WAKES_PER_STEP:
                yield

    def _resume(self, poll: _Poll) -> None:
        """Lets a waiting poll search again. Its search continues where its watch found nothing so far."""
        if poll.watch is not None:
            poll.cursor = max(poll.cursor, poll.watch.cursor)
            self._leave_watch(poll)
            self._enqueue(poll)

    def _leave_watch(self, poll: _Poll) -> None:
        watch, poll.watch = poll.watch, None
        if watch is not None:
            del watch.polls[poll]
            if not watch.polls:
                del self._watches[watch.filter]

    def _on_wait_over(self, poll: _Poll) -> None:
        poll.may_wait = False
        self._resume(poll)

    # The wait for an id

    def _awaited_sequence(self, request: SubscribeRequest | None) -> int | None:
        """Returns the sequence number of the id that this instance has not read yet, or None."""
        after = None if request is None or request.after is None else request.after.id
        return after.sequence if after is not None and self._index.is_ahead(after) else None

    def _awaited_has_arrived(self) -> bool:
        return bool(len(self._ahead)) and self._index.newest_sequence >= self._ahead_from

    def _release_arrived(self) -> None:
        awaited: list[int] = []
        for poll in self._ahead:
            if (sequence := self._awaited_sequence(poll.request)) is not None:
                awaited.append(sequence)
            else:
                self._ahead.discard(poll, self._max_ahead_s)
                self._enqueue(poll)
        self._ahead_from = min(awaited, default=0)

    def _release_ahead(self) -> None:
        for poll in self._ahead:
            self._ahead.discard(poll, self._max_ahead_s)
            self._enqueue(poll)

    # The steps of all polls

    def _enqueue(self, poll: _Poll) -> None:
        self._queue.append(poll)
        self._run()

    def _run(self) -> None:
        if not self._is_running:
            self._is_running = True
            self._turn.spread(self._steps())

    def _steps(self) -> Iterator[None]:
        try:
            while self._queue or self._checks is not None:
                if self._checks is not None:
                    self._step_check(self._checks)
                if self._queue:
                    self._step(self._queue.popleft())
                yield
        finally:
            self._is_running = False

    def _step_check(self, checks: Iterator[None]) -> None:
        try:
            if next(checks, _END) is _END:
                self._checks = None
        except Exception:  # the polls are answered when their wait is over
            _log.exception("check of waiting polls failed")
            self._checks = None

    def _step(self, poll: _Poll) -> None:
        if poll.is_answered:
            return
        try:
            if poll.steps is None:
                poll.steps = self._read(poll)
            if next(poll.steps, _END) is not _END:
                self._queue.append(poll)
            else:
                poll.steps = None
        except Exception:  # a fault with one poll must not affect other polls
            _log.exception("poll failed; connection reset")
            if not poll.is_answered:
                self._end(poll)
            poll.client.reset()

    # The search

    def _read(self, poll: _Poll) -> Iterator[None]:
        """Searches in steps. At the end, the poll is answered or refused, or it waits."""
        index, log, update_filter = self._index, self._update_log, poll.filter
        if (request := poll.request) is not None:
            if not self.is_available(request):
                self._end(poll)
                poll.client.refuse()
                return
            yield from self._find_start(poll, request)
            poll.request = None
        found, gaps, scanned, is_full = array("Q"), list[bytes](), 0, False
        updates_bytes = gaps_bytes = 0
        while not is_full:
            if log.tail > (found[0] if found else poll.cursor):
                # The log has dropped a part of what the poll has found, or has not searched yet.
                del found[:], gaps[:]
                updates_bytes = gaps_bytes = 0
                poll.cursor = self._oldest()
                poll.complete = not poll.is_after_id
            if poll.cursor >= log.flushed or scanned >= MAX_SCANNED:
                break
            positions, reached = index.matching(update_filter, poll.cursor, log.flushed, own_messages=True)
            scanned += reached - poll.cursor
            for position in positions:
                message = index.own_message_at(position)
                size = len(message) or _update_bytes(index, position)
                is_large = updates_bytes + gaps_bytes + size > MAX_RESPONSE_BYTES
                if message and not (is_large and (found or gaps)):
                    gaps.append(message)
                    gaps_bytes += size
                elif not message and len(found) < poll.limit and not (is_large and found):
                    found.append(position)
                    updates_bytes += size
                else:
                    reached, is_full = position, True
                    break
            poll.cursor = reached
            if not is_full and reached < log.flushed:
                yield
        more = poll.cursor < log.flushed
        if found or gaps or more or not poll.may_wait:
            self._answer(poll, found, updates_bytes, gaps, more)
        else:
            self._wait(poll)

    def _find_start(self, poll: _Poll, request: SubscribeRequest) -> Iterator[None]:
        """Finds the position of the first update, in steps."""
        index, flushed, after = self._index, self._update_log.flushed, request.after
        position = index.after(after.id) if after is not None and after.id is not None else None
        poll.complete = position is not None or not poll.is_after_id
        if position is None and (request.last is not None or after is None):
            search = NewestSearch(index, request.filter, request.last or poll.limit, flushed)
            while not search.step():
                yield
            position = search.position
        if position is None:
            position = flushed if after == FROM_NOW_ON else self._oldest()
        poll.cursor = position

    def _oldest(self) -> int:
        return min(self._index.oldest, self._update_log.flushed)

    # The results of a search

    def _answer(self, poll: _Poll, found: Sequence[int], updates_bytes: int, gaps: Sequence[bytes], more: bool) -> None:
        rest = {
            "id": str(self._index.before(poll.cursor)),
            "complete": poll.complete,
            "more": more,
            "consuming": self._is_consuming(),
        }
        data = b",".join([orjson.dumps(orjson.loads(gap)["data"]) for gap in gaps])
        end = b'],"gaps":[%b],%b' % (data, orjson.dumps(rest)[1:])
        result = PollResult(self._index, found, updates_bytes, end)
        self._end(poll)
        self.sent_bytes += result.size_bytes
        self._metrics.written += result.updates
        if poll.is_after_id:
            self._metrics.resumes.labels(str(poll.complete).lower()).inc()
        poll.client.answer(result)

    def _wait(self, poll: _Poll) -> None:
        watch = self._watches.get(poll.filter)
        if watch is None:
            watch = self._watches[poll.filter] = _Watch(poll.filter, self._update_log.flushed)
        watch.polls[poll] = None
        # All waiting polls with equal filters share one filter object, which saves memory.
        poll.filter = watch.filter
        poll.watch = watch


def _ending(index: ReplayIndex, position: int) -> bytes:
    """Returns the end of an update, which replaces the closing brace in the log."""
    return ending(str(index.id_of(position)))


def _update_bytes(index: ReplayIndex, position: int) -> int:
    """Returns the size of an update with its id."""
    return len(payload_of(index.update_log.frame(position))) - 1 + len(_ending(index, position))
