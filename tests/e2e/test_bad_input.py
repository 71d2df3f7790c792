"""Bad input gets a clear answer and nothing is lost.

What the schema can refuse the API server refuses, in a sentence. The rest is named in conditions and events, with the
thing and the remedy; the last good fleet serves on meanwhile. No answer holds a secret.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from poolfleet.api import names
from tests.e2e import kit
from tests.e2e.bad_inputs import (
    APP,
    BEGINNINGS,
    BROKEN,
    BUDGET,
    EDITS,
    GOOD,
    HOSTILE_DATABASE,
    HOSTILE_PASSWORD,
    HOSTILE_ROLE,
    MARK,
    REFUSED,
    secret,
    user,
)

REPLICAS = 2
OPERATOR = ("-l", "app.kubernetes.io/component=operator")

IN_FORCE = {  # what the spec says now is what every pod goes by
    "Stalled": ("False", "AsWished"),
    "Reconciling": ("False", "AsWished"),
    "CredentialsCurrent": ("True", "Loaded"),
}

Report = Callable[[str], None]


# -- what the API server refuses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", REFUSED)
def test_the_api_server_refuses_it_in_a_sentence(kubectl: kit.Kubectl, namespace: str, what: str) -> None:
    change, sentence = REFUSED[what]
    assert sentence in refusal(kubectl, namespace, {**GOOD, **change})


@pytest.mark.parametrize("name", ["9shop", "s" * 53])
def test_the_api_server_refuses_a_name_that_no_service_can_have(
    kubectl: kit.Kubectl, namespace: str, name: str
) -> None:
    assert "metadata.name must" in refusal(kubectl, namespace, GOOD, name)


def test_the_api_server_takes_the_pool_that_all_these_are_made_from(kubectl: kit.Kubectl, namespace: str) -> None:
    with pytest.raises(AssertionError, match="was not refused"):
        refusal(kubectl, namespace, GOOD)


def refusal(kubectl: kit.Kubectl, namespace: str, spec: kit.Manifest, name: str = "shop") -> str:
    """What a user reads who applies a PgPool with this spec; nothing is stored."""
    metadata = {"name": name, "namespace": namespace}
    manifest = {"apiVersion": names.API_VERSION, "kind": names.POOL_KIND, "metadata": metadata, "spec": spec}
    try:
        said = kubectl.run("apply", "--dry-run=server", "-f", "-", stdin=json.dumps(manifest))
    except kit.KubectlError as error:
        return str(error)
    raise AssertionError(f"it was not refused: {said}")


# -- a pool that serves, edited into everything that is wrong ----------------------------------------------------------


@dataclass
class Shop:
    """A pool of two pods, and clients beside it that connect for every query as long as the pool is there."""

    pool: kit.Pool
    target: kit.Target
    good: kit.Manifest  # its spec
    running: kit.Running | None = None
    pods: dict[str, str] = field(default_factory=dict)  # UIDs by name

    @contextlib.contextmanager
    def edited(self, server: kit.Manifest | None = None, **fields: Any) -> Iterator[None]:
        """The good spec with these fields instead of its own, those of `server` within spec.server, while this lasts.

        Afterwards the good spec is in force again.
        """
        try:
            self.pool.apply({**self.good, **fields, "server": {**self.good["server"], **(server or {})}})
            yield
        finally:
            self.pool.apply(self.good)
            told(self.pool, **IN_FORCE, Ready=("True", "Serving"))

    def stop(self) -> list[kit.Manifest]:
        """End the clients, if they are still there; what they have printed."""
        running, self.running = self.running, None
        return running.stop() if running is not None else []

    def nobody_noticed(self) -> None:
        """The same pods, and not one failed query so far."""
        assert self.pool.uids() == self.pods
        assert self.running is not None
        assert [line for line in self.running.lines() if "error" in line] == []


@pytest.fixture(scope="module")
def shop(kubectl: kit.Kubectl, namespace: str, target: kit.Target) -> Shop:
    """The pool that serves, and the Secrets that it is going to be edited to."""
    items = [secret(namespace, name, **data) for name, data in BROKEN.items()]
    kubectl.apply({"apiVersion": "v1", "kind": "List", "items": items})
    pool = kit.Pool(kubectl, namespace, "shop")
    server = {"host": target.login.host, "maxConnections": BUDGET + 3, "headroom": 0}
    good = target.spec(replicas=REPLICAS, server=server)
    pool.apply(good)
    pool.ready()
    kit.await_until(lambda: len([p for p in pool.pods() if is_ready(p)]) == REPLICAS, 30, "both pods ready")
    return Shop(pool, target, good, pods=pool.uids())


@pytest.fixture(scope="module")
def served(shop: Shop, clients: kit.Clients) -> Iterator[Shop]:
    """The same, with the clients beside it: whatever is done to the pool, none of them may notice."""
    load = ("--until-eof", "--clients", "4", "--interval-ms", "100", "--timeout", "10")
    shop.running = clients.start("steady", shop.target.through(shop.pool), *load)
    kit.await_until(shop.running.lines, 20, "a first answer through the pool")
    yield shop
    shop.stop()


def is_ready(pod: kit.Manifest) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions") or ())


class TestAPoolThatServes:
    """Each fault comes and goes; the pods and their clients live through all of them."""

    @pytest.mark.parametrize("what", EDITS)
    def test_is_told_and_serves_on(self, served: Shop, what: str) -> None:
        edit = EDITS[what]
        with served.edited(**edit.fields):
            words = told(served.pool, Stalled=("True", edit.reason), Ready=("True", "Serving"))
            assert all(each in words["Stalled"] for each in edit.words), words
            assert words["Ready"].endswith(f" pods take clients. The last good fleet keeps serving: {words['Stalled']}")
            await_warning(served.pool, edit.reason, words["Stalled"])
            served.nobody_noticed()

    def test_a_budget_below_one_connection_for_each_pod_and_one_in_reserve(self, served: Shop) -> None:
        with served.edited(server={"maxConnections": 5}):
            words = told(served.pool, Stalled=("True", "BudgetTooSmall"), BudgetSatisfied=("False", "BudgetTooSmall"))
            assert "2 replicas x 1 databases + 1 in reserve for a rollout = 3 connections at least" in words["Stalled"]
            assert 'the budget of PgServer "shop" is 2.' in words["Stalled"]
            assert "raise the budget (maxConnections, headroom)" in words["Stalled"]
            kit.await_until(lambda: loaded(served.pool) == [1, 1], 20, "each pod within the budget of today")
            served.nobody_noticed()
        kit.await_until(lambda: sum(loaded(served.pool)) == BUDGET - 1, 20, "each pod with its share again")

    def test_a_server_login_that_postgresql_refuses(self, kubectl: kit.Kubectl, served: Shop) -> None:
        kubectl.apply(kit.basic_auth(served.pool.namespace, "desk-role", served.target.login.user, f"{MARK} wrong"))
        desk = {"name": "desk", "serverDatabase": served.target.login.database}
        desk_as_role = {**desk, "credentialsSecretRef": {"name": "desk-role"}}
        with served.edited(databases=[*served.good["databases"], desk_as_role]):
            words = told(served.pool, Ready=("False", "AuthenticationFailed"))["Ready"]
            assert words.startswith('Database "desk": FATAL: password authentication failed for user')
            assert words.endswith('Correct Secret "desk-role", or the role on the server.')
            await_warning(served.pool, "AuthenticationFailed", words)
            served.nobody_noticed()  # whoever asks for the other database is served

    def test_an_admin_whom_postgresql_refuses(self, kubectl: kit.Kubectl, served: Shop) -> None:
        kubectl.apply(kit.basic_auth(served.pool.namespace, "wrong-admin", "poolfleet_admin", f"{MARK} wrong"))
        with served.edited(server={"adminSecretRef": {"name": "wrong-admin"}}):
            words = server_told(served.pool, "AuthenticationFailed")
            assert 'Secret "wrong-admin" (adminSecretRef)' in words and "password authentication failed" in words
            assert words.endswith("Check the Secret and the role.")
            told(served.pool, Ready=("True", "Serving"))
            served.nobody_noticed()

    def test_an_admin_without_a_secret(self, served: Shop) -> None:
        with served.edited(server={"adminSecretRef": {"name": "no-admin"}}):
            words = server_told(served.pool, "SecretNotFound")
            assert words == 'Secret "no-admin" (adminSecretRef) does not exist. Create it.'
            at_pool = told(served.pool, Stalled=("True", "SecretNotFound"), Ready=("True", "Serving"))
            assert at_pool["Stalled"] == f'PgServer "shop": {words}'
            served.nobody_noticed()

    def test_hostile_but_possible_strings_stay_in_their_place(
        self, kubectl: kit.Kubectl, postgres: kit.Postgres, clients: kit.Clients, served: Shop
    ) -> None:
        hostile = kit.Login("", 0, HOSTILE_ROLE, HOSTILE_PASSWORD, HOSTILE_DATABASE)
        postgres.sql(
            f"DROP ROLE IF EXISTS {kit.ident(hostile.user)};"
            f"CREATE ROLE {kit.ident(hostile.user)} LOGIN PASSWORD {kit.quoted(hostile.password)}"
        )
        kubectl.apply(kit.basic_auth(served.pool.namespace, "hostile", hostile.user, hostile.password))
        database = {"name": hostile.database, "serverDatabase": served.target.login.database}
        with served.edited(users=[APP, user("hostile")], databases=[*served.good["databases"], database]):
            first, *others = served.pool.ips().values()
            login = replace(hostile, host=first, port=names.PGBOUNCER_PORT)
            others = [option for ip in others for option in ("--host", ip)]
            assert len(clients.run("login", login, *others, "--timeout", "20")) == REPLICAS
            served.nobody_noticed()
        postgres.sql(f"DROP ROLE {kit.ident(hostile.user)}")

    def test_nobody_noticed_anything(self, served: Shop, report: Report) -> None:
        served.nobody_noticed()
        summary = served.stop()[-1]["summary"]
        report(
            f"{len(EDITS) + 5} bad inputs in {summary['seconds']:.0f} s: {summary['failed']} of {summary['queries']} "
            f"queries failed, longest time without an answer {summary['longest_gap_s']:.1f} s"
        )
        assert summary["failed"] == 0
        assert summary["longest_gap_s"] < 3


# -- a server that does not answer -------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["a host that does not exist", "a port where nobody listens"])
def test_a_server_that_cannot_be_reached_is_named_and_served_again_once_it_can(
    kubectl: kit.Kubectl, postgres: kit.Postgres, shop: Shop, where: str
) -> None:
    ip = kubectl.get_json("-n", postgres.namespace, "pod", "postgres-0")["status"]["podIP"]
    nowhere = {"host": "db.nowhere.example"} if "host" in where else {"host": ip, "port": 5433}
    with shop.edited(server=nowhere):
        words = told(shop.pool, **IN_FORCE, Ready=("False", "Unreachable"))["Ready"]
        assert f'Database "{shop.target.login.database}": PgBouncer got no connection to {nowhere["host"]}' in words
        assert words.endswith('Check the server, and host, port and tls of PgServer "shop".')
        await_warning(shop.pool, "Unreachable", words)
    assert postgres.psql(shop.target.through(shop.pool), "SELECT 1") == "1"
    assert shop.pool.uids() == shop.pods


# -- pools that cannot begin -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", BEGINNINGS)
def test_a_pool_that_cannot_have_its_server_is_told_so(
    kubectl: kit.Kubectl, postgres: kit.Postgres, shop: Shop, what: str
) -> None:
    fields, reason, words = BEGINNINGS[what]
    late = kit.Pool(kubectl, shop.pool.namespace, f"late-{[*BEGINNINGS].index(what)}")
    late.apply({**GOOD, "server": None, **fields})
    said = told(late, Stalled=("True", reason), Ready=("False", reason))
    assert all(each in said["Stalled"] for each in words), said
    assert said["Ready"] == said["Stalled"]
    await_warning(late, reason, said["Stalled"])
    assert late.children() == set()
    late.delete()
    # the older pool has lost nothing
    told(shop.pool, Ready=("True", "Serving"))
    assert sum(loaded(shop.pool)) == BUDGET - 1
    assert postgres.psql(shop.target.through(shop.pool), "SELECT 1") == "1"


def test_one_fault_after_the_other_is_named_until_the_pool_is_ready(
    kubectl: kit.Kubectl, postgres: kit.Postgres, target: kit.Target, namespace: str
) -> None:
    pool = kit.Pool(kubectl, namespace, "late")
    admin = kubectl.secret(namespace, target.ADMIN_SECRET)

    def says(reason: str, *words: str, condition: str = "Ready") -> None:
        said = told(pool, **{condition: ("False", reason)})[condition]
        assert all(each in said for each in words), said
        await_warning(pool, reason, said)

    server = {"host": "postgres.nowhere.svc", "adminSecretRef": {"name": "late-admin"}, "headroom": 90}
    pool.apply(target.spec(replicas=1, server=server, users=[user("late")]))
    says("SecretNotFound", 'Secret "late" (users[0].secretRef) does not exist', "Create it.")

    kubectl.apply(secret(namespace, "late", username=target.login.user.encode(), pasword=MARK.encode()))
    says("SecretKeyNotFound", 'Secret "late" has no key "password"; it has: pasword, username')

    kubectl.apply(kit.basic_auth(namespace, "late-user", target.login.user, f"{MARK} wrong"))
    pool.patch(users=[user("late-user")])
    says("SecretNotFound", 'Secret "late-admin" (adminSecretRef) does not exist')

    kubectl.apply(kit.basic_auth(namespace, "late-admin", admin["username"], f"{MARK} wrong"))
    says("Unreachable", "postgres.nowhere.svc:5432", condition="ServerReachable")

    pool.patch(server={"host": target.other_host("late")})
    says("AuthenticationFailed", 'Secret "late-admin"', "password authentication failed", condition="ServerReachable")

    kubectl.apply(kit.basic_auth(namespace, "late-admin", admin["username"], admin["password"]))
    says("AuthenticationFailed", "password authentication failed", '"late-user"')
    assert [is_ready(pod) for pod in pool.pods()] == [True]  # clients wait in the queue; they are not turned away

    kubectl.apply(kit.basic_auth(namespace, "late-user", target.login.user, target.login.password))
    pool.ready(timeout=40)
    assert postgres.psql(target.through(pool), "SELECT 1") == "1"


# -- nothing that was said holds a secret ------------------------------------------------------------------------------


def test_no_answer_holds_a_secret(kubectl: kit.Kubectl, target: kit.Target, shop: Shop) -> None:
    here = ("-n", shop.pool.namespace)
    everything = {
        "objects and events": (*here, "get", "all,pgpools,pgservers,events,networkpolicies", "-o", "json"),
        "what describe says": (*here, "describe", "pgpools,pgservers,deployments,pods"),
        "logs of the pods": (*here, "logs", "-l", names.LABEL_POOL, "--all-containers", "--tail=-1"),
        "logs of the operator": ("-n", kit.SYSTEM_NAMESPACE, "logs", *OPERATOR, "--tail=-1"),
    }
    admin = kubectl.secret(shop.pool.namespace, target.ADMIN_SECRET)["password"]
    key = kubectl.secret(shop.pool.namespace, names.config_secret("shop"))[names.KEY_FILE]
    for what, command in everything.items():
        text = kubectl.run(*command)
        assert "shop" in text, f"there is nothing in: {what}"
        leaks = [each for each in (MARK, target.login.password, admin, key) if each in text]
        assert not leaks, f"{what}: {[line for line in text.splitlines() if leaks[0] in line][:3]}"


# -- helpers -----------------------------------------------------------------------------------------------------------


def loaded(pool: kit.Pool) -> list[int]:
    """The limits that the pods have loaded, in connections, of all databases."""
    return [limit for databases in pool.loaded().values() for _, limit in databases.values()]


def told(pool: kit.Pool, **wanted: tuple[str, str]) -> dict[str, str]:
    """Wait until these conditions have this (status, reason) for the newest spec; the messages of all conditions."""

    def holds() -> dict[str, str] | None:
        body = pool.get()
        conditions = {c["type"]: c for c in (body.get("status") or {}).get("conditions") or ()}
        newest = {c.get("observedGeneration") for c in conditions.values()} == {body["metadata"]["generation"]}
        as_wanted = newest and wanted == {t: (conditions[t]["status"], conditions[t]["reason"]) for t in wanted}
        return {t: c["message"] for t, c in conditions.items()} if as_wanted else None

    try:
        return kit.await_until(holds, 40, f"{wanted}") or {}
    except AssertionError as error:
        raise AssertionError(f"{error}\n{pool.describe()}") from None


def server_told(pool: kit.Pool, reason: str) -> str:
    """Wait until the PgServer of an inline server says Ready=False with this reason, in an event too; its message."""

    def holds() -> str:
        conditions = kit.server_status(pool.kubectl, pool.namespace, pool.name).get("conditions") or ()
        found = [c for c in conditions if (c["type"], c["status"], c["reason"]) == ("Ready", "False", reason)]
        return str(found[0]["message"]) if found else ""

    words = kit.await_until(holds, 20, f"PgServer {pool.name} not ready: {reason}")
    await_warning(pool, reason, words, kind=names.SERVER_KIND)
    return words


def await_warning(pool: kit.Pool, reason: str, message: str, kind: str = names.POOL_KIND) -> None:
    """Wait for the Warning with this message that `kubectl describe` shows."""

    def there() -> bool:
        about = f"involvedObject.kind={kind},involvedObject.name={pool.name},reason={reason},type=Warning"
        events = pool.kubectl.get_json("-n", pool.namespace, "events", f"--field-selector={about}")["items"]
        return any(event["message"] == message for event in events)

    kit.await_until(there, 10, f"an event {reason}: {message}")
