"""What is known of a PgServer, its pools and its pods, for `plan/explain.py`: from API objects, whole or in part. Pure.

Whoever asks may see less than the operator: no Secrets, no agents, perhaps not the other pools. What is missing is
stood in for by what the ledger says, and named in `notes`.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from pydantic import ValidationError

from poolfleet.api import base
from poolfleet.api.conditions import STALLED, Reason
from poolfleet.api.pgserver import PgServerSpec
from poolfleet.plan import budget as budgets
from poolfleet.plan import identity, role_limits
from poolfleet.plan.budget import Budget
from poolfleet.plan.discovery import Discovery, read_discovery
from poolfleet.plan.model import Pod
from poolfleet.plan.pool import frozen, wishes
from poolfleet.plan.seen import ghost_grace, pod_of, with_caps
from poolfleet.plan.server import read_ledger
from poolfleet.plan.sizing import PoolWish
from poolfleet.plan.world import Ledger, World

Body = Mapping[str, Any]
"""A live object as JSON."""
UNREAD: Final = ""  # raw_directive of a pod that stands in for one that cannot be read
AGE_STEP: Final = 1e-6  # seconds between pools whose age is known by their order only


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one PgServer and its pools."""

    server: str  # "<namespace>/<name>"
    budget: Budget | None  # None: max_connections is not known
    declared: int | None  # spec.maxConnections
    discovery: Discovery | None
    headroom: str  # spec.headroom as it is written
    world: World  # its `foreign` holds `unaccounted` as well
    unaccounted: int = 0  # sessions of the pools' roles that no agent accounts for
    shared: str = ""  # why another PgServer has this one's budget, "" if none has
    notes: tuple[str, ...] = ()  # what else a reader has to know, such as what could not be read


@dataclass(frozen=True, slots=True)
class Seen:
    """The API objects around one PgServer, as far as they could be read."""

    server: Body
    pools: Sequence[Body]  # those of status.pools that could be read
    pods: Sequence[Body]  # of all pools
    blind: Collection[str] = ()  # namespaces whose pods could not be read
    servers: Sequence[Body] | None = None  # every PgServer; None: they could not be read


def facts(seen: Seen, now: float) -> Facts:
    """The facts of `seen` at `now` (seconds since the epoch). Without the key of a pool's MACs directives are taken
    as they stand."""
    status, spec, notes = seen.server.get("status") or {}, None, []
    try:
        spec = PgServerSpec.model_validate(seen.server.get("spec") or {})
    except ValidationError as error:
        notes.append(f"The PgServer's spec.{base.explain(error)}")
    ledger = read_ledger(status)
    admin = spec is not None and spec.admin_secret_ref is not None
    discovery = read_discovery(status) if admin or spec is None else None
    declared = spec.max_connections if spec else None
    budget = budgets.compute(declared, discovery, spec.headroom, admin) if spec else None
    stalled = _condition(seen.server, STALLED)
    shared = str(stalled.get("message")) if stalled.get("reason") == Reason.SHARED_SERVER else ""
    unaccounted = int(status.get("unaccounted", 0))
    found, unread = _wishes(seen, ledger)
    ours = role_limits.read(status)
    notes += _limits_note(discovery, ours)
    if unread:
        notes.append(f"Not readable: {', '.join(unread)}. What is said of them is what the PgServer's status knows.")
    notes += [
        f'The pods of namespace "{each}" are not readable: those in the ledger are taken for running.'
        for each in sorted(seen.blind)
    ]
    total = budget.total if budget else None
    world = World(
        server=str(seen.server["metadata"]["uid"]),
        budget=0 if shared else total,
        ledger=ledger,
        pods=(*(pod_of(body, None, None) for body in seen.pods), *_stand_ins(seen, ledger)),
        wishes=with_caps(found, seen.pools, discovery, ours, total),
        now=now,
        ghost_grace=ghost_grace(seen.pools),
        foreign=_foreign(seen, ledger, total, unaccounted) + unaccounted,
    )
    return Facts(
        server=_title(seen.server),
        budget=budget,
        declared=declared,
        discovery=discovery,
        headroom=str(spec.headroom) if spec else "",
        world=world,
        unaccounted=unaccounted,
        shared=shared,
        notes=tuple(notes),
    )


def _title(body: Body) -> str:
    return f"{body['metadata']['namespace']}/{body['metadata']['name']}"


def _condition(body: Body, kind: str) -> Mapping[str, Any]:
    """The condition `kind` of an object if it is true; empty if not."""
    for condition in (body.get("status") or {}).get("conditions") or ():
        if condition.get("type") == kind and condition.get("status") == "True":
            found: Mapping[str, Any] = condition
            return found
    return {}


def _wishes(seen: Seen, ledger: Ledger) -> tuple[list[PoolWish], list[str]]:
    """What the pools ask for, and which pools could not be read."""
    bodies = {body["metadata"]["uid"]: body for body in seen.pools}
    found: list[PoolWish] = []
    unread = []
    age = 0.0
    for line in (seen.server.get("status") or {}).get("pools") or ():
        body = bodies.get(line.get("uid"))
        title = f"{line['namespace']}/{line['name']}"
        databases = {entry.database for entry in ledger.of_pool(title)}
        wish = wishes(body, None) if body is not None else None
        if wish is None or body is None:
            # As much as the server's status says: its share, and the databases that it has connections to.
            unread.append(f"PgPool {title}")
            share = int(line.get("budget", 0))
            wish = PoolWish(
                title, str(line.get("uid", "")), age + AGE_STEP, dict.fromkeys(databases, 1), "", 0, 1, share, share
            )
        elif databases and (stalled := _condition(body, STALLED)):
            # While a fault keeps a new configuration back, the last good one is what gets connections.
            wish = replace(wish, databases={name: wish.databases.get(name, 1) for name in sorted(databases)})
            if stalled.get("reason") == Reason.NAMESPACE_NOT_ALLOWED:
                wish = frozen(wish, int(line.get("budget", 0)), databases)
        age = wish.created
        found.append(wish)
    return found, unread


def _limits_note(discovery: Discovery | None, ours: Collection[str]) -> list[str]:
    """That limits of roles are not counted here: which database logs in as whom stands in Secrets."""
    limits = {} if discovery is None else {k: v for k, v in discovery.role_limits.items() if k not in ours}
    if not limits:
        return []
    named = ", ".join(f"{role} {limit}" for role, limit in sorted(limits.items()))
    return [f"PostgreSQL also limits roles ({named}), which bounds the databases that log in as them; not shown here."]


def _foreign(seen: Seen, ledger: Ledger, total: int | None, unaccounted: int) -> int:
    """Connections still promised by younger PgServers that are the same server: theirs to say, or what is missing from
    `free` of the status."""
    if seen.servers is not None:
        youngers = identity.rivals(seen.server, seen.servers).youngers
        return sum(read_ledger(younger.get("status") or {}).bound for younger in youngers)
    free = int((seen.server.get("status") or {}).get("free", 0))
    return max(0, (total or 0) - ledger.bound - unaccounted - free) if free else 0


def _stand_ins(seen: Seen, ledger: Ledger) -> Iterable[Pod]:
    """Pods that the ledger knows, of namespaces where pods cannot be read."""
    shown = {body["metadata"]["uid"] for body in seen.pods}
    done: set[str] = set()
    for entry in ledger.entries:
        namespace = entry.pool.partition("/")[0]
        if namespace not in seen.blind or entry.pod in shown | done or entry.gone_since is not None:
            continue
        done.add(entry.pod)
        server = str(seen.server["metadata"]["uid"])
        yield Pod(
            uid=entry.pod,
            name=entry.pod_name,
            namespace=namespace,
            created=0.0,
            terminating=False,
            scheduled=True,
            ended=False,
            ready=True,
            ip="",
            server=server,
            raw_directive=UNREAD,
            pool=entry.pool,
        )
