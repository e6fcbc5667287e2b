"""`edk-bridge check`: what a bridge would say to events, without a broker."""

from collections.abc import Callable, Iterable

import orjson

from bridge.commands.documents import Document, documents
from bridge.commands.places import line_of
from bridge.contract.pipeline import Event, Pipeline, Reason, Rejected
from bridge.contract.text import printable

A_LIST = "; a list is one event here: have its items one a line, as `jq -c '.[]'` writes them"


def check(
    lines: Iterable[bytes],
    name: str,
    update_type: str | None,
    default_type: str,
    pipeline: Pipeline,
    say: Callable[[str], None],
) -> tuple[int, int]:
    """Says every violation, a line each: `name:line: pointer: what is wrong [reason]`.

    The types are the message's `type` property, where there is one, and that of the exchange. Returns how many events
    there were, and how many of them are invalid.
    """
    events = invalid = 0
    for document in documents(lines):
        events += 1
        problems = pipeline.problems(Event(document.body, update_type, default_type, None))
        invalid += bool(problems)
        for problem in problems:
            say(f"{printable(name)}:{sentence(document, problem)}")
    return events, invalid


def sentence(document: Document, problem: Rejected) -> str:
    """Where in the file, and what: `3: /systemId: the member 'systemId' is missing [schema-violation]`."""
    if problem.reason is Reason.NOT_JSON:
        try:
            orjson.loads(document.body)
        except orjson.JSONDecodeError as error:
            line, column, words = _syntax(document.body, error)
            # The line of the file, not of the document in it.
            return f"{document.line + line - 1}:{column}: {words} [{problem.reason}]"
    line = document.line + line_of(document.body, problem.pointer)
    # A violation's detail begins with its pointer, other reasons' do not.
    begins = f"{problem.pointer}: " if problem.pointer else ""
    is_list = problem.reason is Reason.SCHEMA_VIOLATION and not problem.pointer and document.body.startswith(b"[")
    hint = A_LIST if is_list else ""
    return f"{line}: {begins}{problem.detail.removeprefix(begins)}{hint} [{problem.reason}]"


def _syntax(body: bytes, error: orjson.JSONDecodeError) -> tuple[int, int, str]:
    """Line and column, counted from 1, and what is wrong there. Of what is no UTF-8 the error itself knows none."""
    try:
        body.decode()
    except UnicodeDecodeError as broken:
        before = body[: broken.start].decode()
        return before.count("\n") + 1, len(before) - before.rfind("\n"), "not UTF-8"
    return error.lineno, error.colno, error.msg
