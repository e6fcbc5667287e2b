"""Certificates that the broker's URL names: what can't be used is said before the first connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from bridge.amqp_urls import amqp_urls
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
    _, other_key = certificate(other, "somebody else")
    (both := folder / "both.pem").write_bytes(chain.read_bytes() + key.read_bytes())
    (encrypted := folder / "encrypted.pem").write_text(key.read_text().replace(" PRIVATE", " ENCRYPTED PRIVATE"))
    (nothing := folder / "nothing.pem").write_text("nothing")
    return Pairs(chain, key, other_key, both, encrypted, nothing)


def url(**query: object) -> str:
    return "amqps://mq/?" + "&".join(f"{name}={value}" for name, value in query.items())


def test_certificate_and_its_key_are_taken_from_two_files_or_from_one(pairs: Pairs) -> None:
    for text in (url(certfile=pairs.chain, keyfile=pairs.key), url(certfile=pairs.both)):
        assert amqp_urls(text) == (text,)
        assert amqp_urls(f"{text}&auth=external") == (f"{text}&auth=external",)


@pytest.mark.parametrize(
    ("certfile", "keyfile", "words"),
    [
        ("chain", None, "certificate.pem holds no private key .*; keyfile names another file for it"),
        ("chain", "other_key", "is not that of the certificate in"),
        ("chain", "nothing", "nothing.pem holds no private key"),
        ("chain", "chain", "holds no private key"),
        ("chain", "encrypted", "is encrypted, and must not be"),
        ("key", None, "key.pem holds no certificate"),
        ("key", "key", "key.pem holds no certificate"),
        ("nothing", "key", "nothing.pem holds no certificate"),
    ],
)
def test_pair_that_can_not_be_used_is_said_with_the_file(
    pairs: Pairs, certfile: str, keyfile: str | None, words: str
) -> None:
    query = {"certfile": getattr(pairs, certfile)}
    if keyfile is not None:
        query["keyfile"] = getattr(pairs, keyfile)
    with pytest.raises(ValueError, match=words) as raised:
        amqp_urls(url(**query))
    assert str(raised.value).startswith("a certificate in certfile and its key in keyfile, but ")


def test_certificate_of_any_of_several_nodes_is_looked_at(pairs: Pairs) -> None:
    with pytest.raises(ValueError, match="holds no private key"):
        amqp_urls(f"amqps://one/,{url(certfile=pairs.chain)}")


def test_folder_of_authorities_is_one_that_openssl_can_use(tmp_path: Path) -> None:
    (tmp_path / "9d66eef0.0").touch()
    assert amqp_urls(url(capath=tmp_path)) == (url(capath=tmp_path),)
