"""The broker that tests run against: TEST_AMQP_URL, else a container, else a private node of rabbitmq-server.

`python -m tests.support.broker.session [--hosts=N] COMMAND ...` starts one broker with a virtual host for each of N
workers, and runs COMMAND. It starts no broker if TEST_AMQP_URL is set, or if an outer call of this command has done so.

A `ControlledNode` is a private node that a test can pause and administer.
"""

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import pytest

from bridge.demo.child import signal_group
from tests.support.broker.find import (
    Broker,
    NamedBroker,
    NoBroker,
    PrivateNode,
    container_possible,
    find_broker,
    find_server,
)
from tests.support.broker.ports import LOOPBACK

COMMAND_LIMIT_S = 60

PASSWORD = secrets.token_hex(8)
"""The password of all users that tests create."""

ON_LOOPBACK = "-kernel inet_dist_use_interface {127,0,0,1}"


class ControlledNode(PrivateNode):
    """A private node that a test can pause, and administer with `rabbitmqctl`."""

    def __init__(self, server: Path, conf: Mapping[str, str] | None = None) -> None:
        super().__init__(server, conf)
        self._command = server.parent / "rabbitmqctl"

    def pause(self) -> None:
        """Sends SIGSTOP to every process of the node, so that it hangs."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Sends SIGCONT to every process of the node."""
        self._signal(signal.SIGCONT)

    async def ctl(self, *arguments: str) -> str:
        """Returns the output of `rabbitmqctl`, after 1 to 2 s. Raises RuntimeError with its error output."""
        return await asyncio.to_thread(self.command, *arguments)

    def command(self, *arguments: str) -> str:
        """Like `ctl`, for a fixture without an event loop."""
        return self._run(self._command, "--quiet", *arguments)

    async def define(self, definitions: Mapping[str, object]) -> None:
        """Makes users, virtual hosts, permissions and policies, as `rabbitmqctl import_definitions` takes them.

        One command for all: each run of rabbitmqctl takes 1 s of processor time.
        """
        file = self.directory / f"{secrets.token_hex(4)}.json"
        file.write_text(json.dumps(definitions))
        await self.ctl("import_definitions", str(file))

    async def user(self, configure: str = ".*", write: str = ".*", read: str = ".*") -> str:
        """Creates a user with these permissions, until the node stops. Returns the node's URL for this user."""
        name = f"user-{secrets.token_hex(4)}"
        rights = {"configure": configure, "write": write, "read": read}
        await self.define(
            {
                "users": [{"name": name, "password": PASSWORD, "tags": ""}],
                "permissions": [{"user": name, "vhost": "/", **rights}],
            }
        )
        return f"amqp://{name}:{PASSWORD}@{LOOPBACK}:{self.port}/"

    async def script(self, script: Path, *arguments: str, **variables: str) -> str:
        """Like `ctl`, for an operator's script, which finds `rabbitmqctl` in the variable RABBITMQCTL."""
        return await asyncio.to_thread(self._run, script, *arguments, RABBITMQCTL=str(self._command), **variables)

    def _run(self, command: Path, *arguments: str, **variables: str) -> str:
        done = subprocess.run(
            [str(command), *arguments],
            env={**self._environment, "RABBITMQ_CTL_ERL_ARGS": ON_LOOPBACK, **variables},
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=COMMAND_LIMIT_S,
            check=False,
        )
        if done.returncode:
            words = done.stderr.strip() or done.stdout.strip()
            raise RuntimeError(f"{command.name} {' '.join(arguments)}: {words}")
        return done.stdout.strip()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        signal_group(self._process.pid, number)


URL = os.environ.get("TEST_AMQP_URL")
IMAGE = os.environ.get("TEST_RABBITMQ_IMAGE", "rabbitmq:4-management")

SHARED = "TEST_SHARED_BROKER"
"""The variable with the broker of a whole run: a JSON object with `url` and `origin`."""

HOSTS_FLAG = "--hosts="

origins: list[str] = []
"""Where the brokers of this run came from."""


def shared(worker: str) -> Iterator[Broker]:
    """Yields the run's broker in the worker's virtual host, or a broker for this process if the run has none."""
    if URL or SHARED not in os.environ:
        yield from running(URL)
        return
    run = json.loads(os.environ[SHARED])
    broker = NamedBroker(urlsplit(run["url"])._replace(path=f"/{worker}").geturl())
    broker.origin = run["origin"]
    _note(broker)
    yield broker


def running(url: str | None = None) -> Iterator[Broker]:
    """One broker, stopped at the end: the one at the URL, or one of our own that a test may kill."""
    try:
        broker = _found(url)
    except NoBroker as error:
        unavailable(str(error))
    _note(broker)
    yield broker
    broker.stop()


def _found(url: str | None) -> Broker:
    """Finds the broker at the URL, or starts a container or a private node. Raises NoBroker."""
    if url or container_possible(IMAGE, say):
        broker = find_broker(url, IMAGE, say, may_install=False)
        if url or not isinstance(broker, PrivateNode):
            return broker
        broker.stop()
    if "TEST_RABBITMQ_IMAGE" in os.environ:
        raise NoBroker(f"can't start a container of {IMAGE} (TEST_RABBITMQ_IMAGE)")
    return started_node()


def started_node() -> ControlledNode:
    """A private node of our own. Raises NoBroker if no server is installed, RuntimeError if one does not start."""
    node = ControlledNode(find_server(say, may_install=False))
    say(f"starting RabbitMQ: {node.origin}")
    node.start()
    _note(node)
    return node


def _note(broker: Broker) -> None:
    if broker.origin not in origins:
        origins.append(broker.origin)


def broker_or_reason() -> Broker | None:
    """For a program that is no test: a broker, or None where there is none to be had, and why is said."""
    try:
        return find_broker(URL, IMAGE, say)
    except NoBroker as error:
        say(str(error))
    except ValueError as error:
        say(f"TEST_AMQP_URL: {error}")
    return None


def unavailable(reason: str) -> NoReturn:
    """Skip the test on a person's machine; fail it in CI, where a broker is part of the deal."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def say(line: str) -> None:
    """What takes long, for whoever looks at the test's output."""
    sys.stderr.write(f"{line}\n")


def _with_hosts(broker: Broker, hosts: Sequence[str]) -> None:
    """Makes virtual hosts in which the user guest may do everything. Raises RuntimeError."""
    rights = {"user": "guest", "configure": ".*", "write": ".*", "read": ".*"}
    definitions = json.dumps(
        {"vhosts": [{"name": host} for host in hosts], "permissions": [{"vhost": host, **rights} for host in hosts]}
    )
    if isinstance(broker, ControlledNode):
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            file.write(definitions)
            file.flush()
            # The node's user must be able to read the file.
            Path(file.name).chmod(0o644)
            broker.command("import_definitions", file.name)
    else:
        from bridge.demo.container import Container  # noqa: PLC0415 - not cheap, and an optional dependency

        assert isinstance(broker, Container)
        script = 'echo "$0" >/tmp/hosts.json && rabbitmqctl import_definitions /tmp/hosts.json'
        code, output = broker._container.get_wrapped_container().exec_run(["sh", "-c", script, definitions])
        if code:
            raise RuntimeError(output.decode(errors="replace"))


def main(arguments: Sequence[str]) -> int:
    """The command's exit status."""
    count = 1
    if arguments and arguments[0].startswith(HOSTS_FLAG):
        count, arguments = max(1, int(arguments[0].removeprefix(HOSTS_FLAG))), arguments[1:]
    if URL or SHARED in os.environ:
        return _run(arguments)
    try:
        broker = _found(None)
    except NoBroker as error:
        say(str(error))
        return _run(arguments)  # each test skips or fails with the same reason
    except RuntimeError as error:
        say(str(error))
        return 1
    try:
        _with_hosts(broker, [MASTER, *(f"gw{number}" for number in range(count + SPARE_HOSTS))])
        described = json.dumps({"url": broker.url, "origin": broker.origin})
        return _run(arguments, **{SHARED: described})
    finally:
        broker.stop()


def _run(arguments: Sequence[str], **variables: str) -> int:
    """The exit status of a command, which ends before this process does."""
    with subprocess.Popen(arguments, env={**os.environ, **variables}) as command:
        # Ctrl-C reaches both processes. This one must outlive the command, to stop the broker.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: command.terminate())
        return command.wait()


SPARE_HOSTS = 2
"""For workers that replace crashed ones."""

MASTER = "master"
"""The virtual host of a run without workers."""

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
