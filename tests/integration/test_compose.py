"""The compose files: taken by docker-compose, safe as they are, and, where an engine has the images, started."""

import asyncio
import json
import os
import re
import secrets
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
from tests.support.prepare import program
from tests.support.running import NOWHERE, port_of, running
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "docker"
PROFILES = ("demo", "monitoring")
SECRETS = {"BROKER_PASSWORD": "secret", "ERLANG_COOKIE": "cookie"}


def compose(file: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """What docker-compose says of a file, with nothing set but what is given here."""
    environment = {name: text for name, text in os.environ.items() if name not in SECRETS}
    profiles = [word for profile in PROFILES for word in ("--profile", profile)]
    command = [program("docker-compose"), *profiles, "-f", str(FOLDER / file), *arguments]
    return subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=False)


def read(file: str, **variables: str) -> dict[str, Any]:
    """The whole file, with everything put in that it refers to. Fails where docker-compose does not take it."""
    # The one in Python, which writes YAML, comes with what Debian's own Python reads that with.
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
    """Of each file in turn."""
    found: dict[str, Any] = read(request.param, **SECRETS)["services"]
    return found


def ours(services: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Those that run the image of this project."""
    return ((name, each) for name, each in services.items() if "build" in each)


def seconds(text: str) -> int:
    minutes, rest = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", text).groups()  # type: ignore[union-attr]  # fails as it should
    return int(minutes or 0) * 60 + int(rest or 0)


def test_everything_that_is_published_is_published_on_loopback(services: dict[str, Any]) -> None:
    ports = [port for each in services.values() for port in each.get("ports", [])]
    assert ports
    for port in ports:
        address = port.get("host_ip") if isinstance(port, dict) else port.rpartition(":")[0].rpartition(":")[0]
        assert address == "127.0.0.1", port


def test_bridges_settings_are_settings(services: dict[str, Any]) -> None:
    found = [each["environment"] for _, each in ours(services)]
    assert found
    for environment in found:
        assert all(name.startswith(PREFIX) for name in environment)
        settings.load({}, environment, NOWHERE)


def test_bridges_are_as_restricted_as_they_can_be(services: dict[str, Any]) -> None:
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


def test_what_each_service_needs_is_there(services: dict[str, Any]) -> None:
    for name, each in services.items():
        assert {"max-size", "max-file"} <= each["logging"]["options"].keys(), name
        if "build" in each:
            dockerfile = each["build"]["dockerfile"]
            assert (Path(each["build"]["context"]) / dockerfile).is_file()
        else:
            # Neither the newest of the day nor whatever an engine happens to have.
            assert re.search(r":v?\d", each["image"]), name
        assert {*each.get("depends_on", ())} <= services.keys()


def test_each_file_is_started_as_a_project_of_its_own() -> None:
    """The folder's name would be one for both, and for whatever else is in a folder called docker."""
    names = [re.findall(rf"docker compose -p (\S+) -f docker/{file} up", (FOLDER / file).read_text()) for file in FILES]
    assert names == [["edk-bridge"], ["edk-bridge-cluster"]]


def test_files_that_are_mounted_exist() -> None:
    for file in FILES:
        sources = re.findall(r"- (\./[^:]+):", (FOLDER / file).read_text())
        assert sources
        for source in sources:
            assert (FOLDER / source).is_file(), source


def test_password_and_cookie_of_a_cluster_are_the_operators_own() -> None:
    for name in SECRETS:
        done = compose("compose.cluster.yaml", "config", **{each: SECRETS[each] for each in SECRETS if each != name})
        assert done.returncode != 0
        assert "the first lines of compose.cluster.yaml say how" in done.stderr


def test_nodes_of_a_cluster_look_for_one_another_by_the_names_that_they_have() -> None:
    services = read("compose.cluster.yaml", **SECRETS)["services"]
    conf = (FOLDER / "rabbitmq/cluster.conf").read_text()
    looked_for = {*re.findall(r"= rabbit@(\S+)", conf)}
    nodes = {name for name in services if name.startswith("rabbitmq")}
    assert looked_for == nodes == {services[name]["hostname"] for name in nodes}
    for _, each in ours(services):
        assert {*re.findall(r"@([\w-]+):", each["environment"]["BRIDGE_AMQP_URL"])} == nodes
    cookies = {services[name]["environment"]["RABBITMQ_ERLANG_COOKIE"] for name in nodes}
    assert cookies == {SECRETS["ERLANG_COOKIE"]}


async def test_demo_that_only_publishes_does_so_to_the_bridges_exchange(
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
    ("variables", "said"),
    [
        ({}, "name it in BRIDGE_AMQP_URL"),
        ({"BRIDGE_AMQP_URL": "amqp://x/", "BRIDGE_EXCHANGES": "e=event"}, "carries killmails"),
    ],
)
async def test_demo_that_only_publishes_says_what_it_lacks(variables: dict[str, str], said: str) -> None:
    environment = {name: text for name, text in os.environ.items() if not name.startswith(PREFIX)} | variables
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bridge", "demo", "--publish-only"),
        env=environment,
        cwd=Path(__file__).parent,
        stderr=asyncio.subprocess.PIPE,
    )
    _, words = await process.communicate()
    assert process.returncode == 2
    assert said in words.decode()


async def test_file_starts_what_works(image: str, tmp_path: Path) -> None:
    """The broker, the bridge and the demo's publisher, by the command that is in the file's first line."""
    text = (FOLDER / "compose.yaml").read_text()
    port = free_port()
    for before, after in (("127.0.0.1:3000:", f"127.0.0.1:{port}:"), ("127.0.0.1:15672:", f"127.0.0.1:{free_port()}:")):
        assert before in text
        text = text.replace(before, after)
    (tmp_path / "compose.yaml").write_text(text)
    variables = {"RABBITMQ_IMAGE": IMAGE, "BRIDGE_IMAGE": image}
    project = ("--project-name", f"edk-bridge-test-{secrets.token_hex(4)}")
    services = ("rabbitmq", "bridge", "demo")
    try:
        done = await asyncio.to_thread(
            compose, str(tmp_path / "compose.yaml"), *project, "up", "--no-build", "-d", *services, **variables
        )
        assert done.returncode == 0, done.stderr

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
        await asyncio.to_thread(
            compose, str(tmp_path / "compose.yaml"), *project, "down", "--volumes", "--timeout", "20", **variables
        )
