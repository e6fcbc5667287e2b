"""A RabbitMQ cluster of three private nodes on this machine's loopback, each of which can be killed and started again.

The nodes share a cookie and an epmd, and nothing else: data, logs and ports are each one's own.
"""

import json
import secrets
import socket
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bridge.demo.leash import leashed
from bridge.demo.ports import LOOPBACK, free_port
from tests.support.control import ControlledNode
from tests.support.waiting import eventually

SIZE = 3

REPLICATED_LIMIT_S = 60.0
"""Until a node that was started again has all of a stream: the cluster tries that again every few seconds."""


class Member(ControlledNode):
    """One node of a cluster."""

    def __init__(self, server: Path, name: str, conf: Mapping[str, str], cookie: str, epmd_port: int) -> None:
        super().__init__(server, conf)
        self.name = name
        cookie_file = self.directory / ".erlang.cookie"
        cookie_file.write_text(cookie)
        cookie_file.chmod(0o400)
        # A stream is replicated by way of the host's name, whatever the nodes call themselves.
        names = self.directory / "inetrc"
        names.write_text(
            f'{{host, {{127,0,0,1}}, ["localhost", "{socket.gethostname()}"]}}.\n{{lookup, [file, native]}}.\n'
        )
        self._environment |= {
            "RABBITMQ_NODENAME": name,
            # The node's own epmd finds the cluster's at this port, and ends.
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_INETRC": str(names),
        }

    @property
    def alive(self) -> bool:
        """Whether it was started, and not killed since."""
        return self._process is not None


class Cluster:
    """Three nodes, of which any two are enough."""

    def __init__(self, server: Path) -> None:
        self._epmd_port = free_port()
        self._epmd: subprocess.Popen[bytes] | None = None
        cluster, cookie = secrets.token_hex(4), secrets.token_hex(16)
        names = [f"edk-bridge-{cluster}-{number}@localhost" for number in range(1, SIZE + 1)]
        joining = {"cluster_formation.peer_discovery_backend": "classic_config"}
        joining |= {f"cluster_formation.classic_config.nodes.{number}": name for number, name in enumerate(names, 1)}
        # The first has nobody to look for: it would ask for the others, ten times, before it starts alone.
        confs = [{}, *(joining for _ in names[1:])]
        self.members = [
            Member(server, name, conf, cookie, self._epmd_port) for name, conf in zip(names, confs, strict=True)
        ]
        self.url = ",".join(member.url for member in self.members)
        """All nodes, to be tried in turn."""

    def start(self) -> None:
        """Returns when all nodes answer AMQP as one cluster, a quarter of a minute later.

        Raises RuntimeError with the words of a node that does not start.
        """
        command = ["epmd", "-port", str(self._epmd_port), "-address", LOOPBACK]
        try:
            self._epmd = subprocess.Popen(leashed(*command), stdin=subprocess.PIPE, start_new_session=True)
            first, *others = self.members
            first.start()
            with ThreadPoolExecutor(len(others)) as threads:
                list(threads.map(Member.start, others))
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends all of it, and removes what it kept."""
        for member in self.members:
            member.stop()
        if self._epmd is not None:
            assert self._epmd.stdin is not None
            # The leash: what it leads to ends when it is let go.
            self._epmd.stdin.close()
            self._epmd.wait()
            self._epmd = None

    async def leader(self, stream: str) -> Member:
        """The node that leads a stream. Raises AssertionError, naming the stream, where none does for long."""
        found: list[Member] = []

        async def known() -> bool:
            name = (await self._stream(stream)).get("leader")
            found[:] = [member for member in self.members if member.name == name and member.alive]
            return bool(found)

        await eventually(f"a node that is alive leads {stream}", known)
        return found[0]

    async def replicated(self, stream: str) -> None:
        """Returns when all nodes have a replica of the stream that works."""

        async def whole() -> bool:
            return len((await self._stream(stream)).get("online", ())) == SIZE

        await eventually(f"{SIZE} replicas of {stream} are online", whole, limit_s=REPLICATED_LIMIT_S)

    async def _stream(self, stream: str) -> dict[str, Any]:
        """What a node that is alive says of it."""
        alive = next(member for member in self.members if member.alive)
        said = await alive.ctl("list_queues", "--formatter", "json", "name", "leader", "online")
        rows: list[dict[str, Any]] = json.loads(said)
        return next((row for row in rows if row["name"] == stream), {})
