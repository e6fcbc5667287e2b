"""Describes the machine and the versions in one line. Without these details, the figures of a benchmark mean little."""

import os
import platform
import re
import ssl
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from bridge.amqp.nodes import Node
from tests.bench import build
from tests.bench.amqp import Channel
from tests.bench.process import Failed

_PACKAGES = ("uvloop", "aio-pika", "websockets")

_PROGRAMS: dict[str, tuple[Callable[[], str | Path], str, str]] = {
    "Bun": (build.bun, "--version", r"\d[\d.]+"),
    "nginx": (lambda: build.installed("nginx"), "-v", r"(?<=nginx/)[\d.]+"),
    "HAProxy": (lambda: build.installed("haproxy"), "-v", r"(?<=version )[\d.]+"),
}
"""For each program, a function that returns its path, the option that prints its version, and the version's pattern."""

BROKER_LIMIT_S = 10.0


def broker_version(amqp: str) -> str:
    """Returns the broker's version. Raises Failed if the broker can't be used."""
    try:
        with Channel(amqp, BROKER_LIMIT_S) as channel:
            return channel.version
    except (OSError, TypeError) as error:
        raise Failed(
            f"the broker at {Node(amqp)} can't be used: {error}; check the address, user, password and virtual host in "
            "TEST_AMQP_URL, or unset it to start a broker"
        ) from error


def host() -> str:
    """Returns the processor, the kernel and the version of Python. The line starts with this text."""
    return f"{_processor()}, {os.cpu_count()} cores, Linux {platform.release()}; Python {platform.python_version()}"


def line(broker: str) -> str:
    """Returns the processor, the kernel, the versions and the command. `broker` is the version of RabbitMQ."""
    words = [
        f"{host()} with {' '.join(ssl.OPENSSL_VERSION.split()[:2])}",
        *(f"{package} {version(package)}" for package in _PACKAGES),
        f"RabbitMQ {broker}",
        *_programs(),
        f"`{' '.join(['python -m tests.bench', *sys.argv[1:]])}`",
    ]
    return "; ".join(words)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = (text.partition(":")[2].strip() for text in lines if text.startswith("model name"))
    return next(models, platform.machine())


def _programs() -> list[str]:
    """Returns the names and versions of the programs that are installed."""
    found = []
    for name, (path, option, pattern) in _PROGRAMS.items():
        try:
            said = subprocess.run([path(), option], capture_output=True, text=True, check=True)
        except (Failed, OSError, subprocess.CalledProcessError):
            continue
        if match := re.search(pattern, said.stdout + said.stderr):
            found.append(f"{name} {match[0]}")
    return found
