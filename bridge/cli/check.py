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
from bridge.cli.common.options import effective_settings, setting_options
from bridge.cli.common.output import echo, echo_json
from bridge.contract.pipeline import Pipeline


@click.command(
    short_help="Says what is wrong with events, without a broker.",
    epilog="Exit codes: 0 all are valid, 1 some are not, 2 options or files that can't be used, 130 Ctrl-C.",
)
@type_option
@click.option(
    "--json",
    "in_json",
    is_flag=True,
    help="NDJSON: for each violation an object with file, line, column, pointer, reason, detail and schema",
)
@setting_options("schemas", "max_message_bytes")
@files_argument
def check(files: tuple[str, ...], update_type: str | None, in_json: bool, **flags: str | None) -> None:
    """Says what is wrong with events, without a broker: a line for each violation. The numbers of events, and
    warnings of schema files, are on standard error.

    FILE (standard input unless given) holds JSON, or one event a line (NDJSON), as a bridge would get them.
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
    echo(f"{events:,} {'event' if events == 1 else 'events'}, {invalid:,} invalid", err=True)
    sys.exit(1 if invalid else 0)


def check_events(file: EventFile, pipeline: Pipeline, report: Callable[[Problem], None]) -> tuple[int, int]:
    """Reports all problems of the events in a file. Returns the number of events, and how many of them are invalid."""
    events = invalid = 0
    for document in documents(file.lines):
        events += 1
        problem = None
        for problem in problems(file, document, pipeline):
            report(problem)
        invalid += problem is not None
    return events, invalid
