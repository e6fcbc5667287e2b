"""Tests of the envelope, byte for byte."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.contract.envelope import close, ending, gap, heartbeat, resume, unwrap, wrap

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


def nested(levels: int) -> object:
    data: object = 0
    for _ in range(levels):
        data = [data]
    return data


@pytest.mark.parametrize(
    ("data", "payload"),
    [
        ({}, b'{"type":"event","data":{},"timestamp":1697962000000}'),
        (None, b'{"type":"event","data":null,"timestamp":1697962000000}'),
        ([1, 2.5, True], b'{"type":"event","data":[1,2.5,true],"timestamp":1697962000000}'),
        ("\u2603", b'{"type":"event","data":"\xe2\x98\x83","timestamp":1697962000000}'),
    ],
)
def test_update_is_compact_utf8_json_in_a_fixed_order(data: object, payload: bytes) -> None:
    assert wrap("event", data, 1697962000000) == payload


@given(name=st.text(), data=JSON, timestamp_ms=st.integers(0, 2**53 - 1))
def test_any_data_is_unchanged_in_the_envelope(name: str, data: object, timestamp_ms: int) -> None:
    update = orjson.loads(wrap(name, data, timestamp_ms))
    assert update == {"type": name, "data": data, "timestamp": timestamp_ms}
    assert list(update) == ["type", "data", "timestamp"]


def test_data_of_250_levels_is_written() -> None:
    assert orjson.loads(wrap("event", nested(250), 0))["data"] == nested(250)


def test_data_of_300_levels_raises() -> None:
    with pytest.raises(TypeError):
        wrap("event", nested(300), 0)


@given(name=st.text(), data=JSON)
def test_wrapped_data_can_be_unwrapped(name: str, data: object) -> None:
    assert unwrap(wrap(name, data, 1)) == (name, data)


def test_id_is_the_fourth_member_and_the_last() -> None:
    assert ending("1234-9f86d081") == b',"id":"1234-9f86d081"}'


@given(name=st.text(), data=JSON, id_=st.text())
def test_any_update_accepts_any_id(name: str, data: object, id_: str) -> None:
    update = orjson.loads(wrap(name, data, 1)[:-1] + ending(id_))
    assert update == {"type": name, "data": data, "timestamp": 1, "id": id_}
    assert list(update) == ["type", "data", "timestamp", "id"]


def test_resume_has_its_members() -> None:
    assert resume(False, 3, "7-00000001", 1697962000000) == (
        b'{"type":"resume","data":{"complete":false,"replayed":3,"id":"7-00000001"},"timestamp":1697962000000}'
    )


def test_close_has_its_members_and_no_id() -> None:
    assert close(1001, "stopping", 7) == (b'{"type":"close","data":{"code":1001,"reason":"stopping"},"timestamp":7}')


def test_gap_has_its_members() -> None:
    assert gap("2024-10-22T10:30:00.000Z", "2024-10-22T10:31:00.000Z", "why", "7-00000001", 1697962000000) == (
        b'{"type":"gap","data":{"since":"2024-10-22T10:30:00.000Z","until":"2024-10-22T10:31:00.000Z",'
        b'"reason":"why","id":"7-00000001"},"timestamp":1697962000000}'
    )


def test_heartbeat_has_its_members() -> None:
    assert heartbeat("7-00000001", False, 7) == (
        b'{"type":"heartbeat","data":{"id":"7-00000001","consuming":false},"timestamp":7}'
    )
