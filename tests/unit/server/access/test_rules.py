"""Tests of each rule of access. Even strange headers never let an external client in, and never cause an exception."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.authority import MAX_ORIGIN_CHARACTERS
from bridge.config.networks import DEFAULT_NETWORKS
from bridge.server.access.rules import (
    DETAIL_CHARACTERS,
    MAX_FORWARDED,
    MAX_FORWARDED_CHARACTERS,
    MAX_FORWARDED_PAIRS,
    Access,
    Refusal,
)
from tests.support.examples import examples

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridge.authority import Address

ACCESS = Access(
    DEFAULT_NETWORKS,
    frozenset({"kills.example.org", "203.0.113.9"}),
    frozenset({"https://kills.example.org", "http://dev.example.org:8080"}),
)
LOCAL = ("Host", "localhost:3000")


def verdict(
    *headers: tuple[str, str], peer: str = "127.0.0.1", target: str = "/updates", access: Access = ACCESS
) -> Refusal | None:
    given: dict[str, list[str]] = {}
    for name, value in headers:
        given.setdefault(name.lower(), []).append(value)
    return access.check_peer(peer) or access.check_request(given, target) or access.check_origin(given)


def rule(refusal: Refusal | None) -> tuple[int, str] | None:
    return None if refusal is None else (refusal.status, refusal.rule)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "10.0.0.0",
        "10.255.255.255",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.0.1",
        "192.168.255.255",
        "::1",
        "0:0:0:0:0:0:0:1",
        "::1%lo",
        "fc00::1",
        "fdff:ffff::1",
        "FD12::1%eth0",
        "::ffff:127.0.0.1",
        "::ffff:7f00:1",
        "::ffff:192.168.1.1%eth0",
    ],
)
def test_internal_peer_is_admitted(address: str) -> None:
    assert ACCESS.admits_peer(address)
    assert verdict(LOCAL, peer=address) is None


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "126.255.255.255",
        "128.0.0.0",
        "9.255.255.255",
        "11.0.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "192.167.255.255",
        "192.169.0.0",
        "169.254.1.1",
        "100.64.0.0",
        "100.127.255.255",
        "192.0.2.1",
        "198.51.100.1",
        "203.0.113.1",
        "198.18.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "0.0.0.0",
        "::",
        "::2",
        "fbff::1",
        "fe00::1",
        "fe80::1%eth0",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "::ffff:100.64.0.1",
        "::ffff:0.0.0.0",
        "::ffff:172.32.0.0",
        "::ffff:0:10.0.0.1",
        "2001:db8::1",
        "::ffff:8.8.8.8",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::1",
        "",
        "localhost",
        "127.1",
        "127.0.0.1%lo",
        "0127.0.0.1",
        " 127.0.0.1",
        "127.0.0.1/8",
        "[::1]",
        "2130706433",
        "/run/bridge.sock",
        "\u0661\u0662\u0667.0.0.1",
    ],
)
def test_external_or_unreadable_peer_is_refused(address: str) -> None:
    assert not ACCESS.admits_peer(address)
    refusal = verdict(LOCAL, peer=address)
    assert rule(refusal) == (403, "peer")
    assert refusal is not None
    assert "BRIDGE_ALLOWED_NETWORKS" in refusal.text


def test_networks_replace_the_defaults() -> None:
    access = Access((ipaddress.ip_network("203.0.113.0/24"),), frozenset(), frozenset())
    assert verdict(LOCAL, peer="203.0.113.7", access=access) is None
    assert rule(verdict(LOCAL, peer="127.0.0.1", access=access)) == (403, "peer")
    assert verdict(("Host", "203.0.113.8"), peer="203.0.113.7", access=access) is None
    assert rule(verdict(("Host", "127.0.0.1"), peer="203.0.113.7", access=access)) == (403, "host")


def test_peer_is_judged_before_everything_else() -> None:
    assert rule(verdict(peer="8.8.8.8")) == (403, "peer")


INTERNAL_HOPS = [
    ("X-Forwarded-For", "10.1.2.3"),
    ("x-forwarded-for", "10.1.2.3, 192.168.0.1,\t::1 ,fd00::1"),
    ("X-FORWARDED-FOR", "10.1.2.3:567, [fd00::1]:4711, [::1], ::ffff:10.0.0.1"),
    ("X-Real-IP", "172.16.5.5"),
    ("x-real-ip", "[::1]"),
    ("Forwarded", "for=10.1.2.3"),
    ("forwarded", "FOR=10.1.2.3;proto=http;by=8.8.8.8, For=192.168.0.1 ; host=bridge"),
    ("Forwarded", 'for="10.1.2.3:567", for="[fd00::1]:4711", for="[::1]:_port.1"'),
    ("Forwarded", ";for=10.1.2.3;;"),
    ("Forwarded", "proto=https;for=10.1.2.3"),
]

EXTERNAL_HOPS = [
    ("X-Forwarded-For", "8.8.8.8"),
    ("x-forwarded-for", "10.0.0.1, 8.8.8.8"),
    ("x-forwarded-for", "8.8.8.8, 10.0.0.1"),
    ("X-Forwarded-For", "8.8.8.8:80"),
    ("X-Forwarded-For", "2001:db8::1"),
    ("X-Forwarded-For", "[2001:db8::1]:4711"),
    ("X-Forwarded-For", "::ffff:8.8.8.8"),
    ("X-Forwarded-For", ""),
    ("X-Forwarded-For", "10.0.0.1,"),
    ("X-Forwarded-For", ",10.0.0.1"),
    ("X-Forwarded-For", "10.0.0.1,,10.0.0.2"),
    ("X-Forwarded-For", "10.0.0.1 8.8.8.8"),
    ("X-Forwarded-For", "localhost"),
    ("X-Forwarded-For", "unknown"),
    ("X-Forwarded-For", "127.1"),
    ("X-Forwarded-For", "999.0.0.1"),
    ("X-Forwarded-For", "10.0.0.1:"),
    ("X-Forwarded-For", "10.0.0.1:port"),
    ("X-Forwarded-For", "[10.0.0.1]"),
    ("X-Forwarded-For", "[::1"),
    ("X-Forwarded-For", "::1]"),
    ("X-Forwarded-For", "::1%lo"),
    ("X-Forwarded-For", "\xa010.0.0.1"),
    ("X-Forwarded-For", '"10.0.0.1"'),
    ("X-Real-IP", "8.8.8.8"),
    ("X-Real-IP", "10.0.0.1, 8.8.8.8"),
    ("X-Real-IP", ""),
    ("Forwarded", "for=8.8.8.8"),
    ("Forwarded", "for=10.0.0.1, for=8.8.8.8"),
    ("Forwarded", "for=8.8.8.8, for=10.0.0.1"),
    ("Forwarded", "for=10.0.0.1;for=8.8.8.8"),
    ("Forwarded", 'FOR="8.8.8.8:80"'),
    ("Forwarded", 'for="[2001:db8::1]:4711"'),
    ("Forwarded", "for=unknown"),
    ("Forwarded", "for=_hidden"),
    ("Forwarded", 'for="_SEVKISEK"'),
    ("Forwarded", 'for=""'),
    ("Forwarded", "for="),
    ("Forwarded", "for"),
    ("Forwarded", ""),
    ("Forwarded", "for=10.0.0.1,"),
    ("Forwarded", "proto=https"),
    ("Forwarded", "for=10.0.0.1;proto"),
    ("Forwarded", 'for=10.0.0.1;host="a\\b"'),
    ("Forwarded", "for=10.0.0.1 for=8.8.8.8"),
    ("Forwarded", 'for="10.0.0.1", for="10.0.0.2'),
    ("Forwarded", 'for="10.0.0.1, for=8.8.8.8'),
    ("Forwarded", 'for=10.0.0.1;x=", for="[2001:db8::1]"'),
    ("Forwarded", 'for=10.0.0.1;x="\\", for=8.8.8.8;by="_a"'),
    ("Forwarded", 'for="10.0.0.1\\"'),
]


@pytest.mark.parametrize("header", INTERNAL_HOPS, ids=": ".join)
def test_forwarding_header_of_internal_addresses_is_admitted(header: tuple[str, str]) -> None:
    assert verdict(LOCAL, header) is None


@pytest.mark.parametrize("header", EXTERNAL_HOPS, ids=": ".join)
def test_forwarding_header_that_may_name_an_external_address_is_refused(header: tuple[str, str]) -> None:
    refusal = verdict(LOCAL, header)
    assert rule(refusal) == (403, "forwarded")
    assert refusal is not None
    assert "BRIDGE_ALLOWED_NETWORKS" in refusal.text


@pytest.mark.parametrize("header", EXTERNAL_HOPS, ids=": ".join)
def test_internal_forwarding_headers_do_not_hide_an_external_one(header: tuple[str, str]) -> None:
    assert rule(verdict(LOCAL, *INTERNAL_HOPS, header, *INTERNAL_HOPS)) == (403, "forwarded")


@pytest.mark.parametrize(
    ("header", "detail"),
    [
        (("X-Forwarded-For", "10.0.0.1,8.8.8.8,10.0.0.2"), "x-forwarded-for: 8.8.8.8"),
        (("Forwarded", "for=10.0.0.1,proto=http;for=8.8.8.8"), "forwarded: proto=http;for=8.8.8.8"),
        (("Forwarded", "for=10.0.0.1;proto"), "forwarded: for=10.0.0.1;proto"),
    ],
)
def test_refused_hop_is_shown_to_the_operator(header: tuple[str, str], detail: str) -> None:
    refusal = verdict(LOCAL, header)
    assert refusal is not None
    assert refusal.detail == detail


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:3000",
        "LocalHost.",
        "localhost.:0",
        "bridge.localhost:65535",
        "a.b.localhost",
        "127.0.0.1",
        "127.0.0.1:3000",
        "127.0.0.1.",
        "10.1.2.3:80",
        "[::1]",
        "[::1]:3000",
        "[0:0::1]",
        "[FD00::1]:3000",
        "[::ffff:10.0.0.1]",
        "bridge",
        "bridge:3000",
        "my_bridge-1",
        "db",
        "1bridge",
        "0xbridge",
        "kills.example.org",
        "KILLS.example.ORG.:443",
        "203.0.113.9",
        " localhost\t",
    ],
)
def test_internal_or_listed_host_is_admitted(host: str) -> None:
    assert verdict(("host", host)) is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.com",
        "localhost.evil.com",
        "evil-localhost.com",
        "127.0.0.1.evil.com",
        "sub.kills.example.org",
        "kills.example.org.evil.com",
        "8.8.8.8",
        "0.0.0.0",
        "[2001:db8::1]:3000",
        "[::]",
        "[::ffff:8.8.8.8]",
        "[fe80::1]",
        "2130706433",
        "0x7f000001",
        "0X7F000001",
        "0x",
        "0",
        "127.1",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "999.0.0.1",
    ],
)
def test_foreign_host_is_refused(host: str) -> None:
    refusal = verdict(("Host", host))
    assert rule(refusal) == (403, "host")
    assert refusal is not None
    assert refusal.detail == host
    assert "BRIDGE_ALLOWED_HOSTS" in refusal.text


@pytest.mark.parametrize(
    "hosts",
    [
        [],
        ["localhost", "localhost"],
        ["localhost", "evil.com"],
        [""],
        ["."],
        ["localhost.."],
        [".localhost"],
        ["a..localhost"],
        ["localhost:"],
        ["localhost:65536"],
        ["localhost:+80"],
        ["localhost:000080"],
        ["localhost:80:80"],
        [":3000"],
        ["local host"],
        ["localhost/"],
        ["localhost,localhost"],
        ["user@localhost"],
        ["localhost#evil.com"],
        ["evil.com\\localhost"],
        ["localhost%00"],
        ["localhost\n"],
        ["localh\xf6st"],
        ["http://localhost"],
        ["::1"],
        ["[::1"],
        ["[]"],
        ["[127.0.0.1]"],
        ["[localhost]"],
        ["[:]"],
        ["[::1%25lo]"],
        ["[v1.a:b]"],
        ["\u0661\u0662\u0667.0.0.1"],
    ],
    ids=repr,
)
def test_missing_duplicate_or_malformed_host_is_a_bad_request(hosts: list[str]) -> None:
    assert rule(verdict(*(("Host", host) for host in hosts))) == (400, "host")


@pytest.mark.parametrize(
    ("host", "target"),
    [
        ("localhost:3000", "http://localhost:3000/updates"),
        ("localhost:3000", "HTTP://LOCALHOST.:3000?type=killmail"),
        ("localhost", "http://localhost:80/updates"),
        ("localhost:80", "http://localhost"),
        ("kills.example.org", "https://kills.example.org:443/"),
        ("[::1]:3000", "http://[0::1]:3000/"),
        ("localhost", "//evil.com/updates"),
        ("localhost", "/updates?next=http://evil.com/"),
        ("localhost", "*"),
        ("localhost", ""),
    ],
)
def test_target_that_agrees_with_host_or_names_none_is_admitted(host: str, target: str) -> None:
    assert verdict(("Host", host), target=target) is None


@pytest.mark.parametrize(
    ("host", "target", "status"),
    [
        ("localhost:3000", "http://evil.com/updates", 403),
        ("localhost:3000", "http://bridge:3000/updates", 403),
        ("localhost:3000", "http://localhost:3001/updates", 403),
        ("localhost:3000", "http://localhost/updates", 403),
        ("localhost", "https://localhost:80/", 403),
        ("localhost:3000", "http://localhost:3000@evil.com/", 400),
        ("localhost:3000", "http://evil.com#localhost:3000", 400),
        ("localhost:3000", "http:///updates", 400),
        ("localhost:3000", "ws://localhost:3000/updates", 400),
        ("localhost:3000", "file://localhost:3000/updates", 400),
        ("localhost:3000", "x?http://localhost:3000/", 400),
        ("localhost:3000", "http://localhost:3000/\n", 400),
    ],
)
def test_target_that_disagrees_with_host_is_refused(host: str, target: str, status: int) -> None:
    assert rule(verdict(("Host", host), target=target)) == (status, "host")


def test_agreeing_target_does_not_excuse_a_foreign_host() -> None:
    assert rule(verdict(("Host", "evil.com"), target="http://evil.com/updates")) == (403, "host")


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("bridge:3000", "http://bridge:3000"),
        ("bridge:3000", "HTTPS://BRIDGE.:3000"),
        ("bridge", "http://bridge"),
        ("bridge", "http://bridge:80"),
        ("bridge:80", "http://bridge"),
        ("bridge", "https://bridge:443"),
        ("bridge:443", "https://bridge"),
        ("10.1.2.3:3000", "http://10.1.2.3:3000"),
        ("[fd00::1]:3000", "http://[fd00:0::1]:3000"),
        ("bridge:3000", "http://localhost"),
        ("bridge:3000", "https://localhost:5173"),
        ("bridge:3000", "http://app.localhost:8080"),
        ("bridge:3000", "http://127.0.0.1:8080"),
        ("bridge:3000", "http://127.9.9.9"),
        ("bridge:3000", "http://[::1]:8080"),
        ("bridge:3000", "https://kills.example.org"),
        ("bridge:3000", "HTTPS://Kills.Example.org"),
        ("bridge:3000", "http://dev.example.org:8080"),
        ("bridge:3000", "http://localhost "),
        ("bridge:3000", "http://localhost/"),
        ("bridge:3000", "http://bridge:3000/"),
        ("bridge:3000", "ws://bridge:3000"),
        ("bridge", "wss://bridge:443"),
        ("bridge:3000", "https://kills.example.org:443"),
        ("bridge:3000", "https://kills.example.org/"),
        ("bridge:3000", "wss://kills.example.org"),
    ],
)
def test_origin_of_the_same_host_or_localhost_or_listed_is_admitted(host: str, origin: str) -> None:
    assert verdict(("Host", host), ("Origin", origin)) is None


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("bridge:3000", "http://evil.com"),
        ("bridge:3000", "http://bridge"),
        ("bridge:3000", "http://bridge:3001"),
        ("bridge", "http://bridge:443"),
        ("bridge:80", "https://bridge"),
        ("bridge:3000", "ftp://localhost"),
        ("bridge:3000", "http://10.1.2.3:3000"),
        ("bridge:3000", "http://[fd00::1]"),
        ("bridge:3000", "http://localhost.evil.com"),
        ("bridge:3000", "http://evil.com#localhost"),
        ("bridge:3000", "http://evil.com/localhost"),
        ("bridge:3000", "http://evil.com?.localhost"),
        ("bridge:3000", "http://evil.com\\.localhost"),
        ("bridge:3000", "http://localhost@evil.com"),
        ("bridge:3000", "http://evil.com@localhost"),
        ("bridge:3000", "http://127.0.0.1.evil.com"),
        ("bridge:3000", "http://xlocalhost"),
        ("bridge:3000", "http://127.1"),
        ("bridge:3000", "http://0.0.0.0:3000"),
        ("bridge:3000", "http://bridge:3000//"),
        ("bridge:3000", "file://"),
        ("bridge:3000", "https://*.example.org"),
        ("bridge:3000", "*"),
        ("bridge:3000", "http://" + "a" * MAX_ORIGIN_CHARACTERS),
        ("bridge:3000", "http://localhost:99999"),
        ("bridge:3000", "http://localhost http://evil.com"),
        ("bridge:3000", "http://localhost, http://localhost"),
        ("bridge:3000", "localhost"),
        ("bridge:3000", "//localhost"),
        ("bridge:3000", "null"),
        ("bridge:3000", "http://"),
        ("bridge:3000", "http://kills.example.org"),
        ("bridge:3000", "https://kills.example.org:8443"),
        ("bridge:3000", "http://dev.example.org"),
        ("bridge:3000", "http\u017f://localhost"),
    ],
)
def test_foreign_or_unreadable_origin_is_refused(host: str, origin: str) -> None:
    refusal = verdict(("Host", host), ("Origin", origin))
    assert rule(refusal) == (403, "origin")
    assert refusal is not None
    assert "BRIDGE_ALLOWED_ORIGINS" in refusal.text


@pytest.mark.parametrize("origin", ["null", "file://", "app://.", "chrome-extension://abc", "https://xn--bcher-kva.de"])
def test_origin_is_admitted_if_it_is_listed(origin: str) -> None:
    access = Access(DEFAULT_NETWORKS, frozenset(), frozenset({origin}))
    assert verdict(LOCAL, ("Origin", origin), access=access) is None
    assert rule(verdict(LOCAL, ("Origin", origin))) == (403, "origin")


@pytest.mark.parametrize("site", ["cross-site", " Cross-Site\t"])
def test_page_of_another_site_without_an_origin_is_refused(site: str) -> None:
    refusal = verdict(LOCAL, ("Sec-Fetch-Site", site))
    assert rule(refusal) == (403, "origin")
    assert refusal is not None
    assert refusal.detail == "Sec-Fetch-Site: cross-site"


@pytest.mark.parametrize("origins", [[""], [" "], []])
def test_empty_origin_is_none(origins: list[str]) -> None:
    headers = [("Origin", origin) for origin in origins]
    assert verdict(LOCAL, *headers) is None
    assert rule(verdict(LOCAL, *headers, ("Sec-Fetch-Site", "cross-site"))) == (403, "origin")


@pytest.mark.parametrize("site", ["same-origin", "same-site", "none", ""])
def test_page_of_the_same_site_and_a_link_that_was_typed_are_admitted(site: str) -> None:
    assert verdict(LOCAL, ("Sec-Fetch-Site", site)) is None


def test_page_of_another_site_is_admitted_if_its_origin_is_listed() -> None:
    assert verdict(LOCAL, ("Sec-Fetch-Site", "cross-site"), ("Origin", "https://kills.example.org")) is None


@pytest.mark.parametrize(
    ("origins", "allowed"),
    [
        ([], None),
        (["https://kills.example.org"], "https://kills.example.org"),
        # The origin is returned unchanged, because a browser compares it with the origin that it sent.
        (["HTTPS://kills.example.org:443 "], "HTTPS://kills.example.org:443"),
        (["https://evil.example"], None),
        (["https://kills.example.org", "https://kills.example.org"], None),
    ],
)
def test_allowed_origin_is_echoed_unchanged(origins: list[str], allowed: str | None) -> None:
    assert ACCESS.allowed_origin({"host": ["localhost"], "origin": origins}) == allowed


def test_host_may_be_missing_if_it_is_not_required() -> None:
    assert ACCESS.check_request({}, "/healthz", requires_host=False) is None
    assert rule(ACCESS.check_request({}, "/healthz")) == (400, "host")
    # If a request has an optional header, the header is checked.
    assert rule(ACCESS.check_request({"host": ["evil.com"]}, "/healthz", requires_host=False)) == (403, "host")
    assert rule(ACCESS.check_request({}, "http://evil.com/healthz", requires_host=False)) == (400, "host")
    external = {"x-forwarded-for": ["8.8.8.8"]}
    assert rule(ACCESS.check_request(external, "/healthz", requires_host=False)) == (403, "forwarded")
    # If the Host header has not passed its rule, no origin is accepted as the page's own origin.
    own = {"host": ["bridge:3000"], "origin": ["http://bridge:3000"]}
    assert ACCESS.allowed_origin(own) == "http://bridge:3000"
    assert ACCESS.allowed_origin(own, trusts_host=False) is None
    # Without a Host header, no origin is accepted as the page's own origin.
    assert ACCESS.allowed_origin({"origin": ["http://bridge"]}) is None


WITH_MANY_CHARACTERS = "for=10.0.0.1;by=" + "x" * (MAX_FORWARDED_CHARACTERS - 16)


@pytest.mark.parametrize(
    ("headers", "more"),
    [
        ([("X-Forwarded-For", ",".join(["10.0.0.1"] * MAX_FORWARDED))], ",10.0.0.1"),
        ([("X-Forwarded-For", "10.0.0.1")] * MAX_FORWARDED, ",10.0.0.1"),
        ([("Forwarded", ",".join(["for=10.0.0.1"] * (MAX_FORWARDED - 1))), ("X-Real-IP", "::1")], ",for=10.0.0.1"),
        ([("Forwarded", WITH_MANY_CHARACTERS)], "x"),
        ([("Forwarded", "for=10.0.0.1" + ";" * MAX_FORWARDED_PAIRS)], ";"),
    ],
    ids=["one header", "many headers", "several kinds", "characters", "pairs"],
)
def test_more_forwarded_addresses_than_are_parsed_are_refused_as_a_whole(
    headers: list[tuple[str, str]], more: str
) -> None:
    assert verdict(LOCAL, *headers) is None
    (name, value), *others = headers
    refusal = verdict(LOCAL, (name, value + more), *others)
    assert rule(refusal) == (403, "forwarded")
    assert refusal is not None
    assert refusal.text.startswith(f"The forwarding headers have more than {MAX_FORWARDED} addresses")


def test_networks_in_any_number_and_order_are_looked_up_as_a_whole() -> None:
    networks = [ipaddress.ip_network(f"{first}.{second}.0.0/16") for first in range(60, 20, -1) for second in (7, 9, 8)]
    access = Access([*networks, ipaddress.ip_network("2001:db8::/32")], frozenset(), frozenset())
    for text, internal in [
        ("60.7.0.0", True),
        ("21.9.255.255", True),
        ("21.8.1.1", True),
        ("21.6.255.255", False),
        ("40.10.0.0", False),
        ("20.8.0.1", False),
        ("255.255.255.255", False),
        ("0.0.0.0", False),
        ("2001:db8:ffff::", True),
        ("2001:db9::", False),
        ("::", False),
    ]:
        assert access.admits_peer(text) is internal, text


def test_several_origins_are_refused_even_when_each_would_pass() -> None:
    origin = ("Origin", "http://localhost:3000")
    assert rule(verdict(LOCAL, origin, origin)) == (403, "origin")


def test_unrelated_headers_have_no_effect() -> None:
    assert verdict(LOCAL, ("X-Forwarded-Host", "evil.com"), ("Referer", "http://evil.com"), ("Via", "8.8.8.8")) is None


def test_long_value_is_cut_for_the_log() -> None:
    refusal = verdict(("Host", "x" * 100_000 + ".com"))
    assert refusal is not None
    assert refusal.detail == "x" * (DETAIL_CHARACTERS - 3) + "..."


def test_value_of_the_longest_length_is_whole_in_the_log() -> None:
    host = "x" * (DETAIL_CHARACTERS - 4) + ".com"
    refusal = verdict(("Host", host))
    assert refusal is not None
    assert refusal.detail == host


def test_control_characters_and_non_ascii_are_escaped_for_the_log() -> None:
    refusal = verdict(("Host", 'a"\r\n\x1b[31m\x7f\xe9\\'))
    assert refusal is not None
    assert refusal.detail == 'a"\\r\\n\\x1b[31m\\x7f\\xe9\\\\'


# Any headers

# The test has no time limit, so that it does not fail on a busy machine.
FAST = settings(deadline=None, max_examples=examples(100), suppress_health_check=[HealthCheck.too_slow])
NAMES = st.sampled_from(["Host", "Origin", "Forwarded", "X-Forwarded-For", "X-Real-IP", "Cookie"])
FORWARDING = ("forwarded", "x-forwarded-for", "x-real-ip")
FRAGMENTS = st.sampled_from(
    [
        "localhost",
        "127.0.0.1",
        "[::1]",
        ":",
        "3000",
        "http://",
        ".",
        ",",
        ";",
        "for=",
        '"',
        "\\",
        "[",
        "]",
        "%",
        "_x",
        "/",
    ]
)
TEXTS = st.one_of(st.text(max_size=40), st.lists(FRAGMENTS, max_size=6).map("".join))
HEADERS = st.lists(st.tuples(NAMES | st.text(max_size=8), TEXTS), max_size=5)
TEXTS_FOR_CLIENTS = {
    refusal.text
    for refusal in [
        verdict(peer="8.8.8.8"),
        verdict(("X-Real-IP", "8.8.8.8")),
        verdict(),
        verdict(("Host", "")),
        verdict(("Host", "evil.com")),
        verdict(LOCAL, target="http://"),
        verdict(LOCAL, target="http://evil.com"),
        verdict(LOCAL, ("Origin", "null"), ("Origin", "null")),
        verdict(LOCAL, ("Origin", "null")),
        verdict(LOCAL, ("Sec-Fetch-Site", "cross-site")),
        verdict(LOCAL, ("X-Real-IP", "," * MAX_FORWARDED)),
    ]
    if refusal is not None
}


def is_internal(address: Address) -> bool:
    plain = address.ipv4_mapped or address if isinstance(address, ipaddress.IPv6Address) else address
    return any(plain in network for network in DEFAULT_NETWORKS)


@FAST
@given(peer=st.just("127.0.0.1") | TEXTS, headers=HEADERS, target=st.just("/updates") | TEXTS)
def test_any_request_gets_a_verdict_in_printable_and_bounded_words(
    peer: str, headers: Sequence[tuple[str, str]], target: str
) -> None:
    refusal = verdict(*headers, peer=peer, target=target)
    if refusal is not None:
        assert refusal.status in {400, 403}
        assert refusal.rule in {"peer", "forwarded", "host", "origin"}
        assert refusal.text in TEXTS_FOR_CLIENTS
        assert len(refusal.detail) <= DETAIL_CHARACTERS
        assert refusal.detail.isascii()
        assert refusal.detail.isprintable()


def test_there_are_eleven_sentences_and_each_is_one_line() -> None:
    assert len(TEXTS_FOR_CLIENTS) == 11
    assert all(text.isascii() and text.isprintable() and text.endswith(".") for text in TEXTS_FOR_CLIENTS)


@st.composite
def external_spellings(draw: st.DrawFn) -> str:
    """Generates an address outside the default networks, in one of the spellings of the address."""
    address = draw(st.ip_addresses().filter(lambda drawn: not is_internal(drawn)))
    port = draw(st.sampled_from(["", ":80", ":65535"]))
    if isinstance(address, ipaddress.IPv6Address):
        text = draw(st.sampled_from([address.compressed, address.exploded, address.exploded.upper()]))
        return draw(st.sampled_from([text, f"[{text}]{port}"]))
    mapped = ipaddress.IPv6Address(b"\0" * 10 + b"\xff\xff" + address.packed)
    return draw(
        st.sampled_from([f"{address}{port}", f"::ffff:{address}", f"[::FFFF:{address}]{port}", mapped.exploded])
    )


@st.composite
def headers_that_name(draw: st.DrawFn, node: str) -> tuple[str, str]:
    """Generates a forwarding header that contains the given node between internal nodes."""
    hops = [*draw(st.lists(st.sampled_from(["10.0.0.1", "[::1]:80", "127.0.0.1"]), max_size=3)), node]
    hops = draw(st.permutations(hops))
    comma = draw(st.sampled_from([",", ", ", "\t,"]))
    name = draw(st.sampled_from([*FORWARDING, "Forwarded", "X-FORWARDED-FOR", "X-Real-IP"]))
    if name.lower() == "forwarded":
        pair = draw(st.sampled_from(['for="{}"', 'FOR="{}";proto=http', 'by=_me; For="{}"', "for={}"]))
        hops = [pair.format(hop) for hop in hops]
    return name, comma.join(hops)


@FAST
@given(data=st.data(), node=external_spellings())
def test_external_address_is_admitted_through_no_forwarding_header(data: st.DataObject, node: str) -> None:
    header = data.draw(headers_that_name(node))
    others = data.draw(st.lists(st.sampled_from([LOCAL, *INTERNAL_HOPS]), max_size=3))
    refusal = verdict(*data.draw(st.permutations([header, *others])))
    assert rule(refusal) == (403, "forwarded")


@FAST
@given(address=st.ip_addresses())
def test_peer_and_literal_host_are_admitted_exactly_when_internal(address: Address) -> None:
    for text in (address.compressed, address.exploded):
        host = text if address.version == 4 else f"[{text}]"
        assert ACCESS.admits_peer(text) == is_internal(address)
        assert (verdict(("Host", host)) is None) == (is_internal(address) or text in ACCESS.hosts)


@FAST
@given(forged=TEXTS, node=external_spellings(), name=st.sampled_from(FORWARDING))
def test_forged_header_does_not_hide_what_a_proxy_appends(forged: str, node: str, name: str) -> None:
    appended = f'for="{node}"' if name == "forwarded" else node
    assert rule(verdict(LOCAL, (name, f"{forged}, {appended}"))) == (403, "forwarded")
    assert rule(verdict(LOCAL, (name, forged), (name, appended))) == (403, "forwarded")
