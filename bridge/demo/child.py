"""Runs child processes that end when this process ends. One of these child processes can be the bridge."""

import asyncio
import contextlib
import os
import signal
import ssl
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection

from bridge.config.tls import require_tls_1_2
from bridge.errors import BridgeError

_KEPT_LINES = 15
_LONGEST_LINE = 256 * 1024
_POLL_S = 0.1


# SIGTERM goes to the entire process group. The shell ignores SIGTERM, so that the shell can return the command's exit
# status. The watcher blocks on the pipe from the parent process. When the pipe closes, the watcher kills the process
# group.
_SCRIPT = """
exec 3<&0 </dev/null
(trap '' TERM; read -r _ <&3; kill -9 0) >/dev/null 2>&1 &
watcher=$!
trap : TERM
"$@" 3<&-
status=$?
kill -9 $watcher
exit $status
"""


def die_with_parent(*command: str) -> list[str]:
    """Returns arguments that run a command. The command and all its children end when this process ends.

    Pass the returned arguments to a function that starts a process, with `stdin=PIPE` and `start_new_session=True`. The
    caller must keep the pipe to standard input open as long as the command should run. The kernel also closes the pipe
    when this process is killed. The exit status of the process is that of the command.

    The kernel's option PR_SET_PDEATHSIG is not an alternative, because its signal is sent when the *thread* that
    started the child ends, and the signal does not reach the children of the child. The command has its own session, so
    Ctrl-C in a terminal does not reach the command.
    """
    return ["/bin/sh", "-c", _SCRIPT, "die-with-parent", *command]


def signal_group(leader: int, number: signal.Signals) -> None:
    """Sends a signal to the process group of a command that `die_with_parent` runs, if the group still exists."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, number)


class ChildError(BridgeError):
    """The bridge ended unexpectedly, or did not become ready in time."""


class Child:
    """`python -m bridge serve` as a child process that ends with this process."""

    def __init__(self, flags: Sequence[str], environment: Mapping[str, str], show: Callable[[str], None]) -> None:
        """`show` is called with each line that the bridge logs after the bridge has become ready."""
        self._command = die_with_parent(sys.executable, "-m", "bridge", "serve", *flags)
        self._environment = environment
        self._show = show
        self._ready = False
        self._last_lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts the process. Returns before the bridge is ready."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            limit=_LONGEST_LINE,
        )
        assert self._process.stdout is not None
        self._reading = asyncio.create_task(self._read(self._process.stdout))

    async def ready(self, host: str, port: int, tls: bool, timeout_s: float) -> None:
        """Returns when `/readyz` answers 200.

        Raises ChildError with the last lines of the bridge's log if the bridge ends or is not ready in time.
        """
        assert self._process is not None
        try:
            async with asyncio.timeout(timeout_s):
                while not await asyncio.to_thread(is_ready, host, port, tls):
                    if self._process.returncode is not None:
                        await self.ended()
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise ChildError(f"the bridge was not ready within {timeout_s:.0f} s{self._ending()}") from error
        self._ready = True

    async def ended(self) -> None:
        """Waits until the bridge ends, and then raises ChildError."""
        assert self._process is not None
        assert self._reading is not None
        status = await self._process.wait()
        await self._reading
        words = "" if self._ready else self._ending()
        raise ChildError(f"the bridge ended unexpectedly with status {status}{words}")

    async def stop(self, timeout_s: float) -> None:
        """Sends SIGTERM to the bridge, and SIGKILL to all processes that still run after `timeout_s`."""
        process = self._process
        if process is None:
            return
        try:
            signal_group(process.pid, signal.SIGTERM)
            async with asyncio.timeout(timeout_s):
                await process.wait()
        except TimeoutError:
            self._show(f"did not stop within {timeout_s:.0f} s and was killed")
        finally:
            signal_group(process.pid, signal.SIGKILL)
            await process.wait()
            if self._reading is not None:
                await self._reading

    async def _read(self, output: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await output.readline()
            except ValueError:
                # The line is longer than the limit, so the line is dropped. Reading must continue, because a full pipe
                # would block the bridge.
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            self._last_lines.append(text)
            if self._ready:
                self._show(text)

    def _ending(self) -> str:
        return "".join(f"\n  {line}" for line in ("; the last lines of its log:", *self._last_lines)).removeprefix(
            "\n  "
        )


def is_ready(host: str, port: int, tls: bool) -> bool:
    """Returns whether `/readyz` of the bridge at this address answers 200."""
    connection = HTTPConnection(host, port, timeout=2)
    if tls:
        # The bridge is a child process on this machine, so this request needs no check of the bridge's certificate.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        require_tls_1_2(context)
        connection = HTTPSConnection(host, port, timeout=2, context=context)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
