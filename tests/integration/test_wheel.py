"""The wheel is complete: it works in an environment with its locked dependencies only."""

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.support.broker.find import Broker
from tests.support.broker.ports import free_port
from tests.support.clients import RawClient, get
from tests.support.running import BridgeProcess, bridge_process

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the commands, in an environment in which the wheel is installed."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    uv = str(BIN / "uv")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", str(folder / "bin/python")]
    locked = ["--no-deps", "--require-hashes", "-r", str(ROOT / "requirements.lock")]
    subprocess.run([*install, *locked], check=True)
    # The wheel is installed with dependencies, but without an index, so the locked packages must satisfy its
    # requirements.
    subprocess.run([*install, "--no-index", str(wheel)], check=True)
    return folder / "bin"


def run(folder: Path, where: Path, *arguments: str, text: str = "") -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("BRIDGE_", "COVERAGE"))}
    done = subprocess.run(
        [str(folder / "edk-bridge"), *arguments],
        cwd=where,
        env=environment,
        input=text,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_wheel_has_only_the_bridge_and_its_schemas(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
        [licence] = [name for name in names if name.endswith("licenses/LICENSE")]
        assert opened.read(licence).startswith(b"MIT License")
        [metadata] = [name for name in names if name.endswith(".dist-info/METADATA")]
        about = opened.read(metadata).decode()
    assert {name.split("/")[0] for name in names} == {"bridge", metadata.split("/")[0]}
    assert "bridge/schemas/killmail.json" in names
    assert "bridge/page/index.html" in names
    assert "bridge/py.typed" in names
    # Code that installs packages or starts private nodes of RabbitMQ belongs only to the checkout, not to the wheel.
    demo = {name for name in names if name.startswith("bridge/demo/")}
    assert not {name for name in demo if any(word in name for word in ("apt", "node", "ports"))}
    assert "bridge/demo/feed.py" in demo
    assert not [name for name in names if "__pycache__" in name or "node_modules" in name or name.endswith(".pyc")]
    assert re.search(r"^License-Expression: MIT$", about, re.MULTILINE)


def test_installed_command_works_in_any_folder(installed: Path, tmp_path: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version in run(installed, tmp_path, "--version")
    killmail = json.dumps({"killmailId": 1, "timestamp": "2024-10-22T10:30:00.000Z", "systemId": 30000142})
    valid = json.dumps(json.loads(killmail) | {"shipTypeId": 587, "attackerCount": 15})
    run(installed, tmp_path, "check", "--type", "killmail", text=valid)
    with pytest.raises(subprocess.CalledProcessError) as failed:
        run(installed, tmp_path, "check", "--type", "killmail", text=killmail)
    assert failed.value.returncode == 1


def test_installed_demo_without_the_extra_names_the_solutions(installed: Path, tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        run(installed, tmp_path, "demo", "--port", str(free_port()))
    assert failed.value.returncode == 1
    assert "the extra `demo` (testcontainers) is not installed" in failed.value.stderr
    assert "--without-broker" in failed.value.stderr


async def test_installed_bridge_serves_page_schemas_and_updates(
    installed: Path, broker: Broker, exchange: str, tmp_path: Path
) -> None:
    command = [str(installed / "edk-bridge")]
    async with bridge_process(broker.url, command=command, BRIDGE_EXCHANGES=f"{exchange}=event") as process:
        await process.consuming()
        port = await process.port()
        for page in ("/", "/page.js", "/schemas/killmail.json", "/asyncapi.json", "/openapi.json", "/metrics"):
            assert (await get(port, page))[0] == 200, page
        client = await RawClient.open(port)
        event = {"eventId": "1", "kind": "battle", "title": "title", "timestamp": "2024-10-22T10:30:00.000Z"}
        await published(process, installed, tmp_path, broker, exchange, event)
        assert json.loads(await client.text())["data"] == event
        await client.close()


async def published(
    process: BridgeProcess, installed: Path, where: Path, broker: Broker, exchange: str, event: dict[str, str]
) -> None:
    arguments = ["publish", "--amqp-url", broker.url, "--exchange", exchange, "--type", "event"]
    run(installed, where, *arguments, text=json.dumps(event))
    assert process.process.returncode is None
