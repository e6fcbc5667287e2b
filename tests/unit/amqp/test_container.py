"""Which containers are seen, and which hosts are the container itself in them."""

from __future__ import annotations

import pytest

from bridge.amqp.container import Container, detected, localhost_hint


@pytest.mark.parametrize(
    ("environment", "files", "found"),
    [
        ({}, (), None),
        ({"container": "", "KUBERNETES_SERVICE_HOST": ""}, ("/etc/passwd",), None),
        ({}, ("/.dockerenv",), Container.CONTAINER),
        ({}, ("/run/.containerenv",), Container.CONTAINER),
        ({"container": "podman"}, (), Container.CONTAINER),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, (), Container.POD),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "container": "oci"}, ("/run/.containerenv",), Container.POD),
    ],
)
def test_container_is_seen_by_a_file_or_a_variable(
    environment: dict[str, str], files: tuple[str, ...], found: Container | None
) -> None:
    assert detected(environment, files.__contains__) is found


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST.", "mq.localhost", "127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"]
)
def test_loopback_host_is_the_container_itself(host: str) -> None:
    hint = localhost_hint(host, Container.CONTAINER)
    assert hint is not None
    assert hint.startswith(f"in a container, {host} is this container itself: name the broker's service or host")
    assert "host.docker.internal" in hint
    assert f"{host} is this pod itself" in str(localhost_hint(host, Container.POD))
    assert localhost_hint(host, None) is None


@pytest.mark.parametrize("host", ["rabbitmq", "localhost.example.org", "10.0.0.1", "fd00::1", "0.0.0.0", "mylocalhost"])
def test_other_host_is_not_the_container(host: str) -> None:
    assert localhost_hint(host, Container.CONTAINER) is None
