"""The benchmark runs, and its load generator counts correctly."""

import asyncio
import functools
import os
import shlex
import shutil
import sys
import threading
from pathlib import Path

import orjson
import pytest
from websockets.asyncio.server import ServerConnection, serve

from tests.bench import guard
from tests.bench.amqp import Channel
from tests.bench.build import build
from tests.bench.candidates import INTERPRETER, NGINX, OURS, Place, Server, named
from tests.bench.cases import CUT, FAULTS, LOST, MISPLACED, REFUSED, Case, faults
from tests.bench.crowd import Seen, crowd
from tests.bench.curves import sweeps
from tests.bench.curves.points import CURVES
from tests.bench.scenarios import sends, stalled, turns
from tests.support.broker.find import Broker
from tests.support.broker.node import PrivateNode
from tests.support.broker.session import unavailable
from tests.support.killmail import killmail
from tests.support.prepare import HAPROXY, program
from tests.support.process_stats import MB
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _compiler() -> None:
    if shutil.which("gcc") is None:
        unavailable("the load generator is a C program, and gcc is not installed")


KEPT, CLIENTS = 300, 6
PATHS = ["/updates?after=1-00000001", "/updates?after=2-00000002&systemId=1", "/updates"]


async def replay(client: ServerConnection) -> None:
    """Plays a bridge that answers a client.

    For the second path in PATHS, the `resume` message reports an incomplete replay.
    """
    assert client.request is not None
    if "after" in client.request.path:
        resume = {"complete": "systemId" not in client.request.path, "replayed": KEPT, "id": "1-00000001"}
        await client.send(orjson.dumps({"type": "resume", "data": resume, "timestamp": 1}).decode())
    for number in range(1, KEPT + 1):
        await client.send(orjson.dumps({"type": "killmail", "data": killmail(number), "timestamp": 1}).decode())
    await client.wait_closed()


async def test_load_generator_uses_the_paths_in_turn_and_counts_resumes_separately(tmp_path: Path) -> None:
    build()
    place = Place("amqp://localhost", "none", tmp_path / "log")
    async with serve(replay, "127.0.0.1", 0, compression=None) as running:
        server = Server(os.getpid(), next(iter(running.sockets)).getsockname()[1])

        def until(*paths: str, **options: int | bool) -> Seen:
            with crowd(place, server, CLIENTS, paths, **options) as clients:
                return clients.seen()

        seen = await asyncio.to_thread(until, *PATHS, frames=KEPT)
        # Without `frames`, each client stops when it has as many updates as its `resume` message announced.
        caught_up = await asyncio.to_thread(until, *PATHS[:2], caught_up=True)
    assert (seen.resumes, seen.incomplete) == (4, 2)
    assert (caught_up.resumes, caught_up.incomplete) == (6, 3)
    for each in (seen, caught_up):
        assert (each.frames, each.lost, each.extra, each.misplaced, each.refused) == (KEPT * CLIENTS, 0, 0, 0, 0)
        assert each.window_frames == 0
    assert caught_up.caught_s > 0


async def test_load_generator_counts_the_updates_in_a_window(tmp_path: Path) -> None:
    build()
    place = Place("amqp://localhost", "none", tmp_path / "log")
    in_window = asyncio.Event()

    async def broadcast(client: ServerConnection) -> None:
        await in_window.wait()
        await replay(client)

    async with serve(broadcast, "127.0.0.1", 0, compression=None) as running:
        server = Server(os.getpid(), next(iter(running.sockets)).getsockname()[1])
        loop = asyncio.get_running_loop()

        def until() -> Seen:
            with crowd(place, server, CLIENTS, frames=KEPT) as clients:
                clients.ready()
                with clients.window():
                    loop.call_soon_threadsafe(in_window.set)
                    return clients.seen()

        seen = await asyncio.to_thread(until)
    assert seen.window_frames == seen.frames == KEPT * CLIENTS
    assert seen.window_p99_us == seen.p99_us


@pytest.mark.parametrize("distinct", [False, True])
async def test_load_generator_sends_equal_requests_unless_they_must_be_distinct(
    tmp_path: Path, *, distinct: bool
) -> None:
    build()
    place = Place("amqp://localhost", "none", tmp_path / "log")
    requests: list[bytes] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as running:
        server = Server(os.getpid(), running.sockets[0].getsockname()[1])

        def opened() -> Seen:
            with crowd(place, server, CLIENTS, distinct=distinct) as clients:
                return clients.seen()

        seen = await asyncio.to_thread(opened)
    assert (seen.readers.connected, len(requests)) == (CLIENTS, CLIENTS)
    assert len(set(requests)) == (CLIENTS if distinct else 1)
    assert [request.count(b"Sec-WebSocket-Protocol: ") for request in requests] == [int(distinct)] * CLIENTS


async def test_load_generator_resets_its_connections(tmp_path: Path) -> None:
    build()
    place = Place("amqp://localhost", "none", tmp_path / "log")
    errors: list[BaseException | None] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        try:
            await reader.read()
            errors.append(None)
        except ConnectionResetError as error:
            errors.append(error)
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as running:
        server = Server(os.getpid(), running.sockets[0].getsockname()[1])

        def until(reset: bool) -> Seen:
            with crowd(place, server, CLIENTS, hold=True, reset=reset) as clients:
                clients.ready()
                return clients.stop()

        for reset in (True, False):
            await asyncio.to_thread(until, reset)
            await eventually("all connections ended", lambda: len(errors) == CLIENTS)
            assert all(isinstance(error, ConnectionResetError) == reset for error in errors), errors
            errors.clear()


CANDIDATES = ("floor", "ours", "naive")


def interpreter_without_pytest(folder: Path) -> Path:
    """Returns a command that runs Python without pytest, like the interpreter that `make bench` installs."""
    (folder / "sitecustomize.py").write_text('import sys\nsys.modules["pytest"] = None\n')
    command = folder / "python"
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    command.write_text(f'#!/bin/sh\nexec env PYTHONPATH={shlex.quote(path)} {shlex.quote(sys.executable)} "$@"\n')
    command.chmod(0o755)
    return command


async def test_benchmark_measures_the_bridge_and_its_peers_in_python_without_errors(
    broker: Broker, tmp_path: Path
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench", "saturated", "--quick", "--rounds", "1"),
        *("--candidates", ",".join(CANDIDATES)),
        env={
            **os.environ,
            "TEST_AMQP_URL": broker.url,
            INTERPRETER: str(interpreter_without_pytest(tmp_path)),
        },
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(90):
        output, progress = await process.communicate()
    lines = output.decode().splitlines()
    assert process.returncode == 0, (lines, progress.decode())
    assert "could not be measured" not in progress.decode()
    assert f"|  |  | {' | '.join(CANDIDATES)} |" in lines
    costs = [line.split("|")[3 : 3 + len(CANDIDATES)] for line in lines if "| CPU" in line]
    assert len(costs) == 2
    assert all(float(cost) > 0 for row in costs for cost in row)
    assert "WRONG" not in output.decode()


@pytest.mark.parametrize(("size", "tls"), [(16_000, False), (256_000, True)], ids=["plain", "tls"])
async def test_benchmark_of_stalled_clients_measures_their_memory_and_their_eviction(
    broker: Broker, exchange: str, tmp_path: Path, size: int, tls: bool
) -> None:
    place = Place(broker.url, exchange, tmp_path / "log")
    with Channel(broker.url) as channel:
        channel.declare(exchange)
    row = await asyncio.to_thread(stalled.measure, place, named(OURS), clients=10, size=size, tls=tls)
    assert stalled.LOG_BYTES / MB / 2 < row["full_mb"] < 4 * stalled.LOG_BYTES / MB, row
    if size > stalled.KERNEL_BYTES:
        assert 0 < row["one_mb"] < row["full_mb"], row
    else:
        assert "one_mb" not in row


@pytest.mark.parametrize("name", [OURS, NGINX])
async def test_benchmark_with_tls_measures_the_bridge_with_and_without_a_proxy(
    broker: Broker, exchange: str, tmp_path: Path, name: str
) -> None:
    program(HAPROXY)
    program("nginx")
    place = Place(broker.url, exchange, tmp_path / "log")
    with Channel(broker.url) as channel:
        channel.declare(exchange)
    measure = functools.partial(sends.measure, clients=CLIENTS, updates=KEPT, rate=0, secure=True)
    row = await asyncio.to_thread(measure, place, named(name))
    assert [row[fault] for fault in (LOST, MISPLACED, CUT, REFUSED)] == [0, 0, 0, 0], row
    assert all(row[key] > 0 for key in ("cpu_us", "handshake_us", "kb")), row


FEW = 20


@pytest.mark.parametrize(
    ("name", "series", "x"),
    [
        ("clients", "floor", FEW),
        ("sizes", OURS, 300_000),
        ("filters", OURS, 3),
        ("rates", OURS, 100),
        ("resumes", OURS, 5),
        ("bridges", "stream", 2),
    ],
)
async def test_curve_is_measured_at_a_small_number(
    node_broker: PrivateNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, series: str, x: int
) -> None:
    for number in ("READERS", "MANY_READERS", "SILENT"):
        monkeypatch.setattr(sweeps, number, FEW)
    for counted in sweeps.UPDATES:
        monkeypatch.setitem(sweeps.UPDATES, counted, 5)
    build()
    place = Place(node_broker.url, "bench", tmp_path / "log")
    with Channel(node_broker.url) as channel:
        channel.declare(place.exchange)
    measure, _ = sweeps.sweeps(node_broker.pid)[name]
    try:
        point = await asyncio.to_thread(measure, place, series, x)
    finally:
        with Channel(node_broker.url) as channel:
            channel.delete(place.exchange)
    [curve] = [curve for curve in CURVES if curve.name == name]
    assert all(point[figure.key] > 0 for figure in curve.figures), point
    assert not [key for key in FAULTS if point[key]], point
    if name == "sizes":
        assert point["enqueued_share"] > 0
    if name == "resumes":
        assert point["replayed"] > 1000


@pytest.mark.parametrize("case", turns.cases(quick=True), ids=lambda case: case.title)
async def test_benchmark_of_long_turns_measures_a_wait_and_no_fault(
    broker: Broker, exchange: str, tmp_path: Path, case: Case
) -> None:
    build()
    place = Place(broker.url, exchange, tmp_path / "log")
    with Channel(broker.url) as channel:
        channel.declare(exchange)
    row = await asyncio.to_thread(case.measure, place, named(OURS))
    assert faults(case, {OURS: [row]}) == []
    assert row["wait_ms"] > 0, row
    assert row.get("ms") != 0, "a metric that covered no turn is not a measurement"


async def test_guard_measures_all_ratios(broker: Broker, tmp_path: Path) -> None:
    build()
    ratios = await asyncio.to_thread(guard.measure, Place(broker.url, "", tmp_path / "log"), guard.QUICK)
    assert set(ratios) == set(guard.RATIOS)
    assert all(ratio > 0 for ratio in ratios.values())


async def test_clients_that_are_not_connected_in_time_are_not_counted(tmp_path: Path) -> None:
    build()
    place = Place("amqp://localhost", "none", tmp_path / "log")
    asked = threading.Semaphore(0)

    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.release()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(never_answer, "127.0.0.1", 0) as running:
        server = Server(os.getpid(), running.sockets[0].getsockname()[1])

        def until() -> tuple[bool, Seen]:
            with crowd(place, server, CLIENTS, hold=True) as clients:
                assert all(asked.acquire(timeout=30) for _ in range(CLIENTS))
                return clients.all_open(0.0), clients.stop()

        complete, seen = await asyncio.to_thread(until)
    assert not complete
    assert (seen.readers.connected, seen.refused) == (0, 0)
