"""The generated parts of the README files are up to date, and list all settings and metrics."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import pytest

from bridge.broadcast.close_reasons import CloseReason
from bridge.broadcast.subscriber import TRANSITIONS
from bridge.config.settings import SETTINGS, Group
from bridge.server.access.rules import Rule
from tests.support.generated import (
    DOCUMENTS,
    MONITORING_README,
    ROOT,
    filled,
    metric_rows,
    metrics_table,
    settings_table,
    state_diagram,
)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_generated_parts_are_what_make_readme_writes(path: Path) -> None:
    text = path.read_text()
    assert text == filled(text, DOCUMENTS[path]), "run `make readme`"


def test_table_has_all_settings_with_default_and_meaning() -> None:
    lines = settings_table().splitlines()
    assert sum(line.startswith("| `BRIDGE_") for line in lines) == len(SETTINGS)
    assert [line for line in lines if line.startswith("#")] == [f"### {group}" for group in Group]
    assert "| `BRIDGE_PORT` | `3000` | The port to listen on. 0: a free port, which the log shows. |" in lines
    assert any(line.startswith("| `BRIDGE_INSTANCE` | the host name |") for line in lines)


def test_table_has_metrics_of_every_kind_with_their_labels() -> None:
    rows = {row.name: (row.kind, row.labels) for row in metric_rows()}
    assert rows["bridge_rejects_total"] == ("counter", ("reason",))
    assert rows["bridge_updates_total"] == ("counter", ("type",))
    assert rows["bridge_deliveries_total"] == ("counter", ())
    assert rows["bridge_connections"] == ("gauge", ("transport",))
    assert rows["bridge_sent_bytes_total"] == ("counter", ("transport",))
    assert rows["bridge_build_info"] == ("gauge", ("version", "python"))
    assert rows["bridge_handshakes_pending"] == ("gauge", ())
    assert rows["bridge_receipt_to_flush_seconds"] == ("histogram", ())
    assert len(metrics_table().splitlines()) == len(rows) + 2


def test_metrics_follow_the_naming_rules_of_prometheus_and_have_a_meaning() -> None:
    for row in metric_rows():
        assert re.fullmatch(r"bridge(_[a-z]+)+", row.name)
        assert row.name.endswith("_total") == (row.kind == "counter"), row.name
        assert not re.search(r"_(ms|milliseconds|minutes|hours|kb|mb|kilobytes|megabytes|percent)(_|$)", row.name)
        assert not re.search(r"_(gauge|counter|histogram|bucket|count|sum)(_|$)", row.name)
        assert not set(row.labels) & {"job", "instance", "le", "quantile"}, row
        sentences = re.findall(r"[A-Z][^.]*\.", row.meaning)
        assert " ".join(sentences) == row.meaning, row.name
        assert all(len(sentence.split()) <= 25 for sentence in sentences), row.name


def rows(heading: str, column: str) -> list[list[str]]:
    """Returns the rows of a table in the monitoring README: below `heading`, with the first column `column`."""
    section = MONITORING_README.read_text().partition(f"# {heading}\n")[2]
    head, _, table = section.partition(f"\n| {column} |")
    assert "\n## " not in head, "the table is in this section"
    lines = list(itertools.takewhile(lambda line: line.startswith("|"), table.splitlines()[1:]))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_each_rule_of_a_refusal_is_explained() -> None:
    assert {rule for cells in rows("Rules and reasons", "`rule`") for rule in quoted(cells[0])} == {*Rule}


def test_each_reason_of_an_eviction_is_listed_with_its_close_code() -> None:
    listed = {slug: code for slugs, code in rows("Rules and reasons", "`reason`") for slug in quoted(slugs)}
    assert listed == {each.slug: str(each.code) for each in CloseReason if each is not CloseReason.STOPPING}


def texts_of_the_bridge() -> str:
    """Returns all text constants of the code, with `*` for each value that the code inserts into a text."""
    found = []
    for path in sorted((ROOT / "bridge").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (each.value if isinstance(each, ast.Constant) else "*" for each in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


@pytest.mark.parametrize(
    ("heading", "column"),
    [("Logs", "`event`"), ("If no update arrives", "`missing` in `/readyz`")],
    ids=["log", "readyz"],
)
def test_each_phrase_that_an_operator_looks_for_is_in_the_code(heading: str, column: str) -> None:
    code = texts_of_the_bridge()
    phrases = [phrase for cells in rows(heading, column) for phrase in quoted(cells[0])]
    assert len(phrases) > 5
    for phrase in phrases:
        # In the README's tables, `...` stands for a value, or for the rest of a phrase.
        pattern = ".*".join(re.escape(part) for part in phrase.split("..."))
        assert re.search(f"^{pattern}$", code, re.MULTILINE), phrase


def test_each_alert_is_listed() -> None:
    alerts = re.findall(r"- alert: (\w+)", (MONITORING_README.parent / "alerts.yml").read_text())
    assert [alert for cells in rows("Alerts and dashboard", "alert") for alert in quoted(cells[0])] == alerts


@pytest.mark.parametrize(
    ("path", "name"),
    [
        pytest.param(path, name, id=f"{path.relative_to(ROOT)}: {name}")
        for path, parts in DOCUMENTS.items()
        for name in parts
    ],
)
def test_marker_that_is_missing_is_named(path: Path, name: str) -> None:
    text = path.read_text().replace(f"<!-- end of {name} -->", "")
    with pytest.raises(ValueError, match=f"0 places for its {name}"):
        filled(text, DOCUMENTS[path])


def test_diagram_shows_each_change_of_state_once() -> None:
    arrows = re.findall(r"^    (\w+) --> (\w+): (.*)$", state_diagram(), re.MULTILINE)
    shown = [(start, event, end) for start, end, events in arrows for event in events.split(", ")]
    changes = [
        (state.name, event.name, step.to.name)
        for state, steps in TRANSITIONS.items()
        for event, step in steps.items()
        if step.to is not state
    ]
    assert sorted(shown) == sorted(changes)
