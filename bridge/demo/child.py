"""The bridge as a user would start it: a process of its own, with flags, an environment and a log."""

import asyncio
import signal
import ssl
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection

from bridge.config.tls_version import require_tls_1_2
from bridge.demo.leash import leashed, signal_group
from bridge.errors import BridgeError

_KEPT_LINES = 15
_LONGEST_LINE = 256 * 1024
_POLL_S = 0.1


class ChildError(BridgeError):
    """The bridge ended although nobody asked it to, or never became ready."""


class Child:
    """`python -m bridge serve` as a child process that never outlives this one."""

    def __init__(self, flags: Sequence[str], environment: Mapping[str, str], hear: Callable[[str], None]) -> None:
        """`hear` gets each line that the bridge logs from the moment when it is ready."""
        self._command = leashed(sys.executable, "-m", "bridge", "serve", *flags)
        self._environment = environment
        self._hear = hear
        self._ready = False
        self._words: deque[str] = deque(maxlen=_KEPT_LINES)
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the process; the bridge is not ready yet."""
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
        self._listening = asyncio.create_task(self._listen(self._process.stdout))

    async def ready(self, host: str, port: int, tls: bool, timeout_s: float) -> None:
        """Return when `/readyz` says yes. Raises ChildError, with the bridge's last words, where it does not."""
        assert self._process is not None
        try:
            async with asyncio.timeout(timeout_s):
                while not await asyncio.to_thread(is_ready, host, port, tls):
                    if self._process.returncode is not None:
                        await self.ended()
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise ChildError(f"the bridge was not ready within {timeout_s:.0f} s{self._last_words()}") from error
        self._ready = True

    async def ended(self) -> None:
        """Wait until the bridge ends. Raises ChildError then."""
        assert self._process is not None
        assert self._listening is not None
        status = await self._process.wait()
        await self._listening
        words = "" if self._ready else self._last_words()
        raise ChildError(f"the bridge ended by itself with status {status}{words}")

    async def stop(self, timeout_s: float) -> None:
        """SIGTERM, and SIGKILL for what is still there after timeout_s."""
        process = self._process
        if process is None:
            return
        try:
            signal_group(process.pid, signal.SIGTERM)
            async with asyncio.timeout(timeout_s):
                await process.wait()
        except TimeoutError:
            self._hear(f"did not stop within {timeout_s:.0f} s and was killed")
        finally:
            signal_group(process.pid, signal.SIGKILL)
            await process.wait()
            if self._listening is not None:
                await self._listening

    async def _listen(self, output: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await output.readline()
            except ValueError:
                continue  # longer than the limit, and dropped by now; not reading on would stop the bridge
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            self._words.append(text)
            if self._ready:
                self._hear(text)

    def _last_words(self) -> str:
        return "".join(f"\n  {line}" for line in ("; its last words:", *self._words)).removeprefix("\n  ")


def is_ready(host: str, port: int, tls: bool) -> bool:
    """Whether a bridge is there, and `/readyz` says that it consumes."""
    connection = HTTPConnection(host, port, timeout=2)
    if tls:
        # What the certificate is worth is for clients to judge: this asks a child of ours, on this machine.
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
