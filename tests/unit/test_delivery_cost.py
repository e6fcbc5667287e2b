"""What a delivery costs on its way to 1000 clients, counted exactly: system calls, copies and allocations.

A benchmark on a busy machine does not notice a cost of a few percent. These tests count instead of measuring time. The
bytes of a delivery go through the real fast channel, session, relay, pipeline and hub to the sockets of all clients.

If a test fails, a change has added work to each delivery, or to each client. Remove this work. If it is worth its cost,
show that with `make bench FLAGS=guard`, and change the expected numbers and their explanation here.
`tests/integration/test_system_calls.py` counts the system calls of a whole bridge.
"""

from __future__ import annotations

import gc
import statistics
import sys
import tracemalloc
from collections import Counter
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import pytest_asyncio

from bridge.amqp.consume.session import ConsumerSession
from bridge.amqp.wire.fast_channel import FastChannel
from bridge.broadcast import live_set
from bridge.broadcast.socket_writes import BATCH_SOCKETS, IoSubmitWriter
from bridge.contract import catalog
from bridge.contract.deduplication import DuplicateWindow
from bridge.contract.pipeline import Pipeline
from bridge.metrics import Metrics
from bridge.relay import Relay, UnflushedDeliveries
from tests.support.fake_amqp import OWN, FakeAmqp, header, method, part
from tests.support.fakes import FakeRejects, Scene
from tests.support.killmail import killmail

if TYPE_CHECKING:
    import ctypes
    from collections.abc import AsyncIterator, Callable, Iterator
    from types import FrameType

pytestmark = pytest.mark.usefixtures("many_files")

CLIENTS = 1000
FEWER = BATCH_SOCKETS + 300
"""A number of clients whose updates take as many system calls as those of CLIENTS.

The last batch has more than 256 sockets in both cases, because Python allocates no memory for smaller numbers.
"""

WARM_UP = 20
"""The number of deliveries before a count. Afterwards, all caches are filled, and the duplicate window is full."""

LARGE = 200_000
"""The size in bytes of an update whose copies are counted. Everything else that a delivery allocates is smaller."""

IN_C = "C"

SILENT = {
    *(
        "bisect_left",
        "bisect_right",
        "bytes.join",
        "deque.append",
        "deque.popleft",
        "dict.get",
        "int.from_bytes",
        "isinstance",
        "iter",
    ),
    *("len", "list.append", "max", "min", "next", "set.add", "set.remove", "Struct.pack", "Struct.unpack_from"),
    *("tuple.__new__", "Draft202012Validator.is_valid", "dumps", "loads"),
    # The kernel maps the code of these clocks into the process (vDSO).
    *("monotonic", "time_ns"),
}
"""The functions in C that a delivery calls, none of which makes a system call."""


class DiscardingTransport:
    """The transport of the AMQP connection. Counts the writes."""

    def __init__(self) -> None:
        self.writes = 0

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.writes += 1

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class DeliveryScene(Scene):
    """The path of a delivery from the bytes of the AMQP connection to the sockets of the clients."""

    def __init__(self, clients: int) -> None:
        metrics = Metrics()
        unflushed = UnflushedDeliveries(metrics)
        super().__init__(2**23, metrics=metrics, flush_listener=unflushed)
        pipeline = Pipeline(catalog.load([catalog.PACKAGED]), 2 * LARGE)
        window = DuplicateWindow(WARM_UP // 2)
        relay = Relay(
            {"killmails": "killmail"}, pipeline, window, self.hub, unflushed, FakeRejects(), metrics, self.turn
        )
        self.transport = DiscardingTransport()
        self._fast_channel = FastChannel()
        self._fast_channel.attach(self.transport)
        channel = FakeAmqp().open_channel()
        session = ConsumerSession(relay, channel, self._fast_channel, 100, on_open=lambda: None)
        self._fast_channel.consume(OWN, session)
        self._clients = [self.join_with_socket() for _ in range(clients)]
        self._tag = 0
        for _ in range(WARM_UP):
            self.feed(self.delivery())
        self.read()

    def delivery(self, pad_bytes: int = 0) -> bytes:
        """Returns the AMQP frames of the next killmail, which is `pad_bytes` larger than a usual one."""
        self._tag += 1
        padding = {"pad": "x" * pad_bytes} if pad_bytes else {}
        body = orjson.dumps(killmail(self._tag, **padding))
        return method(self._tag, exchange="killmails") + header(len(body)) + part(body)

    def feed(self, data: bytes) -> None:
        """Receives the bytes of one read from the AMQP connection. The flush follows in the same call."""
        assert self._fast_channel.feed(data) == b""

    def read(self) -> list[bytes]:
        """Reads the sockets of all clients. Returns what each client has received."""
        return [client.read() for client in self._clients]


class CountingWriter(IoSubmitWriter):
    """Counts its system calls. They go through ctypes, so a profile of Python does not show them."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        call, names = self._call, {self._submit.value: "io_submit", self._get_events.value: "io_getevents"}

        def counted(number: ctypes.c_long, *arguments: object) -> int:
            counts[names[number.value]] += 1
            return int(call(number, *arguments))

        self._call = counted  # type: ignore[assignment]  # ctypes has no public type for its functions


@contextmanager
def profiled(on_event: Callable[[FrameType, str, Any], None]) -> Iterator[None]:
    """Calls `on_event` at each call of a function and at each return, for functions in Python and in C.

    The garbage collector is off meanwhile, because its callbacks are functions too.
    """
    gc.disable()
    sys.setprofile(on_event)
    try:
        yield
    finally:
        sys.setprofile(None)
        gc.enable()


def calls(scene: DeliveryScene, data: bytes) -> Counter[tuple[str, str]]:
    """Returns the number of calls of each function during one read.

    A function is identified by its file and its name. The file of a function in C is IN_C.
    """
    counts: Counter[tuple[str, str]] = Counter()

    def on_event(frame: FrameType, event: str, function: Any) -> None:
        if event == "call":
            counts[frame.f_code.co_filename, frame.f_code.co_name] += 1
        elif event == "c_call":
            counts[IN_C, function.__qualname__] += 1

    with profiled(on_event):
        scene.feed(data)
    del counts[IN_C, sys.setprofile.__qualname__]
    return counts


def allocations(scene: DeliveryScene, data: bytes) -> list[tuple[str, int]]:
    """Returns the memory that one read allocates: the function, and the bytes between two calls or returns."""
    found: list[tuple[str, int]] = []
    before = 0

    def on_event(frame: FrameType, event: str, function: Any) -> None:
        nonlocal before
        peak = tracemalloc.get_traced_memory()[1]
        found.append((function.__name__ if event == "c_return" else frame.f_code.co_name, peak - before))
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        with profiled(on_event):
            scene.feed(data)
    finally:
        tracemalloc.stop()
    return found


@contextmanager
def delivering(clients: int) -> Iterator[DeliveryScene]:
    """Makes the path of deliveries to `clients` clients. Needs a running event loop."""
    scene = DeliveryScene(clients)
    try:
        yield scene
    finally:
        scene.close()


@pytest_asyncio.fixture
async def scene() -> AsyncIterator[DeliveryScene]:
    with delivering(CLIENTS) as made:
        yield made


@pytest_asyncio.fixture
async def smaller_scene() -> AsyncIterator[DeliveryScene]:
    with delivering(FEWER) as made:
        yield made


@pytest.mark.parametrize("deliveries", [1, 3])
async def test_read_takes_five_system_calls_for_1000_clients(monkeypatch: pytest.MonkeyPatch, deliveries: int) -> None:
    """Each batch of at most BATCH_SOCKETS sockets takes two calls, and the acknowledgement takes one write."""
    counts: Counter[str] = Counter()
    monkeypatch.setattr(live_set, "IoSubmitWriter", partial(CountingWriter, counts))
    with delivering(CLIENTS) as scene:
        counts.clear()
        scene.transport.writes = 0
        scene.feed(b"".join(scene.delivery() for _ in range(deliveries)))
        assert (counts, scene.transport.writes) == ({"io_submit": 2, "io_getevents": 2}, 1)
        [received] = set(scene.read())
        assert received.count(b"killmailId") == deliveries


async def test_delivery_calls_no_other_function_that_can_make_a_system_call(scene: DeliveryScene) -> None:
    counts = calls(scene, scene.delivery())
    others = {name: count for (file, name), count in counts.items() if file == IN_C and name not in SILENT}
    assert others == {}, "does the function make a system call? If not, add it to SILENT"


async def test_delivery_takes_no_further_turn_of_the_loop(scene: DeliveryScene) -> None:
    scene.turns.settle()
    scene.feed(scene.delivery())
    assert scene.turns.turn() == 0


async def test_delivery_calls_no_function_for_each_client(scene: DeliveryScene, smaller_scene: DeliveryScene) -> None:
    assert calls(scene, scene.delivery()) == calls(smaller_scene, smaller_scene.delivery())


async def test_delivery_allocates_twelve_bytes_for_each_client(
    scene: DeliveryScene, smaller_scene: DeliveryScene
) -> None:
    """The descriptors of each group, 4 bytes each, are copied three times, twice of them by `IoSubmitWriter`."""
    assert least_bytes(scene) - least_bytes(smaller_scene) == 3 * 4 * (CLIENTS - FEWER)


def least_bytes(scene: DeliveryScene) -> int:
    """Returns the number of bytes that a delivery allocates. Some deliveries also enlarge a list or a free list."""
    return min(sum(size for _, size in allocations(scene, scene.delivery())) for _ in range(WARM_UP))


async def test_delivery_keeps_only_its_frame_in_the_log(scene: DeliveryScene) -> None:
    """The duplicate window is full, so a new identity replaces an old one."""
    reads = [scene.delivery() for _ in range(2 * WARM_UP)]
    kept = []
    gc.collect()
    gc.disable()
    try:
        for data in reads:
            before = sys.getallocatedblocks()
            scene.feed(data)
            kept.append(sys.getallocatedblocks() - before)
    finally:
        gc.enable()
    # A few deliveries also enlarge a list or a deque.
    assert statistics.mode(kept) == 1, kept


async def test_update_is_copied_four_times_however_many_clients_there_are(scene: DeliveryScene) -> None:
    """Copied from the read, parsed, serialised, and put into a frame. All clients share this frame."""
    scene.feed(scene.delivery(LARGE))
    scene.read()
    large = [(place, size // LARGE) for place, size in allocations(scene, scene.delivery(LARGE)) if size >= LARGE]
    assert [place for place, _ in large] == ["_take_content", "loads", "dumps", "text_frame"]
    # The library orjson takes several times the size while it parses and serialises.
    assert [copies for place, copies in large if place not in ("loads", "dumps")] == [1, 1]
