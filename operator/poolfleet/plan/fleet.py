"""The conditions of a PgPool, each from what the pods, the PgServer and the plan say. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from poolfleet.api.conditions import (
    AUTOSCALING_LIMITED,
    BUDGET_SATISFIED,
    CREDENTIALS_CURRENT,
    READY,
    RECONCILING,
    SERVER_REACHABLE,
    STALLED,
    Reason,
)
from poolfleet.plan import certificates
from poolfleet.plan.conditions import refused_login
from poolfleet.plan.model import Condition, Pod
from poolfleet.plan.pool import Plan
from poolfleet.plan.poolview import PoolView
from poolfleet.plan.secrets import Problem
from poolfleet.plan.tenancy import line_of

_OF_SECRETS: Final = frozenset(
    {
        Reason.SECRET_NOT_FOUND,
        Reason.SECRET_KEY_NOT_FOUND,
        Reason.INVALID_CREDENTIALS,
        Reason.TOKEN_UNAVAILABLE,
        Reason.INVALID_CERTIFICATE,
        Reason.CERTIFICATE_EXPIRED,
    }
)

PROPAGATION_SECONDS: Final = 2.0
"""How long a pod may be ready before clients of the Service get to it: EndpointSlice, then kube-proxy, which looks once
a second."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A child that the API server did not take."""

    kind: str
    name: str
    message: str  # the API server's words
    invalid: bool  # True: it will never take this; False: forbidden by a quota, a policy or RBAC


@dataclass(frozen=True, slots=True)
class Fleet:
    """All that the conditions depend on."""

    view: PoolView
    plan: Plan
    refusals: Sequence[Refusal] = ()

    @property
    def pods(self) -> list[Pod]:
        """The pods that shall stay."""
        return [pod for pod in self.view.pods if not pod.terminating and not pod.ended]

    @property
    def ready(self) -> int:
        """How many of them take clients."""
        return sum(pod.ready for pod in self.pods)

    @property
    def ready_since(self) -> float | None:
        """Since when some pod takes clients; None if none does."""
        if not self.ready:
            return None
        return self.view.now if self.view.ready_since is None else self.view.ready_since

    @property
    def unannounced(self) -> float:
        """Seconds until the Service has surely heard of the first pod that takes clients."""
        since = self.ready_since
        return 0.0 if since is None else max(0.0, since + PROPAGATION_SECONDS - self.view.now)

    @property
    def replicas(self) -> int:
        """How many there should be."""
        return self.view.replicas

    @property
    def fault(self) -> Problem | None:
        """What the user has to mend: the first violated check, or what the API server will never take."""
        if self.plan.findings:
            return Problem(self.plan.findings[0].reason, self.plan.findings[0].message)
        for refusal in self.refusals:
            if refusal.invalid:
                from_template = refusal.kind == "Deployment" and self.view.spec is not None and self.view.spec.template
                reason = Reason.INVALID_TEMPLATE if from_template else Reason.INVALID_SPEC
                return Problem(reason, f'The API server refuses {refusal.kind} "{refusal.name}": {refusal.message}')
        return None


def conditions(fleet: Fleet) -> list[Condition]:
    """All conditions of the pool, Ready first."""
    reachable = server_reachable(fleet)
    current = credentials_current(fleet)
    found = [
        ready(fleet, reachable),
        reconciling(fleet, current),
        stalled(fleet),
        reachable,
        budget_satisfied(fleet),
        current,
    ]
    if fleet.view.spec is not None and fleet.view.spec.autoscaling is not None:
        found.append(autoscaling_limited(fleet.view))
    return found


def stalled(fleet: Fleet) -> Condition:
    """Whether only the user can go on."""
    fault = fleet.fault
    if fault is None:
        return Condition(STALLED, "False", Reason.AS_WISHED)
    return Condition(STALLED, "True", fault.reason, fault.message)


def reconciling(fleet: Fleet, current: Condition) -> Condition:
    """Whether the operator is still on its way to what the spec says; says also what of spec.template gave way."""
    view, plan = fleet.view, fleet.plan
    if view.spec is not None and view.spec.paused:
        return Condition(RECONCILING, "False", Reason.PAUSED, "spec.paused is true: the pool's objects are left alone.")
    if fleet.fault is not None:
        return Condition(RECONCILING, "False", fleet.fault.reason)
    obstacle = _obstacle(fleet) or plan.waiting or _rollout(fleet)
    if obstacle is None and current.reason == Reason.LOADING:
        obstacle = Problem(current.reason, current.message)
    if obstacle is not None:
        return Condition(RECONCILING, "True", obstacle.reason, obstacle.message)
    notes = [f"Not taken from spec.template: {', '.join(plan.overridden)}."] if plan.overridden else []
    if view.spec is not None and view.spec.autoscaling is not None:
        notes.append("spec.replicas is ignored while spec.autoscaling is set.")
    return Condition(RECONCILING, "False", Reason.AS_WISHED, " ".join(notes))


def ready(fleet: Fleet, reachable: Condition) -> Condition:
    """Whether a client that connects now gets a query through, as far as is known."""
    if not fleet.ready:
        why = fleet.fault or _obstacle(fleet) or fleet.plan.waiting or _waiting_for_pods(fleet)
        return Condition(READY, "False", why.reason, why.message)
    if reachable.status == "False":
        return Condition(READY, "False", reachable.reason, reachable.message)
    was_ready = any(
        old.get("type") == READY and old.get("status") == "True" for old in fleet.view.status.get("conditions") or ()
    )
    if fleet.unannounced and not was_ready:
        return Condition(READY, "False", Reason.WAITING_FOR_PODS, "The Service is about to send clients to the pods.")
    if reachable.status == "Unknown" and not was_ready and any(pod.state is not None for pod in fleet.pods):
        # The agents try every database after their first load; until they have, nobody knows.
        return Condition(READY, "False", Reason.WAITING_FOR_SERVER, "The first connection to the server is under way.")
    message = f"{fleet.ready} of {fleet.replicas} pods take clients."
    if fleet.fault is not None:
        message += f" The last good fleet keeps serving: {fleet.fault.message}"
    return Condition(READY, "True", Reason.SERVING, message)


def server_reachable(fleet: Fleet) -> Condition:
    """From what the agents tried, else from the PgServer."""
    seen: dict[str, list[tuple[bool | None, str]]] = {}
    for pod in fleet.pods:
        for name, database in pod.state.databases.items() if pod.state is not None else ():
            seen.setdefault(name, []).append((database.reachable, database.error))
    for name, answers in sorted(seen.items()):
        # One pod that gets through is enough: another one may have tried a moment too early.
        if any(reachable for reachable, _ in answers):
            continue
        errors = sorted({error for reachable, error in answers if reachable is False})
        if errors:
            reason = Reason.AUTHENTICATION_FAILED if refused_login(errors[0]) else Reason.UNREACHABLE
            message = f'Database "{name}": {errors[0] or "no connection"}. {_remedy(fleet.view, name, reason)}'
            return Condition(SERVER_REACHABLE, "False", reason, message)
    if seen and all(any(reachable for reachable, _ in answers) for answers in seen.values()):
        return Condition(SERVER_REACHABLE, "True", Reason.REACHABLE)
    # Pods that have not tried yet are about to, and they alone know whether clients get through: the admin's own login
    # may be refused while everybody is served.
    own = None if seen else _server_condition(fleet.view, SERVER_REACHABLE)
    if own is not None and own.status == "False":
        return own
    return Condition(SERVER_REACHABLE, "Unknown", Reason.UNKNOWN, "No pod has told yet.")


def budget_satisfied(fleet: Fleet) -> Condition:
    """Whether the budget is enough for what the spec asks for, and whether it is kept."""
    for finding in fleet.plan.findings:
        if finding.reason == Reason.BUDGET_TOO_SMALL:
            return Condition(BUDGET_SATISFIED, "False", finding.reason, finding.message)
    view = fleet.view
    told = _server_condition(view, BUDGET_SATISFIED)
    if told is None:
        return Condition(BUDGET_SATISFIED, "Unknown", Reason.BUDGET_UNKNOWN, "The PgServer has not told yet.")
    if view.server is None or view.server["metadata"]["namespace"] == view.owner.namespace:
        return told
    # The words of another namespace's PgServer name pods and roles that are not this tenant's.
    share, budget = line_of(view.body, view.server).get("budget", 0), view.server_status.get("budget", 0)
    return replace(told, message=f"{view.server_title}: this pool's share is {share} of a budget of {budget}.")


def credentials_current(fleet: Fleet) -> Condition:
    """Whether every pod has loaded the newest configuration."""
    if not fleet.plan.config:
        why = fleet.fault or fleet.plan.waiting
        reason = why.reason if why is not None else Reason.PROGRESSING
        return Condition(CREDENTIALS_CURRENT, "False", reason, "There is no configuration yet.")
    for finding in fleet.plan.findings:
        if finding.reason in _OF_SECRETS:
            return Condition(CREDENTIALS_CURRENT, "False", finding.reason, finding.message)
    running = [pod for pod in fleet.pods if pod.state is not None and pod.state.config]
    loaded = sum(pod.state is not None and pod.state.config == fleet.plan.config for pod in running)
    for pod in running:
        assert pod.state is not None
        if pod.state.config != fleet.plan.config and pod.state.config_error:
            message = f"Pod {pod.name} keeps the last good configuration: {pod.state.config_error}"
            return Condition(CREDENTIALS_CURRENT, "False", Reason.CONFIG_REFUSED, message)
    lines = (*fleet.view.rotations, *fleet.plan.logins)
    wrong = next((line for line in lines if line.reason), None)
    if loaded < len(running):
        if fleet.plan.staged and wrong is None:
            message = (
                f"The next password of {_secrets(fleet.plan.staged)} is being rolled out; what is loaded is valid."
            )
            return Condition(CREDENTIALS_CURRENT, "True", Reason.ROTATING, message)
        if not fleet.plan.staged:
            message = f"{loaded} of {len(running)} pods have loaded the newest configuration."
            return Condition(CREDENTIALS_CURRENT, "False", Reason.LOADING, message)
    if wrong is not None:
        return Condition(CREDENTIALS_CURRENT, "False", wrong.reason, wrong.message)
    silent = [pod.name for pod in fleet.pods if pod.ready and pod.state is None]
    if silent or not running:
        message = f"The agents cannot be read: {', '.join(sorted(silent))}." if silent else "No pod runs."
        return Condition(CREDENTIALS_CURRENT, "Unknown", Reason.UNKNOWN, message)
    if (expired := _expired(fleet.view)) is not None:
        return Condition(CREDENTIALS_CURRENT, "False", expired.reason, expired.message)
    return Condition(CREDENTIALS_CURRENT, "True", Reason.LOADED)


def _expired(view: PoolView) -> Problem | None:
    """The first certificate in force that is not valid any more. The fleet goes on with it: whoever checks it refuses,
    and nobody else would be served better by another configuration."""
    if view.spec is None or view.server_spec is None:
        return None
    references = certificates.references(view.spec.tls, view.server_spec.tls)
    for file, words in certificates.lapsed(view.config_files, view.now).items():
        if file in references:
            where = f'Key "{references[file][1]}" of Secret "{references[file][0]}"'
            return Problem(Reason.CERTIFICATE_EXPIRED, f"{where} {words}. It stays in force: renew it.")
    return None


def _secrets(found: Sequence[str]) -> str:
    return ("Secret " if len(found) == 1 else "Secrets ") + ", ".join(f'"{name}"' for name in found)


def autoscaling_limited(view: PoolView) -> Condition:
    """Whether a limit keeps autoscaling from the number of pods that the clients ask for."""
    decision = view.decision
    if decision is not None:
        status = "False" if decision.limited == Reason.WITHIN_LIMITS else "True"
        return Condition(AUTOSCALING_LIMITED, status, decision.limited, decision.limited_message)
    for old in view.status.get("conditions") or ():
        if old.get("type") == AUTOSCALING_LIMITED:
            return Condition(AUTOSCALING_LIMITED, old["status"], old["reason"], old.get("message", ""))
    return Condition(AUTOSCALING_LIMITED, "Unknown", Reason.UNKNOWN, "Nothing has been decided yet.")


def _obstacle(fleet: Fleet) -> Problem | None:
    """What somebody forbids: to us, or to the Deployment."""
    for refusal in fleet.refusals:
        if not refusal.invalid:
            message = f'{refusal.kind} "{refusal.name}" was not taken: {refusal.message}'
            return Problem(Reason.REPLICA_FAILURE, message)
    for condition in _deployment_status(fleet.view).get("conditions") or ():
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            return Problem(Reason.REPLICA_FAILURE, str(condition.get("message", "")))
    return None


def _rollout(fleet: Fleet) -> Problem | None:
    """What is still to come until the Deployment is as wished."""
    if fleet.plan.apply or fleet.plan.delete:
        return Problem(Reason.PROGRESSING, "Objects are being written.")
    deployment, status = fleet.view.child("Deployment"), _deployment_status(fleet.view)
    if deployment is None:
        return Problem(Reason.PROGRESSING, "The Deployment is being made.")
    wanted = fleet.replicas
    seen = int(status.get("observedGeneration", 0)) >= int(deployment["metadata"].get("generation", 0))
    counts = [int(status.get(name, 0)) for name in ("updatedReplicas", "replicas", "availableReplicas")]
    if seen and all(count == wanted for count in counts):
        return None
    if not seen or counts[0] < wanted or counts[1] > wanted:
        message = f"{counts[0]} of {wanted} pods are up to date, {counts[2]} take clients."
        if not fleet.plan.surge.more:
            message += (
                " The budget has no connections for one pod more, so this rollout takes one pod away before it makes "
                "the next (maxSurge 0, maxUnavailable 1)."
            )
        return Problem(Reason.PROGRESSING, message)
    return _waiting_for_pods(fleet)


def _waiting_for_pods(fleet: Fleet) -> Problem:
    if not fleet.replicas:
        return Problem(Reason.WAITING_FOR_PODS, "spec.replicas is 0.")
    ungranted = [pod for pod in fleet.pods if pod.state is not None and not pod.state.rev]
    if ungranted:
        return Problem(Reason.WAITING_FOR_GRANTS, f"{len(ungranted)} pods wait for connections to be granted.")
    return Problem(Reason.WAITING_FOR_PODS, f"{fleet.ready} of {fleet.replicas} pods take clients.")


def _deployment_status(view: PoolView) -> Mapping[str, Any]:
    return (view.child("Deployment") or {}).get("status") or {}


def _remedy(view: PoolView, database: str, reason: str) -> str:
    """What to do about a server that cannot be used for that database."""
    if view.spec is None:
        return ""
    if reason != Reason.AUTHENTICATION_FAILED:
        return f"Check the server, and host, port and tls of {view.server_title}."
    forced = [d.credentials_secret_ref for d in view.spec.databases if d.name == database]
    login = next((reference for reference in forced if reference is not None), view.spec.users[0].secret_ref)
    return f'Correct Secret "{login.name}", or the role on the server.'


def _server_condition(view: PoolView, wanted: str) -> Condition | None:
    for condition in view.server_status.get("conditions") or ():
        if condition.get("type") == wanted:
            return Condition(wanted, condition["status"], condition["reason"], condition.get("message", ""))
    return None
