"""The bridge as a service: its notifications to systemd, and the sandbox of its unit."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from bridge.broadcast.live_set import MIN_BATCHED_SOCKETS
from bridge.config.settings import PREFIX, SETTINGS, Settings
from bridge.errors import BrokerRefusal, ConfigurationError
from bridge.server.listeners.descriptors import MAX_OVERFLOW, OWN_DESCRIPTORS
from tests.support.broker.find import Broker
from tests.support.certificates import certificate
from tests.support.clients import RawClient, get
from tests.support.documentation import adapted, code_block, shell
from tests.support.killmail import killmail
from tests.support.prepare import program
from tests.support.publishing import observer, publish
from tests.support.running import COMMAND, bridge_process
from tests.support.waiting import eventually

UNIT = Path(__file__).parents[2] / "docker/systemd/edk-bridge.service"
SANDBOX = Path(__file__).parent / "sandbox.py"
NO_BROKER = "amqp://guest:guest@127.0.0.1:1/"
NO_BATCHED_WRITES = "io_submit is not available"
MOST_EXPOSED = 15
"""The highest exposure, on a scale from 0 to 100, that `systemd-analyze security` is allowed to report.

Most of the exposure comes from network access.
"""


def directives(name: str) -> list[str]:
    """Returns all values of a directive in the systemd unit."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


def seconds(name: str) -> int:
    [text] = directives(name)
    return int(text.removesuffix("s"))


class Manager:
    """A socket that receives notifications, like the socket of a service manager."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.received: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(address.replace("@", "\0"))

    def close(self) -> None:
        self._socket.close()

    async def receives(self, *expected: str) -> None:
        """Waits until the notifications `expected` have arrived, in order and without others between them."""

        def complete() -> bool:
            try:
                while len(self.received) < len(expected):
                    self.received.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return False
            return True

        await eventually(f"the manager receives {expected}", complete)
        assert [text.split("\n")[0] for text in self.received] == [*expected]


@contextmanager
def manager(address: Path | str) -> Iterator[Manager]:
    """Opens a manager's socket at a path, or with an abstract name if the address begins with `@`."""
    listening = Manager(str(address))
    try:
        yield listening
    finally:
        listening.close()


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
async def test_bridge_notifies_the_manager_of_start_reload_and_stop(tmp_path: Path, abstract: bool) -> None:
    """The bridge is ready when clients can connect, even without its broker."""
    address = f"@edk-bridge-test-{os.getpid()}" if abstract else tmp_path / "notify"
    chain, key = certificate(tmp_path, "served")
    tls = {"BRIDGE_TLS_CERTIFICATE": str(chain), "BRIDGE_TLS_KEY": str(key)}
    with manager(address) as systemd:
        async with bridge_process(NO_BROKER, NOTIFY_SOCKET=systemd.address, **tls) as process:
            await systemd.receives("READY=1")
            _, writer = await asyncio.open_connection("127.0.0.1", await process.port())
            writer.close()
            process.process.send_signal(signal.SIGHUP)
            await systemd.receives("READY=1", "RELOADING=1", "READY=1")
            assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", systemd.received[1])
            process.process.terminate()
            assert await process.ended() == 0
            await systemd.receives("READY=1", "RELOADING=1", "READY=1", "STOPPING=1")


async def test_bridge_notifies_the_watchdog_repeatedly(tmp_path: Path) -> None:
    """Without WATCHDOG_USEC, the bridge does not notify the watchdog, as another test shows."""
    with manager(tmp_path / "notify") as systemd:
        async with bridge_process(NO_BROKER, NOTIFY_SOCKET=systemd.address, WATCHDOG_USEC="100000") as process:
            await systemd.receives("READY=1", *["WATCHDOG=1"] * 5)
            assert process.texts == []


@pytest.mark.parametrize("address", ["/nonexistent/notify", "/" + "n" * 200, "vsock:2:1234"])
async def test_bridge_runs_without_the_manager_that_it_should_notify(address: str) -> None:
    async with bridge_process(NO_BROKER, NOTIFY_SOCKET=address) as process:
        assert (await get(await process.port(), "/healthz"))[0] == 200
        process.process.terminate()
        assert await process.ended() == 0
        warnings = [line for line in process.lines if line["event"] == "service manager not notified"]
        assert all(line["error"] for line in warnings)
        notifications = [line["what"] for line in warnings]
        assert notifications == (["READY=1", "STOPPING=1"] if address.startswith("/") else [])


async def test_commands_of_the_readme_write_the_credential(tmp_path: Path) -> None:
    url = "amqp://user:password@rabbitmq:5672/"
    commands = adapted(
        code_block("docker/README.md", "systemd", 1),
        ("/etc/edk-bridge", f"{tmp_path}/edk-bridge"),
        ("install -m", f"echo {url} | install -m"),
    )
    await shell(commands, tmp_path)
    [credential] = directives("LoadCredential")
    file = tmp_path / "edk-bridge" / Path(credential.partition(":")[2]).name
    assert file.read_text() == f"{url}\n"
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_systemd_accepts_the_unit_and_its_exposure(tmp_path: Path) -> None:
    analyze = program("systemd-analyze")
    unit = tmp_path / UNIT.name
    # systemd-analyze refuses a unit whose command does not exist.
    unit.write_text(UNIT.read_text().replace("/opt/edk-bridge/bin/edk-bridge", sys.executable))
    checks = [["verify", "--man=no"], ["security", "--offline=yes", f"--threshold={MOST_EXPOSED}"]]
    for check in checks:
        done = subprocess.run([analyze, *check, unit], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_unit_matches_limits_and_exit_codes_of_the_bridge() -> None:
    defaults = Settings()
    assert seconds("TimeoutStopSec") > defaults.shutdown_timeout_s
    [descriptors] = directives("LimitNOFILE")
    assert int(descriptors) >= defaults.max_connections + MAX_OVERFLOW + OWN_DESCRIPTORS
    [codes] = directives("RestartPreventExitStatus")
    assert codes.split() == [str(ConfigurationError([]).exit_code), str(BrokerRefusal("").exit_code)]
    for line in directives("Environment"):
        assert line.partition("=")[0].removeprefix(PREFIX).removesuffix("_FILE").lower() in SETTINGS


async def test_bridge_works_with_the_system_calls_that_its_unit_allows(
    broker: Broker, exchange: str, tmp_path: Path
) -> None:
    """With many clients, the bridge uses io_submit. The bridge's memory is never both writable and executable."""
    allowed = calls_of_unit()
    assert {"io_setup", "io_submit", "prlimit64"} <= allowed
    assert not {"setpriority", "chroot", "mount", "ptrace"} & allowed
    file = tmp_path / "calls"
    file.write_text("\n".join(sorted(allowed)))
    variables = {"BRIDGE_EXCHANGES": f"{exchange}=killmail", "NOTIFY_SOCKET": str(tmp_path / "notify")}
    sandbox = [sys.executable, str(SANDBOX), str(file), *COMMAND]
    with manager(tmp_path / "notify") as systemd:
        async with bridge_process(broker.url, command=sandbox, **variables) as process, observer(broker.url) as amqp:
            await systemd.receives("READY=1")
            await process.consuming()
            port = await process.port()
            clients = [await RawClient.open(port) for _ in range(MIN_BATCHED_SOCKETS + 1)]
            await publish(amqp, exchange, killmail(1))
            for client in clients:
                assert orjson.loads(await client.text())["data"] == killmail(1)
                await client.close()
            assert "Seccomp:\t2" in status_of(process.process.pid), "the filter is not active"
            assert b"process_open_fds" in (await get(port, "/metrics"))[1]
            process.process.terminate()
            assert await process.ended() == 0
            assert [line["event"] for line in process.lines if line["level"] != "info"] == ["exchange declared"]
            assert not any(NO_BATCHED_WRITES in str(line) for line in process.lines)


def status_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/status").read_text().splitlines()


def calls_of_unit() -> set[str]:
    """Returns the system calls that the unit's SystemCallFilter allows."""
    analyze = program("systemd-analyze")

    def of(group: str) -> set[str]:
        done = subprocess.run([analyze, "syscall-filter", group], capture_output=True, text=True, check=True)
        names = [line.strip() for line in done.stdout.splitlines()[1:] if line.strip() and "#" not in line]
        return {call for name in names for call in (of(name) if name.startswith("@") else {name})}

    # systemd always allows the calls in @default, because it needs some of them to start the command.
    calls = of("@default")
    for line in directives("SystemCallFilter"):
        groups = {call for group in line.removeprefix("~").split() for call in of(group)}
        calls = calls - groups if line.startswith("~") else calls | groups
    return calls
