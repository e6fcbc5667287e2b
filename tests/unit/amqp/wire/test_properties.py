"""Tests that the offset of a stream's message comes from the broker, whatever headers a publisher sets."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pamqp import commands, encode
from pamqp.header import ContentHeader

from bridge.amqp.wire.properties import OFFSET, OFFSET_KEY, StreamPropertiesReader

NAME = "x-stream-offset"
OFFSET_VALUE = 2**40 + 7


def header(offset: int | None = OFFSET_VALUE, headers: dict[str, Any] | None = None, **properties: Any) -> bytes:
    """Returns a content header in which the offset follows the other headers, encoded as a broker encodes it."""
    table = encode.field_table(headers or {})[4:]
    if offset is not None:
        table += OFFSET_KEY + OFFSET.pack(offset)
    return with_table(table, **properties)


def with_table(table: bytes, **properties: Any) -> bytes:
    whole = ContentHeader(body_size=9, properties=commands.Basic.Properties(headers={"a": "b"}, **properties)).marshal()
    own = encode.field_table({"a": "b"})
    assert whole.count(own) == 1
    return whole.replace(own, len(table).to_bytes(4, "big") + table)


@pytest.fixture
def reader() -> StreamPropertiesReader:
    return StreamPropertiesReader()


@pytest.mark.parametrize("offset", [0, 1, 2**62, -1])
def test_offset_is_read(reader: StreamPropertiesReader, offset: int) -> None:
    read = reader.read(header(offset, message_type="kill", content_encoding="br"))
    assert (read.offset, read.type, read.encoding) == (offset, "kill", "br")


def test_properties_are_decoded(reader: StreamPropertiesReader) -> None:
    properties = reader.read(header(3, {"k": "v"}, message_type="kill")).decode()
    assert properties.headers == {"k": "v", NAME: 3}
    assert properties.message_type == "kill"


def test_properties_that_differ_only_in_the_offset_are_distinguished(reader: StreamPropertiesReader) -> None:
    first, second = reader.read(header(1, message_type="a")), reader.read(header(2, message_type="a"))
    third, fourth = reader.read(header(3, message_type="b")), reader.read(header(4, {"k": 1}, message_type="c"))
    assert [(each.offset, each.type) for each in (first, second, third, fourth)] == [
        (1, "a"),
        (2, "a"),
        (3, "b"),
        (4, "c"),
    ]
    assert [each.decode().headers for each in (first, second)] == [{NAME: 1}, {NAME: 2}]


FORGED = OFFSET_KEY.decode() + "\0" * 7 + "\x63"


@pytest.mark.parametrize(
    "properties",
    [
        {"headers": {"z": FORGED}},
        {"headers": {"z": NAME}},
        {"headers": {"t": {NAME: 99}}},
        {"headers": {"t": [{NAME: 99}]}},
        {"message_type": FORGED},
        {"content_type": NAME, "content_encoding": FORGED},
        {"message_id": NAME},
    ],
)
def test_offset_header_of_a_publisher_is_ignored(reader: StreamPropertiesReader, properties: dict[str, Any]) -> None:
    assert reader.read(header(**properties)).offset == OFFSET_VALUE


VALUES: dict[str, Any] = {
    "bool": True,
    "byte": -5,
    "short": 30000,
    "int": 2**31 - 1,
    "long": 2**40,
    "time": datetime(2024, 1, 1, tzinfo=UTC),
    "table": {"k": {"n": None}},
    "array": [1, "x", None],
    "bytes": bytearray(b"\0\1"),
    "text": "x" * 300,
    "none": None,
    "forged": FORGED,
}


def test_offset_is_found_after_any_headers_of_a_publisher(reader: StreamPropertiesReader) -> None:
    assert reader.read(header(headers=VALUES)).offset == OFFSET_VALUE


@pytest.mark.parametrize("kind", "VtbBsuIifDlLdTSAFx")
def test_value_of_each_type_has_its_width(reader: StreamPropertiesReader, kind: str) -> None:
    widths = dict.fromkeys("tbB", 1) | dict.fromkeys("su", 2) | dict.fromkeys("Iif", 4) | {"V": 0, "D": 5}
    width = widths.get(kind, 8)
    value = (8).to_bytes(4, "big") + NAME.encode()[:8] if kind in "SAFx" else b"\x7f" * width
    table = b"\x01k" + kind.encode() + value + b"\x01n" + b"S\0\0\0\x0f" + NAME.encode() + OFFSET_KEY
    assert reader.read(with_table(table + OFFSET.pack(5))).offset == 5


def test_value_that_the_library_can_not_read_does_not_hide_the_offset(reader: StreamPropertiesReader) -> None:
    table = b"\x01kT" + b"\xff" * 8 + b"\x01nS\0\0\0\x0f" + NAME.encode() + OFFSET_KEY + OFFSET.pack(5)
    assert reader.read(with_table(table)).offset == 5


@pytest.mark.parametrize(
    "damaged",
    [
        header(None),
        header(None, {"z": NAME}),
        header(None, {NAME: "5"}),
        ContentHeader(body_size=0).marshal(),
        with_table(OFFSET_KEY + b"\0"),
        with_table(b"\x01nS\0\0\0\x0f" + NAME.encode() + OFFSET_KEY)[:-8],
        with_table(b"\x01n"),
    ],
)
def test_missing_offset_is_none(reader: StreamPropertiesReader, damaged: bytes) -> None:
    assert reader.read(damaged).offset is None


def test_offset_that_is_cut_short_is_none(reader: StreamPropertiesReader) -> None:
    assert reader.read(header()[:-4]).offset is None
