"""What can be wrong with a PgPool: the reason, the remedy, and what stays as it is meanwhile."""

from typing import Any

import pytest

from poolfleet.api.conditions import Reason
from poolfleet.plan.checks import Finding, Part
from poolfleet.plan.pool import Plan, plan
from poolfleet.plan.status import conclude
from tests.unit.pool_fixtures import Body, data, of, pool_body, server_body, settled, view


def first(planned: Plan) -> Finding:
    return planned.findings[0]


def written(planned: Plan) -> set[str]:
    return {obj["kind"] for obj in planned.apply}


def test_a_spec_that_this_operator_does_not_understand() -> None:
    found = first(plan(view(pool_body(replicas="many"))))
    assert found.reason == Reason.INVALID_SPEC
    assert "spec.replicas" in found.message
    assert found.blocks == Part.ALL


ELSEWHERE = {"name": "db", "namespace": "data"}


def far_server(**allowed: Any) -> Body:
    """PgServer data/db, with its spec.allowedNamespaces."""
    server = server_body("db")
    metadata = {"name": "db", "namespace": "data", "uid": "uid-server", "resourceVersion": "20"}
    return {**server, "metadata": metadata, "spec": {**server["spec"], "allowedNamespaces": allowed}}


def with_line(server: Body, **line: Any) -> Body:
    """The same with a line in status.pools for demo/shop."""
    lines = [{"namespace": "demo", "name": "shop", "uid": "uid-pool", **line}]
    return {**server, "status": {**server["status"], "pools": lines}}


def test_a_server_of_a_namespace_that_does_not_allow_the_pools() -> None:
    body = pool_body(server=None, serverRef=ELSEWHERE)
    secret = {"type": "Stalled", "status": "True", "reason": "SecretNotFound", "message": "10.1.2.3 is not for you"}
    server = far_server()
    seen = view(body, {**server, "status": {**server["status"], "conditions": [secret]}})
    [found] = plan(seen).findings
    assert (found.reason, found.blocks) == (Reason.NAMESPACE_NOT_ALLOWED, Part.ALL)
    assert 'PgServer "db" of namespace "data" does not allow PgPools of namespace "demo"' in found.message
    assert "spec.allowedNamespaces" in found.message
    assert "not for you" not in str(conclude(seen, plan(seen)).status)


def test_a_server_of_another_namespace_that_allows_the_pools() -> None:
    body = pool_body(server=None, serverRef=ELSEWHERE)
    planned = plan(view(body, far_server(**{"from": "All"})))
    assert planned.findings == ()
    ini = data(of(planned, "Secret", "shop-config"))["pgbouncer.ini"]
    assert "host='postgres.data.svc'" in ini, "a single label is a Service of the PgServer's namespace"
    near = data(of(plan(view()), "Secret", "shop-config"))["pgbouncer.ini"]
    assert "host='postgres'" in near, "as it ever was: another name would load every fleet anew"


def test_a_pool_that_is_not_allowed_any_more_keeps_its_fleet() -> None:
    body = pool_body(server=None, serverRef=ELSEWHERE)
    before = settled(body, far_server(**{"from": "All"}))
    server = with_line(far_server(), budget=30, admitted=True)
    seen = view(pool_body(server=None, serverRef=ELSEWHERE, replicas=5), server, live=before.children)
    planned = plan(seen)
    assert [finding.reason for finding in planned.findings] == [Reason.NAMESPACE_NOT_ALLOWED]
    assert (planned.apply, planned.delete) == ((), ())
    assert conclude(seen, planned).status["connections"]["budget"] == 30


def test_a_server_that_is_not_there() -> None:
    body = pool_body(server=None, serverRef={"name": "db"})
    found = first(plan(view(body, no_server=True)))
    assert (found.reason, found.blocks) == (Reason.SERVER_NOT_FOUND, Part.ALL)
    assert found.message == 'PgServer "db" does not exist in namespace "demo". Create it.'


def test_a_server_whose_spec_cannot_be_read() -> None:
    body = pool_body(server=None, serverRef={"name": "db"})
    found = first(plan(view(body, {**server_body("db"), "spec": {"host": "x", "port": 0}})))
    assert found.reason == Reason.INVALID_SPEC
    assert 'PgServer "db": spec.port' in found.message


@pytest.mark.parametrize(
    ("owners", "says"),
    [
        ([], "was not made by Poolfleet"),
        ([{"kind": "Cluster", "name": "pg", "uid": "x", "controller": True}], "belongs to Cluster pg"),
        ([{"kind": "PgPool", "name": "shop", "uid": "old", "controller": True}], "earlier PgPool"),
        ([{"kind": "PgPool", "name": "shop", "uid": "uid-pool"}], "was not made by Poolfleet"),
    ],
)
def test_a_strangers_object_is_not_taken_over(owners: list[Body], says: str) -> None:
    stranger = {"metadata": {"name": "shop", "namespace": "demo", "ownerReferences": owners}}
    planned = plan(view(live={("Service", "shop"): stranger}))
    assert first(planned).reason == Reason.RESOURCE_CONFLICT
    assert 'Service "shop" exists already' in first(planned).message
    assert says in first(planned).message
    assert not planned.apply
    assert not planned.delete


def test_a_parameter_that_is_not_allowed() -> None:
    planned = plan(view(pool_body(pgbouncer={"parameters": {"pool_mode": "session", "no_such": 1}})))
    assert first(planned).reason == Reason.PARAMETER_NOT_ALLOWED
    assert "spec.poolMode" in first(planned).message
    assert "no_such" in first(planned).message
    assert not {"Secret", "Deployment"} & written(planned)


def test_a_name_that_no_file_can_carry() -> None:
    found = first(plan(view(pool_body(databases=[{"name": "o'clock"}]))))
    assert found.reason == Reason.INVALID_SPEC
    assert "single quote" in found.message


def test_a_template_that_is_none() -> None:
    planned = plan(view(pool_body(template={"spec": {"containers": "x"}})))
    assert (first(planned).reason, first(planned).blocks) == (Reason.INVALID_TEMPLATE, Part.PODS)
    assert first(planned).message == "spec.template: spec.containers must be a list."
    assert "Secret" in written(planned)


def test_a_budget_too_small_has_the_arithmetic() -> None:
    body = pool_body(replicas=3, databases=[{"name": "a"}, {"name": "b"}])
    assert plan(view(body, server_body(budget=8))).findings == ()
    planned = plan(view(body, server_body(budget=7)))
    assert first(planned).reason == Reason.BUDGET_TOO_SMALL
    assert "3 replicas x 2 databases + 2 in reserve for a rollout = 8" in first(planned).message
    assert 'PgServer "shop" is 7' in first(planned).message
    assert "Set replicas to 2 or less" in first(planned).message
    assert "Deployment" not in written(planned)


def test_a_budget_for_less_than_one_replica_names_the_other_remedy() -> None:
    found = first(plan(view(pool_body(replicas=1, databases=[{"name": "a"}, {"name": "b"}]), server_body(budget=3))))
    assert "Use fewer databases" in found.message


def test_what_somebody_has_to_mend_at_the_server_is_said_at_the_pool_too() -> None:
    stalled = {"type": "Stalled", "status": "True", "reason": "SecretNotFound", "message": "No Secret. Create it."}
    planned = plan(view(server=server_body(conditions=[stalled])))
    assert first(planned) == Finding("SecretNotFound", 'PgServer "shop": No Secret. Create it.', Part.NONE)
    assert plan(view(server=server_body(conditions=[{**stalled, "status": "False"}]))).findings == ()


def test_what_older_pools_are_sure_of_is_not_there() -> None:
    body = pool_body(replicas=3)
    assert plan(view(body, server_body(budget=9), elders=1, elders_need=5)).findings == ()
    found = first(plan(view(body, server_body(budget=8), elders=1, elders_need=5)))
    assert found.reason == Reason.BUDGET_TOO_SMALL
    assert 'the budget of PgServer "shop" is 8, of which an older pool needs 5.' in found.message
    assert "Set replicas to 2 or less" in found.message
    found = first(plan(view(body, server_body(budget=8), elders=3, elders_need=7)))
    assert "of which 3 older pools need 7" in found.message


def test_a_minimum_that_the_budget_has_not() -> None:
    body = pool_body(share={"min": 40})
    assert plan(view(body, server_body(budget=40))).findings == ()
    found = first(plan(view(body, server_body(budget=39))))
    assert (found.reason, found.blocks) == (Reason.BUDGET_TOO_SMALL, Part.PODS)
    assert found.message.startswith('share.min is 40 connections, but the budget of PgServer "shop" is 39.')
    assert "Set share.min to 39 or less" in found.message


def test_a_pool_that_would_fit_but_is_not_admitted_says_so_and_is_not_held_up() -> None:
    line = [{"namespace": "demo", "name": "shop", "uid": "uid-pool", "budget": 0, "admitted": False}]
    found = first(plan(view(server=server_body(pools=line))))
    assert (found.reason, found.blocks) == (Reason.BUDGET_TOO_SMALL, Part.NONE)
    namesake = [{**line[0], "uid": "another"}]
    assert plan(view(server=server_body(pools=namesake))).findings == ()


def test_a_server_that_another_pgserver_is_already() -> None:
    shared = {"type": "Stalled", "status": "True", "reason": "SharedServer", "message": "PgServer data/db is older."}
    planned = plan(view(server=server_body(budget=0, conditions=[shared])))
    said = 'PgServer "shop": PgServer data/db is older.'
    assert planned.findings == (Finding(Reason.SHARED_SERVER, said, Part.PODS),)
    assert "Deployment" not in written(planned)


def test_without_pods_every_budget_is_enough() -> None:
    assert plan(view(pool_body(replicas=0), server_body(budget=0))).findings == ()


def test_a_cut_budget_keeps_no_password_back_but_new_databases() -> None:
    before = settled(pool_body(replicas=3))
    poor = server_body(budget=2)
    live = {**before.children, ("PgServer", "shop"): poor}
    new_password = {"shop-app": {"username": b"shop", "password": b"new"}}
    assert "Secret" in written(plan(view(pool_body(replicas=3), poor, live=live, secrets=new_password)))
    more = pool_body(replicas=3, databases=[{"name": "shop"}, {"name": "more"}])
    assert "Secret" not in written(plan(view(more, poor, live=live)))


def test_the_most_fundamental_fault_speaks_and_all_are_found() -> None:
    body = pool_body(pgbouncer={"parameters": {"logfile": "x"}}, template={"kind": "Pod"})
    planned = plan(view(body, server_body(budget=0), secrets={}))
    assert [finding.reason for finding in planned.findings] == [
        Reason.PARAMETER_NOT_ALLOWED,
        Reason.SECRET_NOT_FOUND,
        Reason.INVALID_TEMPLATE,
        Reason.BUDGET_TOO_SMALL,
    ]


FAULTS: dict[str, dict[str, Any]] = {
    "secret": {"secrets": {}},
    "parameter": {"body": pool_body(pgbouncer={"parameters": {"logfile": "x"}})},
    "stranger": {
        "body": pool_body(server=None, serverRef=ELSEWHERE),
        "server": with_line(far_server(), granted=3),
    },
    "spec": {"body": pool_body(replicas="x")},
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_last_good_fleet_is_not_touched(name: str) -> None:
    before = settled()
    planned = plan(view(live=before.children, **FAULTS[name]))
    assert planned.findings
    assert (planned.apply, planned.delete) == ((), ())
    assert planned.config == plan(before).config


def test_what_does_not_depend_on_the_fault_is_kept_in_order() -> None:
    live = {child: body for child, body in settled().children.items() if child[0] != "Service"}
    assert written(plan(view(live=live, secrets={}))) == {"Service"}
