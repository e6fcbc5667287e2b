"""Tests of `publish`, from the input lines to the publisher, including failures of the input and the broker."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, cast

import pytest

from bridge.amqp.publish.publisher import NotConfirmed, Publisher
from bridge.cli.common.events import EventFile
from bridge.cli.publish import LARGE_BYTES, MAX_UNCONFIRMED, READ_AHEAD, Count, PublishInterrupted, publish_events
from bridge.contract import catalog
from bridge.contract.deduplication import DuplicateWindow
from bridge.contract.pipeline import Pipeline
from bridge.errors import BridgeError, ConfigurationError
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

LIMIT_S = 20
"""The maximum time of a test, so that a command that hangs fails the test."""


class FakePublisher:
    """Confirms each event as soon as `confirms` is set, unless `faults` has an error for the event."""

    def __init__(self) -> None:
        self.published: list[int] = []
        self.faults: dict[int, Exception] = {}
        self.confirms = asyncio.Event()
        self.confirms.set()
        self.routed = True
        self.most = self.in_flight = 0

    async def publish_valid(self, body: bytes, update_type: str) -> bool:
        assert update_type == "tick"
        number = json.loads(body)["n"]
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        if number in self.faults:
            raise self.faults[number]
        await self.confirms.wait()
        self.in_flight -= 1
        self.published.append(number)
        return self.routed


class Command:
    """A run of the command `publish` with a fake publisher."""

    def __init__(self, folder: Path) -> None:
        schema = {
            "x-identity": "/id",
            "properties": {"n": {"type": "integer"}, "id": {"type": "integer"}},
            "required": ["n"],
        }
        (folder / "tick.json").write_text(json.dumps(schema))
        self.pipeline = Pipeline(catalog.load([folder]), 2**20)
        self.publisher = FakePublisher()
        self.count = Count(DuplicateWindow(2))
        self.printed: list[str] = []
        self.progress = 0

    def tick(self) -> None:
        self.progress += 1

    async def run(self, lines: Iterable[bytes]) -> None:
        async with asyncio.timeout(LIMIT_S):
            publisher = cast("Publisher", self.publisher)
            file = EventFile("f\n", lines, None, "tick")
            await publish_events(file, self.pipeline, publisher, self.count, self.printed.append, self.tick)


@pytest.fixture
async def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


def events(count: int, error: Exception | None = None) -> Iterator[bytes]:
    """Yields lines with one event each, and then raises the error."""
    for number in range(count):
        yield b'{"n": %d}\n' % number
    if error is not None:
        raise error


@pytest.mark.parametrize("count", [0, 1, 2 * READ_AHEAD])
async def test_input_that_fails_ends_the_command(command: Command, count: int) -> None:
    error = ConfigurationError(["f: can't be read: Input/output error"])
    with pytest.raises(ConfigurationError) as raised:
        await command.run(events(count, error))
    assert raised.value is error
    assert command.publisher.published == list(range(len(command.publisher.published)))


async def test_programming_error_while_reading_is_not_the_end_of_the_input(command: Command) -> None:
    with pytest.raises(ExceptionGroup) as raised:
        await command.run(events(1, ZeroDivisionError("a fault")))
    assert raised.group_contains(ZeroDivisionError)


async def test_more_events_than_the_limit_are_all_published_in_order(command: Command) -> None:
    count = MAX_UNCONFIRMED + 2 * READ_AHEAD
    await command.run(events(count))
    assert command.publisher.published == list(range(count))
    assert (command.count.published, command.count.unrouted, command.count.invalid) == (count, 0, 0)
    assert command.count.line == count
    assert command.progress == count


async def test_unconfirmed_events_are_limited(command: Command) -> None:
    command.publisher.confirms.clear()
    read = 0

    def lines() -> Iterator[bytes]:
        nonlocal read
        for line in events(MAX_UNCONFIRMED + 2 * READ_AHEAD):
            read += 1
            yield line

    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(command.run(lines()))
        await eventually("all is read that may be", lambda: read >= MAX_UNCONFIRMED + READ_AHEAD)
        await eventually("so many are sent", lambda: command.publisher.in_flight >= MAX_UNCONFIRMED)
        # If the command sent further events too early, it would send them in the next turn of the event loop.
        await asyncio.sleep(0)
        assert command.publisher.most == MAX_UNCONFIRMED
        command.publisher.confirms.set()
    assert command.count.published == MAX_UNCONFIRMED + 2 * READ_AHEAD


async def test_error_names_the_first_event_without_a_confirm(
    command: Command,
) -> None:
    command.publisher.faults = {3: NotConfirmed("no broker")}
    lines = list(events(10))
    lines[1] = b'{"n": "x"}\n'
    with pytest.raises(PublishInterrupted) as raised:
        await command.run(iter(lines))
    assert str(raised.value).splitlines() == [
        "no broker",
        "f\\n:4: not confirmed; later events may not be published either",
    ]
    assert command.publisher.published[:2] == [0, 2]
    assert command.count.invalid == 1
    assert command.printed == ['f\\n:2: /n: "x" is not of type "integer" [schema-violation]']


@pytest.mark.parametrize(("cause", "exit_code"), [(OSError("disk"), BridgeError.exit_code), (BridgeError("b"), 1)])
async def test_interruption_has_the_exit_code_of_its_cause(command: Command, cause: Exception, exit_code: int) -> None:
    command.publisher.faults = {0: cause}
    with pytest.raises(PublishInterrupted) as raised:
        await command.run(events(1))
    assert raised.value.exit_code == exit_code


async def test_events_that_reach_no_queue_are_counted(command: Command) -> None:
    command.publisher.routed = False
    await command.run(events(3))
    assert (command.count.published, command.count.unrouted) == (3, 3)


async def test_each_violation_of_an_event_is_printed(command: Command) -> None:
    await command.run(iter([b'{"n": 1}\n', b'{"n": "x",\n', b'"id": "y"}\n', b'{"n": 2}\n']))
    assert sorted(command.printed) == [
        'f\\n:2: /n: "x" is not of type "integer" [schema-violation]',
        'f\\n:3: /id: "y" is not of type "integer" [schema-violation]',
    ]
    assert (command.count.published, command.count.invalid) == (2, 1)


@pytest.mark.parametrize(("size_bytes", "waits"), [(LARGE_BYTES, False), (LARGE_BYTES + 1, True)])
async def test_violations_of_a_large_event_are_found_after_the_confirms_of_the_others(
    command: Command, size_bytes: int, *, waits: bool
) -> None:
    """The search for the violations of a large event can take seconds.

    If the command searched for violations at once, the confirms of other events would time out.
    """
    command.publisher.confirms.clear()
    start, end = b'{"n": "', b'"}'
    large = start + b"x" * (size_bytes - len(start + end)) + end
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(command.run(iter([b'{"n": 1}\n', large + b"\n"])))
        await eventually("the first is sent", lambda: command.publisher.in_flight == 1)
        if not waits:
            await eventually("the second is rejected", lambda: command.count.invalid == 1)
        await eventually("the second is read", lambda: command.count.line == 2)
        assert (command.count.invalid, len(command.printed)) == ((0, 0) if waits else (1, 1))
        command.publisher.confirms.set()
        await running
    assert (command.count.published, command.count.invalid) == (1, 1)


@pytest.mark.parametrize(
    ("ids", "repeated"),
    [([1, 2, 3], 0), ([1, 1, 1], 2), ([1, 2, 1, 2], 2), ([1, 2, 3, 1], 0), ([None, None], 0)],
    ids=str,
)
async def test_repeated_events_are_counted_within_the_window_of_a_bridge(
    command: Command, ids: list[int | None], repeated: int
) -> None:
    lines = [{"n": n} if each is None else {"n": n, "id": each} for n, each in enumerate(ids)]
    await command.run(json.dumps(line).encode() + b"\n" for line in lines)
    assert (command.count.published, command.count.repeated) == (len(ids), repeated)


async def test_identity_of_an_invalid_event_does_not_count(command: Command) -> None:
    await command.run(iter([b'{"n": "x", "id": 1}\n', b'{"n": 1, "id": 1}\n']))
    assert (command.count.published, command.count.repeated, command.count.invalid) == (1, 0, 1)
