"""What the figures were measured on, in one line: they mean little without it."""

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from tests.bench import build
from tests.bench.amqp import Channel
from tests.bench.process import Failed

_PACKAGES = ("uvloop", "aio-pika", "websockets")


def line(amqp: str) -> str:
    """Processor, kernel, versions and the command."""
    with Channel(amqp) as channel:
        broker = channel.version
    words = [
        f"{_processor()}, {os.cpu_count()} cores, Linux {platform.release()}",
        f"Python {platform.python_version()}",
        *(f"{package} {version(package)}" for package in _PACKAGES),
        f"RabbitMQ {broker}",
        *_bun(),
        f"`{' '.join(['python -m tests.bench', *sys.argv[1:]])}`",
    ]
    return "; ".join(words)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = (text.partition(":")[2].strip() for text in lines if text.startswith("model name"))
    return next(models, platform.machine())


def _bun() -> list[str]:
    try:
        said = subprocess.run([build.bun(), "--version"], capture_output=True, text=True, check=True)
    except (Failed, OSError, subprocess.CalledProcessError):
        return []
    return [f"Bun {said.stdout.strip()}"]
