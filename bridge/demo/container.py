"""Runs RabbitMQ in a container, through testcontainers.

Importing this module takes 0.3 s, and needs the extra `demo`.
"""

import secrets
import socket
from collections.abc import Callable, Mapping

from docker.errors import DockerException, ImageNotFound, NotFound  # type: ignore  # no types, and mypy may find the folder docker
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import DockerClient, get_docker_host

from bridge.demo.amqp_probe import LOOPBACK, await_amqp

_AMQP_PORT = "5672/tcp"
_ANSWER_TIMEOUT_S = 3
_START_TIMEOUT_S = 90.0

BUSY_WAIT = {"RABBITMQ_SCHEDULER_BUSY_WAIT_THRESHOLD": "short"}
"""With `short`, RabbitMQ starts faster than with `none`, which is the image's default.

RabbitMQ loads a thousand modules at its start. With `none`, Erlang's schedulers go to sleep after each module that
RabbitMQ loads, so a start takes 6 s instead of 3 s on two virtual cores. With `short`, an idle broker uses no more
processor time than with `none`.
"""

# The demo removes its own container, so testcontainers need not start its cleanup container Ryuk from another image.
testcontainers_config.ryuk_disabled = True


def engine_answers() -> bool:
    """Returns whether a container engine is reachable."""
    if not _listens(get_docker_host() or "unix:///var/run/docker.sock"):
        return False
    try:
        docker = DockerClient(timeout=_ANSWER_TIMEOUT_S).client
    except (DockerException, ValueError):
        return False
    try:
        return bool(docker.ping())
    except (DockerException, OSError):
        return False
    finally:
        docker.close()


def _listens(engine: str) -> bool:
    # If the connection is refused, docker's client leaves its socket open until the garbage collector warns about the
    # socket.
    scheme, _, path = engine.partition("://")
    if scheme != "unix":
        return True
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_ANSWER_TIMEOUT_S)
        return connection.connect_ex(path) == 0


def fetch_image(image: str, say: Callable[[str], None]) -> None:
    """Pulls the image if the engine does not have it. Raises RuntimeError."""
    docker = DockerClient().client
    try:
        try:
            docker.images.get(image)
        except ImageNotFound:
            say(f"pulling the container image {image}")
            docker.images.pull(image)
    except (DockerException, OSError) as error:
        raise RuntimeError(f"the container image {image} can't be pulled: {_one_line(error)}") from error
    finally:
        docker.close()


class Container:
    """RabbitMQ in a container, published on a port of 127.0.0.1.

    The image must accept the user guest from outside the container, as RabbitMQ's own images do.
    """

    def __init__(self, image: str, port: int, environment: Mapping[str, str] = BUSY_WAIT) -> None:
        self.port = port
        self.url = f"amqp://guest:guest@{LOOPBACK}:{port}/"
        self.origin = f"container {image}"
        # The name allows the demo to remove the container even if a signal arrives while the engine is creating it.
        self.name = f"edk-bridge-{secrets.token_hex(6)}"
        self._container = DockerContainer(image).with_name(self.name).with_envs(**environment)
        self._container.ports[_AMQP_PORT] = (LOOPBACK, port)  # type: ignore[assignment]  # the library declares only a number

    def start(self) -> None:
        """Starts the container, and waits until its broker answers over AMQP.

        Raises RuntimeError if the broker does not start.
        """
        try:
            self._start()
            await_amqp(LOOPBACK, self.port, _START_TIMEOUT_S, lambda: self.runs)
        except (DockerException, OSError) as error:
            self.stop()
            raise RuntimeError(f"{self.origin} does not start: {_one_line(error)}") from error
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        self._container.start()

    @property
    def runs(self) -> bool:
        """Whether the container engine reports that the container still runs."""
        try:
            self._container.reload()
        except (DockerException, OSError):
            return False
        return self._container.status in {"created", "running"}

    def stop(self) -> None:
        """Removes the container and its data."""
        docker = self._container.get_docker_client().client
        try:
            docker.containers.get(self.name).remove(force=True, v=True)
        except NotFound:
            pass
        finally:
            docker.close()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
