"""`python -m tests.support.generated contract|readme`: writes the committed files and tables that are made from code.

`contract` writes schemas/generated from the schema files. `readme` writes the tables of settings and metrics, the
states of a connection, the schema files, and the models of the benchmark's curves into the README files of their
folders. It also writes the costs on the front page. In a README file, each generated table is between two markers. The
text around a table is written by hand.
"""

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import NamedTuple

import orjson

from bridge.app import Bridge
from bridge.broadcast.subscriber import TRANSITIONS, Action, ConnectionEvent, State
from bridge.config import settings
from bridge.config.settings import PREFIX, SETTINGS, Group, Settings, shown_default
from bridge.contract import catalog
from bridge.contract.documents import asyncapi, openapi
from bridge.contract.documents.deployment import Deployment
from tests.bench import summary
from tests.bench.curves import capacity, texts
from tests.bench.curves.points import CURVES, read
from tests.support.prepare import NODE, prepare_node
from tests.support.running import NOWHERE

ROOT = Path(__file__).parents[2]
FRONT_PAGE = ROOT / "README.md"
SETTINGS_README = ROOT / "bridge/config/README.md"
BROADCAST_README = ROOT / "bridge/broadcast/README.md"
MONITORING_README = ROOT / "docker/monitoring/README.md"
BENCH_README = ROOT / "tests/bench/README.md"
SCHEMAS_README = ROOT / "schemas/README.md"

ROLES = {
    None: "update type",
    "message": "own message",
    "envelope": "envelope",
    "response": "response",
    "form": "source format",
}
"""The words for the role of each schema file, in the order of the table."""


class MetricRow(NamedTuple):
    """One metric, as Prometheus reads it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


def settings_table() -> str:
    """Returns a heading and a table for each group of settings, with their defaults and meanings."""
    parts = []
    for group in Group:
        rows = [
            (f"`{PREFIX}{name.upper()}`", _code(shown_default(name)), setting.meaning)
            for name, setting in SETTINGS.items()
            if setting.group is group
        ]
        parts.append(f"### {group}\n\n{_table(('setting', 'default', 'meaning'), rows)}")
    return "\n\n".join(parts)


def metrics_table() -> str:
    """Returns the table of the bridge's own metrics, with kind, labels and meaning."""
    rows = [
        (f"`{row.name}`", row.kind, ", ".join(f"`{label}`" for label in row.labels), row.meaning)
        for row in metric_rows()
    ]
    return _table(("metric", "kind", "labels", "meaning"), rows)


def metric_rows() -> list[MetricRow]:
    """Returns the bridge's own metrics, sorted by name, from a bridge that was built but not started."""

    async def built() -> list[MetricRow]:
        found = []
        # If a metric has no sample yet, the registry does not show its labels.
        for collector in Bridge(settings.load({}, {}, NOWHERE)).metrics.registry._collector_to_names:
            labels = getattr(collector, "_labelnames", None)
            for family in collector.collect():
                name = f"{family.name}_total" if family.type == "counter" else family.name
                own = getattr(family, "_labelnames", ()) if labels is None else labels
                found.append(MetricRow(name, family.type, tuple(own), family.documentation))
        return sorted(row for row in found if row.name.startswith("bridge_"))

    return asyncio.run(built())


def states_table() -> str:
    """Returns the table of the states of a connection."""
    return _descriptions("state", State)


def events_table() -> str:
    """Returns the table of the events of a connection."""
    return _descriptions("event", ConnectionEvent)


def actions_table() -> str:
    """Returns the table of the actions after a transition."""
    return _descriptions("action", Action)


def state_diagram() -> str:
    """Returns a Mermaid diagram of the transitions that change the state.

    In the diagram, all events that lead from one state to another share one arrow.
    """
    arrows: dict[tuple[State, State], list[str]] = {}
    for state, steps in TRANSITIONS.items():
        for event, step in steps.items():
            if step.to is not state:
                arrows.setdefault((state, step.to), []).append(event.name)
    lines = [f"    {start.name} --> {end.name}: {', '.join(names)}" for (start, end), names in arrows.items()]
    ends = f"    [*] --> {State.NEW.name}", f"    {State.CLOSED.name} --> [*]"
    return "\n".join(["```mermaid", "stateDiagram-v2", ends[0], *lines, ends[1], "```"])


def transitions_table() -> str:
    """Returns the table of the events that are legal in each state."""
    rows = [
        (
            f"`{state.name}`",
            f"`{event.name}`",
            f"`{step.to.name}`",
            ", ".join(f"`{each.name}`" for each in step.actions),
        )
        for state, steps in TRANSITIONS.items()
        for event, step in steps.items()
    ]
    return _table(("state", "event", "next state", "actions"), rows)


def _descriptions(head: str, choices: type[Enum]) -> str:
    return _table((head, "meaning"), [(f"`{each.name}`", each.value) for each in choices])


def capacity_table() -> str:
    """Returns the table of the bridges that many clients need, from the committed points of all curves."""
    return capacity.table({curve.name: read(curve) for curve in CURVES})


def costs_table() -> str:
    """Returns the table of costs on the front page, from the tables of the benchmark."""
    return summary.table(BENCH_README.read_text())


def schema_files_table() -> str:
    """Returns the table of the packaged schema files, with the role and the first sentence of each description."""
    files = {file.name: orjson.loads(file.read_bytes()) for file in sorted(catalog.PACKAGED.glob("*.json"))}
    rows = [
        (f"`{name}`", words, schema["description"].split(". ")[0].removesuffix(".").replace("<", "\\<"))
        for role, words in ROLES.items()
        for name, schema in files.items()
        if schema.get("x-role") == role
    ]
    return _table(("schema file", "role", "content"), rows)


Parts = Mapping[str, Callable[[], str]]

DOCUMENTS: Mapping[Path, Parts] = {
    FRONT_PAGE: {"costs": costs_table},
    SETTINGS_README: {"settings": settings_table},
    SCHEMAS_README: {"files": schema_files_table},
    MONITORING_README: {"metrics": metrics_table},
    BENCH_README: {
        **{f"curve {curve.name}": partial(texts.section, curve) for curve in CURVES},
        "machines": texts.machines,
        "capacity": capacity_table,
    },
    BROADCAST_README: {
        "states": states_table,
        "diagram": state_diagram,
        "transitions": transitions_table,
        "events": events_table,
        "actions": actions_table,
    },
}
"""The generated parts of each document."""


def filled(text: str, parts: Parts) -> str:
    """Returns the text with newly generated parts between its markers. Raises ValueError if a marker is missing."""
    for name, part in parts.items():
        begins, ends = f"<!-- {name}: generated by make readme -->\n", f"<!-- end of {name} -->"
        between = re.compile(f"{re.escape(begins)}.*?{re.escape(ends)}", re.DOTALL)
        count = len(between.findall(text))
        if count != 1:
            raise ValueError(f"the document has {count} places for its {name}, between {begins.strip()} and {ends}")
        before, after = between.split(text)
        text = f"{before}{begins}\n{part()}\n\n{ends}{after}"
    return text


def _code(text: str) -> str:
    return text if text in {"not set", "the host name"} else f"`{text.replace(',', ', ')}`"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


GENERATED = catalog.PACKAGED / "generated"
ASYNCAPI = GENERATED / "asyncapi.json"
OPENAPI = GENERATED / "openapi.json"
DECLARATIONS = GENERATED / "updates.d.ts"
SOURCE_FORMATS = GENERATED / "source-formats.d.ts"


def asyncapi_document() -> bytes:
    """Returns the AsyncAPI document of a bridge with the default settings."""
    schemas = catalog.load([catalog.PACKAGED])
    return asyncapi.document(schemas.documents, schemas.filterable, _deployment())


def openapi_document() -> bytes:
    """Returns the OpenAPI document of a bridge with the default settings."""
    schemas = catalog.load([catalog.PACKAGED])
    return openapi.document(schemas.documents, schemas.filterable, _deployment())


def _deployment() -> Deployment:
    settings = Settings()
    return Deployment(
        host=f"localhost:{settings.port}",
        secure=False,
        path=settings.path,
        exchanges=settings.exchanges,
        reject_exchange=settings.reject_exchange,
    )


def declarations(node: str, *what: str) -> bytes:
    """Returns TypeScript declarations for the schema files: of what clients receive, or of `source-formats`.

    `node` is the command that starts Node.
    """
    command = [node, "declarations.mjs", str(catalog.PACKAGED), *what]
    done = subprocess.run(command, cwd=NODE, stdout=subprocess.PIPE, check=True)
    return done.stdout


def write_contract() -> None:
    """Writes schemas/generated."""
    prepare_node()
    GENERATED.mkdir(exist_ok=True)
    ASYNCAPI.write_bytes(asyncapi_document())
    OPENAPI.write_bytes(openapi_document())
    DECLARATIONS.write_bytes(declarations("node"))
    SOURCE_FORMATS.write_bytes(declarations("node", "source-formats"))


def write_readme() -> None:
    """Writes the generated parts of all documents."""
    for path, parts in DOCUMENTS.items():
        path.write_text(filled(path.read_text(), parts))


if __name__ == "__main__":
    {"contract": write_contract, "readme": write_readme}[sys.argv[1]]()
