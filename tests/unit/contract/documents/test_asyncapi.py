"""Tests of the AsyncAPI document for schema files and a deployment. tests/conformance checks that it is valid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jsonschema_rs
import orjson

from bridge.contract import catalog
from bridge.contract.documents import asyncapi
from bridge.contract.documents.deployment import Deployment
from bridge.contract.pipeline import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PACKAGED = catalog.load([catalog.PACKAGED])


def document(
    documents: Mapping[str, bytes] = PACKAGED.documents,
    *,
    secure: bool = False,
    exchanges: Mapping[str, str] | None = None,
    reject_exchange: str | None = "bridge.rejected",
    filterable: Mapping[str, frozenset[str]] = PACKAGED.filterable,
) -> Any:
    content = asyncapi.document(
        documents,
        filterable,
        Deployment(
            host="localhost:3001",
            secure=secure,
            path="/kills",
            exchanges=exchanges or {"killmails": "killmail"},
            reject_exchange=reject_exchange,
        ),
    )
    assert content.endswith(b"}\n")
    return orjson.loads(content)


def references(value: Any) -> Iterator[str]:
    """Yields every reference in the document."""
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def resolve(value: Any, reference: str) -> Any:
    for step in reference.removeprefix("#/").split("/"):
        value = value[step]
    return value


def test_every_reference_has_its_target() -> None:
    made = document()
    found = set(references(made))
    assert len(found) > 30
    for reference in found:
        assert resolve(made, reference) is not None


def test_document_names_the_endpoint() -> None:
    made = document()
    assert (made["asyncapi"], made["info"]["version"]) == ("3.0.0", "1")
    server = made["servers"]["websocket"]
    assert (server["host"], server["protocol"]) == ("localhost:3001", "ws")
    channel = made["channels"]["updates"]
    assert (channel["address"], channel["servers"]) == ("/kills", [{"$ref": "#/servers/websocket"}])
    operation = made["operations"]["sendUpdates"]
    assert (operation["action"], operation["channel"]) == ("send", {"$ref": "#/channels/updates"})
    assert operation["messages"] == [{"$ref": f"#/channels/updates/messages/{name}"} for name in channel["messages"]]


def test_secure_bridge_is_wss() -> None:
    assert document(secure=True)["servers"]["websocket"]["protocol"] == "wss"


def test_every_update_type_has_a_message_without_and_a_message_with_an_id() -> None:
    made = document()
    messages = made["channels"]["updates"]["messages"]
    for name in PACKAGED.types:
        for key, names in (
            (f"update.{name}", ["type", "data", "timestamp"]),
            (f"update-with-id.{name}", ["type", "data", "timestamp", "id"]),
        ):
            assert messages[key] == {"$ref": f"#/components/messages/{key}"}
            message = made["components"]["messages"][key]
            members = message["payload"]["properties"]
            assert message["name"] == key
            assert members["type"]["const"] == name
            assert members["data"] == {"$ref": f"#/components/schemas/{name}"}
            assert list(message["payload"]["required"]) == list(members) == names
            assert message["payload"]["additionalProperties"] is False
            assert message["examples"]
            for example in message["examples"]:
                assert list(example["payload"]) == names
                assert PACKAGED.types[name].violation(example["payload"]["data"]) is None


def test_own_message_is_a_message_to_clients_and_not_an_event() -> None:
    made = document()
    for name, schema in PACKAGED.messages.items():
        message = resolve(made, made["channels"]["eventStream"]["messages"][f"message.{name}"]["$ref"])
        members = message["payload"]["properties"]
        assert list(members) == list(message["payload"]["required"]) == ["type", "data", "timestamp"]
        assert members["type"]["const"] == name
        assert members["data"] == {"$ref": f"#/components/schemas/{name}"}
        [example] = message["examples"]
        assert schema.violation(example["payload"]["data"]) is None
        assert ("id" in example["payload"]["data"]) == (name != "close")
        assert not any(name in key for key in made["channels"]["exchange.killmails"]["messages"])


def test_channel_has_what_its_clients_receive() -> None:
    channels = document()["channels"]
    with_id = {f"update-with-id.{name}" for name in PACKAGED.types}
    own = {f"message.{name}" for name in PACKAGED.messages}
    without_id = {f"update.{name}" for name in PACKAGED.types}
    assert set(channels["updates"]["messages"]) == without_id | with_id | own - {"message.close"}
    assert set(channels["eventStream"]["messages"]) == with_id | own


def test_event_stream_is_a_channel_over_http() -> None:
    made = document(secure=True)
    channel, operation = made["channels"]["eventStream"], made["operations"]["sendEventStream"]
    assert (channel["address"], channel["servers"]) == ("/kills", [{"$ref": "#/servers/http"}])
    assert made["servers"]["http"]["protocol"] == "https"
    assert operation["channel"] == {"$ref": "#/channels/eventStream"}
    assert operation["messages"] == [
        {"$ref": f"#/channels/eventStream/messages/{name}"} for name in channel["messages"]
    ]
    binding = operation["bindings"]["http"]
    assert binding["method"] == "GET"
    assert list(binding["query"]["properties"]) == ["format", "type", *PACKAGED.filterable, "after", "last"]
    assert binding["query"]["properties"]["format"]["const"] == "sse"


def test_query_has_all_parameters() -> None:
    query = document()["channels"]["updates"]["bindings"]["ws"]["query"]
    asked = query["properties"]
    assert list(asked) == ["type", *PACKAGED.filterable, "after", "last"]
    assert (asked["last"]["minimum"], asked["last"]["maximum"]) == (1, 1000)
    assert "earliest" in asked["after"]["description"]
    assert list(query["patternProperties"]) == [r"^data\."]
    assert asked["type"]["items"]["enum"] == sorted(PACKAGED.types)
    assert asked["systemId"]["items"] == {"type": ["integer", "null"]}
    assert asked["killmailId"]["items"] == {"type": "integer"}


def test_member_that_tools_would_resolve_is_not_in_the_query() -> None:
    kinds = frozenset({"string"})
    query = document(filterable={"$ref": kinds, "a b": kinds})["channels"]["updates"]["bindings"]["ws"]["query"]
    assert list(query["properties"]) == ["type", "a b", "after", "last"]


def test_member_with_the_name_of_a_parameter_has_its_prefix_in_the_query() -> None:
    names = ("type", "last", "data.x", "x")
    made = document(filterable=dict.fromkeys(names, frozenset({"string"})))
    query = made["channels"]["updates"]["bindings"]["ws"]["query"]["properties"]
    assert list(query) == ["type", "data.type", "data.last", "data.data.x", "x", "after", "last"]
    assert query["type"]["items"]["enum"] == sorted(PACKAGED.types)


def test_example_is_that_of_the_specification() -> None:
    made = document()
    [example] = made["components"]["messages"]["update.killmail"]["examples"]
    assert [example["payload"]] == orjson.loads(PACKAGED.documents["update.json"])["examples"]


def test_broker_is_not_named() -> None:
    server = document()["servers"]["rabbitmq"]
    assert (server["host"], server["protocol"]) == ("{broker}", "amqp")
    assert server["variables"]["broker"]["default"] == "localhost:5672"


def test_document_has_an_operation_for_every_exchange() -> None:
    made = document(exchanges={"kills": "killmail", "böard/news": "event"})
    assert list(made["channels"]) == [
        "updates",
        "eventStream",
        "exchange.kills",
        "exchange.b_f6_ard_2f_news",
        "rejected",
    ]
    for key, name, default in [("kills", "kills", "killmail"), ("b_f6_ard_2f_news", "böard/news", "event")]:
        channel = made["channels"][f"exchange.{key}"]
        assert channel["bindings"]["amqp"]["exchange"] == {
            "name": name,
            "type": "fanout",
            "durable": True,
            "autoDelete": False,
        }
        assert f"`{default}`" in channel["description"]
        operation = made["operations"][f"receive.{key}"]
        assert (operation["action"], operation["channel"]) == ("receive", {"$ref": f"#/channels/exchange.{key}"})
        assert len(operation["messages"]) == len(channel["messages"])


def test_every_source_format_of_every_type_can_be_published() -> None:
    made = document()
    messages = made["channels"]["exchange.killmails"]["messages"]
    forms = {"form.esi-killmail", "form.redisq-package", "form.r2z2-document"}
    assert set(messages) == forms | {f"{kind}.{name}" for kind in ("event", "wrapped") for name in PACKAGED.types}
    for key, reference in messages.items():
        message = resolve(made, reference["$ref"])
        expected = "killmail" if key in forms else key.partition(".")[2]
        assert message["bindings"]["amqp"]["messageType"] == expected


def test_wrapped_event_names_its_type_and_can_contain_a_source_format() -> None:
    messages = document()["components"]["messages"]
    members = messages["wrapped.statistics"]["payload"]["properties"]
    assert members["type"] == {"type": "string", "const": "statistics"}
    assert members["data"] == {"$ref": "#/components/schemas/statistics"}
    forms = messages["wrapped.killmail"]["payload"]["properties"]["data"]["anyOf"]
    assert forms[:2] == [{"$ref": f"#/components/schemas/{name}"} for name in ("killmail", "esi-killmail")]


def test_redisq_package_may_be_in_its_package() -> None:
    bare, packed = document()["components"]["messages"]["form.redisq-package"]["payload"]["anyOf"]
    assert bare == packed["properties"]["package"] == {"$ref": "#/components/schemas/redisq-package"}
    assert packed["required"] == ["package"]


def test_rejected_event_has_its_reason() -> None:
    made = document()
    assert made["channels"]["rejected"]["bindings"]["amqp"]["exchange"]["name"] == "bridge.rejected"
    assert made["operations"]["sendRejected"]["action"] == "send"
    headers = made["components"]["messages"]["rejected"]["headers"]["properties"]
    assert headers["x-reject-reason"]["enum"] == list(Reason)


def test_rejected_events_that_are_only_counted_are_not_described() -> None:
    made = document(reject_exchange=None)
    assert "rejected" not in made["channels"]
    assert "sendRejected" not in made["operations"]
    assert "rejected" not in made["components"]["messages"]


def test_operators_type_is_described_like_a_packaged_type() -> None:
    own = b'{"$defs": {"id": {"type": "integer"}}, "properties": {"id": {"$ref": "#/$defs/id"}}}'
    made = document({**PACKAGED.documents, "fleet move.json": own})
    message = made["components"]["messages"]["update.fleet_20_move"]
    assert (message["name"], message["title"], "examples" in message) == ("update.fleet move", "fleet move", False)
    assert message["payload"]["properties"]["type"]["const"] == "fleet move"
    assert "event.fleet_20_move" in made["channels"]["exchange.killmails"]["messages"]
    assert made["components"]["schemas"]["fleet_20_move"] == {
        "definitions": {"id": {"type": "integer"}},
        "properties": {"id": {"$ref": "#/components/schemas/fleet_20_move/definitions/id"}},
    }


def test_update_without_an_envelope_schema_has_the_same_members() -> None:
    messages = document({"fleet.json": b"{}"}, filterable={})["components"]["messages"]
    with_id = messages["update-with-id.fleet"]["payload"]["properties"]
    assert with_id.pop("id") == {"type": "string"}
    assert messages["update.fleet"]["payload"]["properties"] == with_id
    assert with_id == {
        "type": {"const": "fleet"},
        "data": {"$ref": "#/components/schemas/fleet"},
        "timestamp": {"type": "integer"},
    }


def test_examples_are_valid_in_draft_7_and_other_values_are_not() -> None:
    made = document()
    checked = 0
    for message in made["components"]["messages"].values():
        validator = jsonschema_rs.Draft7Validator({**message["payload"], "components": made["components"]})
        for example in message.get("examples", []):
            assert validator.is_valid(example["payload"])
            assert not validator.is_valid(1)
            checked += 1
    assert checked >= 3 * len(PACKAGED.types)


def test_no_two_types_share_a_key() -> None:
    names = ["a b", "a_20_b", "a_b", "a.b", "entity_x"]
    made = document({f"{name}.json": b"{}" for name in names})
    messages = [key for key in made["components"]["messages"] if key.startswith("update.")]
    assert len(messages) == len(set(messages)) == len(names)
    assert {"update.a_b", "update.a.b", "update.entity_x"} <= set(messages)
