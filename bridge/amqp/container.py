"""Whether the bridge runs in a container, where `localhost` is not the machine that an operator thinks of."""

import ipaddress
import os
from collections.abc import Callable, Mapping
from enum import StrEnum

_MARKS = ("/.dockerenv", "/run/.containerenv")
"""Files of Docker and of Podman."""


class Container(StrEnum):
    """The kind of container, in the words of a hint."""

    CONTAINER = "this container"
    POD = "this pod"


def detected(
    environment: Mapping[str, str] = os.environ, exists: Callable[[str], bool] = os.path.exists
) -> Container | None:
    """The kind of container that this process runs in, as far as it can be seen; None outside of any."""
    if environment.get("KUBERNETES_SERVICE_HOST"):
        return Container.POD
    # systemd-nspawn, LXC and Podman set the variable `container` (systemd, "Container Interface").
    if environment.get("container") or any(map(exists, _MARKS)):
        return Container.CONTAINER
    return None


def localhost_hint(host: str, container: Container | None) -> str | None:
    """What to do where nothing listens at the broker's host; None if the host does not name this container."""
    if container is None or not _is_loopback(host):
        return None
    machine = ", or host.docker.internal for the machine that Docker runs on"
    return (
        f"in a container, {host} is {container} itself: name the broker's service or host, as in "
        f"amqp://user:password@rabbitmq:5672/{machine if container is Container.CONTAINER else ''}"
    )


def _is_loopback(host: str) -> bool:
    name = host.lower().removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
