"""Events from lines to the publisher: what becomes of them when the input or the broker fails half way."""

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
"""A command that hangs fails the test instead."""


class FakePublisher:
    """Confirms each event once `confirms` is set, unless `faults` has an error for it."""

    def __init__(self) -> None:
        self.published: list[int] = []
        self.faults: dict[int, Exception] = {}
        self.confirms = asyncio.Event()
        self.confirms.set()
        self.heard = True
        self.most = self.under_way = 0

    async def publish_valid(self, body: bytes, update_type: str) -> bool:
        assert update_type == "tick"
        number = json.loads(body)["n"]
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        if number in self.faults:
            raise self.faults[number]
        await self.confirms.wait()
        self.under_way -= 1
        self.published.append(number)
        return self.heard


class Command:
    """One run of the command, with a fake publisher."""

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
        self.said: list[str] = []
        self.progress = 0

    def tick(self) -> None:
        self.progress += 1

    async def run(self, lines: Iterable[bytes]) -> None:
        async with asyncio.timeout(LIMIT_S):
            publisher = cast("Publisher", self.publisher)
            file = EventFile("f\n", lines, None, "tick")
            await publish_events(file, self.pipeline, publisher, self.count, self.said.append, self.tick)


@pytest.fixture
async def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


def events(count: int, error: Exception | None = None) -> Iterator[bytes]:
    """So many, one a line; then reading them fails."""
    for number in range(count):
        yield b'{"n": %d}\n' % number
    if error is not None:
        raise error


@pytest.mark.parametrize("count", [0, 1, 2 * READ_AHEAD])
async def test_input_that_can_not_be_read_any_more_ends_the_command(command: Command, count: int) -> None:
    error = ConfigurationError(["f: can't be read: Input/output error"])
    with pytest.raises(ConfigurationError) as raised:
        await command.run(events(count, error))
    assert raised.value is error
    assert command.publisher.published == list(range(len(command.publisher.published)))


async def test_input_that_raises_an_error_of_ours_is_not_taken_for_its_end(command: Command) -> None:
    with pytest.raises(ExceptionGroup) as raised:
        await command.run(events(1, ZeroDivisionError("a fault")))
    assert raised.group_contains(ZeroDivisionError)


async def test_more_events_than_may_wait_are_all_published_in_order(command: Command) -> None:
    count = MAX_UNCONFIRMED + 2 * READ_AHEAD
    await command.run(events(count))
    assert command.publisher.published == list(range(count))
    assert (command.count.published, command.count.unrouted, command.count.invalid) == (count, 0, 0)
    assert command.count.line == count
    assert command.progress == count


async def test_no_more_confirms_are_outstanding_than_may_be(command: Command) -> None:
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
        await eventually("so many are sent", lambda: command.publisher.under_way >= MAX_UNCONFIRMED)
        # Whatever else was read would be sent in the next turn of the loop.
        await asyncio.sleep(0)
        assert command.publisher.most == MAX_UNCONFIRMED
        command.publisher.confirms.set()
    assert command.count.published == MAX_UNCONFIRMED + 2 * READ_AHEAD


async def test_first_event_without_a_confirm_is_named_and_not_one_that_was_confirmed_or_invalid(
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
    assert command.said == ['f\\n:2: /n: "x" is not of type "integer" [schema-violation]']


@pytest.mark.parametrize(("cause", "exit_code"), [(OSError("disk"), BridgeError.exit_code), (BridgeError("b"), 1)])
async def test_interruption_has_the_exit_code_of_its_cause(command: Command, cause: Exception, exit_code: int) -> None:
    command.publisher.faults = {0: cause}
    with pytest.raises(PublishInterrupted) as raised:
        await command.run(events(1))
    assert raised.value.exit_code == exit_code


async def test_events_that_reach_no_queue_are_counted(command: Command) -> None:
    command.publisher.heard = False
    await command.run(events(3))
    assert (command.count.published, command.count.unrouted) == (3, 3)


async def test_every_violation_of_an_event_is_said(command: Command) -> None:
    await command.run(iter([b'{"n": 1}\n', b'{"n": "x",\n', b'"id": "y"}\n', b'{"n": 2}\n']))
    assert sorted(command.said) == [
        'f\\n:2: /n: "x" is not of type "integer" [schema-violation]',
        'f\\n:3: /id: "y" is not of type "integer" [schema-violation]',
    ]
    assert (command.count.published, command.count.invalid) == (2, 1)


@pytest.mark.parametrize(("size_bytes", "waits"), [(LARGE_BYTES, False), (LARGE_BYTES + 1, True)])
async def test_violations_of_a_large_event_are_named_when_the_broker_has_confirmed_the_others(
    command: Command, size_bytes: int, *, waits: bool
) -> None:
    """To name them may take seconds, after which the others would count as not confirmed."""
    command.publisher.confirms.clear()
    start, end = b'{"n": "', b'"}'
    large = start + b"x" * (size_bytes - len(start + end)) + end
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(command.run(iter([b'{"n": 1}\n', large + b"\n"])))
        await eventually("the first is sent", lambda: command.publisher.under_way == 1)
        if not waits:
            await eventually("the second is rejected", lambda: command.count.invalid == 1)
        await eventually("the second is read", lambda: command.count.line == 2)
        assert (command.count.invalid, len(command.said)) == ((0, 0) if waits else (1, 1))
        command.publisher.confirms.set()
        await running
    assert (command.count.published, command.count.invalid) == (1, 1)


@pytest.mark.parametrize(
    ("ids", "repeated"),
    [([1, 2, 3], 0), ([1, 1, 1], 2), ([1, 2, 1, 2], 2), ([1, 2, 3, 1], 0), ([None, None], 0)],
    ids=str,
)
async def test_events_with_the_identity_of_an_earlier_one_are_counted_as_far_as_a_bridge_remembers(
    command: Command, ids: list[int | None], repeated: int
) -> None:
    lines = [{"n": n} if each is None else {"n": n, "id": each} for n, each in enumerate(ids)]
    await command.run(json.dumps(line).encode() + b"\n" for line in lines)
    assert (command.count.published, command.count.repeated) == (len(ids), repeated)


async def test_invalid_event_is_no_earlier_one(command: Command) -> None:
    await command.run(iter([b'{"n": "x", "id": 1}\n', b'{"n": 1, "id": 1}\n']))
    assert (command.count.published, command.count.repeated, command.count.invalid) == (1, 0, 1)
