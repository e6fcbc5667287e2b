"""Tests that the queue of rejected events is read and emptied, and that its entries are safe to print."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import aiormq
import orjson
import pytest
from pamqp import commands

from bridge.amqp.rejects import queue
from bridge.amqp.rejects.queue import RPC_TIMEOUT_S, BrokerLost, Reject, open_reject_queue
from bridge.cli.common.columns import columns
from bridge.cli.rejects import (
    MAX_REASONS,
    Outcome,
    Selection,
    _count,
    as_entry,
    as_fields,
    as_json,
    content,
    killmail_id,
    remove_selected,
)
from bridge.errors import BrokerRefusal, ConfigurationError
from tests.support.fake_amqp import HANGS, NO_QUEUE, REFUSED, FakeAmqp, FakeBroker
from tests.support.killmail import ESI, EXAMPLE, packaged, r2z2, redisq, wrapped
from tests.support.virtual_time import VirtualTime

if TYPE_CHECKING:
    from pamqp.common import FieldTable

REASONS = {
    "x-reject-reason": "schema-violation",
    "x-reject-detail": "/a: is\twrong",
    "x-reject-pointer": "/a",
    "x-reject-exchange": "kills",
    "x-reject-time": "2026-11-26T02:15:01.123+00:00",
}


def reject(body: bytes = b"{}", detail: str = "/a: is\twrong") -> Reject:
    headers: FieldTable = {**REASONS, "x-reject-detail": detail}
    properties = commands.Basic.Properties(headers=headers, message_id="m-1", message_type="killmail")
    return Reject(7, body, properties, "", 1)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_entry_fits_and_its_id_is_whole(width: int) -> None:
    event = reject(detail="/a: " + "x" * 300)
    *lines, last = as_entry(event, width, {}).splitlines()
    assert all(len(line) <= width for line in lines)
    assert lines[1].endswith("...") == (width < 300)
    assert last == "      m-1"


@pytest.mark.parametrize("width", [40, 41, 80])
def test_entry_with_wide_characters_fits(width: int) -> None:
    wide = "\N{CJK UNIFIED IDEOGRAPH-8266}"
    event = reject((wide * 100).encode(), detail=wide * 100)
    assert all(width - 1 <= columns(line) <= width for line in as_entry(event, width, {}).splitlines()[1:3])


def test_entry_has_the_default_type_of_its_exchange_if_the_event_has_none() -> None:
    untyped = Reject(1, b"", commands.Basic.Properties(headers={"x-reject-exchange": "kills"}), "", 1)
    assert "killmail, 0 bytes" in as_entry(untyped, 80, {"kills": "killmail"})
    assert "no type, 0 bytes" in as_entry(untyped, 80, {"wars": "war"})


def test_entry_of_a_message_that_no_bridge_has_published_has_no_reason() -> None:
    nothing = Reject(1, b"", commands.Basic.Properties(), "", 1)
    assert as_entry(nothing, 80, {}).splitlines()[:2] == [
        "   1  no time  no reason  no type, 0 bytes, from no exchange",
        "      no detail",
    ]


def test_fields_are_one_line_whatever_they_contain() -> None:
    fields = as_fields(reject()).split("\t")
    assert fields[:2] == ["7", REASONS["x-reject-time"]]
    assert fields[5] == r"/a: is\twrong"
    assert fields[8:] == ["{}", "m-1"]


@pytest.mark.parametrize(
    ("event", "number"),
    [
        (EXAMPLE, 123456789),
        (ESI, ESI["killmail_id"]),
        (wrapped(ESI), ESI["killmail_id"]),
        (packaged(redisq(ESI)), ESI["killmail_id"]),
        (r2z2(ESI), ESI["killmail_id"]),
        ({"killmailId": "137230345"}, 137230345),
        ({"killmailId": "x", "data": {"killmailId": 7}}, 7),
        ({"data": {"data": {"data": {"data": {"killmailId": 7}}}}}, None),
        ({"killmailId": -1}, None),
        ({}, None),
        ([{"killmailId": 7}], None),
    ],
)
def test_killmail_id_is_found_in_every_format(event: object, number: int | None) -> None:
    assert killmail_id(orjson.dumps(event)) == number


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (orjson.dumps(EXAMPLE), "killmail 123456789"),
        (b"", "empty body"),
        (b"not\n  JSON", "not JSON"),
        (b"\x1b[2J\xff", "\\x1b[2J\N{REPLACEMENT CHARACTER}"),
        ("ü".encode() * 300, "ü" * 17 + "..."),
    ],
)
def test_content_is_the_killmail_or_the_start_of_the_body(body: bytes, text: str) -> None:
    assert content(reject(body), 20) == text


DEEP = b"[" * 1010 + b"]" * 1010


@pytest.mark.parametrize(
    "body",
    [
        *(b'{"%b":%b}' % (name, DEEP) for name in (b"killmailId", b"killmail_id", b"killID", b"data")),
        b'{"killmailId":' + b'{"a":' * 1010 + b"1" + b"}" * 1011,
        DEEP,
        b"[" * 100_000,
        b'{"killmailId":%b}' % (b"9" * 10_000),
        b'{"killmailId":"%b"}' % (b"9" * 10_000),
        b'{"killmailId":1e999}',
        b'{"killmailId":true}',
        b'{"killmailId":"\xd9\xa1"}',
        b'{"killmailId":"\\ud800"}',
        b'"\xed\xa0\x80"',
        bytes(range(256)),
        b"\x00" * 1000,
    ],
    ids=lambda body: repr(body[:24]),
)
def test_any_body_is_listed(body: bytes) -> None:
    event = reject(body)
    record = orjson.loads(as_json(event))
    assert record["killmail_id"] is None
    assert record.get("body", "").encode() == body or bytes.fromhex(record["body_hex"]) == body
    assert all(field.isprintable() for field in as_fields(event).split("\t"))
    assert as_entry(event, 80, {}).count("\n") == 3


def test_body_that_is_not_text_is_hex() -> None:
    assert orjson.loads(as_json(reject(b"\xff\x00")))["body_hex"] == "ff00"
    assert orjson.loads(as_json(reject("ü".encode())))["body"] == "ü"


@pytest.mark.parametrize(
    ("selection", "has"),
    [
        (Selection(), True),
        (Selection("schema-violation"), True),
        (Selection("not-json"), False),
        (Selection(None, frozenset({"m-1"})), True),
        (Selection(None, frozenset({"m-2"})), False),
        (Selection("not-json", frozenset({"m-1"})), False),
    ],
)
def test_selection_is_by_reason_and_by_id(selection: Selection, *, has: bool) -> None:
    assert selection.has(reject()) is has


def test_reasons_why_events_are_kept_are_bounded() -> None:
    kept: Counter[str] = Counter()
    for number in range(MAX_REASONS + 5):
        _count(kept, f"exchange {number}")
        _count(kept, "exchange 0")
    assert len(kept) == MAX_REASONS + 1
    assert kept["for other reasons"] == 5
    assert kept.total() == 2 * (MAX_REASONS + 5)


# The queue of rejected events


class Held:
    """An open queue of rejected events on a scripted broker."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *messages: object, count: int | None = None) -> None:
        self.amqp = FakeAmqp().on("queue rejects passive", commands.Queue.DeclareOk("rejects", count or 0, 0))
        self.amqp.on("get rejects", *messages)
        self.broker = FakeBroker(self.amqp)
        monkeypatch.setattr(queue, "open_connection", self.broker.open_connection)


def message(tag: int | None, returned: object = None) -> object:
    """Returns the answer of the broker to `basic.get`.

    Without a delivery tag, the answer to `basic.get` says that the queue is empty.
    """
    headers: FieldTable = {**REASONS} if returned is None else {**REASONS, "x-delivery-count": cast("Any", returned)}
    properties = commands.Basic.Properties(headers=headers)
    return SimpleNamespace(
        body=b"{}", header=SimpleNamespace(properties=properties), routing_key=None, delivery_tag=tag
    )


async def test_rejects_are_read_up_to_the_first_count_and_removed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch, message(1), message(2, 3), message(3, 1), message(4), count=3)
    async with open_reject_queue((), "rejects") as queue:
        read = [each async for each in queue.read()]
        assert [(each.number, each.tag, each.routing_key) for each in read] == [(1, 1, ""), (2, 2, ""), (3, 3, "")]
        assert queue.delivery_count == 3
        await queue.remove(read[1])
        await queue.flush()
    assert held.amqp.requests[-2:] == ["ack 2", "queue rejects passive"]
    assert held.broker.closed == 1


@pytest.mark.parametrize(
    ("time", "removed"),
    [
        ("2026-11-26T02:15:01.123+00:00", 1),
        ("2026-11-26T02:15:02+00:00", 1),
        ("2026-11-26T02:15:02.001+00:00", 0),
        ("2026-11-26T03:15:01+01:00", 1),
        ("2027-01-01T00:00:00Z", 0),
        ("2027-01-01T00:00:00", 1),
        ("soon", 1),
        (None, 1),
    ],
)
async def test_event_that_was_rejected_after_the_question_is_not_removed(
    monkeypatch: pytest.MonkeyPatch, time: str | None, removed: int
) -> None:
    one = message(1)
    headers: FieldTable = {} if time is None else {"x-reject-time": time}
    cast("Any", one).header.properties.headers = headers
    Held(monkeypatch, one, count=1)
    asked_at = datetime(2026, 11, 26, 2, 15, 2, tzinfo=UTC)
    outcome = Outcome()
    async with open_reject_queue((), "rejects") as queue:
        await remove_selected(queue, Selection(), outcome, asked_at)
    assert (outcome.done, dict(outcome.kept)) == (removed, {} if removed else {"rejected after the question": 1})


async def test_event_is_removed_whenever_it_was_rejected_if_there_was_no_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Held(monkeypatch, message(1), count=1)
    outcome = Outcome()
    async with open_reject_queue((), "rejects") as queue:
        await remove_selected(queue, Selection(), outcome)
    assert (outcome.begun, outcome.done) == (True, 1)


async def test_rejects_that_another_consumer_takes_end_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    Held(monkeypatch, message(1, "not a number"), message(None), count=3)
    async with open_reject_queue((), "rejects") as queue:
        assert len([each async for each in queue.read()]) == 1
        assert queue.delivery_count == 0


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (NO_QUEUE, ConfigurationError, "there is no queue 'rejects': no event was rejected yet"),
        (
            aiormq.exceptions.ChannelLockedResource("RESOURCE_LOCKED - exclusive"),
            BrokerRefusal,
            "another connection uses the queue 'rejects' exclusively: RESOURCE_LOCKED",
        ),
        (REFUSED, BrokerRefusal, "the queue 'rejects' can't be inspected: ACCESS_REFUSED"),
    ],
    ids=["missing", "exclusive", "permission"],
)
async def test_queue_that_can_not_be_opened_raises_the_matching_error(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], words: str
) -> None:
    Held(monkeypatch).amqp.on("queue rejects passive", error)
    with pytest.raises(kind, match=words):
        async with open_reject_queue((), "rejects"):
            raise AssertionError("the queue can't be opened")


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (REFUSED, BrokerRefusal, "the queue 'rejects' can't be read: ACCESS_REFUSED.*; grant read on this queue"),
        (HANGS, BrokerLost, f"the broker does not answer within {RPC_TIMEOUT_S:g} s"),
        (OSError("reset"), BrokerLost, "the connection to the broker was lost: reset"),
        (asyncio.CancelledError(), BrokerLost, "the connection to the broker was lost$"),
    ],
    ids=["permission", "silent", "lost", "stray cancellation"],
)
async def test_failed_read_raises_the_reason(
    monkeypatch: pytest.MonkeyPatch, answer: object, kind: type[Exception], words: str
) -> None:
    VirtualTime(monkeypatch)
    Held(monkeypatch, answer, count=1)
    async with open_reject_queue((), "rejects") as queue:
        with pytest.raises(kind, match=words):
            [each async for each in queue.read()]


async def test_removal_that_fails_is_no_removal(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    held.amqp.on("ack 1", RuntimeError("closed"))
    async with open_reject_queue((), "rejects") as queue:
        with pytest.raises(BrokerLost):
            await queue.remove(reject())
