"""Edits of a pool that serves: what a reload can do is in force within seconds in the same pods; what it cannot do is
rolled out, and clients do not notice. Server connections stay within the budget meanwhile."""

import contextlib
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest

from poolfleet.api import names
from tests.e2e import kit

BUDGET = 23 - 3  # maxConnections less superuser_reserved_connections
RESERVE = 2  # one connection per database, so that a surge pod can start
EDITS = 3  # of each kind
DESK_ROLE = "e2e_changes_desk"

Report = Callable[[str], None]


@dataclass(frozen=True)
class Shop:
    """The pool under test. In its database `desk` all clients work under one role of the server."""

    pool: kit.Pool
    target: kit.Target
    clients: kit.Clients
    users: list[str]

    def login(self, user: str, host: str = "") -> kit.Login:
        """A client with the password that its Secret holds now; the one that owns the database logs in there."""
        own = user == self.target.SECRET
        through = self.target.through(self.pool, host)
        password = self.pool.kubectl.secret(self.pool.namespace, user)["password"]
        return replace(
            through, password=password, user=through.user if own else user, database=through.database if own else "desk"
        )

    def spec_users(self) -> list[kit.Manifest]:
        """spec.users for `users`, each with a Secret of its name."""
        return [{"secretRef": {"name": user}} for user in self.users]

    def add_secret(self, user: str, watch: bool = True) -> None:
        """Make the Secret of a user."""
        password = secrets.token_urlsafe(9)
        self.pool.kubectl.apply(kit.basic_auth(self.pool.namespace, user, user, password, watch))

    def set_password(self, user: str, password: str) -> float:
        """Change the password in a user's Secret; returns when that was begun."""
        begun = time.time()
        self.pool.kubectl.patch(self.pool.namespace, f"secret/{user}", {"stringData": {"password": password}})
        return begun


@dataclass(frozen=True)
class SlowEdit:
    """A changed password in a Secret without the label, and who waits for it."""

    begun: float
    waiting: kit.Running


@pytest.fixture(scope="module")
def shop(kubectl: kit.Kubectl, target: kit.Target, clients: kit.Clients, namespace: str) -> Iterator[Shop]:
    """Two pods, two databases, and two users: `app`, and `slow`, whose Secret has no label."""
    shop = Shop(kit.Pool(kubectl, namespace, "shop"), target, clients, [target.SECRET, "slow"])
    shop.add_secret("slow", watch=False)
    own = {"name": target.login.database, "weight": 3}
    desk = {"name": "desk", "serverDatabase": own["name"], "credentialsSecretRef": {"name": "desk-role"}}
    kubectl.apply(kit.basic_auth(namespace, "desk-role", DESK_ROLE, "the desk's own"))
    target.postgres.sql(f"DROP ROLE IF EXISTS {DESK_ROLE}; CREATE ROLE {DESK_ROLE} LOGIN PASSWORD 'the desk''s own'")
    shop.pool.apply(
        {
            "server": {"host": target.login.host, "maxConnections": 23, "headroom": 0},
            "databases": [own, desk],
            "users": shop.spec_users(),
        }
    )
    shop.pool.ready()
    await_shares(shop, replicas=2)
    yield shop
    target.postgres.sql(f"DROP ROLE {DESK_ROLE}")


@pytest.fixture(scope="module", autouse=True)
def slow_edit(shop: Shop) -> SlowEdit:
    """Made first, because it takes up to a minute; the last test asks how long it took."""
    client = replace(shop.login("slow"), password="another one")
    begun = shop.set_password("slow", client.password)
    return SlowEdit(begun, shop.clients.start("login", client, "--since", f"{begun}", "--timeout", "65"))


@pytest.fixture
def same_pods(shop: Shop) -> Iterator[None]:
    """Whatever the test does, it is done in the pods that there are."""
    before = shop.pool.uids()
    yield
    assert shop.pool.uids() == before


@pytest.mark.usefixtures("same_pods")
class TestWhatAReloadCanDo:
    took: ClassVar[dict[str, list[float]]] = {}  # what was edited -> seconds until every pod went by it

    def test_users_come_and_go(self, shop: Shop) -> None:
        for number in range(EDITS):
            user = f"guest{number}"
            shop.add_secret(user)
            shop.users.append(user)
            waiting = until_every_pod_lets_in(shop, shop.login(user))
            self.note("a user added", waiting.until(shop.pool.patch(users=shop.spec_users())))

        fired = shop.users.pop()
        shop.pool.patch(users=shop.spec_users())
        await_refused_everywhere(shop, shop.login(fired))

    def test_a_password_in_a_labelled_secret(self, shop: Shop) -> None:
        before = shop.login(shop.target.SECRET)
        for _ in range(EDITS):
            after = replace(before, password=secrets.token_urlsafe(9))
            waiting = until_every_pod_lets_in(shop, after)
            shop.target.postgres.sql(f"ALTER ROLE {kit.ident(after.user)} PASSWORD {kit.quoted(after.password)}")
            self.note("a password", waiting.until(shop.set_password(shop.target.SECRET, after.password)))
        await_refused_everywhere(shop, before)

    def test_a_parameter_that_pgbouncer_reloads(self, shop: Shop) -> None:
        for number in range(EDITS):
            parameters = {"query_wait_timeout": 40 + number}
            waiting = until_every_pod_shows(shop, "query_wait_timeout", f"{40 + number}")
            self.note("a parameter", waiting.until(shop.pool.patch(pgbouncer={"parameters": parameters})))

    def test_all_of_it_in_force_within_two_seconds(self, report: Report) -> None:
        everything = [seconds for each in self.took.values() for seconds in each]
        assert len(everything) >= 7
        for what, each in {**self.took, "all edits": everything}.items():
            times = f"p50 {statistics.median(each):.2f} s, slowest {max(each):.2f} s of {len(each)}"
            report(f"{what}, from the edit until in force on every pod: {times}")
        assert statistics.median(everything) <= 2.0

    def note(self, what: str, seconds: float) -> None:
        """Keep a measured time."""
        self.took.setdefault(what, []).append(seconds)


class TestWhatNeedsOtherPods:
    def test_is_rolled_out(self, shop: Shop, report: Report) -> None:
        before = set(shop.pool.uids().values())
        with clients_that_notice_nothing(shop, report, "a rollout"):
            shop.pool.patch(
                pgbouncer={"parameters": {"pkt_buf": 8192}},  # which PgBouncer reads when it starts
                template={"metadata": {"labels": {"team": "checkout"}}},
            )
            shop.pool.condition("Reconciling", "False", "AsWished", timeout=90)
            await_shares(shop, replicas=2)
        assert not before & set(shop.pool.uids().values())
        assert shop.pool.setting("pkt_buf") == {"8192"}
        assert {pod["metadata"]["labels"].get("team") for pod in shop.pool.pods()} == {"checkout"}

    def test_scaling_up_and_down(self, shop: Shop, report: Report) -> None:
        with clients_that_notice_nothing(shop, report, "scaling 2 → 4 → 1"):
            for replicas in (4, 1):
                shop.pool.kubectl.run("-n", shop.pool.namespace, "scale", "pgpool/shop", f"--replicas={replicas}")
                shop.pool.condition("Reconciling", "False", "AsWished", timeout=60)
                await_shares(shop, replicas)


def test_a_password_in_a_secret_without_the_label_is_seen_within_a_minute(slow_edit: SlowEdit, report: Report) -> None:
    seconds = slow_edit.waiting.wait()[-1]["seconds"]
    report(f"a password in a Secret without the label, from the edit until in force: {seconds:.0f} s")
    assert seconds <= 60


@contextlib.contextmanager
def clients_that_notice_nothing(shop: Shop, report: Report, what: str) -> Iterator[None]:
    """While this lasts, more clients than there are server connections connect for every query: none of these fails,
    and PostgreSQL never has more sessions of the pool than the budget."""
    client = shop.login(shop.target.SECRET)
    load = ("--clients", "16", "--query-ms", "300", "--interval-ms", "50", "--until-eof")
    with kit.Sampler(shop.target.postgres) as sampler:
        steady = shop.clients.start("steady", client, *load)
        try:
            kit.await_until(steady.lines, 20, "a first answer")
            begun = time.time()
            yield
            seconds = time.time() - begun
        finally:
            lines = steady.stop()
    summary = lines[-1]["summary"]
    peak = max(by.get(client.user, 0) + by.get(DESK_ROLE, 0) for _, by in sampler.samples)
    report(
        f"{what}: {seconds:.0f} s, {summary['failed']} of {summary['queries']} queries failed, slowest "
        f"{summary['slowest_s']:.1f} s; at most {peak} server connections of {BUDGET} in {len(sampler.samples)} samples"
    )
    assert summary["failed"] == 0, lines[:5]
    assert (BUDGET - RESERVE) // 2 <= peak <= BUDGET  # with fewer it would say nothing


def await_shares(shop: Shop, replicas: int) -> None:
    """Wait until just so many pods are there, each with its share loaded and all that there is given out."""

    def shared_out() -> bool:
        loaded = shop.pool.loaded()
        bounds = kit.bounds(shop.pool.kubectl, shop.pool.namespace, shop.pool.name)
        sizes = {(pod, name): sizes for pod, databases in loaded.items() for name, sizes in databases.items()}
        fair = all(
            max(by_pod) - min(by_pod) <= 1
            for name in ("desk", shop.target.login.database)
            if (by_pod := [bound for (_, database), bound in bounds.items() if database == name])
        )
        given_out = sum(bounds.values()) == BUDGET - RESERVE
        as_in_ledger = sizes == {key: (bound, bound) for key, bound in bounds.items()}
        return fair and given_out and as_in_ledger and len(shop.pool.pods(all=True)) == len(loaded) == replicas

    what = f"{replicas} pods share {BUDGET - RESERVE} connections evenly"
    kit.await_until(shared_out, 60, what, interval=0.5, tolerate=(kit.KubectlError,))


@dataclass(frozen=True)
class Waiting:
    """Programs that wait until something is in force, one for all pods or one in each."""

    since: float  # when they were started
    running: list[kit.Running]

    def looking(self, lines: int) -> "Waiting":
        """Wait until each has printed so many lines: it has seen that it is not in force yet."""
        for program in self.running:
            kit.await_until(lambda p=program: len(p.lines()) >= lines, 30, "a first look", interval=0.02)  # type: ignore[misc]
        return self

    def until(self, begun: float) -> float:
        """Seconds from `begun` until it is in force on the last pod."""
        seconds = [float(line["seconds"]) for program in self.running for line in program.wait(30) if "seconds" in line]
        return self.since + max(seconds) - begun


def until_every_pod_lets_in(shop: Shop, client: kit.Login) -> Waiting:
    """A client that keeps trying to log in, on each pod."""
    since, (first, *others) = time.time(), shop.pool.ips().values()
    hosts = [option for ip in others for option in ("--host", ip)]
    login = replace(client, host=first)
    waiting = shop.clients.start("login", login, *hosts, "--announce", "--since", f"{since}")
    return Waiting(since, [waiting]).looking(lines=1 + len(others))


LOOK_AT_SETTING = """
import asyncio, json, sys, time
from pathlib import Path
from poolfleet.agent.console import ask

async def look(since, key, value):
    print(json.dumps({"looking": key}), flush=True)
    while True:
        rows = (await ask(Path("/run/pgbouncer/.s.PGSQL.6432"), "SHOW CONFIG")).rows
        if (key, value) in [row[:2] for row in rows]:
            return print(json.dumps({"seconds": time.time() - since}))
        await asyncio.sleep(0.05)

asyncio.run(look(float(sys.argv[1]), *sys.argv[2:]))
"""


def until_every_pod_shows(shop: Shop, setting: str, value: str) -> Waiting:
    """On each pod somebody who looks at SHOW CONFIG until `setting` has that value."""
    since, running = time.time(), []
    for pod in shop.pool.uids():
        command = ("python3", "-c", LOOK_AT_SETTING, f"{since}", setting, value)
        out, err = tempfile.NamedTemporaryFile("w+"), tempfile.NamedTemporaryFile("w+")  # noqa: SIM115 (Running keeps them)
        where = ("-n", shop.pool.namespace, "exec", pod, "-c", names.AGENT_CONTAINER, "--")
        process = shop.pool.kubectl.popen(*where, *command, stdout=out, stderr=err)
        running.append(kit.Running(process, out, err, f"SHOW CONFIG in {pod}"))
    return Waiting(since, running).looking(lines=1)


def await_refused_everywhere(shop: Shop, client: kit.Login) -> None:
    """Wait until no pod lets this client in any more."""

    def refused(ip: str) -> bool:
        try:
            shop.target.postgres.psql(replace(client, host=ip), "SELECT 1")
        except kit.KubectlError as error:
            assert "authentication failed" in str(error), error
            return True
        return False

    for pod, ip in shop.pool.ips().items():
        kit.await_until(lambda ip=ip: refused(ip), 20, f"{pod} refuses {client.user}")  # type: ignore[misc]
