"""Tests of files in plain UTF-8, and of files that an editor wrote in another encoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bridge.config.text_files import NotPlainTextError, read_marked, read_plain

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


def test_plain_text_is_read_unchanged(file: Path) -> None:
    file.write_bytes("Łódź\r\n".encode())
    assert read_plain(file) == read_marked(file) == "Łódź\r\n"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le-bom", "utf-16-be-bom", "utf-32"])
def test_byte_order_mark_is_named(file: Path, encoding: str) -> None:
    text = "secret"
    if encoding.endswith("-bom"):
        encoding, text = encoding.removesuffix("-bom"), f"\ufeff{text}"
    file.write_bytes(text.encode(encoding))
    with pytest.raises(NotPlainTextError, match=r"^it begins with a byte order mark; save it as UTF-8 without one$"):
        read_plain(file)


def test_allowed_byte_order_mark_of_utf8_is_removed(file: Path) -> None:
    file.write_bytes("text".encode("utf-8-sig"))
    assert read_marked(file) == "text"


@pytest.mark.parametrize(
    ("encoding", "reason"), [("utf-16", "it is in UTF-16"), ("utf-16-le", "like a file in UTF-16")]
)
def test_utf16_is_named(file: Path, encoding: str, reason: str) -> None:
    file.write_bytes("text".encode(encoding))
    with pytest.raises(NotPlainTextError, match=f"{reason}.*; save it as UTF-8"):
        read_marked(file)


def test_utf16_without_a_byte_order_mark_is_named_in_plain_text_too(file: Path) -> None:
    file.write_bytes("text".encode("utf-16-be"))
    with pytest.raises(NotPlainTextError, match="like a file in UTF-16"):
        read_plain(file)


@pytest.mark.parametrize("read", [read_plain, read_marked])
def test_other_encoding_is_an_error_that_quotes_nothing(file: Path, read: type) -> None:
    file.write_bytes(b"secret\xff")
    with pytest.raises(NotPlainTextError) as raised:
        read(file)
    assert str(raised.value) == "it is not text in UTF-8 (byte 6); save it as UTF-8"
