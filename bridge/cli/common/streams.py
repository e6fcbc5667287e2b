"""Standard output and standard error of the commands: characters that an encoding does not have are escaped."""

import codecs
import io
import json
import sys
from typing import TextIO

ESCAPE = "edk-bridge.escape"
"""The name of an error handler for encoders. It escapes as JSON does, so JSON stays the same JSON: `\\u00e9`."""


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


codecs.register_error(ESCAPE, _escape)


def escape_unencodable() -> None:
    """Makes both streams escape the characters that their encoding does not have, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ESCAPE)


def json_encoding(stream: TextIO) -> str:
    """The encoding for JSON: a stream that is not UTF-8 gets ASCII, which every reader of JSON takes for UTF-8."""
    return "utf-8" if codecs.lookup(stream.encoding).name == "utf-8" else "ascii"


def echo(line: str, *, err: bool = False) -> None:
    """Prints a line; does nothing if the stream is closed. `click.echo` would write UTF-8 to a stream that is ASCII."""
    stream = sys.stderr if err else sys.stdout
    if stream is not None:
        stream.write(f"{line}\n")
        stream.flush()


def echo_json(document: str) -> None:
    """Prints a JSON document on standard output."""
    if sys.stdout is not None and json_encoding(sys.stdout) == "ascii":
        document = document.encode("ascii", ESCAPE).decode("ascii")
    echo(document)
