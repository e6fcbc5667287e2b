"""Tests of the page for each path."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING

import orjson
import pytest

from bridge.config.paths import NAMED, PROBED, is_reserved
from bridge.contract.catalog import PACKAGED
from bridge.metrics import CONTENT_TYPE, Metrics
from bridge.server.http.pages import FOLDER, PARTS, UPDATES_PATH, Pages, allows_cross_origin
from bridge.server.http.response import Response, document_response

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMAS: Mapping[str, bytes] = {"update.json": b"{ }\n", "killmail.json": b'{"type": "object"}'}


def pages(*, ready: bool = True, metrics: Metrics | None = None, updates_path: str = "/kills") -> Pages:
    return Pages(lambda: (ready, {"ready": ready, "missing": []}), metrics or Metrics(), SCHEMAS, updates_path)


def test_healthz_answers_alive() -> None:
    assert pages().get("/healthz") == Response(HTTPStatus.OK, b"alive\n", "text/plain; charset=utf-8")


@pytest.mark.parametrize(("ready", "status"), [(True, HTTPStatus.OK), (False, HTTPStatus.SERVICE_UNAVAILABLE)])
def test_readiness_is_a_status_and_its_body_says_why(*, ready: bool, status: HTTPStatus) -> None:
    page = pages(ready=ready).get("/readyz")
    assert (page.status, page.content_type) == (status, "application/json")
    assert orjson.loads(page.body) == {"ready": ready, "missing": []}
    assert page.body.endswith(b"}\n")


def test_metrics_are_the_exposition_as_it_is_now() -> None:
    metrics = Metrics()
    all_pages = pages(metrics=metrics)
    metrics.deliveries += 1
    page = all_pages.get("/metrics")
    assert (page.status, page.content_type) == (HTTPStatus.OK, CONTENT_TYPE)
    assert b"\nbridge_deliveries_total 1.0\n" in page.body


def test_schemas_are_listed_in_order() -> None:
    page = pages().get("/schemas/")
    assert (page.status, page.content_type) == (HTTPStatus.OK, "application/json")
    assert page.body == b'["killmail.json","update.json"]'


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_is_served_byte_for_byte(name: str) -> None:
    page = pages().get(f"/schemas/{name}")
    assert (page.status, page.content_type) == (HTTPStatus.OK, "application/schema+json")
    assert page.body == SCHEMAS[name]


@pytest.mark.parametrize(
    ("path", "body", "media_type"),
    [
        ("/asyncapi.json", b'{"asyncapi": "3.0.0"}', "application/vnd.aai.asyncapi+json;version=3.0.0"),
        ("/openapi.json", b'{"openapi": "3.1.1"}', "application/vnd.oai.openapi+json;version=3.1"),
    ],
)
def test_document_is_served_once_it_is_there(path: str, body: bytes, media_type: str) -> None:
    all_pages = pages()
    assert all_pages.get(path).status == HTTPStatus.NOT_FOUND
    all_pages.describe(b'{"asyncapi": "3.0.0"}', b'{"openapi": "3.1.1"}')
    assert all_pages.get(path) == document_response(body, media_type)


def test_live_page_contains_the_path_of_the_endpoint() -> None:
    page = pages(updates_path="/a\"><script>'&/b").get("/")
    assert (page.status, page.content_type) == (HTTPStatus.OK, "text/html; charset=utf-8")
    assert b'<body data-updates-path="/a&quot;&gt;&lt;script&gt;&#x27;&amp;/b">' in page.body
    assert UPDATES_PATH.encode() not in page.body


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        *((f"/{file.name}", "text/javascript") for file in FOLDER.glob("*.js")),
        ("/page.css", "text/css"),
        ("/icon.svg", "image/svg+xml"),
    ],
)
def test_part_of_the_live_page_is_served_byte_for_byte(path: str, content_type: str) -> None:
    page = pages().get(path)
    assert (page.status, page.content_type.partition(";")[0]) == (HTTPStatus.OK, content_type)
    assert page.body == (FOLDER / path[1:]).read_bytes()


def test_example_for_browsers_is_served_byte_for_byte() -> None:
    page = pages().get("/schemas/clients/browser.js")
    assert (page.status, page.content_type) == (HTTPStatus.OK, "text/javascript; charset=utf-8")
    assert page.body == (PACKAGED / "clients" / "browser.js").read_bytes()


@pytest.mark.parametrize("path", PARTS)
def test_live_page_may_load_its_own_parts_and_nothing_else(path: str) -> None:
    page = pages().get(path)
    policy = dict(directive.split(" ", 1) for directive in page.policy.split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "img-src": "'self'",
        "base-uri": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert ("Referrer-Policy", "no-referrer") in page.headers


def test_live_page_loads_nothing_but_its_own_parts() -> None:
    loaded = re.findall(rb'<(?!a )[^>]*(?:src|href)="([^"]*)"', pages().get("/").body)
    assert sorted(f"/{name.decode()}" for name in loaded) == sorted(set(PARTS) - {"/"})


def test_live_page_links_to_the_pages_for_people() -> None:
    links = re.findall(rb'<a href="([^"]*)" target="_blank" rel="noopener">', pages().get("/").body)
    # The paths are relative, because a proxy may move all pages into a folder.
    assert {f"/{link.decode()}" for link in links} == {*NAMED} - {"/healthz"}


def test_scripts_of_the_live_page_import_nothing_but_its_own_parts() -> None:
    imported = [
        name.decode()
        for path in PARTS
        if path.endswith(".js")
        for name in re.findall(rb'^import .* from "\.(.*)";$', pages().get(path).body, re.MULTILINE)
    ]
    assert {*imported, "/page.js"} == {path for path in PARTS if path.endswith(".js")}


@pytest.mark.parametrize("path", [*PARTS, *NAMED, "/schemas/update.json", "/schemas/of-a-type-to-come.json"])
def test_path_of_a_page_is_the_bridges_own(path: str) -> None:
    assert is_reserved(path)


def test_all_pages_are_named() -> None:
    all_pages = pages()
    all_pages.describe(b"{}", b"{}")
    assert {path for path in (*NAMED, *PARTS) if all_pages.get(path).status != HTTPStatus.OK} == set()
    listed = all_pages.get("/nothing").body.partition(b"the pages are ")[2].decode()
    assert sorted(re.findall(r"/[\w/.]*(?=[ ,]|\.\n)", listed)) == sorted(["/", *NAMED])


@pytest.mark.parametrize("path", ["/schemas/", "/schemas/update.json", "/asyncapi.json", "/openapi.json"])
def test_document_has_a_tag_and_may_be_read_by_other_pages(path: str) -> None:
    all_pages = pages()
    all_pages.describe(b"{}", b"{}")
    assert all_pages.get(path).etag is not None
    assert allows_cross_origin(path)


@pytest.mark.parametrize("path", [*PROBED, "/", "/page.js", "/kills"])
def test_changing_response_and_live_page_have_no_tag_and_are_not_shared(path: str) -> None:
    assert pages().get(path).etag is None
    assert not allows_cross_origin(path)


@pytest.mark.parametrize("path", ["/updates", "/kills", "/metrics/", "/schemas", "/page", "//metrics"])
def test_any_other_path_is_free(path: str) -> None:
    assert not is_reserved(path)
    assert pages().get(path).status == HTTPStatus.NOT_FOUND


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/schemas/", "/schemas/update.json", "/nothing"])
def test_response_that_is_not_a_page_for_people_is_shown_in_no_frame(path: str) -> None:
    assert pages().get(path).policy == "frame-ancestors 'none'"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/kills",
        "/healthz/",
        "/HEALTHZ",
        "/schemas",
        "/schemas/statistics.json",
        "/schemas/killmail",
        "/schemas//killmail.json",
        "/schemas/../killmail.json",
        "/schemas/../../pyproject.toml",
        "/schemas/%2e%2e/killmail.json",
        "/killmail.json",
        "/favicon.ico",
        "/index.html",
        "/page.js/",
        "/page/page.js",
    ],
)
def test_other_path_is_not_found_and_lists_the_pages(path: str) -> None:
    page = pages().get(path)
    assert page.status == HTTPStatus.NOT_FOUND
    assert b"/kills is the endpoint for updates; the pages are / (live), /healthz," in page.body
