"""PgBouncer's peers: by its peer_id a query cancel that reached the wrong pod finds the right one. Pure.

The ledger leases an id to a pod for as long as the pod has entries, so never to two that may run (design section 5).
"""

from collections.abc import Container

from poolfleet.api.wire import MAX_PEER
from poolfleet.plan.world import Ledger, World


def peers(world: World, ledger: Ledger, pool: str) -> dict[str, str]:
    """peer_id -> IP of the pods of `pool` that may run a query, those on their way out included."""
    leased = {entry.pod: entry.peer for entry in ledger.of_pool(pool) if entry.peer}
    known = {leased[pod.uid]: pod.ip for pod in world.pods if pod.uid in leased and pod.ip and not pod.ended}
    return {str(peer): known[peer] for peer in sorted(known)}


def unused(used: Container[int], revision: int) -> int:
    """An id that is not in `used`, counted on with the ledger's `revision`: so one comes back as late as can be."""
    peer = revision % MAX_PEER + 1
    while peer in used:
        peer = peer % MAX_PEER + 1
    return peer
