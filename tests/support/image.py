"""Builds the image from `docker/Dockerfile`, and runs it in a container on a separate network with a broker."""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.support.broker.find import container_possible
from tests.support.broker.ports import LOOPBACK, free_port
from tests.support.broker.session import IMAGE, say, unavailable
from tests.support.clients import get
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]

BASE = os.environ.get("TEST_PYTHON_IMAGE")
"""The base image to use if the one in the Dockerfile can't be pulled."""

PORT = 3000
BUILD_LIMIT_S = 300
BROKER = "rabbitmq"
"""The host name of the broker on the network."""

HARDENED: dict[str, Any] = {
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "pids_limit": 32,
    "mem_limit": "256m",
}


def no_engine(reason: str) -> NoReturn:
    """Skips the test.

    If an environment variable says that CI has a container engine, the test fails instead of being skipped.
    """
    if {"DOCKER_HOST", "TEST_RABBITMQ_IMAGE"} & os.environ.keys():
        unavailable(reason)
    pytest.skip(reason)


@contextmanager
def built() -> Iterator[str]:
    """Builds the image with the documented command.

    Removes the image and the intermediate images of its build at the end.
    """
    if shutil.which("docker") is None:
        no_engine("there is no docker command to build the image")
    if not container_possible(IMAGE, say):
        no_engine(f"no container engine answers that has, or could pull, {IMAGE}")
    name = f"edk-bridge-test-{secrets.token_hex(4)}"
    stage = f"{name}-build"
    try:
        # Docker's classic builder keeps the image of the first build stage. The first stage gets a name here, so that
        # the test can remove its image.
        _build(stage, "--target", "build")
        _build(name)
        yield name
    finally:
        subprocess.run(["docker", "rmi", "--force", name, stage], capture_output=True, check=False)


def _build(name: str, *flags: str) -> None:
    base = ("--build-arg", f"PYTHON_IMAGE={BASE}") if BASE else ()
    # A container engine without address translation can download packages only through the network of the host.
    command = ["docker", "build", "--network=host", "--force-rm", *base, *flags, "-f", "docker/Dockerfile", "-t", name]
    done = subprocess.run(
        [*command, "."],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUILD_LIMIT_S,
        check=False,
    )
    if done.returncode:
        pytest.fail("\n".join(["the image can't be built:", *done.stdout.splitlines()[-15:]]), pytrace=False)


@dataclass(frozen=True, slots=True)
class Contained:
    """A bridge in a container.

    `published` is the bridge's port on this machine's loopback, and `address` is the container's address.
    """

    container: Any
    published: int
    address: str

    async def ready(self) -> None:
        """Waits until the bridge consumes events."""

        async def consumes() -> bool:
            try:
                return (await get(self.published, "/readyz"))[0] == 200
            except (OSError, IndexError):
                # Before the bridge listens, the container engine's proxy accepts connections and closes them at once.
                return False

        await eventually("the bridge in the container is ready", consumes)

    def python(self, program: str) -> tuple[int, str]:
        """Runs a program in the container as the bridge's user. Returns the program's exit code and output."""
        code, output = self.container.exec_run(["python3", "-c", program])
        return code, output.decode().strip()

    @property
    def health(self) -> str:
        """The health of the container, as the engine reports it."""
        self.container.reload()
        return str(self.container.attrs["State"]["Health"]["Status"])

    def log(self) -> list[str]:
        """Returns the log lines of the bridge so far."""
        return str(self.container.logs().decode()).splitlines()


class Site:
    """A network with a broker, and with bridges that run an image."""

    def __init__(self, docker: Any, network: Any, image: str, broker_url: str) -> None:
        self.docker = docker
        self.image = image
        self.broker_url = broker_url
        """The URL of the broker for clients outside the network."""
        self._network = network

    @property
    def network(self) -> str:
        """The name of the network."""
        return str(self._network.name)

    @contextmanager
    def bridge(self, files: Mapping[Path, str] | None = None, **variables: str) -> Iterator[Contained]:
        """Runs a bridge with all documented restrictions, and removes it at the end. `files` are mounted read-only."""
        published = free_port()
        container = self.docker.containers.create(
            self.image,
            network=self._network.name,
            ports={f"{PORT}/tcp": (LOOPBACK, published)},
            environment={"BRIDGE_AMQP_URL": f"amqp://guest:guest@{BROKER}:5672/", **variables},
            volumes={str(file): {"bind": to, "mode": "ro"} for file, to in (files or {}).items()},
            # The health check runs more often than in production, and without retries, so that a test need not wait.
            healthcheck={"interval": 10**9, "retries": 1},
            **HARDENED,
        )
        try:
            container.start()
            container.reload()
            address = container.attrs["NetworkSettings"]["Networks"][self._network.name]["IPAddress"]
            yield Contained(container, published, address)
        finally:
            container.remove(force=True, v=True)


@contextmanager
def site(image: str) -> Iterator[Site]:
    """Makes the network with the broker."""
    from testcontainers.core.docker_client import DockerClient  # noqa: PLC0415 - slow to import, and only needed here

    from tests.support.broker.container import Container  # noqa: PLC0415 - slow to import, and only needed here

    with ExitStack() as stack:
        docker = DockerClient().client
        stack.callback(docker.close)
        network = docker.networks.create(f"edk-bridge-test-{secrets.token_hex(4)}", driver="bridge")
        stack.callback(network.remove)
        broker = Container(IMAGE)
        # The removal of the container is registered before the container starts. Otherwise, a container that fails to
        # start would remain, and the network could not be removed.
        stack.callback(broker.stop)
        broker.start()
        network.connect(broker.name, aliases=[BROKER])
        yield Site(docker, network, image, broker.url)
