"""What can be wrong with a PgPool that its schema cannot refuse: a chain of named checks, most fundamental first.

The first that is violated becomes the condition Stalled. Each violated one says what must not be written while it
lasts: the last good fleet keeps serving, and what does not depend on the fault is still kept in order.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Flag, auto
from typing import Final

from poolfleet.api.conditions import STALLED, Reason
from poolfleet.pgbouncer import parameters, quoting
from poolfleet.plan import config
from poolfleet.plan.objects.meta import controlled_by
from poolfleet.plan.objects.overlay import TemplateError, overlay
from poolfleet.plan.poolview import PoolView
from poolfleet.plan.secrets import Credentials, Problem, userlist


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


def own_namespace(subject: Subject) -> Iterator[Finding]:
    """The PgServer is in the pool's namespace."""
    view = subject.view
    if view.spec is None:
        return
    namespace, name = view.spec.server_key(view.owner.namespace, view.owner.name)
    if namespace != view.owner.namespace:
        message = (
            f'PgServer "{name}" is in namespace "{namespace}"; a PgPool can only use one of its own namespace '
            f'"{view.owner.namespace}". Make the PgPool there.'
        )
        yield Finding(Reason.NAMESPACE_NOT_ALLOWED, message, Part.ALL)


def server_there(subject: Subject) -> Iterator[Finding]:
    """The referenced PgServer exists and can be read."""
    view = subject.view
    if view.spec is None or view.spec.server_ref is None:
        return
    name = view.spec.server_ref.name
    if view.server is None:
        message = f'PgServer "{name}" does not exist in namespace "{view.owner.namespace}". Create it.'
        yield Finding(Reason.SERVER_NOT_FOUND, message, Part.ALL)
    elif view.server_error:
        message = f'PgServer "{name}": spec.{view.server_error}. Correct it.'
        yield Finding(Reason.INVALID_SPEC, message, Part.ALL)


def server_free(subject: Subject) -> Iterator[Finding]:
    """No older pool has the PgServer."""
    view = subject.view
    if view.spec is None or view.serving in ("", view.key):
        return
    _, name = view.spec.server_key(view.owner.namespace, view.owner.name)
    message = (
        f'PgServer "{name}" serves PgPool "{view.serving}", which is older; a PgServer serves one PgPool. '
        "Add the databases there, or use another PgServer."
    )
    yield Finding(Reason.SERVER_IN_USE, message, Part.ALL)


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


def budget_suffices(subject: Subject) -> Iterator[Finding]:
    """The budget has one connection for each database of each replica, and one per database in reserve."""
    view = subject.view
    budget = view.server_status.get("budget")
    if view.spec is None or not isinstance(budget, int):
        return
    replicas, databases = view.spec.replicas, len(view.spec.databases)
    needed = (replicas + 1) * databases
    if replicas == 0 or needed <= budget:
        return
    _, server = view.spec.server_key(view.owner.namespace, view.owner.name)
    message = (
        f"{replicas} replicas x {databases} databases + {databases} in reserve for a rollout = {needed} connections at "
        f'least, but the budget of PgServer "{server}" is {budget}. {_fewer(budget, databases)}, or raise the budget '
        "(maxConnections, headroom)."
    )
    served = set(config.served_databases(view.config_files))
    more = served and not {database.name for database in view.spec.databases} <= served
    yield Finding(Reason.BUDGET_TOO_SMALL, message, Part.CONTENT if more else Part.PODS)


def server_well(subject: Subject) -> Iterator[Finding]:
    """Nobody has to mend the PgServer. Nothing is blocked: what it knew of the server still counts."""
    view = subject.view
    for condition in view.server_status.get("conditions") or ():
        if view.spec is not None and condition.get("type") == STALLED and condition.get("status") == "True":
            _, name = view.spec.server_key(view.owner.namespace, view.owner.name)
            yield Finding(condition["reason"], f'PgServer "{name}": {condition.get("message", "")}', Part.NONE)


def _fewer(budget: int, databases: int) -> str:
    most = budget // databases - 1
    return f"Set replicas to {most} or less" if most >= 1 else "Use fewer databases"


CHAIN: Final[tuple[Check, ...]] = (
    readable,
    own_namespace,
    server_there,
    server_free,
    no_strangers,
    parameters_allowed,
    secrets_complete,
    writable,
    template_fits,
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
