"""Private brokers start, restart with their data after a kill, and leave nothing behind."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import aio_pika
import pytest

from bridge.demo.amqp_probe import answers_amqp
from tests.support.broker.find import Broker
from tests.support.broker.node import PrivateNode, installed_server
from tests.support.broker.session import unavailable

_QUEUE = "test.kept"


@pytest.fixture
def node() -> Iterator[PrivateNode]:
    server = installed_server()
    if server is None:
        unavailable("rabbitmq-server is not installed")
    node = PrivateNode(server)
    yield node
    node.stop()


@pytest.mark.slow
async def test_killed_broker_restarts_on_its_port_with_its_data(mortal_broker: Broker) -> None:
    await _publish(mortal_broker.url, b"still here")
    mortal_broker.kill()
    assert not answers_amqp("127.0.0.1", urlsplit(mortal_broker.url).port or 0)
    mortal_broker.start()
    assert await _get(mortal_broker.url) == b"still here"


@pytest.mark.slow
def test_private_node_listens_on_loopback_only_and_leaves_nothing_behind(node: PrivateNode) -> None:
    node.start()
    processes = _processes_of(node.directory)
    assert any(Path(f"/proc/{pid}/comm").read_text().startswith("beam") for pid in processes)
    assert answers_amqp("127.0.0.1", node.port)
    listening = _listening(processes)
    assert len({port for _, port in listening}) == 3  # the ports for AMQP, for Erlang's distribution and for epmd
    assert {address for address, _ in listening} <= {"0100007F", "00000000000000000000000001000000"}
    node.stop()
    assert not node.directory.exists()
    _await(lambda: not _processes_of(node.directory))


def test_private_node_reads_further_lines_of_its_configuration() -> None:
    server = installed_server()
    if server is None:
        unavailable("rabbitmq-server is not installed")
    node = PrivateNode(server, {"no_such_setting_of_rabbitmq": "1"})
    with pytest.raises(RuntimeError, match="no_such_setting_of_rabbitmq"):
        node.start()
    assert not node.directory.exists()


def test_child_ends_when_its_parent_is_killed() -> None:
    starter = subprocess.Popen([sys.executable, "-c", _STARTER], stdout=subprocess.PIPE)
    assert starter.stdout is not None
    with starter, starter.stdout:
        leader = int(starter.stdout.readline())
        _await(lambda: len(_group(leader)) == 3)  # the processes are the shell, its watcher and the command
        starter.send_signal(signal.SIGKILL)
        starter.wait()
    _await(lambda: not _group(leader))


_STARTER = """
import subprocess, time
from bridge.demo.child import die_with_parent
pipe = subprocess.PIPE
child = subprocess.Popen(die_with_parent("sleep", "1000"), stdin=pipe, stdout=pipe, start_new_session=True)
print(child.pid, flush=True)
time.sleep(1000)
"""


async def _publish(url: str, body: bytes) -> None:
    async with await aio_pika.connect(url, timeout=10) as connection:
        channel = await connection.channel(publisher_confirms=True)
        await channel.declare_queue(_QUEUE, durable=True)
        message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, _QUEUE)


async def _get(url: str) -> bytes:
    async with await aio_pika.connect(url, timeout=10) as connection:
        channel = await connection.channel()
        queue = await channel.get_queue(_QUEUE)
        message = await queue.get(no_ack=True, timeout=10)
        return message.body


def _processes_of(directory: Path) -> list[int]:
    """Returns the processes with the directory in their environment."""
    return [pid for pid in _pids() if str(directory).encode() in _read(f"/proc/{pid}/environ")]


def _group(leader: int) -> list[int]:
    """Returns the running members of a process group."""
    members = []
    for pid in _pids():
        state, _, group, *_ = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split() or (b"Z", b"", b"")
        if state != b"Z" and int(group) == leader:
            members.append(pid)
    return members


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # the process has ended, or belongs to another user
        return b""


def _listening(pids: list[int]) -> set[tuple[str, str]]:
    """Returns the address and port of each TCP socket on which the processes listen, in the format of /proc."""
    targets = {str(fd.readlink()) for pid in pids for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()}
    rows = [line.split() for name in ("tcp", "tcp6") for line in _read(f"/proc/net/{name}").decode().splitlines()[1:]]
    found = [row[1].partition(":") for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in targets]
    return {(address, port) for address, _, port in found}


def _await(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
