"""Configures the log: fixed phrases with fields, written to standard error as JSON lines or as text.

At the level `debug`, the bridge's own loggers write a line for each step of each delivery and of each handshake. The
debug lines of libraries are never written, because they contain whole message bodies.

The loggers of the AMQP libraries are silent at all levels except `debug`. The bridge itself logs each lost connection
to the broker, once and with a hint.

Every character that is not printable is escaped, in all fields of all loggers. Without escapes, a value could contain
terminal commands, or look like another log line.
"""

import asyncio
import logging
import sys
from datetime import UTC, datetime
from enum import StrEnum

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from bridge import queued_output, terminal
from bridge.contract.text import escaped


class LogLevel(StrEnum):
    """The values of `BRIDGE_LOG_LEVEL`."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """The values of `BRIDGE_LOG_FORMAT`."""

    AUTO = "auto"
    """The log format is text on a terminal, and JSON otherwise."""
    TEXT = "text"
    JSON = "json"


_MULTILINE_FIELDS = frozenset({"exception", "stack"})
_OWN_LOGGER = "bridge"
"""The name of the logger that is the parent of the bridge's own loggers."""

_DEBUG_LOGGERS = ("aio_pika", "aiormq")
"""Loggers of libraries.

The bridge's log contains lines of these loggers only if its level is `debug`, and then only lines of the level `info`
or higher.
"""

_SILENT_LOGGER = "websockets"
"""A library's logger that is always silent.

The library's log lines contain clients' headers, which may contain cookies, and up to 8 KiB of arbitrary text.
"""


def configure(level: LogLevel, log_format: LogFormat) -> None:
    """Sends the log of this process to standard error.

    A second call of `configure` replaces the first configuration.
    """
    if log_format is LogFormat.AUTO:
        log_format = LogFormat.TEXT if sys.stderr is not None and sys.stderr.isatty() else LogFormat.JSON
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        _timestamped,
    ]
    renderer: Processor
    text_processors: list[Processor] = []
    if log_format is LogFormat.TEXT:
        text_processors = [_lists_joined]
        renderer = structlog.dev.ConsoleRenderer(
            colors=terminal.takes_color(sys.stderr),
            pad_event_to=0,
            # The fields of a line have the same order as in the logging call, where the most important field comes
            # first.
            sort_keys=False,
            # If the package `rich` is installed, structlog's default formatter shows the local variables of each frame,
            # which may contain passwords.
            exception_formatter=structlog.dev.plain_traceback,
        )
    else:
        renderer = structlog.processors.JSONRenderer(_dumps)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    output = logging.NullHandler() if sys.stderr is None else logging.StreamHandler(sys.stderr)
    output.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            # The modules of `Publisher` also run in other programs, so these modules use `logging`, with fields in
            # `extra`.
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                *text_processors,
                _escaped,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [output]
    traced = level is LogLevel.DEBUG
    root.setLevel(logging.INFO if traced else level.upper())
    logging.getLogger(_OWN_LOGGER).setLevel(level.upper())
    for name in _DEBUG_LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO if traced else logging.CRITICAL + 1)
    logging.getLogger(_SILENT_LOGGER).setLevel(logging.CRITICAL + 1)


def traces(logger: str) -> bool:
    """Whether a logger writes debug lines.

    An object should call `traces` only once, in its constructor, so that disabled debug lines take no time later.
    """
    return logging.getLogger(logger).isEnabledFor(logging.DEBUG)


def never_block() -> None:
    """Makes writes to standard error non-blocking, because a blocked write would stop the process's event loop.

    Call `never_block` before `configure`. If the reader of standard error stops reading, lines are dropped as soon as
    the queue is full.
    """
    queued_output.install("stderr", _report_dropped)


async def written(timeout_s: float) -> None:
    """Waits until all log lines are written, or until `timeout_s` has passed."""
    output = queued_output.queue_of(sys.stderr)
    if output is not None:
        await asyncio.to_thread(output.drain, timeout_s)


def lines_dropped() -> int:
    """Returns the number of lines dropped since the start of the process."""
    output = queued_output.queue_of(sys.stderr)
    return 0 if output is None else output.lines_dropped


def _report_dropped(lines: int) -> None:
    structlog.get_logger("bridge").warning("log lines dropped", lines=lines)


def _timestamped(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
    fields["timestamp"] = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return fields


def _lists_joined(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
    for name, value in fields.items():
        if isinstance(value, list | tuple):
            fields[name] = ", ".join(map(str, value))
    return fields


def _escaped(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
    for name, value in fields.items():
        if isinstance(value, str) and not value.isprintable():
            # Line breaks are kept only in tracebacks.
            fields[name] = escaped(value, kept="\n" if name in _MULTILINE_FIELDS else "")
    return fields


def _dumps(value: object, **_: object) -> str:
    return orjson.dumps(value, default=str).decode()
