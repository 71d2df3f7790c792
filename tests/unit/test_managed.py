"""Secrets that a rotation may write, and writing them: never over what was not seen, never anybody else's."""

import json
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from poolfleet.api import names
from poolfleet.controller import managed
from poolfleet.controller.context import Context
from poolfleet.controller.store import Store
from poolfleet.kube.errors import Conflict, NotFound
from poolfleet.kube.kinds import SECRET, Kind
from poolfleet.plan.managed import encoded, next_login, read_about, refusal, rotated
from tests.unit.pool_fixtures import Body

ABOUT = {"kind": "role", "secret": "role", "for": {"shop": "ü"}}


def secret(**metadata: Any) -> Body:
    base = {"name": "role", "namespace": "demo", "uid": "u", "resourceVersion": "7"}
    return {"metadata": {**base, **metadata}, "data": {"username": "YXBw"}}


@dataclass
class Edge:
    """The API server, and the Secrets that are read by name."""

    error: Exception | None = None
    calls: list[tuple[Any, ...]] = field(default_factory=list)

    async def create(self, obj: Body, *, manager: str) -> Body:
        self._call("create", obj, manager)
        return obj

    async def json_patch(self, kind: Kind, namespace: str, name: str, patch: list[Body], *, manager: str) -> Body:
        self._call("patch", kind, namespace, name, patch, manager)
        return secret(resourceVersion="8")

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str | None = None) -> None:
        self._call("delete", kind, namespace, name, uid)

    def written(self, body: Body) -> None:
        self.calls.append(("written", body["metadata"]["resourceVersion"]))

    def forget(self, namespace: str, name: str) -> None:
        self.calls.append(("forget", namespace, name))

    def _call(self, *what: Any) -> None:
        self.calls.append(what)
        if self.error is not None:
            raise self.error


@dataclass
class Edges:
    kube: Edge
    secrets: Edge
    store: Store


def edges(error: Exception | None = None) -> tuple[Edge, Context]:
    edge, store = Edge(error), Store()
    store.put(SECRET.plural, secret())
    return edge, cast(Context, Edges(edge, edge, store))


OWNER = {"kind": "Certificate", "name": "tls", "uid": "u"}
CONTROLLER = {"kind": "ExternalSecret", "name": "vault", "uid": "v", "controller": True}


@pytest.mark.parametrize(
    ("metadata", "whose"),
    [
        ({}, "somebody else made it"),
        ({"labels": None}, "somebody else made it"),
        ({"labels": {names.LABEL_MANAGED: "True"}}, "somebody else made it"),
        ({"labels": {names.LABEL_MANAGED_BY: "Helm"}}, "it is managed by Helm"),
        ({"ownerReferences": [OWNER]}, "it belongs to Certificate tls"),
        ({"ownerReferences": [OWNER, CONTROLLER]}, "it belongs to ExternalSecret vault"),
        ({"labels": {names.LABEL_MANAGED_BY: "Helm"}, "ownerReferences": [OWNER]}, "it belongs to Certificate tls"),
    ],
)
def test_whose_a_secret_is(metadata: Body, whose: str) -> None:
    assert refusal(secret(**metadata)) == (
        f'Secret "role" is not Poolfleet\'s to write: {whose}. Rotate it there, or set the label '
        "poolfleet.dev/managed=true on it."
    )


def test_a_label_hands_it_over_whoever_owns_it() -> None:
    assert refusal(secret(labels={names.LABEL_MANAGED: "true"}, ownerReferences=[CONTROLLER])) == ""


def test_the_next_secret_says_what_it_is_for_and_may_be_written_and_watched() -> None:
    made = next_login("role", "demo", {"username": "app", "password": "päss"}, ABOUT, "shop")
    assert (made["metadata"]["name"], made["metadata"]["namespace"]) == ("role-next", "demo")
    assert (read_about(made), refusal(made)) == (ABOUT, "")
    assert made["metadata"]["labels"][names.LABEL_WATCH] == "true"
    assert made["metadata"]["labels"][names.LABEL_POOL] == "shop"
    assert made["data"] == encoded({"username": "app", "password": "päss"})
    assert "ownerReferences" not in made["metadata"]  # the only valid password may be in it


@pytest.mark.parametrize("text", [None, "", "{", "7", "[]", "null"])
def test_what_was_spoilt_by_hand_says_nothing(text: str | None) -> None:
    for name, read in ((names.NEXT, read_about), (names.ROTATED, rotated)):
        assert read(secret(annotations={} if text is None else {name: text})) == {}


async def test_a_login_is_written_over_what_was_seen_only() -> None:
    edge, context = edges()
    await managed.write(context, secret(), {"username": "app", "password": "new"}, {"at": "now", "for": {"b": "ü"}})
    (_, kind, namespace, name, patch, manager), written = edge.calls
    assert (kind, namespace, name, manager) == (SECRET, "demo", "role", names.ROTATION_FIELD_MANAGER)
    assert patch[:2] == [
        {"op": "test", "path": "/metadata/uid", "value": "u"},
        {"op": "test", "path": "/metadata/resourceVersion", "value": "7"},
    ]
    assert {"op": "add", "path": "/data/password", "value": "bmV3"} in patch
    assert patch[2] == {"op": "add", "path": "/metadata/annotations", "value": {}}
    assert patch[-1]["path"] == "/metadata/annotations/poolfleet.dev~1rotated"
    assert json.loads(patch[-1]["value"]) == {"at": "now", "for": {"b": "ü"}}
    assert written == ("written", "8")


async def test_nothing_that_is_there_is_emptied() -> None:
    edge, context = edges()
    await managed.write(context, secret(annotations={"mine": "1"}), {"password": "new"}, {})
    assert [op["path"] for op in edge.calls[0][4]][2:] == [
        "/data/password",
        "/metadata/annotations/poolfleet.dev~1rotated",
    ]
    empty = {key: value for key, value in secret().items() if key != "data"}
    await managed.write(context, empty, {"password": "new"}, {})
    assert {"op": "add", "path": "/data", "value": {}} in edge.calls[2][4]


async def test_a_conflict_is_the_callers() -> None:
    edge, context = edges(Conflict("changed", 409))
    with pytest.raises(Conflict):
        await managed.write(context, secret(), {"password": "new"}, {})
    with pytest.raises(Conflict):
        await managed.create(context, next_login("role", "demo", {}, ABOUT, "shop"))
    with pytest.raises(Conflict):
        await managed.remove(context, secret())
    assert [call[0] for call in edge.calls] == ["patch", "create", "delete"]
    assert context.store.get(SECRET.plural, "demo", "role") is not None


@pytest.mark.parametrize("error", [None, NotFound("gone", 404)])
async def test_what_was_removed_is_forgotten_everywhere(error: Exception | None) -> None:
    edge, context = edges(error)
    await managed.remove(context, secret())
    assert edge.calls == [("delete", SECRET, "demo", "role", "u"), ("forget", "demo", "role")]
    assert context.store.get(SECRET.plural, "demo", "role") is None
