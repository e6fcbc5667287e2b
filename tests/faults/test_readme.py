"""The example in this folder's README runs without changes."""

from tests.support.broker.find import Broker
from tests.support.documentation import code_block
from tests.support.proxy import proxy
from tests.support.scene import scene


async def test_example_of_a_fault_test_passes(broker: Broker) -> None:
    names = {"Broker": Broker, "proxy": proxy, "scene": scene}
    exec(code_block("tests/faults/README.md", "Write one"), names)
    await names["test_connection_that_is_cut"](broker)  # type: ignore[operator]  # the block defines it
