"""No secret in logs, events, status, pod specs, process arguments and environments, or in what agents and operator say.

It is looked for after rotations, after a login that was refused, and after what goes wrong: that is what gets logged.
"""

import base64
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from urllib.parse import quote

import pytest

from poolfleet.api import names
from tests.certificates import FOR_SERVERS, Authority
from tests.e2e import kit, rotation
from tests.e2e.node import on_node
from tests.e2e.rotation import ADMIN, CLIENT, ROLE, ROLE_SECRET, Place, Watch

TLS = "shop-tls"
BROKEN = "broken"  # a Secret whose password nobody can log in with
OPERATOR = ("-n", kit.SYSTEM_NAMESPACE, "pods", "-l", "app.kubernetes.io/component=operator")
WRITTEN = "deployments,replicasets,pods,services,poddisruptionbudgets,networkpolicies"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"  # kubectl's own copy, in the tests' Secrets

# Arguments and environment of every process of the pods whose UIDs are given.
PROCESSES = r"""
for cgroup in /proc/[0-9]*/cgroup; do
  for uid in "$@"; do
    if tr _ - 2>/dev/null <"$cgroup" | grep -q "pod$uid"; then
      tr '\0' '\n' <"${cgroup%/*}/cmdline"; tr '\0' '\n' <"${cgroup%/*}/environ"
    fi
  done
done
"""
FETCH = 'for url in "$@"; do echo "== $url"; curl -sS -m 10 "$url" || exit 1; done'

Report = Callable[[str], None]


@dataclass
class Known:
    """Secret values: what each of them is."""

    values: dict[str, str] = field(default_factory=dict)

    def learn(self, what: str, value: str) -> None:
        """A value, and the forms in which it would be written by accident."""
        assert len(value) >= 8, f"{what} is too short to be looked for"
        for form in (value, quote(value, safe=""), json.dumps(value)[1:-1]):
            self.values[form] = what
        self.values[base64.b64encode(value.encode()).decode().rstrip("=")[:-1]] = f"{what}, in base64"

    def learn_secrets(self, kubectl: kit.Kubectl, namespace: str) -> None:
        """Whatever is secret in the Secrets of a namespace, of users and of the operator, as they are now."""
        for item in kubectl.get_json("-n", namespace, "secrets")["items"]:
            name = item["metadata"]["name"]
            for key, data in (item.get("data") or {}).items():
                text = base64.b64decode(data).decode()
                if key in ("password", "formerPassword", names.KEY_FILE):
                    self.learn(f"{key} of Secret {name}", text)
                elif key.endswith(".key"):
                    for line in text.splitlines():
                        if len(line) > 40:  # of a PEM file's body; the last line is short
                            self.learn(f"{key} of Secret {name}", line)
                elif key == names.USERLIST_FILE:
                    for password in re.findall(r'^"(?:[^"]|"")*" "((?:[^"]|"")*)"', text, re.MULTILINE):
                        self.learn(f"{key} of Secret {name}", password.replace('""', '"'))

    def found(self, text: str) -> set[str]:
        """What of it stands in a text."""
        return {what for value, what in self.values.items() if value in text}


@pytest.fixture(scope="module")
def postgres(kubectl: kit.Kubectl, namespace: str) -> kit.Postgres:
    """A PostgreSQL of this module's own, for its log tells every statement."""
    postgres = kit.Postgres(kubectl, namespace).ensure()
    kubectl.namespace(namespace)  # its labels, which the demo's namespace does not have
    return postgres


@pytest.fixture(scope="module")
def place(postgres: kit.Postgres, kubectl: kit.Kubectl, namespace: str) -> Iterator[Place]:
    """A pool with TLS, whose role and client user can be rotated."""
    pair = Authority("secrecy", time.time()).issue("shop", [f"shop.{namespace}.svc"], use=FOR_SERVERS)
    data = {"tls.crt": pair.certificate.decode(), "tls.key": pair.key.decode()}
    metadata = {"name": TLS, "namespace": namespace, "labels": {names.LABEL_WATCH: "true"}}
    kubectl.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data})
    users = [{"secretRef": {"name": CLIENT}, "rotation": {"overlap": "5s"}}]
    tls = {"secretRef": {"name": TLS}, "mode": "prefer"}
    place = Place.make(postgres, "shop", replicas=2, users=users, tls=tls)
    kubectl.run("-n", namespace, "label", "secret", CLIENT, f"{names.LABEL_MANAGED}=true")
    postgres.sql("ALTER SYSTEM SET log_statement = 'all'")
    postgres.sql("SELECT pg_reload_conf()")
    place.pool.ready()
    yield place


def test_nothing_secret_is_told(kubectl: kit.Kubectl, place: Place, report: Report) -> None:
    namespace, known = place.pool.namespace, Known()
    known.learn_secrets(kubectl, namespace)
    with Watch(place.pool) as watch:
        place.rotate(watch)
        known.learn_secrets(kubectl, namespace)  # the former client login works still
        rotation.await_rotated(watch, CLIENT, None)
        known.learn_secrets(kubectl, namespace)
        go_wrong(kubectl, place, watch, known)
    for part in stored_keys(place):
        known.learn("verifier on the server", part)
    begun = time.time()
    texts = told(kubectl, place)
    assert {where: found for where, text in texts.items() if (found := known.found(text))} == {}
    assert [where for where, text in texts.items() if len(text) < 50] == [], "nothing was searched there"
    # PostgreSQL wrote down every statement: it was never sent a password. Its verifiers stand there, and may.
    log = kubectl.run("-n", place.postgres.namespace, "logs", "postgres-0")
    assert 'ALTER ROLE "shop"' in log
    assert {what for what in known.found(log) if "verifier" not in what} == set()
    size = sum(map(len, texts.values())) / 2**20
    report(
        f"secrets: {len(known.values)} values, none in {len(texts)} logs, objects, processes and pages "
        f"({size:.1f} MiB, searched in {time.time() - begun:.1f} s)"
    )
    assert_it_would_be_found(kubectl, place, known)


def go_wrong(kubectl: kit.Kubectl, place: Place, watch: Watch, known: Known) -> None:
    """A client with a wrong password, an admin with a wrong one, a user whose password cannot be used."""
    namespace = place.pool.namespace
    wrong = replace(place.client, password=f"wrong-{secrets.token_urlsafe(12)}")
    known.learn("wrong password of a client", wrong.password)
    with suppress(kit.KubectlError):
        place.postgres.psql(wrong, "SELECT 1")
        raise AssertionError("a wrong password was taken")
    admin = kubectl.secret(namespace, ADMIN)
    refused, unusable = f"refused-{secrets.token_urlsafe(12)}", f"unusable-{secrets.token_urlsafe(12)}"
    known.learn("wrong password of the admin", refused)
    known.learn("password of two lines", unusable)
    kubectl.apply(
        kit.basic_auth(namespace, ADMIN, admin["username"], refused),
        kit.basic_auth(namespace, BROKEN, "somebody", f"{unusable}\n{unusable}"),
    )
    users = place.pool.get()["spec"]["users"]
    place.pool.patch(users=[*users, {"secretRef": {"name": BROKEN}}])
    server = ("-n", namespace, "pgserver", place.pool.name)

    def words() -> str:
        return json.dumps(kubectl.get_json(*server).get("status") or {})

    kit.await_until(
        lambda: "password authentication failed" in words(), 20, "the server's status says it", interval=0.3
    )
    current = "CredentialsCurrent"
    kit.await_until(lambda: watch.last.condition(current)[0] == "False", 20, "the pool's status says it", interval=0.1)
    kubectl.apply(kit.basic_auth(namespace, ADMIN, admin["username"], admin["password"]))
    place.pool.patch(users=users)
    kit.await_until(lambda: watch.last.condition(current)[0] == "True", 20, "all is current again", interval=0.1)


def stored_keys(place: Place) -> list[str]:
    """StoredKey and ServerKey of the role's password: who has them can do much, if not log in."""
    (verifier,) = place.postgres.sql(f"SELECT rolpassword FROM pg_authid WHERE rolname = '{ROLE}'")[0]
    assert verifier.startswith("SCRAM-SHA-256$4096:")
    return verifier.split("$")[2].split(":")


def told(kubectl: kit.Kubectl, place: Place) -> Mapping[str, str]:
    """Everything that is not a Secret's content: logs, objects, processes, pages."""
    namespace, texts = place.pool.namespace, {}
    # Those of the release; a test may have one of its own beside them.
    operators = [pod for pod in kubectl.get_json(*OPERATOR)["items"] if "ownerReferences" in pod["metadata"]]
    pods = place.pool.pods(all=True)
    for pod in (*operators, *pods):
        name = pod["metadata"]["name"]
        where = ("-n", pod["metadata"]["namespace"], "logs", name, "--all-containers", "--prefix")
        texts[f"logs of {name}"] = kubectl.run(*where)
        texts[f"processes of {name}"] = on_node(PROCESSES, pod["metadata"]["uid"])
    for pod in operators:
        url = f"http://{pod['status']['podIP']}:8080"
        texts[f"pages of {pod['metadata']['name']}"] = on_node(FETCH, f"{url}/metrics", f"{url}/readyz")
    for name, ip in place.pool.ips().items():
        texts[f"pages of {name}"] = on_node(
            FETCH, *(f"http://{ip}:{names.AGENT_PORT}/{p}" for p in ("state", "metrics"))
        )
    fields = ("-n", namespace, "get", "-o", "json", "--show-managed-fields")
    texts["PgPool, PgServer"] = kubectl.run(*fields, "pgpools,pgservers")
    texts["what the operator wrote"] = kubectl.run(*fields, WRITTEN, "-l", f"{names.LABEL_POOL}={place.pool.name}")
    texts["events"] = kubectl.run(*fields, "events.events.k8s.io")
    found = json.loads(kubectl.run(*fields, "secrets"))["items"]
    for each in found:
        (each["metadata"].get("annotations") or {}).pop(LAST_APPLIED, None)
    texts["metadata of Secrets"] = json.dumps([each["metadata"] for each in found])
    return texts


def assert_it_would_be_found(kubectl: kit.Kubectl, place: Place, known: Known) -> None:
    """The search finds them where they are: in the pods' configuration, as JSON, and in the files that it is."""
    where = ("-n", place.pool.namespace)
    text = kubectl.run(*where, "get", "secrets", "-o", "json")
    found = " ".join(known.found(text))
    for secret in (ADMIN, CLIENT, ROLE_SECRET, TLS, names.config_secret(place.pool.name)):
        assert f"Secret {secret}, in base64" in found, secret
    files = "\n".join(kubectl.secret(place.pool.namespace, names.config_secret(place.pool.name)).values())
    assert {f"password of Secret {ROLE_SECRET}", f"tls.key of Secret {TLS}"} <= known.found(files)
