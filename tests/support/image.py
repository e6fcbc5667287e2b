"""The image that `docker/Dockerfile` makes, and a bridge in it beside a broker, on a network of their own."""

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
"""What the image is built on, where the one that the Dockerfile names can't be pulled."""

PORT = 3000
BUILD_LIMIT_S = 300
BROKER = "rabbitmq"
"""The broker's name on the network."""

HARDENED: dict[str, Any] = {
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "pids_limit": 32,
    "mem_limit": "256m",
}


def no_engine(reason: str) -> NoReturn:
    """Skip the test; fail it in CI, but only where an engine was promised: not every CI has one."""
    if {"DOCKER_HOST", "TEST_RABBITMQ_IMAGE"} & os.environ.keys():
        unavailable(reason)
    pytest.skip(reason)


@contextmanager
def built() -> Iterator[str]:
    """The image, made by the command that its users type; removed at the end, with all that its build left."""
    if shutil.which("docker") is None:
        no_engine("there is no docker command, which builds the image")
    if not container_possible(IMAGE, say):
        no_engine(f"no container engine answers that has, or could pull, {IMAGE}")
    name = f"edk-bridge-test-{secrets.token_hex(4)}"
    stage = f"{name}-build"
    try:
        # The first stage under a name of its own: the classic builder leaves it, and without a name it stays for ever.
        _build(stage, "--target", "build")
        _build(name)
        yield name
    finally:
        subprocess.run(["docker", "rmi", "--force", name, stage], capture_output=True, check=False)


def _build(name: str, *flags: str) -> None:
    base = ("--build-arg", f"PYTHON_IMAGE={BASE}") if BASE else ()
    # An engine that translates no addresses has no other way to the packages than the host's own network.
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
    """A bridge in a container. `published` is its port on this machine's loopback, `address` its own."""

    container: Any
    published: int
    address: str

    async def ready(self) -> None:
        """Returns once it consumes."""

        async def says_so() -> bool:
            try:
                return (await get(self.published, "/readyz"))[0] == 200
            except (OSError, IndexError):
                # The engine's proxy accepts before anybody listens behind it, and then hangs up.
                return False

        await eventually("the bridge in the container is ready", says_so)

    def python(self, program: str) -> tuple[int, str]:
        """Runs a program in the container, as the bridge's user: its exit code, and what it says."""
        code, output = self.container.exec_run(["python3", "-c", program])
        return code, output.decode().strip()

    @property
    def health(self) -> str:
        """What the engine thinks of it."""
        self.container.reload()
        return str(self.container.attrs["State"]["Health"]["Status"])

    def log(self) -> list[str]:
        """Its lines so far."""
        return str(self.container.logs().decode()).splitlines()


class Site:
    """A network with a broker in it, and bridges made of an image."""

    def __init__(self, docker: Any, network: Any, image: str, broker_url: str) -> None:
        self.docker = docker
        self.image = image
        self.broker_url = broker_url
        """For whoever is not in the network."""
        self._network = network

    @property
    def network(self) -> str:
        """The name of the network."""
        return str(self._network.name)

    @contextmanager
    def bridge(self, files: Mapping[Path, str] | None = None, **variables: str) -> Iterator[Contained]:
        """A bridge, as restricted as its operator can make it; removed at the end. `files` are mounted, read-only."""
        published = free_port()
        container = self.docker.containers.create(
            self.image,
            network=self._network.name,
            ports={f"{PORT}/tcp": (LOOPBACK, published)},
            environment={"BRIDGE_AMQP_URL": f"amqp://guest:guest@{BROKER}:5672/", **variables},
            volumes={str(file): {"bind": to, "mode": "ro"} for file, to in (files or {}).items()},
            # The image's, but more often, and without patience: a test need not wait for that.
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
    """The network, with the broker in it."""
    from testcontainers.core.docker_client import DockerClient  # noqa: PLC0415 - not cheap: only where it is wanted

    from tests.support.broker.container import Container  # noqa: PLC0415 - not cheap: only where it is wanted

    with ExitStack() as stack:
        docker = DockerClient().client
        stack.callback(docker.close)
        network = docker.networks.create(f"edk-bridge-test-{secrets.token_hex(4)}", driver="bridge")
        stack.callback(network.remove)
        broker = Container(IMAGE)
        # Before it starts: also where that fails, no container may keep the network from being removed.
        stack.callback(broker.stop)
        broker.start()
        network.connect(broker.name, aliases=[BROKER])
        yield Site(docker, network, image, broker.url)
