"""HAProxy, as an operator puts it before several bridges: one port for clients, who are spread over the ready ones.

It passes bytes on (`mode tcp`), asks each bridge's `/readyz` several times a second, and tries another one where a
connection is refused. It listens on loopback only. The bridges see it as their peer, and not the clients.
"""

import asyncio
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from bridge.demo.leash import leashed, signal_group
from bridge.demo.ports import LOOPBACK, free_port
from tests.support.prepare import HAPROXY, program
from tests.support.waiting import eventually

STOP_LIMIT_S = 5.0

# One failed check is enough, and one that went well: tests wait for both. Without `on-marked-down`, a client would stay
# with a bridge that hangs; `redispatch` lets it have another where the first one refuses, before a check has seen that.
_CONFIGURATION = """
global
  nbthread 1
  maxconn 400
  stats socket {control} mode 600 level user

defaults
  mode tcp
  timeout connect 1s
  timeout client 1h
  timeout server 1h
  timeout check 2s
  retries 3
  option redispatch 1

frontend clients
  bind {host}:{port}
  default_backend bridges

backend bridges
  balance leastconn
  option httpchk
  http-check send meth GET uri /readyz ver HTTP/1.1 hdr Host localhost
  http-check expect status 200
  default-server check inter 200ms fall 1 rise 1 on-marked-down shutdown-sessions
{servers}
"""


class Haproxy:
    """A load balancer that runs."""

    def __init__(self, port: int, control: Path) -> None:
        self.port = port
        self._control = control

    async def up(self) -> set[int]:
        """The ports of the bridges that get clients now."""
        reader, writer = await asyncio.open_unix_connection(self._control)
        writer.write(b"show servers state bridges\n")
        answer = await reader.read(-1)
        writer.close()
        await writer.wait_closed()
        lines = [line.split() for line in answer.decode().splitlines()]
        names = next(line[1:] for line in lines if line[:1] == ["#"])
        rows = [dict(zip(names, line, strict=False)) for line in lines if len(line) == len(names)]
        # Of the states, 2 is "running".
        return {int(row["srv_port"]) for row in rows if row["srv_op_state"] == "2"}

    async def sees(self, *ports: int) -> None:
        """Returns when exactly these bridges get clients."""

        async def same() -> bool:
            return await self.up() == set(ports)

        await eventually(f"HAProxy finds the bridges on {ports} ready, and no other", same)


@asynccontextmanager
async def haproxy(backends: Sequence[int]) -> AsyncIterator[Haproxy]:
    """HAProxy on a free port, before bridges on these ports of loopback, which need not be there yet."""
    command = program(HAPROXY)
    directory = Path(tempfile.mkdtemp(prefix="edk-bridge-haproxy-"))
    try:
        port = free_port()
        servers = "\n".join(f"  server bridge-{number} {LOOPBACK}:{each}" for number, each in enumerate(backends, 1))
        control, configuration = directory / "control", directory / "haproxy.cfg"
        configuration.write_text(_CONFIGURATION.format(control=control, host=LOOPBACK, port=port, servers=servers))
        words = directory / "words.log"
        with words.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                # -db: in the foreground, whatever a configuration says.
                *leashed(command, "-db", "-f", str(configuration)),
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=directory,
            )
        try:
            await eventually("HAProxy listens", lambda: control.exists() or process.returncode is not None)
            if process.returncode is not None:
                raise RuntimeError(f"HAProxy ended with {process.returncode}: {words.read_text()}")
            yield Haproxy(port, control)
        finally:
            assert process.stdin is not None
            try:
                signal_group(process.pid, signal.SIGTERM)
                async with asyncio.timeout(STOP_LIMIT_S):
                    await process.wait()
            finally:
                # The leash: what is still there at its other end is killed.
                process.stdin.close()
                await process.wait()
    finally:
        shutil.rmtree(directory)
