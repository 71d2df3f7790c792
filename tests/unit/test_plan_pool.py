"""Planning a PgPool's children: what is made, in which order, what changes a pod, and what is left alone."""

import copy
from dataclasses import replace
from typing import Any

import pytest

from poolfleet.api import names
from poolfleet.api.conditions import Reason
from poolfleet.api.wire import config_hash
from poolfleet.plan import config
from poolfleet.plan.objects.secret import decode
from poolfleet.plan.pool import Doomed, Plan, frozen, plan, wishes
from poolfleet.plan.sizing import PoolWish
from tests.unit.pool_fixtures import (
    SECRETS,
    SETTINGS,
    Body,
    applied,
    data,
    of,
    pool_body,
    server_body,
    settled,
    view,
)

GUEST = {**SECRETS, "guest": {"username": b"guest", "password": b"welcome"}}
TWO_USERS = [{"secretRef": {"name": "shop-app"}}, {"secretRef": {"name": "guest"}}]


def kinds(planned: Plan) -> list[tuple[str, str]]:
    return [(obj["kind"], obj["metadata"]["name"]) for obj in planned.apply]


def template(planned: Plan) -> Any:
    return of(planned, "Deployment")["spec"]["template"]


def test_everything_is_made_and_the_pods_last() -> None:
    planned = plan(view())
    assert kinds(planned) == [
        ("PgServer", "shop"),
        ("Secret", "shop-config"),
        ("Secret", "shop-binding"),
        ("Service", "shop"),
        ("PodDisruptionBudget", "shop"),
        ("NetworkPolicy", "shop"),
        ("Deployment", "shop"),
    ]
    assert planned.findings == ()
    assert planned.config == config_hash(decode(of(planned, "Secret", "shop-config")))


def test_a_settled_pool_writes_nothing() -> None:
    planned = plan(settled())
    assert (planned.apply, planned.delete, planned.findings, planned.waiting) == ((), (), (), None)


def test_the_fresh_key_is_used_once() -> None:
    assert plan(replace(settled(), fresh_key="cd" * 32)).apply == ()


def test_an_inline_server_comes_first_and_alone_has_no_pods() -> None:
    planned = plan(view(no_server=True))
    assert ("PgServer", "shop") in kinds(planned)
    assert not {("Secret", "shop-config"), ("Deployment", "shop")} & set(kinds(planned))
    assert planned.waiting is not None
    assert planned.waiting.reason == Reason.WAITING_FOR_SERVER


def test_a_server_that_is_not_discovered_yet_is_waited_for_in_its_own_words() -> None:
    failing = {"type": "Ready", "status": "False", "reason": "AuthenticationFailed", "message": "wrong password"}
    planned = plan(view(server=server_body(budget=None, conditions=[failing])))
    assert planned.waiting is not None
    assert planned.waiting.reason == "AuthenticationFailed"
    assert planned.waiting.message == 'PgServer "shop": wrong password'
    assert ("Deployment", "shop") not in kinds(planned)


def test_a_running_pool_survives_a_server_that_forgot_its_numbers() -> None:
    before = settled()
    forgetful = server_body(budget=None)
    planned = plan(view(server=forgetful, live={**before.children, ("PgServer", "shop"): forgetful}))
    assert not {("Secret", "shop-config"), ("Deployment", "shop")} & set(kinds(planned))
    assert planned.waiting is None


def test_a_referenced_server_is_not_touched() -> None:
    body = pool_body(server=None, serverRef={"name": "db"})
    planned = plan(view(body, server_body("db")))
    assert planned.findings == ()
    assert "PgServer" not in {kind for kind, _ in kinds(planned)}
    assert template(planned)["metadata"]["annotations"][names.SERVER_UID] == "uid-server"


RELOADS: dict[str, Body] = {
    "users": {"users": TWO_USERS},
    "databases": {"databases": [{"name": "shop"}, {"name": "more"}]},
    "replicas": {"replicas": 5},
    "clients": {"maxClientConnections": 77},
    "mode": {"poolMode": "session"},
    "parameter": {"pgbouncer": {"parameters": {"query_wait_timeout": 30}}},
    "host": {"server": {"host": "elsewhere", "maxConnections": 100}},
    "service": {"service": {"port": 5432}},
    "policy": {"networkPolicy": {"enabled": False}},
}


@pytest.mark.parametrize("name", RELOADS)
def test_what_a_reload_can_do_changes_no_pod(name: str) -> None:
    before = settled(secrets=GUEST)
    after = plan(view(pool_body(**RELOADS[name]), secrets=GUEST, live=before.children))
    assert after.findings == ()
    assert after.apply or after.delete
    assert template(after) == template(plan(before))


def test_a_password_changes_no_pod() -> None:
    before = settled()
    after = plan(view(secrets={"shop-app": {"username": b"shop", "password": b"new"}}, live=before.children))
    assert kinds(after) == [("Secret", "shop-config"), ("Secret", "shop-binding")]
    assert after.config != plan(before).config


ROLLOUTS: dict[str, Body] = {
    "drain": {"drain": {"timeoutSeconds": 5}},
    "restart-only parameter": {"pgbouncer": {"parameters": {"pkt_buf": 8192}}},
    "image": {"pgbouncer": {"image": "mine:2"}},
    "template": {"template": {"spec": {"nodeSelector": {"a": "b"}}}},
}


@pytest.mark.parametrize("name", ROLLOUTS)
def test_what_a_reload_cannot_do_makes_new_pods_with_current_images(name: str) -> None:
    before = settled()
    newer = replace(SETTINGS, agent_image="example/operator:2")
    after = plan(view(pool_body(**ROLLOUTS[name]), live=before.children, settings=newer))
    assert template(after) != template(plan(before))
    assert template(after)["spec"]["initContainers"][0]["image"] == "example/operator:2"


def test_another_server_makes_new_pods() -> None:
    other = server_body()
    other["metadata"]["uid"] = "uid-other"
    after = plan(view(server=other, live={**settled().children, ("PgServer", "shop"): other}))
    assert template(after)["metadata"]["annotations"][names.SERVER_UID] == "uid-other"


def test_an_operator_upgrade_writes_nothing() -> None:
    newer = replace(SETTINGS, agent_image="o:2", pgbouncer_image="p:2", image_pull_policy="Always", run_as_user=7)
    assert plan(replace(settled(), settings=newer)).apply == ()


def test_a_rollout_restart_is_kept_and_takes_current_images() -> None:
    before = settled()
    live = copy.deepcopy(dict(before.children))
    annotations = live["Deployment", "shop"]["spec"]["template"]["metadata"]["annotations"]
    annotations["kubectl.kubernetes.io/restartedAt"] = "2027-01-01T00:00:00Z"
    newer = replace(SETTINGS, agent_image="example/operator:2")
    after = plan(view(live=live, settings=newer))
    assert kinds(after) == [("Deployment", "shop")]
    assert template(after)["spec"]["initContainers"][0]["image"] == "example/operator:2"
    assert "kubectl.kubernetes.io/restartedAt" not in template(after)["metadata"]["annotations"]
    kept = applied(after, live)
    kept["Deployment", "shop"]["spec"]["template"]["metadata"]["annotations"] |= annotations
    assert plan(view(live=kept, settings=newer)).apply == ()


@pytest.mark.parametrize("kind", ["Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "PgServer"])
def test_a_deleted_child_is_made_again(kind: str) -> None:
    before = settled()
    live = {child: body for child, body in before.children.items() if child[0] != kind}
    arguments: Any = {"children": live} if kind == "PgServer" else {"live": live}
    assert (kind, "shop") in kinds(plan(view(**arguments)))


def test_a_deleted_configuration_is_made_again_as_it_was() -> None:
    before = settled()
    lost = before.children["Secret", "shop-config"]
    live = {child: body for child, body in before.children.items() if child != ("Secret", "shop-config")}
    after = plan(view(live=live, last_config=lost, fresh_key="cd" * 32))
    assert kinds(after) == [("Secret", "shop-config")]
    assert after.config == plan(before).config


def test_further_users_have_bindings_that_go_with_them() -> None:
    before = settled(pool_body(users=TWO_USERS), secrets=GUEST)
    assert data(of(plan(before), "Secret", "shop-binding-guest"))["username"] == "guest"
    after = plan(view(live=before.children))
    assert after.delete == (Doomed("Secret", "shop-binding-guest", "uid-Secret-shop-binding-guest"),)


def test_a_switched_off_policy_goes_and_nothing_else() -> None:
    before = settled()
    after = plan(view(pool_body(networkPolicy={"enabled": False}), live=before.children))
    assert after.delete == (Doomed("NetworkPolicy", "shop", "uid-NetworkPolicy-shop"),)
    assert after.apply == ()


def test_a_paused_pool_is_left_alone() -> None:
    before = settled()
    live = {child: body for child, body in before.children.items() if child[0] != "Service"}
    after = plan(view(pool_body(paused=True, replicas=7, users=TWO_USERS), live=live))
    assert (after.wanted, after.apply, after.delete, after.findings) == ((), (), (), ())
    assert after.config == plan(before).config


def test_children_that_no_watch_shows_are_looked_for() -> None:
    planned = plan(view())
    assert planned.unseen(view()) == [child for child in kinds(planned) if child != ("PgServer", "shop")]
    assert plan(settled()).unseen(settled()) == []


def test_overridden_template_fields_are_told() -> None:
    body = pool_body(template={"spec": {"hostNetwork": True}})
    assert plan(view(body)).overridden == ("spec.hostNetwork",)


def test_wishes_are_of_what_is_served() -> None:
    before = settled(pool_body(databases=[{"name": "shop", "weight": 3}, {"name": "more"}]))
    wish = wishes(dict(before.body), before.config)
    assert wish is not None
    assert (wish.pool, wish.uid, wish.databases) == ("demo/shop", "uid-pool", {"shop": 3, "more": 1})
    assert wish.config == plan(before).config
    assert wish.created == 1798761600.0
    # A database whose configuration is kept back by a fault gets no connections, and one that still serves keeps its.
    changed = wishes(pool_body(databases=[{"name": "shop"}, {"name": "new"}]), before.config)
    assert changed is not None
    assert changed.databases == {"shop": 1, "more": 1}


def test_wishes_of_a_new_pool_are_those_of_its_spec() -> None:
    wish = wishes(pool_body(), None)
    assert wish is not None
    assert (wish.databases, wish.config) == ({"shop": 1}, "")
    assert wishes({**pool_body(), "spec": {}}, None) is None


def test_wishes_have_the_share_of_the_spec() -> None:
    wish = wishes(pool_body(share={"weight": 3, "min": 5, "max": 60}, replicas=4), None)
    assert wish is not None
    assert (wish.replicas, wish.weight, wish.least, wish.most) == (4, 3, 5, 60)
    bare = pool_body(replicas=None)
    left_out = wishes(bare, None)
    assert left_out is not None
    assert (left_out.replicas, left_out.weight, left_out.least, left_out.most) == (2, 1, 0, None)


def test_wishes_have_the_roles_that_the_served_configuration_logs_in_as() -> None:
    secrets = {**GUEST, "role": {"username": b"owner", "password": b"x"}}
    forced = {"name": "forced", "credentialsSecretRef": {"name": "role"}}
    body = pool_body(users=TWO_USERS, databases=[{"name": "shop"}, forced])
    before = settled(body, secrets=secrets)
    wish = wishes(body, before.config)
    assert wish is not None
    assert wish.roles == {"shop": frozenset({"shop", "guest"}), "forced": frozenset({"owner"})}
    # A removed user is still in the userlist, but nobody logs in as him.
    fewer = pool_body(databases=[{"name": "shop"}, forced])
    after = of(plan(view(fewer, secrets=secrets, live=before.children)), "Secret", "shop-config")
    assert '"guest"' in data(after)["userlist.txt"]
    wish = wishes(fewer, after)
    assert wish is not None
    assert wish.roles == {"shop": frozenset({"shop"}), "forced": frozenset({"owner"})}
    # The spec alone makes no role one of the pool's.
    assert (wishes(pool_body(users=TWO_USERS), None) or wish).roles == {}


def test_a_configuration_with_a_spoilt_key_has_no_roles() -> None:
    files = settled().config_files
    assert config.served_roles(files) == {"shop": frozenset({"shop"})}
    assert config.served_roles({**files, names.KEY_FILE: b"no hex"}) == {}


def test_a_frozen_wish_is_not_more_than_its_share() -> None:
    wish = PoolWish("a/b", "u", 0.0, {"x": 2, "y": 1}, "c", replicas=50, weight=9, least=80, most=70)
    kept = frozen(wish, 10, {"x", "z"})
    assert (dict(kept.databases), kept.replicas, kept.least, kept.most) == ({"x": 2}, 9, 0, 10)
    assert kept.floor == 10
    assert frozen(replace(wish, most=5), 10, {"x"}).most == 5
    assert frozen(wish, 0, {"x", "y"}).replicas == 0
    assert frozen(wish, 10, ()).floor == 0


@pytest.mark.parametrize("ini", [b"", b"\xff", b"[databases]\nnonsense"])
def test_a_spoilt_configuration_serves_nothing(ini: bytes) -> None:
    assert config.served_databases({names.INI_FILE: ini}) == ()
    assert config.served_roles({**settled().config_files, names.INI_FILE: ini}) == {}
