"""What the planning functions see and say: frozen values, no I/O, no clock of their own.

Times are seconds since the epoch, taken once per reconciliation (`now`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from poolfleet.api.wire import AgentState


@dataclass(frozen=True, slots=True)
class Settings:
    """What the chart decides, the same for every pool."""

    agent_image: str
    pgbouncer_image: str
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    run_as_user: int | None = 65532  # None: the platform picks one (OpenShift)
    operator_namespace: str = "poolfleet-system"


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition as wished; transition times are added where the status is written."""

    type: str
    status: str  # "True" | "False" | "Unknown"
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """One event about the object under reconciliation."""

    type: str  # "Normal" | "Warning"
    reason: str
    message: str
    action: str = "Reconcile"
    each: bool = False  # True: news as often as it is told, also if only numbers in the message are others


@dataclass(frozen=True, slots=True)
class Problem:
    """Why something cannot be done: a reason of conditions.Reason, and a message with the remedy but no secret."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class RotationLine:
    """How the rotation of one Secret stands, for status.rotations and the conditions."""

    secret: str  # its name
    login: str  # role on the server, or client user, that it holds now; "": not known
    phase: str  # one of those that api/rotation.py names
    message: str = ""
    reason: str = ""  # Reason.ROTATION_BLOCKED, ROTATION_FAILED, or "" while nothing is wrong
    last: float | None = None  # when the login was changed last
    next: float | None = None  # when it is due next
    retiring: str = ""  # user name of a former login that still works
    until: float | None = None  # when it is refused
    clients: int | None = None  # that are still connected with it


@dataclass(frozen=True, slots=True)
class Pod:
    """A pool's pod as the API server last showed it."""

    uid: str
    name: str
    namespace: str
    created: float  # metadata.creationTimestamp
    terminating: bool  # has a deletionTimestamp
    scheduled: bool  # spec.nodeName is set
    ended: bool  # known gone, by the kubelet's word (plan/seen.py)
    ready: bool
    ip: str
    server: str  # annotation poolfleet.dev/server
    directive: Mapping[str, Any] = field(
        default_factory=dict
    )  # annotation, MAC verified; empty if absent or not to be believed
    raw_directive: str | None = None  # annotation as it stands, for the JSON patch's `test`
    pool: str = ""  # "<namespace>/<name>" of its PgPool, by its label
    node: str = ""  # spec.nodeName
    ready_since: float | None = None  # since when it is Ready; None: it is not
    leaving_since: float | None = None  # when it was deleted; None: it was not, or that is not known
    turn: int = 0  # annotation poolfleet.dev/turn of its template: which roles it was made for
    deletion_cost: int = 0  # annotation: which pod a scale-down takes first, the cheapest
    state: AgentState | None = None  # newest answer of its agent, MAC verified; None while it cannot be read


@dataclass(frozen=True, slots=True)
class Sessions:
    """What pg_stat_activity showed to a role that sees everything: client backends, sorted by who accounts for them."""

    at: float  # when the reading began
    pools: int  # sessions of roles that pools log in as
    orphans: Mapping[str, int]  # role of a pool -> its sessions that no agent accounts for, twice, seconds apart
    others: int  # sessions of everybody else, the operator's own left out
    quiet_since: float | None = (
        None  # the first of the looks, up to this one, that showed no orphan; None: this one does
    )
