"""Text from a file that a person wrote, perhaps with an editor that does not write plain UTF-8."""

import codecs
from pathlib import Path

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_MARKS = (codecs.BOM_UTF8, *_UTF_16)


class NotPlainTextError(ValueError):
    """The file is no text in UTF-8. Says why, and never quotes the file: it may hold a secret."""


def read_plain(file: Path) -> str:
    """The text of a file in UTF-8 without a byte order mark. Raises OSError and NotPlainTextError."""
    content = file.read_bytes()
    if content.startswith(_MARKS):
        raise NotPlainTextError("it begins with a byte order mark; save it as UTF-8 without one")
    return _decoded(content)


def read_marked(file: Path) -> str:
    """The same, but without the byte order mark of UTF-8 if the file begins with one."""
    content = file.read_bytes()
    if content.startswith(_UTF_16):
        raise NotPlainTextError("it is in UTF-16; save it as UTF-8")
    return _decoded(content.removeprefix(codecs.BOM_UTF8))


def _decoded(content: bytes) -> str:
    if b"\0" in content:
        # UTF-16 without a byte order mark: every second byte of ASCII text is zero, and that is valid UTF-8.
        raise NotPlainTextError("it holds zero bytes, as a file in UTF-16 does; save it as UTF-8")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise NotPlainTextError(f"it is no text in UTF-8 (byte {error.start})") from error
