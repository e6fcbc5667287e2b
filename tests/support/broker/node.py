"""A private node of an installed rabbitmq-server: a broker that shares nothing with one that the machine may run.

Its data, logs, cookie, configuration, ports and epmd are its own, and all of it listens on loopback only. Any user may
start one.
"""

import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from bridge.demo.child import die_with_parent, signal_group
from tests.support.broker.ports import LOOPBACK, await_amqp, free_port

# Debian's and the upstream packages' own script. The one on the PATH of a Debian machine would change the user.
_PACKAGED_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_START_LIMIT_S = 60.0

BUSY_WAIT = "short"
"""The packaged value, none, lets the schedulers sleep between any two of the thousand modules that a start loads: 6 s
instead of 3 on two virtual cores. This costs nothing that could be measured in an idle broker."""

WRITE_AT_ONCE = "-mnesia dump_log_write_threshold 1"
"""Before version 4, RabbitMQ keeps new queues and exchanges in a buffer for up to two seconds, durable ones too: killed
within that time, it starts again without them."""

# epmd, which Erlang would otherwise start as a daemon that nobody ends, lives and dies with the node.
_NODE = 'epmd -port "$ERL_EPMD_PORT" -address 127.0.0.1 & "$0" -noinput; kill -9 $!'


def installed_server() -> Path | None:
    """The start script of the rabbitmq-server of this machine, if there is one that a private node can be made of."""
    if shutil.which("epmd") is None:
        return None
    if _PACKAGED_SERVER.exists():
        return _PACKAGED_SERVER
    found = shutil.which("rabbitmq-server")
    return Path(found) if found else None


class PrivateNode:
    """A RabbitMQ node of our own on 127.0.0.1; `conf` holds further lines of rabbitmq.conf."""

    def __init__(self, server: Path, conf: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        self.url = f"amqp://guest:guest@{LOOPBACK}:{self.port}/"
        version = re.search(r"rabbitmq_server-([\d.]+\d)", str(server.resolve()))
        self.origin = f"private node of rabbitmq-server {version[1] if version else ''}".rstrip()
        self.directory = Path(tempfile.mkdtemp(prefix="edk-bridge-broker-"))
        self._server = server
        self._environment = self._configure(conf or {})
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the node and return when it answers AMQP; after `kill`, on the same port and with its data kept.

        Raises RuntimeError with the node's own last words when it does not start.
        """
        try:
            with (self.directory / "start.log").open("wb") as log:
                self._process = process = subprocess.Popen(  # noqa: S603 - no word comes from outside
                    die_with_parent("/bin/sh", "-c", _NODE, str(self._server)),
                    env=self._environment,
                    cwd=self.directory,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            await_amqp(LOOPBACK, self.port, _START_LIMIT_S, alive=lambda: process.poll() is None)
        except (ChildProcessError, TimeoutError) as error:
            words = self._last_words()
            self.stop()
            raise RuntimeError(f"{self.origin}: {error}; its last words: {words}") from error
        except BaseException:
            self.stop()
            raise

    @property
    def runs(self) -> bool:
        """Whether it was started, and has not ended, by itself or otherwise."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """End the node at once, as `kill -9` would."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        signal_group(process.pid, signal.SIGKILL)
        process.stdin.close()
        process.wait()

    def stop(self) -> None:
        """End the node for good and remove all that it kept."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _configure(self, conf: Mapping[str, str]) -> dict[str, str]:
        """Write the node's configuration; return the environment that makes it use nothing else."""
        at = self.directory
        lines = {"listeners.tcp.1": f"{LOOPBACK}:{self.port}", "log.file.level": "warning", **conf}
        (at / "rabbitmq.conf").write_text("".join(f"{name} = {value}\n" for name, value in lines.items()))
        (at / "enabled_plugins").write_text("[].\n")
        (at / "rabbitmq-env.conf").touch()
        (at / "conf.d").mkdir()
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RABBITMQ_", "ERL_", "NOTIFY_"))}
        return {
            **kept,
            "HOME": str(at),  # where Erlang keeps the cookie
            "ERL_CRASH_DUMP_SECONDS": "0",
            "ERL_EPMD_PORT": str(free_port()),
            "RABBITMQ_NODENAME": f"edk-bridge-{secrets.token_hex(4)}@localhost",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_SCHEDULER_BUSY_WAIT_THRESHOLD": BUSY_WAIT,
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{WRITE_AT_ONCE} -kernel inet_dist_use_interface {{127,0,0,1}}",
            "RABBITMQ_CONF_ENV_FILE": str(at / "rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(at / "rabbitmq"),
            "RABBITMQ_CONFIG_FILES": str(at / "conf.d"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(at / "advanced"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(at / "generated"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(at / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(at / "mnesia"),
            "RABBITMQ_LOG_BASE": str(at / "log"),
            "RABBITMQ_PID_FILE": str(at / "pid"),
            # Without it the start script stays as a shell between us and the node, and shuts it down politely.
            "RABBITMQ_ALLOW_INPUT": "1",
        }

    def _last_words(self) -> str:
        logs = [self.directory / "start.log", *sorted((self.directory / "log").glob("*.log"))]
        lines = [line.strip() for log in logs for line in log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if re.search(r"\[error\] \S+ \S", line)]
        return " | ".join(errors[:5] or lines[-5:]) or "none"
