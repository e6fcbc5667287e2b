"""The command in `bridge/server/README.md` for a connection that never opens."""

from pathlib import Path

import pytest

from tests.support.broker.session import needs
from tests.support.documentation import adapted, code_block, shell
from tests.support.running import port_of, started

NO_BROKER = "amqp://127.0.0.1:1/"


@needs("curl")
@pytest.mark.parametrize(
    ("old", "new", "status", "words"),
    [
        ("?type=killmail", "?type=killmail", b"HTTP/1.1 426 ", b"/updates sends updates in three ways"),
        ("?type=killmail", "?typ=killmail", b"HTTP/1.1 400 ", b"did you mean"),
        ("http://localhost:5173", "https://kills.example.org", b"HTTP/1.1 403 ", b"BRIDGE_ALLOWED_ORIGINS"),
    ],
    ids=["nothing is wrong", "filter", "origin"],
)
async def test_command_shows_what_a_browser_hides(
    old: str, new: str, status: bytes, words: bytes, tmp_path: Path
) -> None:
    async with started(NO_BROKER) as bridge:
        example = code_block("bridge/server/README.md", "Close codes")
        command = adapted(example, ("localhost:3000", f"127.0.0.1:{port_of(bridge)}"), (old, new))
        output = await shell(command.replace("curl -i", "curl -sS -i"), tmp_path)
    assert output.startswith(status)
    assert words in output
