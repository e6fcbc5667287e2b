"""The memory, descriptors and processor time of a bridge, as the kernel and the bridge's metrics report them."""

import os
import ssl
from pathlib import Path

from tests.support.clients import get

MB = 2**20
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def rss_bytes(pid: int) -> int:
    """Returns the resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


def descriptors(pid: int) -> int:
    """Returns the number of open file descriptors of a process."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def sockets(pid: int) -> int:
    """Returns the number of open sockets of a process.

    Only sockets are counted, because the process may open other descriptors later, such as a file of libffi.
    """
    count = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            count += descriptor.readlink().name.startswith("socket:")
        except FileNotFoundError:
            continue  # the descriptor was closed after the folder was listed
    return count


def cpu_s(pid: int) -> float:
    """Returns the processor time that a process has used, in user and kernel mode."""
    # Only the fields after the command's name are split, because this name can contain any character. utime and stime
    # are the 14th and 15th field.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


async def metric(port: int, name: str, context: ssl.SSLContext | None = None) -> float:
    """Returns the value of one series in `/metrics`. `name` includes the labels, in the notation of `/metrics`.

    `context` is the TLS context, for a bridge that uses TLS. Raises KeyError if there is no series of this name.
    """
    _, body = await get(port, "/metrics", context=context)
    for line in body.decode().splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[-1])
    raise KeyError(f"there is no series {name}")


class Memory:
    """Measures the largest growth of a process since this object was made."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.before = self._most = rss_bytes(pid)
        """The resident memory in bytes when this object was made."""

    def look(self) -> int:
        """Measures the memory, and returns the largest growth so far in bytes."""
        self._most = max(self._most, rss_bytes(self._pid))
        return self._most - self.before
