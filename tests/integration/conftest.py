"""A real etcd and kube-apiserver for tests: no kubelet, no controllers, up in about three seconds.

Binaries: folder POOLFLEET_BIN, else kind/bin in the cache folder (`make cluster` and `make integration` fill it).
"""

import ctypes
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.integration.agent_pod import Pod, pod
from tests.integration.pgbouncer_fixtures import Postgres, postgres, wait_until

CRDS: Final = Path(__file__).parents[2] / "crds"
APPLY: Final = "application/apply-patch+yaml"
# Who did what, for the test of the operator's rights: requests of ServiceAccounts, without their content.
AUDIT: Final = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "userGroups": ["system:serviceaccounts"]}, {"level": "None"}],
}
START_SECONDS: Final = 60  # on two busy cores; normally three


def binaries() -> Path:
    """Folder with etcd, kube-apiserver and kubectl."""
    cache = os.environ.get("POOLFLEET_CACHE") or str(Path.home() / ".cache" / "poolfleet")
    return Path(os.environ.get("POOLFLEET_BIN") or Path(cache) / "kind" / "bin")


def free_ports(count: int) -> list[int]:
    """`count` different TCP ports that are free on loopback now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _said(answer: Any) -> str:
    """The message of a Status object, whole: pytest would cut the object short."""
    return str(answer.get("message", answer)) if isinstance(answer, dict) else str(answer)


def _die_with_parent() -> None:
    """In the child: have the kernel end it when pytest is gone, even by SIGKILL."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


@dataclass
class ApiServer:
    """A running kube-apiserver. `token` belongs to the user `admin` in system:masters."""

    directory: Path
    url: str
    etcd_url: str
    peer_url: str
    token: str = field(repr=False)
    kubeconfig: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def ca_file(self) -> Path:
        """The certificate to trust (self-signed, with its CA)."""
        return self.directory / "certs" / "apiserver.crt"

    def audit(self, namespace: str, service_account: str) -> list[dict[str, Any]]:
        """The audit events of what a ServiceAccount asked for, answered or (watches) begun."""
        user = f"system:serviceaccount:{namespace}:{service_account}"
        lines = (self.directory / "audit.log").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["user"]["username"] == user]

    # Life

    def start(self) -> None:
        """Start what does not run and wait until the API server is ready; raises AssertionError with its log if not."""
        if "etcd" not in self.processes:
            self._spawn(
                "etcd",
                f"--data-dir={self.directory / 'etcd'}",
                f"--listen-client-urls={self.etcd_url}",
                f"--advertise-client-urls={self.etcd_url}",
                f"--listen-peer-urls={self.peer_url}",
                f"--initial-advertise-peer-urls={self.peer_url}",
                f"--initial-cluster=default={self.peer_url}",
                "--unsafe-no-fsync",
                "--log-level=error",
            )
        if "kube-apiserver" not in self.processes:
            self._spawn(
                "kube-apiserver",
                f"--etcd-servers={self.etcd_url}",
                "--bind-address=127.0.0.1",
                f"--secure-port={self.url.rpartition(':')[2]}",
                f"--cert-dir={self.directory / 'certs'}",
                f"--service-account-key-file={self.directory / 'sa.key'}",
                f"--service-account-signing-key-file={self.directory / 'sa.key'}",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--token-auth-file={self.directory / 'tokens.csv'}",
                "--authorization-mode=RBAC",
                "--service-cluster-ip-range=10.96.0.0/16",
                f"--audit-policy-file={self.directory / 'audit.json'}",
                f"--audit-log-path={self.directory / 'audit.log'}",
                # As on OpenShift: blockOwnerDeletion needs a right to the owner's finalizers.
                "--enable-admission-plugins=OwnerReferencesPermissionEnforcement",
                "--disable-admission-plugins=ServiceAccount",  # no controller makes the default ServiceAccounts
                "--endpoint-reconciler-type=none",
                "--profiling=false",
            )
        self.wait(self._ready, "kube-apiserver is ready", START_SECONDS)

    def stop(self, *names: str) -> None:
        """End the processes of these names (default: all), the API server first."""
        for name in names or ("kube-apiserver", "etcd"):
            process = self.processes.pop(name, None)
            if process is None:
                continue
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)

    def restart(self) -> None:
        """Stop the API server and start it again on the same port and data: every watch ends."""
        self.stop("kube-apiserver")
        self.start()

    def _spawn(self, name: str, *arguments: str) -> None:
        with (self.directory / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [str(binaries() / name), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - no threads here
            )

    def _ready(self) -> bool:
        for name, process in self.processes.items():
            assert process.poll() is None, f"{name} ended:\n{(self.directory / f'{name}.log').read_text()[-3000:]}"
        try:
            return self.request("GET", "/readyz")[0] == 200
        except OSError:
            return False

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = 10) -> None:
        """Return as soon as `condition()` holds; fail after `seconds`."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
            time.sleep(0.02)

    # Requests, as the admin unless a token is given

    def open(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | list[Any] | None = None,
        *,
        content_type: str = "application/json",
        token: str | None = None,
    ) -> http.client.HTTPResponse:
        """Send one request and return the open response; raises urllib.error.HTTPError on 4xx and 5xx."""
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token or self.token}", "Content-Type": content_type},
        )
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=str(self.ca_file))),
        )
        response: http.client.HTTPResponse = opener.open(request, timeout=30)
        return response

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | list[Any] | None = None,
        *,
        content_type: str = "application/json",
        token: str | None = None,
    ) -> tuple[int, Any]:
        """Send one request; return the HTTP status and the decoded answer (a Status object on 4xx and 5xx)."""
        try:
            with self.open(method, path, body, content_type=content_type, token=token) as response:
                status, text = response.status, response.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text.decode(errors="replace")

    def get(self, path: str) -> Any:
        """GET `path`; fails unless it succeeds."""
        status, answer = self.request("GET", path)
        assert status < 300, _said(answer)
        return answer

    def apply(self, path: str, obj: Mapping[str, Any], *, manager: str = "tests", query: str = "") -> tuple[int, Any]:
        """Server-side apply of `obj` at `path` (of the object itself), strict about unknown fields."""
        options = f"fieldManager={manager}&force=true&fieldValidation=Strict{query and '&' + query}"
        return self.request("PATCH", f"{path}?{options}", obj, content_type=APPLY)

    def namespace(self, name: str | None = None) -> str:
        """Create a namespace (with a name of its own unless given) and return its name."""
        name = name or f"t-{secrets.token_hex(4)}"
        status, answer = self.apply(
            f"/api/v1/namespaces/{name}", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        )
        assert status < 300, _said(answer)
        return name

    def install_crds(self) -> None:
        """Apply what is in crds/ and wait until both resources are served."""
        paths = []
        for file in sorted(CRDS.glob("*.yaml")):
            manifest = yaml.safe_load(file.read_text())
            path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{manifest['metadata']['name']}"
            status, answer = self.apply(path, manifest)
            assert status < 300, _said(answer)
            paths.append((path, f"/apis/{manifest['spec']['group']}/v1alpha1/{manifest['spec']['names']['plural']}"))
        for path, collection in paths:
            self.wait(lambda path=path: self._established(path), f"{path} is established")  # type: ignore[misc]
            self.wait(lambda url=collection: self.request("GET", url)[0] == 200, f"{collection} is served")  # type: ignore[misc]

    def _established(self, path: str) -> bool:
        conditions = self.get(path).get("status", {}).get("conditions", [])
        return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)

    # Users

    def service_account_token(self, namespace: str, name: str) -> str:
        """Create the ServiceAccount if it is missing and return a token for it (TokenRequest, one hour)."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}"
        metadata = {"name": name, "namespace": namespace}
        status, answer = self.apply(path, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
        assert status < 300, _said(answer)
        wanted = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
        status, answer = self.request("POST", f"{path}/token", wanted)
        assert status < 300, _said(answer)
        return str(answer["status"]["token"])

    def service_account_kubeconfig(self, namespace: str, name: str) -> Path:
        """A kubeconfig file for that ServiceAccount (what it may do is RBAC's: nothing unless it is bound)."""
        file = self.directory / f"{namespace}.{name}.kubeconfig"
        self.write_kubeconfig(file, self.service_account_token(namespace, name), namespace)
        return file

    def write_kubeconfig(self, file: Path, token: str, namespace: str = "default") -> None:
        """Write a kubeconfig with this token and default namespace, readable by its owner only."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": self.url, "certificate-authority": str(self.ca_file)}}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
            "current-context": "test",
        }
        file.touch(mode=0o600)
        file.write_text(json.dumps(config))

    def kubectl(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run kubectl as the admin and return what it said; the caller looks at the return code."""
        return subprocess.run(
            [str(binaries() / "kubectl"), f"--kubeconfig={self.kubeconfig}", *arguments],
            input=stdin,
            text=True,
            capture_output=True,
            check=False,
            timeout=60,
            env={"HOME": str(self.directory), "PATH": os.environ["PATH"]},
        )


@pytest.fixture(scope="session")
def apiserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A kube-apiserver (RBAC on, CRDs not installed: see `install_crds`) for the whole test session."""
    for name in ("etcd", "kube-apiserver", "kubectl"):
        assert (binaries() / name).is_file(), f"{binaries() / name} is missing: run `make cluster` or set POOLFLEET_BIN"
    directory = tmp_path_factory.mktemp("apiserver")
    token = secrets.token_hex(16)
    tokens = directory / "tokens.csv"
    tokens.touch(mode=0o600)
    (directory / "audit.json").write_text(json.dumps(AUDIT))
    tokens.write_text(f'{token},admin,admin,"system:masters"\n')
    subprocess.run(
        ["openssl", "genrsa", "-out", str(directory / "sa.key"), "2048"], check=True, capture_output=True, timeout=60
    )
    client, peer, secure = free_ports(3)
    server = ApiServer(
        directory=directory,
        url=f"https://127.0.0.1:{secure}",
        etcd_url=f"http://127.0.0.1:{client}",
        peer_url=f"http://127.0.0.1:{peer}",
        token=token,
        kubeconfig=directory / "admin.kubeconfig",
    )
    server.write_kubeconfig(server.kubeconfig, token)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory / "etcd", ignore_errors=True)  # pytest keeps the rest for a while


# What most tests of the agent begin with; a module that needs more has fixtures of its own under these names.


@pytest.fixture(scope="module")
def pg(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A PostgreSQL with the role and the database "shop"."""
    with postgres(tmp_path_factory.mktemp("postgres")) as server:
        server.query("CREATE ROLE shop LOGIN PASSWORD 'shop'")
        server.query("CREATE DATABASE shop OWNER shop")
        yield server


@pytest.fixture
def one(pg: Postgres, tmp_path: Path) -> Iterator[Pod]:
    """A pod before its first configuration; when the test is over its sessions are gone."""
    with pod(tmp_path, pg) as made:
        yield made
    wait_until("all sessions of the test are gone", lambda: pg.sessions("shop") == 0)
