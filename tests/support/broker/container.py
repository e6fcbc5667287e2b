"""RabbitMQ in a container that a test can kill and start again. Importing this module needs the extra `demo`."""

from bridge.demo import container
from bridge.demo.container import BUSY_WAIT
from tests.support.broker.node import WRITE_AT_ONCE
from tests.support.broker.ports import free_port


class Container(container.Container):
    """A container that keeps its port and data from `kill` to the next `start`."""

    def __init__(self, image: str) -> None:
        environment = {**BUSY_WAIT, "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": WRITE_AT_ONCE}
        super().__init__(image, free_port(), environment)
        self._created = False

    def _start(self) -> None:
        if self._created:
            self._container.get_wrapped_container().start()
        else:
            super()._start()
            self._created = True

    def kill(self) -> None:
        """Ends the broker at once, as `kill -9` does. The broker's data stays."""
        self._container.get_wrapped_container().kill()

    def run(self, *command: str) -> None:
        """Runs a command in the container. Raises RuntimeError with the output of a command that fails."""
        code, output = self._container.get_wrapped_container().exec_run([*command])
        if code:
            raise RuntimeError(output.decode(errors="replace"))
