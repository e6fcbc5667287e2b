"""Tests which paths are taken by the bridge's own pages, and which paths the WebSocket endpoint can have."""

from __future__ import annotations

import pytest

from bridge.config.paths import NAMED, PAGE_FILES, is_reserved


@pytest.mark.parametrize("path", ["/", *NAMED, *(f"/{name}" for name in PAGE_FILES), "/schemas/of-a-type-to-come.json"])
def test_path_of_a_page_is_reserved(path: str) -> None:
    assert is_reserved(path)


@pytest.mark.parametrize("path", ["", "/updates", "/metrics/", "/schemas", "/page", "/other.js", "//metrics"])
def test_other_path_is_not_reserved(path: str) -> None:
    assert not is_reserved(path)
