"""Each compose file is accepted by docker-compose, restricts its containers, and starts if an engine has the images."""

import asyncio
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from aio_pika.abc import AbstractConnection

from bridge.config import settings
from bridge.config.settings import PREFIX
from bridge.server.listeners.descriptors import MAX_OVERFLOW, OWN_DESCRIPTORS
from tests.support.broker.find import Broker
from tests.support.broker.ports import free_port
from tests.support.broker.session import IMAGE
from tests.support.clients import RawClient, get
from tests.support.documentation import adapted, code_block, shell
from tests.support.prepare import program
from tests.support.running import NOWHERE, port_of, running
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "docker"
PROFILES = ("demo", "monitoring")
SECRETS = {"BROKER_PASSWORD": "secret", "ERLANG_COOKIE": "cookie"}


def compose(file: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs docker-compose with a file, and with no secrets other than the given variables."""
    environment = {name: text for name, text in os.environ.items() if name not in SECRETS}
    profiles = [word for profile in PROFILES for word in ("--profile", profile)]
    command = [program("docker-compose"), *profiles, "-f", str(FOLDER / file), *arguments]
    return subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=False)


def read(file: str, **variables: str) -> dict[str, Any]:
    """Returns the file with all references resolved. Fails if docker-compose does not accept the file."""
    # Version 1 of docker-compose writes YAML only. docker-compose 1 needs a YAML parser in Debian's Python, so the test
    # can use that parser too.
    first = compose(file, "version", "--short").stdout.strip("v").startswith("1.")
    done = compose(file, "config", *([] if first else ["--format", "json"]), **variables)
    assert done.returncode == 0, done.stderr
    text = done.stdout
    if first:
        convert = "import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin), sys.stdout)"
        python = ["/usr/bin/python3", "-c", convert]
        text = subprocess.run(python, input=text, capture_output=True, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(text)
    return found


FILES = ("compose.yaml", "compose.cluster.yaml")
START_LIMIT_S = 180.0


@pytest.fixture(scope="module", params=FILES)
def services(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The services of each compose file."""
    found: dict[str, Any] = read(request.param, **SECRETS)["services"]
    return found


def ours(services: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The services that run the image of this project."""
    return ((name, each) for name, each in services.items() if "build" in each)


def seconds(text: str) -> int:
    minutes, rest = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", text).groups()  # type: ignore[union-attr]  # another text fails the test
    return int(minutes or 0) * 60 + int(rest or 0)


def test_all_ports_are_published_on_loopback_only(services: dict[str, Any]) -> None:
    ports = [port for each in services.values() for port in each.get("ports", [])]
    assert ports
    for port in ports:
        address = port.get("host_ip") if isinstance(port, dict) else port.rpartition(":")[0].rpartition(":")[0]
        assert address == "127.0.0.1", port


def test_variables_of_bridges_are_valid_settings(services: dict[str, Any]) -> None:
    found = [each["environment"] for _, each in ours(services)]
    assert found
    for environment in found:
        assert all(name.startswith(PREFIX) for name in environment)
        settings.load({}, environment, NOWHERE)


def test_bridges_are_restricted(services: dict[str, Any]) -> None:
    defaults = settings.Settings()
    for name, each in ours(services):
        assert each["read_only"] is True, name
        assert each["cap_drop"] == ["ALL"], name
        assert each["security_opt"] == ["no-new-privileges"], name
        assert "mem_limit" in each, name
        assert "privileged" not in each, name
        if "command" not in each:
            assert seconds(each["stop_grace_period"]) > defaults.shutdown_timeout_s
            assert each["ulimits"]["nofile"]["hard"] >= defaults.max_connections + MAX_OVERFLOW + OWN_DESCRIPTORS


def test_each_service_has_log_limits_an_image_and_its_dependencies(services: dict[str, Any]) -> None:
    for name, each in services.items():
        assert {"max-size", "max-file"} <= each["logging"]["options"].keys(), name
        if "build" in each:
            dockerfile = each["build"]["dockerfile"]
            assert (Path(each["build"]["context"]) / dockerfile).is_file()
        else:
            # The image has a version. Without a version, an engine takes the newest image, or any image that it has.
            assert re.search(r":v?\d", each["image"]), name
        assert {*each.get("depends_on", ())} <= services.keys()


def test_each_file_has_its_own_project_name() -> None:
    """Without `-p`, the project would be called docker, like every other project in a folder called docker."""
    names = [re.findall(rf"docker compose -p (\S+) -f docker/{file} up", (FOLDER / file).read_text()) for file in FILES]
    assert names == [["edk-bridge"], ["edk-bridge-cluster"]]


def test_files_that_are_mounted_exist() -> None:
    for file in FILES:
        sources = re.findall(r"- (\./[^:]+):", (FOLDER / file).read_text())
        assert sources
        for source in sources:
            assert (FOLDER / source).is_file(), source


def test_cluster_has_no_default_password_or_cookie() -> None:
    for name in SECRETS:
        done = compose("compose.cluster.yaml", "config", **{each: SECRETS[each] for each in SECRETS if each != name})
        assert done.returncode != 0
        assert "the first lines of compose.cluster.yaml say how" in done.stderr


def test_nodes_of_a_cluster_find_each_other_by_their_host_names() -> None:
    services = read("compose.cluster.yaml", **SECRETS)["services"]
    conf = (FOLDER / "rabbitmq/cluster.conf").read_text()
    configured = {*re.findall(r"= rabbit@(\S+)", conf)}
    nodes = {name for name in services if name.startswith("rabbitmq")}
    assert configured == nodes == {services[name]["hostname"] for name in nodes}
    for _, each in ours(services):
        assert {*re.findall(r"@([\w-]+):", each["environment"]["BRIDGE_AMQP_URL"])} == nodes
    cookies = {services[name]["environment"]["RABBITMQ_ERLANG_COOKIE"] for name in nodes}
    assert cookies == {SECRETS["ERLANG_COOKIE"]}


async def test_demo_that_only_publishes_uses_the_exchange_of_the_bridge(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail", reject_exchange="off") as bridge:
        client = await RawClient.open(port_of(bridge))
        environment = {**os.environ, "BRIDGE_AMQP_URL": broker.url, "BRIDGE_EXCHANGES": f"{exchange}=killmail"}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bridge", "demo", "--publish-only", "--rate", "50"),
            env=environment,
            cwd=Path(__file__).parent,
            stdout=asyncio.subprocess.DEVNULL,
        )
        assert orjson.loads(await client.text())["type"] == "killmail"
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        await client.close()


@pytest.mark.parametrize(
    ("variables", "hint"),
    [
        ({}, "set BRIDGE_AMQP_URL"),
        ({"BRIDGE_AMQP_URL": "amqp://x/", "BRIDGE_EXCHANGES": "e=event"}, "no exchange has the type killmail"),
    ],
)
async def test_demo_that_only_publishes_names_the_setting_to_change(variables: dict[str, str], hint: str) -> None:
    environment = {name: text for name, text in os.environ.items() if not name.startswith(PREFIX)} | variables
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bridge", "demo", "--publish-only"),
        env=environment,
        cwd=Path(__file__).parent,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert hint in errors.decode()


async def test_commands_of_the_readme_set_the_secrets_of_both_files(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "docker")
    changes = [("docker compose", program("docker-compose")), ("up --detach", "config")]
    single = await shell(adapted(code_block("docker/README.md", "Compose", 0), *changes), tmp_path)
    cluster = await shell(adapted(code_block("docker/README.md", "Compose", 2), *changes), tmp_path)
    secrets_found = dict(line.split("=") for line in (tmp_path / "docker/.env").read_text().splitlines())
    assert secrets_found.keys() == SECRETS.keys()
    assert secrets_found["BROKER_PASSWORD"].encode() in single
    for secret in secrets_found.values():
        assert re.fullmatch("[0-9a-f]{32}", secret)
        assert secret.encode() in cluster


async def test_command_of_the_readme_starts_a_broker_a_bridge_and_the_demo(image: str, tmp_path: Path) -> None:
    port = free_port()
    file = adapted(
        (FOLDER / "compose.yaml").read_text(),
        ("127.0.0.1:3000:", f"127.0.0.1:{port}:"),
        ("127.0.0.1:15672:", f"127.0.0.1:{free_port()}:"),
    )
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker/compose.yaml").write_text(file)
    variables = {"RABBITMQ_IMAGE": IMAGE, "BRIDGE_IMAGE": image}
    project = f"-p edk-bridge-test-{secrets.token_hex(4)}"
    start = adapted(
        code_block("docker/README.md", "Compose"),
        ("docker compose", f"{program('docker-compose')} --profile demo"),
        ("-p edk-bridge", project),
        ("up --detach", "up --detach --no-build"),
    )
    try:
        await shell(start, tmp_path, START_LIMIT_S, **variables)

        async def ready() -> bool:
            try:
                return (await get(port, "/readyz"))[0] == 200
            except (OSError, IndexError):
                return False

        await eventually("the bridge is ready", ready, limit_s=START_LIMIT_S)
        client = await RawClient.open(port)
        assert orjson.loads(await client.text())["type"] == "killmail"
        await client.close()
    finally:
        stop = f"{program('docker-compose')} {project} -f compose.yaml down --volumes --timeout 20"
        await shell(stop, tmp_path / "docker", START_LIMIT_S, **variables)
