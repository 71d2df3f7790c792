"""What can be wrong with a PgPool that its schema cannot refuse: a chain of named checks, most fundamental first.

The first that is violated becomes the condition Stalled. Each violated one says what must not be written while it
lasts: the last good fleet keeps serving, and what does not depend on the fault is still kept in order.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Flag, auto
from typing import Any, Final

from poolfleet.api.conditions import STALLED, Reason
from poolfleet.pgbouncer import parameters, quoting
from poolfleet.plan import config
from poolfleet.plan.objects.meta import controlled_by
from poolfleet.plan.objects.overlay import TemplateError, overlay
from poolfleet.plan.poolview import PoolView
from poolfleet.plan.secrets import Credentials, Problem, userlist
from poolfleet.plan.tenancy import Standing, refusal, server_name


class Part(Flag):
    """Groups of children that are written, or left alone, together."""

    NONE = 0
    SERVER = auto()  # the PgServer of an inline server
    CONFIG = auto()  # Secrets x-config and x-binding
    NETWORK = auto()  # Service, NetworkPolicy, PodDisruptionBudget
    PODS = auto()  # Deployment
    CONTENT = CONFIG | PODS
    ALL = SERVER | CONFIG | NETWORK | PODS


@dataclass(frozen=True, slots=True)
class Finding:
    """A violated check: the condition's reason and message, and what must not be written."""

    reason: str
    message: str
    blocks: Part

    @classmethod
    def of(cls, problem: Problem, blocks: Part) -> "Finding":
        """A finding from a problem with a Secret."""
        return cls(problem.reason, problem.message, blocks)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is checked. `given` is None while the specs cannot be read."""

    view: PoolView
    given: Credentials | None


Check = Callable[[Subject], Iterator[Finding]]


def readable(subject: Subject) -> Iterator[Finding]:
    """The spec is one that this operator understands."""
    view = subject.view
    if view.spec is None:
        yield Finding(Reason.INVALID_SPEC, f"spec.{view.spec_error}. Correct the PgPool.", Part.ALL)


def namespace_allowed(subject: Subject) -> Iterator[Finding]:
    """The PgServer's owner lets the pool's namespace use it. A pool that was allowed once keeps what it has."""
    view = subject.view
    if view.spec is None or view.server is None or view.standing is Standing.ALLOWED:
        return
    yield Finding(Reason.NAMESPACE_NOT_ALLOWED, refusal(view.body, view.server, view.labels), Part.ALL)


def server_there(subject: Subject) -> Iterator[Finding]:
    """The referenced PgServer exists and can be read."""
    view = subject.view
    if view.spec is None or view.spec.server_ref is None:
        return
    if view.server is None:
        namespace, name = server_name(view.body)
        message = f'PgServer "{name}" does not exist in namespace "{namespace}". Create it.'
        yield Finding(Reason.SERVER_NOT_FOUND, message, Part.ALL)
    elif view.server_error:
        message = f"{view.server_title}: spec.{view.server_error}. Correct it."
        yield Finding(Reason.INVALID_SPEC, message, Part.ALL)


def no_strangers(subject: Subject) -> Iterator[Finding]:
    """No object of a child's name belongs to somebody else."""
    view = subject.view
    for (kind, name), body in sorted(view.children.items(), key=lambda item: item[0]):
        if controlled_by(body, view.owner.uid):
            continue
        owners = [o for o in body.get("metadata", {}).get("ownerReferences") or () if o.get("controller")]
        whose = f"belongs to {owners[0].get('kind')} {owners[0].get('name')}" if owners else "was not made by Poolfleet"
        if owners and owners[0].get("kind") == "PgPool" and owners[0].get("name") == view.owner.name:
            whose = "belongs to an earlier PgPool of this name and will be gone in a moment"
        message = f'{kind} "{name}" exists already and {whose}. Delete it, or give the PgPool another name.'
        yield Finding(Reason.RESOURCE_CONFLICT, message, Part.ALL)


def parameters_allowed(subject: Subject) -> Iterator[Finding]:
    """spec.pgbouncer.parameters holds only what cannot break the promise."""
    spec = subject.view.spec
    if spec is None:
        return
    problems = parameters.check(spec.pgbouncer.parameters)
    if problems:
        yield Finding(Reason.PARAMETER_NOT_ALLOWED, " ".join(problems), Part.CONTENT)


def secrets_complete(subject: Subject) -> Iterator[Finding]:
    """All Secrets are there, with their keys, and hold what a PgBouncer file can carry."""
    for problem in subject.given.problems if subject.given else ():
        yield Finding.of(problem, Part.CONTENT)


def writable(subject: Subject) -> Iterator[Finding]:
    """What the spec itself says can be written into PgBouncer's files."""
    view, given = subject.view, subject.given
    if view.spec is None or view.server_spec is None or given is None or given.problems:
        return
    if parameters.check(view.spec.pgbouncer.parameters):
        return
    key = config.pool_key(view)
    try:
        config.files(view, given, userlist(view, given.users, key), key, max_grant=1)
    except (quoting.Unwritable, ValueError) as error:
        yield Finding(Reason.INVALID_SPEC, f"{_sentence(str(error))}. Correct the PgPool.", Part.CONTENT)


def template_fits(subject: Subject) -> Iterator[Finding]:
    """spec.template can be laid over a pod template."""
    spec = subject.view.spec
    if spec is None:
        return
    try:
        overlay(_BARE, spec.template)
    except TemplateError as error:
        yield Finding(Reason.INVALID_TEMPLATE, f"spec.template: {error}.", Part.PODS)


def server_alone(subject: Subject) -> Iterator[Finding]:
    """No older PgServer is the same server: its budget would be given out twice."""
    view = subject.view
    for condition in _stalled(view):
        if condition["reason"] == Reason.SHARED_SERVER:
            words = f"{view.server_title}: {condition.get('message', '')}"
            yield Finding(Reason.SHARED_SERVER, words, _what_takes_connections(view))


def budget_suffices(subject: Subject) -> Iterator[Finding]:
    """The budget has what the pool needs at least, besides what older pools need: one connection for each database of
    each replica and of one more pod, or share.min (design section 3). Autoscaling adds no pod that the budget cannot
    feed, and gives up those that it cannot feed any more: so only its minReplicas can be too many."""
    view = subject.view
    budget = view.server_status.get("budget")
    if view.spec is None or not isinstance(budget, int) or view.standing is not Standing.ALLOWED:
        return
    if any(condition["reason"] == Reason.SHARED_SERVER for condition in _stalled(view)):
        return
    replicas, databases = view.least_replicas, len(view.spec.databases)
    for_pods = (replicas + 1) * databases if replicas else 0
    least = view.spec.share.min or 0
    if not replicas and not least:
        return
    left = budget - view.elders_need
    if max(for_pods, least) <= left:
        asked = (view.replicas + 1) * databases  # more than there is: autoscaling is about to ask for less
        if view.server_line.get("admitted") is False and replicas and asked <= left:
            yield Finding(Reason.BUDGET_TOO_SMALL, _not_yet(view, budget), Part.NONE)
        return
    if least > for_pods:
        needs = f"share.min is {least} connections"
        remedy = f"Set share.min to {max(for_pods, left)} or less" if left > 0 else "Remove share.min"
    else:
        needs = (
            f"{replicas} replicas x {databases} databases + {databases} in reserve for a rollout = {for_pods} "
            "connections at least"
        )
        remedy = _fewer("replicas" if view.spec.autoscaling is None else "autoscaling.minReplicas", left, databases)
    message = (
        f"{needs}, but the budget of {view.server_title} is {budget}{_elders(view)}. {remedy}, or raise the budget "
        "(maxConnections, headroom)."
    )
    yield Finding(Reason.BUDGET_TOO_SMALL, message, _what_takes_connections(view))


def server_well(subject: Subject) -> Iterator[Finding]:
    """Nobody has to mend the PgServer. Nothing is blocked: what it knew of the server still counts."""
    view = subject.view
    for condition in _stalled(view):
        if condition["reason"] != Reason.SHARED_SERVER:
            words = f"{view.server_title}: {condition.get('message', '')}"
            yield Finding(condition["reason"], words, Part.NONE)


def _stalled(view: PoolView) -> list[Mapping[str, Any]]:
    """The PgServer's condition Stalled, if it is true."""
    conditions = view.server_status.get("conditions") or () if view.spec is not None else ()
    return [each for each in conditions if each.get("type") == STALLED and each.get("status") == "True"]


def _what_takes_connections(view: PoolView) -> Part:
    """What must not be written while there are no connections for it: pods; and a configuration with more databases."""
    assert view.spec is not None
    served = set(config.served_databases(view.config_files))
    more = served and not {database.name for database in view.spec.databases} <= served
    return Part.CONTENT if more else Part.PODS


def _elders(view: PoolView) -> str:
    if not view.elders:
        return ""
    pools = "an older pool needs" if view.elders == 1 else f"{view.elders} older pools need"
    return f", of which {pools} {view.elders_need}"


def _not_yet(view: PoolView, budget: int) -> str:
    """What to say of a pool that would fit by its own arithmetic but is not admitted: others keep what they have."""
    return (
        f"{view.server_title} has no connections for this pool yet: the budget is {budget}{_elders(view)}, and ghosts "
        "or sessions of others may keep more of it, as its status says. Wait, or raise the budget (maxConnections, "
        "headroom)."
    )


def _fewer(field: str, budget: int, databases: int) -> str:
    most = budget // databases - 1
    return f"Set {field} to {most} or less" if most >= 1 else "Use fewer databases"


CHAIN: Final[tuple[Check, ...]] = (
    readable,
    namespace_allowed,
    server_there,
    no_strangers,
    parameters_allowed,
    secrets_complete,
    writable,
    template_fits,
    server_alone,
    budget_suffices,
    server_well,
)


def run(subject: Subject) -> tuple[Finding, ...]:
    """All findings, in the order of the chain."""
    return tuple(finding for check in CHAIN for finding in check(subject))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".")


# The least that a template is merged with, to see whether it can be merged; the real one is made in plan/pool.py.
_BARE: Final = {
    "metadata": {"labels": {}, "annotations": {}},
    "spec": {
        "securityContext": {},
        "terminationGracePeriodSeconds": 0,
        "initContainers": [],
        "containers": [],
        "volumes": [],
    },
}
