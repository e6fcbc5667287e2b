"""A bridge has the metrics that `docker/monitoring` uses, and each alert fires only under its condition."""

import asyncio
import json
import re
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from aio_pika.abc import AbstractConnection
from prometheus_client.parser import text_string_to_metric_families

from bridge.demo.child import die_with_parent, signal_group
from tests.support.broker.find import Broker
from tests.support.broker.ports import LOOPBACK, free_port
from tests.support.certificates import certificate
from tests.support.clients import RawClient, get
from tests.support.documentation import ROOT, adapted, code_block, shell
from tests.support.killmail import killmail
from tests.support.prepare import program
from tests.support.publishing import publish
from tests.support.running import port_of, running, sample
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

MONITORING = ROOT / "docker/monitoring"
DASHBOARD = MONITORING / "grafana-dashboard.json"
NAME = re.compile(r"\b((?:bridge|process|python)_\w+|up)\b(?:\{([^}]*)\})?")
TARGETS = {"job", "instance"}
"""Labels that Prometheus adds to each sample."""


def promtool(*arguments: str, text: str = "") -> str:
    """Runs promtool with `text` as its standard input, and returns its output."""
    done = subprocess.run(
        [program("promtool"), *arguments], cwd=MONITORING, capture_output=True, input=text, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def panels() -> Iterator[tuple[str, str, str]]:
    """Yields, for each expression of the dashboard, the title of its panel, the expression and its legend."""
    for panel in orjson.loads(DASHBOARD.read_bytes())["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"], target["legendFormat"]


def rules() -> list[str]:
    """The expressions of the alerts, each as one line."""
    text = (MONITORING / "alerts.yml").read_text()
    found = re.findall(r"expr: (?:>-\n)?(.*?)\n +(?:for|labels):", text, re.DOTALL)
    assert len(found) == text.count("- alert:")
    return [" ".join(expression.split()) for expression in found]


async def exposed(broker: Broker, amqp: AbstractConnection, exchange: str) -> dict[str, set[str]]:
    """Returns the samples at `/metrics`, each with its labels, after an event of each kind."""
    flags = {"exchanges": f"{exchange}=killmail", "reject_exchange": "off", "max_connections": 1}
    async with running(broker.url, **flags) as bridge:
        port = port_of(bridge)
        client = await RawClient.open(port, path="/updates?after=")
        await publish(amqp, exchange, killmail(1), killmail(1), b"not JSON")
        await eventually("the event is rejected", lambda: sample(bridge, "bridge_rejects_total", reason="not-json"))
        late = await RawClient.open(port)
        assert await late.closed() == 1013
        await get(port, "/", "X-Forwarded-For: 8.8.8.8")
        _, body = await get(port, "/metrics")
        await client.close()
        await late.close()
    families = text_string_to_metric_families(body.decode())
    samples = [sample for family in families for sample in family.samples]
    return {
        name: {label for each in samples if each.name == name for label in each.labels}
        for name in {sample.name for sample in samples}
    }


async def test_each_metric_and_label_in_alerts_and_dashboard_exists(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    existing = await exposed(broker, amqp, exchange) | {"up": set()}
    used = [(f"alert {number}", expression, "") for number, expression in enumerate(rules())] + list(panels())
    for where, expression, legend in used:
        names = NAME.findall(expression)
        assert names, (where, expression)
        labels = set(TARGETS)
        for name, selectors in names:
            assert name in existing, (where, name)
            labels |= existing[name]
            assert set(re.findall(r"(\w+)\s*(?:=|!=|=~|!~)\s*\"", selectors)) <= existing[name] | TARGETS, where
        for listed in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
            assert {label.strip() for label in listed.split(",")} <= labels, (where, listed)
        assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= labels, (where, legend)


async def test_commands_of_the_readme_show_the_state_and_the_counters_of_a_bridge(
    broker: Broker, amqp: AbstractConnection, exchange: str
) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail", reject_exchange="off") as bridge:
        client = await RawClient.open(port_of(bridge))
        await publish(amqp, exchange, killmail(1), killmail(1), b"not JSON")
        await eventually("the event is rejected", lambda: sample(bridge, "bridge_rejects_total", reason="not-json"))
        commands = code_block("docker/monitoring/README.md", "If no update arrives")
        output = await shell(adapted(commands, (":3000/", f":{port_of(bridge)}/")), ROOT)
        await client.close()
    state, _, counters = output.decode().partition("\n}\n")
    assert '"ready": true' in state
    assert set(counters.splitlines()) == {
        'bridge_connections{transport="websocket"} 1.0',
        'bridge_connections_opened_total{transport="websocket"} 1.0',
        "bridge_deliveries_total 3.0",
        'bridge_duplicates_total{type="killmail"} 1.0',
        'bridge_rejects_total{reason="not-json"} 1.0',
        'bridge_updates_total{type="killmail"} 1.0',
    }


async def test_counters_of_alerts_exist_before_the_first_event(broker: Broker, exchange: str) -> None:
    """If a counter appeared only with its first event, Prometheus would see no increase."""
    async with running(broker.url, exchanges=f"{exchange}=killmail", reject_exchange="off") as bridge:
        _, body = await get(port_of(bridge), "/metrics")
    samples = {sample.name for family in text_string_to_metric_families(body.decode()) for sample in family.samples}
    counted = {name for rule in rules() for name, _ in NAME.findall(rule) if name.endswith("_total")}
    assert "bridge_rejects_total" in counted
    assert counted <= samples


async def test_promtool_finds_nothing_wrong_with_names_and_help_texts(broker: Broker, exchange: str) -> None:
    async with running(broker.url, exchanges=f"{exchange}=killmail", reject_exchange="off") as bridge:
        _, body = await get(port_of(bridge), "/metrics")
    assert b"# TYPE bridge_build_info gauge" in body
    assert promtool("check", "metrics", text=body.decode()) == ""


def test_memory_alert_is_below_the_limit_of_the_container() -> None:
    [limit] = [rule for rule in rules() if "process_resident_memory_bytes" in rule]
    services = (MONITORING.parent / "compose.yaml").read_text()
    given = re.search(r"^  bridge:.*?mem_limit: (\d+)m$", services, re.MULTILINE | re.DOTALL)
    assert given is not None
    assert float(limit.rpartition(" ")[2]) < 0.9 * int(given[1]) * 2**20


async def test_commands_of_the_readme_accept_the_configuration_and_test_each_alert() -> None:
    program("promtool")
    output = await shell(code_block("docker/monitoring/README.md", "Alerts and dashboard"), ROOT)
    assert output.count(b"SUCCESS") == 4
    tested = (MONITORING / "alerts.test.yml").read_text()
    for alert in re.findall(r"- alert: (\w+)", (MONITORING / "alerts.yml").read_text()):
        assert f'alertname="{alert}"' in tested, alert


def test_prometheus_understands_every_panel(tmp_path: Path) -> None:
    """Each expression becomes a rule, because promtool checks only rules."""
    lines = ["groups:", "- name: panels", "  rules:"]
    for number, (_, expression, _) in enumerate(panels()):
        # Grafana replaces these variables.
        plain = expression.replace("$__rate_interval", "1m").replace("$instance", ".*")
        lines += [f"  - record: panel:{number}", f"    expr: {json.dumps(plain)}"]
    file = tmp_path / "panels.yml"
    file.write_text("\n".join(lines))
    promtool("check", "rules", str(file))


def test_each_single_figure_has_its_own_thresholds_and_no_decimals() -> None:
    """By default, Grafana shows any value of 80 or more as bad.

    Prometheus extrapolates increases, so they have decimals.
    """
    found = [panel for panel in orjson.loads(DASHBOARD.read_bytes())["panels"] if panel["type"] == "stat"]
    assert found
    for panel in found:
        shown = panel["fieldConfig"]["defaults"]
        assert shown["thresholds"]["steps"], panel["title"]
        assert shown["decimals"] == 0, panel["title"]


def test_panels_are_laid_out_without_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in orjson.loads(DASHBOARD.read_bytes())["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def answer_of(url: str) -> Any:
    """Returns the data in an answer of Prometheus, or None if Prometheus does not listen yet."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]
    except OSError:
        return None


@pytest.mark.parametrize("with_tls", [False, True], ids=["plain", "TLS"])
async def test_prometheus_scrapes_a_bridge_and_raises_no_alert(
    broker: Broker, exchange: str, tmp_path: Path, *, with_tls: bool
) -> None:
    flags = {"exchanges": f"{exchange}=killmail", "reject_exchange": "off"}
    changes = []
    if with_tls:
        own, key = certificate(tmp_path, "kills.example.org")
        flags |= {"tls_certificate": str(own), "tls_key": str(key)}
        tls = ("{server_name: kills.example.org}", f"{{server_name: {LOOPBACK}, ca_file: {own}}}")
        changes = [("#scheme", "scheme"), ("#tls_config", "tls_config"), tls]
    async with running(broker.url, **flags) as bridge:
        changes += [("15s", "200ms"), ("bridge:3000", f"localhost:{port_of(bridge)}")]
        text = adapted((MONITORING / "prometheus.yml").read_text(), *changes)
        (tmp_path / "prometheus.yml").write_text(text)
        (tmp_path / "alerts.yml").write_bytes((MONITORING / "alerts.yml").read_bytes())
        port = free_port()
        process = await asyncio.create_subprocess_exec(
            *die_with_parent(program("prometheus"), "--config.file=prometheus.yml", "--storage.tsdb.path=data"),
            f"--web.listen-address={LOOPBACK}:{port}",
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=tmp_path,
            start_new_session=True,
        )
        try:

            async def api(path: str) -> Any:
                return await asyncio.to_thread(answer_of, f"http://{LOOPBACK}:{port}/api/v1/{path}")

            async def scraped() -> bool:
                found = await api("query?query=bridge_consuming==1")
                return bool(found and found["result"])

            async def evaluated() -> bool:
                [group] = (await api("rules"))["groups"]
                return {rule["health"] for rule in group["rules"]} == {"ok"}

            await eventually("Prometheus has scraped the bridge", scraped)
            await eventually("Prometheus has evaluated each rule", evaluated)
            assert (await api("alerts"))["alerts"] == []
        finally:
            assert process.stdin is not None
            signal_group(process.pid, signal.SIGTERM)
            process.stdin.close()
            await process.wait()
