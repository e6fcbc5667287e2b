"""Makes untrusted text printable, bounded and free of line breaks, for a header, a log line or an error."""

LIMIT = 400
"""The default limit of a text, in characters. The default limit is enough for a sentence and a value, but not for a
killmail with thousands of attackers."""


def printable(text: str, limit: int = LIMIT) -> str:
    """Escapes characters that are not printable, and removes the middle of a text of more than `limit` characters.

    The middle is removed because a text's start names the problem, and its end often has the hint.
    """
    text = _cut(text, limit)
    return text if text.isprintable() else _cut(escaped(text), limit)


def escaped(text: str, kept: str = "") -> str:
    """Escapes characters that are not printable, except those in `kept`."""
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode("ascii") for c in text)


def from_system(text: str) -> str:
    r"""Turns an argument, an environment variable or the name of a file into text that can be encoded as UTF-8.

    Python decodes text from the system with the locale's encoding, and represents undecodable bytes as surrogates. This
    function turns the surrogates back into bytes, and decodes the bytes as UTF-8. Bytes that are not valid UTF-8 become
    escapes such as `\xff`.
    """
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} ... {text[-half:]}"


def json_pointer(path: "list[str | int]") -> str:
    """Formats a path as a JSON Pointer (RFC 6901).

    The path `["a/b", 0]` becomes `/a~1b/0`. The empty path becomes `""`.
    """
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)


def unescape(step: str) -> str:
    """Decodes a step of a JSON Pointer into the name of a member."""
    return step.replace("~1", "/").replace("~0", "~")
