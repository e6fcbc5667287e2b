"""A broker that a test has in hand: it can be stopped where it stands, go on, and be told what its operator would."""

import asyncio
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from bridge.demo.leash import signal_group
from bridge.demo.node import PrivateNode

COMMAND_LIMIT_S = 60
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
        done = await asyncio.to_thread(
            subprocess.run,
            [str(self._command), "--quiet", *arguments],
            env={**self._environment, "RABBITMQ_CTL_ERL_ARGS": ON_LOOPBACK},
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=COMMAND_LIMIT_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout.strip()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        signal_group(self._process.pid, number)
