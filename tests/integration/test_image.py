"""The image: built as its users build it, run as restricted as they can run it, with a broker beside it."""

import asyncio
import ipaddress
import re
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import orjson
import pytest

from bridge.broadcast.live_set import MIN_BATCHED_SOCKETS
from tests.support.certificates import certificate
from tests.support.clients import RawClient
from tests.support.image import PORT, ROOT, Contained, Site, site
from tests.support.killmail import killmail
from tests.support.publishing import observer, publish
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

SHUTDOWN_TIMEOUT_S = 8
"""The setting's default, which is below the 10 s that an engine gives."""

HEALTH_LIMIT_S = 60.0
"""An engine asks by starting a process in the container, which takes long on a busy machine."""

NO_BATCHED_WRITES = "io_submit is not available"
READ_ONLY = "30"  # EROFS


@pytest.fixture(scope="module")
def place(image: str) -> Iterator[Site]:
    with site(image) as found:
        yield found


@pytest.fixture(scope="module")
def bridge(place: Site) -> Iterator[Contained]:
    with place.bridge() as running:
        yield running


async def _connect(bridge: Contained) -> RawClient:
    return await RawClient.open(PORT, host=bridge.address)


async def finds(bridge: Contained, state: str) -> None:
    await eventually(f"the engine finds it {state}", lambda: bridge.health == state, HEALTH_LIMIT_S)


async def test_update_reaches_many_clients_at_the_containers_own_address(place: Site, bridge: Contained) -> None:
    await bridge.ready()
    assert ipaddress.ip_address(bridge.address).is_private
    clients = [await _connect(bridge) for _ in range(MIN_BATCHED_SOCKETS + 1)]
    async with observer(place.broker_url) as amqp:
        await publish(amqp, "killmails", killmail(1))
    updates = [orjson.loads(await client.text()) for client in clients]
    assert [update["data"] for update in updates] == [killmail(1)] * len(clients)
    # Either way of writing to many will do: which one it is depends on the engine's seccomp profile.
    code, _ = bridge.python("from bridge.broadcast.socket_writes import IoSubmitWriter; IoSubmitWriter()")
    assert any(NO_BATCHED_WRITES in line for line in bridge.log()) == bool(code)
    for client in clients:
        await client.close()


async def test_update_reaches_a_client_of_the_published_port(place: Site, bridge: Contained) -> None:
    await bridge.ready()
    client = await RawClient.open(bridge.published)
    async with observer(place.broker_url) as amqp:
        await publish(amqp, "killmails", killmail(2))
    assert orjson.loads(await client.text())["data"] == killmail(2)
    await client.close()


async def test_only_process_is_the_bridge_without_root_and_without_a_capability(bridge: Contained) -> None:
    await bridge.ready()

    def alone() -> bool:
        top = bridge.container.top(ps_args="-o pid,args")["Processes"]
        return [command for _, command in top] == ["/opt/edk-bridge/bin/python3 /opt/edk-bridge/bin/edk-bridge serve"]

    # A health check may be running, for a moment.
    await eventually("the bridge is the only process", alone)
    _, text = bridge.python("print(open('/proc/1/status').read())")
    status = dict(re.findall(r"(\w+):\t(.*)", text))
    assert status["Uid"].split() == status["Gid"].split() == ["10001"] * 4
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"


@pytest.mark.parametrize("folder", ["/", "/tmp", "/opt/edk-bridge", "/var/tmp"])
async def test_nothing_can_be_written(bridge: Contained, folder: str) -> None:
    await bridge.ready()
    program = (
        f"import tempfile\ntry: tempfile.TemporaryFile(dir={folder!r})\nexcept OSError as error: print(error.errno)"
    )
    assert bridge.python(program) == (0, READ_ONLY)


async def test_nothing_can_be_written_to_but_the_memory_that_an_engine_gives_each_container(bridge: Contained) -> None:
    await bridge.ready()
    program = (
        "import tempfile\n"
        "for line in open('/proc/mounts'):\n"
        "  try: tempfile.TemporaryFile(dir=line.split()[1]); print(line.split()[1])\n"
        "  except OSError: pass"
    )
    _, written = bridge.python(program)
    assert {*written.split()} <= {"/dev/shm", "/dev/mqueue"}


async def test_what_is_installed_is_what_is_locked(bridge: Contained) -> None:
    locked = re.findall(r"^([\w-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    # Without site-packages of the base, which are not ours.
    _, text = bridge.python(
        "import importlib.metadata as m, site\n"
        "print(*sorted(d.name.lower().replace('_', '-') for d in m.distributions(path=site.getsitepackages())))"
    )
    assert text.split() == sorted([*locked, "edk-bridge"])


async def test_healthy_and_labelled(place: Site, bridge: Contained) -> None:
    await finds(bridge, "healthy")
    found = place.docker.images.get(place.image)
    assert found.labels["org.opencontainers.image.version"] == version("edk-bridge")
    assert found.attrs["Config"]["User"] == "10001:10001"


async def test_without_its_broker_it_is_healthy_and_not_ready(place: Site) -> None:
    with place.bridge(BRIDGE_AMQP_URL="amqp://guest:guest@127.0.0.1:1/") as lonely:
        await finds(lonely, "healthy")
        assert not any('"consuming"' in line for line in lonely.log())


async def test_health_is_asked_over_tls_where_that_is_on(place: Site, tmp_path: Path) -> None:
    chain, key = certificate(tmp_path, "contained")
    # The bridge in the container is another user than the one who made the key.
    key.chmod(0o644)
    variables = {"BRIDGE_TLS_CERTIFICATE": "/tls/chain.pem", "BRIDGE_TLS_KEY": "/tls/key.pem", "BRIDGE_PORT": "3443"}
    with place.bridge({chain: "/tls/chain.pem", key: "/tls/key.pem"}, **variables) as secure:
        await finds(secure, "healthy")
        assert any("wss://127.0.0.1:3443/updates" in line for line in secure.log())


async def test_bridge_that_does_not_turn_becomes_unhealthy_and_healthy_again_when_it_does(place: Site) -> None:
    with place.bridge() as stuck:
        await finds(stuck, "healthy")
        # From outside: the first process of a container can't be stopped from within.
        stuck.container.kill(signal="STOP")
        await finds(stuck, "unhealthy")
        stuck.container.kill(signal="CONT")
        await finds(stuck, "healthy")


async def test_stop_ends_it_with_0_in_time_and_tells_its_clients(place: Site) -> None:
    with place.bridge() as stopped:
        await stopped.ready()
        client = await _connect(stopped)
        began_s = time.monotonic()
        stopping = asyncio.create_task(asyncio.to_thread(stopped.container.stop, timeout=30))
        assert await client.closed() == 1001
        await stopping
        assert time.monotonic() - began_s < SHUTDOWN_TIMEOUT_S
        assert stopped.container.wait()["StatusCode"] == 0
        assert orjson.loads(stopped.log()[-1])["event"] == "stopped"
        await client.close()
