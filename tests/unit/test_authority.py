"""Tests how hosts and origins are parsed, and in which form settings and headers are compared."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.authority import (
    MAX_HOST_CHARACTERS,
    MAX_ORIGIN_CHARACTERS,
    canonical_host,
    canonical_origin,
    format_authority,
    parse_authority,
)


@pytest.mark.parametrize(
    ("given_", "canonical"),
    [
        ("https://kills.example.org", "https://kills.example.org"),
        ("HTTPS://Kills.Example.ORG.", "https://kills.example.org"),
        ("https://kills.example.org:443", "https://kills.example.org"),
        ("http://kills.example.org:80/", "http://kills.example.org"),
        ("http://kills.example.org:443", "http://kills.example.org:443"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("ws://kills.example.org:3000", "http://kills.example.org:3000"),
        ("wss://kills.example.org", "https://kills.example.org"),
        ("wss://kills.example.org:443", "https://kills.example.org"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("https://BÜCHER.example:443/", "https://xn--bcher-kva.example"),
        ("https://bücher.example:8443", "https://xn--bcher-kva.example:8443"),
        ("http://[0:0::1]:3000", "http://[::1]:3000"),
        ("http://[::ffff:10.0.0.1]", "http://10.0.0.1"),
        ("null", "null"),
        ("NULL", "null"),
        ("file://", "file://"),
        ("file:///", "file://"),
        ("app://.", "app://."),
        ("chrome-extension://ABCdef", "chrome-extension://abcdef"),
        ("capacitor://localhost", "capacitor://localhost"),
    ],
)
def test_origin_has_one_form(given_: str, canonical: str) -> None:
    assert canonical_origin(given_) == canonical
    assert canonical_origin(canonical) == canonical


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("*", "wildcards are not supported"),
        ("https://*.example.org", "wildcards are not supported"),
        ("chrome-extension://*", "wildcards are not supported"),
        ("kills.example.org", "a scheme and a host|after the scheme"),
        ("https://", "a scheme and a host|after the scheme"),
        ("app://", "a scheme and a host|after the scheme"),
        ("https://kills.example.org/page", "without user and path"),
        ("https://me@kills.example.org", "without user and path"),
        ("https://kills.example.org:65536", "without user and path"),
        ("https://kills..example.org", "without user and path"),
        ("app://a/b", "without a path"),
        ("app://a,b", "without a path"),
        ("https://a b", "a scheme and a host|after the scheme"),
        ("https://ä b", "not a host name"),
        ("https://i❤.ws", "xn--"),
        ("http://127.1", "four decimal numbers"),
        ("http://0x7f000001:80", "four decimal numbers"),
        ("http://2130706433", "four decimal numbers"),
        ("http://010.0.0.1", "four decimal numbers"),
        ("http://example.1", "four decimal numbers"),
        ("ftp://a", "no origin of its own"),
        ("data://a", "no origin of its own"),
        ("blob://a", "no origin of its own"),
        ("app://[", "without a path"),
        ("https://" + "a" * MAX_ORIGIN_CHARACTERS, f"more than {MAX_ORIGIN_CHARACTERS} characters"),
    ],
)
def test_text_that_is_no_possible_origin_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        canonical_origin(text)


@pytest.mark.parametrize(
    ("given_", "canonical"),
    [
        ("kills.example.org", "kills.example.org"),
        ("KILLS.example.org.", "kills.example.org"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("my_bridge", "my_bridge"),
        ("1bridge", "1bridge"),
        ("1.bridge", "1.bridge"),
        ("203.0.113.9", "203.0.113.9"),
        ("[2001:DB8::1]", "2001:db8::1"),
        ("2001:db8:0::1", "2001:db8::1"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
    ],
)
def test_host_has_one_form_which_equals_that_of_a_header(given_: str, canonical: str) -> None:
    assert canonical_host(given_) == canonical
    header = parse_authority(f"[{canonical}]:3000" if ":" in canonical else f"{canonical.upper()}:3000")
    assert header is not None
    assert header.host == canonical


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("*.example.org", "wildcards are not supported"),
        ("*", "wildcards are not supported"),
        ("https://kills.example.org", "without scheme and path"),
        ("kills.example.org/", "without scheme and path"),
        ("kills.example.org:3000", "without a port"),
        ("[2001:db8::1]:3000", "without a port"),
        ("kills..example.org", "not a host name"),
        ("a b", "not a host name"),
        ("fe80::1%eth0", "no zone"),
        ("[fe80::1%25eth0]", "no zone"),
        ("[::1", "not a host name"),
        ("::1]", "not a host name"),
        ("127.1", "four decimal numbers"),
        ("010.0.0.1", "four decimal numbers"),
        ("0x7f.1", "four decimal numbers"),
        ("2130706433", "four decimal numbers"),
        ("ä b", "not a host name"),
        ("a." * MAX_HOST_CHARACTERS + "org", "not a host name"),
    ],
)
def test_text_that_is_no_possible_host_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        canonical_host(text)


@given(st.text(alphabet="aZ0.:/-_[]*@#üß\u2024 null", max_size=30))
def test_canonical_form_of_any_text_is_stable_or_the_text_is_refused(text: str) -> None:
    for canonical in (canonical_host, canonical_origin):
        with contextlib.suppress(ValueError):
            form = canonical(text)
            assert form.isascii()
            assert canonical(form) == form


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("localhost", "localhost:1"),
        ("127.0.0.1", "127.0.0.1:1"),
        ("::1", "[::1]:1"),
        ("fe80::1%eth0", "[fe80::1%25eth0]:1"),
    ],
)
def test_ipv6_address_is_in_brackets(host: str, shown: str) -> None:
    assert format_authority(host, 1) == shown
