"""Autoscaling: one loop that looks at every PgPool with spec.autoscaling once a second, at what the agents said last.

A look is arithmetic over what is in memory: no request, no rendering. What to decide is plan/autoscaling.py's; only
when the number of pods, what limits it or its explanation changes, the PgPool is reconciled.
"""

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import Final

from poolfleet.api.pgpool import Autoscaling
from poolfleet.controller import logs
from poolfleet.controller.context import Context, Key
from poolfleet.controller.observe import elders_of, pods_of, states_of
from poolfleet.controller.store import Body
from poolfleet.kube.kinds import DEPLOYMENT, POOL, SERVER
from poolfleet.plan import replicas
from poolfleet.plan.autoscaling import Decision, State, begin, step
from poolfleet.plan.tenancy import line_of, server_name

PERIOD: Final = 1.0  # seconds between two looks

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Pool:
    state: State
    wanted: int  # pods, as last decided
    decision: Decision | None = None  # the newest; None: before the first look


class Autoscalers:
    """See the module. Losing it (another leader, a restart) costs no pod: `begin` gives up nothing at first."""

    def __init__(self) -> None:
        self._pools: dict[str, _Pool] = {}  # by the PgPool's UID

    def decision(self, uid: str) -> Decision | None:
        """The newest decision on the PgPool with this UID; None: there is none."""
        pool = self._pools.get(uid)
        return None if pool is None else pool.decision

    async def run(self, context: Context) -> None:
        """Look for ever."""
        while True:
            self.look(context)
            await asyncio.sleep(PERIOD)

    def look(self, context: Context) -> None:
        """Decide once for every PgPool that wants it; those that are paused keep what they have."""
        looked = set()
        for body in context.store.list(POOL.plural):
            wish = replicas.autoscaling(body)
            if wish is None or body["spec"].get("paused") or body["metadata"].get("deletionTimestamp"):
                continue
            looked.add(body["metadata"]["uid"])
            try:
                self._look_at(context, body, wish)
            except Exception:  # one pool's trouble must not end the others
                about = logs.about(POOL.plural, body["metadata"]["namespace"], body["metadata"]["name"])
                logger.exception("no decision on the number of pods", extra=about)
        self._pools = {uid: pool for uid, pool in self._pools.items() if uid in looked}

    def _look_at(self, context: Context, body: Body, wish: Autoscaling) -> None:
        metadata, store, now = body["metadata"], context.store, context.clock()
        namespace, name, uid = metadata["namespace"], metadata["name"], metadata["uid"]
        pool = self._pools.get(uid)
        if pool is None:
            deployments = (each for each in store.owned_by(uid, DEPLOYMENT.plural) if each["metadata"]["name"] == name)
            count = replicas.start(body, next(deployments, None))
            pool = self._pools[uid] = _Pool(begin(count, now), count)
        pods = pods_of(store, namespace, name, None, states_of(store, context.agents, namespace, name))
        fed = _fed(context, body, pool.wanted)
        if fed is not None and fed < pool.wanted:
            # The budget was cut. Pods that it cannot feed would keep it from ever being satisfied again.
            pool.wanted = max(fed, wish.min_replicas)
        pool.state, decision = step(pool.state, replicas.sample(pods, now), replicas.policy(wish), pool.wanted, fed)
        pool.wanted = decision.replicas
        if pool.decision is None or replace(pool.decision, mode=decision.mode) != decision:
            context.queue.add(Key(POOL.plural, namespace, name))
        pool.decision = decision


def _fed(context: Context, body: Body, wanted: int) -> int | None:
    """The most replicas that the budget can feed; None while that is not known."""
    server = context.store.get(SERVER.plural, *server_name(body))
    status = (server or {}).get("status") or {}
    if server is None or not isinstance(status.get("budget"), int):
        return None
    line, databases = line_of(body, server), len(body["spec"].get("databases") or ())
    if line.get("admitted") is not False:
        return replicas.fed(line.get("budget"), databases)
    # It asks for more than there is, and its line says only what it keeps meanwhile. It will be admitted when it asks
    # for no more than older pools leave.
    left = replicas.fed(status["budget"] - elders_of(context.store, body)[1], databases)
    return None if left is None else min(left, wanted)
