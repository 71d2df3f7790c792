"""All that planning for a PgServer needs: pools and pods, what PostgreSQL says of limits and sessions, its rivals."""

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from pydantic import ValidationError

from poolfleet.api import names
from poolfleet.api.base import explain
from poolfleet.api.conditions import Reason
from poolfleet.api.pgserver import PgServerSpec
from poolfleet.controller.context import Context, Key
from poolfleet.controller.observe import pods_of, pools_of, wishes_of
from poolfleet.controller.store import Body
from poolfleet.kube.kinds import POD, SECRET
from poolfleet.plan import budget as budgets
from poolfleet.plan import certificates, identity, role_limits, server
from poolfleet.plan import discovery as discoveries
from poolfleet.plan.certificates import Certificate
from poolfleet.plan.conditions import too_many
from poolfleet.plan.discovery import Discovery
from poolfleet.plan.model import Pod, Sessions
from poolfleet.plan.objects.secret import decode
from poolfleet.plan.seen import ghost_grace, with_caps
from poolfleet.plan.server import Problem, ServerView
from poolfleet.plan.sizing import PoolWish
from poolfleet.plan.status import NUMBERS_CHANGE, NUMBERS_SECONDS
from poolfleet.plan.tenancy import full_host
from poolfleet.plan.world import Ledger, World
from poolfleet.postgres.connection import Login

LOOK_SECONDS: Final = 30.0  # between two looks at the sessions
LOOK_CLOSELY_SECONDS: Final = 5.0  # while there are ghosts, or sessions that nobody accounts for
STALE_LOOK_SECONDS: Final = 90.0  # what was seen that long ago says nothing any more


async def observe(context: Context, key: Key, body: Body) -> tuple[ServerView, float | None]:
    """What is known of the PgServer `body`, and in how many seconds something is to be read again."""
    status, uid = body.get("status") or {}, body["metadata"]["uid"]
    problem: Problem | None = None
    spec: PgServerSpec | None = None
    try:
        spec = PgServerSpec.model_validate(body.get("spec") or {})
    except ValidationError as error:
        problem = Problem(Reason.INVALID_SPEC, explain(error))
    rivals = identity.rivals(body, context.store.same_server(body))
    ledger = server.read_ledger(status)
    pools = pools_of(context.store, key.namespace, key.name)
    pods = _pods(context, pools, ledger)
    wishes = wishes_of(context.store, key.namespace, key.name)

    login: Login | Problem | None = None
    if spec is not None and spec.admin_secret_ref is not None:
        login = await _login(context, key.namespace, spec)
    if isinstance(login, Problem):
        problem = login
    elif rivals.elder is not None:
        problem = Problem(Reason.SHARED_SERVER, identity.refusal(rivals))
    discovery, discovery_problem, wait = discoveries.read_discovery(status), None, None
    sessions: Sessions | None = None
    if spec is None:
        pass  # what was known of the server still counts
    elif spec.admin_secret_ref is None:
        discovery = None
        context.discoveries.forget(uid)
    elif isinstance(login, Login):
        if any(too_many(database.error) for pod in pods if pod.state for database in pod.state.databases.values()):
            context.discoveries.at_once(uid)
        due = discoveries.next_reading(discovery, spec.discovery_interval_seconds)
        wait = context.discoveries.want(uid, login, due, lambda: context.queue.add(key)) - context.clock()
        discovery = _adopt(context, uid, status, wishes)
        discovery_problem = _failure(context, uid, spec)
        sessions, look = _sessions(context, key, uid, login, ledger, pods, wishes)
        wait = min(wait, look)
    budget = None
    if spec is not None:
        budget = budgets.compute(spec.max_connections, discovery, spec.headroom, spec.admin_secret_ref is not None)
    now = context.clock()
    world = World(
        server=uid,
        # What is another's has no budget here; its pods are brought down to the least.
        budget=0 if rivals.elder is not None else budget.total if budget else None,
        ledger=ledger,
        pods=pods,
        wishes=with_caps(wishes, pools, discovery, role_limits.read(status), budget.total if budget else None),
        now=now,
        leader_since=context.leader_since,
        ghost_grace=ghost_grace(pools),
        sessions=sessions if sessions is not None and now - sessions.at < STALE_LOOK_SECONDS else None,
        foreign=sum(server.read_ledger(younger.get("status") or {}).bound for younger in rivals.youngers),
        answering=context.agents.answering(_vanished(ledger, pods)),
        off=await _off(context, ledger, pods),
    )
    view = ServerView(
        generation=body["metadata"].get("generation", 0),
        declared=spec.max_connections if spec else None,
        has_admin=spec is not None and spec.admin_secret_ref is not None,
        problem=problem,
        discovery=discovery,
        discovery_problem=discovery_problem,
        budget=budget,
        world=world,
        pools=[(p["metadata"]["namespace"], p["metadata"]["name"], p["metadata"]["uid"]) for p in pools],
        managed=frozenset(spec.managed_roles) if spec is not None and spec.role_limits == "Enforce" else None,
        others=live(context, f"others of {uid}", status.get("others"), sessions.others if sessions else None),
        blind=context.discoveries.blind(uid),
    )
    return view, wait


async def _login(context: Context, namespace: str, spec: PgServerSpec) -> Login | Problem:
    """The admin's login, or what keeps it from being one."""
    reference = spec.admin_secret_ref
    assert reference is not None
    secret = await context.secrets.get(namespace, reference.name)
    username = secret_value(secret, reference.username_key)
    password = secret_value(secret, reference.password_key)
    if secret is None:
        words = f'Secret "{reference.name}" (adminSecretRef) does not exist. Create it.'
        return Problem(Reason.SECRET_NOT_FOUND, words)
    for wanted, value in ((reference.username_key, username), (reference.password_key, password)):
        if value is None:
            has = ", ".join(sorted(secret.get("data") or {})) or "none"
            words = f'Secret "{reference.name}" (adminSecretRef) has no key "{wanted}" in UTF-8; its keys: {has}.'
            return Problem(Reason.SECRET_KEY_NOT_FOUND, words)
    ca: str | None = None
    if (ca_reference := spec.tls.ca_secret_ref) is not None:
        ca_secret = await context.secrets.get(namespace, ca_reference.name)
        ca = secret_value(ca_secret, ca_reference.key)
        if ca is None:
            words = f'Secret "{ca_reference.name}" (tls.caSecretRef) does not exist or has no key "{ca_reference.key}".'
            return Problem(Reason.SECRET_NOT_FOUND if ca_secret is None else Reason.SECRET_KEY_NOT_FOUND, words)
    shown = await _certificate(context, namespace, spec)
    if isinstance(shown, Problem):
        return shown
    # A single label means the same as for the pods: a Service of the PgServer's own namespace.
    host = full_host(spec.host, namespace)
    login = Login(host, spec.port, username or "", password or "", spec.tls.mode, ca)
    return login if shown is None else replace(login, certificate=shown.chain, key=shown.key)


async def _certificate(context: Context, namespace: str, spec: PgServerSpec) -> Certificate | Problem | None:
    """The certificate that the server is shown, or what keeps it from being one; None if there shall be none."""
    reference = spec.tls.client_cert_secret_ref
    if reference is None:
        return None
    secret = await context.secrets.get(namespace, reference.name)
    data, place = decode(secret), f'Secret "{reference.name}" (tls.clientCertSecretRef)'
    if secret is None:
        return Problem(Reason.SECRET_NOT_FOUND, f"{place} does not exist. Create it.")
    for key in (reference.cert_key, reference.private_key_key):
        if key not in data:
            has = ", ".join(sorted(data)) or "none"
            return Problem(Reason.SECRET_KEY_NOT_FOUND, f'{place} has no key "{key}"; its keys: {has}.')
    found = Certificate(data[reference.cert_key], data[reference.private_key_key])
    wrong = certificates.check_pair(found, reference.name, reference, certificates.TO_SERVER, context.clock())
    return found if wrong is None else Problem(wrong.reason, wrong.message)


def secret_value(secret: Mapping[str, Any] | None, key: str) -> str | None:
    """The value under `key` as text; None if it is absent or no UTF-8."""
    try:
        encoded = (secret or {}).get("data", {})[key]
        return base64.b64decode(encoded).decode()
    except (KeyError, TypeError, UnicodeDecodeError, binascii.Error):
        return None


def pool_key(config: Mapping[str, Any] | None) -> bytes | None:
    """The HMAC key of a pool, from its Secret x-config; None if there is none or it is no hex."""
    text = secret_value(config, names.KEY_FILE)
    try:
        return bytes.fromhex(text) if text else None
    except ValueError:
        return None


def _adopt(context: Context, uid: str, status: Mapping[str, Any], wishes: Iterable[PoolWish]) -> Discovery | None:
    """Fold the newest reading into what is known, if there is one that was not looked at."""
    known = discoveries.read_discovery(status)
    reading = context.discoveries.take(uid)
    if reading is None:
        return known
    ours = role_limits.read(status)  # what the operator has set says nothing new
    roles = _roles(wishes) - set(ours)
    return discoveries.adopt(reading.about(list(reading.database_limits), roles), known, context.clock())


def _roles(wishes: Iterable[PoolWish]) -> set[str]:
    """All roles that pools log in as."""
    return {role for wish in wishes for roles in wish.roles.values() for role in roles}


def _failure(context: Context, uid: str, spec: PgServerSpec) -> Problem | None:
    """Why the newest reading with this very login failed; None if it did not."""
    failure = context.discoveries.failure(uid)
    if failure is None or spec.admin_secret_ref is None:
        return None
    reason = Reason.AUTHENTICATION_FAILED if failure.refused else Reason.UNREACHABLE
    remedy = "the Secret and the role" if failure.refused else "the server, and host, port and tls"
    words = f'With Secret "{spec.admin_secret_ref.name}" (adminSecretRef): {failure}. Check {remedy}.'
    return Problem(reason, words)


def _sessions(
    context: Context,
    key: Key,
    uid: str,
    login: Login,
    ledger: Ledger,
    pods: Iterable[Pod],
    wishes: Iterable[PoolWish],
) -> tuple[Sessions | None, float]:
    """What PostgreSQL showed last of the pools' roles, and in how many seconds to look again."""
    roles = _roles(wishes)
    uids = [pod.uid for pod in pods if not pod.ended] + [entry.pod for entry in ledger.ghosts]
    known = context.discoveries.sessions(uid)
    closely = bool(ledger.ghosts or (known is not None and known.orphans))

    async def pids() -> set[int]:
        return {pid for state in (await context.agents.ask_now(uids)).values() for pid in state.pids}

    every = LOOK_CLOSELY_SECONDS if closely else LOOK_SECONDS
    due = context.discoveries.watch_sessions(uid, login, roles, pids, every, lambda: context.queue.add(key))
    return known, due - context.clock()


def _pods(context: Context, pools: Iterable[Body], ledger: Ledger) -> tuple[Pod, ...]:
    """The pods of the pools, and those that are in the ledger though their pool is not any more."""
    listed = [f"{pool['metadata']['namespace']}/{pool['metadata']['name']}" for pool in pools]
    in_ledger = {entry.pod for entry in ledger.entries}
    strangers = sorted({entry.pool for entry in ledger.entries} - set(listed))
    found: dict[str, Pod] = {}
    for pool in [*listed, *strangers]:
        namespace, _, name = pool.partition("/")
        bodies = context.store.of_pool(POD.plural, namespace, name)
        if pool in strangers:
            bodies = [body for body in bodies if body["metadata"]["uid"] in in_ledger]
        context.agents.follow(bodies)
        states = {b["metadata"]["uid"]: context.agents.state(b["metadata"]["uid"]) for b in bodies}
        known = {pod: state for pod, state in states.items() if state is not None}
        for pod in pods_of(context.store, namespace, name, config_key(context, namespace, name), known):
            if pool in listed or pod.uid in in_ledger:
                found[pod.uid] = pod
    return tuple(found.values())


def config_key(context: Context, namespace: str, pool: str) -> bytes | None:
    """The HMAC key of a pool, from its Secret x-config as it is, or was when it was deleted; None if there is none."""
    name = names.config_secret(pool)
    secret = context.store.get(SECRET.plural, namespace, name)
    return pool_key(secret or context.store.get_deleted(SECRET.plural, namespace, name))


def _vanished(ledger: Ledger, pods: Iterable[Pod]) -> set[str]:
    """UIDs of pods in the ledger that the API server does not show any more."""
    return {entry.pod for entry in ledger.entries} - {pod.uid for pod in pods}


async def _off(context: Context, ledger: Ledger, pods: Iterable[Pod]) -> frozenset[str]:
    """UIDs of pods whose Node is known to be off: of those in the ledger that vanished, and of those that end without
    a word."""
    nodes = {pod.uid: pod.node for pod in pods if pod.terminating and not pod.ended and pod.state is None}
    for uid in _vanished(ledger, pods):
        nodes[uid] = (context.store.last_seen(uid) or {}).get("spec", {}).get("nodeName") or ""
    return frozenset({uid for uid, node in nodes.items() if node and await context.nodes.off(node)})


def live(context: Context, what: str, old: int | None, new: int | None) -> int | None:
    """A live number for the status: it moves at most every 15 s, and by at least 10 % (design section 2)."""
    if old is not None and new is not None:
        moved = context.numbers_moved.get(what, 0.0)
        if context.clock() - moved < NUMBERS_SECONDS or abs(new - old) < max(1, NUMBERS_CHANGE * old):
            return old
    context.numbers_moved[what] = context.clock()
    return new
