"""A bridge answers as its OpenAPI document says, and the committed document is up to date."""

import asyncio
from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.conformance.test_asyncapi import OWN
from tests.support.broker.find import Broker
from tests.support.clients import get
from tests.support.generated import OPENAPI, openapi_document
from tests.support.running import port_of, running
from tests.support.waiting import LIMIT_S


def test_committed_document_is_up_to_date() -> None:
    assert OPENAPI.read_bytes() == openapi_document(), "run `make contract` to update the document"


async def ask(port: int, method: str, path: str, *headers: str) -> tuple[str, str, bytes]:
    """Returns the status, the media type and the body of a response."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write("\r\n".join([f"{method} {path} HTTP/1.1", f"Host: localhost:{port}", *headers, "", ""]).encode())
    async with asyncio.timeout(LIMIT_S):
        head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    status_line, *lines = head.decode().split("\r\n")
    content_type = next((line.partition(": ")[2] for line in lines if line.lower().startswith("content-type")), "")
    return status_line.split()[1], content_type, body


async def test_bridge_serves_a_valid_document_and_answers_as_it_says(
    broker: Broker, exchange: str, tmp_path: Path
) -> None:
    (tmp_path / "fleet move.json").write_bytes(orjson.dumps(OWN))
    async with running(broker.url, exchanges=f"{exchange}=fleet move", schemas=tmp_path, path="/kills") as bridge:
        port = port_of(bridge)
        status, served = await get(port, "/openapi.json")
        assert status == 200
        document = orjson.loads(served)
        assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []
        assert document["servers"] == [{"url": f"http://localhost:{port}"}]
        assert broker.url not in served.decode()
        for path, item in document["paths"].items():
            for method in ("get", "head", "options"):
                if method in item:
                    target = path.replace("{name}", "fleet%20move.json")
                    await check(port, method, target, item[method], document)


async def check(port: int, method: str, target: str, operation: Any, document: Any) -> None:
    """Asserts that the response to a request is described, with its media type and its content."""
    status, content_type, body = await ask(port, method.upper(), target)
    described = operation["responses"][status]
    while "$ref" in described:
        described = document["components"]["responses"][described["$ref"].rpartition("/")[2]]
    if method == "get":
        media_types = {content_type, content_type.partition(";")[0]} & described["content"].keys()
        assert media_types, (target, content_type)
        if "json" in content_type:
            schema = {**described["content"][media_types.pop()]["schema"], "components": document["components"]}
            jsonschema_rs.Draft202012Validator(schema).validate(orjson.loads(body))


@pytest.mark.parametrize(
    ("method", "target", "headers", "status"),
    [
        ("GET", "/updates?nothing=1", (), "400"),
        ("GET", "/updates", ("Origin: https://evil.example",), "403"),
        ("POST", "/updates", (), "405"),
        ("GET", "/updates", (), "426"),
        ("GET", "/updates?format=json", (), "200"),
        ("GET", "/updates", ("Accept: application/json",), "200"),
        ("HEAD", "/updates?format=sse", (), "200"),
        ("HEAD", "/updates?format=json", (), "200"),
        ("HEAD", "/updates?limit=0", (), "400"),
        ("OPTIONS", "/updates", ("Origin: http://localhost",), "204"),
        ("GET", "/schemas/nothing.json", (), "404"),
        ("GET", "/schemas/killmail.json", ("If-None-Match: *",), "304"),
    ],
)
async def test_status_is_described(
    broker: Broker, exchange: str, method: str, target: str, headers: tuple[str, ...], status: str
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        assert (await ask(port_of(bridge), method, target, *headers))[0] == status
    paths = orjson.loads(openapi_document())["paths"]
    item = paths["/updates" if target.startswith("/updates") else "/schemas/{name}"]
    assert status in item["get" if method == "POST" else method.lower()]["responses"]
