"""The modules that `serve` imports until it connects to RabbitMQ.

Each import costs memory in every bridge, and time at every start. If a test fails because a module is new, find out
which import loads it: `python -X importtime -m bridge serve`. If `serve` does not use the module, import it in the
function that needs it, or move that function to another module. Otherwise add the module to the list in this file.
"""

from __future__ import annotations

import json
import signal
import subprocess
from functools import cache
from pathlib import Path

from tests.support.commands import AWAY, ROOT, plain_environment
from tests.support.loaded_modules import packages, recording_command
from tests.support.waiting import LIMIT_S
from tests.unit.test_architecture import imports

BRIDGE = """
bridge: __main__ app authority backoff errors interrupts logs loop_turn metrics queued_output readiness relay source
  systemd terminal timing
bridge.amqp: cancellation close_cause connection connection_errors nodes status supervisor timeouts topology
bridge.amqp.consume: consumed_queue consumer delivery_counts flow_control gaps repeated_failures session stall_detector
  stream_end_probe stream_markers stream_position stream_reader stream_session topology_check
bridge.amqp.publish: confirm_channel message_id_locks
bridge.amqp.rejects: properties publisher retry_queue
bridge.amqp.wire: compat fast_channel properties settlement trace
bridge.broadcast: catch_up close_reasons deadlines frames framing heartbeat hub hub_log hub_metrics join_storm live_set
  newest_search polls replay resume socket_writes subscriber subscriptions update_log
bridge.cli: serve
bridge.cli.common: colors errors options output
bridge.config: amqp_urls kubernetes listen_addresses networks parsers paths settings sources text_files tls warnings
bridge.contract: body_format catalog deduplication envelope filterable filters keywords killmail_formats pipeline
  schema_errors schema_lint similar text update_id violations wrappers
bridge.contract.documents: asyncapi deployment embedding messages openapi query
bridge.server: client_log handshake memory pending_handshakes router server tls
bridge.server.access: address_limit log_limiter read_limiter rules
bridge.server.connection: client_connection keepalive
bridge.server.http: event_stream negotiation pages polling request response response_writer
bridge.server.listeners: acceptor descriptors sockets
bridge.server.transport: compat poller socket_transport tcp tcp_transport tls_transport
bridge.server.websocket: connection reader upgrade upgrade_cache
"""
"""The modules of the bridge, by folder. Some of them serve a setting: TLS, a stream as history, or a log as text."""

DIRECT = """
abc aio_pika aio_pika.abc aiormq array asyncio atexit base64 binascii bisect click codecs collections collections.abc
contextlib ctypes dataclasses datetime difflib dotenv.parser email.utils enum errno fcntl fractions functools gc hashlib
heapq html http httptools idna importlib importlib.metadata io ipaddress itertools json jsonschema_rs logging math
orjson os pamqp.commands pamqp.common pamqp.decode pamqp.encode pamqp.frame pamqp.header pathlib platform
prometheus_client prometheus_client.core prometheus_client.gc_collector prometheus_client.process_collector
prometheus_client.registry random re resource secrets select signal socket ssl stat struct structlog structlog.typing
sys threading time types typing urllib.parse uuid uvloop weakref
websockets.frames websockets.speedups yarl zlib
"""
"""The modules of Python and of libraries that the modules of the bridge import themselves."""

LIBRARIES = {
    "aio_pika": "connects to the broker",
    "aiormq": "speaks AMQP",
    "click": "reads the command line",
    "dotenv": "reads .env",
    "httptools": "parses requests",
    "idna": "compares host names",
    "jsonschema_rs": "validates events",
    "multidict": "imported by yarl",
    "orjson": "reads and writes JSON",
    "pamqp": "encodes AMQP frames",
    "prometheus_client": "writes /metrics",
    "propcache": "imported by yarl",
    "structlog": "logs",
    "uvloop": "the event loop",
    "websockets": "unmasks frames, and makes frames",
    "yarl": "the broker's URL, for aiormq",
}
"""What each library is for. A library also imports modules that the bridge does not use, such as the web server of
prometheus_client. The bridge can't avoid those."""

BEFORE_CONNECTING = "broker not available; trying again"
"""The log line of a bridge that has done everything of its start, except that it has a connection to the broker."""

HINT = "a module is new, or no longer loaded: the docstring of this file says what to do"


@cache
def loaded() -> frozenset[str]:
    """Returns the modules that are loaded in a bridge that has begun to connect to its broker."""
    environment = plain_environment(
        PYTHONPATH=str(ROOT),
        BRIDGE_AMQP_URL="amqp://127.0.0.1:1",
        BRIDGE_EXCHANGES="killmails=killmail",
        BRIDGE_HOST="127.0.0.1",
        BRIDGE_PORT="0",
    )
    command = [*recording_command(), "serve"]
    with subprocess.Popen(command, cwd=AWAY, env=environment, stderr=subprocess.PIPE, text=True) as serving:
        try:
            assert serving.stderr is not None
            assert any(BEFORE_CONNECTING in line for line in serving.stderr)
            serving.send_signal(signal.SIGTERM)
            last = serving.communicate(timeout=LIMIT_S)[1].splitlines()[-1]
        finally:
            serving.kill()
    return frozenset(json.loads(last)["modules"])


def path_of(module: str) -> Path:
    """Returns the file of one of the bridge's modules."""
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def own() -> set[str]:
    """Returns the loaded modules of the bridge."""
    return {name for name in loaded() if name.partition(".")[0] == "bridge"}


def imported_by_own() -> set[str]:
    """Returns the other modules that the loaded modules of the bridge import when they are loaded."""
    found = set()
    for module in own():
        for each in imports(path_of(module)):
            # The name may be that of a function or a class in the module.
            name = each.name if each.name in loaded() else each.name.rpartition(".")[0]
            if each.at_once and name in loaded():
                found.add(name)
    return {name for name in found if name.partition(".")[0] not in ("bridge", "__future__")}


def folders(text: str) -> set[str]:
    """Returns the modules in a list by folder, including the folders."""
    found, folder = {"bridge"}, ""
    for word in text.split():
        if word.endswith(":"):
            folder = word.removesuffix(":")
            found.add(folder)
        else:
            found.add(f"{folder}.{word}")
    return found


def test_serve_loads_exactly_the_listed_modules_of_the_bridge() -> None:
    assert own() == folders(BRIDGE), HINT


def test_modules_of_the_bridge_import_exactly_the_listed_modules() -> None:
    assert imported_by_own() == set(DIRECT.split()), HINT


def test_serve_loads_exactly_the_listed_libraries() -> None:
    top = {name.partition(".")[0] for name in loaded()}
    assert top & packages()[0] - {"bridge"} == set(LIBRARIES), HINT
