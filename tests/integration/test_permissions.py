"""A bridge runs with the permissions that `docker/rabbitmq/permissions.sh` grants, and not with fewer."""

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
from tests.support.documentation import adapted, code_block
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
    """A row in the table of permissions: a bridge's settings, and the queue that the operator creates for it."""

    flags: dict[str, str]
    existing: tuple[str, FieldTable] | None = None


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
    """A RabbitMQ user with all the permissions in a row of the table, or all but one."""

    row: str
    rejects: bool
    rights: tuple[str, str, str]
    lacks: tuple[str, str] | None = None
    """The missing permission: its kind, and the regular expression for the names that it covers."""

    @property
    def user(self) -> str:
        """The name of the user, which says what permission is missing."""
        lacks = [self.lacks[0], kind_of(self.lacks[1])] if self.lacks else []
        return "-".join([self.row, *(["rejects"] if self.rejects else []), *(["without", *lacks] if lacks else [])])


def kind_of(name: str) -> str:
    """Returns the kind of object, such as an exchange, that a regular expression in a permission matches."""
    kinds = {EXCHANGE: "exchange", QUEUE: "queue", STREAM: "stream", REJECTS: "rejects"}
    plain = name.replace("\\", "")
    return kinds.get(plain, plain.removesuffix("-.*"))


def granted(row: str, *, rejects: bool) -> tuple[str, str, str]:
    """Returns the regular expressions that the script passes to rabbitmqctl."""
    variables = {**os.environ, **NAMES, "RABBITMQCTL": "echo", "REJECTS": REJECTS if rejects else ""}
    done = subprocess.run([SCRIPT, row, "user"], env=variables, capture_output=True, text=True, check=True)
    command, option, vhost, user, *rights = done.stdout.split()
    assert [command, option, vhost, user] == ["set_permissions", "-p", "/", "user"]
    configure, write, read = rights
    return configure, write, read


def alternatives(right: str) -> list[str]:
    """Returns the alternatives of a regular expression."""
    return [] if right == "^$" else right.removeprefix("^(").removesuffix(")$").split("|")


def without(rights: tuple[str, str, str], right: str, name: str) -> tuple[str, str, str]:
    less = {each: alternatives(text) for each, text in zip(RIGHTS, rights, strict=True)}
    less[right].remove(name)
    configure, write, read = (f"^({'|'.join(less[each])})$" if less[each] else "^$" for each in RIGHTS)
    return configure, write, read


def cases() -> Iterator[Case]:
    for row in ROWS:
        # The permissions for rejected events are the same in each row, so one row is enough.
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
"""A user that has no permissions at first."""

[EXCLUSIVE] = [case for case in COMPLETE if case.row == "exclusive"]

LACKING = [case for case in CASES if case.lacks is not None]


def user_of(case: Case) -> str:
    return case.user


READS_EXCHANGE = "reads-exchange"
"""A user with the permissions of `read-queue`, plus the permission to read from the exchange.

From RabbitMQ 4.3 on, a user needs at least one permission on an exchange to see it.
"""


@pytest.fixture(scope="module")
def users(node_broker: PrivateNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateNode]:
    """The node, with a user for each case. One command creates all users, because a command takes 1 to 2 s."""
    names = [SCRIPTED, READS_EXCHANGE, *(case.user for case in CASES)]
    definitions = {
        "users": [{"name": name, "password": PASSWORD, "tags": ""} for name in names],
        "permissions": [
            *({"user": case.user, "vhost": "/", **dict(zip(RIGHTS, case.rights, strict=True))} for case in CASES),
            {"user": READS_EXCHANGE, "vhost": "/", "configure": "^$", "write": "^$", "read": f"^({QUEUE}|{EXCHANGE})$"},
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
async def topology(node: PrivateNode, row: Row, *, bound: bool = True) -> AsyncIterator[AbstractConnection]:
    """Declares the exchange and the queue of the row, and deletes them at the end. Yields the operator's connection."""
    async with observer(node.url) as amqp:
        channel = await amqp.channel()
        exchange = await channel.declare_exchange(EXCHANGE, "fanout", durable=True)
        if row.existing is not None:
            name, arguments = row.existing
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
    async with topology(users, row) as amqp, running(url_of(users, case.user), **flags(case)) as bridge:
        client = await RawClient.open(port_of(bridge))
        await publish(amqp, EXCHANGE, killmail(1), b"not JSON")
        assert orjson.loads(await client.text())["data"] == killmail(1)
        await client.close()
        warnings = bridge.readiness.report()[1]["warnings"]
        assert isinstance(warnings, list)
        # From RabbitMQ 4.3 on, a second warning reports that the user can't see the exchange.
        assert bool(warnings) is bool(row.existing)
        assert all(EXCHANGE in text for text in warnings)
        if case.rejects:
            [message] = await take(amqp, REJECTS, 1)
            assert message.body == b"not JSON"


@pytest.mark.parametrize("case", LACKING, ids=user_of)
async def test_bridge_with_a_missing_permission_names_it(users: PrivateNode, case: Case) -> None:
    assert case.lacks is not None
    right, name = case.lacks
    plain = "amq.gen-" if "gen" in name else name.replace("\\", "")
    async with topology(users, ROWS[case.row]):
        # The bridge runs twice: the first run may create a queue or an exchange, which must not help the second run.
        for _ in range(2):
            async with started(url_of(users, case.user), **flags(case)) as bridge:
                with pytest.raises(BrokerRefusal) as refusal:
                    async with asyncio.timeout(LIMIT_S):
                        await bridge.wait_for_refusal()
            text = str(refusal.value)
            assert "ACCESS_REFUSED" in text
            assert plain in text
            assert right in text
            assert "docker/rabbitmq/permissions.sh" in text
            assert "\n" not in text
            assert PASSWORD not in text


async def test_bridge_that_can_only_read_a_queue_warns_that_it_cant_check_the_binding(users: PrivateNode) -> None:
    """If the operator binds the queue later, updates arrive without a new connection."""
    [case] = [case for case in COMPLETE if case.row == "read-queue"]
    variables = {f"BRIDGE_{name.upper()}": text for name, text in flags(case).items()}
    async with (
        topology(users, ROWS[case.row], bound=False) as amqp,
        bridge_process(url_of(users, case.user), **variables) as process,
    ):
        await process.consuming()
        port = await process.port()
        await eventually("the bridge warns", lambda: any(line["event"] == UNVERIFIED_BINDING for line in process.lines))
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


async def test_missing_exchange_is_reported_if_the_bridge_cant_declare_it(users: PrivateNode) -> None:
    [case] = [case for case in COMPLETE if case.row == "read-queue"]
    async with topology(users, ROWS[case.row]) as amqp, running(url_of(users, READS_EXCHANGE), **flags(case)) as bridge:
        channel = await amqp.channel()
        await channel.exchange_delete(EXCHANGE)
        await eventually("the bridge is not ready", lambda: not bridge.readiness.report()[0])
        gone = f"the exchange {EXCHANGE!r} is gone, and the bridge does not know its type; declare it again"
        await eventually("/readyz has the reason", lambda: gone in str(bridge.readiness.report()[1]["broker"]))
        exchange = await channel.declare_exchange(EXCHANGE, "fanout", durable=True)
        await (await channel.get_queue(QUEUE)).bind(exchange, "#")
        await eventually("the bridge is ready", lambda: bridge.readiness.report()[0])


async def test_bridge_runs_after_the_script_and_not_before(users: PrivateNode) -> None:
    [case] = [case for case in COMPLETE if case.row == "own-queue" and not case.rejects]
    url = url_of(users, SCRIPTED)
    async with topology(users, ROWS[case.row]):
        async with started(url, **flags(case)) as bridge:
            with pytest.raises(BrokerRefusal, match=r"refused for user|virtual host"):
                async with asyncio.timeout(LIMIT_S):
                    await bridge.wait_for_refusal()
        await users.script(SCRIPT, case.row, SCRIPTED, **NAMES)
        async with running(url, **flags(case)):
            pass


async def test_commands_of_the_readme_create_a_user(users: PrivateNode) -> None:
    user = f"bridge-{secrets.token_hex(4)}"
    changes = [
        ("docker/rabbitmq/permissions.sh", str(SCRIPT)),
        (" bridge\n", f" {user}\n"),
        ("REJECTS=bridge.rejected", f"REJECTS={REJECTS}"),
    ]
    create = adapted(
        code_block("docker/README.md", "RabbitMQ permissions"),
        *changes,
        ("rabbitmqctl add_user", f"echo {PASSWORD} | $RABBITMQCTL add_user"),
    )
    own_queue = adapted(
        code_block("docker/README.md", "RabbitMQ permissions", 1),
        *changes,
        ("QUEUE=killmails.bridge", f"QUEUE={QUEUE}"),
    )
    for commands, row in ((create, "exclusive"), (own_queue, "own-queue")):
        await users.script(Path("/bin/sh"), "-e", "-c", commands, **NAMES)
        names = {**flags(EXCLUSIVE), **ROWS[row].flags, "reject_exchange": REJECTS}
        async with topology(users, ROWS[row]) as amqp, running(url_of(users, user), **names):
            await publish(amqp, EXCHANGE, b"not JSON")
            assert len(await take(amqp, REJECTS, 1)) == 1
    await users.ctl("delete_user", user)


def test_script_escapes_names() -> None:
    variables = {**os.environ, "RABBITMQCTL": "echo", "QUEUE": "a.b*c"}
    done = subprocess.run([SCRIPT, "read-queue", "user"], env=variables, capture_output=True, text=True, check=True)
    [*_, read] = done.stdout.split()
    assert re.search(read, "a.b*c")
    assert not re.search(read, "axb*c")
    assert not re.search(read, "a.bbc")


@pytest.mark.parametrize(("arguments", "hint"), [(["no-row", "user"], "there is no row 'no-row'"), ([], "ROW USER")])
def test_script_explains_its_arguments(arguments: list[str], hint: str) -> None:
    done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert hint in done.stderr


@pytest.mark.parametrize("taken", ["exchange", "queue"])
async def test_lost_permission_of_a_periodic_check_is_a_warning(users: PrivateNode, taken: str) -> None:
    """The bridge keeps consuming: the broker checks the permission to read only when the consumer starts."""
    [case] = [case for case in COMPLETE if case.row == "own-queue" and not case.rejects]
    configure, write, read = case.rights
    url = await users.user(configure, write, read)
    user = str(urlsplit(url).username)
    less = {"exchange": (configure, write, f"^{QUEUE}$"), "queue": ("^$", "^$", f"^{EXCHANGE}$")}[taken]
    timing = Timing(check_interval_s=0.2, refused_interval_s=0.5)
    async with topology(users, ROWS[case.row]) as amqp, running(url, timing, **flags(case)) as bridge:
        client = await RawClient.open(port_of(bridge))

        def warnings() -> list[str]:
            found = bridge.readiness.report()[1]["warnings"]
            assert isinstance(found, list)
            return found

        assert warnings() == []
        await users.ctl("set_permissions", "-p", "/", user, *less)
        # The broker caches permissions for each channel, and each check has its own channel.
        await eventually("the bridge warns", lambda: any("may no longer" in text for text in warnings()))
        assert bridge.readiness.report()[0], "a warning does not change readiness"
        await publish(amqp, EXCHANGE, killmail(1))
        assert orjson.loads(await client.text())["data"] == killmail(1)
        await users.ctl("set_permissions", "-p", "/", user, configure, write, read)
        await eventually("the warning is gone", lambda: not warnings())
        await client.close()
        assert consumer_of(bridge)._metrics.registry.get_sample_value("bridge_broker_losses_total") == 0
