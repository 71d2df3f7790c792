"""The parts of tests/e2e/kit that need no cluster."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e import kit


@pytest.fixture
def fake_kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a shell script in kubectl's place; returns a kubeconfig for it."""

    def install(script: str) -> Path:
        program = tmp_path / "kubectl"
        program.write_text(f'#!/bin/bash\necho "$*" >>{tmp_path}/calls\n{script}\n')
        program.chmod(0o755)
        monkeypatch.setenv("POOLFLEET_BIN", str(tmp_path))
        (tmp_path / "kubeconfig").touch()
        return tmp_path / "kubeconfig"

    return install


def test_another_cluster_is_refused_before_anything_is_asked_of_it(
    fake_kubectl: Callable[[str], Path], tmp_path: Path
) -> None:
    kubeconfig = fake_kubectl("echo production")
    with pytest.raises(kit.KubectlError, match="'production'"):
        kit.Kubectl(kubeconfig)
    assert (tmp_path / "calls").read_text().splitlines() == [f"--kubeconfig {kubeconfig} config current-context"]


def test_every_command_names_cluster_and_context(fake_kubectl: Callable[[str], Path], tmp_path: Path) -> None:
    kubeconfig = fake_kubectl(f"echo {kit.CONTEXT}")
    kit.Kubectl(kubeconfig).run("get", "pods")
    assert (tmp_path / "calls").read_text().splitlines()[-1] == (
        f"--kubeconfig {kubeconfig} --context {kit.CONTEXT} get pods"
    )


def test_a_missing_kubeconfig_says_what_makes_one() -> None:
    with pytest.raises(kit.KubectlError, match="make cluster"):
        kit.Kubectl(kit.ROOT / ".cluster/there-is-none")


def test_a_command_that_hangs_is_ended(fake_kubectl: Callable[[str], Path]) -> None:
    kubectl = kit.Kubectl(fake_kubectl(f'[ "$3" = config ] && echo {kit.CONTEXT} || exec sleep 60'))
    begin = time.monotonic()
    with pytest.raises(kit.KubectlError, match=r"no end after 0\.2 s"):
        kubectl.run("get", "pods", timeout=0.2)
    assert time.monotonic() - begin < 10


METRICS = """
apiserver_request_total{code="200",component="apiserver",group="",resource="pods",scope="resource",subresource="status",verb="PATCH",version="v1"} 7
apiserver_request_total{code="409",component="apiserver",group="",resource="pods",scope="resource",subresource="status",verb="PATCH",version="v1"} 1
apiserver_request_total{code="200",component="apiserver",group="",resource="pods",scope="cluster",subresource="",verb="LIST",version="v1"} 9
apiserver_request_total{code="200",component="apiserver",group="apps",resource="deployments",scope="resource",subresource="",verb="APPLY",version="v1"} 1.2e+02
"""  # noqa: E501 (lines as the API server prints them)


def test_writes_are_counted_by_resource_and_verb_and_reads_are_not(fake_kubectl: Callable[[str], Path]) -> None:
    kubeconfig = fake_kubectl(f"[ \"$3\" = config ] && echo {kit.CONTEXT} || echo '{METRICS}'")
    assert kit.Kubectl(kubeconfig).writes() == {("pods", "status", "PATCH"): 8, ("deployments", "", "APPLY"): 120}


def test_await_until_returns_what_it_waited_for() -> None:
    answers = iter([None, "", "yes"])
    assert kit.await_until(lambda: next(answers), 5, "a yes", interval=0) == "yes"


def test_await_until_tells_what_it_saw_last() -> None:
    with pytest.raises(AssertionError, match=r"not within 0 s: a pod; last seen: \[\]"):
        kit.await_until(list, 0, "a pod")


def test_await_until_tolerates_what_it_was_told_to_tolerate() -> None:
    def fail() -> bool:
        raise kit.KubectlError("not there")

    with pytest.raises(AssertionError, match="not there"):
        kit.await_until(fail, 0, "a pod", tolerate=(kit.KubectlError,))
    with pytest.raises(kit.KubectlError):
        kit.await_until(fail, 0, "a pod")


def test_sql_is_quoted() -> None:
    assert kit.quoted("it's") == "'it''s'"
    assert kit.ident('a"b') == '"a""b"'
