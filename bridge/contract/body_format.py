"""Recognizes the format of a body that is not JSON, so that the publisher of this body learns what to change.

The module examines the first bytes of a body, and the place where the JSON parser found an error. Only the check for
UTF-8 reads the whole body, whatever its length. This module must not depend on the definition of an event.
"""

import binascii
import codecs
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import orjson

HEAD_BYTES = 1024
"""The number of bytes that are examined at the start of a body. A format is identified by its first bytes."""

PARSED_BYTES = 64 * 1024
"""The maximum size of a body that is parsed to check whether it is JSON in another encoding."""

PLAIN = "publish plain JSON in UTF-8"


@dataclass(frozen=True, slots=True)
class NotJson:
    """The problem of a body that is not JSON, and its place."""

    text: str
    """The problem, without the place, in printable characters."""
    lead: str = ""
    """The words between `the body` and `text` in a sentence about the problem."""
    place: str = ""
    """The place of the problem, as words that follow `text`, or "" if the whole body is the problem."""
    line: int = 1
    column: int = 1
    """`line` and `column` count from 1. The column is counted in characters."""

    def __str__(self) -> str:
        return f"the body {self.lead}{self.text}{self.place}"


def diagnose(body: bytes, error: orjson.JSONDecodeError) -> NotJson:
    """Returns the likely format of a body that orjson does not accept, or the parser's error for an unknown format."""
    if not body.strip():
        return NotJson("has only white space" if body else "is empty")
    if found := _of_binary(body):
        return NotJson(found)
    try:
        body.decode()
    except UnicodeDecodeError as broken:
        return _undecodable(body, broken)
    # The parser's error contains the decoded body, and a position in characters.
    text, at = error.doc, error.pos
    place = f": line {error.lineno} column {error.colno} (char {at})"
    if found := _of_text(text):
        return NotJson(found)
    if found := _of_place(text, at, error.msg):
        return NotJson(found, line=error.lineno, column=error.colno)
    return NotJson(_at(text, at, error.msg), "is not JSON: ", place, error.lineno, error.colno)


def is_json(body: bytes) -> bool:
    """Whether a body is JSON.

    If a body is larger than `PARSED_BYTES`, the only condition is that the body begins like an object or an array.
    """
    if len(body) > PARSED_BYTES:
        return body[:HEAD_BYTES].lstrip()[:1] in (b"{", b"[")
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return True


def is_binary(body: bytes) -> bool:
    """Whether a body that is not JSON begins like a binary format. In binary formats, line ends have no meaning."""
    head = body[:HEAD_BYTES]
    if _of_binary(head) or _BSON.match(head):
        return True
    if head.lstrip()[:1] in (b"{", b"[", b'"'):
        return False
    try:
        # The head of the body may end in the middle of a character, so the decoder is incremental.
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return True
    return _CONTROL.match(head) is not None


_BSON = re.compile(rb"..\x00\x00[\x01-\x13\x7f\xff][^\x00]", re.DOTALL)
"""Matches the start of a BSON document of less than 64 KiB: its length, the type of the first member, and the start of
this member's name."""
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c\x1d\x1f]")
"""Matches control characters except white space, ESC (which begins terminal sequences) and the record separator."""


def _looks_like(name: str, advice: str = PLAIN) -> str:
    return f"looks like {name}: {advice}"


# Bytes

_MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x5d\x00\x00", "lzma"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"\xff\x06\x00\x00sNaPpY", "snappy"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\xac\xed\x00\x05", "a serialized Java object"),
    (b"\x00\x01\x00\x00\x00\xff\xff\xff\xff", "an object of .NET's BinaryFormatter"),
    (b":)\n", "Smile"),
    (b"Obj\x01", "Avro"),
    (b"\xd9\xd9\xf7", "CBOR"),
    (b"\x83\x74\x00\x00", "an Erlang term"),
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
"""The first bytes of each format.

If the bytes of one entry are a prefix of the bytes of another entry, the longer entry comes first in this table.
"""

_BZIP2 = re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")

_OPENING = frozenset('{["')
"""The characters with which an event usually begins."""


def _of_binary(body: bytes) -> str:
    head = body[:HEAD_BYTES]
    for magic, name in _MAGIC:
        if head.startswith(magic) and (name != "bzip2" or _BZIP2.match(head)):
            return _looks_like(name)
    for matches, name in _BINARY:
        if matches(body, head):
            return _looks_like(name)
    return ""


def _is_zlib(body: bytes, head: bytes) -> bool:
    # RFC 1950, section 2.2, requires that the first two bytes specify the method deflate and a window of up to 32 KiB,
    # and that they include a checksum.
    if len(body) < 2 or head[0] & 0x8F != 0x08 or int.from_bytes(head[:2]) % 31:
        return False
    return bool(_inflated(head, zlib.MAX_WBITS))


def _is_deflate(_: bytes, head: bytes) -> bool:
    return _inflated(head, -zlib.MAX_WBITS).lstrip()[:1] in (b"{", b"[")


def _inflated(head: bytes, window: int) -> bytes:
    try:
        return zlib.decompressobj(window).decompress(head, HEAD_BYTES)
    except zlib.error:
        return b""


def _is_pickle(body: bytes, head: bytes) -> bool:
    # In pickle protocols 2 to 5, the data begins with the opcode PROTO and the protocol's number. Pickle protocols 0
    # and 1 have no header. In every pickle protocol, the data ends with the opcode STOP.
    is_binary = len(body) > 2 and head[0] == 0x80 and 2 <= head[1] <= 5
    return body.endswith(b".") and (is_binary or _PICKLE.match(head) is not None)


_PICKLE = re.compile(rb"\(?[dl]p?\d+\n|[\]}]q\x00|[VS][^\n]*\np\d+\n|\(?c[\w.]+\n\w+\n|X.{3}\x00")


def _is_bson(body: bytes, head: bytes) -> bool:
    return len(body) > 4 and struct.unpack("<i", head[:4])[0] == len(body) and body.endswith(b"\x00")


def _is_utf(codec: str) -> Callable[[bytes, bytes], bool]:
    """Returns a test for JSON in UTF-16 or UTF-32 without a byte order mark."""
    width = len("x".encode(codec))

    def matches(_: bytes, head: bytes) -> bool:
        try:
            text = head[: 2 * width].decode(codec)
        except UnicodeDecodeError:
            return False
        return len(text) == 2 and text.isascii() and "\x00" not in text and text[0] in _FIRST

    return matches


_FIRST = frozenset('{["-0123456789tfn \t\r\n')
"""The characters with which JSON can begin."""

_SelfDescribed = tuple[range, dict[int, int], range, dict[int, int], range, dict[int, int]]
"""The first bytes of maps, arrays and strings.

The tuple has two parts for maps, two for arrays, and two for strings. The first of the two parts contains the possible
first bytes of short values. The first byte of a short value includes the value's length. The second part maps each
possible first byte of a long value to the size of the length field that follows the byte.
"""

_MSGPACK: _SelfDescribed = (
    range(0x80, 0x90),
    {0xDE: 2, 0xDF: 4},
    range(0x90, 0xA0),
    {0xDC: 2, 0xDD: 4},
    range(0xA0, 0xC0),
    {0xD9: 1},
)
_CBOR: _SelfDescribed = (
    range(0xA0, 0xB8),
    {0xB8: 1, 0xB9: 2, 0xBA: 4, 0xBB: 8, 0xBF: 0},
    range(0x80, 0x98),
    {0x98: 1, 0x99: 2, 0x9A: 4, 0x9B: 8, 0x9F: 0},
    range(0x60, 0x78),
    {0x78: 1},
)


def _has_key(head: bytes, form: _SelfDescribed) -> bool:
    """Whether the head of a body begins with a map whose first key is text, or with an array of such maps."""
    maps, long_maps, arrays, long_arrays, strings, long_strings = form
    at = 0
    while at < len(head) and (head[at] in arrays or head[at] in long_arrays):
        at += 1 + long_arrays.get(head[at], 0)
    if at >= len(head) or (head[at] not in maps and head[at] not in long_maps):
        return False
    at += 1 + long_maps.get(head[at], 0)
    if at >= len(head):
        return False
    if head[at] in strings:
        length, at = head[at] - strings.start, at + 1
    elif head[at] in long_strings:
        length, at = int.from_bytes(head[at + 1 : at + 2]), at + 2
    else:
        return False
    key = head[at : at + length]
    return 0 < len(key) == length and key.isascii() and key.decode().isprintable()


_BINARY: tuple[tuple[Callable[[bytes, bytes], bool], str], ...] = (
    (_is_zlib, "zlib"),
    (_is_pickle, "a Python pickle"),
    (_is_bson, "BSON"),
    (lambda _, head: _has_key(head, _MSGPACK) and _has_key(head, _CBOR), "MessagePack or CBOR"),
    (lambda _, head: _has_key(head, _MSGPACK), "MessagePack"),
    (lambda _, head: _has_key(head, _CBOR), "CBOR"),
    (_is_utf("utf-32-le"), "UTF-32"),
    (_is_utf("utf-32-be"), "UTF-32"),
    (_is_utf("utf-16-le"), "UTF-16"),
    (_is_utf("utf-16-be"), "UTF-16"),
)


def _undecodable(body: bytes, broken: UnicodeDecodeError) -> NotJson:
    if _is_deflate(body, body[:HEAD_BYTES]):
        return NotJson(_looks_like("deflate"))
    at = broken.start
    before = body[:at].decode()
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    if _is_latin_1(body, at):
        words = _looks_like("JSON in Latin-1 or Windows-1252", "publish it in UTF-8")
        return NotJson(words, "", f" (byte {at} is not UTF-8)", line, column)
    return NotJson("not UTF-8", "is ", f": byte {at} can't be decoded", line, column)


def _is_latin_1(body: bytes, at: int) -> bool:
    byte, following = body[at], body[at + 1 : at + 2]
    # If two bytes look like a character in UTF-8, the text is more likely broken UTF-8 than Latin-1. Latin-1 text
    # hardly ever has 0xFE or 0xFF.
    if byte >= 0xFE or (byte >= 0xC0 and following and following[0] & 0xC0 == 0x80):
        return False
    if len(body) > PARSED_BYTES:
        return chr(body.lstrip()[0]) in _OPENING
    try:
        orjson.loads(body.decode("latin-1"))
    except orjson.JSONDecodeError:
        return False
    return True


# Text

_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{8,}")
_BASE64_SAMPLE = 64
"""The number of base64 characters that are decoded as a sample. This number must be a multiple of 4."""

_DUMPS = "publish what json.dumps() writes"
_STRINGIFY = "publish what JSON.stringify() writes"

_TEXTS = (
    (re.compile(r"\ufeff"), "begins with a UTF-8 byte order mark: remove it"),
    (
        re.compile(r"\x1e"),
        "begins with a record separator (0x1E): remove it, and publish each document as a separate event",
    ),
    (re.compile(r"<[\w.]+ object at 0x|b['\"]|(?:OrderedDict|defaultdict)\("), _looks_like("Python's repr()", _DUMPS)),
    (re.compile(r"<(?:!doctype )?html", re.IGNORECASE), _looks_like("HTML", "publish JSON")),
    (re.compile(r"<[?!A-Za-z]"), _looks_like("XML", "publish JSON")),
    (
        re.compile(r'[aOCs]:\d+:[{"]|[id]:-?[\d.E+-]+;|b:[01];|N;'),
        _looks_like("PHP's serialize()", "publish what json_encode() writes"),
    ),
    (re.compile(r"[Aa]rray\s*\("), _looks_like("PHP's print_r() or var_export()", "publish what json_encode() writes")),
    (re.compile(r"\[object \w+\]"), _looks_like("JavaScript's toString()", _STRINGIFY)),
    (re.compile(r"['`]\s*[\[{]"), "is JSON in quotes: remove the quotes"),
    (re.compile(r"[\[\s]*\{\s*(?::\w+|\"\w*\")\s*=>"), _looks_like("Ruby's inspect", "publish what to_json writes")),
    (re.compile(r"[\[\s]*\{\w+="), _looks_like("Java's toString()", "publish JSON")),
    (re.compile(r"eyJ[\w-]+\.eyJ"), _looks_like("a JSON Web Token", "publish the JSON that it contains")),
    (re.compile(r"%(?:7B|5B|22)", re.IGNORECASE), _looks_like("percent-encoded JSON", "publish plain JSON")),
    (re.compile(r"(?:7b|5b)(?:0a|0d|20|22|7b)[0-9a-f]*", re.IGNORECASE), _looks_like("JSON in hexadecimal")),
    (
        re.compile(r"(?:data|event|id|retry):"),
        _looks_like("a Server-Sent Event", "publish the value of its data field"),
    ),
    (re.compile(r"[\w.$]+\(\s*\{"), _looks_like("JSONP", "publish the JSON between the parentheses")),
    (re.compile(r"[\w.+%\[\]-]+=[^=\s]"), _looks_like("a form (x-www-form-urlencoded)", "publish JSON")),
    (re.compile(r"---\s|[A-Za-z_][\w-]*:\s"), _looks_like("YAML", "publish JSON")),
)
"""Patterns for the start of a text.

White space before the start is ignored. Each pattern is paired with a text that names the format and says what to
publish instead.
"""


def _of_text(text: str) -> str:
    head = text[:HEAD_BYTES].lstrip(" \t\r\n")
    if words := next((words for pattern, words in _TEXTS if pattern.match(head)), ""):
        return words
    name = of_base64(head)
    return _looks_like(f"base64 of {name}", "publish plain JSON") if name else ""


def of_base64(head: str) -> str:
    """Returns the format of base64-encoded content: `JSON`, the name of a binary format, or "" for any other text."""
    found = _BASE64.match(head.replace("\r", "").replace("\n", ""))
    if found is None:
        return ""
    sample = found[0][:_BASE64_SAMPLE].translate({ord("-"): "+", ord("_"): "/"})
    inner = binascii.a2b_base64(sample[: len(sample) // 4 * 4])
    if inner.lstrip()[:1] in (b"{", b"[") and inner.lstrip()[1:2] in b'"{[ \t\r\n':
        return "JSON"
    return next((name for magic, name in _MAGIC if inner.startswith(magic) and len(magic) > 1), "")


# A place

_PYTHON = re.compile(r"None\b|True\b|False\b|'|u'|b'|\(|datetime\.|Decimal\(|UUID\(")
_NUMBERS = re.compile(r"-?(?:NaN|Infinity|nan|inf)\b")
_UNQUOTED = re.compile(r"[A-Za-z_$0-9]")


def _of_place(text: str, at: int, message: str) -> str:
    """Returns the likely format of the text, judged by where the parser failed, or "" if the format is unknown."""
    rest = text[at : at + HEAD_BYTES].lstrip()
    is_complete = message == "unexpected content after document"
    if is_complete and rest.lstrip(" \r\n,;\x1e")[:1] in _OPENING and text.lstrip()[:1] in _OPENING:
        return "contains several JSON documents: publish each as a separate event"
    if is_complete and not rest.strip("\x00"):
        return "ends with a zero byte: remove it"
    if not is_complete and text.lstrip()[:1] in ("{", "[", "(") and _PYTHON.match(rest):
        return _looks_like("Python's repr()", _DUMPS)
    return ""


def _at(text: str, at: int, message: str) -> str:
    """If the cause of the error is known, returns a message that is better than that of the parser."""
    rest = text[at : at + 16]
    if _NUMBERS.match(rest):
        return "JSON has no NaN or Infinity; publish null"
    if rest.startswith("undefined"):
        return "JSON has no undefined; publish null"
    if rest.startswith(("//", "/*", "#")):
        return "JSON has no comments; remove them"
    if message.endswith("expected a string key") and _UNQUOTED.match(rest):
        return "put the member's name in double quotes"
    return message
