"""Tests of nodes that come from settings, or from a file that is rewritten while the bridge runs."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from bridge.amqp.nodes import Node, NodeRotation, NodesFile, broker_nodes
from bridge.config.amqp_urls import amqp_urls
from bridge.config.settings import load
from bridge.config.sources import content
from bridge.errors import BrokerRefusal

if TYPE_CHECKING:
    from pathlib import Path

OLD, NEW = "amqp://user:old@mq/", "amqp://user:new@mq/"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (file := tmp_path / "url").write_text(f"{OLD}\n")
    return file


@pytest.fixture
def nodes(file: Path) -> NodesFile:
    return NodesFile((OLD,), lambda: amqp_urls(content(file)))


def test_url_is_read_again_for_each_connection(nodes: NodesFile, file: Path) -> None:
    assert [*nodes] == [Node(OLD)]
    file.write_text(f"{NEW},amqp://other/\n")
    assert [*nodes] == [Node(NEW), Node("amqp://other/")]
    assert (len(nodes), nodes[0], nodes[1:]) == (2, Node(NEW), (Node("amqp://other/"),))


@pytest.mark.parametrize("text", ["", "secret", b"\xff", None], ids=["empty", "no URL", "no text", "gone"])
def test_unusable_file_leaves_the_last_url_and_is_logged_once_without_its_content(
    nodes: NodesFile, file: Path, text: str | bytes | None
) -> None:
    if text is None:
        file.unlink()
    else:
        file.write_bytes(text.encode() if isinstance(text, str) else text)
    with capture_logs() as logged:
        assert [*nodes] == [*nodes] == [Node(OLD)]
    [line] = logged
    assert line["log_level"] == "warning"
    assert "secret" not in str(line)
    file.write_text(NEW)
    assert [*nodes] == [Node(NEW)]
    file.unlink()
    with capture_logs() as logged:
        assert [*nodes] == [Node(NEW)]
    assert len(logged) == 1, "the next failure is logged again"


def test_byte_order_mark_of_a_file_that_is_read_again_is_named(nodes: NodesFile, file: Path) -> None:
    file.write_bytes(NEW.encode("utf-8-sig"))
    with capture_logs() as logged:
        assert [*nodes] == [Node(OLD)]
    [line] = logged
    assert line["error"] == "it begins with a byte order mark; save it as UTF-8 without one"


def test_only_the_url_of_a_file_is_read_again(file: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "no.env"
    of_a_file = load({}, {"BRIDGE_AMQP_URL_FILE": str(file)}, nowhere)
    assert (of_a_file.amqp_url, of_a_file.amqp_url_file) == ((OLD,), file)
    assert isinstance(broker_nodes(of_a_file.amqp_url, file), NodesFile)
    file.write_text(NEW)
    assert [*broker_nodes(of_a_file.amqp_url, file)] == [Node(NEW)]
    for settings in (load({}, {"BRIDGE_AMQP_URL": OLD}, nowhere), load({}, {}, nowhere)):
        assert settings.amqp_url_file is None
        assert broker_nodes(settings.amqp_url, settings.amqp_url_file) == tuple(map(Node, settings.amqp_url))
    overridden = load({"amqp_url": OLD}, {"BRIDGE_AMQP_URL_FILE": str(file)}, nowhere)
    assert overridden.amqp_url_file is None, "a flag overrides the file"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://guest:secret@localhost:5672/", "amqp://guest:***@localhost:5672/"),
        ("amqp://guest:secret@localhost", "amqp://guest:***@localhost:5672"),
        ("amqps://bridge:secret@mq.example.org/kills", "amqps://bridge:***@mq.example.org:5671/kills"),
        ("amqp://localhost:5673/", "amqp://localhost:5673/"),
        ("amqp://:secret@localhost/", "amqp://localhost:5672/"),
        ("amqp://bridge@localhost/", "amqp://bridge:***@localhost:5672/"),
        ("amqp://guest:secret@localhost/?name=secret#secret", "amqp://guest:***@localhost:5672/"),
    ],
)
def test_text_of_a_node_hides_its_password(url: str, shown: str) -> None:
    assert str(Node(url)) == shown
    assert "secret" not in repr(Node(url))


@pytest.mark.parametrize(
    ("url", "virtual_host"),
    [
        ("amqp://localhost", "/"),
        ("amqp://localhost/", "/"),
        ("amqp://localhost/%2F", "/"),
        ("amqp://localhost/kills", "kills"),
        ("amqp://localhost/a%2Fb", "a/b"),
    ],
)
def test_virtual_host_is_the_path_of_the_url(url: str, virtual_host: str) -> None:
    assert Node(url).virtual_host == virtual_host


@pytest.mark.parametrize(
    ("url", "user"), [("amqp://a%2Fb:c@host", "a/b"), ("amqp://host", "guest"), ("amqp://only@host", "only")]
)
def test_user_is_that_of_the_url(url: str, user: str) -> None:
    assert Node(url).user == user


async def test_node_with_a_failed_setup_is_tried_last() -> None:
    nodes = NodeRotation([Node(f"amqp://{name}/") for name in ("one", "two", "three")])
    for first in ("one", "two", "three", "one"):
        assert nodes.order()[0] == Node(f"amqp://{first}/")
        assert len(nodes.order()) == 3
        with pytest.raises(ConnectionError):
            async with nodes.setup(1.0):
                raise ConnectionError("closed")


@pytest.mark.parametrize("error", [None, BrokerRefusal("a permission is missing")])
async def test_node_with_a_successful_or_refused_setup_stays_first(error: Exception | None) -> None:
    nodes = NodeRotation([Node("amqp://one/"), Node("amqp://two/")])
    with nullcontext() if error is None else pytest.raises(BrokerRefusal):
        async with nodes.setup(1.0):
            if error is not None:
                raise error
    assert nodes.order()[0] == Node("amqp://one/")
