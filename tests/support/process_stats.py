"""What a bridge's process uses, by the kernel and by its own metrics: memory, descriptors, processor time."""

import os
import ssl
from pathlib import Path

from tests.support.clients import get

MB = 2**20
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def rss_bytes(pid: int) -> int:
    """Memory that is resident now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


def descriptors(pid: int) -> int:
    """File descriptors that are open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def sockets(pid: int) -> int:
    """Sockets that are open: other descriptors may come later, such as that of libffi, which opens its own file."""
    count = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            count += descriptor.readlink().name.startswith("socket:")
        except FileNotFoundError:
            continue  # closed since it was listed
    return count


def cpu_s(pid: int) -> float:
    """Processor time so far, in user and kernel mode."""
    # Behind the command's name, which may hold anything: utime and stime are the 14th and 15th field of all.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


async def metric(port: int, name: str, context: ssl.SSLContext | None = None) -> float:
    """A sample as `/metrics` gives it; `name` has its labels, if any, as they are written there.

    `context` is for a bridge that serves TLS. Raises KeyError if there is no such series.
    """
    _, body = await get(port, "/metrics", context=context)
    for line in body.decode().splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[-1])
    raise KeyError(f"there is no series {name}")


class Memory:
    """How much a process has grown, at most, since it was first looked at."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.before = self._most = rss_bytes(pid)
        """Resident bytes at the start."""

    def look(self) -> int:
        """Bytes that it has grown at most, as far as was looked."""
        self._most = max(self._most, rss_bytes(self._pid))
        return self._most - self.before
