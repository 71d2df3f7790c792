"""`make demo`: 500 clients at once against PostgreSQL, and the same 500 through a PgPool. Run it as often as you like.

The cluster and the operator are there already (`make cluster`). Standard library and tests/e2e/kit only.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.e2e import kit

NAMESPACE, POOL = "demo", "shop"
OPERATOR_CONNECTIONS = 2  # with an admin Secret, as the budget has it
CLIENTS = 500
# Each client connects, runs ten queries of 50 ms with pauses of a second, disconnects. So all are there at once.
STORM = ("--clients", str(CLIENTS), "--queries", "10", "--query-ms", "50", "--think-ms", "1000", "--timeout", "30")


def say(text: str = "") -> None:
    print(text, flush=True)


@contextmanager
def step(text: str) -> Iterator[None]:
    """Say what begins, and the seconds that it took."""
    say(f"--- {text}")
    begin = time.monotonic()
    yield
    say(f"=== {time.monotonic() - begin:6.1f} s")


def show(kubectl: kit.Kubectl, *args: str) -> None:
    """Run kubectl as the reader would, and show what it says."""
    say(f"    $ kubectl {' '.join(args)}")
    for line in kubectl.run(*args).splitlines():
        say(f"      {line}")


def storm(clients: kit.Clients, postgres: kit.Postgres, login: kit.Login) -> dict[str, Any]:
    """Run the storm against `login`; its summary, with the server's connections: `peak` of the role, and of `others`.

    A connection that is still logging in has no role yet: it counts as the role's.
    """
    with kit.Sampler(postgres) as sampler:
        (result,) = clients.run("storm", login, *STORM, timeout=120)
    own = [by.get(login.user, 0) + by.get("", 0) for _, by in sampler.samples]
    result["peak"] = max(own)
    result["others"] = max(sum(by.values()) - n for n, (_, by) in zip(own, sampler.samples, strict=True))
    for words, count in {**result["refusals"], **result["failures"]}.items():
        say(f"    {count} x {words}")
    return result


def wait_for_idle(postgres: kit.Postgres, role: str) -> None:
    """Let PgBouncer close what an earlier run has left idle (server_idle_timeout), so that the server is empty.

    Nothing is killed: a pool emptied by force answers with its last login error, if it has one, instead of queueing.
    """
    left = postgres.sessions(role)
    if not left:
        return
    with step(f"Waiting until the pool has closed the {left} connections that an earlier run has left idle"):
        try:
            kit.await_until(lambda: not postgres.sessions(role), 75, f"no session of {role}", interval=1)
        except AssertionError:
            say(f"    {postgres.sessions(role)} sessions of {role} are still there: others use the pool; see below.")


def table(limit: str, direct: dict[str, Any], pooled: dict[str, Any]) -> str:
    """Both results, side by side."""

    def times(result: dict[str, Any], what: str) -> str:
        found = result[what]
        return "-" if found["p50"] is None else f"{found['p50']:.0f} / {found['p99']:.0f}"

    rows: list[tuple[str, str, str]] = [
        (f"{CLIENTS} clients at once", "PostgreSQL directly", "through the PgPool"),
        *((name, str(direct[key]), str(pooled[key])) for name, key in (("refused", "refused"), ("served", "served"))),
        ("failed later", str(direct["failed"]), str(pooled["failed"])),
        ("first answer p50 / p99, ms", times(direct, "first_answer_ms"), times(pooled, "first_answer_ms")),
        ("query p50 / p99, ms", times(direct, "query_ms"), times(pooled, "query_ms")),
        (f"peak server connections (of {limit})", str(direct["peak"]), str(pooled["peak"])),
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [f"  {a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows]
    lines.insert(1, "  " + "-" * (sum(widths) + 4))
    return "\n".join(lines)


def demo() -> None:
    begin = time.monotonic()
    kubectl = kit.Kubectl()
    with step("PostgreSQL 17 with max_connections=100: kubectl apply -f examples/demo/postgres.yaml"):
        postgres = kit.Postgres(kubectl, NAMESPACE).ensure()
        clients = kit.Clients(kubectl, NAMESPACE).ensure()
    with step("A pool of PgBouncers in front of it: kubectl apply -f examples/pgpool.yaml"):
        kubectl.apply(kit.ROOT / "examples/pgpool.yaml")
        kit.Pool(kubectl, NAMESPACE, POOL).ready(90)
    show(kubectl, "-n", NAMESPACE, "get", "pgpool", POOL)
    show(kubectl, "-n", NAMESPACE, "get", "pods", "-o", "wide")

    app = kubectl.secret(NAMESPACE, "shop-app")
    user, password = app["username"], app["password"]
    wait_for_idle(postgres, user)
    with step(f"{CLIENTS} clients at once, straight to PostgreSQL: each connects, runs 10 queries of 50 ms, leaves"):
        direct = storm(clients, postgres, kit.Login(postgres.host, 5432, user, password, "shop"))
    wait_for_idle(postgres, user)
    with step(f"The same {CLIENTS} clients through the Service {POOL} of the pool"):
        pooled = storm(clients, postgres, kit.Login(f"{POOL}.{NAMESPACE}.svc", 6432, user, password, "shop"))

    say()
    say(table(postgres.sql("SHOW max_connections")[0][0], direct, pooled))
    say()
    say(f"  Clients, PgBouncers, PostgreSQL and the cluster shared {os.cpu_count()} cores: compare the times, no more.")
    say("  A first answer counts from the start of the connect. Times are of clients that were let in.")
    if (others := max(direct["others"], pooled["others"])) > OPERATOR_CONNECTIONS:
        say(f"  NOT A FAIR RUN: others held up to {others} connections to this PostgreSQL. Run it again alone.")
    say()
    say(f"The demo took {time.monotonic() - begin:.0f} s. What to type next:")
    say("  export KUBECONFIG=$PWD/.cluster/kubeconfig PATH=${POOLFLEET_CACHE:-$HOME/.cache/poolfleet}/kind/bin:$PATH")
    for command in (
        f"get pgpool,pgserver -n {NAMESPACE}",
        f"describe pgpool {POOL} -n {NAMESPACE}",
        f"get pgserver {POOL} -n {NAMESPACE} -o jsonpath='{{.status.ledger}}'   # who may hold how many connections",
        f"exec -n {NAMESPACE} deploy/{POOL} -c agent -- python3 -m poolfleet admin 'SHOW DATABASES'",
        f"exec -n {NAMESPACE} -it postgres-0 -- psql -h {POOL} -p 6432 -U shop shop   # password: change-me-shop",
        f"scale pgpool {POOL} -n {NAMESPACE} --replicas=3",
        "explain pgpool.spec",
    ):
        say(f"  kubectl {command}")


if __name__ == "__main__":
    try:
        demo()
    except (kit.KubectlError, AssertionError) as error:
        sys.exit(f"error: {error}\nAn overview: kubectl -n {NAMESPACE} get pgpool,pgserver,pods,events")
