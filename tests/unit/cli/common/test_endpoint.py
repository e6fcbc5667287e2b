"""The URL and the TLS context that `edk-bridge tail` builds from its options."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest

from bridge.cli.common.endpoint import endpoint, shown_url, tls_context
from bridge.errors import ConfigurationError
from tests.support.certificates import certificate

if TYPE_CHECKING:
    from pathlib import Path

URL = "ws://localhost:3000/updates"


@pytest.mark.parametrize(
    ("url", "types", "where", "asked"),
    [
        (URL, [], [], URL),
        ("wss://[::1]/x", [], [], "wss://[::1]/x"),
        (URL, ["killmail", "event"], [], f"{URL}?type=killmail&type=event"),
        (URL, [], ["systemId=1", "systemId=2", "shipTypeId=587"], f"{URL}?systemId=1&systemId=2&shipTypeId=587"),
        (f"{URL}?type=event", ["killmail"], ["kind=a b"], f"{URL}?type=event&type=killmail&kind=a%20b"),
        (URL, [], ["kind=a=b&c+d", "title="], f"{URL}?kind=a%3Db%26c%2Bd&title="),
        (URL, [], ["limit=1", "data.type=a", "data.x=b"], f"{URL}?data.limit=1&data.type=a&data.x=b"),
        (URL, [], ["größe=ß"], f"{URL}?gr%C3%B6%C3%9Fe=%C3%9F"),
    ],
)
def test_options_become_a_query(url: str, types: list[str], where: list[str], asked: str) -> None:
    assert endpoint(url, types, where) == asked


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:3000",
        "http://localhost",
        "ws://",
        "ws:///updates",
        "ws://[::1/",
        "ws://a:x/",
        "ws://a:0/",
        f"{URL}#a",
    ],
)
def test_url_that_can_not_be_used_is_an_error(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        endpoint(url, [], [])
    assert refused.value.problems == (f"{url}: this is not a WebSocket URL such as ws://localhost:3000/updates",)


NOT_WEBSOCKET = "this is not a WebSocket URL such as ws://localhost:3000/updates"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://u:S3CRET@h:1/", f"***@h:1/: {NOT_WEBSOCKET}"),
        ("wsx://u:S3CRET@h/", f"***@h/: {NOT_WEBSOCKET}"),
        ("u:S3CRET@h", f"***@h: {NOT_WEBSOCKET}"),
        ("ws://u:S3C/RET@h/", f"***@h/: {NOT_WEBSOCKET}"),
        ("ws://u:S3C#RET@h/", f"***@h/: {NOT_WEBSOCKET}"),
        ("ws://u:%FF@h/", f"***@h/: {NOT_WEBSOCKET}"),
        ("ws://S3CRET@h/", "***@h/: give a password after the user name, or no user name"),
        ("ws://u:S3CRET@h/?after=1", "***@h/?after=1: remove the parameter `after`, and give its value with --after"),
        ("ws://h/\udcff", f"ws://h/\\udcff: {NOT_WEBSOCKET}"),
        ("ws://a..b/", f"ws://a..b/: {NOT_WEBSOCKET}"),
        (f"ws://{'a' * 70}/", f"ws://{'a' * 70}/: {NOT_WEBSOCKET}"),
        ("http://\x1b[2J/", f"http://\\x1b[2J/: {NOT_WEBSOCKET}"),
    ],
)
def test_error_shows_no_password_and_no_control_character(url: str, problem: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        endpoint(url, [], [])
    assert refused.value.problems == (problem,)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (URL, URL),
        (f"{URL}?type=killmail", URL),
        ("ws://u:S3CRET@h:1/x", "ws://h:1/x"),
        ("ws://u:1/S3CRET@h/x", "ws://***@h/x"),
        ("ws://h/\x1b[2J", "ws://h/\\x1b[2J"),
    ],
)
def test_shown_url_has_no_password_and_no_control_character(url: str, shown: str) -> None:
    assert shown_url(url) == shown


def test_bytes_that_are_not_utf_8_are_sent_unchanged() -> None:
    assert endpoint(URL, ["\udcff"], ["a=\udcff"]) == f"{URL}?type=%FF&a=%FF"


def test_misplaced_url_is_redacted(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        endpoint(URL, [], ["ws://u:S3CRET@h/"])
    assert refused.value.problems == ("--where ***@h/: write MEMBER=VALUE, such as systemId=30000142",)
    with pytest.raises(ConfigurationError) as refused:
        tls_context("wss://localhost/", str(tmp_path / "u:S3CRET@h"))
    assert refused.value.problems == ("--cafile ***@h: No such file or directory",)


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(ConfigurationError) as refused:
        endpoint(
            f"{URL}?last=1&after=1-0",
            ["killmail"],
            ["systemId", "=1", "after=1-0", "type=event", "last=5", "shipTypeId=587"],
        )
    assert refused.value.problems == (
        f"{URL}?last=1&after=1-0: remove the parameter `after`, and give its value with --after",
        f"{URL}?last=1&after=1-0: remove the parameter `last`, and give its value with --last",
        "--where systemId: write MEMBER=VALUE, such as systemId=30000142",
        "--where =1: write MEMBER=VALUE, such as systemId=30000142",
        "--where after=1-0: give this value with --after",
        "--where type=event: give this value with --type",
        "--where last=5: give this value with --last",
    )


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        (URL, "http://localhost:3000/updates"),
        ("wss://u:p@[::1]/x?type=event", "https://u:p@[::1]/x?type=event"),
        ("http://localhost/updates", "http://localhost/updates"),
        ("https://localhost/updates", "https://localhost/updates"),
    ],
)
def test_url_for_server_sent_events_is_http(url: str, asked: str) -> None:
    assert endpoint(url, [], [], sse=True) == asked


@pytest.mark.parametrize("url", ["ftp://localhost/", "http:///updates", "localhost:3000"])
def test_url_that_can_not_be_used_for_server_sent_events_is_an_error(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        endpoint(url, [], [], sse=True)
    assert refused.value.problems == (
        f"{url}: this is not a URL such as http://localhost:3000/updates or ws://localhost:3000/updates",
    )


@pytest.mark.parametrize("url", [URL, "http://localhost:3000/updates"])
def test_cafile_without_tls_is_an_error(url: str) -> None:
    assert tls_context(url, None) is None
    with pytest.raises(ConfigurationError, match="--cafile: this option needs a URL with wss:// or https://"):
        tls_context(url, "ca.pem")


def test_authorities_are_those_of_the_system_or_of_a_file(tmp_path: Path) -> None:
    context = tls_context("wss://localhost/updates", None)
    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED
    own, _ = certificate(tmp_path, "bridge")
    context = tls_context("https://localhost/updates", str(own))
    assert context is not None
    [authority] = context.get_ca_certs()
    assert authority["subject"] == ((("commonName", "bridge"),),)


@pytest.mark.parametrize(("content", "words"), [(None, "No such file"), ("none", "the file has no certificate")])
def test_file_without_authorities_is_an_error(tmp_path: Path, content: str | None, words: str) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigurationError, match=f"--cafile {file}: {words}"):
        tls_context("wss://localhost/updates", str(file))
