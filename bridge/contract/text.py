"""Makes untrusted text fit for a header, a log line or an error: printable, on one line, bounded."""

LIMIT = 400
"""Characters: a sentence and a value, not a killmail with its thousands of attackers."""


def printable(text: str, limit: int = LIMIT) -> str:
    """Escapes characters that are not printable, and cuts the middle out of a text of more than `limit` characters.

    The start of a text names the problem, and its end often gives the hint.
    """
    text = _cut(text, limit)
    return text if text.isprintable() else _cut(escaped(text), limit)


def escaped(text: str, kept: str = "") -> str:
    """Escapes what is not printable, but for the characters that are kept."""
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode("ascii") for c in text)


def from_system(text: str) -> str:
    r"""An argument, a variable or a file's name as text that UTF-8 can encode.

    Python decodes them by the locale, and represents other bytes as surrogates. These are read as UTF-8 here; bytes
    that are no UTF-8 are escaped, as in `\xff`.
    """
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} ... {text[-half:]}"


def json_pointer(path: "list[str | int]") -> str:
    """RFC 6901: `["a/b", 0]` is `/a~1b/0`; the whole document is the empty string."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)


def unescape(step: str) -> str:
    """A step of a JSON Pointer as the name that it stands for."""
    return step.replace("~1", "/").replace("~0", "~")
