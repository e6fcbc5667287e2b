"""The error of a demo that has no broker."""

from __future__ import annotations

import sys

import pytest

from bridge.demo.broker import NoBroker, start_container

WAYS = ("BRIDGE_AMQP_URL", "pip install 'edk-bridge[demo]'", "--without-broker")


def test_missing_extra_is_named_with_the_three_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bridge.demo.container", None)
    with pytest.raises(NoBroker, match=r"the extra `demo` \(testcontainers\) is not installed") as raised:
        start_container("image", print)
    assert all(way in str(raised.value) for way in WAYS)


@pytest.mark.parametrize(
    ("has_engine", "reason"), [(False, "no container engine answers"), (True, "there is no image")]
)
def test_reason_of_the_engine_is_named_with_the_three_ways_out(
    monkeypatch: pytest.MonkeyPatch, has_engine: bool, reason: str
) -> None:
    container = pytest.importorskip("bridge.demo.container", reason="the extra demo is not installed")

    def fetch_image(image: str, _say: object) -> None:
        raise RuntimeError(f"there is no {image}")

    monkeypatch.setattr(container, "engine_answers", lambda: has_engine)
    monkeypatch.setattr(container, "fetch_image", fetch_image)
    with pytest.raises(NoBroker, match=reason) as raised:
        start_container("image", print)
    assert all(way in str(raised.value) for way in WAYS)
