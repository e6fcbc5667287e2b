"""The memory of this process: how much it may use, and what it gives back to the system."""

import ctypes
import gc
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

MAPPED_BYTES = 2**18
"""The C library maps each block of at least this size on its own, and unmaps it as soon as it is freed."""

_M_MMAP_THRESHOLD = -3
"""The number of this option in glibc's `malloc.h`."""


def map_large_blocks() -> None:
    """Makes the C library return each large block to the system as soon as it is freed.

    By default, glibc raises this threshold up to 32 MiB when a larger mapped block is freed. Large updates then leave
    holes in the heap that no other block fits into. With updates of 3.9 MB and a log of 16 MiB, the process grew by
    62 MB instead of 16 MB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)


def release() -> None:
    """Frees what only cycles and free lists hold, and returns free memory to the system; takes some milliseconds.

    What 5000 clients leave behind are holes: without this the C library keeps 5 MB of them for ever. Other C libraries
    than glibc have no `malloc_trim`, and keep less.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def usable_bytes(root: Path = Path("/")) -> int:
    """The memory that this process may use: the machine's, or less if a control group limits it.

    `root` is the folder that has `proc` and `sys`.
    """
    return min((os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_group_limits(root)))


def _group_limits(root: Path) -> Iterator[int]:
    """The limits of this process's control group and those above it, of version 1 and 2 (Linux, `cgroups(7)`)."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return  # another system
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folder, name = "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            folder, name = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        # In a container, the path may be that of the host, and only the topmost folder is there.
        for each in (group, *group.parents):
            try:
                text = (root / folder / each / name).read_text().strip()
            except OSError:
                continue
            if text.isdecimal():  # else `max`
                yield int(text)
