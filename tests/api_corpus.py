"""Manifests with the verdict that both the models and a real API server must reach."""

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from poolfleet.api import names
from poolfleet.api.pgpool import PgPool
from poolfleet.api.pgserver import PgServer

Manifest = dict[str, Any]
Path = tuple[str | int, ...]

MODELS: dict[str, type[PgPool] | type[PgServer]] = {names.POOL_KIND: PgPool, names.SERVER_KIND: PgServer}
PLURALS = {names.POOL_KIND: names.POOL_PLURAL, names.SERVER_KIND: names.SERVER_PLURAL}
GONE = object()


def manifest(kind: str, spec: Manifest, name: str = "shop") -> Manifest:
    return {"apiVersion": names.API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


POOL = manifest(
    "PgPool",
    {
        "server": {"host": "postgres", "maxConnections": 100},
        "databases": [{"name": "shop"}],
        "users": [{"secretRef": {"name": "shop-app"}}],
    },
)
SERVER = manifest("PgServer", {"host": "postgres", "maxConnections": 100})
FULL_SERVER = manifest(
    "PgServer",
    {
        "host": "db.example.com",
        "port": 5433,
        "tls": {"mode": "verify-full", "caSecretRef": {"name": "ca", "key": "bundle.pem"}},
        "maxConnections": 500,
        "headroom": 20,
        "adminSecretRef": {"name": "admin", "usernameKey": "user", "passwordKey": "pass"},
        "discoveryIntervalSeconds": 60,
        "allowedNamespaces": {
            "from": "Selector",
            "selector": {
                "matchLabels": {"team": "a"},
                "matchExpressions": [{"key": "stage", "operator": "NotIn", "values": ["test"]}],
            },
        },
        "roleLimits": "Enforce",
        "managedRoles": ["shop", "Web é"],
    },
)
FULL_POOL = manifest(
    "PgPool",
    {
        "server": FULL_SERVER["spec"],
        "share": {"weight": 3, "min": 5, "max": 60},
        "poolMode": "session",
        "databases": [
            {
                "name": "shop",
                "serverDatabase": "Shop é",
                "poolMode": "statement",
                "credentialsSecretRef": {"name": "role", "usernameKey": "u", "passwordKey": "p"},
                "weight": 3,
            },
            {"name": "shop_session"},
        ],
        "users": [{"secretRef": {"name": "app", "usernameKey": "u", "passwordKey": "p"}, "username": "web"}],
        "maxClientConnections": 500,
        "replicas": 3,
        "paused": True,
        "service": {
            "type": "LoadBalancer",
            "port": 5432,
            "annotations": {"example.com/note": "any text\nat all", "plain": ""},
            "labels": {"example.com/team": "a.b_c-d", "tier": ""},
            "loadBalancerClass": "example.com/internal",
            "loadBalancerSourceRanges": ["10.0.0.0/8", "fd00::/8"],
            "ipFamilyPolicy": "PreferDualStack",
            "trafficDistribution": "PreferClose",
        },
        "networkPolicy": {
            "enabled": False,
            "from": [
                {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
                {
                    "podSelector": {"matchLabels": {"app": "web"}},
                    "namespaceSelector": {
                        "matchExpressions": [
                            {"key": "team", "operator": "In", "values": ["a", "b"]},
                            {"key": "example.com/old", "operator": "DoesNotExist"},
                        ]
                    },
                },
                {"podSelector": {}},
            ],
        },
        "drain": {"timeoutSeconds": 0},
        "agentUpdate": "Immediately",
        "pgbouncer": {
            "image": "registry.example.com:5000/pgbouncer@sha256:0123",
            "parameters": {"query_wait_timeout": 30, "server_lifetime": "3600", "application_name_add_host": "1"},
        },
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"nodeSelector": {"x": "y"}, "tolerations": []}},
    },
)
REF_POOL = manifest(
    "PgPool",
    {
        "serverRef": {"name": "shop-db", "namespace": "data"},
        "databases": [{"name": "shop"}],
        "users": [{"secretRef": {"name": "shop-app"}}],
    },
)
SEEDS = (POOL, FULL_POOL, REF_POOL, SERVER, FULL_SERVER)


def changed(seed: Manifest, path: Path | str, value: Any) -> Manifest:
    """A copy of `seed` with `value` (or nothing, if GONE) at `path`; a string path is below spec, dotted."""
    result = copy.deepcopy(seed)
    steps: Path = (
        ("spec", *(int(step) if step.isdigit() else step for step in path.split(".")))
        if isinstance(path, str)
        else path
    )
    place: Any = result
    for step in steps[:-1]:
        place = place[step] if isinstance(step, int) else place.setdefault(step, {})
    if value is GONE:
        del place[steps[-1]]
    else:
        place[steps[-1]] = copy.deepcopy(value)
    return result


VALID: dict[str, Manifest] = {
    "smallest pool": POOL,
    "pool with everything": FULL_POOL,
    "pool by reference": REF_POOL,
    "smallest server": SERVER,
    "server with everything": FULL_SERVER,
    "server that is discovered": manifest("PgServer", {"host": "10.0.0.7", "adminSecretRef": {"name": "admin"}}),
    "IPv6 host": changed(SERVER, "host", "fd00::7"),
    "host with a final dot": changed(SERVER, "host", "db.example.com."),
    "headroom none": changed(SERVER, "headroom", 0),
    "headroom everything": changed(SERVER, "headroom", "100%"),
    "headroom null is the default": changed(SERVER, "headroom", None),
    "null is absent": changed(POOL, "service", None),
    "null in a map is absent": changed(POOL, "pgbouncer.parameters", {"query_timeout": None}),
    "null in labels is absent": changed(POOL, "service.labels", {"a": None}),
    "no replicas": changed(POOL, "replicas", 0),
    "database with quotes and spaces": changed(POOL, "databases.0.name", 'a "b" ; c = %include'),
    "database of 63 bytes": changed(POOL, "databases.0.name", "é" * 31 + "x"),
    "two databases": changed(POOL, "databases", [{"name": "a"}, {"name": "A"}]),
    "user name with a quote": changed(POOL, "users.0.username", "o'brien"),
    "parameter as text": changed(POOL, "pgbouncer.parameters", {"query_wait_timeout": "1.5"}),
    "null inside the template stays": changed(POOL, "template", {"spec": {"nodeSelector": None}}),
    "name of 52 characters": manifest("PgPool", POOL["spec"], "a" * 52),
    "name of one letter": manifest("PgPool", POOL["spec"], "a"),
    "allow from everyone": changed(POOL, "networkPolicy.from", []),
    "share of exactly five": changed(POOL, "share", {"min": 5, "max": 5}),
    "share without a minimum": changed(POOL, "share", {"min": 0, "max": 1}),
    "share null is the default": changed(POOL, "share", None),
    "pools of every namespace": changed(SERVER, "allowedNamespaces", {"from": "All"}),
    "pools of one namespace only": changed(SERVER, "allowedNamespaces", {}),
    "every namespace by selector": changed(SERVER, "allowedNamespaces", {"from": "Selector", "selector": {}}),
    "managed roles without limits": changed(SERVER, "managedRoles", ["shop"]),
    "no managed roles": changed(SERVER, "managedRoles", []),
    "role limits off": changed(SERVER, "roleLimits", "Off"),
}
"""What both must accept."""

INVALID: dict[str, tuple[Manifest, str]] = {
    "name with a digit first": (manifest("PgPool", POOL["spec"], "1db"), "start with a letter"),
    "name with a dot": (manifest("PgPool", POOL["spec"], "db.shop"), "lower case letters, digits and -"),
    "name with - at the end": (manifest("PgPool", POOL["spec"], "db-"), "lower case letters, digits and -"),
    "name of 53 characters": (manifest("PgPool", POOL["spec"], "a" * 53), "52 characters"),
    "server's name of 53 characters": (manifest("PgServer", SERVER["spec"], "a" * 53), "52 characters"),
    "neither server nor serverRef": (changed(POOL, "server", GONE), "exactly one of server"),
    "both server and serverRef": (changed(POOL, "serverRef", {"name": "x"}), "exactly one of server"),
    "no limit and no admin": (changed(SERVER, "maxConnections", GONE), "set maxConnections"),
    "no limit and no admin inline": (changed(POOL, "server.maxConnections", GONE), "set maxConnections"),
    "no host": (changed(SERVER, "host", GONE), "host"),
    "host with a line break": (changed(SERVER, "host", "db\nauth_type=any"), "one DNS name or IP address"),
    "host with a space": (changed(SERVER, "host", "db port=1"), "one DNS name or IP address"),
    "host with a quote": (changed(SERVER, "host", "db'"), "one DNS name or IP address"),
    "two hosts": (changed(SERVER, "host", "a,b"), "one DNS name or IP address"),
    "socket as host": (changed(SERVER, "host", "/run/postgresql"), "one DNS name or IP address"),
    "port 0": (changed(SERVER, "port", 0), "port"),
    "port as text": (changed(SERVER, "port", "5432"), "port"),
    "unknown TLS mode": (changed(SERVER, "tls.mode", "on"), "verify-full"),
    "headroom of 101 percent": (changed(SERVER, "headroom", "101%"), "percentage such as"),
    "headroom below 0": (changed(SERVER, "headroom", -1), "percentage such as"),
    "headroom as text": (changed(SERVER, "headroom", "10"), "percentage such as"),
    "headroom with a line break": (changed(SERVER, "headroom", "10%\n"), "percentage such as"),
    "selector without from": (changed(SERVER, "allowedNamespaces", {"selector": {}}), "from: Selector"),
    "selector with All": (changed(SERVER, "allowedNamespaces", {"from": "All", "selector": {}}), "from: Selector"),
    "Selector without one": (changed(SERVER, "allowedNamespaces", {"from": "Selector"}), "from: Selector"),
    "allowed namespaces as a list": (changed(SERVER, "allowedNamespaces", ["a"]), "allowedNamespaces"),
    "unknown from": (changed(SERVER, "allowedNamespaces", {"from": "Some"}), "Selector"),
    "role limits as YAML's off": (changed(SERVER, "roleLimits", False), "roleLimits"),
    "role limits without an admin": (changed(SERVER, "roleLimits", "Enforce"), "needs adminSecretRef"),
    "role limits without an admin inline": (changed(POOL, "server.roleLimits", "Enforce"), "needs adminSecretRef"),
    "the same role twice": (changed(SERVER, "managedRoles", ["a", "b", "a"]), "managedRoles"),
    "role with a line break": (changed(SERVER, "managedRoles", ["a\nb"]), "control characters"),
    "role without a name": (changed(SERVER, "managedRoles", [""]), "managedRoles"),
    "share of nobody": (changed(POOL, "share.weight", 0), "weight"),
    "share max 0": (changed(POOL, "share.max", 0), "max"),
    "share min below 0": (changed(POOL, "share.min", -1), "min"),
    "share max below min": (changed(POOL, "share", {"min": 5, "max": 4}), "max must not be smaller than min"),
    "no databases": (changed(POOL, "databases", GONE), "databases"),
    "empty databases": (changed(POOL, "databases", []), "databases"),
    "no users": (changed(POOL, "users", GONE), "users"),
    "empty users": (changed(POOL, "users", []), "users"),
    "user null": (changed(POOL, "users", [None]), "users"),
    "the same database twice": (changed(POOL, "databases", [{"name": "a"}, {"name": "a"}]), "databases"),
    "database pgbouncer": (changed(POOL, "databases.0.name", "pgbouncer"), 'cannot be named "pgbouncer"'),
    "database *": (changed(POOL, "databases.0.name", "*"), 'cannot be named "pgbouncer"'),
    "database with a single quote": (changed(POOL, "databases.0.name", "o'clock"), "single quote"),
    "database with a line break": (changed(POOL, "databases.0.name", "a\n[pgbouncer]"), "control characters"),
    "database with NUL": (changed(POOL, "databases.0.name", "a\0"), "control characters"),
    "database with U+0085": (changed(POOL, "databases.0.name", "a\u0085b"), "control characters"),
    "database of 64 bytes": (changed(POOL, "databases.0.name", "é" * 32), "63 bytes"),
    "serverDatabase with a line break": (changed(POOL, "databases.0.serverDatabase", "a\r"), "control characters"),
    "database weight 0": (changed(POOL, "databases.0.weight", 0), "weight"),
    "user name with a line break": (changed(POOL, "users.0.username", 'a"\n"b'), "control characters"),
    "Secret name in upper case": (changed(POOL, "users.0.secretRef.name", "Shop"), "lower case letters"),
    "Secret key with a slash": (changed(POOL, "users.0.secretRef.passwordKey", "../x"), "letters, digits"),
    "too many replicas": (changed(POOL, "replicas", 101), "replicas"),
    "paused as text": (changed(POOL, "paused", "yes"), "paused"),
    "unknown pool mode": (changed(POOL, "poolMode", "Transaction"), "transaction"),
    "load balancer class without one": (changed(POOL, "service.loadBalancerClass", "x"), "needs type LoadBalancer"),
    "label value with a space": (changed(POOL, "service.labels", {"a": "b c"}), "values must"),
    "label key with a space": (changed(POOL, "service.labels", {"a b": "c"}), "keys must"),
    "peer with nothing": (changed(POOL, "networkPolicy.from", [{}]), "either ipBlock alone"),
    "peer with both": (
        changed(POOL, "networkPolicy.from", [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]),
        "either ipBlock alone",
    ),
    "range without length": (changed(POOL, "networkPolicy.from", [{"ipBlock": {"cidr": "10.0.0.0"}}]), "range"),
    "In without values": (
        changed(POOL, "networkPolicy.from", [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}]),
        "need values",
    ),
    "image with a line break": (changed(POOL, "pgbouncer.image", "a\nb"), "spaces or line breaks"),
    "parameter with a line break": (changed(POOL, "pgbouncer.parameters", {"query_timeout": "1\n[x]"}), "parameters"),
    "parameter as boolean": (changed(POOL, "pgbouncer.parameters", {"query_timeout": True}), "parameters"),
    "parameter as fraction": (changed(POOL, "pgbouncer.parameters", {"query_timeout": 1.5}), "parameters"),
    "parameter name with a space": (changed(POOL, "pgbouncer.parameters", {"x = 1; y": 1}), "PgBouncer settings"),
    "include as parameter": (changed(POOL, "pgbouncer.parameters", {"%include": "/etc/passwd"}), "PgBouncer settings"),
    "template as text": (changed(POOL, "template", "x"), "template"),
    "no spec": (changed(POOL, ("spec",), GONE), "spec"),
}
"""What both must refuse, and a part of what the API server must say."""


def at(value: Any, path: Path) -> Any:
    """What stands at `path` in `value`."""
    for step in path:
        value = value[step]
    return value


def places(value: Any, path: Path) -> Iterator[Path]:
    """The paths of everything below `value`, which is at `path`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, each in items:
        yield (*path, step)
        yield from places(each, (*path, step))


likely_text = st.sampled_from(
    ["a", "a-b", "a.b", "10%", "100%", "require", "session", "10.0.0.0/8", "In", "é", "x" * 63]
)
odd_text = st.one_of(
    st.sampled_from(["", "A", "*", "'", '"', "101%", "a\nb", "\0", "::1", "a/b", "x" * 64, "pgbouncer"]),
    st.text(st.characters(codec="utf-8"), max_size=70),
)
numbers = st.one_of(
    st.sampled_from(
        [-1, 0, 1, 2, 63, 64, 100, 101, 1000, 1001, 3600, 3601, 65535, 65536, 86400, 86401, 262143, 262144]
    ),
    st.integers(-(2**31), 2**31),
)
odd_values = st.one_of(
    likely_text,
    odd_text,
    numbers,
    st.sampled_from([None, True, False, 1.5, [], {}, [None], {"name": "a"}, [{"name": "a"}, {"name": "a"}]]),
)


def likely_values(value: Any) -> st.SearchStrategy[Any]:
    """What might stand there instead of `value`."""
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int):
        return numbers
    if isinstance(value, str):
        return st.one_of(st.just(value + "a"), likely_text, odd_text)
    if isinstance(value, list):
        return st.sampled_from([value + value, value[:1], []])
    return st.just(None)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """One of the seeds with one or two places changed or gone: about a third of them are valid."""
    result: Manifest = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):
        path = draw(st.sampled_from([*places(result["spec"], ("spec",)), ("metadata", "name")]))
        value = at(result, path)
        if path[0] == "metadata":
            result = changed(result, path, draw(likely_values(value)))
        else:
            kind = draw(st.sampled_from(["likely", "likely", "likely", "odd", "gone", "null"]))
            new = {"gone": st.just(GONE), "null": st.none(), "odd": odd_values, "likely": likely_values(value)}[kind]
            result = changed(result, path, draw(new))
    return result
