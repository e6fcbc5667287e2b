"""A bridge loads all modules at its start, so that no client and no delivery waits for an import."""

import json

from aio_pika.abc import AbstractConnection

from tests.support.broker.find import Broker
from tests.support.clients import RawClient, get
from tests.support.killmail import killmail
from tests.support.loaded_modules import LOADED, recording_command
from tests.support.publishing import publish
from tests.support.running import bridge_process
from tests.unit.test_startup_imports import loaded


async def test_bridge_that_serves_clients_loads_no_other_modules(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    settings = {"BRIDGE_EXCHANGES": f"{exchange}=killmail", "BRIDGE_REJECT_EXCHANGE": "off"}
    async with bridge_process(broker.url, command=recording_command(), **settings) as bridge:
        await bridge.consuming()
        port = await bridge.port()
        for path in ("/", "/metrics", "/readyz", "/asyncapi.json", "/openapi.json"):
            assert (await get(port, path))[0] == 200
        client = await RawClient.open(port, path="/updates?systemId=30000142&after=")
        await publish(amqp, exchange, killmail(7, systemId=30000142))
        while json.loads(await client.text())["type"] != "killmail":
            pass
        bridge.process.terminate()
        assert await bridge.ended() == 0
        await client.close()
    line = bridge.logged(LOADED)
    assert line is not None
    modules = line["modules"]
    assert isinstance(modules, list)
    assert set(modules) - loaded() == set()
