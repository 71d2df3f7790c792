"""What goes wrong in a cluster, done on purpose: the connections stay within the budget, and all is put in order again.

Clients that connect for every query run beside nearly every fault, and none of their queries may fail.
"""

import contextlib
import secrets
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from poolfleet.api import names
from tests.e2e import kit, node
from tests.e2e.watching import Sessions, Versions, entries, is_rebuilt, promised, seconds

BUDGET = 37  # 40 - superuser_reserved_connections, which counts as 3 where it is not read
GRANTS = {2: 18, 3: 12}  # of each pod, by the number of pods: one connection stays in reserve

LOST_BUDGET = 17
LOST_GRACE = 61.0  # seconds that unknown pods keep their connections: 60 and the pool's drain timeout

Report = Callable[[str], None]


@contextlib.contextmanager
def clients_that_notice_nothing(clients: kit.Clients, login: kit.Login, *options: str) -> Iterator[None]:
    """While this lasts, six clients connect for every query; afterwards not one of their queries has failed."""
    running = clients.start("steady", login, "--until-eof", "--clients", "6", "--interval-ms", "100", *options)
    try:
        kit.await_until(running.lines, 20, "a first answer through the pool")
        yield
    except BaseException:
        running.stop()
        raise
    lines = running.stop()
    summary = lines[-1]["summary"]
    assert summary["queries"] > 0 and summary["failed"] == 0, [line for line in lines if "error" in line][:10]


@pytest.fixture(scope="module")
def postgres(kubectl: kit.Kubectl, namespace: str) -> kit.Postgres:
    """A PostgreSQL of this module's own: what is killed here needs all the connections that were counted."""
    postgres = kit.Postgres(kubectl, namespace).ensure()
    kubectl.namespace(namespace)  # its labels, which the demo's namespace does not have
    return postgres


@pytest.fixture(scope="module")
def shop(kubectl: kit.Kubectl, namespace: str, target: kit.Target) -> kit.Pool:
    """The pool that most of this is done to. It has three pods at first, and two when all three have been killed."""
    pool = kit.Pool(kubectl, namespace, "shop")
    pool.apply(target.spec(replicas=3, drain={"timeoutSeconds": 20}))
    kit.await_until(lambda: kubectl.find("-n", namespace, "pgserver", pool.name), 10, "its PgServer")
    return pool


def at_rest(pool: kit.Pool, replicas: int = 2, grant: int = GRANTS[2]) -> None:
    """Wait until the pool has its pods, and each its grant, as the ledger and PgBouncer say."""

    def settled() -> bool:
        wanted = dict.fromkeys(pool.uids(), grant)
        if not len(wanted) == pool.status().get("readyReplicas") == replicas:
            return False
        told = {pod: bound for (pod, _), bound in kit.bounds(pool.kubectl, pool.namespace, pool.name).items()}
        return wanted == told and wanted == {
            pod: limit for pod, databases in pool.loaded().items() for _, limit in databases.values()
        }

    kit.await_until(settled, 60, f"{replicas} pods with {grant} connections each", tolerate=(kit.KubectlError,))


@pytest.fixture(scope="module")
def ledger_of_shop(kubectl: kit.Kubectl, namespace: str, shop: kit.Pool) -> Iterator[Versions]:
    """Every ledger of the pool `shop`, through all that happens here."""
    versions = Versions(kubectl, namespace, shop.name)
    yield versions
    versions.end()


# -- a ledger that is lost: its tests are the first and the last here, as the grace in between takes a minute ---------


class Lost:
    """A pool whose PgServer, and with it the ledger, somebody deletes while all connections are in use."""

    def __init__(self, kubectl: kit.Kubectl, target: kit.Target, clients: kit.Clients) -> None:
        self.pool = kit.Pool(kubectl, target.namespace, "lost")
        self.role = target.login.user + "_lost"
        password = secrets.token_urlsafe(18)
        target.postgres.make(self.role, password)
        kubectl.apply(kit.basic_auth(target.namespace, "lost", self.role, password))
        self.pool.apply(
            {
                "server": {"host": target.postgres.host, "maxConnections": LOST_BUDGET + 3, "headroom": 0},
                "databases": [{"name": self.role}],
                "users": [{"secretRef": {"name": "lost"}}],
                "drain": {"timeoutSeconds": 1},
            }
        )
        self.pool.ready()
        at_rest(self.pool, replicas=2, grant=8)
        self.before = self.pool.uids()
        self.server = kubectl.get_json("-n", target.namespace, "pgserver", "lost")
        self.versions = Versions(kubectl, target.namespace, "lost")
        self.sessions = kit.Sampler(target.postgres, interval=0.1)
        login = kit.Login(f"lost.{target.namespace}.svc", 6432, self.role, password, self.role)
        busy = ("--until-eof", "--clients", "24", "--query-ms", "400", "--interval-ms", "20")
        self.steady = clients.start("steady", login, *busy)

    def uid(self) -> str:
        """UID of the PgServer now; "" while there is none."""
        server = self.pool.kubectl.find("-n", self.pool.namespace, "pgserver", "lost")
        return str(server["metadata"]["uid"]) if server else ""

    def new(self) -> list[kit.Manifest]:
        """The versions of the ledger since then."""
        return [v for v in self.versions.all() if v["metadata"]["uid"] != self.server["metadata"]["uid"]]


@pytest.fixture(scope="module")
def lost(kubectl: kit.Kubectl, target: kit.Target, clients: kit.Clients, shop: kit.Pool) -> Iterator[Lost]:
    """Used by the first and by the last test. (`shop` comes up at the same time.)"""
    lost = Lost(kubectl, target, clients)
    with lost.sessions:
        kit.await_until(lambda: lost.sessions.samples[-1][1].get(lost.role, 0) >= 16, 20, "all connections in use")
        yield lost
    lost.versions.end()


def test_a_deleted_pgserver_is_made_again_and_its_ledger_rebuilt_from_the_pods(lost: Lost) -> None:
    pool, old = lost.pool, lost.server["metadata"]["uid"]
    pool.kubectl.run("-n", pool.namespace, "delete", "pgserver", "lost")

    kit.await_until(lambda: lost.uid() not in ("", old), 10, "another PgServer")
    kit.await_until(lambda: [v for v in lost.new() if entries(v)], 10, "a ledger with entries")
    server = lost.new()[-1]
    assert is_rebuilt(server)
    # what the pods were told and hold, no more and no less: PostgreSQL's view of them has not changed
    assert {e["pod"]: e["bound"] for e in entries(server)} == dict.fromkeys(lost.before.values(), 8)
    # another server means other pods; the first of them is there and waits
    kit.await_until(lambda: set(pool.uids()) - set(lost.before), 20, "a pod for the new PgServer")


# -- PgBouncer killed -------------------------------------------------------------------------------------------------


def test_a_killed_pgbouncer_is_back_at_its_grant_and_never_above_it(
    shop: kit.Pool, target: kit.Target, clients: kit.Clients, ledger_of_shop: Versions, report: Report
) -> None:
    at_rest(shop, 3, GRANTS[3])
    # each pod has more clients than connections, with queries that a killed PgBouncer leaves behind in PostgreSQL
    more = ("--until-eof", "--stay", "--clients", str(GRANTS[3] + 4), "--query-ms", "5000", "--interval-ms", "50")
    load = {ip: clients.start("steady", target.through(shop, ip), *more) for ip in shop.ips().values()}
    sessions = Sessions(target.postgres)
    with sessions:
        for ip in load:
            kit.await_until(lambda ip=ip: sessions.now(ip) == GRANTS[3], 20, f"all connections of {ip} in use")  # type: ignore[misc]
        took = [kill_pgbouncer(shop, pod, sessions) for pod in shop.pods()]
        with ThreadPoolExecutor(len(load)) as together:
            list(together.map(kit.Running.stop, load.values()))

    peaks = [sessions.peak(ip) for ip in load]
    gaps = [b[0] - a[0] for a, b in zip(sessions.samples, sessions.samples[1:], strict=False)]
    report(
        f"PgBouncer killed: back at its grant after {sorted(took)} s (≤ 5); sessions at most {max(peaks)},"
        f" grant {GRANTS[3]}, in {len(gaps)} samples {statistics.median(gaps) * 1000:.0f} ms apart"
    )
    at_rest(shop, 3, GRANTS[3])
    assert max(peaks) <= GRANTS[3] + 1  # one per database: what the file allows that a restarted PgBouncer reads
    assert max(took) <= 5
    assert statistics.median(gaps) <= 0.1
    shop.patch(replicas=2)  # enough for all that follows
    at_rest(shop)


def changes(sessions: Sessions, address: str, since: float) -> list[tuple[float, int]]:
    """(seconds since then, sessions from that address) wherever the number changed."""
    samples = [(round(at - since, 2), by.get(address, 0)) for at, by in sessions.samples if at >= since]
    return [b for a, b in zip([(0.0, -1), *samples], samples, strict=False) if a[1] != b[1]]


def kill_pgbouncer(pool: kit.Pool, pod: kit.Manifest, sessions: Sessions) -> float:
    """SIGKILL PgBouncer in a pod; the seconds from the container's restart until the pod's grant is in use again.

    The restart's time comes in whole seconds, rounded down: what is returned may be up to a second too much.
    """
    name, ip, began = pod["metadata"]["name"], pod["status"]["podIP"], time.time()
    node.sigkill(pod, "pgbouncer")

    def restarted() -> float:
        body = pool.kubectl.get_json("-n", pool.namespace, "pod", name)
        container = next(c for c in body["status"]["containerStatuses"] if c["name"] == names.PGBOUNCER_CONTAINER)
        running = container["state"].get("running")
        return seconds(running["startedAt"]) if running and container["restartCount"] else 0.0

    def dipped_and_back() -> float:
        since = [(at, by.get(ip, 0)) for at, by in sessions.samples if at > began]
        low = next((i for i, (_, count) in enumerate(since) if count <= 1), None)
        return 0.0 if low is None else next((at for at, count in since[low:] if count >= GRANTS[3]), 0.0)

    try:
        back = kit.await_until(dipped_and_back, 30, f"{name} back at its grant", interval=0.05)
    except AssertionError as error:
        raise AssertionError(f"{error}; (seconds, sessions): {changes(sessions, ip, began)}") from None
    return round(back - kit.await_until(restarted, 10, f"the restart of {name} in its status"), 2)


# -- pods and children deleted ----------------------------------------------------------------------------------------


def test_a_deleted_pod_is_replaced_without_a_failed_query(
    shop: kit.Pool, target: kit.Target, clients: kit.Clients
) -> None:
    before = shop.uids()
    victim = next(iter(before))
    with clients_that_notice_nothing(clients, target.through(shop)):
        shop.kubectl.run("-n", shop.namespace, "delete", "pod", victim, "--timeout=60s")
        at_rest(shop)
    assert victim not in shop.uids() and len(set(before) & set(shop.uids())) == 1
    assert shop.ready() < 5


UNNOTICED = {
    "the Secret with PgBouncer's configuration": "secret/shop-config",
    "the Secret for applications": "secret/shop-binding",
    "the PodDisruptionBudget": "poddisruptionbudget/shop",
    "the NetworkPolicy": "networkpolicy/shop",
}


def test_deleted_children_are_made_again_and_clients_notice_nothing(
    shop: kit.Pool, target: kit.Target, clients: kit.Clients, report: Report
) -> None:
    before, took = shop.uids(), {}
    with clients_that_notice_nothing(clients, target.through(shop)):
        for what, child in UNNOTICED.items():
            took[what] = delete_and_wait(shop, child, "--wait=false")
        # --cascade=orphan: the pods stay, and the next Deployment takes them over
        took["the Deployment alone"] = delete_and_wait(shop, "deployment/shop", "--cascade=orphan")
        at_rest(shop)
    report(f"a deleted child is made again after: {', '.join(f'{s:.1f} s {what}' for what, s in took.items())}")
    assert shop.uids() == before
    assert shop.conditions()["Ready"]["status"] == "True"


def test_a_deleted_service_is_made_again(
    shop: kit.Pool, target: kit.Target, clients: kit.Clients, report: Report
) -> None:
    # Kubernetes gives the new one another address, so only clients beside it can be served all the time
    with clients_that_notice_nothing(clients, target.through(shop, next(iter(shop.ips().values())))):
        took = delete_and_wait(shop, "service/shop")
    [line] = clients.run("login", target.through(shop), "--timeout", "20")
    report(f"a deleted Service: made again after {took:.1f} s, a login through it {line['seconds']:.1f} s later")


def test_a_deployment_deleted_with_its_pods_is_made_again(
    shop: kit.Pool, target: kit.Target, clients: kit.Clients, report: Report
) -> None:
    before = shop.uids()
    took = delete_and_wait(shop, "deployment/shop", "--wait=false")
    at_rest(shop)
    assert not set(shop.uids()) & set(before)
    clients.run("login", target.through(shop), "--timeout", "10")
    report(f"a Deployment deleted with its pods: made again after {took:.1f} s")


def delete_and_wait(pool: kit.Pool, child: str, *options: str) -> float:
    """Delete a child by hand; the seconds until the operator has made another one."""
    uid, begun = uid_of(pool, child), time.time()
    pool.kubectl.run("-n", pool.namespace, "delete", child, *options)
    kit.await_until(lambda: uid_of(pool, child) not in (uid, ""), 20, f"{child} is there again")
    return round(time.time() - begun, 2)


def uid_of(pool: kit.Pool, child: str) -> str:
    found = pool.kubectl.find("-n", pool.namespace, child)
    return str(found["metadata"]["uid"]) if found else ""


# -- edits by hand ----------------------------------------------------------------------------------------------------

EDITS: dict[str, tuple[kit.Manifest, Callable[[kit.Manifest], Any], Any]] = {
    "deployment/shop": (
        {"spec": {"strategy": {"rollingUpdate": {"maxUnavailable": 1}}}},
        lambda d: d["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"],
        0,
    ),
    "service/shop": ({"spec": {"selector": {"x": "y"}}}, lambda s: "x" in s["spec"]["selector"], False),
    "networkpolicy/shop": ({"spec": {"ingress": []}}, lambda p: "ingress" in p["spec"], True),
    "poddisruptionbudget/shop": ({"spec": {"maxUnavailable": 3}}, lambda b: b["spec"]["maxUnavailable"], 1),
    "secret/shop-binding": ({"stringData": {"port": "1"}}, lambda s: s["data"]["port"], "NjQzMg=="),
}


def test_owned_fields_are_put_back_and_what_others_add_stays(shop: kit.Pool) -> None:
    ours = {"metadata": {"annotations": {"example.com/note": "by hand"}, "labels": {"example.com/team": "a"}}}
    for child, (edit, read, wanted) in EDITS.items():
        shop.kubectl.patch(shop.namespace, child, {**edit, **ours})

        def as_wanted(child: str = child, read: Callable[[kit.Manifest], Any] = read, wanted: Any = wanted) -> bool:
            return bool(read(shop.kubectl.get_json("-n", shop.namespace, child)) == wanted)

        kit.await_until(as_wanted, 15, f"{child} as the operator had it")
        metadata = shop.kubectl.get_json("-n", shop.namespace, child)["metadata"]
        assert metadata["annotations"]["example.com/note"] == "by hand", child
        assert metadata["labels"]["example.com/team"] == "a", child
    at_rest(shop)


def test_a_rollout_restart_is_carried_through_without_a_failed_query(
    shop: kit.Pool, target: kit.Target, clients: kit.Clients
) -> None:
    before = shop.uids()
    with clients_that_notice_nothing(clients, target.through(shop)):
        shop.kubectl.run("-n", shop.namespace, "rollout", "restart", "deployment/shop")
        shop.kubectl.run("-n", shop.namespace, "rollout", "status", "deployment/shop", "--timeout=120s", timeout=130)
        at_rest(shop)
    assert not set(shop.uids()) & set(before)
    template = shop.kubectl.get_json("-n", shop.namespace, "deployment/shop")["spec"]["template"]
    assert "kubectl.kubernetes.io/restartedAt" in template["metadata"]["annotations"], "it was undone"


# -- the leader -------------------------------------------------------------------------------------------------------


def leader(kubectl: kit.Kubectl) -> str:
    """Name of the operator's pod that holds the Lease; "" if that one is not there any more."""
    lease = kubectl.get_json("-n", kit.SYSTEM_NAMESPACE, "lease", "poolfleet-leader")
    holder = str(lease["spec"].get("holderIdentity") or "").partition("_")[0]
    return holder if holder and kubectl.find("-n", kit.SYSTEM_NAMESPACE, "pod", holder) else ""


def test_when_the_leader_is_killed_the_other_one_carries_on(
    shop: kit.Pool, target: kit.Target, clients: kit.Clients, ledger_of_shop: Versions, report: Report
) -> None:
    kubectl, before = shop.kubectl, len(ledger_of_shop.all())
    both_run = ("-n", kit.SYSTEM_NAMESPACE, "rollout", "status", "deployment/poolfleet", "--timeout=60s")
    kubectl.run(*both_run, timeout=70)
    first = kit.await_until(lambda: leader(kubectl), 30, "somebody leads")
    with clients_that_notice_nothing(clients, target.through(shop)):
        begun = time.time()
        node.sigkill(kubectl.get_json("-n", kit.SYSTEM_NAMESPACE, "pod", first), "python3")
        shop.patch(pgbouncer={"parameters": {"query_wait_timeout": 33}})
        kit.await_until(lambda: leader(kubectl) not in ("", first), 40, "the other one leads")
        took_over = time.time() - begun
        kit.await_until(lambda: shop.setting("query_wait_timeout") == {"33"}, 20, "the change in force on every pod")
        in_force = time.time() - begun
    report(
        f"leader killed: the other leads after {took_over:.1f} s, an edit made meanwhile works after {in_force:.1f} s"
    )
    # the new leader has to hear from every pod first, and takes nothing from those that serve meanwhile
    assert {entry["grant"] for version in ledger_of_shop.all()[before:] for entry in entries(version)} == {GRANTS[2]}
    assert took_over <= 30  # 15 s for the Lease to run out, two retry periods, and a busy node
    kubectl.run(*both_run, timeout=70)


# -- the end ----------------------------------------------------------------------------------------------------------


def test_no_ledger_ever_promised_more_than_the_budget(ledger_of_shop: Versions, report: Report) -> None:
    versions = ledger_of_shop.all()
    most = max(promised(version) for version in versions)
    report(f"through all these faults: at most {most} of {BUDGET} promised in {len(versions)} versions of the ledger")
    assert {version["status"]["budget"] for version in versions if entries(version)} == {BUDGET}
    assert 2 * GRANTS[2] <= most <= BUDGET


def test_a_deleted_pool_leaves_nothing(shop: kit.Pool, ledger_of_shop: Versions) -> None:
    kubectl = shop.kubectl
    listable = ("api-resources", "--namespaced", "--verbs=list", "-o", "name")
    kinds = [kind for kind in kubectl.run(*listable).split() if not kind.startswith("events")]
    assert "networkpolicies.networking.k8s.io" in kinds and "pgservers.poolfleet.dev" in kinds

    def left() -> set[str]:
        """All objects in the namespace that are named after the pool, labels or not."""
        items = kubectl.get_json("-n", shop.namespace, ",".join(kinds))["items"]
        named = {f"{item['kind']}/{item['metadata']['name']}" for item in items}
        return {name for name in named if name.partition("/")[2].startswith("shop")}

    assert len(left()) > 8
    shop.delete()
    kit.await_until(lambda: not left(), 30, "nothing is named after the pool")


def test_a_rebuilt_ledger_hands_nothing_out_before_its_grace_is_over(lost: Lost, report: Report) -> None:
    pool, old = lost.pool, set(lost.before.values())

    def rolled() -> bool:
        uids = set(pool.uids().values())
        return len(uids) == 2 and not uids & old

    kit.await_until(rolled, 120, "two new pods", interval=1)
    at_rest(pool, replicas=2, grant=8)
    summary = lost.steady.stop()[-1]["summary"]
    versions = lost.new()
    rebuilt = min(seconds(version["status"]["ledger"]["rebuiltAt"]) for version in versions if is_rebuilt(version))
    granted = min(seconds(e["since"]) for version in versions for e in entries(version) if e["pod"] not in old)
    most, peak = max(promised(version) for version in versions), lost.sessions.peak(lost.role)
    report(
        f"PgServer deleted: the first new grant {granted - rebuilt:.1f} s after the rebuild (≥ {LOST_GRACE:.0f});"
        f" promised at most {most}, sessions at most {peak}, budget {LOST_BUDGET}; queries failed: {summary['failed']}"
    )
    assert granted - rebuilt >= LOST_GRACE - 0.01  # both are told in milliseconds
    assert not is_rebuilt(versions[-1])
    assert most <= LOST_BUDGET and peak <= LOST_BUDGET
    assert summary["failed"] == 0
