"""Which idle clients go to other pods: off unless spec.clientRebalance is set. Pure.

Who stays connected to the pods that were there first leaves new ones without work. So a pod with clearly more clients
than the mean is told to close idle ones above it (wire.Move); they connect anew, by the Service, to any pod. How many
at once is the agent's to keep: it sees them.
"""

from typing import Final

from poolfleet.api.wire import Move
from poolfleet.plan.model import Pod
from poolfleet.plan.replicas import clients_of
from poolfleet.plan.world import World

CROWDED: Final = 1.3  # times the mean: from here on clients are moved …
ENOUGH: Final = 1.1  # … until no more than this is left, so that chance alone moves nobody
LEAST: Final = 5  # clients above the mean that are worth it
DRIFT: Final = 0.25  # part by which the aim may be off before the pod is told another one


def move(world: World, pod: Pod) -> Move | None:
    """What `pod` shall be told of its clients, given what its directive says now. None: it keeps them."""
    wish = world.wish_of(pod.pool)
    if wish is None or wish.move is None or not pod.ready or not world.stays(pod):
        return None
    ready = (each for each in world.members(wish.pool) if each.ready)
    counts = {each.uid: count for each in ready if (count := clients_of(each)) is not None}
    if len(counts) < 2 or pod.uid not in counts:
        return None
    mean = sum(counts.values()) / len(counts)
    told = pod.directive.get("move")
    mine, aim = counts[pod.uid], round(ENOUGH * mean)
    if mine < (ENOUGH if told else CROWDED) * mean or mine - mean < LEAST:
        return None
    idle, percent = wish.move
    if told and abs(told["above"] - aim) <= DRIFT * aim:
        aim = told["above"]
    return Move(aim, idle, percent)
