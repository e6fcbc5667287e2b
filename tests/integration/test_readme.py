"""The publisher's example of `schemas/publishers/README.md` works."""

import asyncio
import os
import re
import sys
from pathlib import Path

import orjson
import pytest
from aio_pika.abc import AbstractConnection

from tests.support.broker.find import Broker
from tests.support.publishing import bind, take
from tests.support.waiting import LIMIT_S

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


async def run(command: str, folder: Path, **variables: str) -> bytes:
    """A line of the README, as in a shell that has .venv/bin in its path; what it prints."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("BRIDGE_")}
    environment |= {"PATH": f"{BIN}:{environment['PATH']}", **variables}
    process = await asyncio.create_subprocess_shell(
        command, cwd=folder, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(LIMIT_S):
        output, _ = await process.communicate()
    assert process.returncode == 0, output
    return output


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("587", "587", b"somebody has it: True\n"),
        (
            '"systemId": 30000142',
            '"systemId": "Jita"',
            b'schema-violation: /systemId: "Jita" is not of type "integer"\n',
        ),
    ],
)
async def test_publishers_example_works(
    broker: Broker,
    amqp: AbstractConnection,
    exchange: str,
    queue: str,
    tmp_path: Path,
    old: str,
    new: str,
    says: bytes,
) -> None:
    found = re.search(
        r"```python\n(import asyncio\nfrom bridge .*?)```",
        (ROOT / "schemas/publishers/README.md").read_text(),
        re.DOTALL,
    )
    assert found is not None
    example = found[1].replace("amqp://guest:guest@localhost:5672/", broker.url).replace("killmails", exchange)
    assert old in example
    (tmp_path / "example.py").write_text(example.replace(old, new))
    await bind(amqp, exchange, queue)
    assert await run("python example.py", tmp_path) == says
    if old == new:
        [message] = await take(amqp, queue, 1)
        assert orjson.loads(message.body)["killmailId"] == 123456789
