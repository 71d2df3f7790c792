"""How many pods a fleet shall have, from the clients and the CPU that were seen (design section 5). Pure.

    asked = ceil(the larger of clients / target_clients and cores / target_cpu)

Waiting clients are clients and nothing more: more pods do not add server connections. The two windows are Knative's (a
stable one of 60 s, a panic window of 6 s), tolerance, stabilisation and what counts for a pod that cannot be read are
those of the HorizontalPodAutoscaler. What the load is taken for:

    always    the mean of 60 s; and the least of 6 s: a rise that lasted for 6 s is believed without waiting for a
              minute's mean to reach it. The mean of 6 s would not do: one second of ten times the load moves it, too
    in panic  the mean of 6 s as well, and the least of 1.75 s: at one sample a second that is three samples in a row,
              and a step is answered 2 s after it was first seen

The larger one counts; a window says nothing before the samples reach back to its beginning. Panic begins when one of
these asks for at least 1.5 times the pods that are ready: half as much again as the fleet is meant for is overload
already (for a fleet of two it is the next pod), and a pod too many costs 40 MiB, one too few errors. Knative waits for
twice as many; its pods cost more. Panic ends 60 s after it was last asked for, and nothing is given up meanwhile.

More pods come when what is asked for is more than 10 % above what there is, fewer only down to the most that was asked
for at any time in the stabilisation window. What goes to m pods was within m for that long, and comes back only above
1.1 m. So a load whose highest value is at most 1.1 times its lowest never adds pods twice, nor after giving one up.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

from poolfleet.api.conditions import Reason

STABLE_SECONDS: Final = 60.0
LASTING_SECONDS: Final = 6.0  # Knative's panic window, a tenth of the stable one
SUDDEN_SECONDS: Final = 1.75  # not 2, so that three samples one second apart are enough when one of them is a bit late
WINDOWS: Final = (  # seconds, mean or least, always or only in panic
    (STABLE_SECONDS, True, True),
    (LASTING_SECONDS, False, True),
    (LASTING_SECONDS, True, False),
    (SUDDEN_SECONDS, False, False),
)
PANIC: Final = 1.5  # times what the ready pods are for
TOLERANCE: Final = 0.1
SPACING_SECONDS: Final = 0.5  # samples that come sooner are left out: at most 121 are kept
GAP_SECONDS: Final = 30.0  # without a sample for longer, the past says nothing about now


@dataclass(frozen=True, slots=True)
class Policy:
    """What the user asks for. `target_cpu` in cores, `stabilization` in seconds; both targets are above 0."""

    min_replicas: int
    max_replicas: int
    target_clients: int
    target_cpu: float
    stabilization: float


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen of the fleet at one moment."""

    at: float  # seconds since the epoch
    clients: int  # Σ connected and waiting, of the ready pods that answer
    answering: int  # ready pods whose agent answers
    silent: int  # ready pods whose agent cannot be read
    cpu: float | None  # Σ cores that PgBouncer uses, of the pods that say it; None: none does


@dataclass(frozen=True, slots=True)
class Decision:
    """How many replicas there shall be, and why.

    `reason` and `message` say how the present number came about, `limited` and `limited_message` what stands between
    it and the number that the load asks for. Both texts stay as they are until replicas, limits or targets change.
    """

    replicas: int
    mode: Literal["Stable", "Panic"]
    reason: str
    message: str
    limited: str
    limited_message: str


@dataclass(frozen=True, slots=True)
class State:
    """What `step` needs of the past; times are milliseconds, so that no time is rounded differently from another."""

    last: int  # the last sample's time; the beginning's, before there is one
    wish: int  # what is asked for, before any limit
    asked: tuple[tuple[int, int], ...]  # (time, replicas): the most asked for since; falling numbers
    times: tuple[int, ...] = ()  # of the samples in the stable window and of the one in force when it began
    clients: tuple[int, ...] = ()
    silent: tuple[int, ...] = ()
    cpu: tuple[float | None, ...] = ()
    panicked: int | None = None  # when panic was last asked for
    said_for: tuple[object, ...] = ()  # what `said` depends on
    said: Decision | None = None


class Load(NamedTuple):
    """What one window says: `value` of `unit`, which ask for `need` replicas, not rounded up yet."""

    need: float
    value: float
    unit: Literal["clients", "cores"]
    window: str


def begin(replicas: int, now: float) -> State:
    """The state after a start of the operator, with `replicas` wanted: none is given up before the stabilisation
    window has passed, none is added before a window is full (1.75 s in panic, else 6 s)."""
    return State(_ms(now), replicas, ((_ms(now), replicas),))


def step(state: State, sample: Sample, policy: Policy, replicas: int, fed: int | None) -> tuple[State, Decision]:
    """Take in one sample and decide.

    `replicas` is the number wanted now, `fed` the most replicas that the budget can feed (None: not known, no limit).

    The limits, last one first: never more than `fed`, but never fewer than there are because of it, for a smaller
    budget is the ledger's business: it refuses rises only; not above maxReplicas; not below minReplicas, unless the
    budget cannot feed them (BudgetSatisfied says so as well). minReplicas and maxReplicas act at once. What is asked
    for is remembered beyond the limits: one that is lifted gives what was needed in the stabilisation window.

    A silent pod counts as no load where pods are added, and as a full one where they are given up. While no pod
    answers nothing is learned, and the number stays. After more than 30 s without a sample, or when the clock went
    back, everything begins anew with `replicas`.
    """
    if sample.answering:
        state = _record(state, sample, replicas)
        state = _ask(state, sample, policy, replicas)
    bounded = min(max(state.wish, policy.min_replicas), policy.max_replicas)
    result = bounded if fed is None else min(bounded, max(fed, replicas))
    if fed is not None and bounded > fed:
        limited = Reason.BUDGET_LIMITED
    elif state.wish > policy.max_replicas:
        limited = Reason.TOO_MANY_REPLICAS
    elif state.wish < policy.min_replicas:
        limited = Reason.TOO_FEW_REPLICAS
    else:
        limited = Reason.WITHIN_LIMITS
    said_for: tuple[object, ...] = (result, limited, fed if limited == Reason.BUDGET_LIMITED else None, policy)
    decision = state.said
    if decision is None or result != replicas or said_for != state.said_for:
        seen = result != replicas or _since(state, STABLE_SECONDS) is not None
        decision = _say(state, sample, policy, replicas, fed, result, limited, seen)
        said_for = said_for if seen else ()  # to be said anew when there are numbers to say it with
    decision = replace(decision, mode="Stable" if state.panicked is None else "Panic")
    return replace(state, said_for=said_for, said=decision), decision


def _record(state: State, sample: Sample, replicas: int) -> State:
    """The state with the sample in it; a new one where the clock or the samples jumped."""
    now = _ms(sample.at)
    if not 0 <= now - state.last <= _ms(GAP_SECONDS):
        anew = begin(replicas, sample.at)
        state = replace(anew, said_for=state.said_for, said=state.said)  # what was decided is no news by this
    elif state.times and now - state.last < _ms(SPACING_SECONDS):
        return state
    keep = max(0, bisect_right(state.times, now - _ms(STABLE_SECONDS)) - 1)
    return replace(
        state,
        last=now,
        times=(*state.times[keep:], now),
        clients=(*state.clients[keep:], sample.clients),
        silent=(*state.silent[keep:], sample.silent),
        cpu=(*state.cpu[keep:], sample.cpu),
    )


def _ask(state: State, sample: Sample, policy: Policy, replicas: int) -> State:
    """What is asked for now: more at once, fewer only as the stabilisation window allows."""
    now = _ms(sample.at)
    usual, sudden = _loads(state, policy, silent=False)
    if sudden and sudden.need >= PANIC * max(1, sample.answering + sample.silent):
        state = replace(state, panicked=now)
    elif state.panicked is not None and now - state.panicked >= _ms(STABLE_SECONDS):
        state = replace(state, panicked=None)
    panic = state.panicked is not None
    up = sudden if panic else usual
    down = _loads(state, policy, silent=True)[panic] if any(state.silent) else up

    wish = state.wish
    there = max(wish, replicas)  # with minReplicas above the wish, these pods are there as well
    if up and _above(up.need, there):
        wish = _replicas(up)
    elif up and _above(up.need, wish):
        wish = min(_replicas(up), there)
    recent = now - _ms(policy.stabilization)
    number = _replicas(down) if down else 1  # nothing is known to be asked for; `begin` has noted what there is
    asked = (*((at, most) for at, most in state.asked if at > recent and most > number), (now, number))
    if not panic and _since(state, STABLE_SECONDS) is not None:
        wish = min(wish, asked[0][1])
    return replace(state, wish=wish, asked=asked)


def _loads(state: State, policy: Policy, silent: bool) -> tuple[Load | None, Load | None]:
    """The largest that a full window says, outside of panic and in it; None while none is full. `silent`: pods that
    cannot be read count as full."""
    usual: Load | None = None
    found: Load | None = None
    for seconds, mean, always in WINDOWS:
        start = _since(state, seconds)
        if start is None:
            continue
        clients: Sequence[float] = state.clients[start:]
        said = state.cpu[start:]
        missing = state.silent[start:] if silent else ()
        if missing:
            clients = [value + n * policy.target_clients for value, n in zip(clients, missing, strict=True)]
            pairs = zip(said, missing, strict=True)
            cores: Sequence[float] = [value + n * policy.target_cpu for value, n in pairs if value is not None]
        else:
            cores = [value for value in said if value is not None]
        by_clients = _value(clients, mean)
        by_cores = _value(cores, mean) if cores else 0.0
        need, cpu_need = round(by_clients / policy.target_clients, 6), round(by_cores / policy.target_cpu, 6)
        name = f"{'mean' if mean else 'least'} of {math.ceil(seconds)} s"
        if found is None or need > found.need:
            found = Load(need, by_clients, "clients", name)
        if cpu_need > found.need:
            found = Load(cpu_need, by_cores, "cores", name)
        if always:
            usual = found
    return usual, found


def _value(values: Sequence[float], mean: bool) -> float:
    return sum(values) / len(values) if mean else min(values)


def _since(state: State, seconds: float) -> int | None:
    """Index of the sample that was in force `seconds` ago; None: the samples do not reach back so far."""
    index = bisect_right(state.times, state.last - _ms(seconds)) - 1
    return index if index >= 0 else None


def _say(
    state: State, sample: Sample, policy: Policy, replicas: int, fed: int | None, result: int, limited: str, seen: bool
) -> Decision:
    """The decision in words; `seen`: there is enough to say why."""
    wish, panic, up = state.wish, state.panicked is not None, result > replicas
    load = _loads(state, policy, silent=not up)[panic] if seen else None
    if load is None:
        why = f"{wish} as found"
    else:
        pods = f"{sample.answering} pod{'s' * (sample.answering != 1)}"
        if sample.silent:
            pods += f" and {sample.silent} silent, taken as {'empty' if up else 'full'}"
        value, target = f"{load.value:.0f}", f"{policy.target_clients}"
        if load.unit == "cores":
            value, target = f"{load.value:.2f}", f"{policy.target_cpu:g}"
        number = _replicas(load)
        why = f"{value} {load.unit} on {pods} ({load.window}) / {target} per replica = {number}"
        if number < wish:
            why += f", most of {policy.stabilization:g} s {wish}"
        elif number > wish:
            why += f", within {TOLERANCE:.0%} of {wish}"
    bounded = min(max(wish, policy.min_replicas), policy.max_replicas)
    bound = f"minReplicas {policy.min_replicas}, maxReplicas {policy.max_replicas}"
    if wish > policy.max_replicas:
        bound = f"maxReplicas {policy.max_replicas}"
        why += f", {bound}"
    elif wish < policy.min_replicas:
        bound = f"minReplicas {policy.min_replicas}"
        why += f", {bound}"
    if limited == Reason.BUDGET_LIMITED:
        bound = f"the budget feeds {fed}" + (f", {result} stay" if fed is not None and result > fed else "")
        why += f", {bound}"
    limits = {
        Reason.BUDGET_LIMITED: f"{bounded} replicas are wanted, {bound}",
        Reason.TOO_MANY_REPLICAS: f"{wish} replicas are asked for, {bound}",
        Reason.TOO_FEW_REPLICAS: f"{wish} would be enough, {bound}",
        Reason.WITHIN_LIMITS: f"what is asked for is within the limits: {bound}",
    }
    reason = Reason.SCALED_UP if up else Reason.SCALED_DOWN if result < replicas else Reason.AS_WISHED
    if result != replicas:
        why += f"; was {replicas}"
    return Decision(result, "Panic" if panic else "Stable", reason, why, limited, limits[limited])


def _replicas(load: Load) -> int:
    """Rounded up; a fleet has at least one pod."""
    return max(1, math.ceil(load.need))


def _above(need: float, replicas: int) -> bool:
    """More than `replicas` are for, beyond the tolerance."""
    return need > round(replicas * (1 + TOLERANCE), 6)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
