"""What is written into a PgPool's status, which events it is worth, and when to look again. Pure.

Live numbers move at most every 15 s and by at least 10 %, so that a busy pool does not write all the time; exact ones
are metrics. Conditions are made in plan/fleet.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from poolfleet.api import names
from poolfleet.api.conditions import READY, Reason
from poolfleet.plan import certificates, conditions, logins, replicas, rollout
from poolfleet.plan.fleet import Fleet, Refusal
from poolfleet.plan.fleet import conditions as fleet_conditions
from poolfleet.plan.model import Event, RotationLine
from poolfleet.plan.objects import network
from poolfleet.plan.objects.meta import selector_text
from poolfleet.plan.pool import Plan
from poolfleet.plan.poolview import PoolView
from poolfleet.plan.times import timestamp

JsonObject = dict[str, Any]

NUMBERS_SECONDS: Final = 15.0  # live numbers move at most this often …
NUMBERS_CHANGE: Final = 0.1  # … and by at least this part
ROTATION_MESSAGE_LENGTH: Final = 2048  # the schema's limit
FORBIDDEN_RETRY_SECONDS: Final = 30.0  # a quota or an admission policy may change without a word to us

# Reasons that pass by themselves.
_ON_THE_WAY: Final = frozenset(
    {
        Reason.PROGRESSING,
        Reason.WAITING_FOR_PODS,
        Reason.WAITING_FOR_GRANTS,
        Reason.WAITING_FOR_SERVER,
        Reason.LOADING,
        Reason.BUDGET_UNKNOWN,
    }
)


@dataclass(frozen=True, slots=True)
class Conclusion:
    """The end of a reconciliation."""

    status: JsonObject
    events: tuple[Event, ...]
    again: float | None  # seconds until the next look, None if events are enough
    numbers_moved: float  # for the next PoolView
    ready_since: float | None  # likewise


def conclude(view: PoolView, plan: Plan, refusals: Sequence[Refusal] = ()) -> Conclusion:
    """The status of `view` after `plan` was carried out, all but `refusals`."""
    fleet = Fleet(view, plan, refusals)
    old = view.status.get("conditions") or ()
    new = conditions.merge(old, fleet_conditions(fleet), view.generation, view.now)
    lines = _lines(view, plan)
    live = live_numbers(view) | _retiring_now(lines)
    shown = _shown(view.status) | _retiring_shown(view.status, lines)
    moved, again = view.numbers_moved, None
    if _worth_showing(shown, live):
        wait = view.numbers_moved + NUMBERS_SECONDS - view.now
        if wait <= 0:
            shown, moved = live, view.now
        else:
            again = wait
    if fleet.unannounced:
        again = min(again or fleet.unannounced, fleet.unannounced)
    if plan.surge.again is not None:
        again = min(again or plan.surge.again, plan.surge.again)
    if (left := certificates.next_change(view.config_files, view.now)) is not None:
        again = min(again or left, left)
    if any(not refusal.invalid for refusal in refusals):
        again = min(again or FORBIDDEN_RETRY_SECONDS, FORBIDDEN_RETRY_SECONDS)
    status: JsonObject = {
        "observedGeneration": view.generation,
        "replicas": len(fleet.pods),
        "desiredReplicas": view.replicas if view.spec is not None else replicas.desired(view.body),
        "readyReplicas": fleet.ready,
        "selector": selector_text(view.owner),
        "clients": {name: shown[name] for name in ("active", "waiting", "podMin", "podMax")},
        "connections": {**granted(view), "inUse": shown["inUse"]},
        "conditions": new,
    }
    sizes = pool_sizes(view)
    if sizes:
        status["poolSize"] = sizes
    if view.spec is not None:
        status["endpoint"] = {"host": network.host(view.owner), "port": view.spec.service.port}
    if plan.config:
        status["binding"] = {"name": names.binding_secret(view.owner.name)}
    if plan.rolled is not None:
        status["agent"] = {
            "image": plan.rolled.agent_image,
            "outdated": rollout.outdated(plan.rolled, view.settings),
        }
    if lines:
        status["rotations"] = [_rotation(line, shown.get(_number(line))) for line in lines]
    scaled = _scaled(view)
    if autoscaling := _autoscaling(view, scaled is not None):
        status["autoscaling"] = autoscaling
    events = (*([scaled] if scaled is not None else []), *_news(old, new), *_turned(view, lines), *_cuts(view))
    return Conclusion(status, events, again, moved, fleet.ready_since)


def _lines(view: PoolView, plan: Plan) -> list[RotationLine]:
    """One line for each Secret that rotates, sorted; of one that is a role's as well as a client's it is the role's."""
    lines = {line.secret: line for line in (*plan.logins, *view.rotations)}
    return [lines[secret] for secret in sorted(lines)]


def _rotation(line: RotationLine, clients: int | None) -> JsonObject:
    """One item of status.rotations. `clients`: of the login that retires; None: not known."""
    message = line.message[:ROTATION_MESSAGE_LENGTH]
    shown: JsonObject = {"secret": line.secret, "login": line.login, "phase": line.phase, "message": message}
    if line.last is not None:
        shown["lastRotationTime"] = timestamp(line.last)
    if line.next is not None:
        shown["nextRotationTime"] = timestamp(line.next)
    if line.retiring:
        shown["retiring"] = {"username": line.retiring, "until": timestamp(line.until or 0.0)}
        if clients is not None:
            shown["retiring"]["clients"] = clients
    return shown


def _number(line: RotationLine) -> str:
    """The name of the live number of clients of a login that retires."""
    return f"retiring {line.secret} {line.retiring}"


def _retiring_now(lines: Sequence[RotationLine]) -> dict[str, int]:
    return {_number(line): line.clients for line in lines if line.retiring and line.clients is not None}


def _retiring_shown(status: Mapping[str, Any], lines: Sequence[RotationLine]) -> dict[str, int]:
    """What the status says of the same logins; of one that it does not know yet, what is."""
    told = {}
    for item in status.get("rotations") or ():
        retiring = item.get("retiring") or {}
        if "clients" in retiring:
            told[f"retiring {item['secret']} {retiring['username']}"] = int(retiring["clients"])
    return {name: told.get(name, clients) for name, clients in _retiring_now(lines).items()}


def _turned(view: PoolView, lines: Sequence[RotationLine]) -> Iterator[Event]:
    """What has happened to rotating logins since the status was written."""
    before = {item["secret"]: item for item in view.status.get("rotations") or ()}
    for line in lines:
        item = before.get(line.secret)
        if item is None:
            continue  # seen for the first time: nobody knows what was news
        if line.last is not None and item.get("lastRotationTime") != timestamp(line.last):
            words = f'Secret "{line.secret}" holds a new login, "{line.login}".'
            if line.login == item.get("login"):
                words = f'Secret "{line.secret}" holds a new password of "{line.login}".'
            if line.retiring:
                words += f' "{line.retiring}" is refused from {timestamp(line.until or 0.0)[:19]}Z on.'
            yield Event("Normal", Reason.ROTATED, words, action="Rotate", each=True)
        former = (item.get("retiring") or {}).get("username")
        if former and former != line.retiring:
            clients = logins.clients_of(view.pods, former)
            still = "" if not clients else f" {clients} clients are still connected with it, until they leave."
            words = f'"{former}", the former login of Secret "{line.secret}", is refused from now on.{still}'
            yield Event("Normal", Reason.LOGIN_RETIRED, words, action="Rotate", each=True)


def _scaled(view: PoolView) -> Event | None:
    """The event of another number of pods that autoscaling has decided on; None if it is the same as before."""
    before, decision = view.status.get("desiredReplicas"), view.decision
    if view.spec is None or view.spec.autoscaling is None or decision is None or not isinstance(before, int):
        return None
    if before == view.replicas:
        return None
    reason = Reason.SCALED_UP if view.replicas > before else Reason.SCALED_DOWN
    words = f"{before} -> {view.replicas} replicas: {decision.message.removesuffix(f'; was {before}')}"
    return Event("Normal", reason, words, action="Scale", each=True)


def _autoscaling(view: PoolView, scaled: bool) -> JsonObject:
    """status.autoscaling; empty without spec.autoscaling, and before the first decision."""
    old: JsonObject = dict(view.status.get("autoscaling") or {})
    if view.spec is not None and view.spec.autoscaling is None:
        return {}
    if view.decision is None:
        return old
    since = timestamp(view.now) if scaled else old.get("lastScaleTime")
    told: JsonObject = {"reason": view.decision.reason, "message": view.decision.message}
    return told | ({"lastScaleTime": since} if since else {})


def _cuts(view: PoolView) -> Iterator[Event]:
    """An event for each pod whose drain was over before its clients had left."""
    timeout = view.spec.drain.timeout_seconds if view.spec is not None else 0
    for cut in view.cuts:
        who = "1 client was" if cut.clients == 1 else f"{cut.clients} clients were"
        when = f"when spec.drain.timeoutSeconds ({timeout} s) was over"
        words = f"Pod {cut.pod}: {who} still connected {when}, and cut off."
        yield Event("Warning", Reason.CLIENTS_CUT, words, action="Drain", each=True)


def _news(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> Iterator[Event]:
    """The transitions that somebody wants to hear of: not what is merely on its way, but a fleet that was ready."""
    was_ready = any(c.get("type") == READY and c.get("status") == "True" for c in old)
    lost = {c["reason"] for c in new if was_ready and c["type"] == READY and c["status"] == "False"}
    for event in conditions.transitions(old, new):
        if event.reason not in _ON_THE_WAY or event.reason in lost:
            yield event


def live_numbers(view: PoolView) -> dict[str, int]:
    """Clients and server connections that the agents saw last, draining pods included; the fewest and the most clients
    of a pod that takes clients."""
    databases = [d for pod in view.pods if pod.state and not pod.ended for d in pod.state.databases.values()]
    spread = [count for pod in replicas.serving(view.pods) if (count := replicas.clients_of(pod)) is not None]
    return {
        "active": sum(d.clients - d.waiting for d in databases),
        "waiting": sum(d.waiting for d in databases),
        "inUse": sum(d.held for d in databases),
        "podMin": min(spread, default=0),
        "podMax": max(spread, default=0),
    }


def granted(view: PoolView) -> dict[str, int]:
    """The pool's budget, its share of the server's, and granted connections (Σ bounds), from the PgServer's status; the
    budget only once it is known."""
    result = {"granted": sum(int(entry.get("bound", 0)) for entry in _entries(view))}
    budget = view.server_line.get("budget")
    if isinstance(budget, int):
        result["budget"] = max(0, budget)
    return result


def pool_sizes(view: PoolView) -> dict[str, dict[str, int]]:
    """pool_size by database over the pods, from the ledger."""
    sizes: dict[str, list[int]] = {}
    for entry in _entries(view):
        if entry.get("grant") and not entry.get("goneSince"):
            sizes.setdefault(entry["database"], []).append(int(entry["grant"]))
    return {name: {"min": min(n), "max": max(n), "total": sum(n)} for name, n in sorted(sizes.items())}


def _entries(view: PoolView) -> list[Mapping[str, Any]]:
    ledger = view.server_status.get("ledger") or {}
    return [entry for entry in ledger.get("entries") or () if entry.get("pool") == view.key]


def _shown(status: Mapping[str, Any]) -> dict[str, int]:
    clients, connections = status.get("clients") or {}, status.get("connections") or {}
    return {
        "active": int(clients.get("active", 0)),
        "waiting": int(clients.get("waiting", 0)),
        "podMin": int(clients.get("podMin", 0)),
        "podMax": int(clients.get("podMax", 0)),
        "inUse": int(connections.get("inUse", 0)),
    }


def _worth_showing(shown: Mapping[str, int], live: Mapping[str, int]) -> bool:
    return any(
        live[name] != shown[name] and abs(live[name] - shown[name]) >= NUMBERS_CHANGE * shown[name] for name in live
    )
