"""The least rights at RabbitMQ: a bridge runs with what `docker/rabbitmq/permissions.sh` grants, and not with less."""

import asyncio
import json
import os
import re
import secrets
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import orjson
import pytest
from aio_pika.abc import AbstractConnection
from pamqp.common import FieldTable

from bridge.amqp.consume.topology_check import UNVERIFIED_BINDING
from bridge.errors import BrokerRefusal
from bridge.timing import Timing
from tests.support.broker.node import PrivateNode
from tests.support.clients import RawClient, get
from tests.support.killmail import killmail
from tests.support.publishing import observer, publish, take
from tests.support.running import bridge_process, consumer_of, port_of, running, started, unique
from tests.support.waiting import LIMIT_S, eventually

SCRIPT = Path(__file__).parents[2] / "docker/rabbitmq/permissions.sh"
PASSWORD = secrets.token_hex(8)
EXCHANGE, QUEUE, STREAM, REJECTS = unique("exchange"), unique("queue"), unique("stream"), unique("rejects")
NAMES = {"EXCHANGE": EXCHANGE, "QUEUE": QUEUE, "STREAM": STREAM}
RIGHTS = ("configure", "write", "read")
A_STREAM: FieldTable = {"x-queue-type": "stream"}


@dataclass(frozen=True, slots=True)
class Row:
    """How a bridge of this row is set up, and what the operator has made for it: a queue's name and arguments."""

    flags: dict[str, str]
    made: tuple[str, FieldTable] | None = None


BY_QUEUE, BY_STREAM = {"queue": QUEUE}, {"history": "stream", "history_stream": STREAM}
ROWS = {
    "read-queue": Row(BY_QUEUE, (QUEUE, {})),
    "own-queue": Row(BY_QUEUE),
    "exclusive": Row({}),
    "read-stream": Row(BY_STREAM, (STREAM, A_STREAM)),
    "own-stream": Row(BY_STREAM),
}


@dataclass(frozen=True, slots=True)
class Case:
    """A user: a row's rights, or all of them but one."""

    row: str
    rejects: bool
    rights: tuple[str, str, str]
    lacks: tuple[str, str] | None = None
    """The right, and the regular expression of the name."""

    @property
    def user(self) -> str:
        """Its name, which says what it lacks, by the kind of what it is."""
        lacks = [self.lacks[0], kind_of(self.lacks[1])] if self.lacks else []
        return "-".join([self.row, *(["rejects"] if self.rejects else []), *(["without", *lacks] if lacks else [])])


def kind_of(name: str) -> str:
    """What a regular expression in a right stands for."""
    kinds = {EXCHANGE: "exchange", QUEUE: "queue", STREAM: "stream", REJECTS: "rejects"}
    plain = name.replace("\\", "")
    return kinds.get(plain, plain.removesuffix("-.*"))


def granted(row: str, *, rejects: bool) -> tuple[str, str, str]:
    """The regular expressions that the script would set."""
    variables = {**os.environ, **NAMES, "RABBITMQCTL": "echo", "REJECTS": REJECTS if rejects else ""}
    done = subprocess.run([SCRIPT, row, "user"], env=variables, capture_output=True, text=True, check=True)
    command, option, vhost, user, *rights = done.stdout.split()
    assert [command, option, vhost, user] == ["set_permissions", "-p", "/", "user"]
    configure, write, read = rights
    return configure, write, read


def alternatives(right: str) -> list[str]:
    """The names in a regular expression, each still one."""
    return [] if right == "^$" else right.removeprefix("^(").removesuffix(")$").split("|")


def without(rights: tuple[str, str, str], right: str, name: str) -> tuple[str, str, str]:
    less = {each: alternatives(text) for each, text in zip(RIGHTS, rights, strict=True)}
    less[right].remove(name)
    configure, write, read = (f"^({'|'.join(less[each])})$" if less[each] else "^$" for each in RIGHTS)
    return configure, write, read


def cases() -> Iterator[Case]:
    for row in ROWS:
        # What rejects need does not depend on the row: one is enough.
        for rejects in (False, True) if row == "own-queue" else (False,):
            rights = granted(row, rejects=rejects)
            yield Case(row, rejects, rights)
            for right, text in zip(RIGHTS, rights, strict=True):
                for name in alternatives(text):
                    if not rejects or kind_of(name) == "rejects":
                        yield Case(row, rejects, without(rights, right, name), (right, name))


CASES = list(cases())
COMPLETE = [case for case in CASES if case.lacks is None]
SCRIPTED = "scripted"
"""A user who may do nothing at first."""

LACKING = [case for case in CASES if case.lacks is not None]


def user_of(case: Case) -> str:
    return case.user


SEES = "sees"
"""A user who may do what `read-queue` grants, and read the exchange: from RabbitMQ 4.3 on, a look at an exchange takes
some permission on it."""


@pytest.fixture(scope="module")
def users(node_broker: PrivateNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateNode]:
    """The node, with a user for each case: all at once, since a command takes a second or two."""
    names = [SCRIPTED, SEES, *(case.user for case in CASES)]
    definitions = {
        "users": [{"name": name, "password": PASSWORD, "tags": ""} for name in names],
        "permissions": [
            *({"user": case.user, "vhost": "/", **dict(zip(RIGHTS, case.rights, strict=True))} for case in CASES),
            {"user": SEES, "vhost": "/", "configure": "^$", "write": "^$", "read": f"^({QUEUE}|{EXCHANGE})$"},
        ],
    }
    file = tmp_path_factory.mktemp("users") / "definitions.json"
    file.write_text(json.dumps(definitions))
    node_broker.command("import_definitions", str(file))
    yield node_broker
    binaries = ",".join(f'<<"{name}">>' for name in names)
    node_broker.command("eval", f'[rabbit_auth_backend_internal:delete_user(U, <<"test">>) || U <- [{binaries}]].')


def url_of(node: PrivateNode, user: str) -> str:
    parts = urlsplit(node.url)
    return parts._replace(netloc=f"{user}:{PASSWORD}@{parts.hostname}:{parts.port}").geturl()


@asynccontextmanager
async def place(node: PrivateNode, row: Row, *, bound: bool = True) -> AsyncIterator[AbstractConnection]:
    """The exchange, and what the row's operator makes; an operator's connection. All is gone afterwards."""
    async with observer(node.url) as amqp:
        channel = await amqp.channel()
        exchange = await channel.declare_exchange(EXCHANGE, "fanout", durable=True)
        if row.made is not None:
            name, arguments = row.made
            queue = await channel.declare_queue(name, durable=True, arguments=arguments)
            if bound:
                await queue.bind(exchange, "#")
        try:
            yield amqp
        finally:
            for name in (QUEUE, STREAM, REJECTS):
                await channel.queue_delete(name)
            for name in (EXCHANGE, REJECTS):
                await channel.exchange_delete(name)


def flags(case: Case) -> dict[str, str]:
    return {
        "exchanges": f"{EXCHANGE}=killmail",
        "reject_exchange": REJECTS if case.rejects else "off",
        **ROWS[case.row].flags,
    }


@pytest.mark.parametrize("case", COMPLETE, ids=user_of)
async def test_bridge_runs_with_what_the_script_grants(users: PrivateNode, case: Case) -> None:
    row = ROWS[case.row]
    async with place(users, row) as amqp, running(url_of(users, case.user), **flags(case)) as bridge:
        client = await RawClient.open(port_of(bridge))
        await publish(amqp, EXCHANGE, killmail(1), b"poison")
        assert orjson.loads(await client.text())["data"] == killmail(1)
        await client.close()
        warnings = bridge.readiness.report()[1]["warnings"]
        assert isinstance(warnings, list)
        # From RabbitMQ 4.3 on, a second one says that the exchange can't be seen.
        assert bool(warnings) is bool(row.made)
        assert all(EXCHANGE in text for text in warnings)
        if case.rejects:
            [message] = await take(amqp, REJECTS, 1)
            assert message.body == b"poison"


@pytest.mark.parametrize("case", LACKING, ids=user_of)
async def test_bridge_that_has_any_less_says_what_it_lacks(users: PrivateNode, case: Case) -> None:
    assert case.lacks is not None
    right, name = case.lacks
    plain = "amq.gen-" if "gen" in name else name.replace("\\", "")
    async with place(users, ROWS[case.row]):
        # Twice: what the first one may have made must not let the second one pass.
        for _ in range(2):
            async with started(url_of(users, case.user), **flags(case)) as bridge:
                with pytest.raises(BrokerRefusal) as refusal:
                    async with asyncio.timeout(LIMIT_S):
                        await bridge.wait_for_refusal()
            text = str(refusal.value)
            assert "ACCESS_REFUSED" in text
            assert plain in text, "the name is in it"
            assert right in text or re.search(r"(queue|exchange) '", text), text
            assert "\n" not in text
            assert PASSWORD not in text


async def test_who_may_only_read_a_queue_is_told_that_the_binding_is_not_seen(users: PrivateNode) -> None:
    """And takes it as it is: what the operator binds later arrives, on the connection that is there."""
    [case] = [case for case in COMPLETE if case.row == "read-queue"]
    variables = {f"BRIDGE_{name.upper()}": text for name, text in flags(case).items()}
    async with (
        place(users, ROWS[case.row], bound=False) as amqp,
        bridge_process(url_of(users, case.user), **variables) as process,
    ):
        await process.consuming()
        port = await process.port()
        await eventually("it warns", lambda: any(line["event"] == UNVERIFIED_BINDING for line in process.lines))
        [line] = [line for line in process.lines if line["event"] == UNVERIFIED_BINDING]
        assert (line["queue"], line["exchanges"]) == (QUEUE, [EXCHANGE])
        status, body = await get(port, "/readyz")
        assert status == 200
        assert "may not bind the queue" in orjson.loads(body)["warnings"][0]
        client = await RawClient.open(port)
        channel = await amqp.channel()
        await (await channel.get_queue(QUEUE)).bind(EXCHANGE, "#")
        await publish(amqp, EXCHANGE, killmail(1))
        assert orjson.loads(await client.text())["data"] == killmail(1)
        await client.close()


async def test_exchange_that_is_gone_is_said_where_the_bridge_may_not_make_it(users: PrivateNode) -> None:
    [case] = [case for case in COMPLETE if case.row == "read-queue"]
    async with place(users, ROWS[case.row]) as amqp, running(url_of(users, SEES), **flags(case)) as bridge:
        channel = await amqp.channel()
        await channel.exchange_delete(EXCHANGE)
        await eventually("it is not ready", lambda: not bridge.readiness.report()[0])
        gone = f"the exchange {EXCHANGE!r} is gone, and the bridge does not know its type; declare it again"
        await eventually("it says so", lambda: gone in str(bridge.readiness.report()[1]["broker"]))
        exchange = await channel.declare_exchange(EXCHANGE, "fanout", durable=True)
        await (await channel.get_queue(QUEUE)).bind(exchange, "#")
        await eventually("it is ready", lambda: bridge.readiness.report()[0])


async def test_script_grants_it(users: PrivateNode) -> None:
    [case] = [case for case in COMPLETE if case.row == "own-queue" and not case.rejects]
    url = url_of(users, SCRIPTED)
    async with place(users, ROWS[case.row]):
        async with started(url, **flags(case)) as bridge:
            with pytest.raises(BrokerRefusal, match=r"refused for user|virtual host"):
                async with asyncio.timeout(LIMIT_S):
                    await bridge.wait_for_refusal()
        await users.script(SCRIPT, case.row, SCRIPTED, **NAMES)
        async with running(url, **flags(case)):
            pass


def test_script_takes_names_for_names_and_not_for_patterns() -> None:
    variables = {**os.environ, "RABBITMQCTL": "echo", "QUEUE": "a.b*c"}
    done = subprocess.run([SCRIPT, "read-queue", "user"], env=variables, capture_output=True, text=True, check=True)
    [*_, read] = done.stdout.split()
    assert re.search(read, "a.b*c")
    assert not re.search(read, "axb*c")
    assert not re.search(read, "a.bbc")


@pytest.mark.parametrize(("arguments", "said"), [(["no-row", "user"], "there is no row 'no-row'"), ([], "ROW USER")])
def test_script_says_what_it_wants(arguments: list[str], said: str) -> None:
    done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.parametrize("taken", ["exchange", "queue"])
async def test_permission_that_a_running_bridge_loses_on_what_it_only_looks_at_is_a_warning(
    users: PrivateNode, taken: str
) -> None:
    """It consumes on: the broker asks for a permission only when consuming begins."""
    [case] = [case for case in COMPLETE if case.row == "own-queue" and not case.rejects]
    configure, write, read = case.rights
    url = await users.user(configure, write, read)
    user = str(urlsplit(url).username)
    less = {"exchange": (configure, write, f"^{QUEUE}$"), "queue": ("^$", "^$", f"^{EXCHANGE}$")}[taken]
    timing = Timing(check_interval_s=0.2, refused_interval_s=0.5)
    async with place(users, ROWS[case.row]) as amqp, running(url, timing, **flags(case)) as bridge:
        client = await RawClient.open(port_of(bridge))

        def warnings() -> list[str]:
            found = bridge.readiness.report()[1]["warnings"]
            assert isinstance(found, list)
            return found

        assert warnings() == []
        await users.ctl("set_permissions", "-p", "/", user, *less)
        # The broker keeps the answers of a channel for a while, and each question has a channel of its own.
        await eventually("it warns", lambda: any("may no longer" in text for text in warnings()))
        assert bridge.readiness.report()[0], "and is ready all the same"
        await publish(amqp, EXCHANGE, killmail(1))
        assert orjson.loads(await client.text())["data"] == killmail(1)
        await users.ctl("set_permissions", "-p", "/", user, configure, write, read)
        await eventually("it warns no more", lambda: not warnings())
        await client.close()
        assert consumer_of(bridge)._metrics.registry.get_sample_value("bridge_broker_losses_total") == 0
