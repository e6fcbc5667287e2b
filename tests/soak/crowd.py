"""All clients except the healthy ones: they come and go, stall, read slowly, or break the protocol.

The updates of each client are compared with the updates of a healthy client. All clients read from one log, so the
updates of each client must be a stretch: a contiguous part of a healthy client's updates.
"""

import array
import asyncio
import random
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum

from bridge.contract.filters import MAX_WAIT_S
from tests.soak.plan import Plan
from tests.soak.readers import (
    EventReader,
    Reader,
    Slow,
    SlowStream,
    Stalled,
    StalledStream,
    Tally,
    connect,
    numbers_in,
    poll,
)
from tests.support.clients import CLOSE, PING, TEXT, client_frame, request
from tests.support.event_streams import StreamClient
from tests.support.running import BridgeProcess

STAY_S = 2.0
"""The longest stay of a client that comes and goes."""

NEVER_KILLED = 1
"""The id of a character that is the victim of no killmail."""

UNREAD_PATH = "/updates?format=json&after=earliest&limit=1000"
"""The path of a response of 1 MiB."""

READ_ON_S = 4.0
"""The longest time for which an evicted client continues to read nothing. The bridge resets the connection of an
evicted client after 10 s."""

CLOSE_FRAME_LIMIT_S = 5.0
"""The time limit for the arrival of a close frame."""

STALLED_BYTES, SLOW_BYTES = 4096, 16384
"""The sizes of the kernel's receive buffers of a stalled client and of a slow client."""

DOSE_S = 0.25
"""The pause between two clients that misbehave."""

TOO_SLOW = 4008

NO_CODE = 0
"""An event stream of an evicted client ends without a message."""

EVICTED = "client evicted"

MISBEHAVIOUR: Sequence[tuple[bytes, int | None]] = (
    (client_frame(PING, b"x" * 100) * 1000, None),
    (client_frame(TEXT, b"hello")[:-3], None),
    (client_frame(TEXT, b"hello") * 100, None),
    (b"\x81\x05hello", 1002),  # a frame that is not masked
    (client_frame(0x71, b""), 1002),  # a frame with reserved bits
    (client_frame(CLOSE, b"x"), 1002),
    (client_frame(TEXT, b"\xff"), 1007),
)
"""The bytes that a client sends, and the close code that it must get. The close code is None if the bridge must not
close the connection."""


class Going(Enum):
    """How a client ends its connection."""

    CLOSING = "with a closing handshake"
    RESET = "by a reset"
    END = "without a close frame"
    HALF = "within its handshake"


class Half(Reader):
    """A client that sends only the beginning of its handshake."""

    def send_handshake(self, transport: asyncio.Transport) -> None:
        hello = request(self._port)
        transport.write(hello[: random.randrange(len(hello))])


class Stretches:
    """Checks that each client got a contiguous part of the updates that a healthy client got."""

    def __init__(self, reference: Tally) -> None:
        self._reference = reference
        self._positions: dict[int, int] = {}
        self._read = 0
        self._waiting: deque[tuple[str, array.array[int]]] = deque()
        self.right = 0
        self.wrong: list[str] = []

    def add(self, client: str, numbers: "array.array[int]") -> None:
        """Adds all updates of a client."""
        if numbers:
            self._waiting.append((client, numbers))

    def judge_ready(self) -> None:
        """Judges each client whose last update has also reached the healthy client."""
        order = self._reference.numbers
        for at in range(self._read, len(order)):
            self._positions.setdefault(order[at], at)
        self._read = len(order)
        for _ in range(len(self._waiting)):
            client, numbers = self._waiting.popleft()
            if numbers[-1] in self._positions:
                self._judge(client, numbers)
            else:
                self._waiting.append((client, numbers))

    def judge_all(self) -> None:
        """Judges all clients. After this call, the clients must not get further updates."""
        self.judge_ready()
        while self._waiting:
            self._judge(*self._waiting.popleft())

    def _judge(self, client: str, numbers: "array.array[int]") -> None:
        at = self._positions.get(numbers[0], len(self._reference.numbers))
        expected = self._reference.numbers[at : at + len(numbers)]
        if numbers == expected:
            self.right += 1
            return
        first = next((i for i, pair in enumerate(zip(numbers, expected, strict=False)) if pair[0] != pair[1]), None)
        where = (
            f"its update {first} of {len(numbers)} is {numbers[first]}, that of a healthy client is {expected[first]}"
            if first is not None
            else f"a healthy client got only {len(expected)} of its {len(numbers)} updates"
        )
        self.wrong.append(f"{client}: {where}")


class Crowd:
    """All clients except the healthy ones. `seen` counts the clients' actions, and `wrong` counts their failures."""

    def __init__(self, process: BridgeProcess, port: int, plan: Plan, stretches: Stretches) -> None:
        self._process = process
        self._port = port
        self._plan = plan
        self._stretches = stretches
        self._evicted: dict[int, asyncio.Future[None]] = {}
        """Maps each client's own port to a future that is done when the bridge logs the client's eviction."""
        self._lines = 0
        self._tasks: list[asyncio.Task[None]] = []
        self.seen: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()

    def begin(self) -> None:
        """Starts all clients."""
        plan = self._plan
        players = [
            *(self._come_and_go() for _ in range(plan.coming)),
            *(self._stall(Stalled, "stalled", TOO_SLOW) for _ in range(plan.stalled)),
            *(self._stall(StalledStream, "stalled SSE", NO_CODE) for _ in range(plan.stalled)),
            *(self._leave_a_response_unread() for _ in range(plan.stalled)),
            *(self._read_slowly(Slow, "slow", TOO_SLOW) for _ in range(plan.slow)),
            *(self._read_slowly(SlowStream, "slow SSE", NO_CODE) for _ in range(plan.slow)),
            self._misbehave(),
        ]
        self._tasks = [asyncio.create_task(player) for player in players]

    async def end(self) -> None:
        """Ends all clients."""
        for task in self._tasks:
            task.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    def notify_evicted(self) -> None:
        """Notifies the clients of evictions that the bridge has logged. This method must be called repeatedly."""
        lines = self._process.lines
        for line in lines[self._lines :]:
            if line["event"] == EVICTED:
                future = self._evicted.get(int(str(line["peer"]).rpartition(" ")[2]))
                if future is not None and not future.done():
                    future.set_result(None)
        self._lines = len(lines)
        self._stretches.judge_ready()

    async def _come_and_go(self) -> None:
        await asyncio.sleep(random.uniform(0, STAY_S))
        while True:
            await random.choice((self._visit, self._visit, self._visit_stream, self._ask))()

    async def _visit(self) -> None:
        going = random.choice(tuple(Going))
        await self._stay(Half if going is Going.HALF else Reader, going)
        self.seen[going.value] += 1

    async def _visit_stream(self) -> None:
        going = random.choice((Going.RESET, Going.END))
        await self._stay(EventReader, going)
        self.seen[f"SSE, {going.value}"] += 1

    async def _stay(self, kind: type[Reader], going: Going) -> None:
        client = await connect(kind, self._port)
        try:
            if going is not Going.HALF:
                await self._open(client)
            await asyncio.sleep(random.uniform(0, STAY_S))
            if client.ended.done():
                self.wrong[f"the bridge closed a client that came and went, {client.ended.result()}"] += 1
            elif going is Going.CLOSING:
                await self._close(client)
            elif going is Going.RESET or random.getrandbits(1):
                client.reset()
        finally:
            await client.leave()
        self._stretches.add("a client that came and went", client.numbers)

    async def _ask(self) -> None:
        """Asks for the newest updates as JSON, or leaves while the request waits for an update that never comes."""
        if random.getrandbits(1):
            try:
                response = await poll(self._port, f"last={random.randint(1, 100)}")
            except (OSError, EOFError, TimeoutError) as error:
                self.wrong[f"a request for JSON failed: {error or type(error).__name__}"] += 1
            else:
                self._stretches.add("a client that asked for JSON", numbers_in(response))
                self.seen["JSON, answered"] += 1
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(random.uniform(0, STAY_S)):
                    await poll(self._port, f"after=&wait={MAX_WAIT_S}&victimId={NEVER_KILLED}")
            self.seen["JSON, left before the response"] += 1
        await asyncio.sleep(random.uniform(0, STAY_S))

    async def _close(self, client: Reader) -> None:
        assert client.transport is not None
        client.transport.write(client_frame(CLOSE, b"\x03\xe8"))
        await asyncio.wait([client.ended], timeout=CLOSE_FRAME_LIMIT_S)
        if not client.ended.done() or client.ended.result() != 1000:
            self.wrong["the bridge did not answer a closing handshake"] += 1

    async def _open(self, client: Reader) -> None:
        try:
            async with asyncio.timeout(CLOSE_FRAME_LIMIT_S):
                await client.opened
        except (ConnectionError, TimeoutError) as error:
            self.wrong[f"a client could not connect: {error or 'no answer'}"] += 1

    async def _stall(self, kind: type[Stalled], name: str, code: int) -> None:
        await asyncio.sleep(random.uniform(0, STAY_S))
        while True:
            client = await connect(kind, self._port, STALLED_BYTES)
            port = client.own_port
            evicted = self._evicted[port] = asyncio.get_running_loop().create_future()
            try:
                await self._open(client)
                await evicted
                await asyncio.sleep(random.uniform(0, READ_ON_S))
                client.read_on()
                await asyncio.wait([client.ended], timeout=CLOSE_FRAME_LIMIT_S)
                self._ended(client, name, code)
            finally:
                del self._evicted[port]
                await client.leave()
            self._stretches.add(f"a {name} client", client.numbers)

    async def _leave_a_response_unread(self) -> None:
        while True:
            client = await StreamClient.open(self._port, UNREAD_PATH, receive_bytes=STALLED_BYTES)
            client.pause()
            await asyncio.sleep(random.uniform(0, READ_ON_S))
            client.abort()
            self.seen["JSON, not read"] += 1

    async def _read_slowly(self, kind: type[Slow], name: str, code: int) -> None:
        while True:
            client = await connect(kind, self._port, SLOW_BYTES)
            try:
                await self._open(client)
                await client.ended
                self._ended(client, name, code)
            finally:
                await client.leave()
                self._stretches.add(f"a {name} client", client.numbers)

    async def _misbehave(self) -> None:
        while True:
            for words, code in MISBEHAVIOUR:
                client = await connect(Reader, self._port)
                try:
                    await self._open(client)
                    assert client.transport is not None
                    client.transport.write(words)
                    if code is None:
                        await asyncio.sleep(DOSE_S)
                        self.seen["misbehaved and stayed"] += 1
                    else:
                        await asyncio.wait([client.ended], timeout=CLOSE_FRAME_LIMIT_S)
                        self._ended(client, "misbehaving", code)
                finally:
                    await client.leave()
                self._stretches.add("a misbehaving client", client.numbers)
                await asyncio.sleep(DOSE_S)

    def _ended(self, client: Reader, kind: str, code: int) -> None:
        found = client.ended.result() if client.ended.done() else None
        self.seen[f"{kind}, closed with {found}"] += 1
        if found != code:
            end = "no end" if found is None else f"the code {found}" if found else "an end without a code"
            self.wrong[f"a {kind} client got {end}, not {code}"] += 1
