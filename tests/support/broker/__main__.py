"""`python -m tests.support.broker [--hosts=N] COMMAND ...` runs a command with one broker for all its workers.

The broker has a virtual host for each of N workers. This command does not start a broker if TEST_AMQP_URL is set, or if
an outer call of the command has started one.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.support.broker.find import Broker, NoBroker
from tests.support.broker.node import PrivateNode
from tests.support.broker.session import SHARED, URL, find_for_tests, say

HOSTS_FLAG = "--hosts="


def _with_hosts(broker: Broker, hosts: Sequence[str]) -> None:
    """Creates virtual hosts, and gives the user guest all permissions in them. Raises RuntimeError."""
    rights = {"user": "guest", "configure": ".*", "write": ".*", "read": ".*"}
    definitions = json.dumps(
        {"vhosts": [{"name": host} for host in hosts], "permissions": [{"vhost": host, **rights} for host in hosts]}
    )
    if isinstance(broker, PrivateNode):
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            file.write(definitions)
            file.flush()
            # The node's user must be able to read the file.
            Path(file.name).chmod(0o644)
            broker.command("import_definitions", file.name)
    else:
        from tests.support.broker.container import Container  # noqa: PLC0415 - slow, and an optional dependency

        assert isinstance(broker, Container)
        script = 'echo "$0" >/tmp/hosts.json && rabbitmqctl import_definitions /tmp/hosts.json'
        broker.run("sh", "-c", script, definitions)


def main(arguments: Sequence[str]) -> int:
    """Runs the command with a broker. Returns the exit status."""
    count = 1
    if arguments and arguments[0].startswith(HOSTS_FLAG):
        count, arguments = max(1, int(arguments[0].removeprefix(HOSTS_FLAG))), arguments[1:]
    if URL or SHARED in os.environ:
        return _run(arguments)
    try:
        broker = find_for_tests(None)
    except NoBroker as error:
        say(str(error))
        return _run(arguments)  # without a broker, each test is skipped or fails with this reason
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
    """Runs a command, and returns its exit status. This process waits until the command ends."""
    with subprocess.Popen(arguments, env={**os.environ, **variables}) as command:
        # Ctrl-C reaches both the command and this process. This process must outlive the command, to stop the broker.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: command.terminate())
        return command.wait()


SPARE_HOSTS = 2
"""The number of virtual hosts for workers that replace crashed workers."""

MASTER = "master"
"""The virtual host of a run without workers."""

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
