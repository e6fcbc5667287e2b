"""Tests that a rejected event's properties fit into one frame, with as many of the event's own headers as possible."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands, frame
from pamqp.common import FieldTable
from pamqp.header import ContentHeader

from bridge.amqp.rejects.properties import OMITTED_HEADER, original_properties, reject_properties
from bridge.contract.pipeline import Reason, Rejected

SMALLEST, USUAL = 8192, 131_072
"""The frame sizes in bytes with which the properties are tested. The smallest size that RabbitMQ accepts is 8192."""

NO = Rejected(Reason.NOT_JSON, "it is no JSON", "/data", "urn:schema")
LONGEST = Rejected(Reason.SCHEMA_VIOLATION, "\U0001d11e" * 800, "/" + "\U0001d11e" * 400, "urn:" + "x" * 200)


def made(frame_max: int = USUAL, rejected: Rejected = NO, **values: Any) -> commands.Basic.Properties:
    came = commands.Basic.Properties(**values)
    properties = reject_properties(came, "killmails", rejected, "here", frame_max)
    assert len(frame.marshal(ContentHeader(0, 2, properties), 1)) <= frame_max
    assert properties.message_id, "without an id, aiormq would add one and exceed the frame"
    return properties


def headers_of(properties: commands.Basic.Properties) -> dict[str, Any]:
    return dict(properties.headers or {})


def own(properties: commands.Basic.Properties) -> dict[str, Any]:
    return {name: value for name, value in headers_of(properties).items() if not name.startswith("x-reject-")}


def test_all_headers_are_kept_if_they_fit() -> None:
    came = {"a": 1, "b": "two", "c": [True, None]}
    properties = made(headers=came, message_id="m-1", message_type="killmail")
    assert own(properties) == came
    assert OMITTED_HEADER not in headers_of(properties)
    assert (properties.message_id, properties.message_type) == ("m-1", "killmail")


def test_properties_that_can_not_be_published_again_become_headers() -> None:
    original = commands.Basic.Properties(user_id="fetcher", expiration="60000")
    # The constructor of pamqp's `Properties` refuses these values, but pamqp's decoder accepts them.
    original.cluster_id, original.delivery_mode = "c", 7
    properties = reject_properties(original, "killmails", NO, "here", USUAL)
    assert (properties.user_id, properties.cluster_id, properties.expiration) == (None, "", None)
    assert properties.delivery_mode is None, "the broker knows only 1 and 2"
    headers = headers_of(properties)
    assert [headers[f"x-reject-{name}"] for name in ("user-id", "cluster-id", "expiration")] == [
        "fetcher",
        "c",
        "60000",
    ]


def test_properties_that_can_not_be_encoded_are_omitted_and_reported() -> None:
    properties = made(priority=-1, message_type="killmail", message_id="m-1")
    assert headers_of(properties)[OMITTED_HEADER] == (
        "omitted, because they can't be published again: the event's own properties"
    )
    assert (properties.message_type, properties.message_id, properties.delivery_mode) == ("killmail", "m-1", 2)
    assert headers_of(properties)["x-reject-detail"] == NO.detail


def test_reasons_that_leave_no_room_are_truncated() -> None:
    too_long = Rejected(Reason.SCHEMA_VIOLATION, "x" * SMALLEST, "/data", "urn:schema")
    detail = headers_of(made(SMALLEST, too_long))["x-reject-detail"]
    assert 0 < len(detail) < 300


@pytest.mark.parametrize("frame_max", [SMALLEST, USUAL])
def test_largest_headers_are_omitted_and_named(frame_max: int) -> None:
    properties = made(frame_max, headers={"small": "kept", "large": "x" * frame_max, "medium": "y" * 5000})
    assert set(own(properties)) == {"small", "medium"}
    assert headers_of(properties)[OMITTED_HEADER] == "omitted, because they can't be published again: large"
    assert headers_of(properties)["x-reject-reason"] == "not-json"


def test_headers_that_fit_exactly_are_kept_and_one_byte_more_is_not() -> None:
    room = SMALLEST - len(frame.marshal(ContentHeader(0, 2, made(SMALLEST, headers={"x": ""})), 1))
    assert "x" in own(made(SMALLEST, headers={"x": "x" * room}))
    assert "x" not in own(made(SMALLEST, headers={"x": "x" * (room + 1)}))


def test_many_omitted_headers_are_counted() -> None:
    properties = made(SMALLEST, headers={f"header-{number:03}": "x" * 500 for number in range(100)})
    sentence = headers_of(properties)[OMITTED_HEADER]
    assert len(own(properties)) >= 10
    assert sentence.endswith(" more")
    assert len(sentence) < 500


def test_tens_of_thousands_of_headers_take_no_time() -> None:
    """Each attempt to publish builds all headers in a single turn of the event loop.

    If each of 20,000 headers were compared with all others, the comparisons would take minutes.
    """
    headers = {f"{number:05}": None for number in range(17_000)}
    began_s = time.process_time()
    properties = made(110_000, LONGEST, headers=headers)
    assert time.process_time() - began_s < 2.0
    assert 10_000 < len(own(properties)) < 17_000


def test_header_that_can_be_read_and_not_written_is_the_only_omitted_one() -> None:
    properties = made(headers={"odd": object(), "x" * 200: "its name would be truncated", "even": 2}, message_id="m-1")
    assert own(properties) == {"even": 2}
    assert "odd" in headers_of(properties)[OMITTED_HEADER]
    assert properties.message_id == "m-1"


def test_reasons_fit_however_long_they_are() -> None:
    texts = dict.fromkeys(("content_type", "correlation_id", "reply_to", "message_id", "app_id"), "x" * 255)
    properties = made(SMALLEST, LONGEST, message_type="killmail", headers={"a": "x" * 9000}, **texts)
    headers = headers_of(properties)
    assert headers["x-reject-reason"] == "schema-violation"
    assert headers["x-reject-detail"].startswith("\U0001d11e")
    assert properties.message_type == "killmail"
    assert OMITTED_HEADER in headers


values_ = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=3000) | st.binary(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=20), inner, max_size=3),
    max_leaves=6,
)


@given(headers=st.dictionaries(st.text(max_size=200), values_, max_size=12), long=st.booleans())
def test_reject_with_any_headers_fits_and_names_the_omitted_ones(headers: dict[str, Any], *, long: bool) -> None:
    properties = made(SMALLEST, LONGEST if long else NO, headers=headers)
    kept = own(properties)
    missing = {name for name in headers if not name.startswith("x-reject-")} - set(kept)
    assert bool(missing) is (OMITTED_HEADER in headers_of(properties))
    assert all(kept[name] == headers[name] for name in kept)


# Original properties

REASONS: FieldTable = {
    "x-reject-reason": "schema-violation",
    "x-reject-detail": "/a: is\twrong",
    "x-reject-exchange": "kills",
}


def test_headers_of_the_bridge_are_removed_again() -> None:
    came = commands.Basic.Properties(
        headers={
            **REASONS,
            "x-reject-user-id": "fetcher",
            "x-reject-expiration": "60000",
            "x-reject-anything": 1,
            "source": {"a": 1},
            "x-delivery-count": 1,
            "x-stream-offset": 7,
        },
        message_id="m-1",
        message_type="killmail",
        priority=4,
        delivery_mode=2,
    )
    for user, user_id in (("fetcher", "fetcher"), ("guest", None)):
        properties = original_properties(came, user)
        assert properties.headers == {"source": {"a": 1}}
        assert (properties.user_id, properties.expiration) == (user_id, "60000")
        assert (properties.message_id, properties.message_type) == ("m-1", "killmail")
        assert (properties.priority, properties.delivery_mode) == (4, 2)


def test_event_without_headers_has_none_after_a_requeue() -> None:
    assert original_properties(commands.Basic.Properties(headers=dict(REASONS)), "guest").headers is None
