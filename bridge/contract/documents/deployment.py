"""What the documents of a bridge need to know about it, besides its schema files."""

from collections.abc import Mapping
from dataclasses import dataclass

CONTRACT_VERSION = "1"
"""The version of the contract, which the documents have as their version.

The bridge has a version of its own, because most releases of the bridge do not change the contract.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """The parts of the documents that differ between bridges with the same schemas."""

    host: str
    """The address that clients connect to, with the port: `localhost:3000`."""
    secure: bool
    """Whether clients use wss:// and https:// instead of ws:// and http://."""
    path: str
    """The path of the endpoint, which serves updates."""
    exchanges: Mapping[str, str]
    """Maps each exchange to the default update type of its events."""
    reject_exchange: str | None
