"""What e2e tests stand on: the kind cluster, a namespace and a database per module, a last look after a failure."""

from collections.abc import Callable, Generator, Iterator

import pytest

from tests.e2e import kit

LOOKS = (
    ("get", "all,pgpools,pgservers", "-o", "wide"),
    ("get", "pgpools,pgservers", "-o", "yaml"),
    ("get", "events", "--sort-by=.metadata.creationTimestamp"),
    ("logs", "-l", "poolfleet.dev/pool", "--all-containers", "--prefix", "--tail=40"),
)
FIGURES = pytest.StashKey[list[str]]()
OPERATOR_LOG = ("logs", "-l", "app.kubernetes.io/component=operator", "--prefix", "--tail=80")


@pytest.fixture(scope="session")
def kubectl() -> kit.Kubectl:
    """kubectl for the project's cluster, with the operator running there. No cluster is a failure, not a skip."""
    try:
        kubectl = kit.Kubectl()
        kubectl.run("get", "--raw", "/readyz", timeout=20)
        rollout = ("-n", kit.SYSTEM_NAMESPACE, "rollout", "status", "deployment/poolfleet", "--timeout=60s")
        kubectl.run(*rollout, timeout=70)
    except kit.KubectlError as error:
        pytest.fail(
            f"e2e tests need the kind cluster with the operator in it; `make cluster` makes both. {error}", False
        )
    return kubectl


@pytest.fixture(scope="session")
def postgres(kubectl: kit.Kubectl) -> kit.Postgres:
    """The demo's PostgreSQL (max_connections=100)."""
    return kit.Postgres(kubectl).ensure()


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Tell a figure that was measured: it stands in the summary at the end of the run."""
    return pytestconfig.stash.setdefault(FIGURES, []).append


@pytest.fixture(scope="module")
def namespace(request: pytest.FixtureRequest, kubectl: kit.Kubectl) -> Iterator[str]:
    """A namespace of the module's own, under the restricted Pod Security Standard, deleted at the end."""
    name = namespace_of(request.node)
    kubectl.delete_namespace(name)  # of a run that was cut short
    kubectl.namespace(name)
    yield name
    kubectl.delete_namespace(name, wait=False)  # the next run waits for what is left of it


@pytest.fixture(scope="module")
def target(postgres: kit.Postgres, namespace: str) -> Iterator[kit.Target]:
    """A role and a database of the module's own; Secrets `app` and `postgres-admin` in its namespace."""
    target = kit.Target.make(postgres, namespace, namespace.replace("-", "_"))
    yield target
    target.drop()


@pytest.fixture(scope="module")
def clients(kubectl: kit.Kubectl, namespace: str) -> kit.Clients:
    """The pod `clients` in the module's namespace."""
    return kit.Clients(kubectl, namespace).ensure()


def namespace_of(node: pytest.Item | pytest.Collector) -> str:
    """Name of the namespace of a test's module: e2e-apply for test_apply.py."""
    return "e2e-" + node.path.stem.removeprefix("test_").replace("_", "-")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The measured figures, passed or not."""
    if figures := config.stash.get(FIGURES, []):
        terminalreporter.section("figures")
        for line in figures:
            terminalreporter.line(line)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to the report of a failure what the cluster looked like right after it."""
    report = yield
    kubectl = getattr(item, "funcargs", {}).get("kubectl")
    if report.failed and isinstance(kubectl, kit.Kubectl):
        for where, look in [*((namespace_of(item), look) for look in LOOKS), (kit.SYSTEM_NAMESPACE, OPERATOR_LOG)]:
            try:
                text = kubectl.run("-n", where, *look, timeout=30)
            except kit.KubectlError as error:
                text = str(error)
            report.sections.append((f"kubectl -n {where} {' '.join(look)}", text[-20_000:]))
    return report
