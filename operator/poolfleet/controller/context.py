"""What every reconciliation is handed: the edges of the program, and nothing else."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from poolfleet.controller.agents import Agents
from poolfleet.controller.cuts import Cuts
from poolfleet.controller.discoveries import Discoveries
from poolfleet.controller.nodes import Nodes
from poolfleet.controller.queue import KeyedQueue
from poolfleet.controller.roles import Roles
from poolfleet.controller.rotation_state import Rotations
from poolfleet.controller.secrets import Secrets
from poolfleet.controller.store import Store
from poolfleet.controller.tokens import Tokens
from poolfleet.kube.client import Kube
from poolfleet.kube.events import Recorder
from poolfleet.plan.autoscaling import Decision
from poolfleet.plan.model import Settings


@dataclass(frozen=True, slots=True)
class Key:
    """What the queue holds: one PgPool or one PgServer."""

    plural: str  # names.POOL_PLURAL | names.SERVER_PLURAL
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Annotating:
    """A directive that is being written into its pod's annotation."""

    rev: int
    text: str
    task: asyncio.Task[bool]  # whether it was written


@dataclass(frozen=True, slots=True)
class Context:
    """Handed to both reconcilers: `await reconcile(context, key) -> seconds until the next look, or None`."""

    kube: Kube  # writes, and the few reads that no watch serves
    store: Store  # what the watches have shown so far
    queue: KeyedQueue[Key]
    agents: Agents  # newest /state of each pod
    secrets: Secrets  # Secrets that users own
    nodes: Nodes  # whether a Node is off
    discoveries: Discoveries  # limits read from the servers: Discoveries(clock)
    roles: Roles  # CONNECTION LIMITs of the servers' roles
    recorder: Recorder  # events
    settings: Settings
    clock: Callable[[], float]  # seconds since the epoch
    leader_since: float  # clock() when this process became the leader
    decided: Callable[[str], Decision | None] = lambda uid: None  # a PgPool's UID -> what autoscaling decided last
    cuts: Cuts = field(default_factory=Cuts)  # clients that pods had to cut off
    tokens: Tokens = field(default_factory=Tokens)  # short-lived passwords of roles on the servers
    rotations: Rotations = field(default_factory=Rotations)  # how the rotations of roles stand
    annotating: dict[str, Annotating] = field(default_factory=dict)  # by the pod's UID
    numbers_moved: dict[str, float] = field(
        default_factory=dict
    )  # UID -> when the live numbers in its status last moved
