"""Decides whether the bridge is ready, and makes the content of `/readyz`, which lists what is missing."""

from collections.abc import Callable

from bridge import __version__
from bridge.amqp.rejects.publisher import RejectPublisher
from bridge.amqp.status import State
from bridge.config.settings import Settings
from bridge.source import EventSource


class Readiness:
    """Derives the readiness from the states of the source and of the publisher of rejected events."""

    def __init__(
        self, settings: Settings, source: EventSource, rejects: RejectPublisher, connection_count: Callable[[], int]
    ) -> None:
        """`connection_count` returns the number of connected clients."""
        self._settings = settings
        self._source = source
        self._rejects = rejects
        self._connection_count = connection_count
        self._stopping = False

    def stop(self) -> None:
        """Must be called when the bridge stops. All reports after this call say that the bridge is not ready."""
        self._stopping = True

    def report(self) -> tuple[bool, dict[str, object]]:
        """Returns whether the bridge is ready, and the body of the response of `/readyz`."""
        source, rejects, history = self._source, self._rejects, self._source.stream_reader
        missing = self._missing()
        body: dict[str, object] = {
            "ready": not missing,
            "missing": missing,
            "warnings": self._warnings(),
            "broker": source.status.report(),
            "last_gap": source.gaps.last.report() if source.gaps.last else None,
            "history": history.report() if history else None,
            "rejects": {**rejects.status.report(), "waiting": rejects.waiting}
            if self._settings.reject_exchange
            else None,
            "connections": self._connection_count(),
            "instance": self._settings.instance,
            "version": __version__,
        }
        return not missing, body

    def _missing(self) -> list[str]:
        status, history = self._source.status, self._source.stream_reader
        missing = []
        if self._stopping:
            missing.append("the bridge is stopping")
        if status.state is not State.WORKING:
            missing.append("the bridge does not consume from the broker")
        elif not status.is_fresh:
            missing.append(f"the broker has not answered for {status.answer_valid_s:g} s")
        elif history is not None and not history.position.at_end:
            # The bridge is also not ready while it reads the history after a lost connection. If the bridge reported
            # too early that it is ready, clients could resume with ids that the bridge has not read yet.
            missing.append("the history is being read")
        if self._settings.reject_exchange and self._rejects.status.state is not State.WORKING:
            if self._rejects.waiting:
                missing.append("rejected events can't be published, and are held")
            elif status.state is State.WORKING:
                # Without a working source, no event is rejected, and the broker is probably unreachable for the
                # publisher of rejected events too.
                if self._rejects.unpublishable:
                    missing.append("rejected events can't be published; none is held")
                elif self._rejects.status.state is State.CONNECTING:
                    missing.append("the exchange of rejected events is not declared yet")
        return missing

    def _warnings(self) -> list[str]:
        """Returns problems that do not affect readiness, but that the operator should know about."""
        warnings = []
        if others := self._source.other_consumers:
            warnings.append(
                f"other consumers of the queue {self._settings.queue!r}: {others}; each event goes to only one "
                "consumer: give each bridge its own BRIDGE_QUEUE"
            )
        return [*warnings, *self._source.warnings]
