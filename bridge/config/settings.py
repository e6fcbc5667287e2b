"""The settings: one frozen value from flags, the environment, a `.env` file and the defaults.

Flags override the environment, which overrides `.env`, which overrides the defaults. A setting `X` may also come from a
file that `X_FILE` names, for example a Docker secret. An unknown name with the prefix is an error, because otherwise a
misspelled setting would keep its default silently. All problems are reported at once.
"""

import dataclasses
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar, cast, overload

from bridge.config import parsers
from bridge.config.amqp_urls import amqp_urls
from bridge.config.networks import DEFAULT_NETWORKS, Network
from bridge.config.paths import is_reserved
from bridge.config.sources import PREFIX, Found, Layer, find
from bridge.errors import ConfigurationError, shown_value
from bridge.logs import LogFormat, LogLevel

__all__ = [
    "DOTENV",
    "PREFIX",
    "SETTINGS",
    "HistoryMode",
    "Setting",
    "Settings",
    "is_set",
    "load",
    "load_with_sources",
    "shown_default",
]

DOTENV = Path(".env")
"""The file of settings in the working directory, unless the operator names another."""

_Value = TypeVar("_Value")


class HistoryMode(StrEnum):
    """Where the history of updates is kept: the values of `BRIDGE_HISTORY`."""

    MEMORY = "memory"
    STREAM = "stream"


@dataclass(frozen=True, slots=True)
class Setting:
    """The declaration of one setting."""

    default: str | None
    """As an operator would write it. None: not set."""
    parse: Callable[[str], object]
    """Raises ValueError with the expected value."""
    meaning: str
    secret: bool
    """Whether the value may contain a password, and is never printed."""

    @property
    def is_switch(self) -> bool:
        """Whether the setting is true or false."""
        return self.parse is parsers.boolean

    @property
    def default_value(self) -> object:
        """The default as a field of `Settings` has it."""
        return None if self.default is None else self.parse(self.default)


@overload
def _setting(default: str, parse: Callable[[str], _Value], meaning: str, *, secret: bool = False) -> _Value: ...


@overload
def _setting(default: None, parse: Callable[[str], _Value], meaning: str, *, secret: bool = False) -> _Value | None: ...


def _setting(
    default: str | None, parse: Callable[[str], _Value], meaning: str, *, secret: bool = False
) -> _Value | None:
    """A field of `Settings` with its declaration."""
    setting = Setting(default, parse, meaning, secret)
    return dataclasses.field(
        default_factory=lambda: cast("_Value | None", setting.default_value),
        repr=not secret,
        metadata={_DECLARATION: setting},
    )


_DECLARATION = "setting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The values of all settings.

    The field `x` has the value of the variable `BRIDGE_X`. A duration's field has the suffix `_s`, which its variable
    does not have.
    """

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
    history: HistoryMode = _setting(
        "memory",
        parsers.member_of(HistoryMode),
        "where recent updates are kept for clients that come back: memory, or stream, which consumes a stream of "
        "RabbitMQ's instead of a queue, shared by all bridges, and outlasts a restart",
    )
    history_stream: str = _setting("bridge.history", parsers.made_name, "that stream's name")
    history_max_age_s: float = _setting(
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
    idle_timeout_s: float = _setting(
        "120s", parsers.duration(0.1, 86400), "a client from which nothing is heard for this long is closed"
    )
    ping_interval_s: float = _setting(
        "30s",
        parsers.duration(0.05, 86400),
        "a client that is silent for this long is pinged; less than BRIDGE_IDLE_TIMEOUT",
    )
    handshake_timeout_s: float = _setting(
        "5s", parsers.duration(0.1, 300), "how long a client may take for its request"
    )
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
    shutdown_timeout_s: float = _setting(
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
    log_level: LogLevel = _setting("info", parsers.member_of(LogLevel), "debug, info, warning or error")
    log_format: LogFormat = _setting(
        "auto", parsers.member_of(LogFormat), "text or json; auto: text on a terminal, json otherwise"
    )
    instance: str = _setting(socket.gethostname(), parsers.name, "this bridge's name, for logs, headers and the broker")
    amqp_url_file: Path | None = None
    """The file that `amqp_url` was read from, if BRIDGE_AMQP_URL_FILE names one. Not a setting."""

    @property
    def history_window(self) -> int:
        """The number of events that are read back from a stream at the start.

        Older events neither fit into the log nor are in the duplicate window. An update takes at least 220 bytes of the
        log: 60 bytes of an envelope, and the log's own data for each frame.
        """
        return max(self.log_bytes // 220, self.duplicate_window)


SETTINGS: Mapping[str, Setting] = {
    field.name.removesuffix("_s"): field.metadata[_DECLARATION]
    for field in dataclasses.fields(Settings)
    if field.metadata
}
"""The declarations of all settings by their names in flags: `idle_timeout` for `BRIDGE_IDLE_TIMEOUT`."""

_FIELDS = {field.name.removesuffix("_s"): field.name for field in dataclasses.fields(Settings)}

_QUOTED = re.compile(r"(?P<quote>[\"']).*(?P=quote)", re.DOTALL)

_SECRETS = {name: setting.secret for name, setting in SETTINGS.items()}


def load(
    flags: Mapping[str, str], environment: Mapping[str, str], dotenv: Path, *, must_exist: bool = False
) -> Settings:
    """The settings in effect. `flags` are by the names of `SETTINGS`.

    The file `dotenv` may be missing unless `must_exist` is set. Raises ConfigurationError with all problems. Each
    problem has the setting, its value (unless secret) and the expected value.
    """
    return load_with_sources(flags, environment, dotenv, must_exist=must_exist)[0]


def load_with_sources(
    flags: Mapping[str, str], environment: Mapping[str, str], dotenv: Path, *, must_exist: bool = False
) -> tuple[Settings, Mapping[str, Found]]:
    """The settings in effect, and the source of each setting that is not left at its default."""
    found, problems = find(_SECRETS, flags, environment, dotenv, must_exist=must_exist)
    effective: dict[str, Any] = {}
    for name, setting in SETTINGS.items():
        if name not in found:
            continue
        try:
            effective[_FIELDS[name]] = _parse(setting, found[name].text)
        except ValueError as error:
            shown = "its value" if setting.secret else shown_value(found[name].text)
            problems.append(f"{PREFIX}{name.upper()} ({found[name].source}): {shown} won't do: expected {error}")
    if not problems:
        file = found["amqp_url"].file if "amqp_url" in found else None
        settings = Settings(**effective, amqp_url_file=file)
        problems = _contradictions(settings, found)
    if problems:
        raise ConfigurationError(problems)
    return settings, found


def is_set(name: str, environment: Mapping[str, str], dotenv: Path) -> bool:
    """Whether the environment or the file `dotenv` sets this setting, to any value."""
    return name in find(_SECRETS, {}, environment, dotenv)[0]


def shown_default(name: str) -> str:
    """A setting's default for documentation. It is the same on every machine."""
    return "the host name" if name == "instance" else SETTINGS[name].default or "not set"


def _parse(setting: Setting, text: str) -> object:
    text = text.strip()
    if not text and setting.default is None:
        return None
    if _QUOTED.fullmatch(text):
        # `docker run --env-file` keeps quotes, and the value of a secret setting is not shown.
        raise ValueError("a value without quotes around it")
    return setting.parse(text)


def _contradictions(settings: Settings, found: Mapping[str, Found]) -> list[str]:
    """Problems of settings that are valid one by one, but not together."""
    problems = []
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        problems.append("BRIDGE_TLS_CERTIFICATE, BRIDGE_TLS_KEY: one is set without the other; TLS needs both")
    if is_reserved(settings.path):
        problems.append(
            f"BRIDGE_PATH: {settings.path!r} is reserved for the bridge's own pages: give another path, such as "
            "/updates"
        )
    if settings.ping_interval_s >= settings.idle_timeout_s:
        problems.append(
            f"BRIDGE_PING_INTERVAL: {settings.ping_interval_s:g} s is not below BRIDGE_IDLE_TIMEOUT "
            f"({settings.idle_timeout_s:g} s): clients that only listen would be closed; set BRIDGE_PING_INTERVAL lower"
        )
    if settings.reject_exchange is not None and settings.reject_exchange in (settings.queue, *settings.exchanges):
        problems.append(
            f"BRIDGE_REJECT_EXCHANGE: {settings.reject_exchange!r} is what the bridge consumes as well (BRIDGE_QUEUE, "
            "BRIDGE_EXCHANGES): what it rejects would come back to it for ever"
        )
    of_stream = ("history_stream", "history_max_age", "history_max_bytes")
    if settings.history is HistoryMode.MEMORY:
        # A flag may turn off the stream of a `.env` file. The stream's other settings in that file are no problem then.
        above = found["history"].layer if "history" in found else Layer.DOTENV
        problems += [
            f"{PREFIX}{name.upper()} ({found[name].source}): has an effect only with BRIDGE_HISTORY=stream, and "
            "BRIDGE_HISTORY is memory; set BRIDGE_HISTORY=stream, or remove this setting"
            for name in of_stream
            if name in found and found[name].layer >= above
        ]
    if settings.history is HistoryMode.STREAM:
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
