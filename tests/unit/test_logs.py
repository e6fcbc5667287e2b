"""Tests of the lines on standard error, in both formats, from the bridge and from its libraries."""

from __future__ import annotations

import atexit
import fcntl
import io
import logging
import os
import re
import sys
import threading
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import structlog

from bridge import logs, queued_output
from bridge.logs import LogFormat, LogLevel
from bridge.queued_output import queue_of
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator


CONFIGURED = (logs._OWN_LOGGER, *logs._DEBUG_LOGGERS, logs._SILENT_LOGGER)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    levels = {name: logging.getLogger(name).level for name in CONFIGURED}
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, noisy_level in levels.items():
        logging.getLogger(name).setLevel(noisy_level)


class Output:
    """Returns the text that the bridge has written to standard error."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def lines(self) -> list[str]:
        captured = self._capsys.readouterr()
        assert captured.out == ""
        return captured.err.splitlines()

    def objects(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self.lines()]


@pytest.fixture
def output(capsys: pytest.CaptureFixture[str]) -> Output:
    return Output(capsys)


def fail(words: str = "broken") -> None:
    raise ValueError(words)


def test_json_line_holds_the_event_its_fields_level_logger_and_time(output: Output) -> None:
    logs.configure(LogLevel.INFO, LogFormat.JSON)
    structlog.get_logger("bridge.test").info("client evicted", reason="idle", silent_s=120.5)
    [line] = output.objects()
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "client evicted",
        "level": "info",
        "logger": "bridge.test",
        "reason": "idle",
        "silent_s": 120.5,
    }


def test_value_that_json_does_not_know_is_written_as_text(output: Output) -> None:
    logs.configure(LogLevel.INFO, LogFormat.JSON)
    structlog.get_logger("bridge").info("listening", address=ValueError("x"))
    assert output.objects()[0]["address"] == "x"


HOSTILE = "a\n\x1b[31m\x00\x7f\x9b\u202e\u2028b"
ESCAPED = r"a\n\x1b[31m\x00\x7f\x9b\u202e\u2028b"


@pytest.mark.parametrize("style", ["json", "text"])
def test_characters_that_are_not_printable_are_escaped(output: Output, style: str) -> None:
    logs.configure(LogLevel.INFO, LogFormat(style))
    structlog.get_logger("bridge").info("client refused", detail=HOSTILE)
    logging.getLogger("asyncio").error("in task %s", HOSTILE)
    refused, failed = output.lines()
    assert refused.isprintable()
    assert failed.isprintable()
    if style == "json":
        assert (orjson.loads(refused)["detail"], orjson.loads(failed)["event"]) == (ESCAPED, f"in task {ESCAPED}")


@pytest.mark.parametrize("style", ["json", "text"])
def test_traceback_keeps_its_line_breaks_and_escapes_the_rest(output: Output, style: str) -> None:
    logs.configure(LogLevel.INFO, LogFormat(style))
    try:
        fail(HOSTILE)
    except ValueError:
        structlog.get_logger("bridge").exception("an event could not be processed")
    lines = output.lines()
    assert all(line.isprintable() for line in lines)
    text = orjson.loads(lines[0])["exception"] if style == "json" else "\n".join(lines)
    assert "\n" in text
    assert "in fail" in text
    assert r"\x1b[31m" in text


def test_traceback_shows_no_local_variable() -> None:
    """Unlike structlog's default, the bridge never shows local variables, even if the package rich is installed."""
    logs.configure(LogLevel.INFO, LogFormat.TEXT)
    formatter = logging.getLogger().handlers[0].formatter
    assert isinstance(formatter, structlog.stdlib.ProcessorFormatter)
    renderer = formatter.processors[-1]
    assert isinstance(renderer, structlog.dev.ConsoleRenderer)
    assert renderer.exception_formatter is structlog.dev.plain_traceback


def test_text_line_holds_the_same_fields_as_a_json_line(output: Output) -> None:
    logs.configure(LogLevel.INFO, LogFormat.TEXT)
    structlog.get_logger("bridge.test").info("client evicted", reason="idle", silent_s=120.5)
    [line] = output.lines()
    for part in ("client evicted", "reason=idle", "silent_s=120.5", "info", "bridge.test"):
        assert part in line
    assert "\x1b" not in line, "there are no colors without a terminal"


def test_list_is_joined_in_text_and_an_array_in_json(output: Output) -> None:
    for log_format in (LogFormat.TEXT, LogFormat.JSON):
        logs.configure(LogLevel.INFO, log_format)
        structlog.get_logger("bridge").info("consuming", exchanges=("kills", "wars\n"), names=["one"])
    text, line = output.lines()
    assert r"exchanges='kills, wars\\n'" in text
    assert "names=one" in text
    assert orjson.loads(line)["exchanges"] == ["kills", "wars\n"]


def test_exception_is_one_json_line_with_its_traceback(output: Output) -> None:
    logs.configure(LogLevel.INFO, LogFormat.JSON)
    try:
        fail()
    except ValueError:
        structlog.get_logger("bridge").exception("an event could not be processed")
    [line] = output.objects()
    assert (line["event"], line["level"]) == ("an event could not be processed", "error")
    assert "ValueError: broken" in line["exception"]
    assert "in fail" in line["exception"]


def test_exception_is_a_traceback_in_text(output: Output) -> None:
    logs.configure(LogLevel.INFO, LogFormat.TEXT)
    try:
        fail()
    except ValueError:
        structlog.get_logger("bridge").exception("an event could not be processed")
    text = "\n".join(output.lines())
    assert "an event could not be processed" in text
    assert "ValueError: broken" in text


def test_record_of_another_library_is_written_the_same_way(output: Output) -> None:
    logs.configure(LogLevel.INFO, LogFormat.JSON)
    try:
        fail()
    except ValueError:
        logging.getLogger("asyncio").exception("in task %s", "7")
    [line] = output.objects()
    assert (line["event"], line["level"], line["logger"]) == ("in task 7", "error", "asyncio")
    assert "ValueError: broken" in line["exception"]


def test_extra_fields_of_a_standard_record_are_fields_of_the_line(output: Output) -> None:
    logs.configure(LogLevel.DEBUG, LogFormat.JSON)
    logging.getLogger("bridge.amqp").debug("connection opened", extra={"node": "amqp://localhost:5672/"})
    [line] = output.objects()
    assert (line["event"], line["level"], line["node"]) == ("connection opened", "debug", "amqp://localhost:5672/")


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_only_lines_at_the_level_or_above_are_written(output: Output, level: str, shown: list[str]) -> None:
    logs.configure(LogLevel(level), LogFormat.JSON)
    log = structlog.get_logger("bridge")
    for name in LogLevel:
        getattr(log, name)("said")
    assert [line["level"] for line in output.objects()] == shown


@pytest.mark.parametrize("name", [*logs._DEBUG_LOGGERS, "aio_pika.robust_connection", "aiormq.connection"])
@pytest.mark.parametrize(("level", "count"), [("info", 0), ("error", 0), ("debug", 1)])
def test_lines_of_a_noisy_library_are_written_only_at_the_level_debug(
    output: Output, name: str, level: str, count: int
) -> None:
    logs.configure(LogLevel(level), LogFormat.JSON)
    logging.getLogger(name).critical("connection lost")
    assert len(output.lines()) == count


@pytest.mark.parametrize("name", ["aio_pika.robust_connection", "aiormq.connection", "asyncio", "websockets.server"])
@pytest.mark.parametrize("level", LogLevel)
def test_debug_lines_of_libraries_are_never_written(output: Output, name: str, level: str) -> None:
    logs.configure(LogLevel(level), LogFormat.JSON)
    logging.getLogger(name).debug("Sending frame %r", "a body")
    assert output.lines() == []


@pytest.mark.parametrize(("level", "expected"), [("debug", True), ("info", False), ("error", False)])
def test_bridge_traces_only_at_the_level_debug(level: str, *, expected: bool) -> None:
    logs.configure(LogLevel(level), LogFormat.JSON)
    assert logs.traces("bridge.amqp") is expected
    assert not logs.traces("aiormq.connection")


@pytest.mark.parametrize("level", LogLevel)
def test_lines_of_websockets_with_headers_of_clients_are_never_written(output: Output, level: str) -> None:
    logs.configure(LogLevel(level), LogFormat.JSON)
    logging.getLogger("websockets.server").debug("< %s: %s", "Cookie", "session=secret")
    assert output.lines() == []


@pytest.mark.parametrize(("is_terminal", "is_json"), [(True, False), (False, True)])
def test_automatic_style_is_text_on_a_terminal_and_json_otherwise(
    output: Output, monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool, is_json: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    logs.configure(LogLevel.INFO, LogFormat.AUTO)
    structlog.get_logger("bridge").info("listening")
    [line] = output.lines()
    assert line.startswith("{") is is_json


@pytest.mark.parametrize(
    ("variable", "value", "colored"),
    [("NO_COLOR", "1", False), ("NO_COLOR", "", True), ("TERM", "dumb", False), ("TERM", "xterm", True)],
)
def test_text_on_a_terminal_is_colored_unless_the_environment_disables_color(
    output: Output, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, *, colored: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    logs.configure(LogLevel.INFO, LogFormat.TEXT)
    structlog.get_logger("bridge").info("listening")
    [line] = output.lines()
    assert ("\x1b[" in line) is colored


@pytest.mark.parametrize("style", ["json", "text"])
def test_times_have_milliseconds(output: Output, style: str) -> None:
    logs.configure(LogLevel.INFO, LogFormat(style))
    structlog.get_logger("bridge").info("listening")
    logging.getLogger("asyncio").error("late")
    for line in output.lines():
        timestamp = orjson.loads(line)["timestamp"] if style == "json" else line.split()[0]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", timestamp)


def test_configuring_twice_writes_once(output: Output) -> None:
    logs.configure(LogLevel.INFO, LogFormat.JSON)
    logs.configure(LogLevel.INFO, LogFormat.JSON)
    structlog.get_logger("bridge").info("listening")
    assert len(output.lines()) == 1


# Logging to a pipe without a reader


def test_log_without_a_standard_error_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    for style in ("auto", "text", "json"):
        logs.configure(LogLevel.INFO, LogFormat(style))
        structlog.get_logger("bridge").info("listening")
    assert isinstance(logging.getLogger().handlers[0], logging.NullHandler)


async def test_written_does_not_wait_without_a_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    logs.never_block()
    assert isinstance(sys.stderr, io.StringIO)
    threads = threading.active_count()
    await logs.written(60.0)
    assert (threading.active_count(), logs.lines_dropped()) == (threads, 0)


@pytest.mark.parametrize("style", ["json", "text"])
async def test_dropped_lines_are_reported_in_the_log_once_there_is_room(
    monkeypatch: pytest.MonkeyPatch, style: str
) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"x" * fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096))
    monkeypatch.setattr(queued_output, "LIMIT_BYTES", 500)
    with os.fdopen(writer, "w") as file:
        monkeypatch.setattr(sys, "stderr", file)
        logs.never_block()
        output = queue_of(sys.stderr)
        assert output is not None
        logs.configure(LogLevel.INFO, LogFormat(style))
        log = structlog.get_logger("bridge.test")
        log.info("first")
        await eventually("the thread writes", lambda: output._writing and not output._queue)
        for name in ("fits", "x" * 1000, "x" * 2000):
            log.info(name)
        assert logs.lines_dropped() == 2
        await logs.written(0.0)
        assert not os.read(reader, 4096).strip(b"x")
        await logs.written(20.0)
        output.end()
        atexit.unregister(output.end)
    first, second, report, *others = os.read(reader, 4096).decode().splitlines()
    os.close(reader)
    assert ("first" in first, "fits" in second, others) == (True, True, [])
    if style == "json":
        fields = orjson.loads(report)
        assert fields.pop("timestamp").endswith("Z")
        assert fields == {"event": "log lines dropped", "level": "warning", "logger": "bridge", "lines": 2}
    else:
        assert "warning" in report
        assert report.endswith("log lines dropped [bridge] lines=2")
