"""Tests how markers are encoded and decoded, and how a message that only looks like a marker is treated."""

from __future__ import annotations

import orjson
import pytest

from bridge.amqp.consume import stream_markers
from bridge.amqp.consume.stream_markers import LATEST_S, MAX_BYTES, StreamMarker
from bridge.amqp.status import Gap, GapSlug
from bridge.contract.text import LIMIT

GAP = Gap(1.5, 2.5, "the broker was away")


@pytest.mark.parametrize(
    ("members", "slug"),
    [({}, "broker-away"), ({"slug": "stream-recreated"}, "stream-recreated"), ({"slug": "x"}, "broker-away")]
    + [({"slug": slug}, "broker-away") for slug in (None, 1, ["broker-away"])],
)
def test_unknown_slug_becomes_a_known_one(members: dict[str, object], slug: str) -> None:
    marker = stream_markers.decode(
        orjson.dumps({"token": "t", "gap": {"since": 1, "until": 2, "reason": "r"} | members})
    )
    assert marker is not None
    assert marker.gap is not None
    assert marker.gap.slug == slug


@pytest.mark.parametrize(
    "gap", [None, GAP, Gap(1.0, 2.0, "made again", GapSlug.STREAM_RECREATED), Gap(0.0, LATEST_S, "")]
)
def test_marker_is_read_as_it_was_written(gap: Gap | None) -> None:
    assert stream_markers.decode(stream_markers.encode(StreamMarker("token", gap))) == StreamMarker("token", gap)


def test_reason_is_printable_and_bounded_when_it_is_encoded_and_decoded() -> None:
    body = stream_markers.encode(StreamMarker("token", Gap(1.0, 2.0, "\n" * 10**5)))
    assert len(body) < MAX_BYTES
    marker = stream_markers.decode(
        orjson.dumps({"token": "t", "gap": {"since": 1, "until": 2, "reason": "a\nb" + "c" * 1000}})
    )
    assert marker is not None
    assert marker.gap is not None
    assert marker.gap.reason.isprintable()
    assert len(marker.gap.reason) <= LIMIT + len(" ... ")


@pytest.mark.parametrize("body", [b"", b"0123456789abcdef", b"[]", b"{}", b'{"token":1}', b"\xff"])
def test_body_without_a_token_is_no_marker_of_a_bridge(body: bytes) -> None:
    assert stream_markers.decode(body) is None


@pytest.mark.parametrize(("size", "is_read"), [(MAX_BYTES, True), (MAX_BYTES + 1, False)])
def test_marker_has_a_bound(size: int, is_read: bool) -> None:
    assert (stream_markers.decode(b'{"token":"t"}'.ljust(size)) is not None) is is_read


@pytest.mark.parametrize(
    "change",
    [
        {"since": None},
        {"until": None},
        {"until": "2"},
        {"since": True},
        {"since": -1},
        {"until": LATEST_S + 1},
        {"until": 10**18},
        {"since": 3},
        {"reason": None},
        {"reason": 1},
    ],
)
def test_invalid_gap_is_omitted(change: dict[str, object]) -> None:
    members = {"since": 1, "until": 2, "reason": "r"} | change
    assert stream_markers.decode(orjson.dumps({"token": "t", "gap": members})) == StreamMarker("t", None)
    assert stream_markers.decode(orjson.dumps({"token": "t", "gap": [members]})) == StreamMarker("t", None)


def test_times_are_integers_or_floats() -> None:
    members = {"since": 1, "until": 2.5, "reason": "r"}
    assert stream_markers.decode(orjson.dumps({"token": "t", "gap": members})) == StreamMarker("t", Gap(1.0, 2.5, "r"))
