"""What is said of a node, how long is waited between attempts, and what is left of an error."""

from __future__ import annotations

import asyncio

import aiormq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.backoff import Backoff
from bridge.broker.link import Node, sentence, without_addresses


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://guest:secret@localhost:5672/", "amqp://guest:***@localhost:5672/"),
        ("amqp://guest:secret@localhost", "amqp://guest:***@localhost:5672"),
        ("amqps://bridge:secret@mq.example.org/kills", "amqps://bridge:***@mq.example.org:5671/kills"),
        ("amqp://localhost:5673/", "amqp://localhost:5673/"),
        ("amqp://:secret@localhost/", "amqp://localhost:5672/"),
        ("amqp://bridge@localhost/", "amqp://bridge:***@localhost:5672/"),
        ("amqp://guest:secret@localhost/?name=secret#secret", "amqp://guest:***@localhost:5672/"),
    ],
)
def test_text_of_a_node_hides_its_password(url: str, shown: str) -> None:
    assert str(Node(url)) == shown
    assert "secret" not in repr(Node(url))


@pytest.mark.parametrize(
    ("url", "virtual_host"),
    [
        ("amqp://localhost", "/"),
        ("amqp://localhost/", "/"),
        ("amqp://localhost/%2F", "/"),
        ("amqp://localhost/kills", "kills"),
        ("amqp://localhost/a%2Fb", "a/b"),
    ],
)
def test_virtual_host_is_the_path_of_the_url(url: str, virtual_host: str) -> None:
    assert Node(url).virtual_host == virtual_host


@given(first_s=st.floats(0.01, 1.0), longest_s=st.floats(1.0, 60.0), attempts=st.integers(1, 20))
def test_pauses_double_up_to_the_longest_and_are_jittered_by_half(
    first_s: float, longest_s: float, attempts: int
) -> None:
    backoff = Backoff(first_s, longest_s)
    for attempt in range(attempts):
        pause_s = min(first_s * 2**attempt, longest_s)
        assert pause_s / 2 <= backoff.pause_s() <= pause_s


def test_pauses_of_several_bridges_differ() -> None:
    assert len({Backoff().pause_s() for _ in range(20)}) > 1


def test_reset_begins_with_the_first_pause_again() -> None:
    backoff = Backoff(0.1, 60)
    for _ in range(10):
        backoff.pause_s()
    backoff.reset()
    assert backoff.pause_s() <= 0.1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (OSError("Multiple exceptions: one, two"), "Multiple exceptions: one, two"),
        (
            aiormq.exceptions.ChannelNotFoundEntity("NOT_FOUND - no exchange 'killmails'"),
            "NOT_FOUND - no exchange 'killmails'",
        ),
        (aiormq.exceptions.ConnectionClosed(320, "CONNECTION_FORCED"), "CONNECTION_FORCED"),
        (asyncio.CancelledError(), "CancelledError"),
        (RuntimeError(), "RuntimeError"),
        (RuntimeError(""), "RuntimeError"),
        (RuntimeError("two\nlines"), "two\\nlines"),
    ],
    ids=repr,
)
def test_sentence_is_the_last_of_what_an_error_says(error: BaseException, words: str) -> None:
    assert sentence(error) == words


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 5672)"), "Connection refused"),
        (
            OSError(
                "Multiple exceptions: [Errno 111] Connect call failed ('::1', 5672, 0, 0), "
                "[Errno 101] Connect call failed ('127.0.0.1', 5672)"
            ),
            "Connection refused; Network is unreachable",
        ),
        (OSError(-2, "Name or service not known"), "Name or service not known"),
    ],
    ids=str,
)
def test_words_for_a_connection_that_is_not_made_have_no_addresses(error: OSError, words: str) -> None:
    assert without_addresses(error) == words


def test_long_sentence_is_cut() -> None:
    assert len(sentence(RuntimeError("x" * 100_000))) < 500
