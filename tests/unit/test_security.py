"""Tests that SECURITY.md names only settings and tests that exist.

A missing test would leave a claim of SECURITY.md without proof.
"""

from __future__ import annotations

import re

from bridge.config.settings import PREFIX, SETTINGS
from tests.support.audit import ROOT

TEXT = re.sub(r"<!--.*?-->", "", (ROOT / "SECURITY.md").read_text(), flags=re.DOTALL)


def test_each_setting_that_is_named_exists() -> None:
    named = {name.removeprefix(PREFIX).removesuffix("_FILE").lower() for name in re.findall(rf"{PREFIX}\w+", TEXT)}
    assert named
    assert named <= set(SETTINGS)


def test_each_test_that_is_named_exists() -> None:
    named = set(re.findall(r"`((?:unit|integration|faults)/[\w/]+\.py)`", TEXT))
    assert named
    assert {name for name in named if not (ROOT / "tests" / name).is_file()} == set()


def test_each_link_leads_to_a_file() -> None:
    links = re.findall(r"\]\(([^)#]+)", TEXT)
    assert [link for link in links if not (ROOT / link).exists()] == []
