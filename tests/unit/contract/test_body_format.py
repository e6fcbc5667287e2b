"""Tests that the bridge recognizes the format of a body that is not JSON.

If there is a Python library for a format, the test uses this library to make sample bodies.
"""

from __future__ import annotations

import base64
import bz2
import codecs
import gzip
import json
import lzma
import pickle
import struct
import time
import zlib

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.contract.body_format import PARSED_BYTES, NotJson, diagnose
from tests.support.killmail import ESI, EXAMPLE

TEXT = json.dumps(EXAMPLE)
BODY = TEXT.encode()
NAMED = json.dumps({**EXAMPLE, "note": "Zoé"}, ensure_ascii=False)
PLAIN = "publish plain JSON in UTF-8"
DUMPS = "looks like Python's repr(): publish what json.dumps() writes"


def diagnosed(body: bytes) -> NotJson:
    with pytest.raises(orjson.JSONDecodeError) as raised:
        orjson.loads(body)
    return diagnose(body, raised.value)


# Bytes


def compressed_with(window: int, data: bytes = BODY) -> bytes:
    squeeze = zlib.compressobj(wbits=window)
    return squeeze.compress(data) + squeeze.flush()


# These samples come from the specifications of formats without a Python library.
MSGPACK_KEY = b"\xaakillmailId\xce\x07\x5b\xcd\x15"
CBOR_KEY = b"\x6akillmailId\x1a\x07\x5b\xcd\x15"
BSON = struct.pack("<i", 21) + b"\x10killmailId\x00\x01\x00\x00\x00" + b"\x00"

BINARY: dict[str, list[bytes]] = {
    "gzip": [gzip.compress(BODY, mtime=0), compressed_with(31), gzip.compress(b"", mtime=0)],
    "zlib": [*(zlib.compress(BODY, level) for level in range(10)), compressed_with(9), compressed_with(15)],
    "deflate": [compressed_with(-15), compressed_with(-15, b"[1]")],
    "bzip2": [*(bz2.compress(BODY, level) for level in range(1, 10)), bz2.compress(b"")],
    "xz": [lzma.compress(BODY)],
    "lzma": [lzma.compress(BODY, format=lzma.FORMAT_ALONE)],
    "zstd": [b"\x28\xb5\x2f\xfd\x24\x01\x09\x00\x00\x7b\x99\xe9\xd8\x51"],
    "lz4": [b"\x04\x22\x4d\x18\x64\x40\xa7\x01\x00\x00\x80\x7b\x00", b"\x02\x21\x4c\x18\x02\x00\x00\x00\x10{"],
    "snappy": [b"\xff\x06\x00\x00sNaPpY\x01\x06\x00\x00"],
    "a ZIP archive": [b"PK\x03\x04\x14\x00"],
    "UTF-16": [TEXT.encode(each) for each in ("utf-16", "utf-16-le", "utf-16-be")]
    + [codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), f"\n{TEXT}".encode("utf-16-le"), NAMED.encode("utf-16-be")],
    "UTF-32": [TEXT.encode(each) for each in ("utf-32", "utf-32-le", "utf-32-be")]
    + [codecs.BOM_UTF32_BE + TEXT.encode("utf-32-be")],
    "a Python pickle": [
        pickle.dumps(value, protocol) for value in (EXAMPLE, ESI, [EXAMPLE], TEXT, BODY) for protocol in range(6)
    ],
    "a serialized Java object": [b"\xac\xed\x00\x05sr\x00\x11java.util.HashMap"],
    "an object of .NET's BinaryFormatter": [b"\x00\x01\x00\x00\x00\xff\xff\xff\xff\x01\x00\x00\x00"],
    "an Erlang term": [b"\x83\x74\x00\x00\x00\x01\x6d\x00\x00\x00\x01a\x61\x01"],
    "Smile": [b":)\n\x05\xfa"],
    "Avro": [b"Obj\x01\x04"],
    "BSON": [BSON, b"\x05\x00\x00\x00\x00"],
    "MessagePack": [
        *(head + MSGPACK_KEY for head in (b"\x81", b"\x8f", b"\xde\x00\x10", b"\xdf\x00\x01\x00\x00")),
        *(head + b"\x81" + MSGPACK_KEY for head in (b"\x92", b"\xdc\x00\x10", b"\xdd\x00\x01\x00\x00", b"\x91\x91")),
        b"\x81\xd9\x24" + b"k" * 36 + b"\x01",
    ],
    "CBOR": [
        *(head + CBOR_KEY for head in (b"\xa1", b"\xb7", b"\xb8\x18", b"\xb9\x01\x00", b"\xba\x00\x01\x00\x00")),
        *(b"\xbf" + CBOR_KEY, b"\xbb\x00\x00\x00\x00\x00\x00\x00\x01" + CBOR_KEY, b"\xd9\xd9\xf7\xa1" + CBOR_KEY),
        *(head + b"\xbf" + CBOR_KEY for head in (b"\x82", b"\x98\x18", b"\x99\x01\x00", b"\x9f")),
        b"\xa1\x78\x24" + b"k" * 36 + b"\x01",
    ],
    "MessagePack or CBOR": [b"\x81\xaa" + CBOR_KEY],
}


@pytest.mark.parametrize(
    ("name", "body"),
    [(name, body) for name, bodies in BINARY.items() for body in bodies],
    ids=lambda value: repr(value)[:30],
)
def test_body_of_another_format_is_recognized(name: str, body: bytes) -> None:
    assert str(diagnosed(body)) == f"the body looks like {name}: {PLAIN}"


def test_truncated_compressed_body_is_recognized() -> None:
    big = json.dumps({**ESI, "attackers": ESI["attackers"] * 5000}).encode()
    for name, body in (
        ("zlib", zlib.compress(big)),
        ("deflate", compressed_with(-15, big)),
        ("gzip", gzip.compress(big, mtime=0)),
    ):
        assert diagnosed(body[:3000]).text == f"looks like {name}: {PLAIN}"


@pytest.mark.parametrize(
    ("body", "at"),
    [
        *(
            (b'"a\xff"', 2),
            (b"\xff", 0),
            (b"\x80", 0),
            (b"\x81", 0),
            (b"\x81\xa0", 0),
            (b"\x81\xaakill", 0),
            (b"\x81\xc0", 0),
        ),
        *((b"\xa1", 0), (b"\xde\x00\x10", 0), (b"\x91\x91", 0), (b"\xdc", 0), (b"\x81\xa2\x01\x02", 0), (b"x\x9c", 1)),
        *((b"\x80\x04", 0), (b"\x80\x04x", 0), (b"\x80\x09.", 0), (bytes(range(128, 256)), 0), (b"\x08\x96\x01", 1)),
        # These bytes are invalid UTF-8, not letters of another encoding.
        *((b'{"a":"\xc0\xaf"}', 6), (b'"\xed\xa0\x80"', 1), (b'"\xf4\x90\x80\x80"', 1), (b'{"\xfe":1}', 2)),
        *((b'{"a":"\xe9', 6), (b'killmail "\xe9 "', 10), (NAMED.encode() + b'{"\xe9":1}', len(NAMED.encode()) + 2)),
        (b"x" * PARSED_BYTES + b"\xe9 ", PARSED_BYTES),
        (b"PK\x03\xff", 3),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_error_for_an_unknown_format_names_the_first_byte_that_is_not_utf_8(body: bytes, at: int) -> None:
    assert str(diagnosed(body)) == f"the body is not UTF-8: byte {at} can't be decoded"


@pytest.mark.parametrize("codec", ["latin-1", "cp1252", "iso8859-15"])
@pytest.mark.parametrize(
    "text", [NAMED, f"[{NAMED}]", '"é"', '{"é": 1}', '{"a": "Ærø, é', '{"a": "x"'], ids=lambda text: text[-9:]
)
def test_json_in_latin_1_or_windows_1252_is_recognized(text: str, codec: str) -> None:
    body = text.encode(codec)
    at = next((index for index, byte in enumerate(body) if byte > 0x7F), None)
    found = diagnosed(body)
    if at is None or text.endswith(("é", '"x"')):
        assert "looks like" not in found.text
        return
    assert found.text == "looks like JSON in Latin-1 or Windows-1252: publish it in UTF-8"
    assert str(found).endswith(f" (byte {at} is not UTF-8)")
    assert (found.line, found.column) == (1, text.index(body[at : at + 1].decode(codec)) + 1)


def test_quotation_marks_of_windows_are_recognized() -> None:
    assert "Windows-1252" in diagnosed('{"a": "it\u2019s"}'.encode("cp1252")).text


@pytest.mark.parametrize(("opening", "is_recognised"), [("{", True), (" [", True), ("killmail ", False)])
def test_long_json_in_another_encoding_is_recognized_by_its_start(opening: str, *, is_recognised: bool) -> None:
    body = (opening + '"é "' + " " * PARSED_BYTES).encode("latin-1")
    assert ("Latin-1" in diagnosed(body).text) is is_recognised


def test_place_of_invalid_utf_8_is_in_lines_and_characters() -> None:
    found = diagnosed('{\n "a": "ä",\n "ö'.encode() + b'\xff": 1}')
    assert (found.text, found.line, found.column) == ("not UTF-8", 3, 4)


# Text


TEXTS: dict[str, list[bytes]] = {
    "begins with a UTF-8 byte order mark: remove it": [codecs.BOM_UTF8 + BODY, codecs.BOM_UTF8 + b"x"],
    "begins with a record separator (0x1E): remove it, and publish each document as a separate event": [
        b"\x1e" + BODY + b"\n"
    ],
    "looks like base64 of JSON: publish plain JSON": [
        *(
            encode(text.encode())
            for encode in (base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes)
            for text in (TEXT, f"[{TEXT}]", json.dumps(EXAMPLE, indent=1), '{"ä": 1}', '{"~~~~???": 1}')
        ),
    ],
    "looks like base64 of gzip: publish plain JSON": [base64.b64encode(gzip.compress(BODY, mtime=0))],
    "looks like JSON in hexadecimal: publish plain JSON in UTF-8": [BODY.hex().encode(), BODY.hex().upper().encode()],
    "looks like a JSON Web Token: publish the JSON that it contains": [b"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln"],
    "looks like PHP's serialize(): publish what json_encode() writes": [
        *(
            b'a:1:{s:10:"killmailId";i:1;}',
            b'O:8:"Killmail":1:{s:2:"id";i:1;}',
            b's:2:"{}";',
            b"i:1;",
            b"d:0.5;",
            b"b:1;",
            b"N;",
        ),
    ],
    "looks like PHP's print_r() or var_export(): publish what json_encode() writes": [
        b"Array\n(\n)",
        b"array (\n  'a' => 1,\n)",
    ],
    DUMPS: [
        *(
            repr(value).encode()
            for value in (EXAMPLE, [EXAMPLE], (EXAMPLE,), {"a": [None]}, BODY, TEXT.encode() + b"'")
        ),
        *(b'{"a": None}', b'{"a": True, "b": 1}', b'{"a": [False]}', b"{'t': datetime.datetime(2024, 1, 1)}"),
        *(
            b'{"a": datetime.date(2024, 1, 1)}',
            b'{"a": Decimal(1)}',
            b"OrderedDict([('a', 1)])",
            b"<k.Kill object at 0x7f>",
        ),
    ],
    "looks like XML: publish JSON": [b'<?xml version="1.0"?><a/>', b"<killmail/>", b" \n<!-- x --><a></a>"],
    "looks like HTML: publish JSON": [b"<!DOCTYPE html><title>502", b"<html>"],
    "looks like JavaScript's toString(): publish what JSON.stringify() writes": [b"[object Object]"],
    "looks like Ruby's inspect: publish what to_json writes": [b"{:a=>1}", b'{"killmailId"=>1}', b'[{"a" => 1}]'],
    "looks like Java's toString(): publish JSON": [b"{killmailId=1, systemId=2}", b"[{a=1}]"],
    "looks like a form (x-www-form-urlencoded): publish JSON": [
        *(b"killmailId=1&systemId=2", b"payload=%7B%22a%22%3A1%7D", b'data={"a": 1}', b"a%5Bb%5D=1", b"a[b]=x"),
    ],
    "looks like percent-encoded JSON: publish plain JSON": [b"%7B%22a%22%3A1%7D", b"%5b1%5d"],
    "looks like JSONP: publish the JSON between the parentheses": [b'callback({"a": 1});', b"a.b( {})"],
    "looks like a Server-Sent Event: publish the value of its data field": [
        b"data: {}\n\n",
        b"event: kill\ndata: {}\n\n",
    ],
    "looks like YAML: publish JSON": [b"---\nkillmailId: 1\n", b"killmailId: 1\nsystemId: 2\n"],
    "is JSON in quotes: remove the quotes": [b"'{\"a\": 1}'", b"`[1]`"],
    "contains several JSON documents: publish each as a separate event": [
        *(BODY + between + BODY for between in (b"", b"\n", b"\r\n", b",", b",\n", b" ", b";", b"\n\x1e")),
        *(b"[1][2]", b'"a"\n"b"'),
    ],
    "ends with a zero byte: remove it": [BODY + b"\x00", BODY + b"\x00\x00\x00"],
}


@pytest.mark.parametrize(
    ("words", "body"),
    [(words, body) for words, bodies in TEXTS.items() for body in bodies],
    ids=lambda value: repr(value)[:40],
)
def test_text_of_another_format_is_recognized(words: str, body: bytes) -> None:
    assert str(diagnosed(body)) == f"the body {words}"


@pytest.mark.parametrize(
    ("body", "words", "column"),
    [
        (b'{"a": NaN}', "JSON has no NaN or Infinity; publish null", 7),
        (b"NaN", "JSON has no NaN or Infinity; publish null", 1),
        (b'{"a": -Infinity}', "JSON has no NaN or Infinity; publish null", 8),
        (b'{"a": undefined}', "JSON has no undefined; publish null", 7),
        (b'{"a": 1, // x\n}', "JSON has no comments; remove them", 10),
        (b"/* x */ {}", "JSON has no comments; remove them", 1),
        (b"{killmailId: 1}", "put the member's name in double quotes", 2),
        (b'{"a": 1', "unexpected end of data", 8),
        (b"[1,]", "trailing comma is not allowed", 3),
        (b"killmail", "unexpected character, expected a JSON value", 1),
        (b"0123456789abcdef", "number with leading zero is not allowed", 1),
        (b"2024-10-22", "unexpected content after document", 5),
        (b"1 2", "unexpected content after document", 3),
        (b'{"a":1}x', "unexpected content after document", 8),
        (b'"\\ud800"', "no low surrogate in string", 2),
        (b"[" * 2000, "depth limit exceeded", 1026),
        ('{"ä": x}'.encode(), "unexpected character, expected a JSON value", 7),
        (b"YWFhYWFhYWFhYWFh", "unexpected character, expected a JSON value", 1),
    ],
    ids=lambda value: str(value)[:30],
)
def test_error_for_broken_json_names_the_place(body: bytes, words: str, column: int) -> None:
    found = diagnosed(body)
    assert found == NotJson(words, "is not JSON: ", f": line 1 column {column} (char {column - 1})", 1, column)
    assert str(found) == f"the body is not JSON: {words}: line 1 column {column} (char {column - 1})"


@pytest.mark.parametrize(("body", "words"), [(b"", "is empty"), (b" \r\n\t", "has only white space")])
def test_empty_body_is_recognized(body: bytes, words: str) -> None:
    assert str(diagnosed(body)) == f"the body {words}"


# Any body


def examine(body: bytes) -> None:
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError as error:
        found = diagnose(body, error)
        assert str(found).isprintable()
        assert len(str(found)) < 200
        assert found.line >= 1
        assert found.column >= 1


@given(body=st.binary(max_size=60) | st.text(max_size=40).map(str.encode))
def test_any_body_is_diagnosed_in_one_printable_sentence(body: bytes) -> None:
    examine(body)


@given(head=st.sampled_from([one[:8] for bodies in BINARY.values() for one in bodies]), rest=st.binary(max_size=60))
def test_any_bytes_after_the_first_bytes_of_a_format_are_diagnosed(head: bytes, rest: bytes) -> None:
    examine(head + rest)


LARGE = 4 * 2**20
SLOW_S = 1.0
"""The maximum processor time (s) on the slowest machine. On a normal machine, the format is recognized in 0.01 s of
processor time."""


UNITS = (
    *(b"[", b'{"a":', b" ", b"a", b"A", b"<", b"x=", b"\x1f\x8b", b"x\x9c", b"\x80\x04", b"\x91", b"\x9f", b"\xc3\xa9"),
    *(b"{}\n", b'"', b"\\", b"\x00", b"{\x00", b"(", b"7b22", b"eyJh", b"a:1:{", b"{\n", b'{"\xe9":1}'),
)


@pytest.mark.parametrize("unit", UNITS, ids=repr)
def test_large_body_is_diagnosed_in_time(unit: bytes) -> None:
    body = unit * (LARGE // len(unit))
    with pytest.raises(orjson.JSONDecodeError) as raised:
        orjson.loads(body)
    began = time.process_time()
    diagnose(body, raised.value)
    assert time.process_time() - began < SLOW_S
