"""The image: built as in `docker/README.md`, run with all restrictions, next to a container with a broker."""

import asyncio
import ipaddress
import re
import secrets
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import orjson
import pytest

from bridge.broadcast.live_set import MIN_BATCHED_SOCKETS
from tests.support.broker.ports import free_port
from tests.support.certificates import certificate
from tests.support.clients import RawClient, get
from tests.support.documentation import adapted, code_block, shell
from tests.support.image import BASE, BROKER, PORT, ROOT, Contained, Site, site
from tests.support.killmail import killmail
from tests.support.prepare import program
from tests.support.publishing import observer, publish
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

SHUTDOWN_TIMEOUT_S = 8
"""The default of BRIDGE_SHUTDOWN_TIMEOUT. By default, an engine waits 10 s for a container to stop."""

HEALTH_LIMIT_S = 60.0
"""The time limit for a health check, which is slow on a busy machine because it starts a process in the container."""

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


async def is_ready(port: int) -> bool:
    try:
        return (await get(port, "/readyz"))[0] == 200
    except (OSError, IndexError):
        return False


async def _wait_for_health(bridge: Contained, state: str) -> None:
    await eventually(f"the engine reports {state}", lambda: bridge.health == state, HEALTH_LIMIT_S)


async def test_commands_of_the_readme_build_and_start_a_bridge(place: Site, tmp_path: Path) -> None:
    name = f"edk-bridge-test-{secrets.token_hex(4)}"
    port = free_port()
    base = f"--build-arg PYTHON_IMAGE={BASE}" if BASE else ""
    # Without network address translation, a build reaches the package index only through the host's network.
    build = adapted(
        code_block("docker/README.md", "Container", 0),
        ("docker build", f"docker build --network=host {base}"),
        ("-t edk-bridge", f"-t {name}"),
    )
    write = adapted(
        code_block("docker/README.md", "Container", 1),
        ("install", f"echo amqp://guest:guest@{BROKER}:5672/ | install"),
    )
    run = adapted(
        code_block("docker/README.md", "Container", 2),
        ("--name edk-bridge", f"--name {name}"),
        ("my-network", place._network.name),
        ("127.0.0.1:3000:", f"127.0.0.1:{port}:"),
        (" edk-bridge\n", f" {name}\n"),
    )
    check = adapted(code_block("docker/README.md", "Container", 3), ("edk-bridge", name), (":3000/", f":{port}/"))
    await shell(build, ROOT)
    await shell(write, tmp_path)

    try:
        await shell(run, tmp_path)
        await eventually("the bridge is ready", lambda: is_ready(port))
        output = await shell(check, tmp_path)
        for expected in (b'"event":"listening"', b'"event":"consuming"', b'"ready": true'):
            assert expected in output
    finally:
        await shell(f"docker rm --force --volumes {name}; docker rmi --force {name}", tmp_path)


async def test_compose_file_of_the_readme_starts_a_bridge_next_to_a_broker(place: Site, tmp_path: Path) -> None:
    port = free_port()
    file = adapted(
        code_block("docker/README.md", "Compose", 1),
        ("image: edk-bridge", f"image: {place.image}"),
        ("my-network", place._network.name),
        ("127.0.0.1:3000:", f"127.0.0.1:{port}:"),
    )
    (tmp_path / "compose.yaml").write_text(file)
    (tmp_path / "secrets").mkdir(mode=0o700)
    (tmp_path / "secrets/amqp-url").write_text(f"amqp://guest:guest@{BROKER}:5672/\n")
    compose = f"{program('docker-compose')} --project-name edk-bridge-test-{secrets.token_hex(4)}"
    try:
        await shell(f"{compose} up --detach", tmp_path)
        await eventually("the bridge is ready", lambda: is_ready(port))
    finally:
        await shell(f"{compose} down", tmp_path)


async def test_update_reaches_many_clients_at_the_address_of_the_container(place: Site, bridge: Contained) -> None:
    await bridge.ready()
    assert ipaddress.ip_address(bridge.address).is_private
    clients = [await _connect(bridge) for _ in range(MIN_BATCHED_SOCKETS + 1)]
    async with observer(place.broker_url) as amqp:
        await publish(amqp, "killmails", killmail(1))
    updates = [orjson.loads(await client.text()) for client in clients]
    assert [update["data"] for update in updates] == [killmail(1)] * len(clients)
    # The engine's seccomp profile decides whether the bridge can write to many sockets in one call.
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


async def test_bridge_is_the_only_process_and_has_no_root_and_no_capability(bridge: Contained) -> None:
    await bridge.ready()

    def alone() -> bool:
        top = bridge.container.top(ps_args="-o pid,args")["Processes"]
        return [command for _, command in top] == ["/opt/edk-bridge/bin/python3 /opt/edk-bridge/bin/edk-bridge serve"]

    # For a moment, the process of a health check may be running too.
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


async def test_only_the_shared_memory_of_the_engine_can_be_written(bridge: Contained) -> None:
    await bridge.ready()
    program = (
        "import tempfile\n"
        "for line in open('/proc/mounts'):\n"
        "  try: tempfile.TemporaryFile(dir=line.split()[1]); print(line.split()[1])\n"
        "  except OSError: pass"
    )
    _, written = bridge.python(program)
    assert {*written.split()} <= {"/dev/shm", "/dev/mqueue"}


async def test_installed_packages_are_the_locked_ones(bridge: Contained) -> None:
    locked = re.findall(r"^([\w-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    # The list of packages excludes the site-packages of the base image.
    _, text = bridge.python(
        "import importlib.metadata as m, site\n"
        "print(*sorted(d.name.lower().replace('_', '-') for d in m.distributions(path=site.getsitepackages())))"
    )
    assert text.split() == sorted([*locked, "edk-bridge"])


async def test_healthy_and_labelled(place: Site, bridge: Contained) -> None:
    await _wait_for_health(bridge, "healthy")
    found = place.docker.images.get(place.image)
    assert found.labels["org.opencontainers.image.version"] == version("edk-bridge")
    assert found.attrs["Config"]["User"] == "10001:10001"


async def test_without_its_broker_it_is_healthy_and_not_ready(place: Site) -> None:
    with place.bridge(BRIDGE_AMQP_URL="amqp://guest:guest@127.0.0.1:1/") as unconnected:
        await _wait_for_health(unconnected, "healthy")
        assert not any('"consuming"' in line for line in unconnected.log())


async def test_health_check_uses_tls_if_the_bridge_does(place: Site, tmp_path: Path) -> None:
    chain, key = certificate(tmp_path, "contained")
    # The bridge in the container does not run as the user who owns the key.
    key.chmod(0o644)
    variables = {"BRIDGE_TLS_CERTIFICATE": "/tls/chain.pem", "BRIDGE_TLS_KEY": "/tls/key.pem", "BRIDGE_PORT": "3443"}
    with place.bridge({chain: "/tls/chain.pem", key: "/tls/key.pem"}, **variables) as secure:
        await _wait_for_health(secure, "healthy")
        assert any("wss://localhost:3443/updates" in line for line in secure.log())


async def test_stopped_process_is_unhealthy_until_it_continues(place: Site) -> None:
    with place.bridge() as frozen:
        await _wait_for_health(frozen, "healthy")
        # The engine sends the signal, because a process in the container can't stop the container's first process.
        frozen.container.kill(signal="STOP")
        await _wait_for_health(frozen, "unhealthy")
        frozen.container.kill(signal="CONT")
        await _wait_for_health(frozen, "healthy")


async def test_stopped_container_closes_its_clients_and_exits_with_0_in_time(place: Site) -> None:
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
