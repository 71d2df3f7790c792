"""When a pod is known to be gone, and which annotations are believed."""

from typing import Any

import pytest

from poolfleet.api import names
from poolfleet.api.wire import sign
from poolfleet.controller.observe import ended, pod_of, server_name

TERMINATED = {"terminated": {"exitCode": 0, "reason": "Completed"}}


def body(
    state: dict[str, Any], deleted: bool = True, phase: str = "Running", annotations: dict[str, str] | None = None
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"uid": "u", "name": "p", "namespace": "ns", "creationTimestamp": "2026-01-01T00:00:00Z"}
    metadata["annotations"] = annotations or {}
    if deleted:
        metadata["deletionTimestamp"] = "2026-01-01T00:01:00Z"
    status = {"phase": phase, "containerStatuses": [{"name": "pgbouncer", "state": state}]}
    return {"metadata": metadata, "spec": {"nodeName": "n"}, "status": status}


@pytest.mark.parametrize(
    ("pod", "gone"),
    [
        (body(TERMINATED), True),
        (body(TERMINATED, deleted=False), False),  # the kubelet will start it again
        (body(TERMINATED, deleted=False, phase="Failed"), True),  # evicted: it will not
        (body({"running": {}}), False),
        (body({"running": {}}, phase="Failed"), False),  # the garbage collector's word alone
        (body({"waiting": {}}), False),
        (body({"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown"}}), False),
    ],
)
def test_known_gone(pod: dict[str, Any], gone: bool) -> None:
    assert ended(pod) is gone


def test_a_directive_is_believed_only_with_the_right_mac() -> None:
    message = {"v": 1, "rev": 3}
    pod = body({"running": {}}, annotations={names.DIRECTIVE: sign(message, b"k")})
    assert pod_of(pod, b"k", None).directive == message
    assert pod_of(pod, b"other", None).directive == {}
    assert pod_of(pod, None, None).directive == {}
    assert pod_of(pod, b"other", None).raw_directive is not None


def test_the_server_of_a_pool() -> None:
    metadata = {"namespace": "ns", "name": "shop"}
    assert server_name({"metadata": metadata, "spec": {"server": {"host": "h"}}}) == ("ns", "shop")
    assert server_name({"metadata": metadata, "spec": {"serverRef": {"name": "db"}}}) == ("ns", "db")
