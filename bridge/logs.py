"""Logs: fixed phrases with fields, as JSON for machines or as text for people, on standard error.

The loggers of the libraries for the broker are shown from `debug` on only: what they have to say of a lost connection,
the bridge says once, with what it does about it.

Whatever a value is and whoever wrote the line, nothing that is not printable gets out: a terminal takes it for a
command, and a reader of lines for another line.
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
    """Text on a terminal, JSON otherwise."""
    TEXT = "text"
    JSON = "json"


LINES = frozenset({"exception", "stack"})
NOISY = ("aio_pika", "aiormq")
SILENT = "websockets"
"""Of its lines each holds a header of a client's, whole: its cookies, and 8 KiB of whatever it likes."""


def configure(level: LogLevel, log_format: LogFormat) -> None:
    """Sends the log of this process to standard error. A second call replaces the first."""
    if log_format is LogFormat.AUTO:
        log_format = LogFormat.TEXT if sys.stderr is not None and sys.stderr.isatty() else LogFormat.JSON
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        _timestamped,
    ]
    renderer: Processor
    if log_format is LogFormat.TEXT:
        renderer = structlog.dev.ConsoleRenderer(
            colors=terminal.takes_color(sys.stderr),
            pad_event_to=0,
            # Where the package rich is there, the default shows every frame's local variables: passwords, and events.
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
            # The parts that a Publisher runs in other programs log by `logging`, with their fields in `extra`.
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _escaped,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [output]
    root.setLevel(level.upper())
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.DEBUG if level is LogLevel.DEBUG else logging.CRITICAL + 1)
    logging.getLogger(SILENT).setLevel(logging.CRITICAL + 1)


def never_block() -> None:
    """Makes writes to standard error never block. For a process with an event loop.

    If nothing reads the lines and the queue is full, later lines are dropped. To be called before `configure`.
    """
    queued_output.install("stderr", _report_dropped)


async def written(timeout_s: float) -> None:
    """Waits until all lines are written, for at most `timeout_s`."""
    output = queued_output.queue_of(sys.stderr)
    if output is not None:
        await asyncio.to_thread(output.drain, timeout_s)


def lines_dropped() -> int:
    """Returns how many lines were dropped since the start of the process."""
    output = queued_output.queue_of(sys.stderr)
    return 0 if output is None else output.lines_dropped


def _report_dropped(lines: int) -> None:
    structlog.get_logger("bridge").warning("log lines dropped", lines=lines)


def _timestamped(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
    fields["timestamp"] = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return fields


def _escaped(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
    for name, value in fields.items():
        if isinstance(value, str) and not value.isprintable():
            # A traceback is the one thing that has lines.
            fields[name] = escaped(value, kept="\n" if name in LINES else "")
    return fields


def _dumps(value: object, **_: object) -> str:
    return orjson.dumps(value, default=str).decode()
