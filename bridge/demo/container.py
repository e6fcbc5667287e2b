"""A broker in a container, through testcontainers. Imported only once a container is wanted: it is not cheap."""

import secrets
import socket
from collections.abc import Callable

from docker.errors import DockerException, ImageNotFound, NotFound  # type: ignore  # without types, and mypy sees docker/
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import DockerClient, get_docker_host

from tests.support.broker.node import BUSY_WAIT, WRITE_AT_ONCE
from tests.support.broker.ports import LOOPBACK, await_amqp, free_port

_AMQP_PORT = "5672/tcp"
_ANSWER_LIMIT_S = 3
_START_LIMIT_S = 90.0

# Its reaper is a container from another image, for programs that do not remove their containers themselves.
testcontainers_config.ryuk_disabled = True


def engine_answers() -> bool:
    """Whether a container engine answers here and now."""
    if not _listens(get_docker_host() or "unix:///var/run/docker.sock"):
        return False
    try:
        docker = DockerClient(timeout=_ANSWER_LIMIT_S).client
    except (DockerException, ValueError):
        return False
    try:
        return bool(docker.ping())
    except (DockerException, OSError):
        return False
    finally:
        docker.close()


def _listens(engine: str) -> bool:
    # Where nobody listens, docker's client leaves its socket open, for the garbage collector to complain about.
    scheme, _, path = engine.partition("://")
    if scheme != "unix":
        return True
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_ANSWER_LIMIT_S)
        return connection.connect_ex(path) == 0


def fetch_image(image: str, say: Callable[[str], None]) -> None:
    """Make sure that the engine has the image, pulling it where it has not. Raises RuntimeError where that fails."""
    docker = DockerClient().client
    try:
        try:
            docker.images.get(image)
        except ImageNotFound:
            say(f"pulling the container image {image}")
            docker.images.pull(image)
    except (DockerException, OSError) as error:
        raise RuntimeError(f"the container image {image} can't be had: {_one_line(error)}") from error
    finally:
        docker.close()


class Container:
    """RabbitMQ in a container, published on a fixed port of 127.0.0.1.

    The image must let the user guest in from outside the container, as RabbitMQ's own images do.
    """

    def __init__(self, image: str) -> None:
        self.port = free_port()
        self.url = f"amqp://guest:guest@{LOOPBACK}:{self.port}/"
        self.origin = f"container {image}"
        # The name finds the container again when a signal arrives between its creation and our hearing of it.
        self._name = f"edk-bridge-{secrets.token_hex(6)}"
        self._container = DockerContainer(image).with_name(self._name)
        self._container.ports[_AMQP_PORT] = (LOOPBACK, self.port)  # type: ignore[assignment]  # declared too narrow
        self._container.with_env("RABBITMQ_SCHEDULER_BUSY_WAIT_THRESHOLD", BUSY_WAIT)
        self._container.with_env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", WRITE_AT_ONCE)
        self._created = False

    def start(self) -> None:
        """Start the container and return when it answers AMQP; after `kill`, the same one, port and data.

        Raises RuntimeError when it does not start.
        """
        try:
            if self._created:
                self._container.get_wrapped_container().start()
            else:
                self._container.start()
                self._created = True
            await_amqp(LOOPBACK, self.port, _START_LIMIT_S, alive=self._runs)
        except (DockerException, OSError) as error:
            self.stop()
            raise RuntimeError(f"{self.origin} does not start: {_one_line(error)}") from error
        except BaseException:
            self.stop()
            raise

    def kill(self) -> None:
        """End the broker at once, as `kill -9` would."""
        self._container.get_wrapped_container().kill()

    def stop(self) -> None:
        """Remove the container and its data."""
        docker = self._container.get_docker_client().client
        try:
            docker.containers.get(self._name).remove(force=True, v=True)
        except NotFound:
            pass
        finally:
            docker.close()

    def _runs(self) -> bool:
        self._container.reload()
        return self._container.status in {"created", "running"}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
