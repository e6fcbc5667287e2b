"""AsyncAPI's own parser accepts the committed document, and the document of a bridge with an operator's schemas."""

import asyncio
import ssl
import subprocess
from pathlib import Path

import orjson
import pytest

from bridge.contract import catalog
from tests.support.broker.find import Broker
from tests.support.certificates import certificate
from tests.support.clients import get
from tests.support.generated import ASYNCAPI, asyncapi_document
from tests.support.prepare import NODE
from tests.support.running import port_of, running
from tests.support.waiting import LIMIT_S

OWN = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "urn:example:fleet-move",
    "title": "FleetMove",
    "type": "object",
    # The following keywords have a meaning in AsyncAPI, but not in JSON Schema draft 2020-12.
    "schema": 5,
    "discriminator": {"propertyName": "kind"},
    "externalDocs": "see the wiki",
    "$defs": {
        "place": {
            "$anchor": "place",
            "properties": {
                "system": {"$ref": "urn:edk-bridge:schema:killmail#/properties/systemId"},
                "next": {"$ref": "#place", "description": "A recursive schema."},
            },
        },
        "größe %/~": {"type": "number"},
        "inner": {"$id": "urn:example:inner", "$defs": {"x": {}}, "properties": {"x": {"$ref": "#/$defs/x"}}},
        "never": False,
    },
    "properties": {
        "$ref": {"type": "string"},
        "from": {"$ref": "#/$defs/place"},
        "size": {"$ref": "#/$defs/gr%C3%B6%C3%9Fe%20%25~1~0"},
        "pair": {"prefixItems": [{"type": "string"}, {"$ref": "#place"}], "items": {"type": "integer"}},
        "again": {"$ref": "#/properties/pair/prefixItems/1"},
        "inner": {"$ref": "urn:example:inner"},
        "none": {"$ref": "#/$defs/never"},
        "self": {"$ref": "#"},
        "kill": {"$ref": "urn:edk-bridge:schema:killmail"},
        "shape": {"$ref": "https://json-schema.org/draft/2020-12/schema"},
    },
    "unevaluatedProperties": False,
    "examples": [{"$ref": "nowhere"}],
}


def find(node: str, *documents: bytes) -> list[list[str]]:
    """Returns the parser's messages about each document, but not the advice to use a newer version of AsyncAPI."""
    sources = orjson.dumps([document.decode() for document in documents])
    done = subprocess.run([node, "asyncapi.mjs"], cwd=NODE, input=sources, capture_output=True, timeout=60, check=False)
    assert (done.stderr, done.returncode) == (b"", 0)
    newer = "information /asyncapi: The latest version"
    return [[line for line in orjson.loads(lines) if not line.startswith(newer)] for lines in done.stdout.splitlines()]


def test_committed_document_is_up_to_date() -> None:
    assert ASYNCAPI.read_bytes() == asyncapi_document(), "run `make contract` to update the document"


async def test_bridge_serves_a_valid_document_with_its_address(
    node: str, broker: Broker, exchange: str, tmp_path: Path
) -> None:
    (tmp_path / "fleet move.json").write_bytes(orjson.dumps(OWN))
    async with running(broker.url, exchanges=f"{exchange}=fleet move", schemas=tmp_path, path="/kills") as bridge:
        port = port_of(bridge)
        status, document = await get(port, "/asyncapi.json")
        assert status == 200
    assert find(node, document) == [[]]
    served = orjson.loads(document)
    assert served["servers"]["websocket"]["host"] == f"localhost:{port}"
    assert served["channels"]["updates"]["address"] == "/kills"
    packaged = catalog.load([catalog.PACKAGED])
    types = {*packaged.types, "fleet_20_move"}
    assert {name for name in served["channels"]["updates"]["messages"] if name.startswith("update.")} == {
        f"update.{name}" for name in types
    }
    query = served["channels"]["updates"]["bindings"]["ws"]["query"]["properties"]
    assert "fleet move" in query["type"]["items"]["enum"]
    assert query["size"]["items"] == {"type": "number"}
    [channel] = [channel for channel in served["channels"].values() if channel["title"] == exchange]
    assert "`fleet move`" in channel["description"]
    assert broker.url not in document.decode()


BROKEN = {
    "action": (b'"action": "send"', b'"action": "shout"', "allowed values"),
    "binding": (b'"type": "fanout"', b'"type": "fan"', "allowed values"),
    "query": (b'"query": {\n            "type": "object"', b'"query": {\n            "type": 5', ""),
    "schema": (b'"minimum": 0', b'"minimum": "none"', "number"),
    "reference": (b"schemas/killmail", b"schemas/killmall", "killmall"),
    "version": (b'"asyncapi": "3.0.0"', b'"asyncapi": "2.0.0"', "must"),
}
"""For each error: a text in a valid document, a wrong replacement, and a part of the parser's message."""


@pytest.fixture(scope="module")
def messages(node: str) -> dict[str, list[str]]:
    """The messages about the valid document and each broken document.

    One run of the parser reads all documents, because each start takes seconds.
    """
    document = asyncapi_document()
    documents = {"valid": document} | {name: document.replace(old, new) for name, (old, new, _) in BROKEN.items()}
    return dict(zip(documents, find(node, *documents.values()), strict=True))


def test_committed_document_is_valid(messages: dict[str, list[str]]) -> None:
    assert ASYNCAPI.read_bytes() == asyncapi_document()
    assert messages["valid"] == []


@pytest.mark.parametrize("name", BROKEN)
def test_parser_reports_a_broken_document(messages: dict[str, list[str]], name: str) -> None:
    old, _, words = BROKEN[name]
    assert old in asyncapi_document()
    assert any(line.startswith("error ") and words in line for line in messages[name]), messages[name]


async def test_document_of_a_bridge_with_a_certificate_has_wss(broker: Broker, exchange: str, tmp_path: Path) -> None:
    certificate_file, key_file = certificate(tmp_path, "here")
    flags = {"exchanges": f"{exchange}=killmail", "tls_certificate": certificate_file, "tls_key": key_file}
    tls_context = ssl.create_default_context(cafile=str(certificate_file))
    async with running(broker.url, **flags) as bridge:
        port = port_of(bridge)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls_context)
        writer.write(f"GET /asyncapi.json HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n".encode())
        async with asyncio.timeout(LIMIT_S):
            head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
    assert b"application/vnd.aai.asyncapi+json;version=3.0.0" in head
    assert orjson.loads(body)["servers"]["websocket"] | {"description": ""} == {
        "host": f"localhost:{port}",
        "protocol": "wss",
        "description": "",
    }
