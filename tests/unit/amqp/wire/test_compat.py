"""Properties that pamqp alone refuses: read leniently, so that what follows them is read at all."""

from __future__ import annotations

import pytest
from pamqp import decode, encode

from bridge.amqp.wire import compat

compat.install()


@pytest.mark.parametrize(
    ("kind", "data", "value"),
    [
        pytest.param("shortstr", b"\x03abc", "abc", id="string"),
        pytest.param("shortstr", b"\x02\xffa", "?a", id="string-that-is-not-utf8"),
        pytest.param("shortstr", b"\x04\xef\xbf\xbda", "\ufffda", id="string-with-a-replacement-character"),
        pytest.param("shortstr", b"\xff" + b"\xff" * 255, "?" * 255, id="string-that-must-not-grow"),
        pytest.param("timestamp", (10**18).to_bytes(8, "big"), None, id="time-beyond-the-calendar"),
        pytest.param("table", encode.field_table({"a": 1}), {"a": 1}, id="table"),
        pytest.param("table", b"\x00\x00\x00\x05\x02\xff\xfet\x01", None, id="table-with-an-unreadable-name"),
    ],
)
def test_value_is_read_and_what_follows_begins_behind_it(kind: str, data: bytes, value: object) -> None:
    assert decode.by_type(data + b"what follows", kind) == (len(data), value)


def test_installing_twice_changes_nothing() -> None:
    before = dict(decode.METHODS)
    compat.install()
    assert before == decode.METHODS
