"""Clients that lost their connection because a drain's time was over: from an agent's last words to an event."""

from typing import Final

from poolfleet.controller import metrics
from poolfleet.plan.poolview import Cut

REMEMBERED: Final = 1000  # pods, so that none is told twice


class Cuts:
    """What the pods of each PgPool have cut off. An agent says it for a moment only, until the kubelet stops it: so it
    is taken down when it is said, and told with the next status."""

    def __init__(self) -> None:
        self._seen: dict[str, None] = {}  # UIDs of pods, oldest first
        self._untold: dict[tuple[str, str], dict[str, Cut]] = {}  # namespace and pool -> by the pod's UID

    def seen(self, namespace: str, pool: str, uid: str, cut: Cut) -> None:
        """A pod of that PgPool has cut off clients. Only its first word counts."""
        if uid in self._seen or cut.clients <= 0:
            return
        self._seen[uid] = None
        while len(self._seen) > REMEMBERED:
            del self._seen[next(iter(self._seen))]
        self._untold.setdefault((namespace, pool), {})[uid] = cut
        metrics.CLIENTS_CUT.labels(namespace, pool).inc(cut.clients)

    def of(self, namespace: str, pool: str) -> tuple[Cut, ...]:
        """What is to be told of that PgPool."""
        return tuple(self._untold.get((namespace, pool), {}).values())

    def forget(self, namespace: str, pool: str) -> None:
        """The PgPool is gone."""
        self._untold.pop((namespace, pool), None)

    def told(self, namespace: str, pool: str, cuts: tuple[Cut, ...]) -> None:
        """These were told."""
        left = {uid: cut for uid, cut in self._untold.pop((namespace, pool), {}).items() if cut not in cuts}
        if left:
            self._untold[namespace, pool] = left
