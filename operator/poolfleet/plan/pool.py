"""What a PgPool's children shall be, and which of them must be written for it. Pure; controller/pools.py does it."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from poolfleet.api import names
from poolfleet.api.conditions import READY, Reason
from poolfleet.api.pgpool import ClientRebalance
from poolfleet.api.wire import drain_token
from poolfleet.pgbouncer import parameters
from poolfleet.plan import checks, config, replicas, rollout
from poolfleet.plan.checks import Finding, Part, Subject
from poolfleet.plan.model import Pod, RotationLine
from poolfleet.plan.objects import network, pod, secret, server, workload
from poolfleet.plan.objects.drift import differs
from poolfleet.plan.objects.meta import Manifest, annotation, stamp
from poolfleet.plan.objects.overlay import overlay
from poolfleet.plan.poolview import Body, PoolView
from poolfleet.plan.rollout import Rolled, Surge
from poolfleet.plan.secrets import USERS, Credentials, Problem, credentials, shown_ca, userlist, users_annotation
from poolfleet.plan.sizing import PoolWish
from poolfleet.plan.times import seconds


@dataclass(frozen=True, slots=True)
class Doomed:
    """A child that is not wanted any more."""

    kind: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to write, and what the status has to know of the reasons."""

    wanted: tuple[Manifest, ...] = ()  # all children that may be written now, in the order of writing
    apply: tuple[Manifest, ...] = ()  # those that differ from what there is
    delete: tuple[Doomed, ...] = ()
    findings: tuple[Finding, ...] = ()  # violated checks, most fundamental first
    waiting: Problem | None = None  # what the pods' configuration waits for, if not for the user
    config: str = ""  # hash of x-config as it is after this plan, "" if there is none
    rolled: Rolled | None = None  # what the pods are made of after this plan
    overridden: tuple[str, ...] = ()  # fields of spec.template that had to give way
    surge: Surge = field(default_factory=lambda: Surge(more=True))  # how a rollout goes on
    logins: tuple[RotationLine, ...] = ()  # how the rotation of client users stands
    staged: tuple[str, ...] = ()  # Secrets whose next password is in x-config, not to be loaded yet
    costs: tuple[tuple[Pod, int], ...] = ()  # deletion costs to be written before the Deployment

    def unseen(self, view: PoolView) -> list[tuple[str, str]]:
        """(kind, name) of the wanted children that no watch has shown: to be looked for before they are made."""
        wanted = [(obj["kind"], obj["metadata"]["name"]) for obj in self.wanted]
        return [child for child in wanted if child not in view.children]


def plan(view: PoolView) -> Plan:
    """Plan the children of `view`. A paused pool's are left as they are, whatever they are."""
    rolled = Rolled.from_annotation(annotation(view.child("Deployment"), names.ROLLED))
    live_config = config.live_hash(secret.decode(view.config))
    if view.spec is not None and view.spec.paused:
        return Plan(config=live_config, rolled=rolled)
    given = credentials(view) if view.spec is not None else None
    findings = checks.run(Subject(view, given))
    blocked = Part.NONE
    for finding in findings:
        blocked |= finding.blocks
    if view.spec is None:
        return Plan(findings=findings, config=live_config, rolled=rolled)
    builder = _Builder(view, given, blocked, rolled)
    wanted = tuple(builder.children())
    apply = tuple(obj for obj in wanted if differs(obj, view.children.get((obj["kind"], obj["metadata"]["name"]))))
    return Plan(
        wanted=wanted,
        apply=apply,
        delete=tuple(builder.doomed(wanted)),
        findings=findings,
        waiting=None if view.config is not None and view.server_uid else waits_for(view),
        config=config.live_hash(builder.files) or live_config,
        rolled=builder.rolled,
        overridden=builder.overridden,
        staged=given.staged if given is not None and builder.files else (),
        surge=builder.surge,
        costs=replicas.costs(view.pods) if any(_gives_up_pods(view, obj) for obj in apply) else (),
    )


def _gives_up_pods(view: PoolView, obj: Manifest) -> bool:
    """Whether `obj` is a Deployment with fewer pods than the live one has."""
    live = (view.child("Deployment") or {}).get("spec") or {}
    return bool(obj["kind"] == "Deployment" and obj["spec"]["replicas"] < replicas.whole(live.get("replicas"), 0))


def waits_for(view: PoolView) -> Problem | None:
    """What a pool without a configuration waits for; None if nothing is missing."""
    if view.spec is None:
        return None
    if view.server is None:
        return Problem(Reason.WAITING_FOR_SERVER, f"{view.server_title} is being made.")
    if config.largest_grant(view) is not None:
        return None
    for condition in view.server_status.get("conditions") or ():
        if condition.get("type") == READY and condition.get("status") == "False" and condition.get("message"):
            return Problem(condition["reason"], f"{view.server_title}: {condition['message']}")
    return Problem(Reason.WAITING_FOR_SERVER, f"max_connections of {view.server_title} is not known yet.")


def wishes(body: Body, live_config: Body | None) -> PoolWish | None:
    """What the server reconciler has to know of a PgPool; None while its spec cannot be read.

    `live_config` is the Secret x-config as it stands in the API. Databases and roles are those that it serves, not
    those of the spec: while a fault keeps a new configuration back, the last good one is what gets connections.
    """
    metadata, spec = body["metadata"], body.get("spec") or {}
    databases = spec.get("databases")
    if not isinstance(databases, list):
        return None
    weights = {str(item["name"]): int(item.get("weight", 1)) for item in databases}
    share = spec.get("share") or {}
    data = secret.decode(live_config)
    served = config.served_databases(data) or tuple(weights)
    most = share.get("max")
    return PoolWish(
        pool=f"{metadata['namespace']}/{metadata['name']}",
        uid=metadata["uid"],
        created=seconds(metadata.get("creationTimestamp")),
        databases={name: weights.get(name, 1) for name in served},
        config=config.live_hash(data),
        replicas=replicas.desired(body),
        weight=replicas.whole(share.get("weight"), 1),
        least=replicas.whole(share.get("min"), 0),
        most=None if most is None else int(most),
        roles=config.served_roles(data),
        turn=_turn(live_config),
        staged=bool(annotation(live_config, names.STAGED)),
        move=_move(spec.get("clientRebalance")),
    )


def _turn(config_secret: Body | None) -> int:
    """How often the roles that x-config logs in as have changed."""
    text = annotation(config_secret, names.TURN) or "0"
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else 0


def _move(raw: object) -> tuple[int, int] | None:
    """spec.clientRebalance as PoolWish.move; None if it is not set, or not what this operator understands."""
    if raw is None:
        return None
    try:
        rebalance = ClientRebalance.model_validate(raw)
    except ValidationError:
        return None
    return rebalance.idle_seconds, rebalance.max_percent


def frozen(wish: PoolWish, connections: int, databases: Collection[str]) -> PoolWish:
    """`wish` of a pool that may not use its server any more: no more than the `connections` of its share and the
    `databases` that it has entries for, whatever its spec and its x-config say by now."""
    kept = {name: weight for name, weight in wish.databases.items() if name in databases}
    most = connections if wish.most is None else min(wish.most, connections)
    pods = min(wish.replicas, max(0, most // len(kept) - 1)) if kept else 0
    roles = {name: roles for name, roles in wish.roles.items() if name in kept}
    return replace(wish, databases=kept, replicas=pods, least=0, most=most, roles=roles)


class _Builder:
    """The children of one pool that may be written, given what is blocked."""

    def __init__(self, view: PoolView, given: Credentials | None, blocked: Part, rolled: Rolled | None) -> None:
        assert view.spec is not None
        self.view = view
        self.spec = view.spec
        self.owner = view.owner
        self.given = given
        self.blocked = blocked
        self.rolled = rolled
        self.overridden: tuple[str, ...] = ()
        self.files: Mapping[str, bytes] = {}
        self.key = config.pool_key(view)
        self.surge = rollout.surge(view.child("Deployment"), view.pods, view.now)
        self.turn = _turn(view.remembered_config)

    def children(self) -> Iterator[Manifest]:
        """All of them, the pods last: what they mount and need comes first."""
        if self.spec.server is not None and Part.SERVER not in self.blocked:
            raw: Mapping[str, Any] = self.view.body["spec"]["server"]
            yield stamp(server.inline_server(self.owner, raw), b"")
        if Part.CONFIG not in self.blocked:
            yield from self._secrets()
        if Part.NETWORK not in self.blocked:
            yield from self._network()
        if Part.PODS not in self.blocked and self.view.server_uid and (self.files or self.view.config is not None):
            yield stamp(self._deployment(), b"")

    def doomed(self, wanted: tuple[Manifest, ...]) -> Iterator[Doomed]:
        """Own children that the spec does not ask for any more."""
        keep = {(obj["kind"], obj["metadata"]["name"]) for obj in wanted}
        for (kind, name), body in self.view.children.items():
            if (kind, name) in keep or self.view.child(kind, name) is None:
                continue
            binding = kind == "Secret" and body.get("type") == secret.BINDING_TYPE and bool(self.files)
            policy = (
                kind == "NetworkPolicy" and not self.spec.network_policy.enabled and Part.NETWORK not in self.blocked
            )
            if binding or policy:
                yield Doomed(kind, name, body["metadata"]["uid"])

    def _secrets(self) -> Iterator[Manifest]:
        view, given = self.view, self.given
        max_grant = config.largest_grant(view)
        if given is None or view.server is None or view.server_spec is None or max_grant is None:
            return
        salt = bytes.fromhex(self.key)
        users = userlist(view, given.users, self.key)
        self.files = config.files(view, given, users, self.key, max_grant)
        annotations = {USERS: users_annotation(users)}
        if given.staged:
            uids = {name: view.next_secrets[name]["metadata"]["uid"] for name in given.staged}
            annotations[names.STAGED] = ",".join(f"{name}={uid}" for name, uid in uids.items())
        if config.other_roles(view.config_files, self.files):
            self.turn += 1
        if self.turn:
            annotations[names.TURN] = str(self.turn)
        yield stamp(secret.config_secret(self.owner, self.files, annotations), salt)
        for number, login in enumerate(given.users):
            binding = secret.binding_secret(
                self.owner,
                login.username if number else None,
                host=network.host(self.owner),
                port=self.spec.service.port,
                database=self.spec.databases[0].name,
                username=login.username,
                password=login.password,
                tls_required=self.spec.tls is not None and self.spec.tls.mode not in ("allow", "prefer"),
                ca=shown_ca(view),
            )
            yield stamp(binding, salt)

    def _network(self) -> Iterator[Manifest]:
        yield stamp(network.service(self.owner, self.spec.service), b"")
        yield stamp(workload.disruption_budget(self.owner), b"")
        if self.spec.network_policy.enabled:
            policy = self.view.body["spec"].get("networkPolicy") or {}
            yield stamp(network.network_policy(self.owner, policy.get("from") or ()), b"")

    def _deployment(self) -> Manifest:
        spec, view = self.spec, self.view
        token = drain_token(bytes.fromhex(self.key))
        restart = parameters.restart_only(spec.pgbouncer.parameters)
        inputs = {
            "template": spec.template,
            "image": spec.pgbouncer.image,
            "parameters": restart,
            "drainSeconds": spec.drain.timeout_seconds,
            "server": view.server_uid,
            "drainToken": token,
        }
        if self.turn:  # PgBouncer must not change `user=` under its sessions (facts/pgbouncer.md 4)
            inputs["turn"] = self.turn
        live = view.child("Deployment") or {}
        live_template = (live.get("spec") or {}).get("template") or {}
        self.rolled = rollout.decide(
            self.rolled,
            view.settings,
            inputs=rollout.inputs_hash(inputs),
            restarted_at=annotation(live_template, rollout.RESTARTED_AT) or "",
            pgbouncer_image=spec.pgbouncer.image,
            immediately=spec.agent_update == "Immediately",
            least_revision=rollout.FILES_AND_HOLDS if self._wants_files_or_holds() else 0,
        )
        base = pod.pod_template(
            self.owner,
            self.rolled,
            config_secret=names.config_secret(self.owner.name),
            server_uid=view.server_uid,
            drain_seconds=spec.drain.timeout_seconds,
            drain_token=token,
            restart_parameters=rollout.inputs_hash(restart) if restart else "",
            turn=self.turn,
        )
        template, self.overridden = overlay(base, spec.template)
        return workload.deployment(
            self.owner, replicas=view.replicas, template=template, rolled=self.rolled, surge=self.surge.more
        )

    def _wants_files_or_holds(self) -> bool:
        """Whether the specs ask for what agents of older template revisions cannot do."""
        certificate = self.view.server_spec is not None and self.view.server_spec.tls.client_cert_secret_ref is not None
        rotation = any(database.rotation is not None for database in self.spec.databases)
        return certificate or rotation or self.spec.tls is not None


def with_children(view: PoolView, found: Mapping[tuple[str, str], Body]) -> PoolView:
    """`view` with children that were found by name, of whomever they are."""
    return replace(view, children={**view.children, **found})
