"""What is written into a PgServer's status: the numbers, the ledger and the conditions. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from poolfleet.api.conditions import BUDGET_SATISFIED, READY, RECONCILING, SERVER_REACHABLE, STALLED, Reason
from poolfleet.plan import ledger as ledgers
from poolfleet.plan.budget import Budget
from poolfleet.plan.conditions import refused_login
from poolfleet.plan.discovery import Discovery
from poolfleet.plan.model import Condition, Pod
from poolfleet.plan.shares import Division
from poolfleet.plan.times import seconds, timestamp
from poolfleet.plan.world import Entry, Ledger, Rest, World

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """What keeps a PgServer from being used, in words that say what to change."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class ServerView:
    """All that the status of a PgServer depends on."""

    generation: int
    declared: int | None  # spec.maxConnections
    has_admin: bool
    problem: Problem | None  # spec or admin Secret cannot be used
    discovery: Discovery | None
    discovery_problem: Problem | None  # why the newest reading failed
    budget: Budget | None
    world: World
    pools: Sequence[tuple[str, str, str]]  # (namespace, name, uid), oldest first
    others: int | None = None  # sessions of everybody else, as shown
    blind: str = ""  # why sessions that nobody accounts for cannot be seen, although there is an admin Secret
    managed: frozenset[str] | None = None  # roles whose CONNECTION LIMIT is to be kept; None: roleLimits is Off
    role_limits: str = ""  # why a role's CONNECTION LIMIT is not what it should be


def read_ledger(status: Mapping[str, Any]) -> Ledger:
    """The ledger in `status`; an empty one if there is none."""
    data = status.get("ledger") or {}
    return Ledger(
        revision=int(data.get("revision", 0)),
        entries=tuple(
            Entry(
                pod=e["pod"],
                pod_name=e["podName"],
                pool=e["pool"],
                database=e["database"],
                bound=int(e["bound"]),
                grant=int(e["grant"]),
                revision=int(e["revision"]),
                since=seconds(e["since"]),
                gone_since=seconds(e["goneSince"]) if e.get("goneSince") else None,
                peer=int(e.get("peer", 0)),
            )
            for e in data.get("entries") or ()
        ),
        resting=tuple(Rest(int(r["connections"]), seconds(r["until"])) for r in data.get("resting") or ()),
        rebuilt=seconds(data["rebuiltAt"]) if data.get("rebuiltAt") else None,
    )


def write_ledger(ledger: Ledger) -> JsonObject:
    """The ledger as it stands in status; `read_ledger` is its inverse."""
    data: JsonObject = {
        "revision": ledger.revision,
        "entries": [
            {
                "pod": e.pod,
                "podName": e.pod_name,
                "pool": e.pool,
                "database": e.database,
                "bound": e.bound,
                "grant": e.grant,
                "revision": e.revision,
                "since": timestamp(e.since),
                **({"goneSince": timestamp(e.gone_since)} if e.gone_since is not None else {}),
                **({"peer": e.peer} if e.peer else {}),
            }
            for e in sorted(ledger.entries, key=lambda e: (e.pool, e.pod, e.database))
        ],
        "resting": [{"connections": r.connections, "until": timestamp(r.until)} for r in ledger.resting],
    }
    if ledger.rebuilt is not None:
        data["rebuiltAt"] = timestamp(ledger.rebuilt)
    return data


def held_by(pod: Pod) -> int:
    """Server connections of one pod as its agent saw them last."""
    if pod.state is None or pod.ended:
        return 0
    return sum(database.held for database in pod.state.databases.values())


def held(world: World, pool: str | None = None) -> int:
    """Server connections of all pods, or of those of one pool, as their agents saw them last."""
    return sum(held_by(pod) for pod in world.pods if pool in (None, pod.pool))


def numbers(view: ServerView, ledger: Ledger) -> JsonObject:
    """The numbers of the status, in connections. `granted` is Σ bounds: what may be held at this moment."""
    world = view.world
    result = {"granted": ledger.bound, "ghosts": sum(entry.bound for entry in ledger.ghosts)}
    if world.sessions is not None:
        result["unaccounted"] = world.unaccounted(ledger)
    if view.others is not None:
        result["others"] = view.others
    if view.budget is None:
        return result
    limits = view.budget.limits
    return result | {
        "maxConnections": limits.max_connections,
        "superuserReserved": limits.superuser_reserved,
        "reserved": limits.reserved,
        "headroom": view.budget.headroom,
        "budget": world.budget or 0,  # none, if it is another PgServer's
        "reserve": sum(wish.reserve for wish in world.wishes),
        "free": max(0, (world.budget or 0) - ledger.bound - world.foreign - world.unaccounted(ledger)),
    }


def pool_lines(view: ServerView, ledger: Ledger, division: Division) -> list[JsonObject]:
    """One line per pool for the status, oldest pool first: its share of the budget and what it may hold of it."""
    lines = []
    for namespace, name, uid in view.pools:
        pool = f"{namespace}/{name}"
        wish = view.world.wish_of(pool)
        sure = division.sure.get(pool, 0)
        lines.append(
            {
                "namespace": namespace,
                "name": name,
                "uid": uid,
                "admitted": wish is not None and 0 < wish.floor <= sure,
                "budget": division.shares.get(pool, 0),
                "granted": sum(entry.bound for entry in ledger.of_pool(pool)),
            }
        )
    return lines


def conditions(view: ServerView, ledger: Ledger) -> list[Condition]:
    """The conditions of a PgServer, by kstatus."""
    reachable = _reachable(view)
    satisfied = _satisfied(view, ledger)
    if view.problem is not None:
        stalled = Condition(STALLED, "True", view.problem.reason, view.problem.message)
        ready = Condition(READY, "False", view.problem.reason, view.problem.message)
    else:
        stalled = Condition(STALLED, "False", Reason.AS_WISHED)
        if view.budget is None:
            ready = Condition(
                READY, "False", Reason.BUDGET_UNKNOWN, reachable.message or "The first reading is under way."
            )
        elif reachable.status == "False":
            ready = Condition(READY, "False", reachable.reason, reachable.message)
        else:
            ready = Condition(READY, "True", Reason.SERVING, str(view.budget))
    waiting = view.problem is None and (view.budget is None or satisfied.status == "False")
    reason = Reason.BUDGET_UNKNOWN if view.budget is None else Reason.SHRINKING
    reconciling = (
        Condition(RECONCILING, "True", reason) if waiting else Condition(RECONCILING, "False", Reason.AS_WISHED)
    )
    return [ready, reconciling, stalled, reachable, satisfied]


def _reachable(view: ServerView) -> Condition:
    """From the newest reading, else from what the agents see."""
    if view.discovery_problem is not None:
        return Condition(SERVER_REACHABLE, "False", view.discovery_problem.reason, view.discovery_problem.message)
    if view.has_admin and view.discovery is not None:
        return Condition(SERVER_REACHABLE, "True", Reason.REACHABLE, f"PostgreSQL {view.discovery.server_version}")
    seen = [
        (name, database)
        for pod in view.world.pods
        if pod.state is not None and not pod.ended
        for name, database in sorted(pod.state.databases.items())
    ]
    if any(database.reachable for _, database in seen):
        return Condition(SERVER_REACHABLE, "True", Reason.REACHABLE, "Seen by the pods")
    for name, database in seen:
        if database.reachable is False:
            reason = Reason.AUTHENTICATION_FAILED if refused_login(database.error) else Reason.UNREACHABLE
            return Condition(SERVER_REACHABLE, "False", reason, f'Database "{name}": {database.error}')
    return Condition(SERVER_REACHABLE, "Unknown", Reason.UNKNOWN, "No pod has asked for a connection yet")


def _satisfied(view: ServerView, ledger: Ledger) -> Condition:
    """Whether Σ bounds is within the budget, with the arithmetic."""
    if view.budget is None:
        return Condition(BUDGET_SATISFIED, "Unknown", Reason.BUDGET_UNKNOWN, "max_connections is not known yet")
    notes = []
    discovered = view.discovery.limits.max_connections if view.discovery else None
    if view.declared is not None and discovered is not None and view.declared > discovered:
        notes.append(f"maxConnections {view.declared} is above the server's own {discovered}: the smaller counts.")
    if ledger.rebuilt is not None:
        waits = ", ".join(ledgers.unproved(view.world, ledger))
        notes.append(
            "The ledger was rebuilt from the pods; nothing is raised for "
            f"{view.world.ghost_grace:.0f} s and until each has proved what it holds{f' ({waits})' if waits else ''}."
        )
    world = view.world
    if ledger.ghosts:
        names = ", ".join(sorted({entry.pod_name for entry in ledger.ghosts}))
        bound = sum(entry.bound for entry in ledger.ghosts)
        until = "until PostgreSQL shows no session of theirs, or " if world.sessions is not None else ""
        notes.append(
            f"{bound} connections stay reserved for pods that vanished ({names}), {until}for {world.ghost_grace:.0f} s."
        )
    if world.sessions is not None and (unaccounted := world.unaccounted(ledger)):
        roles = ", ".join(f"{n} of role {role}" for role, n in sorted(world.sessions.orphans.items()))
        notes.append(f"{unaccounted} sessions that no pod accounts for are not free ({roles}).")
    reason = Reason.WITHIN_BUDGET
    if view.others is not None and view.others > view.budget.headroom:
        reason = Reason.HEADROOM_EXCEEDED
        notes.append(
            f"Others have {view.others} sessions, which is more than the headroom of {view.budget.headroom}: "
            "raise headroom, or they take what the pools count on."
        )
    if view.blind:
        notes.append(view.blind)
    if view.role_limits:
        notes.append(view.role_limits)
    if world.foreign:
        notes.append(f"{world.foreign} connections are still promised by another PgServer that is the same server.")
    if ledger.bound > view.budget.total:
        words = f"{ledger.bound} granted, budget {view.budget}. Pods are being shrunk."
        return Condition(BUDGET_SATISFIED, "False", Reason.OVER_BUDGET, " ".join([words, *notes]))
    return Condition(BUDGET_SATISFIED, "True", reason, " ".join([str(view.budget), *notes]))


def wake(view: ServerView, ledger: Ledger) -> float | None:
    """When to look again if nothing happens, in seconds from now."""
    due = ledgers.wake_at(view.world, ledger)
    return None if due is None else max(0.05, due - view.world.now)
