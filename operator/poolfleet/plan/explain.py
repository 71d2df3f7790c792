"""Why every number is what it is: from max_connections down to each pod's pool_size, in words. Pure.

Nothing is computed a second way: the budget is plan/budget.py's, the division plan/shares.py's, what is free
plan/world.py's. `explain` only says what they say, and why something is smaller than one would wish. What agents see
(demand) is in no API object; where connections follow demand the last directive of a pod says what the operator wants.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from poolfleet.plan.explanation import Explanation, FleetLine, Line, PodLine, PoolLine
from poolfleet.plan.facts import UNREAD, Facts
from poolfleet.plan.model import Pod
from poolfleet.plan.pool import wishes
from poolfleet.plan.seen import pod_of
from poolfleet.plan.shares import Division, divide_budget
from poolfleet.plan.sizing import PoolWish
from poolfleet.plan.tenancy import server_name
from poolfleet.plan.world import Entry, Ledger, World


def explain(
    facts: Facts,
    pools: Collection[str] | None = None,
    notes: Iterable[str] = (),
    fleets: Iterable[FleetLine] = (),
) -> Explanation:
    """Explain `facts`; the pods only of `pools` ("<namespace>/<name>"), None: of all. `notes` come first in notes."""
    world = facts.world
    # By right: without what the agents see everybody needs its share.
    right = replace(world, pods=tuple(replace(pod, state=None) for pod in world.pods))
    division = divide_budget(right, world.ledger)
    asking = sorted(world.wishes, key=lambda wish: (wish.created, wish.uid))
    gone = sorted({entry.pool for entry in world.ledger.entries} - {wish.pool for wish in asking})
    chosen = [*(wish.pool for wish in asking), *gone] if pools is None else sorted(pools)
    return Explanation(
        server=facts.server,
        budget=tuple(_budget(facts)),
        shared=tuple(_shared(facts)) if facts.budget is not None else (),
        free=tuple(_free(facts)) if facts.budget is not None else (),
        pools=tuple(_pool(facts, wish, division) for wish in asking),
        pods=tuple(line for pool in chosen for line in _pods(facts, pool, division)),
        notes=(*notes, *_notes(facts)),
        fleets=tuple(fleets),
    )


def from_pool(pool: Mapping[str, Any], pods: Iterable[Mapping[str, Any]], notes: Iterable[str]) -> Explanation:
    """What the body of a PgPool and its pods' say by themselves, for those who may not read its PgServer."""
    wish = wishes(pool, None)
    connections = (pool.get("status") or {}).get("connections") or {}
    lines = []
    if wish is not None:
        lines.append(
            PoolLine(
                pool=wish.pool,
                weight=wish.weight,
                min=wish.least or None,
                max=wish.most,
                replicas=wish.replicas,
                databases=tuple(sorted(wish.databases)),
                needs=wish.floor,
                sure=None,
                share=connections.get("budget"),
                reserve=wish.reserve,
                now=connections.get("granted"),
                why="",
            )
        )
    shown = [pod_of(body, None, None) for body in pods]
    return Explanation(
        server="/".join(server_name(pool)),
        budget=(),
        shared=(),
        free=(),
        pools=tuple(lines),
        pods=tuple(line for pod in sorted(shown, key=lambda p: (p.created, p.name)) for line in _as_told(pod)),
        notes=tuple(notes),
        fleets=(FleetLine.of(pool),),
    )


def _as_told(pod: Pod) -> Iterator[PodLine]:
    """What a pod's directive says, where the ledger cannot be read."""
    directive = told(pod)
    grant, share = directive.get("grant"), directive.get("share")
    for database, count in sorted(grant.items()) if isinstance(grant, dict) else ():
        target = share.get(database) if isinstance(share, dict) else None
        why = "draining: cut to what its clients use" if pod.terminating else ""
        yield PodLine(pod.pool, pod.name, database, None, target, count, None, why)


# The server


def _budget(facts: Facts) -> Iterator[Line]:
    budget = facts.budget
    if budget is None:
        return
    limits, read = budget.limits, facts.discovery is not None
    yield Line("", limits.max_connections, "max_connections", _source(facts))
    default = "read from the server" if read else "PostgreSQL's default; it was not read"
    yield Line("-", limits.superuser_reserved, "superuser_reserved_connections", default)
    yield Line("-", limits.reserved, "reserved_connections", default)
    yield Line("-", budget.headroom, "headroom", f"spec.headroom {facts.headroom}: for whoever comes without a PgPool")
    if budget.own:
        yield Line("-", budget.own, "own", "the operator's own connections, with adminSecretRef")
    below = limits.usable - budget.headroom - budget.own
    note = "what all pods of all pools together may hold" if below >= 0 else f"nothing is left ({below})"
    yield Line("=", budget.total, "budget", note)


def _source(facts: Facts) -> str:
    """Which max_connections counts, and why."""
    discovery = facts.discovery
    if discovery is None:
        return "as declared; it was not read"
    read, waits = discovery.limits.max_connections, ""
    if discovery.candidate is not None:
        waits = f"; a larger reading of {discovery.candidate.limits.max_connections} waits to be confirmed"
    if facts.declared is None:
        return f"read from the server{waits}"
    if facts.declared <= read:
        return f"declared in spec.maxConnections; the server itself says {read}{waits}"
    return f"read from the server; the declared {facts.declared} is larger, the smaller counts{waits}"


def _shared(facts: Facts) -> Iterator[Line]:
    """From the budget to what the pools share."""
    world, ledger = facts.world, facts.world.ledger
    total = facts.budget.total if facts.budget else 0
    yield Line("", total, "budget")
    yield from _elsewhere(facts)
    asking = {wish.pool for wish in world.wishes}
    strangers = [entry for entry in ledger.entries if entry.pool not in asking]
    if strangers:
        named = _by_pod(strangers)
        yield Line("-", sum(e.bound for e in strangers), "leftovers", f"pods of pools that ask no more: {named}")
    yield Line("=", max(0, world.for_pools(ledger)), "to share", "between the pools, by weight, min and max")


def _elsewhere(facts: Facts) -> Iterator[Line]:
    """What holds connections of the budget without being in this ledger."""
    total = facts.budget.total if facts.budget else 0
    if facts.shared:
        yield Line("-", total, "of another PgServer", facts.shared)
    if foreign := facts.world.foreign - facts.unaccounted:
        yield Line("-", foreign, "still promised", "by a younger PgServer that is the same server")
    if facts.unaccounted:
        yield Line("-", facts.unaccounted, "unaccounted", "sessions of the pools' roles that no pod accounts for")


def _free(facts: Facts) -> Iterator[Line]:
    """From the budget to what may be handed out now."""
    world, ledger = facts.world, facts.world.ledger
    yield Line("", facts.budget.total if facts.budget else 0, "budget")
    yield from _elsewhere(facts)
    yield Line("-", ledger.bound, "granted", "what the pods may hold at this moment")
    if ledger.ghosts:
        ghosts = sum(entry.bound for entry in ledger.ghosts)
        yield Line("of which", ghosts, "ghosts", f"vanished without proof of their end: {_by_pod(ledger.ghosts)}")
    if resting := world.resting(ledger.resting):
        yield Line("-", resting, "resting", "given back a moment ago; PostgreSQL ends their backends")
    free = world.free(ledger)
    note = "may be handed out now" if free >= 0 else "above the budget: nobody gets anything, pods are being shrunk"
    yield Line("=", free, "free", note)
    reserve = sum(wish.reserve for wish in world.wishes)
    yield Line("of which", max(0, min(free, reserve)), "reserve", "for the first connections of pods to come")


def _by_pod(entries: Collection[Entry]) -> str:
    sums: dict[str, int] = {}
    for entry in entries:
        sums[entry.pod_name] = sums.get(entry.pod_name, 0) + entry.bound
    return ", ".join(f"{pod} {bound}" for pod, bound in sorted(sums.items()))


def _notes(facts: Facts) -> Iterator[str]:
    ledger = facts.world.ledger
    if facts.budget is None:
        yield "max_connections is not known yet, so there is no budget: nothing is handed out, what is out stays."
    if ledger.rebuilt is not None:
        yield "The ledger was rebuilt from what the pods know; nothing is raised until each has proved what it holds."
    yield from facts.notes


# The pools


def _pool(facts: Facts, wish: PoolWish, division: Division) -> PoolLine:
    ledger = facts.world.ledger
    share = division.shares.get(wish.pool, 0)
    return PoolLine(
        pool=wish.pool,
        weight=wish.weight,
        min=wish.least or None,
        max=wish.most,
        replicas=wish.replicas,
        databases=tuple(sorted(wish.databases)),
        needs=wish.floor,
        sure=division.sure.get(wish.pool, 0),
        share=share,
        reserve=wish.reserve if share else 0,
        now=sum(entry.bound for entry in ledger.of_pool(wish.pool)),
        why="; ".join(_pool_reasons(facts, wish, division)),
    )


def _pool_reasons(facts: Facts, wish: PoolWish, division: Division) -> Iterator[str]:
    world, ledger = facts.world, facts.world.ledger
    if facts.budget is None:
        return
    mine = ledger.of_pool(wish.pool)
    sure, share = division.sure.get(wish.pool, 0), division.shares.get(wish.pool, 0)
    if sure < wish.floor:
        yield _too_small(facts, wish, division)
    if not sure:
        return
    if wish.most is not None and share >= wish.most:
        yield "held at share.max"
    elif share == sure and len(division.shares) > 1 and not wish.least:
        yield "at the least that it needs"
    elif share == wish.least:
        yield "at share.min"
    for name, cap in sorted(wish.caps.items()):
        yield f'PostgreSQL allows database "{name}" {cap} here (datconnlimit or rolconnlimit)'
    now = sum(entry.bound for entry in mine)
    leaving = {pod.uid for pod in world.pods if pod.pool == wish.pool and pod.terminating}
    if ending := sum(entry.bound for entry in mine if entry.pod in leaving):
        yield f"{ending} with pods that end"
    if ghosts := sum(entry.bound for entry in mine if entry.gone_since is not None):
        yield f"{ghosts} with pods that vanished"
    if now > share:
        lenders = [p for p, n in division.shares.items() if sum(e.bound for e in ledger.of_pool(p)) < n]
        yield f"{now - share} borrowed" + (
            f" from {', '.join(sorted(lenders))}" if lenders else " or not given back yet"
        )
    elif now < share - wish.reserve:
        over = [p for p, n in division.shares.items() if sum(e.bound for e in ledger.of_pool(p)) > n]
        if over:
            yield f"{share - wish.reserve - now} lent to {', '.join(sorted(over))}"
        elif not world.members(wish.pool):
            yield "no pods that could use it"
        else:
            yield f"{share - wish.reserve - now} on their way to its pods, or not needed by its clients"


def _too_small(facts: Facts, wish: PoolWish, division: Division) -> str:
    """The sums of BudgetTooSmall."""
    world = facts.world
    older = sorted(world.wishes, key=lambda w: (w.created, w.uid))
    older = older[: [w.pool for w in older].index(wish.pool)]
    taken = sum(division.sure.get(w.pool, 0) for w in older)
    least = (wish.replicas + 1) * len(wish.databases)
    sums = f"({wish.replicas} replicas + 1) x {len(wish.databases)} databases = {least}"
    needs = f"share.min = {wish.least}" if wish.least > least else sums
    total = max(0, world.for_pools(world.ledger))
    sure_of = f" - {taken} that older pools are sure of" if older else ""
    words = f"BudgetTooSmall: needs {needs}, there is {total}{sure_of}"
    words += f" = {total - taken}" if older else ""
    if sure := division.sure.get(wish.pool, 0):
        return f"{words}; the pods that it has keep {sure}"
    return f"{words}; it gets nothing new"


# The pods


def told(pod: Pod) -> Mapping[str, Any]:
    """The directive that a pod carries, believed or not: whoever asks here may not have the key of its MAC."""
    if pod.directive or not pod.raw_directive:
        return pod.directive
    try:
        message = json.loads(pod.raw_directive)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def _pods(facts: Facts, pool: str, division: Division) -> Iterator[PodLine]:
    """The lines of one pool's pods, oldest first; then those that the API server does not show any more."""
    world, ledger = facts.world, facts.world.ledger
    wish = world.wish_of(pool)
    shown = [pod for pod in world.pods if pod.pool == pool and not pod.ended]
    for pod in sorted(shown, key=lambda pod: (pod.created, pod.name)):
        entries = {entry.database: entry for entry in ledger.of_pod(pod.uid)}
        wanted = {} if wish is None or pod.terminating else dict.fromkeys(wish.databases)
        for database in sorted({**entries, **wanted}):
            yield _pod(facts, pod, database, entries.get(database), division)
    gone = {pod.uid for pod in world.pods}
    for entry in ledger.of_pool(pool):
        if entry.pod not in gone:
            yield PodLine(
                pool, entry.pod_name, entry.database, None, None, entry.grant, entry.bound, _ghost(facts, entry)
            )


def _pod(facts: Facts, pod: Pod, database: str, entry: Entry | None, division: Division) -> PodLine:
    directive = told(pod)
    current = entry is not None and (pod.raw_directive == UNREAD or directive.get("rev") == entry.revision)
    share = directive.get("share")
    target = share.get(database) if current and isinstance(share, dict) else None
    fair = division.fair.get((pod.uid, database))
    line = PodLine(
        pod.pool,
        pod.name,
        database,
        fair,
        target if isinstance(target, int) else None,
        entry.grant if entry else 0,
        entry.bound if entry else 0,
        "",
    )
    reasons = _without(facts, pod, division) if entry is None else _with(facts, pod, entry, line, current)
    return replace(line, why="; ".join(reasons))


def _ghost(facts: Facts, entry: Entry) -> str:
    if entry.gone_since is None:
        return "not shown by the API server"
    since = facts.world.now - entry.gone_since
    left = max(0.0, facts.world.ghost_grace - since)
    proof = "until PostgreSQL shows no session of it, or " if facts.budget is not None and facts.budget.own else ""
    return f"vanished {since:.0f} s ago without proof of its end; kept {proof}for {left:.0f} s more"


def _without(facts: Facts, pod: Pod, division: Division) -> Iterator[str]:
    """Why a pod has nothing."""
    world = facts.world
    if pod.server != world.server:
        yield "of another PgServer than today's; it will be replaced"
    elif not pod.scheduled:
        yield "waits for a node"
    elif facts.budget is None:
        yield "the budget is not known yet"
    elif world.ledger.rebuilt is not None:
        yield "the ledger was rebuilt: nothing is handed out until every pod has proved what it holds"
    elif not division.sure.get(pod.pool):
        yield "there is no room for its pool (BudgetTooSmall)"
    else:
        yield f"waits for a free connection ({max(0, world.free(world.ledger))} free)"


def _with(facts: Facts, pod: Pod, entry: Entry, line: PodLine, current: bool) -> Iterator[str]:
    """Why a pod has what it has, if that is not its fair share."""
    world, ledger = facts.world, facts.world.ledger
    wish = world.wish_of(pod.pool)
    if pod.terminating:
        yield "draining: cut to what its clients use"
    elif wish is None:
        yield "its pool asks for nothing any more"
    elif pod.server != world.server:
        yield "of another PgServer than today's; it will be replaced"
    elif entry.database not in wish.databases:
        yield "no longer served; being taken away"
    if entry.grant < entry.bound:
        ago = world.now - entry.since
        yield f"told {ago:.0f} s ago to shrink from {entry.bound} to {entry.grant}, not proved yet"
    elif not current:
        yield "not told yet"
    if line.fair is None or entry.grant == line.fair or pod.terminating:
        return
    if entry.grant > line.fair:
        yield f"{entry.grant - line.fair} borrowed: its clients wait, others need less"
    elif ledger.rebuilt is not None:
        yield "the ledger was rebuilt: nothing is raised until every pod has proved what it holds"
    elif not pod.ready and entry.grant == 1:
        yield "starts with one; its share comes when its agent has answered (pod not Ready)"
    elif line.target is not None and line.target <= entry.grant:
        yield f"{line.fair - entry.grant} lent: its clients need no more"
    elif _on_the_way(ledger) or world.resting(ledger.resting):
        yield "waits until others have proved that they gave back"
    else:
        yield f"waits for free connections ({max(0, world.free(ledger) - _reserve(world))} beyond the reserve)"


def _on_the_way(ledger: Ledger) -> int:
    """Connections that pods were told to give back and have not proved yet."""
    return sum(entry.bound - entry.grant for entry in ledger.entries)


def _reserve(world: World) -> int:
    return sum(wish.reserve for wish in world.wishes)
