"""Output in an encoding that does not have a character."""

from __future__ import annotations

import io
import sys

import pytest

from bridge.cli.common.streams import ESCAPE, echo, echo_json, escape_unencodable, json_encoding


def replaced(monkeypatch: pytest.MonkeyPatch, name: str, encoding: str) -> io.BytesIO:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, name, io.TextIOWrapper(raw, encoding, newline="\n"))
    return raw


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("ascii", b"\\u00e4 \\u2022 \\ud83d\\ude80 \\udcff\n"),
        ("latin-1", b"\xe4 \\u2022 \\ud83d\\ude80 \\udcff\n"),
        ("utf-8", "\xe4 \u2022 \U0001f680 ".encode() + b"\\udcff\n"),
    ],
)
def test_both_streams_escape_what_their_encoding_does_not_have(
    monkeypatch: pytest.MonkeyPatch, encoding: str, written: bytes
) -> None:
    out, err = (replaced(monkeypatch, name, encoding) for name in ("stdout", "stderr"))
    escape_unencodable()
    for to_stderr in (False, True):
        echo("\xe4 \u2022 \U0001f680 \udcff", err=to_stderr)
    assert (out.getvalue(), err.getvalue()) == (written, written)


@pytest.mark.parametrize(
    ("encoding", "of_json", "written"),
    [
        ("utf-8", "utf-8", '{"a": "\xe4\u2022"}\n'.encode()),
        ("UTF8", "utf-8", '{"a": "\xe4\u2022"}\n'.encode()),
        ("latin-1", "ascii", b'{"a": "\\u00e4\\u2022"}\n'),
        ("ascii", "ascii", b'{"a": "\\u00e4\\u2022"}\n'),
        ("utf-16", "ascii", '{"a": "\\u00e4\\u2022"}\n'.encode("utf-16")),
    ],
)
def test_json_is_utf_8_or_ascii(monkeypatch: pytest.MonkeyPatch, encoding: str, of_json: str, written: bytes) -> None:
    raw = replaced(monkeypatch, "stdout", encoding)
    assert json_encoding(sys.stdout) == of_json
    echo_json('{"a": "\xe4\u2022"}')
    assert raw.getvalue() == written


def test_stream_that_is_closed_or_no_text_stream_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", err := io.StringIO())
    escape_unencodable()
    echo("line")
    echo_json("{}")
    echo("line", err=True)
    assert err.getvalue() == "line\n"


def test_error_of_decoding_is_none_of_the_handlers() -> None:
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("ascii", ESCAPE)
