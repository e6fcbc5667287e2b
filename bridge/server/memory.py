"""Finds the memory limit of this process, and controls how glibc returns freed memory to the system."""

import ctypes
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

MAPPED_BYTES = 2**18
"""The C library maps each block of at least this size separately, and unmaps the block as soon as it is freed."""

_M_MMAP_THRESHOLD = -3
"""The number of the option M_MMAP_THRESHOLD in glibc's `malloc.h`."""


def map_large_blocks() -> None:
    """Makes the C library return each large block to the system as soon as it is freed.

    By default, when a mapped block is freed, glibc raises the minimum size of mapped blocks to the size of this block,
    up to 32 MiB. With a raised minimum, large updates are allocated in the heap, and their freed memory can't be reused
    for other blocks. In a test with updates of 3.9 MB and a log of 16 MiB, the process grew by 62 MB with glibc's
    default, instead of 16 MB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)


def malloc_trim() -> None:
    """Collects garbage, and returns free memory to the system, which takes some milliseconds.

    Without `malloc_trim`, glibc keeps 5 MB after 5000 clients have disconnected. C libraries other than glibc have no
    `malloc_trim`, and keep less freed memory.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


TRIM_MIN_CONNECTIONS = 250
"""The heap is trimmed only if at least this number of connections were open, and half of them have closed.

With TLS, the unread data of 250 clients takes 8 MB.
"""


class HeapTrimmer:
    """Calls `malloc_trim` whenever many connections have opened and half of them have closed again."""

    def __init__(self, call_later: Callable[[float, Callable[[], None]], object], delay_s: float) -> None:
        """`call_later` is a method of the event loop.

        `delay_s` is the time in seconds before `malloc_trim` is called.
        """
        self._call_later = call_later
        self._delay_s = delay_s
        self._max_connections = 0
        """The highest number of connections since the last call of `malloc_trim`."""

    def grown_to(self, connections: int) -> None:
        """Must be called with the number of connections after a connection has opened."""
        self._max_connections = max(self._max_connections, connections)

    def shrunk_to(self, connections: int) -> None:
        """Must be called with the number of connections after a connection has closed."""
        if self._max_connections >= TRIM_MIN_CONNECTIONS and connections <= self._max_connections // 2:
            self._max_connections = connections
            self._call_later(self._delay_s, malloc_trim)


def usable_bytes(root: Path = Path("/")) -> int:
    """Returns the memory that this process can use, which is the machine's memory or the control group's limit.

    `root` is the folder that contains `proc` and `sys`.
    """
    return min((os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_group_limits(root)))


def _group_limits(root: Path) -> Iterator[int]:
    """Yields the limits of this process's control group and of its parents, for cgroups 1 and 2 (`cgroups(7)`)."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return  # this system has no folder /proc
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folder, name = "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            folder, name = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        # In a container, `path` may be the control group's path on the host. Only the topmost folder of `path` exists
        # in the container.
        for each in (group, *group.parents):
            try:
                text = (root / folder / each / name).read_text().strip()
            except OSError:
                continue
            if text.isdecimal():  # for a control group without a limit, the file contains `max`
                yield int(text)
