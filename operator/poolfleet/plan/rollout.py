"""When pods are made anew, and with which images: an upgrade of the operator alone rolls no pod (design section 4).

The Deployment carries the annotation `names.ROLLED`: what its pod template was last made of. Images and chart settings
are taken from there, not from the running operator, until something rolls the fleet anyway.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from poolfleet.plan.model import Settings

TEMPLATE_REVISION: Final = 1
"""Revision of the pod template that objects/pod.py builds. Raised when the template itself changes."""

SUPPORTED_REVISIONS: Final = (1,)
"""Revisions that objects/pod.py can still build; a fleet of another one is rolled by an operator upgrade."""

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
) -> Rolled:
    """What the pod template is to be made of now.

    `previous` is the live Deployment's record (None: no Deployment, or its record is lost), `inputs` the hash of the
    spec's share, in which `spec.pgbouncer.image` counts; `restarted_at` the live template's annotation RESTARTED_AT,
    "" if absent; `pgbouncer_image` is spec.pgbouncer.image; `immediately` is agentUpdate Immediately.
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
    if restarted_at != previous.restarted_at:
        # An annotation that went away (kubectl rollout undo) is noted, but is no wish for new images.
        return current if restarted_at else replace(previous, restarted_at="")
    return previous


def outdated(rolled: Rolled, settings: Settings) -> bool:
    """Whether the fleet runs another agent, or another revision of the pod template, than this operator would roll."""
    return rolled.agent_image != settings.agent_image or rolled.revision != TEMPLATE_REVISION
