"""Whether the bridge does its work, and what keeps it from that: what `/readyz` says."""

from collections.abc import Callable

from bridge import __version__
from bridge.amqp.consume.consumer import Consumer
from bridge.amqp.rejects.publisher import RejectPublisher
from bridge.amqp.status import State
from bridge.config.settings import Settings


class Readiness:
    """Asks those who do the work."""

    def __init__(
        self, settings: Settings, consumer: Consumer, rejects: RejectPublisher, connections: Callable[[], int]
    ) -> None:
        """`connections` says how many clients there are."""
        self._settings = settings
        self._consumer = consumer
        self._rejects = rejects
        self._connections = connections
        self.stopping = False

    def report(self) -> tuple[bool, dict[str, object]]:
        """Whether the bridge is ready, and the body that says so."""
        consumer, rejects, history = self._consumer, self._rejects, self._consumer.stream_reader
        missing = self._missing()
        body: dict[str, object] = {
            "ready": not missing,
            "missing": missing,
            "warnings": self._warnings(),
            "broker": consumer.status.report(),
            "last_gap": consumer.gaps.last.report() if consumer.gaps.last else None,
            "history": history.report() if history else None,
            "rejects": {**rejects.status.report(), "waiting": rejects.waiting}
            if self._settings.reject_exchange
            else None,
            "connections": self._connections(),
            "instance": self._settings.instance,
            "version": __version__,
        }
        return not missing, body

    def _missing(self) -> list[str]:
        status, history = self._consumer.status, self._consumer.stream_reader
        missing = []
        if self.stopping:
            missing.append("the bridge is stopping")
        if status.state is not State.WORKING:
            missing.append("the broker is not being consumed from")
        elif not status.is_fresh:
            missing.append(f"the broker has not answered for {status.answer_valid_s:g} s")
        elif history is not None and not history.position.at_end:
            # After each lost connection too: a load balancer would send it clients whose ids it does not know yet.
            missing.append("the history is being read")
        if self._settings.reject_exchange and self._rejects.status.state is not State.WORKING:
            if self._rejects.waiting:
                missing.append("rejected events can't be published, and are held")
            elif status.state is State.WORKING:
                # Where nothing is consumed, nothing is rejected, and the one broker is away for both.
                if self._rejects.unpublishable:
                    missing.append("rejected events can't be published; none is held")
                elif self._rejects.status.state is State.CONNECTING:
                    missing.append("the exchange of rejected events is not declared yet")
        return missing

    def _warnings(self) -> list[str]:
        """What keeps the bridge from doing all of its work, though it is ready: not an orchestrator's business."""
        warnings = []
        if self._consumer.other_consumers:
            warnings.append(
                f"consumers of the queue {self._settings.queue!r} beside this bridge: {self._consumer.sharing}; each "
                "event goes to one of them only: give every bridge a BRIDGE_QUEUE of its own"
            )
        return [*warnings, *self._consumer.warnings]
