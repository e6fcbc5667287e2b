"""Private nodes of an installed rabbitmq-server, which share nothing with another broker on the same machine.

A private node has its own data, logs, cookie, configuration, ports and epmd, listens on loopback only, and needs no
root user.
"""

import asyncio
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from bridge.demo.amqp_probe import LOOPBACK, await_amqp
from bridge.demo.child import die_with_parent, signal_group
from tests.support.broker.ports import free_port

# The start script in the packages of Debian and of RabbitMQ. On Debian, the rabbitmq-server on the PATH is a different
# script, which switches to another user.
_PACKAGED_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_START_LIMIT_S = 60.0

BUSY_WAIT = "short"
"""With the packaged value `none`, the schedulers sleep after each of the thousand modules that they load, so a start
takes 6 s instead of 3 s. With `short`, an idle broker uses no more processor time than with `none`."""

WRITE_AT_ONCE = "-mnesia dump_log_write_threshold 1"
"""Before version 4, RabbitMQ keeps new queues and exchanges, even durable ones, in a buffer for up to 2 s. A broker
that is killed within 2 s after a declaration loses the declared queue or exchange."""

COMMAND_LIMIT_S = 60

PASSWORD = secrets.token_hex(8)
"""The password of all users that tests create."""

ON_LOOPBACK = "-kernel inet_dist_use_interface {127,0,0,1}"

# This command starts an epmd that ends with the node. Without a command for epmd, Erlang would start epmd as a daemon
# that runs forever.
_NODE = 'epmd -port "$ERL_EPMD_PORT" -address 127.0.0.1 & "$0" -noinput; kill -9 $!'


def installed_server() -> Path | None:
    """Returns the start script of this machine's rabbitmq-server, or None if a private node can't use it."""
    if shutil.which("epmd") is None:
        return None
    if _PACKAGED_SERVER.exists():
        return _PACKAGED_SERVER
    found = shutil.which("rabbitmq-server")
    return Path(found) if found else None


class PrivateNode:
    """A RabbitMQ node on 127.0.0.1 that can be killed, started again, paused, and administered with `rabbitmqctl`."""

    def __init__(self, server: Path, conf: Mapping[str, str] | None = None) -> None:
        """`conf` contains additional lines for rabbitmq.conf."""
        self.port = free_port()
        self.url = f"amqp://guest:guest@{LOOPBACK}:{self.port}/"
        version = re.search(r"rabbitmq_server-([\d.]+\d)", str(server.resolve()))
        self.origin = f"private node of rabbitmq-server {version[1] if version else ''}".rstrip()
        self.directory = Path(tempfile.mkdtemp(prefix="edk-bridge-broker-"))
        self._server = server
        self._rabbitmqctl = server.parent / "rabbitmqctl"
        self._environment = self._configure(conf or {})
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the node (after `kill`, with the same port and data), and waits until the node answers over AMQP.

        Raises RuntimeError with the last lines of the node's log if the node does not start.
        """
        try:
            with (self.directory / "start.log").open("wb") as log:
                self._process = process = subprocess.Popen(
                    die_with_parent("/bin/sh", "-c", _NODE, str(self._server)),
                    env=self._environment,
                    cwd=self.directory,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            await_amqp(LOOPBACK, self.port, _START_LIMIT_S, lambda: process.poll() is None)
        except (ChildProcessError, TimeoutError) as error:
            lines = self._last_lines()
            self.stop()
            raise RuntimeError(f"{self.origin}: {error}; last log lines: {lines}") from error
        except BaseException:
            self.stop()
            raise

    @property
    def runs(self) -> bool:
        """Whether the node was started and still runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The process whose children are the node's processes, or None if the node does not run."""
        return self._process.pid if self._process else None

    def kill(self) -> None:
        """Ends the node at once, as `kill -9` does. The node's data stays."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        signal_group(process.pid, signal.SIGKILL)
        process.stdin.close()
        process.wait()

    def stop(self) -> None:
        """Ends the node and removes its data."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def pause(self) -> None:
        """Sends SIGSTOP to every process of the node, so that it hangs."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Sends SIGCONT to every process of the node."""
        self._signal(signal.SIGCONT)

    async def ctl(self, *arguments: str) -> str:
        """Returns the output of `rabbitmqctl`, which takes 1 to 2 s.

        Raises RuntimeError with the error output of a command that fails.
        """
        return await asyncio.to_thread(self.command, *arguments)

    def command(self, *arguments: str) -> str:
        """Returns the output of `rabbitmqctl`, as `ctl` does, for a fixture without an event loop."""
        return self._run(self._rabbitmqctl, "--quiet", *arguments)

    async def define(self, definitions: Mapping[str, object]) -> None:
        """Creates users, virtual hosts, permissions and policies with `rabbitmqctl import_definitions`.

        One command creates all definitions, because each run of rabbitmqctl takes 1 s of processor time.
        """
        file = self.directory / f"{secrets.token_hex(4)}.json"
        file.write_text(json.dumps(definitions))
        await self.ctl("import_definitions", str(file))

    async def user(self, configure: str = ".*", write: str = ".*", read: str = ".*") -> str:
        """Creates a user who has these permissions and exists until the node stops.

        Returns the node's URL for this user.
        """
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
        """Runs an operator's script, which finds `rabbitmqctl` in the variable RABBITMQCTL, and returns its output."""
        return await asyncio.to_thread(self._run, script, *arguments, RABBITMQCTL=str(self._rabbitmqctl), **variables)

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

    def _configure(self, conf: Mapping[str, str]) -> dict[str, str]:
        """Writes the node's configuration. Returns the environment that separates the node from all other nodes."""
        at = self.directory
        lines = {"listeners.tcp.1": f"{LOOPBACK}:{self.port}", "log.file.level": "warning", **conf}
        (at / "rabbitmq.conf").write_text("".join(f"{name} = {value}\n" for name, value in lines.items()))
        (at / "enabled_plugins").write_text("[].\n")
        (at / "rabbitmq-env.conf").touch()
        (at / "conf.d").mkdir()
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RABBITMQ_", "ERL_", "NOTIFY_"))}
        return {
            **kept,
            "HOME": str(at),  # Erlang keeps its cookie in HOME
            "ERL_CRASH_DUMP_SECONDS": "0",
            "ERL_EPMD_PORT": str(free_port()),
            "RABBITMQ_NODENAME": f"edk-bridge-{secrets.token_hex(4)}@localhost",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_SCHEDULER_BUSY_WAIT_THRESHOLD": BUSY_WAIT,
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{WRITE_AT_ONCE} {ON_LOOPBACK}",
            "RABBITMQ_CONF_ENV_FILE": str(at / "rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(at / "rabbitmq"),
            "RABBITMQ_CONFIG_FILES": str(at / "conf.d"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(at / "advanced"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(at / "generated"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(at / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(at / "mnesia"),
            "RABBITMQ_LOG_BASE": str(at / "log"),
            "RABBITMQ_PID_FILE": str(at / "pid"),
            # Without RABBITMQ_ALLOW_INPUT, the start script stays as a shell between this process and the node, and
            # stops the node slowly.
            "RABBITMQ_ALLOW_INPUT": "1",
        }

    def _last_lines(self) -> str:
        logs = [self.directory / "start.log", *sorted((self.directory / "log").glob("*.log"))]
        lines = [line.strip() for log in logs for line in log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if re.search(r"\[error\] \S+ \S", line)]
        return " | ".join(errors[:5] or lines[-5:]) or "none"
