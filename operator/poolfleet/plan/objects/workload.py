"""The Deployment of the pool's pods, and its PodDisruptionBudget."""

from typing import Final

from poolfleet.api import names
from poolfleet.plan.objects.meta import Manifest, Owner, manifest, selector
from poolfleet.plan.rollout import Rolled

REVISION_HISTORY_LIMIT: Final = 3


def deployment(owner: Owner, *, replicas: int, template: Manifest, rolled: Rolled, surge: bool) -> Manifest:
    """Deployment x. A rollout makes one pod more at a time and never one less; without `surge`, where the budget has no
    connections for one more, one less and never one more."""
    rolling = {"maxSurge": 1, "maxUnavailable": 0} if surge else {"maxSurge": 0, "maxUnavailable": 1}
    return manifest(
        owner,
        "apps/v1",
        "Deployment",
        owner.name,
        annotations={names.ROLLED: rolled.to_annotation()},
        spec={
            "replicas": replicas,
            "revisionHistoryLimit": REVISION_HISTORY_LIMIT,
            "selector": {"matchLabels": selector(owner)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling},
            "template": template,
        },
    )


def disruption_budget(owner: Owner) -> Manifest:
    """PodDisruptionBudget x: a node drain takes one pod at a time, and is not held up by a pod that is not ready."""
    return manifest(
        owner,
        "policy/v1",
        "PodDisruptionBudget",
        owner.name,
        spec={
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": selector(owner)},
        },
    )
