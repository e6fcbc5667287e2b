"""The settings: one frozen object, which is made from flags, the environment, a `.env` file and the defaults.

Flags override the environment, which overrides `.env`, which overrides the defaults. A setting `X` may also come from a
file that `X_FILE` names, for example a Docker secret. An unknown name that begins with `BRIDGE_` is an error, because
otherwise a misspelled setting would keep its default silently. All problems of the settings are reported together.
"""

import dataclasses
import re
import socket
from collections.abc import Callable, Collection, Mapping
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
    "Group",
    "HistoryMode",
    "Setting",
    "Settings",
    "is_set",
    "load",
    "load_with_sources",
    "shown_default",
    "value_of",
]

DOTENV = Path(".env")
"""The file of settings that is read from the working directory if the operator names no other file."""

_Value = TypeVar("_Value")


class HistoryMode(StrEnum):
    """The values of `BRIDGE_HISTORY`. Each value says where the history of updates is kept."""

    MEMORY = "memory"
    STREAM = "stream"


class Group(StrEnum):
    """The headings for groups of settings in `serve --help`, in `config` and in the documentation, in this order."""

    BROKER = "Broker"
    EVENTS = "Events"
    HISTORY = "History"
    LISTENING = "Listening"
    ACCESS = "Who may connect"
    TLS = "TLS"
    CLIENTS = "Clients"
    LOGS = "Logs"


@dataclass(frozen=True, slots=True)
class Setting:
    """The declaration of one setting."""

    default: str | None
    """The default as an operator would write it, or None if the setting is not set by default."""
    parse: Callable[[str], object]
    """Converts the text of the setting to its value. Raises ValueError with a description of the expected value."""
    meaning: str
    """The description of the setting in the help and the documentation."""
    metavar: str
    """The word that stands for the value in the help, such as `FILE`."""
    group: Group
    secret: bool
    """Whether the value may contain a password. Such a value is never printed."""

    @property
    def is_switch(self) -> bool:
        """Whether the setting is a switch, whose value is true or false."""
        return self.parse is parsers.boolean

    @property
    def default_value(self) -> object:
        """The parsed default, which is the default of the field in `Settings`."""
        return None if self.default is None else self.parse(self.default)


_Parse = Callable[[str], _Value]


@overload
def _setting(
    group: Group, default: str, parse: _Parse[_Value], metavar: str, meaning: str, *, secret: bool = False
) -> _Value: ...


@overload
def _setting(
    group: Group, default: None, parse: _Parse[_Value], metavar: str, meaning: str, *, secret: bool = False
) -> _Value | None: ...


def _setting(
    group: Group, default: str | None, parse: _Parse[_Value], metavar: str, meaning: str, *, secret: bool = False
) -> _Value | None:
    """Returns a field of `Settings` with its declaration."""
    setting = Setting(default, parse, meaning, metavar, group, secret)
    return dataclasses.field(
        default_factory=lambda: cast("_Value | None", setting.default_value),
        repr=not secret,
        metadata={_DECLARATION: setting},
    )


_DECLARATION = "setting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The values of all settings.

    The field `x` has the value of the variable `BRIDGE_X`. If the value is a duration, the field's name also has the
    suffix `_s`, but the variable's name does not.
    """

    # Broker

    amqp_url: tuple[str, ...] = _setting(
        Group.BROKER,
        "amqp://guest:guest@localhost:5672/",
        amqp_urls,
        "URL,...",
        "The broker: amqp:// or amqps://. Several nodes are tried in turn.",
        secret=True,
    )
    exchanges: Mapping[str, str] = _setting(
        Group.BROKER,
        "killmails=killmail",
        parsers.exchanges,
        "NAME=TYPE,...",
        "The exchanges to consume. The bridge declares a missing one, so a misspelled name causes no error. TYPE is "
        "the update type of events that name none.",
    )
    queue: str | None = _setting(
        Group.BROKER,
        None,
        parsers.queue_name,
        "NAME",
        "A durable queue to consume. It keeps events while the bridge is away. Each bridge needs its own. If not set, "
        "the queue is exclusive, and such events are lost.",
    )
    prefetch: int = _setting(
        Group.BROKER,
        "200",
        parsers.whole(1, 65535),
        "N",
        "How many deliveries the broker may send without an acknowledgement.",
    )
    reject_exchange: str | None = _setting(
        Group.BROKER,
        "bridge.rejected",
        parsers.unless_off(parsers.made_name),
        "NAME",
        "The exchange for rejected events. off: the bridge only counts them.",
    )
    wait: bool = _setting(
        Group.BROKER,
        "false",
        parsers.boolean,
        "[true|false]",
        "If the broker refuses at the start (password, permissions), try again instead of exiting.",
    )

    # Events

    schemas: Path | None = _setting(
        Group.EVENTS,
        None,
        parsers.folder,
        "FOLDER",
        "A folder with your own schema files. Each file adds an update type.",
    )
    max_message_bytes: int = _setting(
        Group.EVENTS,
        "4 MiB",
        parsers.size(1024, 512 * 2**20),
        "BYTES",
        "The size of the largest event. The bridge rejects larger ones.",
    )
    duplicate_window: int = _setting(
        Group.EVENTS,
        "65536",
        parsers.whole(0, 10_000_000),
        "N",
        "How many identities of sent updates the bridge remembers, to send none twice. 0: it may send duplicates.",
    )

    # History

    history: HistoryMode = _setting(
        Group.HISTORY,
        "memory",
        parsers.member_of(HistoryMode),
        "[memory|stream]",
        "Where recent updates are kept for clients that resume. stream: in a RabbitMQ stream, which all bridges share, "
        "and which survives a restart. The bridge then consumes the stream instead of a queue.",
    )
    history_stream: str = _setting(
        Group.HISTORY, "bridge.history", parsers.made_name, "NAME", "The name of the stream."
    )
    history_max_age_s: float = _setting(
        Group.HISTORY,
        "3h",
        parsers.duration(1, 366 * 86400),
        "DURATION",
        "How long a stream that the bridge creates keeps events.",
    )
    history_max_bytes: int = _setting(
        Group.HISTORY,
        "256 MiB",
        parsers.size(2**20, 2**40),
        "BYTES",
        "The size of a stream that the bridge creates. The oldest events are removed first.",
    )
    log_bytes: int = _setting(
        Group.HISTORY,
        "16 MiB",
        parsers.size(64 * 1024, 2**40),
        "BYTES",
        "The memory for the newest updates. A slow client may be this far behind. At least BRIDGE_MAX_MESSAGE_BYTES.",
    )

    # Listening

    host: tuple[str, ...] = _setting(
        Group.LISTENING,
        "localhost",
        parsers.hosts,
        "ADDRESS,...",
        "The addresses to listen on. localhost is 127.0.0.1 and ::1. 0.0.0.0 is all IPv4 addresses of this machine. "
        ":: is all its addresses, IPv6 and IPv4.",
    )
    port: int = _setting(
        Group.LISTENING,
        "3000",
        parsers.whole(0, 65535),
        "PORT",
        "The port to listen on. 0: a free port, which the log shows.",
    )
    path: str = _setting(Group.LISTENING, "/updates", parsers.path, "PATH", "The path of the WebSocket endpoint.")
    reuse_port: bool = _setting(
        Group.LISTENING, "false", parsers.boolean, "[true|false]", "Let several bridges listen on the same port."
    )

    # Who may connect

    allowed_networks: tuple[Network, ...] = _setting(
        Group.ACCESS,
        ",".join(map(str, DEFAULT_NETWORKS)),
        parsers.networks,
        "NETWORK,...",
        "The networks that clients may connect from.",
    )
    allowed_hosts: frozenset[str] = _setting(
        Group.ACCESS,
        "",
        parsers.host_names,
        "NAME,...",
        "Further names of this host that clients may use. localhost and internal names are always allowed.",
    )
    allowed_origins: frozenset[str] = _setting(
        Group.ACCESS,
        "",
        parsers.origins,
        "ORIGIN,...",
        "Further origins of web pages that may connect, such as https://kills.example.org. Pages of the "
        "bridge's own host and port, and of localhost with any port, are always allowed.",
    )

    # TLS

    tls_certificate: Path | None = _setting(
        Group.TLS,
        None,
        parsers.file,
        "FILE",
        "The certificate chain for wss:// (PEM). The bridge reads it again on SIGHUP.",
    )
    tls_key: Path | None = _setting(
        Group.TLS, None, parsers.file, "FILE", "The private key of the certificate (PEM, not encrypted)."
    )

    # Clients

    max_connections: int = _setting(
        Group.CLIENTS,
        "10000",
        parsers.whole(1, 1_000_000),
        "N",
        "How many clients may be connected. The bridge closes further ones with 1013.",
    )
    max_connections_per_address: int | None = _setting(
        Group.CLIENTS,
        None,
        parsers.limit(1_000_000),
        "N",
        "How many clients may be connected from one address, except loopback. The bridge closes further ones with "
        "1013. off: no limit. If not set: a tenth of all, and at least 16.",
    )
    handshake_timeout_s: float = _setting(
        Group.CLIENTS, "5s", parsers.duration(0.1, 300), "DURATION", "How long a client may take for its request."
    )
    ping_interval_s: float = _setting(
        Group.CLIENTS,
        "30s",
        parsers.duration(0.05, 86400),
        "DURATION",
        "How long a connection may be silent before the bridge pings its client. An event stream gets a comment "
        "instead. Less than BRIDGE_IDLE_TIMEOUT.",
    )
    idle_timeout_s: float = _setting(
        Group.CLIENTS,
        "120s",
        parsers.duration(0.1, 86400),
        "DURATION",
        "How long a client may be silent before the bridge closes the connection with 4009. For an event stream: how "
        "long the client's kernel may acknowledge nothing.",
    )
    heartbeat_interval_s: float = _setting(
        Group.CLIENTS,
        "30s",
        parsers.duration_or_zero(0.05, 86400),
        "DURATION",
        "How long a client with ids may get no message before the bridge sends it a heartbeat. 0: no heartbeats.",
    )
    shutdown_timeout_s: float = _setting(
        Group.CLIENTS,
        "8s",
        parsers.duration(0.1, 3600),
        "DURATION",
        "How long a stop may take. The bridge then aborts connections that are still open.",
    )

    # Logs

    log_level: LogLevel = _setting(
        Group.LOGS,
        "info",
        parsers.member_of(LogLevel),
        "LEVEL",
        "The lowest level of log lines: debug, info, warning or error.",
    )
    log_format: LogFormat = _setting(
        Group.LOGS,
        "auto",
        parsers.member_of(LogFormat),
        "[auto|text|json]",
        "The format of log lines. auto: text on a terminal, otherwise JSON.",
    )
    instance: str = _setting(
        Group.LOGS,
        socket.gethostname(),
        parsers.name,
        "NAME",
        "The name of this bridge in /readyz, in RabbitMQ's list of connections, and in the header x-reject-instance.",
    )
    amqp_url_file: Path | None = None
    """The file that `amqp_url` was read from, if BRIDGE_AMQP_URL_FILE names one. This field is not a setting."""

    @property
    def history_window(self) -> int:
        """The number of events that the bridge reads back from a stream when it starts.

        Events older than these would fit neither into the log nor into the duplicate window. An update takes at least
        220 bytes of the log. The 220 bytes include the envelope (60 bytes) and the log's own data for each frame.
        """
        return max(self.log_bytes // 220, self.duplicate_window)


SETTINGS: Mapping[str, Setting] = {
    field.name.removesuffix("_s"): field.metadata[_DECLARATION]
    for field in dataclasses.fields(Settings)
    if field.metadata
}
"""The declarations of all settings by name. For example, the name of `BRIDGE_IDLE_TIMEOUT` is `idle_timeout`."""

_FIELDS = {field.name.removesuffix("_s"): field.name for field in dataclasses.fields(Settings)}

_QUOTED = re.compile(r"(?P<quote>[\"']).*(?P=quote)", re.DOTALL)

_SECRETS = {name: setting.secret for name, setting in SETTINGS.items()}


def load(
    flags: Mapping[str, str], environment: Mapping[str, str], dotenv: Path, *, must_exist: bool = False
) -> Settings:
    """The settings in effect. `flags` maps names of settings, as in `SETTINGS`, to the values of their flags.

    A missing file `dotenv` is a problem only if `must_exist` is true. Raises ConfigurationError with all problems. The
    text of a problem names the setting, its value (unless the value is secret) and the expected value.
    """
    return load_with_sources(flags, environment, dotenv, must_exist=must_exist)[0]


def load_with_sources(
    flags: Mapping[str, str],
    environment: Mapping[str, str],
    dotenv: Path,
    *,
    must_exist: bool = False,
    opens: Collection[str] | None = None,
) -> tuple[Settings, Mapping[str, Found]]:
    """The settings in effect, and the source of each setting that is not left at its default.

    `opens` has the names of the settings whose files and folders must be readable. For `opens`, None means all
    settings.
    """
    found, problems = find(_SECRETS, flags, environment, dotenv, must_exist=must_exist)
    effective: dict[str, Any] = {}
    for name, setting in SETTINGS.items():
        if name not in found:
            continue
        try:
            is_opened = opens is None or name in opens
            effective[_FIELDS[name]] = _parse(setting if is_opened else _unopened(setting), found[name].text)
        except ValueError as error:
            shown = "its value" if setting.secret else shown_value(found[name].text)
            problems.append(f"{PREFIX}{name.upper()} ({found[name].source}): {shown} is not valid: expected {error}")
    if not problems:
        file = found["amqp_url"].file if "amqp_url" in found else None
        settings = Settings(**effective, amqp_url_file=file)
        problems = _contradictions(settings, found)
    if problems:
        raise ConfigurationError(problems)
    return settings, found


def is_set(name: str, environment: Mapping[str, str], dotenv: Path) -> bool:
    """Whether this setting has any value in the environment or in the file `dotenv`."""
    return name in find(_SECRETS, {}, environment, dotenv)[0]


def value_of(settings: Settings, name: str) -> object:
    """The value of the setting that has this name in `SETTINGS`."""
    return getattr(settings, _FIELDS[name])


def shown_default(name: str) -> str:
    """A setting's default as the documentation shows it, which is the same on every machine."""
    return "the host name" if name == "instance" else SETTINGS[name].default or "not set"


def _parse(setting: Setting, text: str) -> object:
    text = text.strip()
    if not text and setting.default is None:
        return None
    if _QUOTED.fullmatch(text):
        # `docker run --env-file` keeps quotes around a value. If the value is secret, the setting's own error would not
        # show the quotes.
        raise ValueError("a value without quotes around it")
    return setting.parse(text)


def _unopened(setting: Setting) -> Setting:
    """A variant of a setting that does not open the file or folder, for commands that do not use the setting.

    The settings of a service may name files that only the service's own user can read.
    """
    names_file = setting.parse in (parsers.file, parsers.folder)
    return dataclasses.replace(setting, parse=Path) if names_file else setting


def _contradictions(settings: Settings, found: Mapping[str, Found]) -> list[str]:
    """The problems of settings that are valid by themselves, but contradict each other."""
    problems = []
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        problems.append("BRIDGE_TLS_CERTIFICATE, BRIDGE_TLS_KEY: one is set without the other; TLS needs both")
    if is_reserved(settings.path):
        problems.append(
            f"BRIDGE_PATH: {settings.path!r} is reserved for the bridge's own pages; give another path, such as "
            "/updates"
        )
    if settings.ping_interval_s >= settings.idle_timeout_s:
        problems.append(
            f"BRIDGE_PING_INTERVAL: {settings.ping_interval_s:g} s is not below BRIDGE_IDLE_TIMEOUT "
            f"({settings.idle_timeout_s:g} s): the bridge would close clients that only listen; set it lower"
        )
    if settings.reject_exchange is not None and settings.reject_exchange in (settings.queue, *settings.exchanges):
        problems.append(
            f"BRIDGE_REJECT_EXCHANGE: the bridge also consumes {settings.reject_exchange!r} (BRIDGE_QUEUE, "
            "BRIDGE_EXCHANGES): it would reject the same events again and again; give another name"
        )
    of_stream = ("history_stream", "history_max_age", "history_max_bytes")
    if settings.history is HistoryMode.MEMORY:
        # If a flag disables a stream that the `.env` file enables, the stream's other settings in the `.env` file are
        # not a problem.
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
                f"BRIDGE_QUEUE: the bridge does not consume {settings.queue!r} with BRIDGE_HISTORY=stream, because the "
                "stream has all events; unset one of them"
            )
        if settings.history_stream == settings.reject_exchange:
            problems.append(
                f"BRIDGE_HISTORY_STREAM: {settings.history_stream!r} is also the queue of BRIDGE_REJECT_EXCHANGE: give "
                "another name"
            )
    if settings.log_bytes < settings.max_message_bytes:
        problems.append(
            f"BRIDGE_LOG_BYTES: {settings.log_bytes} is less than BRIDGE_MAX_MESSAGE_BYTES "
            f"({settings.max_message_bytes}): the log must have room for one update; set it higher"
        )
    return problems
