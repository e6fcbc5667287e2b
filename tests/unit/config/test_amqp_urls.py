"""Tests of the settings for the broker's URLs.

If the AMQP libraries can't use a URL, or would alter it, the bridge reports an error before it connects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from bridge.config.amqp_urls import amqp_urls, virtual_host
from tests.support.certificates import certificate

if TYPE_CHECKING:
    from pathlib import Path


class Pairs(NamedTuple):
    """Two certificates with their keys, and other files."""

    chain: Path
    key: Path
    other_key: Path
    both: Path
    encrypted: Path
    nothing: Path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    folder, other = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("other")
    chain, key = certificate(folder, "bridge")
    _, other_key = certificate(other, "another")
    (both := folder / "both.pem").write_bytes(chain.read_bytes() + key.read_bytes())
    (encrypted := folder / "encrypted.pem").write_text(key.read_text().replace(" PRIVATE", " ENCRYPTED PRIVATE"))
    (nothing := folder / "nothing.pem").write_text("nothing")
    return Pairs(chain, key, other_key, both, encrypted, nothing)


def url(**query: object) -> str:
    return "amqps://mq/?" + "&".join(f"{name}={value}" for name, value in query.items())


def test_certificate_and_key_are_in_two_files_or_in_one(pairs: Pairs) -> None:
    for text in (url(certfile=pairs.chain, keyfile=pairs.key), url(certfile=pairs.both)):
        assert amqp_urls(text) == (text,)
        assert amqp_urls(f"{text}&auth=external") == (f"{text}&auth=external",)


@pytest.mark.parametrize(
    ("certfile", "keyfile", "words"),
    [
        ("chain", None, "certificate.pem has no private key .*; name the file of the key with keyfile"),
        ("chain", "other_key", "does not belong to the certificate in"),
        ("chain", "nothing", "nothing.pem has no private key"),
        ("chain", "chain", "has no private key"),
        ("chain", "encrypted", "is encrypted: the bridge can't ask"),
        ("key", None, "key.pem has no certificate"),
        ("key", "key", "key.pem has no certificate"),
        ("nothing", "key", "nothing.pem has no certificate"),
    ],
)
def test_error_of_an_unusable_pair_names_the_file(pairs: Pairs, certfile: str, keyfile: str | None, words: str) -> None:
    query = {"certfile": getattr(pairs, certfile)}
    if keyfile is not None:
        query["keyfile"] = getattr(pairs, keyfile)
    with pytest.raises(ValueError, match=words) as raised:
        amqp_urls(url(**query))
    assert str(raised.value).startswith("a certificate in certfile and its key in keyfile, but ")


def test_certificates_of_all_nodes_are_checked(pairs: Pairs) -> None:
    with pytest.raises(ValueError, match="has no private key"):
        amqp_urls(f"amqps://one/,{url(certfile=pairs.chain)}")


def test_folder_of_authorities_is_one_that_openssl_can_use(tmp_path: Path) -> None:
    (tmp_path / "9d66eef0.0").touch()
    assert amqp_urls(url(capath=tmp_path)) == (url(capath=tmp_path),)


@pytest.mark.parametrize(
    "address",
    [
        "u:s3cret%40\u00b2@mq:1",
        "pu\u0308s3cret%40x:p@mq",
        "u:s3cret100%25\u00ba@mq",
        "u:s3cret%2F\u2126@mq/v",
    ],
)
def test_error_of_an_unparsable_url_shows_no_part_of_it(address: str) -> None:
    with pytest.raises(ValueError, match="percent escapes") as raised:
        amqp_urls(f"amqp://{address}/")
    assert "s3cret" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


@pytest.mark.parametrize(
    "host",
    [
        *("a" * 64, f"mq.{'a' * 64}.example", "\u00fc" * 60, "xn--zz", "mq.xn--zz.example", ".".join(["a" * 50] * 6)),
        # yarl decodes `xn--fa-hia` to a name with an eszett, and the resolver treats this as a different name.
        *("xn--fa-hia.example", "[v1.a:b]", "10.0.0.\uff12\uff15\uff16"),
    ],
)
def test_host_that_can_not_be_resolved_is_an_error(host: str) -> None:
    with pytest.raises(ValueError, match="a host name or an address"):
        amqp_urls(f"amqp://{host}/")


@pytest.mark.parametrize(
    "host",
    [
        *("a" * 63, ".".join(["a" * 50] * 4), "xn--bcher-kva.example", "b\u00fccher.example", "MQ.Example"),
        *("[::0001]", "[fe80::1%25eth0]", "[fe80::1%eth0]", "[::ffff:10.0.0.1]"),
    ],
)
def test_host_that_the_library_resolves_is_valid(host: str) -> None:
    assert amqp_urls(f"amqp://{host}/") == (f"amqp://{host}/",)


@pytest.mark.parametrize(
    "path",
    [".", "..", "a/../b", "a/./b", "a/..", "%2e", "%2E%2e/b", "v%252Fw", "%252F", "./v"],
)
def test_virtual_host_that_the_library_changes_is_an_error(path: str) -> None:
    with pytest.raises(ValueError, match="virtual host"):
        amqp_urls(f"amqp://mq/{path}")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        *(("", "/"), ("/", "/"), ("/%2F", "/"), ("/v", "v"), ("/a%2Fb", "a/b"), ("/a%2F..%2Fb", "a/../b")),
        *(
            ("/a//b", "a//b"),
            ("/100%25", "100%"),
            ("/a%5Cb", "a\\b"),
            ("/a+b", "a+b"),
            ("/%C3%A4", "\xe4"),
        ),
        *(("/v%252fw", "v%2fw"), ("/v%2C", "v,")),
    ],
)
def test_virtual_host_of_a_single_url_is_unchanged(path: str, name: str) -> None:
    text = f"amqp://mq{path}"
    assert amqp_urls(text) == (text,)
    assert virtual_host(text) == name


@pytest.mark.parametrize("end", [",", ", ", " , ,"])
def test_empty_item_after_several_urls_is_skipped(end: str) -> None:
    assert amqp_urls(f"amqp://a/v, amqp://b/w{end}") == ("amqp://a/v", "amqp://b/w")


def test_comma_after_a_single_url_belongs_to_its_last_part() -> None:
    with pytest.raises(ValueError, match="a host name or an address"):
        amqp_urls("amqp://mq,")
    with pytest.raises(ValueError, match="heartbeat to be"):
        amqp_urls("amqp://mq/?heartbeat=5,")


@pytest.mark.parametrize("name", ["heartbeat", "cadata", "keyfile"])
def test_private_key_in_an_option_is_not_shown(name: str) -> None:
    with pytest.raises(ValueError, match=": its value") as raised:
        amqp_urls(f"amqps://mq/?{name}=-----BEGIN PRIVATE KEY-----%0Axyz")
    assert "xyz" not in str(raised.value)


def test_unknown_option_is_shown_in_printable_characters() -> None:
    with pytest.raises(ValueError, match="would be ignored") as raised:
        amqp_urls(f"amqp://mq/?%1b[2J{'x' * 5000}=1")
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 600
