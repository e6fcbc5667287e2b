"""The generated TypeScript declarations are up to date, and a client that uses them compiles and runs."""

import shutil
import subprocess
from pathlib import Path

import pytest
from aio_pika.abc import AbstractConnection

from bridge.contract import catalog
from tests.support.broker.find import Broker
from tests.support.documentation import adapted, code_block
from tests.support.followers import CLIENTS, node_line, node_program
from tests.support.generated import DECLARATIONS, SOURCE_FORMATS, declarations
from tests.support.killmail import EXAMPLE
from tests.support.prepare import NODE
from tests.support.publishing import publish
from tests.support.running import port_of, running

CLIENT = (NODE / "listen.ts").read_text()
PRICE = {"timestamp": "2024-10-22T10:30:00.000Z", "typeId": 587, "price": 512000.25}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, node: str) -> Path:
    """A folder for TypeScript, with the declarations at the path that listen.ts imports."""
    root = tmp_path_factory.mktemp("typescript")
    project = root / "tests/node"
    project.mkdir(parents=True)
    (root / "schemas").symlink_to(catalog.PACKAGED)
    (project / "node_modules").symlink_to(NODE / "node_modules")
    return project


def compiled(project: Path, *files: str) -> list[str]:
    """Compiles files of the project to JavaScript. Returns the compiler's messages."""
    done = subprocess.run(
        [
            "node_modules/.bin/tsc",
            *("--strict", "--target", "es2022", "--module", "nodenext", "--types", "node", "--noEmitOnError"),
            *files,
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
    assert DECLARATIONS.read_bytes() == declarations(node), "run `make contract` to update the declarations"
    assert SOURCE_FORMATS.read_bytes() == declarations(node, "source-formats"), "run `make contract`"


WITH_IDS = """
import type {
  Gap, Received, UnknownMessage, Update, UpdatesResponse, UpdateWithId
} from "../../schemas/generated/updates";

export function after(message: Received): string {
  switch (message.type) {
    case "resume":
      return message.data.complete ? message.data.id : message.data.replayed.toFixed();
    case "gap":
      return `${message.data.since} ${message.data.until} ${message.data.reason.trim()} ${message.data.id}`;
    case "heartbeat":
      return message.data.consuming ? message.data.id : "";
    case "close":
      return message.data.code.toFixed() + message.data.reason.trim();
    case "killmail":
      return message.id + message.data.killmailId.toFixed();
    default:
      return message.id ?? "";
  }
}

export function adopt(message: Received): string | undefined {
  if (message.id !== undefined) {
    return message.id;
  }
  return message.type === "close" ? undefined : message.data.id;
}

export function other(message: Received): UnknownMessage | null {
  if (message.id !== undefined) return null;
  switch (message.type) {
    case "resume":
    case "gap":
    case "heartbeat":
    case "close":
      return null;
    default:
      return message;
  }
}

export const plain = (message: Received): Update | null => (message.id === undefined ? null : message);

export function poll(response: UpdatesResponse): [UpdateWithId[], Gap[], string] {
  const again: boolean = response.more || !response.complete || !response.consuming;
  return [response.updates, response.gaps, again ? response.id : ""];
}
"""

SOURCES = """
import type { EsiKillmail, R2Z2Document, RedisqPackage } from "../../schemas/generated/source-formats";

const esi: EsiKillmail = { killmail_id: 1, solar_system_id: 30000142, victim: { ship_type_id: 587 }, attackers: [] };
export const formats: [RedisqPackage, R2Z2Document] = [{ killmail: esi }, { esi }];
"""

WRONG = {
    "other-type": (CLIENT, "update.data.killmailCount.toFixed()", "update.data.killmailId.toFixed()", "does not exist"),
    "misspelled-type": (CLIENT, 'case "statistics":', 'case "statistic":', "not comparable"),
    "wrong-type": (CLIENT, "const price: number", "const price: string", "not assignable"),
    "may-be-missing": (
        CLIENT,
        "const alliance: number | null | undefined",
        "const alliance: number",
        "not assignable",
    ),
    "missing-case": (
        CLIENT,
        'case "event":\n      return `${update.data.kind.toUpperCase()}: ${update.data.title}`;',
        "",
        "not assignable",
    ),
    "data-of-an-unknown-type": (
        CLIENT,
        "unknown.type.toLowerCase()",
        "unknown.data.title",
        "'unknown.data' is of type",
    ),
    "misspelled-message": (
        WITH_IDS,
        '    case "gap":\n      return `',
        '    case "hole":\n      return `',
        "not comparable",
    ),
    "no-id": (
        WITH_IDS,
        'case "resume":\n      return message.data.complete',
        'case "resume": return message.id; return message.data.complete',
        "'undefined' is not assignable",
    ),
    "default-may-have-no-id": (WITH_IDS, 'message.id ?? ""', "message.id", "'string | undefined' is not assignable"),
    "wrong-type-of-message": (WITH_IDS, "data.reason.trim()} ", "data.reason.toFixed()} ", "does not exist"),
    "close-has-no-id": (WITH_IDS, 'message.type === "close" ? undefined : ', "", "'id' does not exist"),
    "missing-message": (WITH_IDS, '    case "gap":\n    case', "    case", "not assignable"),
    "update-without-id-has-no-resume": (
        WITH_IDS,
        "after(message: Received): string",
        "after(message: Update): string",
        "not comparable",
    ),
    "message-is-not-an-update": (WITH_IDS, "(message.id === undefined ? null : message)", "message", "not assignable"),
    "misspelled-member-of-the-response": (WITH_IDS, "response.more", "response.hasMore", "does not exist"),
    "source-format-without-a-member": (SOURCES, " solar_system_id: 30000142,", "", "'solar_system_id' is missing"),
    "wrong-type-in-a-source-format": (SOURCES, "killmail_id: 1", 'killmail_id: "1"', "not assignable"),
}
"""For each error: a client that compiles, a text in it, a wrong replacement, and a part of the compiler's message."""


@pytest.fixture(scope="module")
def messages(project: Path) -> list[str]:
    """The compiler's messages about all clients, each in a separate file.

    One run of the compiler compiles all clients, because each start takes seconds.
    """
    own_type = adapted(
        code_block("schemas/README.md", "Adding a type", 4), ('"./updates"', '"../../schemas/generated/updates"')
    )
    clients = {"with-ids": WITH_IDS, "own-type": own_type, "sources": SOURCES}
    clients |= {name: client.replace(old, new) for name, (client, old, new, _) in WRONG.items()}
    for name, client in clients.items():
        (project / f"{name}.ts").write_text(client)
    return compiled(project, "--noEmit", *(f"{name}.ts" for name in clients))


def about(name: str, messages: list[str]) -> list[str]:
    """Returns the compiler's messages about one client."""
    return [line for line in messages if line.startswith(f"{name}.ts(")]


def test_client_that_asks_for_ids_compiles(messages: list[str]) -> None:
    assert about("with-ids", messages) == []


def test_client_that_declares_its_own_type_compiles(messages: list[str]) -> None:
    assert about("own-type", messages) == []


def test_publisher_of_source_formats_compiles(messages: list[str]) -> None:
    assert about("sources", messages) == []


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_does_not_compile(messages: list[str], name: str) -> None:
    client, old, _, words = WRONG[name]
    assert old in client
    assert any("error TS" in line and words in line for line in about(name, messages)), messages


def test_copied_clients_compile_with_the_declarations_of_the_readme(node: str, tmp_path: Path) -> None:
    """The examples for JavaScript are compiled as TypeScript, first without declarations."""
    (tmp_path / "node_modules").symlink_to(NODE / "node_modules")
    for file in (DECLARATIONS, CLIENTS / "browser.js", CLIENTS / "node.mjs", CLIENTS / "sse.js"):
        shutil.copy(file, tmp_path)
    shutil.copy(CLIENTS / "sse.js", tmp_path / "sse.mjs")
    (tmp_path / "page.ts").write_text(code_block("schemas/clients/README.md", "Examples to copy", 0))
    (tmp_path / "program.mts").write_text(code_block("schemas/clients/README.md", "Examples to copy", 1))
    (tmp_path / "events.ts").write_text(code_block("schemas/clients/README.md", "Examples to copy", 3))
    (tmp_path / "events.mts").write_text(code_block("schemas/clients/README.md", "Examples to copy", 4))
    programs = "page.ts", "program.mts", "events.ts", "events.mts"
    untyped = compiled(tmp_path, "--noEmit", *programs)
    assert {line.split("(")[0] for line in untyped if "TS7016" in line} == set(programs)
    browser_types = code_block("schemas/clients/README.md", "TypeScript", 0)
    option = "EventSource?: new (url: string) => object"
    assert f"`{option}`" in (CLIENTS / "README.md").read_text()
    (tmp_path / "browser.d.ts").write_text(browser_types)
    event_types = adapted(browser_types, ("    silenceMs?: number;\n", f"    silenceMs?: number;\n    {option};\n"))
    for name in ("sse.d.ts", "sse.d.mts"):
        (tmp_path / name).write_text(event_types)
    (tmp_path / "node.d.mts").write_text(code_block("schemas/clients/README.md", "TypeScript", 1))
    assert compiled(tmp_path, "--noEmit", *programs) == []
    (tmp_path / "page.ts").write_text(
        code_block("schemas/clients/README.md", "Examples to copy", 0).replace("id, data", "ids, data")
    )
    assert any("'ids' does not exist" in line for line in compiled(tmp_path, "--noEmit", "page.ts"))


async def test_typed_client_reads_updates(
    project: Path, node: str, broker: Broker, amqp: AbstractConnection, exchange: str, tmp_path: Path
) -> None:
    (tmp_path / "sighting.json").write_text("{}")
    (project / "listen.ts").write_text(CLIENT)
    assert compiled(project, "listen.ts") == []
    async with running(broker.url, exchanges=f"{exchange}=killmail", schemas=tmp_path) as bridge:
        url = f"ws://127.0.0.1:{port_of(bridge)}/updates"
        async with node_program(node, project / "listen.js", url) as client:
            assert await node_line(client) == b"open"
            await publish(amqp, exchange, EXAMPLE)
            await publish(amqp, exchange, PRICE, type="price-update")
            assert await node_line(client) == b"killmail 123456789 in 30000142 of alliance 99999999"
            assert await node_line(client) == b"price of 587: 512000.25 ISK"
            await publish(amqp, exchange, {"pilot": "Chribba"}, type="sighting")
            assert await node_line(client) == b"unknown type sighting"
