"""`edk-bridge check`: what a bridge would say to events, without a broker."""

from collections.abc import Callable, Iterable

import orjson

from bridge.commands.documents import Document, documents, line_of
from bridge.contract.pipeline import Event, Pipeline, Reason, Rejected

DEFAULT_TYPE = "killmail"
"""Of an event that does not say its type, as on an exchange of the default settings."""


def check(
    lines: Iterable[bytes], name: str, update_type: str | None, pipeline: Pipeline, say: Callable[[str], None]
) -> tuple[int, int]:
    """Says every violation, a line each: `name:line: pointer: what is wrong [reason]`.

    Returns how many events there were, and how many of them are invalid.
    """
    events = invalid = 0
    for document in documents(lines):
        events += 1
        problems = pipeline.problems(event_of(document, update_type))
        invalid += bool(problems)
        for problem in problems:
            say(f"{name}:{sentence(document, problem)}")
    return events, invalid


def event_of(document: Document, update_type: str | None) -> Event:
    """The event as a bridge would get it; `update_type` None leaves its type to the envelope, or to the default."""
    return Event(document.body, update_type, DEFAULT_TYPE, None)


def sentence(document: Document, problem: Rejected) -> str:
    """Where in the file, and what: `3: /systemId: the member 'systemId' is missing [schema-violation]`."""
    if problem.reason is Reason.NOT_JSON:
        try:
            orjson.loads(document.body)
        except orjson.JSONDecodeError as error:
            line, column = _where(document.body, error)
            # The line of the file, not of the document in it.
            return f"{document.line + line - 1}:{column}: {error.msg} [{problem.reason}]"
    line = document.line + line_of(document.body, problem.pointer)
    # A violation's detail begins with its pointer, other reasons' do not.
    begins = f"{problem.pointer}: " if problem.pointer else ""
    return f"{line}: {begins}{problem.detail.removeprefix(begins)} [{problem.reason}]"


def _where(body: bytes, error: orjson.JSONDecodeError) -> tuple[int, int]:
    """Line and column, counted from 1. Of what is no UTF-8 the error itself does not know them."""
    try:
        body.decode()
    except UnicodeDecodeError as broken:
        before = body[: broken.start].decode()
        return before.count("\n") + 1, len(before) - before.rfind("\n")
    return error.lineno, error.colno
