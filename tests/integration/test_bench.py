"""The benchmark itself: it runs, and what it prints is what was there to see."""

import asyncio
import os
import shutil
import sys
from pathlib import Path

import pytest

from bridge.demo.broker import Broker

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="the load generator is a C program, and gcc is not here")
async def test_benchmark_measures_the_bridge_and_the_floor_and_finds_nothing_wrong(broker: Broker) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench", "saturated", "--quick", "--rounds", "1", "--candidates", "floor,ours"),
        env={**os.environ, "TEST_AMQP_URL": broker.url},
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(90):
        said, progress = await process.communicate()
    lines = said.decode().splitlines()
    assert process.returncode == 0, (lines, progress.decode())
    assert "|  |  | floor | ours |" in lines
    costs = [line.split("|")[3:5] for line in lines if "| CPU" in line]
    assert len(costs) == 2
    assert all(float(cost) > 0 for pair in costs for cost in pair)
    assert "WRONG" not in said.decode()
