"""Rotation of client users: what blocks one, what is written in which order, and what the status says of it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from poolfleet.api import names
from poolfleet.plan import logins
from poolfleet.plan.logins import Around, Create, LoginPlan, Neighbour, Remove, Write
from poolfleet.plan.managed import encoded, read_about
from poolfleet.plan.model import RotationLine
from poolfleet.plan.objects.secret import decode
from poolfleet.plan.pool import plan as pool_plan
from poolfleet.plan.poolview import PoolView
from poolfleet.plan.secrets import alternate, credentials, userlist
from poolfleet.plan.status import conclude
from poolfleet.plan.times import timestamp
from tests.unit.pool_fixtures import KEY, NOW, Body, applied, pod, pool_body, server_body, state, view

ROLE = {"username": b"role", "password": b"role's"}
ROTATION = {"interval": "1h", "overlap": "10m"}


def secret(name: str, values: Mapping[str, str], created: float = NOW, **metadata: Any) -> Body:
    """A live Secret that Poolfleet may write."""
    stamps = {"uid": f"uid-{name}", "resourceVersion": "1", "creationTimestamp": timestamp(created)}
    labels = {names.LABEL_MANAGED: "true"}
    return {
        "metadata": {"name": name, "namespace": "demo", "labels": labels, **stamps, **metadata},
        "data": encoded(values),
    }


APP = secret("app", {"username": "app", "password": "one"})


def user(**more: Any) -> Body:
    return {"secretRef": {"name": "app"}, "rotation": ROTATION, **more}


def seen(
    main: Body | None = APP,
    following: Body | None = None,
    users: tuple[Body, ...] = (user(),),
    asked: str = "",
    databases: Any = None,
    **more: Any,
) -> PoolView:
    """The pool with user Secret `app`, and `following` as the Secret of its next login."""
    body = pool_body(
        server=None,
        serverRef={"name": "db"},
        databases=databases or [{"name": "shop", "credentialsSecretRef": {"name": "role"}}],
        users=list(users),
    )
    body["metadata"]["annotations"] = {names.ROTATE: asked} if asked else {}
    return view(
        body,
        server_body("db"),
        secrets={"app": None if main is None else decode(main), "role": ROLE},
        secret_bodies={("demo", "app"): main},
        next_secrets={} if following is None else {"app": following},
        fresh_password="fresh",
        **more,
    )


def planned(view: PoolView, *pools: Neighbour, servers: tuple[str, ...] = ()) -> LoginPlan:
    return logins.plan(view, {"app": Around(pools, servers)})


def one(plan: LoginPlan) -> RotationLine:
    (line,) = plan.lines
    return line


def begun(**more: Any) -> Body:
    """The Secret of the next login as a due rotation makes it."""
    (effect,) = planned(seen(asked="1", **more)).effects
    assert isinstance(effect, Create)
    manifest = effect.manifest
    return {**manifest, "metadata": {**manifest["metadata"], "uid": "uid-next", "resourceVersion": "2"}}


def with_config(found: PoolView, **more: Any) -> PoolView:
    """`found` once x-config was written, and two pods have loaded it unless `more` says otherwise."""
    first = pool_plan(found)
    assert not first.findings
    pods = tuple(pod(name, state=state(first.config, name)) for name in "ab")
    return replace(found, children=applied(first, found.children), **{"pods": pods, **more})


def moved(at: float = NOW, values: Mapping[str, str] | None = None) -> Body:
    """The user's Secret once the new login is in it."""
    record = f'{{"at":"{timestamp(at)}","for":{{"shop":"1"}},"next":"uid-next"}}'
    values = values or {"username": "app_alt", "password": "fresh"}
    return secret("app", values, annotations={names.ROTATED: record})


def test_not_due_yet_it_waits_for_the_interval() -> None:
    plan = planned(seen(secret("app", {"username": "app", "password": "one"}, created=NOW - 600)))
    assert plan.effects == ()
    line = one(plan)
    assert (line.phase, line.login, line.next, line.reason) == ("Idle", "app", NOW + 3000, "")
    assert plan.again == 3000


def test_due_by_the_interval_the_next_login_is_stored_first() -> None:
    plan = planned(seen(secret("app", {"username": "app", "password": "one"}, created=NOW - 3600)))
    (effect,) = plan.effects
    assert isinstance(effect, Create)
    assert effect.manifest["metadata"]["name"] == "app-next"
    assert {key: value.decode() for key, value in decode(effect.manifest).items()} == {
        "username": "app_alt",
        "password": "fresh",
        "formerUsername": "app",
        "formerPassword": "one",
    }
    assert read_about(effect.manifest) == {
        "kind": "user",
        "secret": "app",
        "pool": "shop",
        "rotate": "",
        "overlap": 600.0,
    }
    assert effect.manifest["metadata"]["ownerReferences"][0]["uid"] == "uid-pool"
    assert "fresh" not in repr(plan)


def test_the_annotation_asks_for_it_once() -> None:
    assert planned(seen(asked="1")).effects
    obeyed = moved(NOW - 5)
    assert not planned(seen(obeyed, asked="1")).effects
    assert planned(seen(obeyed, asked="2")).effects


def test_the_interval_counts_from_the_last_rotation() -> None:
    assert one(planned(seen(moved(NOW - 100)))).next == NOW + 3500


def test_both_logins_are_let_in_and_the_secret_waits_for_every_pod() -> None:
    found = seen(following=begun())
    assert userlist(found, credentials(found).users, KEY) == {"app": "one", "app_alt": "fresh"}

    plan = planned(found)  # no x-config holds it yet
    assert (plan.effects, one(plan).phase) == ((), "Loading")

    loaded = with_config(found)
    stale = pod("b", state=state("older", "b"))
    assert not planned(replace(loaded, pods=(loaded.pods[0], stale))).effects
    silent = pod("b", state=None)
    assert not planned(replace(loaded, pods=(loaded.pods[0], silent))).effects
    unborn = pod("b", state=state("", "b"), ready=False)
    assert planned(replace(loaded, pods=(loaded.pods[0], unborn))).effects
    about_to_load = replace(unborn, raw_directive="{}")
    assert not planned(replace(loaded, pods=(loaded.pods[0], about_to_load))).effects
    gone = replace(stale, terminating=True)
    assert planned(replace(loaded, pods=(loaded.pods[0], gone))).effects

    (effect,) = planned(loaded).effects
    assert isinstance(effect, Write)
    assert effect.values == {"username": "app_alt", "password": "fresh"}
    assert effect.rotated == {"at": timestamp(NOW), "for": {"shop": "1"}, "next": "uid-next"}
    assert effect.secret is APP


def test_it_does_not_begin_while_a_password_of_the_server_is_staged() -> None:
    found = with_config(seen(asked="1"))
    assert planned(found).effects
    config = dict(found.children["Secret", "shop-config"])
    config["metadata"] = {**config["metadata"], "annotations": {names.STAGED: '["role"]'}}
    plan = planned(replace(found, children={**found.children, ("Secret", "shop-config"): config}))
    assert (plan.effects, one(plan).phase, one(plan).reason) == ((), "Checking", "")


def test_the_keys_are_those_of_the_spec() -> None:
    keys = {"usernameKey": "name", "passwordKey": "word"}
    main = secret("app", {"name": "app", "word": "one"})
    users = (user(secretRef={"name": "app", **keys}),)
    following = begun(main=main, users=users)
    (effect,) = planned(with_config(seen(main, following, users))).effects
    assert isinstance(effect, Write) and effect.values == {"name": "app_alt", "word": "fresh"}


def test_the_former_login_works_until_the_overlap_is_over() -> None:
    found = seen(moved(NOW - 599), begun())
    assert userlist(found, credentials(found).users, KEY) == {"app_alt": "fresh", "app": "one"}
    agents = tuple(
        pod(name, state=state("c", name, users={"app": count}, mounted="c")) for name, count in (("a", 2), ("b", 3))
    )
    plan = planned(replace(found, pods=agents))
    line = one(plan)
    assert plan.effects == () and plan.again == 1
    assert (line.phase, line.login, line.retiring, line.until, line.clients) == (
        "Retiring",
        "app_alt",
        "app",
        NOW + 1,
        5,
    )
    assert one(planned(found)).clients is None  # nobody tells

    (effect,) = planned(replace(found, now=NOW + 1)).effects
    assert isinstance(effect, Remove)


def test_afterwards_the_former_user_is_refused() -> None:
    loaded = with_config(seen(moved(), begun()))
    after = replace(loaded, next_secrets={})
    listed = userlist(after, credentials(after).users, KEY)
    assert listed["app_alt"] == "fresh" and listed["app"] != "one"


def test_without_rotation_in_spec_it_goes_on_to_its_end_by_the_overlap_of_its_beginning() -> None:
    plain = ({"secretRef": {"name": "app"}},)
    assert isinstance(planned(with_config(seen(APP, begun(), plain))).effects[0], Write)
    assert planned(seen(moved(NOW - 599), begun(), plain)).effects == ()
    assert isinstance(planned(seen(moved(NOW - 600), begun(), plain)).effects[0], Remove)
    assert planned(seen(moved(), None, plain)) == LoginPlan()


def test_a_secret_changed_by_hand_meanwhile_makes_it_start_over() -> None:
    by_hand = secret("app", {"username": "app", "password": "another"})
    assert isinstance(planned(with_config(seen(by_hand, begun()))).effects[0], Remove)
    assert not planned(seen(moved(values={"username": "app_alt", "password": "another"}), begun())).effects


def test_what_the_secret_holds_wins_over_what_was_kept_beside_it() -> None:
    found = seen(moved(values={"username": "app_alt", "password": "by hand"}), begun())
    assert userlist(found, credentials(found).users, KEY) == {"app_alt": "by hand", "app": "one"}


def test_a_spoilt_next_login_is_made_anew() -> None:
    following = begun()
    following["data"] = encoded({"username": "x"})
    assert isinstance(planned(seen(following=following)).effects[0], Remove)


def test_a_missing_secret_is_made() -> None:
    plan = planned(seen(None, users=(user(username="app"),), asked="7"))
    (effect,) = plan.effects
    assert isinstance(effect, Create)
    manifest = effect.manifest
    assert (manifest["metadata"]["name"], manifest["type"]) == ("app", "kubernetes.io/basic-auth")
    assert decode(manifest) == {"username": b"app", "password": b"fresh"}
    assert manifest["metadata"]["labels"][names.LABEL_WATCH] == "true"
    made = {**manifest, "metadata": {**manifest["metadata"], "uid": "u", "resourceVersion": "1"}}
    after = planned(seen(made, users=(user(username="app"),), asked="7"))
    assert (after.effects, one(after).phase) == ((), "Idle")  # what was asked before it was made is no reason


def test_the_declared_user_name_stands_for_both() -> None:
    users = ({"secretRef": {"name": "app"}, "username": "app"},)
    assert [login.username for login in credentials(seen(moved(), users=users)).users] == ["app_alt"]
    stranger = secret("app", {"username": "other", "password": "x"})
    assert credentials(seen(stranger, users=users)).problems
    unmanaged = moved()
    unmanaged["metadata"]["labels"] = {}
    assert credentials(seen(unmanaged, users=users)).problems


def test_what_blocks_it() -> None:
    unlabelled = secret("app", {"username": "app", "password": "one"}, labels={})
    others = {"secretRef": {"name": "app"}}
    neighbour = pool_body(databases=[{"name": "d", "credentialsSecretRef": {"name": "r"}}], users=[others])
    neighbour["metadata"]["name"] = "aaa"

    def near(**spec: Any) -> Neighbour:
        return Neighbour({**neighbour, "spec": {**neighbour["spec"], **spec}}, None, ())

    role = {"name": "shop", "credentialsSecretRef": {"name": "app"}}
    stranger = secret("app-next", {"username": "x"})
    elsewhere = begun()
    elsewhere["metadata"]["annotations"] = {
        names.NEXT: elsewhere["metadata"]["annotations"][names.NEXT].replace('"pool":"shop"', '"pool":"aaa"')
    }
    for plan, words in [
        (planned(seen(unlabelled, asked="1")), names.LABEL_MANAGED),
        (planned(seen(unlabelled, begun())), names.LABEL_MANAGED),
        (planned(seen(asked="1", databases=[{"name": "shop"}])), "every database a credentialsSecretRef"),
        (planned(seen(asked="1", databases=[role])), "every database a credentialsSecretRef"),
        (planned(seen(asked="1"), near(databases=[{"name": "d"}])), 'PgPool "aaa" logs in on the server'),
        (planned(seen(asked="1"), servers=("db",)), 'PgServer "db" logs in'),
        (planned(seen(asked="1"), near(users=[user()])), 'PgPool "aaa" rotates'),
        (planned(seen(following=elsewhere), near()), 'PgPool "aaa" rotates'),
        (planned(seen(asked="1", following=stranger)), 'Secret "app-next" is in the way'),
        (planned(seen(None)), "users[].username"),
        (planned(seen(None, users=(user(username="pgbouncer"),))), "no name that PgBouncer can carry"),
        (planned(seen(secret("app", {"username": "app"}))), "holds no valid login"),
        (planned(seen(None, begun())), "was deleted"),
    ]:
        assert plan.effects == (), words
        line = one(plan)
        assert (line.phase, line.reason) == ("Blocked", "RotationBlocked")
        assert words in line.message


def test_another_users_name_is_not_taken() -> None:
    other = {"secretRef": {"name": "other"}}
    found = seen(asked="1", users=(user(), other))
    found = replace(found, secrets={**found.secrets, ("demo", "other"): {"username": b"app_alt", "password": b"x"}})
    assert '"app_alt", which another user has' in one(planned(found)).message


def test_a_pool_that_only_names_the_secret_lets_both_in_and_is_waited_for() -> None:
    following = begun()
    plain = with_config(seen(following=following, users=({"secretRef": {"name": "app"}},)))
    neighbour = Neighbour(
        {**plain.body, "metadata": {**plain.body["metadata"], "name": "zzz"}}, plain.config, plain.pods
    )
    driver = with_config(seen(following=following))
    assert planned(driver, neighbour).effects
    plan = planned(driver, replace(neighbour, pods=(pod("a", state=state("older")),)))
    assert plan.effects == () and 'PgPool "zzz"' in one(plan).message
    assert plan.again == 1.0  # its pods do not tell this pool
    assert not planned(driver, replace(neighbour, config=None)).effects


def test_the_next_pool_goes_on_when_the_one_that_began_is_gone() -> None:
    following = begun()
    about = following["metadata"]["annotations"][names.NEXT].replace('"pool":"shop"', '"pool":"gone"')
    following["metadata"]["annotations"] = {names.NEXT: about}
    assert planned(with_config(seen(following=following))).effects


def test_a_paused_pool_stands_still() -> None:
    found = seen(asked="1")
    found = replace(found, body={**found.body, "spec": {**found.body["spec"], "paused": True}})
    assert planned(found).effects == ()


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("app", "app_alt"),
        ("app_alt", "app"),
        ("_alt", "_alt_alt"),
        ("pgbouncer_alt", "pgbouncer_alt_alt"),
        ("x" * 63, "x" * 59 + "_alt"),
        ("ü" * 31, "ü" * 29 + "_alt"),
    ],
)
def test_user_names_alternate(name: str, other: str) -> None:
    assert alternate(name) == other
    assert len(other.encode()) <= 63
    assert alternate(alternate(other)) == other


def test_a_declared_long_name_comes_back() -> None:
    assert alternate("x" * 59 + "_alt", "x" * 63) == "x" * 63


class TestStatus:
    def told(self, before: PoolView, after: PoolView) -> list[tuple[str, str, str]]:
        """The events from one look to the next."""
        first = self.concluded(before)
        second = self.concluded(replace(after, body={**after.body, "status": first.status}))
        return [(e.type, e.reason, e.message) for e in second.events if e.reason.startswith(("Rot", "Login"))]

    def concluded(self, found: PoolView) -> Any:
        return conclude(found, replace(pool_plan(found), logins=planned(found).lines))

    def test_events_of_a_rotation(self) -> None:
        following = begun()
        before, after = with_config(seen(following=following)), with_config(seen(moved(), following))
        ((kind, reason, words),) = self.told(before, after)
        assert (kind, reason) == ("Normal", "Rotated")
        assert '"app_alt"' in words and '"app" is refused from' in words
        assert self.told(after, after) == []
        config = pool_plan(after).config
        crowd = (pod("a", state=state(config, users={"app": 3}, mounted=config)),)
        ((kind, reason, words),) = self.told(after, replace(after, next_secrets={}, pods=crowd))
        assert (kind, reason) == ("Normal", "LoginRetired")
        assert '"app", the former login' in words and "3 clients are still connected" in words

    def test_blocked_is_a_condition_and_a_warning_once(self) -> None:
        unlabelled = with_config(seen(secret("app", {"username": "app", "password": "one"}, labels={})))
        ((kind, reason, words),) = self.told(with_config(seen()), unlabelled)
        assert (kind, reason) == ("Warning", "RotationBlocked") and names.LABEL_MANAGED in words
        assert self.told(unlabelled, unlabelled) == []
        current = next(c for c in self.concluded(unlabelled).status["conditions"] if c["type"] == "CredentialsCurrent")
        assert (current["status"], current["reason"]) == ("False", "RotationBlocked")

    def test_clients_of_the_former_login_move_like_all_live_numbers(self) -> None:
        found = with_config(seen(moved(), begun()))
        config = pool_plan(found).config

        def with_clients(count: int, found: PoolView) -> PoolView:
            return replace(found, pods=(pod("a", state=state(config, users={"app": count}, mounted=config)),))

        first = self.concluded(with_clients(5, found))
        assert first.status["rotations"][0]["retiring"]["clients"] == 5
        body = {**found.body, "status": first.status}
        later = replace(with_clients(3, found), body=body, numbers_moved=NOW - 1)
        assert self.concluded(later).status["rotations"][0]["retiring"]["clients"] == 5
        assert self.concluded(replace(later, numbers_moved=NOW - 60)).status["rotations"][0]["retiring"]["clients"] == 3

    def test_one_line_for_each_secret(self) -> None:
        found = with_config(seen(asked="1", databases=[{"name": "shop", "credentialsSecretRef": {"name": "app"}}]))
        of_role = RotationLine("app", "app", "Idle", "x" * 3000)
        status = self.concluded(replace(found, rotations=(of_role,))).status
        (item,) = status["rotations"]
        assert item["phase"] == "Idle" and len(item["message"]) == 2048
        current = next(c for c in status["conditions"] if c["type"] == "CredentialsCurrent")
        assert (current["status"], current["reason"]) == ("False", "RotationBlocked")

    def test_a_staged_password_is_no_fault(self) -> None:
        found = with_config(seen(), pods=(pod("a", state=state("older")),))
        plan = replace(pool_plan(found), staged=("role",))
        conditions = {c["type"]: c for c in conclude(found, plan).status["conditions"]}
        current = conditions["CredentialsCurrent"]
        assert (current["status"], current["reason"]) == ("True", "Rotating")
        assert 'Secret "role"' in current["message"]
        failed = RotationLine("role", "role", "Failed", "because", "RotationFailed")
        conditions = {c["type"]: c for c in conclude(replace(found, rotations=(failed,)), plan).status["conditions"]}
        assert conditions["CredentialsCurrent"]["reason"] == "RotationFailed"
