"""What is said of a node, how long is waited between attempts, and what is left of an error."""

from __future__ import annotations

import asyncio
import socket
import ssl
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import aio_pika
import aiormq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands

from bridge.amqp import close_cause, connection, container
from bridge.amqp.close_cause import CloseCause
from bridge.amqp.connection import error_text, os_error_text
from bridge.amqp.container import Container
from bridge.amqp.nodes import Node
from bridge.backoff import Backoff
from bridge.errors import BrokerRefusal
from bridge.timing import DEFAULT
from tests.support.fake_amqp import HANGS, FakeAmqp, FakeChannel
from tests.support.virtual_time import VirtualTime

if TYPE_CHECKING:
    from yarl import URL


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
    assert error_text(error) == words


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
    assert os_error_text(error) == words


def test_long_sentence_is_cut() -> None:
    assert len(error_text(RuntimeError("x" * 100_000))) < 500


# Connecting


class Line:
    """Stands for aio-pika's connections: what each node's does, by its host."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **nodes: object) -> None:
        self.nodes = nodes
        self.asked: list[str] = []
        self.urls: list[str] = []
        self.closed: list[str] = []
        self.amqp = FakeAmqp()
        monkeypatch.setattr(aio_pika, "Connection", self._connection)

    def _connection(self, url: URL, client_properties: dict[str, str]) -> object:
        line, host = self, str(url.host)
        self.urls.append(str(url))

        class Connection:
            kwargs: ClassVar[dict[str, object]] = {}
            transport: SimpleNamespace | None = None

            async def connect(self) -> None:
                line.asked.append(host)
                answer = line.nodes[host]
                if answer is HANGS:
                    await asyncio.Event().wait()
                if isinstance(answer, BaseException):
                    raise answer
                self.transport = SimpleNamespace(connection=line.amqp)

            async def close(self) -> None:
                line.closed.append(host)

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
async def test_first_node_that_answers_is_used_whatever_is_wrong_with_those_before(
    monkeypatch: pytest.MonkeyPatch, clock: VirtualTime, failure: object
) -> None:
    line = Line(monkeypatch, one=failure, two=failure, three=None, four=None)
    async with connection.open_connection(nodes("one", "two", "three", "four"), "a bridge") as amqp:
        assert amqp is line.amqp  # type: ignore[comparison-overlap]  # the fake stands for it
        assert line.asked == ["one", "two", "three"]
        assert line.closed == ["one", "two"]
    assert "three" in line.closed


async def test_last_nodes_error_is_raised_where_none_answers(
    monkeypatch: pytest.MonkeyPatch, clock: VirtualTime
) -> None:
    line = Line(monkeypatch, one=aiormq.exceptions.ProbableAuthenticationError("no"), two=OSError(111, "Refused"))
    with pytest.raises(ConnectionError, match=r"amqp://guest:\*\*\*@two:5672/kills: Refused"):
        async with connection.open_connection(nodes("one", "two"), "a bridge"):
            raise AssertionError("there is none")
    assert line.asked == ["one", "two"]


async def test_node_that_says_nothing_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch, clock: VirtualTime) -> None:
    Line(monkeypatch, one=HANGS)
    before_s = clock.now_s
    with pytest.raises(
        ConnectionError, match=f"@one:5672/kills does not answer within {DEFAULT.connect_timeout_s:g} s"
    ):
        async with connection.open_connection(nodes("one"), "a bridge"):
            raise AssertionError("there is none")
    assert clock.now_s - before_s == pytest.approx(DEFAULT.connect_timeout_s, abs=0.01)


async def test_wrong_password_is_a_refusal_that_does_not_show_it(
    monkeypatch: pytest.MonkeyPatch, clock: VirtualTime
) -> None:
    Line(monkeypatch, one=aiormq.exceptions.ProbableAuthenticationError("ACCESS_REFUSED"))
    with pytest.raises(BrokerRefusal, match="refuses the user name or the password in its URL: ACCESS_REFUSED") as told:
        async with connection.open_connection(nodes("one"), "a bridge"):
            raise AssertionError("there is none")
    assert "secret" not in str(told.value)


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
async def test_way_to_log_in_that_is_refused_is_said_with_what_is_possible(
    monkeypatch: pytest.MonkeyPatch, clock: VirtualTime, query: str, error: Exception, words: str
) -> None:
    Line(monkeypatch, one=error)
    with pytest.raises(BrokerRefusal, match=words):
        async with connection.open_connection((Node(f"amqps://guest:secret@one/kills?{query}"),), "a bridge"):
            raise AssertionError("there is none")


async def test_alert_that_comes_after_the_handshake_is_said_as_any_other(
    monkeypatch: pytest.MonkeyPatch, clock: VirtualTime
) -> None:
    """With TLS 1.3, a broker that demands a certificate says so when the client thinks that all is well."""
    error = aiormq.exceptions.AMQPConnectionError("Server communication error")
    alert = ssl.SSLError(1, "alert")
    alert.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    error.__cause__ = alert
    Line(monkeypatch, one=error)
    with pytest.raises(ConnectionError, match="it demands a client certificate"):
        async with connection.open_connection(nodes("one"), "a bridge"):
            raise AssertionError("there is none")


class Closed(aiormq.exceptions.AMQPError):
    """What aiormq raises where the broker closes the connection instead of opening the virtual host."""


@pytest.mark.parametrize(
    ("code", "words", "kind", "said"),
    [
        (530, "NOT_ALLOWED - vhost kills not found", BrokerRefusal, "into the virtual host 'kills'; make it, or grant"),
        (530, "NOT_ALLOWED - connection limit (9) is reached", ConnectionError, r"limit \(9\) is reached$"),
        (320, "CONNECTION_FORCED - shutdown", ConnectionError, "5672/kills: CONNECTION_FORCED - shutdown$"),
    ],
    ids=["virtual host", "limit", "shutdown"],
)
async def test_close_instead_of_an_opening_is_a_refusal_where_it_does_not_pass(
    monkeypatch: pytest.MonkeyPatch, clock: VirtualTime, code: int, words: str, kind: type[Exception], said: str
) -> None:
    async def connect() -> None:
        frame = commands.Connection.Close(code, words, 10, 40)
        assert frame.reply_code == code
        raise Closed("<Connection.Close object at 0x7f>")

    line = Line(monkeypatch, one=None)
    make = line._connection

    def make_refused(url: URL, client_properties: dict[str, str]) -> object:
        connection: Any = make(url, client_properties)
        connection.connect = connect
        return connection

    monkeypatch.setattr(aio_pika, "Connection", make_refused)
    with pytest.raises(kind, match=said):
        async with connection.open_connection(nodes("one"), "a bridge"):
            raise AssertionError("there is none")


@pytest.mark.parametrize(
    ("url", "asked"),
    [("amqp://one/", "heartbeat=10"), ("amqp://one/?heartbeat=33", "heartbeat=33")],
)
async def test_dead_connection_is_noticed_soon_unless_the_url_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, clock: VirtualTime, url: str, asked: str
) -> None:
    line = Line(monkeypatch, one=None)
    async with connection.open_connection((Node(url),), "a bridge"):
        [used] = line.urls
        assert used.endswith(f"?{asked}")


# Requests, and ends


async def opened() -> tuple[FakeAmqp, FakeChannel, asyncio.Future[CloseCause]]:
    amqp = FakeAmqp()
    channel: Any = await amqp.channel(publisher_confirms=False)
    return amqp, channel, close_cause.closed_future(amqp.amqp, channel)


async def test_end_is_of_the_connection_the_channel_or_the_consumer_and_the_first_one_counts() -> None:
    amqp, channel, ended = await opened()
    await asyncio.sleep(0)
    assert not ended.done()
    channel.closing.set_exception(aiormq.exceptions.ChannelClosed("PRECONDITION_FAILED - delivery timed out"))
    assert await ended == CloseCause("PRECONDITION_FAILED - delivery timed out", broker_stayed_up=True)
    amqp.lose()
    await asyncio.sleep(0)
    assert ended.result() == CloseCause("PRECONDITION_FAILED - delivery timed out", broker_stayed_up=True)

    amqp, _, ended = await opened()
    amqp.lose(aiormq.exceptions.ConnectionClosed(320, "CONNECTION_FORCED"))
    assert await ended == CloseCause("CONNECTION_FORCED", broker_stayed_up=True)

    _, channel, ended = await opened()
    [cancelled] = channel.on_consumer_cancel_callbacks
    cancelled(object())
    assert await ended == CloseCause(close_cause.CANCELLED, broker_stayed_up=True)


@pytest.mark.parametrize("how", ["cancelled", "in order"])
async def test_end_without_an_error_has_words_too(how: str) -> None:
    amqp, _, ended = await opened()
    if how == "cancelled":
        amqp.closing.cancel()
    else:
        amqp.closing.set_result(None)
    assert await ended == CloseCause("the connection was closed", broker_stayed_up=False)


@pytest.mark.parametrize(
    ("error", "broker_stayed_up"),
    [
        (aiormq.exceptions.ConnectionClosed(320, "CONNECTION_FORCED - Closed via management plugin"), True),
        (aiormq.exceptions.ConnectionInternalError("INTERNAL_ERROR"), True),
        (aiormq.exceptions.ChannelClosed("PRECONDITION_FAILED - delivery timed out"), True),
        (BrokerRefusal("a permission is missing"), True),
        (
            aiormq.exceptions.ConnectionClosed(
                320, "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'"
            ),
            False,
        ),
        (aiormq.exceptions.ConnectionClosed(320, "CONNECTION_FORCED - vhost '/' is down"), False),
        (aiormq.exceptions.AMQPConnectionError("Server connection unexpectedly closed"), False),
        (ConnectionResetError("reset"), False),
        (ConnectionError("the broker does not answer within 20 s"), False),
        (RuntimeError("closed"), False),
        (asyncio.CancelledError(), False),
    ],
)
def test_broker_stays_up_only_if_it_gives_a_reason_other_than_a_shutdown(
    error: BaseException, *, broker_stayed_up: bool
) -> None:
    assert close_cause.CloseCause.of(error).broker_stayed_up is broker_stayed_up


async def test_library_that_can_not_tell_of_blocking_is_no_fault() -> None:
    close_cause.watch_blocked(cast("Any", object()), lambda reason: None)


class Closing:
    """A connection whose end depends on its transport, and the transport's factory. `deaf`: no cancellation ends it."""

    def __init__(self, *, deaf: bool = False) -> None:
        self.cuts = 0
        self.ended = asyncio.Event()
        self._cut = asyncio.Event()
        self._deaf = deaf
        self._is_closing = False

    def cut(self) -> None:
        self.cuts += 1
        if not self._deaf:
            self._cut.set()

    async def close(self) -> None:
        # aio-pika, too, leaves a second call to the first.
        if self._is_closing:
            return
        self._is_closing = True
        while not self._cut.is_set():
            try:
                await self._cut.wait()
            except asyncio.CancelledError:
                if not self._deaf:
                    raise
        self.ended.set()


async def test_close_that_is_cancelled_still_ends_the_connection(clock: VirtualTime) -> None:
    closable = Closing()
    closing = asyncio.create_task(connection._close(closable, closable, DEFAULT))  # type: ignore[arg-type]  # a fake for both
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert closable.cuts == 1
    assert closable.ended.is_set()


async def test_close_that_a_cancellation_does_not_end_is_left_in_time(clock: VirtualTime) -> None:
    closable = Closing(deaf=True)
    before_s = clock.now_s
    closing = asyncio.create_task(connection._close(closable, closable, DEFAULT))  # type: ignore[arg-type]  # a fake for both
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert clock.now_s - before_s <= 2 * DEFAULT.give_up_s + 0.01
    # Nothing is left behind.
    closable._cut.set()
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
    monkeypatch.setattr(container, "detected", lambda: place)
    with socket.socket() as unused:
        # Bound, and not listening: the kernel refuses.
        unused.bind(("127.0.0.1", 0))
        node = Node(f"amqp://{host}:{unused.getsockname()[1]}/")
        with pytest.raises(ConnectionError, match="Connection refused") as raised:
            async with connection.open_connection([node], "a bridge"):
                raise AssertionError("there is none")
    assert (f"in a container, {host} is {place} itself: " in str(raised.value)) is hinted
    assert str(raised.value).isprintable()


async def test_host_that_is_not_found_has_no_hint_of_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "detected", lambda: Container.CONTAINER)
    with pytest.raises(ConnectionError) as raised:
        async with connection.open_connection([Node("amqp://nothing.localhost.invalid/")], "a bridge"):
            raise AssertionError("there is none")
    assert "in a container" not in str(raised.value)


@pytest.mark.parametrize("host", ["a" * 64, "xn--zz"])
@pytest.mark.parametrize("scheme", ["amqp", "amqps"])
async def test_host_that_can_not_be_encoded_is_a_connection_that_is_not_made(scheme: str, host: str) -> None:
    with pytest.raises(ConnectionError, match=f"^{scheme}://guest:\\*\\*\\*@{host}:") as raised:
        async with connection.open_connection([Node(f"{scheme}://guest:s3cret@{host}:1/")], "a bridge"):
            raise AssertionError("there is none")
    assert "s3cret" not in str(raised.value)
