"""The examples in the README of the tests run as they stand."""

from pathlib import Path

import orjson
from aio_pika.abc import AbstractConnection

from tests.support.broker.find import Broker
from tests.support.broker.node import PrivateNode
from tests.support.clients import RawClient
from tests.support.documentation import ROOT, adapted, code_block, shell
from tests.support.killmail import killmail
from tests.support.publishing import publish
from tests.support.running import port_of, running


async def test_example_of_an_integration_test_passes(broker: Broker, amqp: AbstractConnection, exchange: str) -> None:
    names = {
        "AbstractConnection": AbstractConnection,
        "Broker": Broker,
        "RawClient": RawClient,
        "killmail": killmail,
        "orjson": orjson,
        "port_of": port_of,
        "publish": publish,
        "running": running,
    }
    exec(code_block("tests/README.md", "Fixtures"), names)
    await names["test_update_arrives"](broker, amqp, exchange)  # type: ignore[operator]  # the block defines it


async def test_command_for_a_single_file_runs_its_tests() -> None:
    assert b" passed, " in await shell(code_block("tests/README.md", "One file or one test"), ROOT)


async def test_commands_for_a_running_broker_run_tests_on_it(node_broker: PrivateNode, tmp_path: Path) -> None:
    commands = adapted(
        code_block("tests/README.md", "One file or one test", 1),
        ("rabbitmqctl", '"$RABBITMQCTL"'),
        ("localhost:5672", f"127.0.0.1:{node_broker.port}"),
        ("test_updates.py", "test_updates.py -k specification"),
    )
    script = tmp_path / "commands"
    script.write_text(f"#!/bin/sh\nset -e\ncd {ROOT}\n{commands}")
    script.chmod(0o755)
    try:
        output = await node_broker.script(script)
        assert f"@127.0.0.1:{node_broker.port}/edk-test" in output, "the run names another broker"
        assert "1 passed" in output
    finally:
        await node_broker.ctl("delete_vhost", "edk-test")
