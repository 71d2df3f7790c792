"""A PgPool and its surroundings as a reconciliation may find them, for the tests of the pool side."""

import base64
import copy
import json
from collections.abc import Mapping
from typing import Any

from poolfleet.api import names
from poolfleet.api.wire import AgentState, DatabaseState
from poolfleet.plan.model import Pod, Settings
from poolfleet.plan.objects.meta import Owner
from poolfleet.plan.pool import Plan, plan
from poolfleet.plan.poolview import PoolView

Body = dict[str, Any]

NOW = 1_800_000_000.0
SETTINGS = Settings(agent_image="example/operator:1", pgbouncer_image="example/pgbouncer:1")
OWNER = Owner("demo", "shop", "uid-pool")
KEY = "ab" * 32
SECRETS: Mapping[str, Mapping[str, bytes] | None] = {"shop-app": {"username": b"shop", "password": b"pass word"}}


def pool_body(**spec: Any) -> Body:
    """PgPool demo/shop with an inline server; `spec` replaces fields, None takes one away."""
    base: Body = {
        "server": {"host": "postgres", "maxConnections": 100},
        "databases": [{"name": "shop"}],
        "users": [{"secretRef": {"name": "shop-app"}}],
        "replicas": 2,
    }
    return {
        "apiVersion": names.API_VERSION,
        "kind": "PgPool",
        "metadata": {
            "name": "shop",
            "namespace": "demo",
            "uid": "uid-pool",
            "generation": 1,
            "resourceVersion": "10",
            "creationTimestamp": "2027-01-01T00:00:00Z",
        },
        "spec": {key: value for key, value in {**base, **spec}.items() if value is not None},
    }


def server_body(name: str = "shop", budget: int | None = 87, entries: tuple[Body, ...] = (), **status: Any) -> Body:
    """The PgServer as the server reconciler leaves it; `budget` None: not discovered yet."""
    numbers = {} if budget is None else {"maxConnections": 100, "budget": budget}
    return {
        "apiVersion": names.API_VERSION,
        "kind": "PgServer",
        "metadata": {
            "name": name,
            "namespace": "demo",
            "uid": "uid-server",
            "resourceVersion": "20",
            "ownerReferences": [{"kind": "PgPool", "name": "shop", "uid": "uid-pool", "controller": True}],
        },
        "spec": {"host": "postgres", "maxConnections": 100},
        "status": {**numbers, "ledger": {"revision": 1, "entries": list(entries)}, **status},
    }


def view(
    body: Body | None = None,
    server: Body | None = None,
    *,
    secrets: Mapping[str, Mapping[str, bytes] | None] = SECRETS,
    live: Mapping[tuple[str, str], Any] | None = None,
    pods: tuple[Pod, ...] = (),
    no_server: bool = False,
    **more: Any,
) -> PoolView:
    """What is observed; without arguments a pool whose PgServer is there and whose other children are not."""
    body = body or pool_body()
    inline = "serverRef" not in body["spec"]
    server = server if server is not None else server_body()
    children = dict(live or {})
    if inline and not no_server:
        children.setdefault(("PgServer", "shop"), server)
    arguments: Body = {
        "body": body,
        "server": None if no_server else server,
        "secrets": {("demo", name): data for name, data in secrets.items()},
        "children": children,
        "pods": pods,
        "settings": SETTINGS,
        "now": NOW,
        "fresh_key": KEY,
    }
    return PoolView(**{**arguments, **more})


def applied(planned: Plan, before: Mapping[tuple[str, str], Any] | None = None) -> dict[tuple[str, str], Any]:
    """The children as they are once `planned` was carried out, the Deployment up and ready."""
    result = dict(before or {})
    for doomed in planned.delete:
        del result[doomed.kind, doomed.name]
    for number, obj in enumerate(planned.wanted):
        child = (obj["kind"], obj["metadata"]["name"])
        live = copy.deepcopy(obj)
        live["metadata"] |= {"uid": f"uid-{child[0]}-{child[1]}", "resourceVersion": str(100 + number), "generation": 1}
        if obj["kind"] == "Deployment":
            count = obj["spec"]["replicas"]
            counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), count)
            live["status"] = {"observedGeneration": 1, **counts}
        if obj["kind"] == "PgServer":
            live = {**result.get(child, server_body()), "spec": live["spec"], "metadata": live["metadata"]}
            live["metadata"]["uid"] = "uid-server"
        result[child] = live
    return result


def settled(body: Body | None = None, server: Body | None = None, **more: Any) -> PoolView:
    """A view in which nothing is left to write: every child is as planned."""
    first = view(body, server, **more)
    children = applied(plan(first), first.children)
    own = children.get(("PgServer", "shop"))
    return view(body, own or server, live=children, **more)


def of(planned: Plan, kind: str, name: str = "shop") -> Body:
    """The wanted child."""
    return next(o for o in planned.wanted if (o["kind"], o["metadata"]["name"]) == (kind, name))


def data(secret: Body) -> dict[str, str]:
    """A Secret's data as text."""
    return {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}


def state(config: str, pod: str = "a", **more: Any) -> AgentState:
    """A healthy agent's answer, the configuration `config` in force."""
    database = DatabaseState(loaded=10, held=3, samples=2, clients=5, waiting=1, reachable=True)
    arguments: Body = {
        "server": "uid-server",
        "pod": f"uid-{pod}",
        "seq": 1,
        "rev": 1,
        "config": config,
        "config_error": "",
        "started": "1",
        "databases": {"shop": database},
    }
    return AgentState(**{**arguments, **more})


def pod(name: str = "a", ready: bool = True, state: AgentState | None = None, **more: Any) -> Pod:
    """A pod of the fleet."""
    arguments: Body = {
        "uid": f"uid-{name}",
        "name": f"shop-{name}",
        "namespace": "demo",
        "created": NOW - 100,
        "terminating": False,
        "scheduled": True,
        "ended": False,
        "ready": ready,
        "ip": "10.0.0.1",
        "server": "uid-server",
        "state": state,
    }
    return Pod(**{**arguments, **more})


def conditions(status: Body) -> dict[str, Body]:
    """The conditions of a status by type."""
    return {condition["type"]: condition for condition in status["conditions"]}


def pretty(obj: object) -> str:
    """For a failed assertion."""
    return json.dumps(obj, indent=1, sort_keys=True)
