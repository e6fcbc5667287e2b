"""Tests of the choice of a broker's node, the duration of an attempt to connect, and the end of a connection."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import aiormq
import pytest
from pamqp import commands

from bridge.amqp import connection, connection_errors
from bridge.amqp.connection_errors import Container
from bridge.amqp.nodes import Node
from bridge.amqp.wire import compat
from bridge.errors import BrokerRefusal
from bridge.timing import DEFAULT
from tests.support.fake_amqp import HANGS, FakeAmqp
from tests.support.virtual_time import VirtualTime

if TYPE_CHECKING:
    from yarl import URL


# Connecting


class FakeConnections:
    """Replaces aio-pika's connections with fakes, with a behaviour for each node's host."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **nodes: object) -> None:
        self.nodes = nodes
        self.asked: list[str] = []
        self.urls: list[str] = []
        self.closed: list[str] = []
        self.amqp = FakeAmqp()
        monkeypatch.setattr(compat, "Connection", self._connection)

    def _connection(self, url: URL, client_properties: dict[str, str], transport_factory: object) -> object:
        connections, host = self, str(url.host)
        self.urls.append(str(url))

        class Connection:
            transport: SimpleNamespace | None = None

            async def connect(self) -> None:
                connections.asked.append(host)
                answer = connections.nodes[host]
                if answer is HANGS:
                    await asyncio.Event().wait()
                if isinstance(answer, BaseException):
                    raise answer
                self.transport = SimpleNamespace(connection=connections.amqp)

            async def close(self) -> None:
                connections.closed.append(host)

        return Connection()


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    return VirtualTime(monkeypatch)


def nodes(*hosts: str) -> tuple[Node, ...]:
    return tuple(Node(f"amqp://guest:secret@{host}/kills") for host in hosts)


@pytest.mark.parametrize(
    "failure",
    [
        OSError(111, "Connection refused"),
        aiormq.exceptions.ProbableAuthenticationError("ACCESS_REFUSED"),
        aiormq.exceptions.ConnectionClosed(320, "CONNECTION_FORCED"),
        HANGS,
    ],
    ids=["refused", "password", "closed", "silent"],
)
async def test_first_node_that_answers_is_used_whatever_the_error_of_the_nodes_before(
    monkeypatch: pytest.MonkeyPatch, clock: VirtualTime, failure: object
) -> None:
    connections = FakeConnections(monkeypatch, one=failure, two=failure, three=None, four=None)
    async with connection.open_connection(nodes("one", "two", "three", "four"), "a bridge") as amqp:
        assert amqp is connections.amqp  # type: ignore[comparison-overlap]  # the fake stands for it
        assert connections.asked == ["one", "two", "three"]
        assert connections.closed == ["one", "two"]
    assert "three" in connections.closed


async def test_opened_and_closed_connection_is_logged_at_debug_without_the_password(
    monkeypatch: pytest.MonkeyPatch, clock: VirtualTime, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "bridge.amqp")
    FakeConnections(monkeypatch, one=None)
    async with connection.open_connection(nodes("one"), "a bridge"):
        assert [record.getMessage() for record in caplog.records] == ["connection opened"]
    fields = [
        (record.getMessage(), record.__dict__["connection"], record.__dict__["node"]) for record in caplog.records
    ]
    node = "amqp://guest:***@one:5672/kills"
    assert fields == [("connection opened", "a bridge", node), ("connection closed", "a bridge", node)]


async def test_error_of_the_last_node_is_raised_if_none_answers(
    monkeypatch: pytest.MonkeyPatch, clock: VirtualTime
) -> None:
    connections = FakeConnections(
        monkeypatch, one=aiormq.exceptions.ProbableAuthenticationError("no"), two=OSError(111, "Refused")
    )
    with pytest.raises(ConnectionError, match=r"amqp://guest:\*\*\*@two:5672/kills: Refused"):
        async with connection.open_connection(nodes("one", "two"), "a bridge"):
            raise AssertionError("no connection is opened")
    assert connections.asked == ["one", "two"]


async def test_node_that_sends_nothing_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch, clock: VirtualTime) -> None:
    FakeConnections(monkeypatch, one=HANGS)
    before_s = clock.now_s
    with pytest.raises(
        ConnectionError, match=f"@one:5672/kills does not answer within {DEFAULT.connect_timeout_s:g} s"
    ):
        async with connection.open_connection(nodes("one"), "a bridge"):
            raise AssertionError("no connection is opened")
    assert clock.now_s - before_s == pytest.approx(DEFAULT.connect_timeout_s, abs=0.01)


async def test_wrong_password_is_a_refusal_that_does_not_show_it(
    monkeypatch: pytest.MonkeyPatch, clock: VirtualTime
) -> None:
    FakeConnections(monkeypatch, one=aiormq.exceptions.ProbableAuthenticationError("ACCESS_REFUSED"))
    with pytest.raises(
        BrokerRefusal, match="refuses the user name or the password in its URL: ACCESS_REFUSED"
    ) as raised:
        async with connection.open_connection(nodes("one"), "a bridge"):
            raise AssertionError("no connection is opened")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("query", "error", "words"),
    [
        (
            "auth=external",
            aiormq.exceptions.AuthenticationError("PLAIN AMQPLAIN", ["PLAIN", "EXTERNAL"]),
            "does not offer auth=external, but PLAIN AMQPLAIN: enable its plugin rabbitmq_auth_mechanism_ssl",
        ),
        (
            "",
            aiormq.exceptions.AuthenticationError("EXTERNAL", ["PLAIN", "EXTERNAL"]),
            "does not offer auth=plain, but EXTERNAL: allow PLAIN in its auth_mechanisms, or set auth=external",
        ),
        (
            "auth=EXTERNAL",
            aiormq.exceptions.ProbableAuthenticationError("ACCESS_REFUSED"),
            "refuses the user that the certificate names: ACCESS_REFUSED$",
        ),
        (
            "",
            aiormq.exceptions.ProbableAuthenticationError("ACCESS_REFUSED"),
            "in its URL: ACCESS_REFUSED; if the password is a token, it may have expired$",
        ),
    ],
)
async def test_refused_mechanism_is_a_refusal_that_names_the_possible_ones(
    monkeypatch: pytest.MonkeyPatch, clock: VirtualTime, query: str, error: Exception, words: str
) -> None:
    FakeConnections(monkeypatch, one=error)
    with pytest.raises(BrokerRefusal, match=words):
        async with connection.open_connection((Node(f"amqps://guest:secret@one/kills?{query}"),), "a bridge"):
            raise AssertionError("no connection is opened")


async def test_alert_after_the_handshake_is_reported_like_any_other(
    monkeypatch: pytest.MonkeyPatch, clock: VirtualTime
) -> None:
    """With TLS 1.3, a broker requests a missing certificate after the client has completed the handshake."""
    error = aiormq.exceptions.AMQPConnectionError("Server communication error")
    alert = ssl.SSLError(1, "alert")
    alert.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    error.__cause__ = alert
    FakeConnections(monkeypatch, one=error)
    with pytest.raises(ConnectionError, match="it requires a client certificate"):
        async with connection.open_connection(nodes("one"), "a bridge"):
            raise AssertionError("no connection is opened")


@pytest.mark.parametrize("cause", [asyncio.IncompleteReadError(b"", 1), ConnectionResetError("reset")], ids=repr)
async def test_connection_that_ends_before_the_broker_sends_anything_has_a_hint_of_tls(
    monkeypatch: pytest.MonkeyPatch, clock: VirtualTime, cause: Exception
) -> None:
    error = aiormq.exceptions.AMQPConnectionError("Server connection unexpectedly closed")
    error.__cause__ = cause
    FakeConnections(monkeypatch, one=error)
    with pytest.raises(
        ConnectionError, match=r"use amqps:// in the URL, or this is not the AMQP port \(usually 5672\)$"
    ):
        async with connection.open_connection(nodes("one"), "a bridge"):
            raise AssertionError("no connection is opened")


class Closed(aiormq.exceptions.AMQPError):
    """The error that aiormq raises if the broker closes the connection instead of opening the virtual host."""


@pytest.mark.parametrize(
    ("code", "words", "kind", "text"),
    [
        (
            530,
            "NOT_ALLOWED - vhost kills not found",
            BrokerRefusal,
            "access to the virtual host 'kills'; create the virtual host, or grant",
        ),
        (530, "NOT_ALLOWED - connection limit (9) is reached", ConnectionError, r"limit \(9\) is reached$"),
        (320, "CONNECTION_FORCED - shutdown", ConnectionError, "5672/kills: CONNECTION_FORCED - shutdown$"),
    ],
    ids=["virtual host", "limit", "shutdown"],
)
async def test_close_instead_of_open_is_a_refusal_unless_it_is_temporary(
    monkeypatch: pytest.MonkeyPatch, clock: VirtualTime, code: int, words: str, kind: type[Exception], text: str
) -> None:
    async def connect() -> None:
        frame = commands.Connection.Close(code, words, 10, 40)
        assert frame.reply_code == code
        raise Closed("<Connection.Close object at 0x7f>")

    connections = FakeConnections(monkeypatch, one=None)
    make = connections._connection

    def make_refused(url: URL, client_properties: dict[str, str], transport_factory: object) -> object:
        connection: Any = make(url, client_properties, transport_factory)
        connection.connect = connect
        return connection

    monkeypatch.setattr(compat, "Connection", make_refused)
    with pytest.raises(kind, match=text):
        async with connection.open_connection(nodes("one"), "a bridge"):
            raise AssertionError("no connection is opened")


@pytest.mark.parametrize(
    ("url", "asked"),
    [("amqp://one/", "heartbeat=10"), ("amqp://one/?heartbeat=33", "heartbeat=33")],
)
async def test_heartbeat_is_short_unless_the_url_sets_it(
    monkeypatch: pytest.MonkeyPatch, clock: VirtualTime, url: str, asked: str
) -> None:
    connections = FakeConnections(monkeypatch, one=None)
    async with connection.open_connection((Node(url),), "a bridge"):
        [used] = connections.urls
        assert used.endswith(f"?{asked}")


class Closing:
    """A fake of both a connection and its transport. When the transport is aborted, the connection ends.

    If `ignores_cancellation` is true, a cancellation does not end the connection.
    """

    def __init__(self, *, ignores_cancellation: bool = False) -> None:
        self.aborts = 0
        self.ended = asyncio.Event()
        self._aborted = asyncio.Event()
        self._ignores_cancellation = ignores_cancellation
        self._is_closing = False

    def abort(self) -> None:
        self.aborts += 1
        if not self._ignores_cancellation:
            self._aborted.set()

    async def close(self) -> None:
        # As in aio-pika, a second call waits for the first call.
        if self._is_closing:
            return
        self._is_closing = True
        while not self._aborted.is_set():
            try:
                await self._aborted.wait()
            except asyncio.CancelledError:
                if not self._ignores_cancellation:
                    raise
        self.ended.set()


async def test_close_that_is_cancelled_still_ends_the_connection(clock: VirtualTime) -> None:
    closable = Closing()
    closing = asyncio.create_task(connection._close(closable, closable, DEFAULT))  # type: ignore[arg-type]  # a fake for both
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert closable.aborts == 1
    assert closable.ended.is_set()


async def test_close_that_a_cancellation_does_not_end_is_abandoned_in_time(clock: VirtualTime) -> None:
    closable = Closing(ignores_cancellation=True)
    before_s = clock.now_s
    closing = asyncio.create_task(connection._close(closable, closable, DEFAULT))  # type: ignore[arg-type]  # a fake for both
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert clock.now_s - before_s <= 2 * DEFAULT.give_up_s + 0.01
    # The test ends the fake connection, so that no task keeps running.
    closable._aborted.set()
    await closable.ended.wait()


# Nothing listens


@pytest.mark.parametrize(
    ("host", "place", "hinted"),
    [
        ("127.0.0.1", Container.CONTAINER, True),
        ("localhost", Container.POD, True),
        ("127.0.0.1", None, False),
    ],
)
async def test_refused_connection_to_localhost_has_a_hint_in_a_container(
    monkeypatch: pytest.MonkeyPatch, host: str, place: Container | None, *, hinted: bool
) -> None:
    monkeypatch.setattr(connection_errors, "detect_container", lambda: place)
    with socket.socket() as unused:
        # The socket is bound but does not listen, so the kernel refuses connections to its port.
        unused.bind(("127.0.0.1", 0))
        node = Node(f"amqp://{host}:{unused.getsockname()[1]}/")
        with pytest.raises(ConnectionError, match="Connection refused") as raised:
            async with connection.open_connection([node], "a bridge"):
                raise AssertionError("no connection is opened")
    assert (f"in a container, {host} is {place} itself: " in str(raised.value)) is hinted
    assert str(raised.value).isprintable()


async def test_host_that_is_not_found_has_no_hint_of_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_errors, "detect_container", lambda: Container.CONTAINER)
    with pytest.raises(ConnectionError) as raised:
        async with connection.open_connection([Node("amqp://nothing.localhost.invalid/")], "a bridge"):
            raise AssertionError("no connection is opened")
    assert "in a container" not in str(raised.value)


@pytest.mark.parametrize("host", ["a" * 64, "xn--zz"])
@pytest.mark.parametrize("scheme", ["amqp", "amqps"])
async def test_host_that_can_not_be_encoded_is_a_connection_error(scheme: str, host: str) -> None:
    with pytest.raises(ConnectionError, match=f"^{scheme}://guest:\\*\\*\\*@{host}:") as raised:
        async with connection.open_connection([Node(f"{scheme}://guest:s3cret@{host}:1/")], "a bridge"):
            raise AssertionError("no connection is opened")
    assert "s3cret" not in str(raised.value)
