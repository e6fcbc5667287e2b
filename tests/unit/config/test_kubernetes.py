"""Tests of the variables that Kubernetes injects for a Service, and of similar variables."""

from __future__ import annotations

import pytest

from bridge.config.kubernetes import is_service_variable, service_variables


def injected(service: str, protocol: str, address: str = "10.0.0.1", port_name: str | None = None) -> dict[str, str]:
    """The variables that Kubernetes injects for a Service with one port."""
    host = f"[{address}]" if ":" in address else address
    url, of_port = f"{protocol}://{host}:3000", f"{service}_PORT_3000_{protocol.upper()}"
    named = {} if port_name is None else {f"{service}_SERVICE_PORT_{port_name}": "3000"}
    return {
        f"{service}_SERVICE_HOST": address,
        f"{service}_SERVICE_PORT": "3000",
        **named,
        f"{service}_PORT": url,
        of_port: url,
        f"{of_port}_PROTO": protocol,
        f"{of_port}_PORT": "3000",
        f"{of_port}_ADDR": address,
    }


@pytest.mark.parametrize("service", ["BRIDGE", "BRIDGE_NORTH", "BRIDGE_REUSE", "BRIDGE_PORT_FILE", "BRIDGE_2"])
@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
@pytest.mark.parametrize(("address", "port_name"), [("10.0.0.1", None), ("fd00::1", "HTTP"), ("10.0.0.1", "WS_FILE")])
def test_variables_of_a_service_are_recognized(
    service: str, protocol: str, address: str, port_name: str | None
) -> None:
    variables = injected(service, protocol, address, port_name)
    assert service_variables("BRIDGE_", variables | {"PATH": "x", "BRIDGE_PATH": "/x"}) == sorted(variables)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BRIDGE_PORT", "3000"),
        ("BRIDGE_PORT", "tcp://mq:3000"),
        ("BRIDGE_PORT", "tcp://10.0.0.1"),
        ("BRIDGE_PORT", "tcp://10.0.0.1:0"),
        ("BRIDGE_PORT", "tcp://10.0.0.1:65536"),
        ("BRIDGE_PORT", "http://10.0.0.1:3000"),
        ("BRIDGE_PORT", "tcp://10.0.0.1:3000\n"),
        ("bridge_port", "tcp://10.0.0.1:3000"),
        ("BRIDGE_REUSE_PORT", "true"),
        ("BRIDGE_PROT", "tcp://10.0.0.1:3000"),
        ("BRIDGE_HOST", "10.0.0.1"),
        ("BRIDGE_SERVICE_HOST", "localhost"),
        ("BRIDGE_SERVICE_PORT", "x"),
        ("BRIDGE_SERVICE_PORT", "\u0663"),
        ("BRIDGE_SERVICE_PORTS", "3000"),
        ("BRIDGE_PORT_3000_TCP_PROTO", "http"),
        ("BRIDGE_PORT_3000_ICMP", "tcp://10.0.0.1:3000"),
        ("BRIDGE_PORT_3000_TCP_ADDRESS", "10.0.0.1"),
    ],
)
def test_variable_with_another_name_or_value_is_not_one_of_a_service(name: str, value: str) -> None:
    assert not is_service_variable(name, value)


def test_variables_with_another_prefix_are_left_out() -> None:
    assert service_variables("BRIDGE_", injected("OTHER", "tcp")) == []
