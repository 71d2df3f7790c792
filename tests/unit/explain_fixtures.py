"""A PgServer with its pools and pods as a cluster shows them, for the tests of explanations and kubectl pgpool."""

import json
from typing import Any

from poolfleet.api import names
from poolfleet.plan.server import write_ledger
from poolfleet.plan.times import timestamp
from poolfleet.plan.world import Entry, Ledger, Rest

Body = dict[str, Any]
NOW = 1_800_000_000.0


def server(ledger: Ledger | None = None, pools: tuple[Body, ...] = (), spec: Body | None = None, **status: Any) -> Body:
    """PgServer data/db with 100 connections, of which 87 are the budget; `pools` are bodies of PgPools."""
    lines = [
        {key: pool["metadata"][key] for key in ("namespace", "name", "uid")} | {"budget": 10, "granted": 0}
        for pool in pools
    ]
    return {
        "apiVersion": names.API_VERSION,
        "kind": "PgServer",
        "metadata": {"name": "db", "namespace": "data", "uid": "uid-db", "creationTimestamp": "2027-01-01T00:00:00Z"},
        "spec": {"host": "db", "maxConnections": 100, **(spec or {})},
        "status": {"pools": lines, "ledger": write_ledger(ledger or Ledger()), **status},
    }


def pool(name: str = "shop", namespace: str = "demo", born: int = 1, **spec: Any) -> Body:
    """PgPool `namespace`/`name` on data/db with one database of its name; the smaller `born` the older."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": "PgPool",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{name}",
            "creationTimestamp": f"2027-01-01T00:00:{born:02}Z",
        },
        "spec": {
            "serverRef": {"name": "db", "namespace": "data"},
            "databases": [{"name": name}],
            "users": [{"secretRef": {"name": "login"}}],
            "replicas": 2,
            **spec,
        },
    }


def pod(name: str, of: str = "shop", namespace: str = "demo", directive: Body | None = None, **more: Any) -> Body:
    """A pod of PgPool `namespace`/`of` on a node, Ready; `directive` is what its annotation says."""
    annotations = {names.SERVER_UID: "uid-db"}
    if directive is not None:
        annotations[names.DIRECTIVE] = json.dumps({"server": "uid-db", "mac": "?", **directive})
    body: Body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{name}",
            "creationTimestamp": "2027-01-01T00:01:00Z",
            "labels": {names.LABEL_POOL: of},
            "annotations": annotations,
        },
        "spec": {"nodeName": "node-1"},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }
    for key, value in more.items():
        body[key] = {**body[key], **value}
    return body


def entry(name: str, grant: int, bound: int | None = None, of: str = "demo/shop", **more: Any) -> Entry:
    """The ledger's entry of pod `name`, revision 7, for the database of its pool's name."""
    given = {"revision": 7, "since": NOW - 30, **more}
    return Entry(f"uid-{name}", name, of, of.partition("/")[2], grant if bound is None else bound, grant, **given)


def told(grant: int, share: int | None = None, rev: int = 7, database: str = "shop") -> Body:
    """A directive."""
    return {"rev": rev, "grant": {database: grant}, "share": {database: grant if share is None else share}}


def rest(connections: int, left: float = 0.3) -> Rest:
    """Connections that rest for `left` seconds more."""
    return Rest(connections, NOW + left)


def discovery(maximum: int, **more: Any) -> Body:
    """status.discovery."""
    limits = {"maxConnections": maximum, "superuserReserved": 3, "reserved": 2}
    return {**limits, "serverVersion": "17.2", "observedAt": timestamp(NOW - 60), **more}
