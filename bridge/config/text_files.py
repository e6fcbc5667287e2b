"""Reads text files that people write. An editor may save a text file in an encoding other than plain UTF-8."""

import codecs
from pathlib import Path

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_BYTE_ORDER_MARKS = (codecs.BOM_UTF8, *_UTF_16)


class NotPlainTextError(ValueError):
    """The file is not text in UTF-8. The error's text never quotes the file, because the file may contain a secret."""


def read_plain(file: Path) -> str:
    """The text of a file in UTF-8 without a byte order mark. Raises OSError or NotPlainTextError."""
    content = file.read_bytes()
    if content.startswith(_BYTE_ORDER_MARKS):
        raise NotPlainTextError("it begins with a byte order mark; save it as UTF-8 without one")
    return _decoded(content)


def read_marked(file: Path) -> str:
    """The text of a file in UTF-8. A byte order mark is removed. Raises OSError and NotPlainTextError."""
    content = file.read_bytes()
    if content.startswith(_UTF_16):
        raise NotPlainTextError("it is in UTF-16; save it as UTF-8")
    return _decoded(content.removeprefix(codecs.BOM_UTF8))


def _decoded(content: bytes) -> str:
    if b"\0" in content:
        # If ASCII text is encoded in UTF-16, every second byte is zero. Unless such text begins with a byte order mark,
        # it is also valid UTF-8.
        raise NotPlainTextError("it has zero bytes, like a file in UTF-16; save it as UTF-8")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise NotPlainTextError(f"it is not text in UTF-8 (byte {error.start}); save it as UTF-8") from error
