"""Tests that the usable memory is the machine's memory, or the lowest limit of the process's control groups."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from bridge.server import memory
from bridge.server.memory import TRIM_MIN_CONNECTIONS, HeapTrimmer, usable_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MACHINE_BYTES = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def machine(root: Path, groups: str, **limits: str) -> Path:
    """Makes a root folder that has the list of a process's control groups, and the files that contain their limits."""
    for path, text in {"proc/self/cgroup": groups, **limits}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "limits", "usable"),
    [
        ("0::/\n", {}, MACHINE_BYTES),
        ("0::/\n", {"sys/fs/cgroup/memory.max": "1048576\n"}, 1048576),
        ("0::/a/b\n", {"sys/fs/cgroup/a/memory.max": "1048576\n", "sys/fs/cgroup/a/b/memory.max": "max\n"}, 1048576),
        ("0::/a/b\n", {"sys/fs/cgroup/a/memory.max": "5\n", "sys/fs/cgroup/a/b/memory.max": "6\n"}, 5),
        ("0::/../b\n", {"sys/fs/cgroup/memory.max": f"{MACHINE_BYTES * 2}\n"}, MACHINE_BYTES),
        (
            "3:cpu:/a\n2:memory,hugetlb:/docker/1\n0::/a\n",
            {"sys/fs/cgroup/memory/memory.limit_in_bytes": "7\n", "sys/fs/cgroup/memory/docker/1/other": "1\n"},
            7,
        ),
        ("1:cpu:/\n", {"sys/fs/cgroup/memory.max": "1\n"}, MACHINE_BYTES),
    ],
)
def test_smallest_limit_counts(tmp_path: Path, groups: str, limits: dict[str, str], usable: int) -> None:
    assert usable_bytes(machine(tmp_path, groups, **limits)) == usable


def test_machine_without_control_groups_has_its_own_memory(tmp_path: Path) -> None:
    assert usable_bytes(tmp_path) == MACHINE_BYTES


def test_trim_follows_once_after_half_of_many_connections_have_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    trims: list[float] = []
    monkeypatch.setattr(memory, "malloc_trim", lambda: trims.append(0.0))

    def call_later(delay_s: float, callback: Callable[[], None]) -> None:
        trims.append(delay_s)
        callback()

    trimmer = HeapTrimmer(call_later, 1.5)
    for connections in range(1, TRIM_MIN_CONNECTIONS + 1):
        trimmer.grown_to(connections)
    for connections in range(TRIM_MIN_CONNECTIONS - 1, -1, -1):
        trimmer.shrunk_to(connections)
        assert trims == ([1.5, 0.0] if connections <= TRIM_MIN_CONNECTIONS // 2 else [])


def test_few_connections_cause_no_trim() -> None:
    trims: list[float] = []
    trimmer = HeapTrimmer(lambda delay_s, _: trims.append(delay_s), 1.5)
    trimmer.grown_to(TRIM_MIN_CONNECTIONS - 1)
    trimmer.shrunk_to(0)
    assert trims == []


def test_trim_of_the_heap_changes_nothing_that_is_in_use() -> None:
    used = [bytes(1000) for _ in range(1000)]
    memory.malloc_trim()
    assert all(each == bytes(1000) for each in used)
