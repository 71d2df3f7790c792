"""When pods are made anew, and with which images: an upgrade of the operator alone rolls no pod (design section 4).

The Deployment carries the annotation `names.ROLLED`: what its pod template was last made of. Images and chart settings
are taken from there, not from the running operator, until something rolls the fleet anyway.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from poolfleet.plan.model import Pod, Settings

SURGE_PATIENCE: Final = 30.0
"""Seconds that a pod which a rollout adds may wait for its first grant, until the rollout goes on without such pods."""

TEMPLATE_REVISION: Final = 3
"""Revision of the pod template that objects/pod.py builds, and of what its agent can do. Raised when the template
changes, or when a pool may want what older agents cannot."""

SUPPORTED_REVISIONS: Final = (1, 2, 3)
"""Revisions that objects/pod.py can still build; a fleet of another one is rolled by an operator upgrade."""

FILES_AND_HOLDS: Final = 3
"""The first revision whose agents hand certificates to PgBouncer, and hold databases. The template is that of 2."""

RESTARTED_AT: Final = "kubectl.kubernetes.io/restartedAt"
"""What `kubectl rollout restart` writes into the live pod template. It is never applied, so never undone."""


@dataclass(frozen=True, slots=True)
class Rolled:
    """What a fleet's pod template was made of, besides the spec."""

    inputs: str  # hash of what the spec says and a reload cannot do
    agent_image: str
    pgbouncer_image: str
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    run_as_user: int | None = None
    revision: int = TEMPLATE_REVISION
    restarted_at: str = ""  # the newest `kubectl rollout restart` that was answered with current images

    def to_annotation(self) -> str:
        """The value of the annotation names.ROLLED."""
        record = {
            "inputs": self.inputs,
            "agentImage": self.agent_image,
            "pgbouncerImage": self.pgbouncer_image,
            "imagePullPolicy": self.image_pull_policy,
            "imagePullSecrets": list(self.image_pull_secrets),
            "runAsUser": self.run_as_user,
            "revision": self.revision,
            "restartedAt": self.restarted_at,
        }
        return json.dumps(record, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_annotation(cls, text: str | None) -> "Rolled | None":
        """Read the annotation; None if it is absent or not what to_annotation writes."""
        try:
            record = json.loads(text or "")
            user = record["runAsUser"]
            return cls(
                inputs=str(record["inputs"]),
                agent_image=str(record["agentImage"]),
                pgbouncer_image=str(record["pgbouncerImage"]),
                image_pull_policy=str(record["imagePullPolicy"]),
                image_pull_secrets=tuple(str(name) for name in record["imagePullSecrets"]),
                run_as_user=None if user is None else int(user),
                revision=int(record["revision"]),
                restarted_at=str(record["restartedAt"]),
            )
        except (ValueError, KeyError, TypeError):
            return None


def inputs_hash(inputs: Mapping[str, Any]) -> str:
    """Hash of JSON values that only a new pod can take up: 16 hex digits."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def decide(
    previous: Rolled | None,
    settings: Settings,
    *,
    inputs: str,
    restarted_at: str,
    pgbouncer_image: str | None,
    immediately: bool,
    least_revision: int = 0,
) -> Rolled:
    """What the pod template is to be made of now.

    `previous` is the live Deployment's record (None: no Deployment, or its record is lost), `inputs` the hash of the
    spec's share, in which `spec.pgbouncer.image` counts; `restarted_at` the live template's annotation RESTARTED_AT,
    "" if absent; `pgbouncer_image` is spec.pgbouncer.image; `immediately` is agentUpdate Immediately; agents of a
    revision below `least_revision` cannot do what the specs ask for.
    """
    current = Rolled(
        inputs=inputs,
        agent_image=settings.agent_image,
        pgbouncer_image=pgbouncer_image or settings.pgbouncer_image,
        image_pull_policy=settings.image_pull_policy,
        image_pull_secrets=settings.image_pull_secrets,
        run_as_user=settings.run_as_user,
        restarted_at=restarted_at,
    )
    if previous is None or immediately or previous.inputs != inputs or previous.revision not in SUPPORTED_REVISIONS:
        return current
    if previous.revision < least_revision:
        return current
    if restarted_at != previous.restarted_at:
        # An annotation that went away (kubectl rollout undo) is noted, but is no wish for new images.
        return current if restarted_at else replace(previous, restarted_at="")
    return previous


def outdated(rolled: Rolled, settings: Settings) -> bool:
    """Whether the fleet runs another agent, or another revision of the pod template, than this operator would roll."""
    return rolled.agent_image != settings.agent_image or rolled.revision != TEMPLATE_REVISION


@dataclass(frozen=True, slots=True)
class Surge:
    """How a rollout replaces pods."""

    more: bool  # True: first one pod more, then an old one less; False: first one less
    again: float | None = None  # seconds until this has to be decided anew, if nothing happens


def surge(deployment: Mapping[str, Any] | None, pods: Sequence[Pod], now: float) -> Surge:
    """Whether the rollout of `deployment` (the live one; None: there is none) may add a pod (design section 3).

    Not if a pod that it added has a node and waits for its first grant, a directive, for SURGE_PATIENCE: there are no
    connections for one more pod, and there will be when an old one has ended. So it stays until the rollout is over,
    or every rollout would add and remove that pod again and again.
    """
    if deployment is None or not _rolling(deployment):
        return Surge(more=True)
    if _max_surge(deployment) == 0:
        return Surge(more=False)
    status = deployment.get("status") or {}
    if int(status.get("replicas", 0)) <= int(status.get("updatedReplicas", 0)):
        return Surge(more=True)  # no old pod is left that could make room
    waiting = [
        pod.created for pod in pods if pod.scheduled and not pod.raw_directive and not pod.terminating and not pod.ended
    ]
    if not waiting:
        return Surge(more=True)
    left = min(waiting) + SURGE_PATIENCE - now
    return Surge(more=left > 0, again=left if left > 0 else None)


def _rolling(deployment: Mapping[str, Any]) -> bool:
    """Whether pods are being replaced, or may be: what the Deployment's controller has not seen yet counts, too."""
    status = deployment.get("status") or {}
    wanted = int((deployment.get("spec") or {}).get("replicas", 1))
    counts = [int(status.get(name, 0)) for name in ("updatedReplicas", "replicas", "availableReplicas")]
    seen = int(status.get("observedGeneration", 0)) >= int(deployment["metadata"].get("generation", 0))
    return not seen or any(count != wanted for count in counts)


def _max_surge(deployment: Mapping[str, Any]) -> object:
    strategy = (deployment.get("spec") or {}).get("strategy") or {}
    return (strategy.get("rollingUpdate") or {}).get("maxSurge")
