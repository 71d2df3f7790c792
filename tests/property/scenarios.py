"""The shortest runs that break a ledger with one rule left out, by hand; the numbers are those of facts/ledger.md.

Each takes the switches of its agents and raises AssertionError where the promise breaks. With every rule in place all
of them pass; tests/property/test_bites.py leaves the rules out one by one.
"""

from __future__ import annotations

from dataclasses import replace

from tests.property.ledger_model import GRACE, ModelPod, Switches
from tests.property.ledger_noise import Run
from tests.property.ledger_operators import Operator

POOL = "ns/p0"


class Stage(Run):
    """A run whose events are called one by one; the promise is checked after each round."""

    def pod(self, pool: str = POOL) -> ModelPod:
        return self.world.birth(pool)

    def plan(self, operator: Operator | None = None, *, tell: bool = True) -> Operator:
        """One step of an operator that has just looked at everything."""
        operator = operator or self.operators[0]
        operator.observe()
        assert operator.write()
        while tell and operator.pending:
            operator.tell(fast_lane=False)
        self.world.check()
        return operator

    def obey(self, *pods: ModelPod, load: bool = True) -> None:
        """The kubelet delivers, the agents accept, load and count."""
        world = self.world
        for pod in pods:
            world.deliver(pod)
            world.accept(pod, pod.delivered)
            world.start(pod)
            if load:
                world.load(pod)
            world.sample(pod)
            world.sample(pod)
        world.check()

    def rounds(self, count: int, *pods: ModelPod, seconds: float = 1.0, operator: Operator | None = None) -> None:
        """Everything in order for a while; the pods shed what they shall."""
        for _ in range(count):
            self.plan(operator)
            self.obey(*pods)
            for pod in pods:
                self.world.shed(pod)
            self.world.tick(seconds)
            self.world.check()

    def busy(self, *pods: ModelPod) -> None:
        """All that may be opened is open, and clients wait."""
        for pod in pods:
            self.world.fill(pod)
            pod.demand = {name: (limit, limit + 50, True) for name, limit in pod.loaded.items()}
        self.world.check()


def up(stage: Stage, count: int) -> list[ModelPod]:
    """Pods of one pool that have their shares."""
    pods = [stage.pod() for _ in range(count)]
    stage.rounds(12, *pods)
    return pods


def terminating(switches: Switches) -> None:
    """A pod drains while its clients still work; its successor starts."""
    stage = Stage(10, switches=switches)
    old, other = up(stage, 2)
    stage.busy(old, other)
    old.terminating = True
    new = stage.pod()
    stage.rounds(8, new, other)
    stage.busy(new, other)


def unseen_shrink(switches: Switches) -> None:
    """3: a raise is on its way when the shrink is ordered; what the pod holds meanwhile is no proof of the shrink."""
    stage = Stage(12, switches=switches)
    slow, other = up(stage, 2)
    stage.world.end(other)
    stage.plan()
    stage.world.tick(1.0)
    stage.plan()
    stage.world.deliver(slow)  # the raise lies in the kubelet's file
    new = stage.pod()
    for _ in range(8):
        stage.plan()
        stage.obey(new)
        stage.world.tick(1.0)
    stage.busy(new)
    stage.world.accept(slow, slow.delivered)
    stage.world.load(slow)
    stage.world.check()


def restarted_agent(switches: Switches) -> None:
    """4: a shrink came by POST and was acknowledged; the agent restarts while the kubelet's file is older."""
    stage = Stage(12, switches=switches)
    (pod,) = up(stage, 1)
    new = stage.pod()
    for _ in range(8):
        stage.operators[0].observe()
        stage.operators[0].write()
        while stage.operators[0].pending:
            stage.operators[0].tell()
            uid, message = stage.world.network.pop()
            stage.world.accept(stage.world.pods[uid], message)
        for each in (pod, new):
            stage.world.start(each)
            stage.world.load(each)
            stage.world.sample(each)
            stage.world.sample(each)
        stage.world.tick(1.0)
    assert pod.delivered["rev"] < pod.rev
    stage.busy(new)
    stage.world.restart_agent(pod)
    stage.world.accept(pod, pod.delivered)
    stage.world.load(pod)
    stage.world.check()


def late_message(switches: Switches) -> None:
    """Two lanes are never equally fast: an older directive arrives after a newer one."""
    stage = Stage(12, switches=switches)
    (pod,) = up(stage, 1)
    late = pod.annotation
    new = stage.pod()
    stage.rounds(8, pod, new)
    stage.busy(new)
    stage.world.accept(pod, late)
    stage.world.load(pod)
    stage.world.check()


def another_pods_directive(switches: Switches) -> None:
    """6: a POST for a pod that is gone reaches its successor on the same address."""
    stage = Stage(12, switches=switches)
    gone, other = up(stage, 2)
    message = {**gone.annotation, "grant": {"a": 9}, "rev": 99}
    stage.world.end(gone)
    new = stage.pod()
    stage.rounds(8, new, other)
    stage.busy(new, other)
    stage.world.accept(new, message)
    stage.world.load(new)
    stage.world.check()


def another_pods_answer(switches: Switches) -> None:
    """6: the answer of an idle pod is taken for that of one that shall shrink."""
    stage = Stage(12, switches=switches)
    world, operator = stage.world, stage.operators[0]
    (big,) = up(stage, 1)
    stage.busy(big)
    new = stage.pod()
    stage.rounds(9, new)
    answer = world.state(new)
    assert answer is not None
    operator.hear(big.uid, replace(answer, rev=world.ledger.revision))
    assert operator.write()
    world.tick(1.0)
    stage.rounds(2, new)
    stage.busy(new)


def resplit(switches: Switches) -> None:
    """1: connections move between two databases of one pod."""
    stage = Stage(9, switches=switches)
    world = stage.world
    world.wishes[POOL] = replace(world.wishes[POOL], databases={"a": 6, "b": 1})
    (pod,) = up(stage, 1)
    stage.busy(pod)
    world.wishes[POOL] = replace(world.wishes[POOL], databases={"a": 1, "b": 6})
    for _ in range(4):
        stage.plan()
        stage.obey(pod)
        world.tick(1.0)
        world.fill(pod)
        world.check()


def one_look(switches: Switches) -> None:
    """One sample misses a connection that is on its way in; the next one does not."""
    stage = Stage(12, switches=switches)
    (pod,) = up(stage, 1)
    stage.busy(pod)
    new = stage.pod()
    stage.rounds(9, new)
    stage.world.deliver(pod)
    stage.world.accept(pod, pod.delivered)
    stage.world.load(pod)
    pod.missed = 0
    stage.world.sample(pod, missed=11)
    for _ in range(4):
        stage.plan()
        stage.obey(new)
        stage.world.tick(0.7)
    stage.busy(new)


def not_loaded(switches: Switches) -> None:
    """The shrink is accepted and nothing is held, but PgBouncer still has the larger limit."""
    stage = Stage(12, switches=switches)
    (pod,) = up(stage, 1)
    new = stage.pod()
    for _ in range(8):
        stage.plan()
        stage.obey(pod, load=False)
        stage.obey(new)
        stage.world.tick(1.0)
    stage.busy(new)
    stage.world.fill(pod)
    stage.world.check()


def killed(switches: Switches) -> None:
    """5: what a killed PgBouncer held is open for a moment longer than it."""
    stage = Stage(12, switches=switches)
    pod, other = up(stage, 2)
    stage.busy(pod, other)
    stage.world.end(pod)
    stage.plan()
    stage.world.tick(0.1)
    stage.plan()
    stage.obey(other)
    stage.busy(other)


def restarted_pgbouncer(switches: Switches) -> None:
    """5: PgBouncer is killed and started again by the kubelet, which asks nobody."""
    stage = Stage(12, switches=switches)
    pod, other = up(stage, 2)
    stage.busy(pod, other)
    stage.world.crash(pod)
    stage.world.start(pod)
    stage.world.fill(pod)
    stage.world.check()
    if pod.cold and list(pod.loaded.values()) != [1]:
        raise AssertionError(f"{pod.loaded} beside the backends of its predecessor")


def starving_surge(switches: Switches) -> None:
    """19: sessions that nobody gives back hold everything; a pod comes and must be able to start."""
    stage = Stage(12, switches=switches)
    pods = up(stage, 2)
    stage.busy(*pods)
    new = stage.pod()
    for _ in range(20):
        stage.plan()
        stage.obey(*pods, new)
        stage.world.tick(1.0)
    assert new.loaded.get("a", 0) >= 1, "the surge pod never gets its first grant"


def _with_lost_backends(switches: Switches) -> tuple[Stage, ModelPod]:
    """A pod of 3, and 3 backends of its last PgBouncer that PostgreSQL shows and nobody counts."""
    stage = Stage(20, switches=switches)
    (pod,) = up(stage, 1)
    stage.world.set_budget(4, 0)
    stage.rounds(8, pod)
    stage.busy(pod)
    stage.world.crash(pod, silently=True)
    stage.world.tick(11.0)
    stage.world.start(pod)
    for _ in range(2):
        stage.operators[0].read_sessions()
        stage.world.tick(5.0)
    return stage, pod


def unaccounted(switches: Switches) -> None:
    """10: backends that no PgBouncer counts are not free; Operator.write asserts it."""
    stage, pod = _with_lost_backends(switches)
    stage.world.set_budget(6, 0)
    stage.rounds(4, pod)


def unaccounted_beside_a_newcomer(switches: Switches) -> None:
    """10: the same while pods that have accepted nothing yet answer that they hold nothing: they explain none."""
    stage, pod = _with_lost_backends(switches)
    stage.world.set_budget(7, 0)
    stage.pod()
    stage.pod()
    stage.rounds(4, pod)


def ghost(switches: Switches) -> None:
    """7: a pod was deleted by force and works on; nobody can ask it."""
    stage = Stage(12, switches=switches)
    gone, other = up(stage, 2)
    stage.busy(gone, other)
    gone.vanished = gone.cut_off = True
    for _ in range(5):
        stage.rounds(4, other)
        stage.operators[0].read_sessions()
    stage.busy(other)
    assert not stage.world.exceptions


def flapping_ghost(switches: Switches) -> None:
    """7: it answers for longer than the grace, and then for once does not."""
    stage = Stage(12, switches=switches)
    gone, other = up(stage, 2)
    stage.busy(gone, other)
    gone.vanished = True
    stage.rounds(int(GRACE) + 20, other)
    gone.cut_off = True
    stage.rounds(3, other)
    stage.busy(other)
    assert not stage.world.exceptions


def lost_ledger(switches: Switches) -> None:
    """8: the record is gone; a pod that was deleted by force is known to nobody."""
    stage = Stage(12, switches=switches)
    gone, other = up(stage, 2)
    stage.busy(gone, other)
    gone.vanished = gone.cut_off = True
    stage.world.lose_ledger()
    stage.rounds(5, other)
    stage.busy(other)
    assert not stage.world.exceptions


def restored_ledger(switches: Switches) -> None:
    """8: an older ledger is restored; what it says of a pod that has shrunk since is not to be told again."""
    stage = Stage(12, switches=switches)
    (pod,) = up(stage, 1)
    old = stage.world.ledger
    new = stage.pod()
    stage.rounds(8, pod, new)
    stage.busy(new)
    stage.world.lose_ledger(to=old)
    for _ in range(int(GRACE) + 20):
        stage.rounds(1, pod, new)
        stage.busy(pod, new)
    assert stage.world.ledger.bound == 11


def stale_raise_after_loss(switches: Switches) -> None:
    """8 (c, d): a leader raised a pod in the ledger and hung; the ledger is lost and rebuilt; then it tells the pod."""
    stage = Stage(10, operators=2, switches=switches)
    world, (stale, leader) = stage.world, stage.operators
    big, gone = up(stage, 2)
    stage.busy(big, gone)
    world.end(gone)
    new = stage.pod()
    stage.plan(stale, tell=False)
    world.tick(1.0)
    stage.plan(stale, tell=False)
    late = next(item for item in stale.pending if item[0].uid == big.uid)
    stale.pending = [item for item in stale.pending if item[0].uid == new.uid]
    stale.tell(fast_lane=False)
    stage.obey(new)
    world.lose_ledger()
    leader.restart()
    assert leader.write()
    stale.pending = [late]
    stale.tell(fast_lane=False)
    stage.obey(big)
    stage.busy(big, new)  # sessions that big does not give back
    for _ in range(int(GRACE) + 30):
        stage.plan(leader)
        stage.obey(big, new)
        world.fill(new)
        world.tick(1.0)
        world.check()
    for _ in range(30):  # now it does
        stage.rounds(1, big, new, operator=leader)
        stage.busy(new)
    assert world.ledger.rebuilt is None, "the rebuild never ends"
    assert new.loaded["a"] > 1


def stale_first_grant_after_loss(switches: Switches) -> None:
    """8 (c): the same with a first grant, to a pod that then is on its way out."""
    stage = Stage(6, operators=2, switches=switches)
    world, (stale, leader) = stage.world, stage.operators
    (pod,) = up(stage, 1)
    world.set_budget(9, 0)
    new = stage.pod()
    stage.plan(stale, tell=False)
    late = next(item for item in stale.pending if item[0].uid == new.uid)
    world.lose_ledger()
    leader.restart()
    assert leader.write()
    stale.pending = [late]
    stale.tell(fast_lane=False)
    stage.obey(new)
    stage.busy(new)
    new.terminating = True
    for _ in range(int(GRACE) + 20):
        stage.rounds(1, pod, operator=leader)
        stage.busy(pod)
    assert world.ledger.of_pod(new.uid), "nobody counts it"


def cut(switches: Switches) -> None:
    """9: after a cut nothing rises until it fits."""
    stage = Stage(20, switches=switches)
    pods = up(stage, 3)
    stage.busy(*pods)
    stage.world.set_budget(8, 0)
    last = stage.world.ledger.bound
    for _ in range(30):
        stage.rounds(1, *pods)
        stage.busy(*pods)
        assert stage.world.ledger.bound <= last
        last = max(stage.world.ledger.bound, 8)
    assert stage.world.ledger.bound == 7
