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


@dataclass(frozen=True, slots=True)
class Pod:
    """A pool's pod as the API server last showed it."""

    uid: str
    name: str
    namespace: str
    created: float  # metadata.creationTimestamp
    terminating: bool  # has a deletionTimestamp
    scheduled: bool  # spec.nodeName is set
    ended: bool  # known gone: the kubelet wrote `terminated` for pgbouncer and will not start it again
    ready: bool
    ip: str
    server: str  # annotation poolfleet.dev/server
    directive: Mapping[str, Any] = field(
        default_factory=dict
    )  # annotation, MAC verified; empty if absent or not to be believed
    raw_directive: str | None = None  # annotation as it stands, for the JSON patch's `test`
    state: AgentState | None = None  # newest answer of its agent, MAC verified; None while it cannot be read
