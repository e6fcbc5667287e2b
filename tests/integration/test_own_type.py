"""The example of `schemas/README.md` adds a type: a schema file, a bridge that reads it, and an event."""

import shlex
from pathlib import Path

import orjson

from tests.support.broker.find import Broker
from tests.support.clients import RawClient
from tests.support.documentation import adapted, code_block, shell
from tests.support.running import bridge_process


async def test_schema_file_in_a_folder_adds_a_type(broker: Broker, exchange: str, tmp_path: Path) -> None:
    await shell(code_block("schemas/README.md", "Adding a type"), tmp_path)
    program, *arguments = shlex.split(adapted(code_block("schemas/README.md", "Adding a type", 1), ("3001", "0")))
    assert program == "edk-bridge"
    arguments[arguments.index("my-schemas")] = str(tmp_path / "my-schemas")
    exchanges = f"{exchange}=killmail"
    async with bridge_process(broker.url, *arguments[1:], BRIDGE_EXCHANGES=exchanges) as process:
        await process.consuming()
        client = await RawClient.open(await process.port())
        publish = code_block("schemas/README.md", "Adding a type", 2)
        output = await shell(publish, tmp_path, BRIDGE_AMQP_URL=broker.url, BRIDGE_EXCHANGES=exchanges)
        assert output.decode() == code_block("schemas/README.md", "Adding a type", 3)
        update = orjson.loads(await client.text())
        assert (update["type"], update["data"]) == ("sighting", {"pilot": "Chribba"})
        await client.close()
