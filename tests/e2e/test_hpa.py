"""Somebody else scales the pool: `kubectl scale`, and the HorizontalPodAutoscaler of examples/hpa.yaml with the
operator's metric. The operator then leaves spec.replicas alone.

The cluster has no prometheus-adapter and no KEDA; tests/e2e/external_metrics.py stands in their place, behind the real
aggregation layer and the real HPA controller. KEDA makes an HPA of its ScaledObject like the one here.
"""

import base64
import re
import time
from collections.abc import Callable, Iterator

import pytest
import yaml

from poolfleet.api import names
from tests.e2e import kit

API_SERVICE = "v1beta1.external.metrics.k8s.io"
DISCOVERY = "/apis/external.metrics.k8s.io/v1beta1"
NAME = "external-metrics"
PROGRAM = kit.ROOT / "tests/e2e/external_metrics.py"
EXAMPLE = kit.ROOT / "examples/hpa.yaml"
PER_POD = 20  # clients
CLIENTS = 55  # of whom each pod shall have 20: 3 pods

Report = Callable[[str], None]


@pytest.fixture(scope="module", autouse=True)
def nothing_left(kubectl: kit.Kubectl) -> None:
    """No APIService of a run that was cut short: with nobody behind it no namespace can be deleted."""
    unregister(kubectl)


@pytest.fixture(scope="module")
def external_metrics(
    kubectl: kit.Kubectl, postgres: kit.Postgres, namespace: str, clients: kit.Clients
) -> Iterator[None]:
    """The server of external metrics, known to the API server while the tests run."""
    host = f"{NAME}.{namespace}.svc"
    pem = certificate(postgres, host)
    public = certificate_alone(pem)
    kubectl.apply(*server(kubectl, namespace, pem))
    # Not before the Service leads there: the API server would keep a connection to whoever else answers at its address.
    kit.await_until(lambda: answers(clients, host, public), 60, "the server answers", tolerate=(kit.KubectlError,))
    try:
        kubectl.apply(api_service(namespace, public))
        kubectl.run("wait", "--for=condition=Available", f"apiservice/{API_SERVICE}", "--timeout=30s", timeout=40)
        yield
    finally:
        unregister(kubectl)


@pytest.fixture(scope="module")
def pool(kubectl: kit.Kubectl, target: kit.Target, namespace: str) -> kit.Pool:
    """A PgPool of two pods that says nothing of replicas."""
    pool = kit.Pool(kubectl, namespace, "shop")
    pool.ready(since=pool.apply(target.spec()))
    return pool


class TestKubectlScale:
    def test_up_and_down(self, kubectl: kit.Kubectl, pool: kit.Pool) -> None:
        assert spec_replicas(pool) == 2  # the schema's default
        for replicas in (3, 2):
            kubectl.run("-n", pool.namespace, "scale", f"pgpool/{pool.name}", f"--replicas={replicas}")
            await_replicas(pool, replicas, 60)
        assert not writers_of_spec(pool) & {names.FIELD_MANAGER, names.STATUS_FIELD_MANAGER}


@pytest.mark.usefixtures("external_metrics")
class TestHorizontalPodAutoscaler:
    def test_scales_with_the_clients_that_the_operator_counts(
        self, kubectl: kit.Kubectl, pool: kit.Pool, target: kit.Target, clients: kit.Clients, report: Report
    ) -> None:
        hpa = horizontal_pod_autoscaler(pool)
        load = ("--clients", str(CLIENTS), "--stay", "--interval-ms", "5000", "--until-eof")
        with Stopping(clients.start("steady", target.through(pool), *load)) as running:
            begun = time.monotonic()
            kubectl.apply(hpa)
            kit.await_until(lambda: spec_replicas(pool) == 3, 60, "the HPA asks for 3 pods")
            asked = time.monotonic() - begun
            await_replicas(pool, 3, 60)
            ready = time.monotonic() - begun
            assert "kube-controller-manager" in writers_of_spec(pool)
        assert running.lines()[-1]["summary"]["failed"] == 0, running.lines()[:5]
        begun = time.monotonic()
        await_replicas(pool, 2, 60)
        gone = time.monotonic() - begun
        report(
            f"HPA, {CLIENTS} clients at {PER_POD} per pod: 3 pods asked for after {asked:.1f} s, ready after "
            f"{ready:.1f} s; without clients 2 pods after {gone:.1f} s (the HPA controller looks every 15 s)"
        )
        conditions = {each["type"]: each for each in hpa_of(kubectl, pool)["status"]["conditions"]}
        assert conditions["ScalingActive"]["status"] == "True", conditions
        assert not writers_of_spec(pool) & {names.FIELD_MANAGER, names.STATUS_FIELD_MANAGER}


class Stopping:
    """A load program that ends with the block."""

    def __init__(self, running: kit.Running) -> None:
        self._running = running

    def __enter__(self) -> kit.Running:
        kit.await_until(self._running.lines, 30, "the clients' first answer")
        return self._running

    def __exit__(self, *_: object) -> None:
        self._running.stop()


def horizontal_pod_autoscaler(pool: kit.Pool) -> kit.Manifest:
    """The HPA of examples/hpa.yaml, for this pool, with smaller numbers and no five minutes of waiting."""
    found = (each for each in yaml.safe_load_all(EXAMPLE.read_text()) if each["kind"] == "HorizontalPodAutoscaler")
    hpa: kit.Manifest = next(found)
    hpa["metadata"]["namespace"] = pool.namespace
    assert hpa["spec"]["scaleTargetRef"]["name"] == pool.name
    [metric] = hpa["spec"]["metrics"]
    metric["external"]["target"]["averageValue"] = str(PER_POD)
    hpa["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] = 0
    return hpa


def await_replicas(pool: kit.Pool, replicas: int, timeout: float) -> None:
    """Wait until so many pods are asked for, told of in the status and ready, and no more are there that stay."""

    def reached() -> bool:
        status = pool.status()
        said = (status.get("desiredReplicas"), status.get("readyReplicas"))
        return spec_replicas(pool) == replicas and said == (replicas, replicas) and len(pool.pods()) == replicas

    kit.await_until(reached, timeout, f"{replicas} pods")


def spec_replicas(pool: kit.Pool) -> int:
    """spec.replicas of the PgPool."""
    return int(pool.get()["spec"]["replicas"])


def writers_of_spec(pool: kit.Pool) -> set[str]:
    """The field managers that have written spec.replicas or anything else of the spec."""
    body = pool.kubectl.get_json("-n", pool.namespace, "pgpool", pool.name, "--show-managed-fields")
    return {each["manager"] for each in body["metadata"]["managedFields"] if "f:spec" in each["fieldsV1"]}


def hpa_of(kubectl: kit.Kubectl, pool: kit.Pool) -> kit.Manifest:
    """The HPA as it stands."""
    return kubectl.get_json("-n", pool.namespace, "horizontalpodautoscaler", pool.name)


def unregister(kubectl: kit.Kubectl) -> None:
    """Take the API out of the aggregation layer."""
    kubectl.run("delete", "apiservice", API_SERVICE, "--ignore-not-found", "--timeout=30s")


def certificate(postgres: kit.Postgres, host: str) -> str:
    """A certificate for `host` that has signed itself, and its key, as PEM."""
    openssl = "openssl req -x509 -quiet -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 1"
    subject = f"-subj /CN={NAME} -addext subjectAltName=DNS:{host}"
    return postgres.kubectl.exec(
        postgres.namespace, "postgres-0", "bash", "-c", f"{openssl} {subject} -keyout /dev/stdout"
    )


def server(kubectl: kit.Kubectl, namespace: str, pem: str) -> list[kit.Manifest]:
    """Secret, pod and Service of the server."""
    probe = {"path": DISCOVERY, "port": 8443, "scheme": "HTTPS"}
    source = f"http://poolfleet.{kit.SYSTEM_NAMESPACE}.svc:8080"
    container = {
        "name": "server",
        "image": kit.operator_image(kubectl),
        "command": ["python3", "-c", PROGRAM.read_text(), source, "/tls/server.pem"],
        "ports": [{"containerPort": 8443}],
        "readinessProbe": {"httpGet": probe, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "10m", "memory": "48Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tls", "mountPath": "/tls"}],
    }
    spec = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 1,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": "tls", "secret": {"secretName": NAME}}],
    }
    metadata = {"name": NAME, "namespace": namespace, "labels": {"app": NAME}}
    ports = [{"port": 443, "targetPort": 8443}]
    return [
        {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"server.pem": pem}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"selector": {"app": NAME}, "ports": ports},
        },
    ]


def certificate_alone(pem: str) -> str:
    """The certificate without the key."""
    found = re.search(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n", pem, re.DOTALL)
    assert found, "openssl printed no certificate"
    return found[0]


ASK = """
import ssl, sys, urllib.request
context = ssl.create_default_context(cadata=sys.stdin.read())
print(urllib.request.urlopen(sys.argv[1], timeout=3, context=context).status)
"""


def answers(clients: kit.Clients, host: str, public: str) -> bool:
    """Whether the server with this certificate answers at its Service."""
    command = ("python3", "-c", ASK, f"https://{host}{DISCOVERY}")
    return clients.kubectl.exec(clients.namespace, clients.POD, *command, stdin=public).strip() == "200"


def api_service(namespace: str, public: str) -> kit.Manifest:
    """What makes the API server ask the server for external metrics."""
    version, _, group = API_SERVICE.partition(".")
    return {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": API_SERVICE},
        "spec": {
            "group": group,
            "version": version,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "service": {"name": NAME, "namespace": namespace},
            "caBundle": base64.b64encode(public.encode()).decode(),
        },
    }
