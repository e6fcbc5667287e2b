"""`edk-bridge check`: validates events as a bridge does, without a broker."""

import sys
from collections.abc import Callable

import click

from bridge.cli.common.documents import documents
from bridge.cli.common.errors import exit_on_error
from bridge.cli.common.events import (
    EventFile,
    Problem,
    exchange_for,
    files_argument,
    load_pipeline,
    problems,
    read_lines,
    type_option,
)
from bridge.cli.common.options import effective_settings, exit_codes, setting_options
from bridge.cli.common.output import echo, echo_json
from bridge.contract.pipeline import Pipeline
from bridge.counts import counted


@click.command(
    short_help="Validates events without a broker.",
    epilog=exit_codes(
        _0="All events are valid.",
        _1="Some events are invalid.",
        _2="Options, settings or files can't be used.",
        _130="Ctrl-C.",
    ),
)
@type_option
@click.option("--json", "in_json", is_flag=True, help="Print a JSON object for each violation (NDJSON).")
@setting_options("schemas", "max_message_bytes")
@files_argument
def check(files: tuple[str, ...], update_type: str | None, in_json: bool, **flags: str | None) -> None:
    """Validates events as a bridge does, without a broker.

    Prints a line for each violation: file, line, JSON Pointer, problem and reason. The command prints the number of
    events, and warnings about schema files, on standard error.

    FILE contains one event on each line (NDJSON), or one JSON document. Without FILE, the command reads standard input.
    """
    events = invalid = 0

    def print_problem(problem: Problem) -> None:
        if in_json:
            echo_json(problem.as_json())
        else:
            echo(problem.as_text())

    with exit_on_error():
        settings = effective_settings(flags)
        pipeline = load_pipeline(settings, update_type)
        _, default_type = exchange_for(settings, update_type)
        for name in files:
            file = EventFile(name, read_lines(name), update_type, default_type)
            found = check_events(file, pipeline, print_problem)
            events, invalid = events + found[0], invalid + found[1]
    echo(f"{counted(events, 'event')}, {invalid:,} invalid", err=True)
    sys.exit(1 if invalid else 0)


def check_events(file: EventFile, pipeline: Pipeline, report: Callable[[Problem], None]) -> tuple[int, int]:
    """Reports all problems of the events in a file. Returns the number of events, and the number of invalid events."""
    events = invalid = 0
    for document in documents(file.lines):
        events += 1
        problem = None
        for problem in problems(file, document, pipeline):
            report(problem)
        invalid += problem is not None
    return events, invalid
