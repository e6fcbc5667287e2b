"""Tests of the error that the demo reports if it finds no broker."""

from __future__ import annotations

import sys

import pytest

from bridge.demo.broker import NoBroker, start_container

SOLUTIONS = ("BRIDGE_AMQP_URL", "pip install 'edk-bridge[demo]'", "--without-broker")


def test_error_names_the_missing_extra_and_three_solutions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bridge.demo.container", None)
    with pytest.raises(NoBroker, match=r"the extra `demo` \(testcontainers\) is not installed") as raised:
        start_container("image", print)
    assert all(solution in str(raised.value) for solution in SOLUTIONS)


@pytest.mark.parametrize(
    ("has_engine", "reason"), [(False, "no container engine answers"), (True, "there is no image")]
)
def test_error_names_the_reason_of_the_engine_and_three_solutions(
    monkeypatch: pytest.MonkeyPatch, has_engine: bool, reason: str
) -> None:
    container = pytest.importorskip("bridge.demo.container", reason="the extra demo is not installed")

    def fetch_image(image: str, _say: object) -> None:
        raise RuntimeError(f"there is no {image}")

    monkeypatch.setattr(container, "engine_answers", lambda: has_engine)
    monkeypatch.setattr(container, "fetch_image", fetch_image)
    with pytest.raises(NoBroker, match=reason) as raised:
        start_container("image", print)
    assert all(solution in str(raised.value) for solution in SOLUTIONS)
