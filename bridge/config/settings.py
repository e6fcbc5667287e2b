"""One frozen Settings, from flags, the environment and a `.env` file, with every problem said at once.

Flags win over the environment, the environment over `.env`, `.env` over the defaults. Each setting `X` may also come
from a file that `X_FILE` names (a Docker secret, say). Names that start with the prefix and are no setting are errors:
a misspelled setting must not become a default in silence.
"""

import dataclasses
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.config import parsers
from bridge.config.amqp_urls import amqp_urls
from bridge.config.networks import DEFAULT_NETWORKS, Network
from bridge.config.paths import is_reserved
from bridge.config.sources import PREFIX, Found, Layer, find
from bridge.errors import ConfigurationError, shown_value

__all__ = ["FIELDS", "PREFIX", "Settings", "is_set", "load", "load_with_sources", "shown_default"]


def _setting(default: str | None, parse: Callable[[str], Any], meaning: str, *, secret: bool = False) -> Any:
    """A field: its default as an operator would write it (None: not set), how it is read, and what it means."""
    return dataclasses.field(
        default_factory=lambda: None if default is None else parse(default),
        repr=not secret,
        metadata={"default": default, "parse": parse, "meaning": meaning, "secret": secret},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be set. Times are in seconds, sizes in bytes. A field `x` is the variable `BRIDGE_X`."""

    amqp_url: tuple[str, ...] = _setting(
        "amqp://guest:guest@localhost:5672/",
        amqp_urls,
        "the broker: amqp:// or amqps://; several nodes, separated by commas, are tried in turn",
        secret=True,
    )
    exchanges: Mapping[str, str] = _setting(
        "killmails=killmail",
        parsers.exchanges,
        "exchanges to consume, each with the update type that it carries by default, separated by commas",
    )
    queue: str | None = _setting(
        None,
        parsers.queue_name,
        "a durable queue to consume instead of an exclusive one, so that nothing is lost while the bridge is away; "
        "one for each bridge",
    )
    history: str = _setting(
        "memory",
        parsers.one_of("memory", "stream"),
        "where recent updates are kept for clients that come back: memory, or stream, which consumes a stream of "
        "RabbitMQ's instead of a queue, shared by all bridges, and outlasts a restart",
    )
    history_stream: str = _setting("bridge.history", parsers.made_name, "that stream's name")
    history_max_age: float = _setting(
        "3h", parsers.duration(1, 366 * 86400), "how long the stream keeps an event, where the bridge makes it"
    )
    history_max_bytes: int = _setting(
        "256 MiB", parsers.size(2**20, 2**40), "how much it keeps, where the bridge makes it; the oldest goes first"
    )
    prefetch: int = _setting(
        "200", parsers.whole(1, 65535), "messages that the broker may send before the first is settled"
    )
    reject_exchange: str | None = _setting(
        "bridge.rejected",
        parsers.unless_off(parsers.made_name),
        "where events go that can't become an update; off: they are only counted",
    )
    schemas: Path | None = _setting(
        None, parsers.folder, "a folder with schema files of your own, one for each update type"
    )
    max_message_bytes: int = _setting("4 MiB", parsers.size(1024, 512 * 2**20), "the largest event that is taken")
    duplicate_window: int = _setting(
        "65536",
        parsers.whole(0, 10_000_000),
        "identities of sent updates to remember, so that none is sent twice; 0: none",
    )
    host: tuple[str, ...] = _setting(
        "localhost",
        parsers.hosts,
        "addresses to listen on, separated by commas; localhost is 127.0.0.1 and ::1, :: is all addresses of this "
        "machine (IPv6 and IPv4), 0.0.0.0 is those of IPv4",
    )
    port: int = _setting("3000", parsers.whole(0, 65535), "the port to listen on; 0 picks one and logs it")
    path: str = _setting("/updates", parsers.path, "the path of the WebSocket endpoint")
    allowed_networks: tuple[Network, ...] = _setting(
        ",".join(map(str, DEFAULT_NETWORKS)),
        parsers.networks,
        "networks that clients may connect from, separated by commas",
    )
    allowed_hosts: frozenset[str] = _setting(
        "",
        parsers.host_names,
        "names, beside localhost and internal ones, that clients may use for this host, separated by commas",
    )
    allowed_origins: frozenset[str] = _setting(
        "",
        parsers.origins,
        "origins of web pages, beside this host's own and localhost's, that may connect, separated by commas, as in "
        "https://kills.example.org,http://10.0.0.5:8080",
    )
    idle_timeout: float = _setting(
        "120s", parsers.duration(0.1, 86400), "a client from which nothing is heard for this long is closed"
    )
    ping_interval: float = _setting(
        "30s",
        parsers.duration(0.05, 86400),
        "a client that is silent for this long is pinged; less than BRIDGE_IDLE_TIMEOUT",
    )
    handshake_timeout: float = _setting("5s", parsers.duration(0.1, 300), "how long a client may take for its request")
    max_connections: int = _setting("10000", parsers.whole(1, 1_000_000), "clients at once; more are closed with 1013")
    max_connections_per_address: int | None = _setting(
        None,
        parsers.limit(1_000_000),
        "clients at once from one address, loopback excepted; more are closed with 1013; unless set, a tenth of "
        "all, and 16 at least; off: no such limit",
    )
    log_bytes: int = _setting(
        "16 MiB",
        parsers.size(64 * 1024, 2**40),
        "memory for the newest updates: how far behind a slow client may be; at least BRIDGE_MAX_MESSAGE_BYTES",
    )
    shutdown_timeout: float = _setting(
        "8s", parsers.duration(0.1, 3600), "how long stopping may take before clients that do not close are cut off"
    )
    reuse_port: bool = _setting("false", parsers.boolean, "let several bridges listen on the same port")
    tls_certificate: Path | None = _setting(
        None, parsers.file, "certificate chain (PEM), for wss://; read again on SIGHUP"
    )
    tls_key: Path | None = _setting(None, parsers.file, "the certificate's private key (PEM)")
    wait: bool = _setting(
        "false",
        parsers.boolean,
        "wait at the start also where the broker refuses (password, permissions), instead of ending",
    )
    log_level: str = _setting(
        "info", parsers.one_of("debug", "info", "warning", "error"), "debug, info, warning or error"
    )
    log_format: str = _setting(
        "auto", parsers.one_of("auto", "text", "json"), "text or json; auto: text on a terminal, json otherwise"
    )
    instance: str = _setting(socket.gethostname(), parsers.name, "this bridge's name, for logs, headers and the broker")
    amqp_url_file: Path | None = None
    """The file that `amqp_url` was read from, if BRIDGE_AMQP_URL_FILE names one. No setting of its own."""

    @property
    def history_window(self) -> int:
        """How much of a stream is read back at the start: what is older neither fits into the log nor is a duplicate.

        An update takes 220 bytes there at least: 60 of an envelope, and what each frame costs beside itself.
        """
        return max(self.log_bytes // 220, self.duplicate_window)


FIELDS = {field.name: field for field in dataclasses.fields(Settings) if field.metadata}

_QUOTED = re.compile(r"(?P<quote>[\"']).*(?P=quote)", re.DOTALL)

_SECRETS = {name: bool(field.metadata["secret"]) for name, field in FIELDS.items()}


def load(
    flags: Mapping[str, str], environment: Mapping[str, str], dotenv: Path, *, must_exist: bool = False
) -> Settings:
    """The effective settings. `flags` are by field name; `dotenv` need not exist, unless `must_exist` is set.

    Raises ConfigurationError with every problem, each naming the setting, the value (never a secret one) and what was
    expected.
    """
    return load_with_sources(flags, environment, dotenv, must_exist=must_exist)[0]


def load_with_sources(
    flags: Mapping[str, str], environment: Mapping[str, str], dotenv: Path, *, must_exist: bool = False
) -> tuple[Settings, Mapping[str, Found]]:
    """The same, and what was found for each setting that is not left at its default."""
    found, problems = find(_SECRETS, flags, environment, dotenv, must_exist=must_exist)
    effective: dict[str, Any] = {}
    for name, field in FIELDS.items():
        if name not in found:
            continue
        try:
            effective[name] = _parse(field, found[name].text)
        except ValueError as error:
            shown = "its value" if field.metadata["secret"] else shown_value(found[name].text)
            problems.append(f"{PREFIX}{name.upper()} ({found[name].source}): {shown} won't do: expected {error}")
    if not problems:
        file = found["amqp_url"].file if "amqp_url" in found else None
        settings = Settings(**effective, amqp_url_file=file)
        problems = _contradictions(settings, found)
    if problems:
        raise ConfigurationError(problems)
    return settings, found


def is_set(name: str, environment: Mapping[str, str], dotenv: Path) -> bool:
    """Whether the environment or the file `dotenv` sets this setting, whatever the value is."""
    return name in find(_SECRETS, {}, environment, dotenv)[0]


def shown_default(name: str) -> str:
    """A setting's default for a person, the same on every machine."""
    return "the host name" if name == "instance" else FIELDS[name].metadata["default"] or "not set"


def _parse(field: "dataclasses.Field[Any]", text: str) -> Any:
    text = text.strip()
    if not text and field.metadata["default"] is None:
        return None
    if _QUOTED.fullmatch(text):
        # `docker run --env-file` keeps quotes, and a secret value is not shown.
        raise ValueError("a value without quotes around it")
    return field.metadata["parse"](text)


def _contradictions(settings: Settings, found: Mapping[str, Found]) -> list[str]:
    """Settings that are right one by one, and wrong together."""
    problems = []
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        problems.append("BRIDGE_TLS_CERTIFICATE, BRIDGE_TLS_KEY: one is set without the other; TLS needs both")
    if is_reserved(settings.path):
        problems.append(
            f"BRIDGE_PATH: {settings.path!r} is reserved for the bridge's own pages: give another path, such as "
            "/updates"
        )
    if settings.ping_interval >= settings.idle_timeout:
        problems.append(
            f"BRIDGE_PING_INTERVAL: {settings.ping_interval:g} s is not below BRIDGE_IDLE_TIMEOUT "
            f"({settings.idle_timeout:g} s): clients that only listen would be closed; set BRIDGE_PING_INTERVAL lower"
        )
    if settings.reject_exchange is not None and settings.reject_exchange in (settings.queue, *settings.exchanges):
        problems.append(
            f"BRIDGE_REJECT_EXCHANGE: {settings.reject_exchange!r} is what the bridge consumes as well (BRIDGE_QUEUE, "
            "BRIDGE_EXCHANGES): what it rejects would come back to it for ever"
        )
    of_stream = ("history_stream", "history_max_age", "history_max_bytes")
    if settings.history == "memory":
        # A flag, say, may switch off the stream of a `.env` file with all that the file says of it.
        above = found["history"].layer if "history" in found else Layer.DOTENV
        problems += [
            f"{PREFIX}{name.upper()} ({found[name].source}): has an effect only with BRIDGE_HISTORY=stream, and "
            "BRIDGE_HISTORY is memory; set BRIDGE_HISTORY=stream, or remove this setting"
            for name in of_stream
            if name in found and found[name].layer >= above
        ]
    if settings.history == "stream":
        if settings.queue is not None:
            problems.append(
                f"BRIDGE_QUEUE: {settings.queue!r} is not consumed with BRIDGE_HISTORY=stream, which has everything; "
                "unset one of them"
            )
        if settings.history_stream == settings.reject_exchange:
            problems.append(
                f"BRIDGE_HISTORY_STREAM: {settings.history_stream!r} is the queue of BRIDGE_REJECT_EXCHANGE as well: "
                "give it another name"
            )
    if settings.log_bytes < settings.max_message_bytes:
        problems.append(
            f"BRIDGE_LOG_BYTES: {settings.log_bytes} is less than BRIDGE_MAX_MESSAGE_BYTES "
            f"({settings.max_message_bytes}): one update must fit into the log"
        )
    return problems
