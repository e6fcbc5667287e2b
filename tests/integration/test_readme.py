"""What the README shows is what happens: a type of one's own in five lines, and the publisher's example."""

import asyncio
import os
import re
import sys
from pathlib import Path

import orjson
import pytest
from aio_pika.abc import AbstractConnection

from tests.support.broker.find import Broker
from tests.support.clients import RawClient
from tests.support.publishing import bind, take
from tests.support.running import bridge_process
from tests.support.waiting import LIMIT_S

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def lines_below(document: str, sentence: str) -> list[str]:
    """The indented lines below a sentence, without the comments among them."""
    found = re.search(re.escape(sentence) + r"\n\n((?: {4}.*\n)+)", (ROOT / document).read_text())
    assert found is not None
    return [line.strip() for line in found[1].splitlines() if not line.strip().startswith("#")]


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


async def test_type_of_ones_own_is_a_file(broker: Broker, exchange: str, tmp_path: Path) -> None:
    *make, serve, publish = lines_below(
        "schemas/README.md", "[`schemas/README.md`](schemas/README.md#adding-a-type) says what may be in it:"
    )
    assert len(make) + 2 <= 5
    for line in make:
        await run(line, tmp_path)
    assert serve.startswith("edk-bridge serve ")
    exchanges = f"{exchange}=killmail"
    arguments = serve.removeprefix("edk-bridge serve ").replace("my-schemas", str(tmp_path / "my-schemas")).split()
    async with bridge_process(broker.url, *arguments, BRIDGE_EXCHANGES=exchanges) as process:
        await process.consuming()
        client = await RawClient.open(await process.port())
        said = await run(publish, tmp_path, BRIDGE_AMQP_URL=broker.url, BRIDGE_EXCHANGES=exchanges)
        assert said == b"1 event published, 0 invalid\n"
        update = orjson.loads(await client.text())
        assert (update["type"], update["data"]) == ("sighting", {"pilot": "Chribba"})
        await client.close()


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
