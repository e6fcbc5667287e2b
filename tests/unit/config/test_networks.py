"""Tests which texts are accepted as networks, and which errors other texts cause."""

from __future__ import annotations

import ipaddress
import re

import pytest

from bridge.config.networks import parse_network


@pytest.mark.parametrize(
    "text", ["10.0.0.0/8", "192.168.1.5/32", "fd00::/8", "0.0.0.0/0", "::/0", "::/64", "240.0.0.0/4"]
)
def test_network_is_parsed(text: str) -> None:
    assert parse_network(text) == ipaddress.ip_network(text)


def test_address_is_a_network() -> None:
    assert parse_network("192.168.1.5") == ipaddress.ip_network("192.168.1.5/32")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("10.0.0.5/8", "write 10.0.0.0/8, or 10.0.0.5 for one address"),
        *((text, "0.0.0.0/0 and ::/0 are all addresses") for text in ("*", "any", "all")),
        ("localhost", "write 127.0.0.0/8 and ::1"),
        *((text, "not a network; write it as 10.0.0.0/8 or fd00::/8") for text in ("", "10.*", "10.0.0.0/33")),
        ("::ffff:192.168.0.0/112", "write IPv4 networks in IPv4 form, as in 10.0.0.0/8"),
        *(
            (text, "no client has such an address; 0.0.0.0/0 and ::/0 are all addresses")
            for text in (
                *("0.0.0.0", "::", "0.0.0.0/8", "::/128"),
                *("224.0.0.0/4", "239.1.2.3", "ff00::/8", "ff02::1", "255.255.255.255"),
            )
        ),
        *(
            (text, "a zone has no effect here; remove the % and the text after it")
            for text in ("fe80::1%eth0", "fe80::%1/64")
        ),
    ],
)
def test_other_text_is_an_error_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}$"):
        parse_network(text)
