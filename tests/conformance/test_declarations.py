"""The TypeScript declarations: what the generator makes of the schema files, and what a typed client makes of them."""

import subprocess
from pathlib import Path

import pytest
from aio_pika.abc import AbstractConnection

from bridge.contract import catalog
from bridge.demo.broker import Broker
from tests.support.contract import DECLARATIONS, declarations
from tests.support.followers import node_line, node_program
from tests.support.killmail import EXAMPLE
from tests.support.prepare import NODE
from tests.support.publishing import publish
from tests.support.running import port_of, running

CLIENT = (NODE / "listen.ts").read_text()
PRICE = {"timestamp": "2024-10-22T10:30:00.000Z", "typeId": 587, "price": 512000.25}


@pytest.fixture
def project(tmp_path: Path, node: str) -> Path:
    """A folder for TypeScript, with the declarations where listen.ts has them."""
    project = tmp_path / "tests/node"
    project.mkdir(parents=True)
    (tmp_path / "schemas").symlink_to(catalog.PACKAGED)
    (project / "node_modules").symlink_to(NODE / "node_modules")
    return project


def compiled(project: Path, source: str) -> list[str]:
    """What the compiler has to say of the source; it makes listen.js of it in the project."""
    (project / "listen.ts").write_text(source)
    done = subprocess.run(
        [
            "node_modules/.bin/tsc",
            *("--strict", "--target", "es2022", "--module", "nodenext", "--types", "node", "--noEmitOnError"),
            "listen.ts",
        ],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert bool(done.returncode) == bool(lines)
    return lines


def test_committed_declarations_are_up_to_date(node: str) -> None:
    assert DECLARATIONS.read_bytes() == declarations(node), "`make contract` writes them anew"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        pytest.param(
            "update.data.killmailCount.toFixed()", "update.data.killmailId.toFixed()", "does not exist", id="other-type"
        ),
        pytest.param('case "statistics":', 'case "statistic":', "not comparable", id="misspelt-type"),
        pytest.param("const price: number", "const price: string", "not assignable", id="wrong-type"),
        pytest.param(
            "const alliance: number | null | undefined", "const alliance: number", "not assignable", id="may-be-missing"
        ),
        pytest.param(
            'case "event":\n      return `${update.data.kind.toUpperCase()}: ${update.data.title}`;',
            "",
            "'never'",
            id="missing-case",
        ),
    ],
)
def test_wrong_use_does_not_compile(project: Path, old: str, new: str, words: str) -> None:
    assert old in CLIENT
    lines = compiled(project, CLIENT.replace(old, new))
    assert any("error TS" in each and words in each for each in lines), lines
    assert not (project / "listen.js").exists()


WITH_IDS = """
import type { Received, Update } from "../../schemas/generated/updates";

export function after(message: Received): string {
  switch (message.type) {
    case "resume":
      return message.data.complete ? message.data.id : message.data.replayed.toFixed();
    case "gap":
      return `${message.data.since} ${message.data.until} ${message.data.reason.trim()}`;
    case "killmail":
      return message.id + message.data.killmailId.toFixed();
    default:
      return message.id;
  }
}

export const plain = (message: Received): Update | null =>
  message.type === "resume" || message.type === "gap" ? null : message;
"""


def test_client_that_asks_for_ids_is_typed_too(project: Path) -> None:
    assert compiled(project, WITH_IDS) == []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        pytest.param('    case "gap":', '    case "hole":', "not comparable", id="misspelt-message"),
        pytest.param('case "resume":\n', 'case "resume": return message.id;\n', "'id' does not exist", id="no-id"),
        pytest.param("data.reason.trim", "data.reason.toFixed", "does not exist", id="wrong-type"),
        pytest.param("(message: Received): string", "(message: Update): string", "not comparable", id="plain-has-none"),
        pytest.param(' || message.type === "gap"', "", "not assignable", id="message-is-no-update"),
    ],
)
def test_wrong_use_of_ids_does_not_compile(project: Path, old: str, new: str, words: str) -> None:
    assert old in WITH_IDS
    lines = compiled(project, WITH_IDS.replace(old, new))
    assert any("error TS" in each and words in each for each in lines), lines


async def test_typed_client_reads_updates(
    project: Path, node: str, broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    assert compiled(project, CLIENT) == []
    async with running(broker.url, exchanges=f"{exchange}=killmail") as bridge:
        url = f"ws://127.0.0.1:{port_of(bridge)}/updates"
        async with node_program(node, project / "listen.js", url) as client:
            assert await node_line(client) == b"open"
            await publish(amqp, exchange, EXAMPLE)
            await publish(amqp, exchange, PRICE, type="price-update")
            assert await node_line(client) == b"killmail 123456789 in 30000142 of alliance 99999999"
            assert await node_line(client) == b"price of 587: 512000.25 ISK"
