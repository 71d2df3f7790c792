"""Pods that leave: clients of whatever style do not notice, those that cannot be saved see one error each."""

import itertools
from collections.abc import Callable, Iterator

import pytest

from poolfleet.api import names
from tests.e2e import kit, styles
from tests.e2e.guard import Guard, Moment, guarded

REPLICAS = 3
DRAIN = 12  # seconds, after the 5 that endpoints have to propagate
BUDGET = 24

Report = Callable[[str], None]


@pytest.fixture(scope="module")
def pool(kubectl: kit.Kubectl, target: kit.Target, namespace: str) -> Iterator[kit.Pool]:
    """Three pods that share 24 connections."""
    pool = kit.Pool(kubectl, namespace, "shop")
    server = {"host": target.login.host, "maxConnections": BUDGET + 3, "headroom": 0}
    pool.apply(target.spec(server=server, replicas=REPLICAS, drain={"timeoutSeconds": DRAIN}))
    pool.ready()
    await_settled(pool)
    yield pool


def await_settled(pool: kit.Pool, timeout: float = 90) -> None:
    """Wait until just the wished pods are there, all ready."""

    def settled() -> bool:
        pods = pool.pods(all=True)
        return len(pods) == REPLICAS == len(pool.pods()) and pool.status().get("readyReplicas") == REPLICAS

    kit.await_until(settled, timeout, f"{REPLICAS} pods and no other", interval=0.5)


def test_a_rolling_restart_under_load(
    kubectl: kit.Kubectl, target: kit.Target, clients: kit.Clients, pool: kit.Pool, report: Report
) -> None:
    before = set(pool.uids())
    login = target.through(pool)
    all_styles = (*styles.SAVABLE, styles.NAIVE)
    with (
        guarded(target, clients, pool, report, "a rolling restart") as guard,
        styles.at_work(clients, login, all_styles) as outcomes,
    ):
        kubectl.run("-n", pool.namespace, "rollout", "restart", f"deployment/{pool.name}")
        kit.await_until(lambda: not before & set(guard.pods.last.pods), 150, "the old pods are gone", interval=0.5)
        await_settled(pool)
    *savable, naive = outcomes
    for outcome in outcomes:
        report(f"a rolling restart of {REPLICAS} pods, {outcome}")
    for outcome in savable:
        assert outcome.errors == [], f"{outcome}: {outcome.errors[:5]}"
    # one error for each connection that was still there when its pod's time was over, and the next attempt works
    assert max(naive.errors_by_client.values(), default=0) <= 1, naive.errors
    assert_warm(guard, before)
    assert_cuts_are_told(pool, len(naive.errors), report)


def assert_warm(guard: Guard, before: set[str]) -> None:
    """At each moment three pods served; whenever one was sent away, all that went on serving had half of their part."""
    assert min(len(moment.serving) for moment in guard.pods.moments) >= REPLICAS
    sent_away = set()
    for earlier, later in itertools.pairwise(guard.pods.moments):
        for name in going(later) - going(earlier):
            sent_away.add(name)
            step = guard.step_at(later.at)
            part = step.grantable // (2 * len(step.bounds))
            held = {pod: bound for (pod, _), bound in step.bounds.items() if pod in later.serving}
            assert set(held) == later.serving, (name, held, later)
            assert min(held.values()) >= part, f"{name} went while {held} of {step.grantable}"
    assert sent_away == before


def going(moment: Moment) -> set[str]:
    """The pods that are deleted but still there."""
    return {pod.name for pod in moment.pods.values() if pod.going}


def assert_cuts_are_told(pool: kit.Pool, cut: int, report: Report) -> None:
    """As many clients as saw an error are in the events, one of each pod."""
    assert cut, "the naive clients should have stayed to the end"
    about = f"regarding.name={pool.name},reason=ClientsCut"
    where = ("-n", pool.namespace, "events.v1.events.k8s.io", f"--field-selector={about}")

    def told() -> list[str]:
        notes = [str(event["note"]) for event in pool.kubectl.get_json(*where)["items"]]
        return notes if sum(int(note.split(": ")[1].split()[0]) for note in notes) == cut else []

    words = kit.await_until(told, 20, f"events ClientsCut of {cut} clients", interval=0.5)
    report(f"naive clients cut: {cut}, as {len(words)} events say, such as: {words[0]}")


ASK = """
import sys, urllib.error, urllib.request
try:
    with urllib.request.urlopen(f"http://localhost:{sys.argv[1]}", timeout=10) as answer:
        print(answer.status, answer.read().decode())
except urllib.error.HTTPError as refusal:
    print(refusal.code)
"""


def ask_agent(pool: kit.Pool, pod: str, path: str) -> tuple[int, str]:
    """GET of the agent in a pod: status and text."""
    command = ("python3", "-c", ASK, f"{names.AGENT_PORT}{path}")
    status, _, text = pool.kubectl.exec(pool.namespace, pod, *command, container=names.AGENT_CONTAINER).partition(" ")
    return int(status), text


def test_a_draining_pod_goes_on_serving(target: kit.Target, clients: kit.Clients, pool: kit.Pool) -> None:
    pod, ip = next(iter(pool.ips().items()))
    assert ask_agent(pool, pod, "/drain") == (403, "")
    assert "poolfleet_agent_draining 0" in ask_agent(pool, pod, "/metrics")[1], "a request without the token drains"
    with styles.at_work(clients, target.through(pool, ip), [styles.NAIVE]) as outcomes:
        pool.kubectl.run("-n", pool.namespace, "delete", "pod", pod, "--wait=false")

        def drains() -> bool:
            return "poolfleet_agent_draining 1" in ask_agent(pool, pod, "/metrics")[1]

        kit.await_until(drains, 10, "the pod drains, and its agent says so", interval=0.3)
        # its listener is open: a client that was sent to it late is served
        assert target.postgres.psql(target.through(pool, ip), "SELECT 7") == "7"
        assert int(str(pool.show_on(pod, "DATABASES")[0]["max_connections"])) >= 1
    assert outcomes[0].errors == []
    await_settled(pool)  # its clients have left: it is gone at once


def test_scaling_down_takes_the_pod_with_the_fewest_clients(
    target: kit.Target, clients: kit.Clients, pool: kit.Pool
) -> None:
    empty, *others = pool.ips()  # the oldest: without a word the youngest would go
    ips = pool.ips()
    staying = [
        clients.start("crowd", target.through(pool, ips[pod]), "--clients", "40", "--until-eof") for pod in others
    ]
    seen = 40 * len(others)
    kit.await_until(lambda: pool.status()["clients"]["active"] >= seen, 40, "the operator has seen them", interval=0.5)
    pool.kubectl.run("-n", pool.namespace, "scale", f"pgpool/{pool.name}", f"--replicas={REPLICAS - 1}")
    kit.await_until(lambda: set(pool.uids()) == set(others), 20, f"{empty} goes, and no other")
    for crowd in staying:
        summary = crowd.stop()[-1]["summary"]
        assert (summary["failed"], summary["put_out"]) == (0, 0)
