"""A broker that a test has in hand: it can be stopped where it stands, go on, and be told what its operator would."""

import asyncio
import json
import secrets
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from bridge.demo.leash import signal_group
from bridge.demo.node import PrivateNode
from bridge.demo.ports import LOOPBACK

COMMAND_LIMIT_S = 60

PASSWORD = secrets.token_hex(8)
"""Of the users that tests make."""

ON_LOOPBACK = "-kernel inet_dist_use_interface {127,0,0,1}"


class ControlledNode(PrivateNode):
    """A private node, with its operator's command."""

    def __init__(self, server: Path, conf: Mapping[str, str] | None = None) -> None:
        super().__init__(server, conf)
        self._command = server.parent / "rabbitmqctl"

    def pause(self) -> None:
        """Stops every process of the node, as SIGSTOP or a host that hangs does."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it go on."""
        self._signal(signal.SIGCONT)

    async def ctl(self, *arguments: str) -> str:
        """What `rabbitmqctl` prints. Takes a second or two. Raises RuntimeError with its words where it fails."""
        return await asyncio.to_thread(self.command, *arguments)

    def command(self, *arguments: str) -> str:
        """The same, for a fixture that no event loop runs in."""
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
        """The same of an operator's script, which finds `rabbitmqctl` in the variable RABBITMQCTL."""
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
