"""A client user's login is rotated: both work for the overlap, the binding moves at once, the former one is refused at
the end. Secrets that Poolfleet may not write stay as they are; a missing one is made."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from poolfleet.api import names
from tests.e2e import kit

OVERLAP = 15  # seconds
CROWD = 3  # clients that stay with the former login


@dataclass(frozen=True)
class Shop:
    """A pool of two pods with one client user, `shopper`, over one role of the server."""

    pool: kit.Pool
    target: kit.Target

    def spec_users(self, *more: kit.Manifest) -> list[kit.Manifest]:
        return [{"secretRef": {"name": "shopper"}, "rotation": {"overlap": f"{OVERLAP}s"}}, *more]

    def login(self, secret: str, host: str = "") -> kit.Login:
        """Through the pool with the login that a Secret holds now."""
        values = self.pool.kubectl.secret(self.pool.namespace, secret)
        login = self.target.through(self.pool, host)
        return replace(login, user=values["username"], password=values["password"])

    def let_in(self, login: kit.Login) -> list[bool]:
        """Whether each pod lets in."""
        return [self._lets_in(replace(login, host=ip)) for ip in self.pool.ips().values()]

    def _lets_in(self, login: kit.Login) -> bool:
        try:
            self.target.postgres.psql(login, "SELECT 1")
        except kit.KubectlError as error:
            assert "authentication failed" in str(error), error
            return False
        return True

    def rotate(self, value: str) -> None:
        self.pool.kubectl.patch(
            self.pool.namespace, "pgpool/shop", {"metadata": {"annotations": {names.ROTATE: value}}}
        )

    def line(self, secret: str) -> dict[str, Any]:
        """The item of status.rotations."""
        lines = self.pool.status().get("rotations") or ()
        return next((line for line in lines if line["secret"] == secret), {})

    def managed(self, name: str) -> kit.Manifest:
        """A Secret that Poolfleet may write."""
        manifest = kit.basic_auth(self.pool.namespace, name, name, secrets.token_urlsafe(9))
        manifest["metadata"]["labels"][names.LABEL_MANAGED] = "true"
        return manifest


@pytest.fixture(scope="module")
def shop(kubectl: kit.Kubectl, target: kit.Target, namespace: str) -> Iterator[Shop]:
    shop = Shop(kit.Pool(kubectl, namespace, "shop"), target)
    kubectl.apply(shop.managed("shopper"))
    reference = {"name": target.SECRET}
    database = {"name": target.login.database, "credentialsSecretRef": reference}
    shop.pool.apply(target.spec(databases=[database], users=shop.spec_users()))
    shop.pool.ready()
    shop.pool.condition("CredentialsCurrent", "True", "Loaded")
    yield shop


def test_a_rotation_from_beginning_to_end(shop: Shop, clients: kit.Clients) -> None:
    pool, kubectl = shop.pool, shop.pool.kubectl
    former = shop.login("shopper")
    assert former.user == "shopper"
    crowd = clients.start("crowd", former, "--clients", str(CROWD), "--until-eof")
    kit.await_until(crowd.lines, 20, "clients with the former login")

    shop.rotate("1")
    new = kit.await_until(lambda: _other(shop.login("shopper"), former), 20, "the Secret holds a new login")
    assert new is not None
    assert new.user == "shopper_alt"
    assert shop.let_in(new) == [True, True]  # from the moment in which it was handed out
    assert shop.let_in(former) == [True, True]

    binding = kubectl.secret(pool.namespace, names.binding_secret("shop"))
    assert (binding["username"], binding["password"]) == (new.user, new.password)
    kit.await_until(
        lambda: shop.line("shopper").get("retiring", {}).get("clients") == CROWD, 30, "who still uses the former login"
    )
    line = shop.line("shopper")
    assert (line["phase"], line["login"], line["retiring"]["username"]) == ("Retiring", "shopper_alt", "shopper")
    assert '"shopper_alt"' in pool.events()["Rotated"]

    kit.await_until(lambda: shop.let_in(former) == [False, False], OVERLAP + 15, "the former login is refused")
    assert shop.let_in(new) == [True, True]
    assert kubectl.find("-n", pool.namespace, "secret", names.next_secret("shopper")) is None
    kit.await_until(lambda: shop.line("shopper")["phase"] == "Idle", 10, "the rotation is over")
    told = kit.await_until(lambda: pool.events().get("LoginRetired"), 10, "an event says so")
    assert told is not None and f"{CROWD} clients are still connected" in told
    everything = f"{kubectl.get_json('-n', pool.namespace, 'pgpools,events')}"
    assert former.password not in everything and new.password not in everything
    crowd.stop()


def test_a_secret_without_the_label_stays_as_it_is(shop: Shop) -> None:
    kubectl, namespace = shop.pool.kubectl, shop.pool.namespace
    manifest = shop.managed("theirs")
    del manifest["metadata"]["labels"][names.LABEL_MANAGED]
    kubectl.apply(manifest)
    before = kubectl.get_json("-n", namespace, "secret", "theirs")
    shop.pool.patch(users=shop.spec_users({"secretRef": {"name": "theirs"}, "rotation": {}}))
    message = shop.pool.condition("CredentialsCurrent", "False", "RotationBlocked")
    assert '"theirs"' in message and names.LABEL_MANAGED in message
    shop.rotate("2")
    kit.await_until(lambda: shop.line("shopper").get("login") == "shopper", 20, "the other Secret is rotated")
    assert shop.line("theirs")["phase"] == "Blocked"
    assert kubectl.get_json("-n", namespace, "secret", "theirs") == before
    assert shop.let_in(shop.login("theirs")) == [True, True]
    assert "RotationBlocked" in shop.pool.events()

    kubectl.patch(namespace, "secret/theirs", {"metadata": {"labels": {names.LABEL_MANAGED: "true"}}})
    kit.await_until(lambda: shop.login("theirs").user == "theirs_alt", 20, "with the label it is rotated")
    shop.pool.condition("CredentialsCurrent", "True", "Loaded")


def test_a_missing_secret_is_made(shop: Shop) -> None:
    kubectl, namespace = shop.pool.kubectl, shop.pool.namespace
    made = {"secretRef": {"name": "made"}, "username": "maker", "rotation": {"interval": "720h"}}
    shop.pool.patch(users=shop.spec_users(made))
    kit.await_until(lambda: kubectl.find("-n", namespace, "secret", "made"), 20, "the Secret is made")
    kit.await_until(lambda: shop.let_in(shop.login("made")) == [True, True], 20, "its login works")
    assert shop.login("made").user == "maker"
    shop.pool.condition("CredentialsCurrent", "True", "Loaded")
    line = shop.line("made")
    assert (line["phase"], line["login"]) == ("Idle", "maker")
    assert line["nextRotationTime"] > line["lastRotationTime"]
    assert "SecretNotFound" not in shop.pool.events()


def _other(login: kit.Login, before: kit.Login) -> kit.Login | None:
    return None if login.user == before.user else login
