"""The reasons why the bridge closes a connection, each with its close code and a phrase that says what to do."""

from enum import Enum


class CloseReason(Enum):
    """A reason to close a connection, with its close code and its phrase.

    RFC 6455, section 7.4 defines the codes; 4000 to 4999 are for private use.
    """

    STOPPING = (1001, "the bridge is stopping; reconnect")
    PROTOCOL_ERROR = (1002, "protocol error")
    INVALID_UTF8 = (1007, "a text message that is not UTF-8")
    INTERNAL = (1011, "internal error; reconnect")
    FULL = (1013, "the bridge is full; reconnect later")
    ADDRESS_LIMIT = (1013, "too many connections from your address; reconnect later")
    TOO_SLOW = (4008, "too slow: updates that were not read in time are gone; reconnect")
    IDLE = (4009, "the client sent nothing for too long; answer pings, and reconnect")

    def __init__(self, code: int, phrase: str) -> None:
        self.code = code
        self.phrase = phrase

    @property
    def slug(self) -> str:
        """The name of the reason in logs and in the label of a metric."""
        return self.name.lower().replace("_", "-")


CAPACITY_REASONS = frozenset({CloseReason.FULL, CloseReason.ADDRESS_LIMIT})
"""The reasons to close a connection because there are too many connections."""
