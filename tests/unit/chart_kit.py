"""Helpers of the chart's tests: the chart rendered by the real `helm`, once per way of installing."""

import functools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "poolfleet"
DIGEST = "sha256:" + "ab" * 32
Object = dict[str, Any]
VALUES: Object = yaml.safe_load((CHART / "values.yaml").read_text())

# One render per way of installing that differs: what `--set` gets.
RENDERS: dict[str, tuple[str, ...]] = {
    "defaults": (),
    "namespaced": ("rbac.scope=Namespaced", "watchNamespaces={shop,blog}"),
    "namespaced, own namespace": ("rbac.scope=Namespaced",),
    "digest": ("image.registry=registry.example:5000", f"image.digest={DIGEST}", f"fleet.image.digest={DIGEST}"),
    "no user": ("fleet.runAsUser=null",),
    "no crds": ("crds.install=false",),
    "crds not kept": ("crds.keep=false",),
    "pull secrets": (
        "imagePullSecrets[0].name=mine",
        "fleet.imagePullSecrets[0].name=a",
        "fleet.imagePullSecrets[1].name=b",
    ),
    "no Secret watch": ("rbac.watchSecrets=false",),
    "no fast lane": ("fastLane=false",),
    "one replica": ("replicas=1",),
    "tokens": (
        "tokenCommands.vend.command={/opt/vend,--json}",
        "tokenCommands.vend.timeoutSeconds=5",
        "tokenCommands.vend.namespaces={shop}",
        "awsIam.namespaces={*}",
        "operator.extraVolumes[0].name=opt",
        "operator.extraVolumes[0].emptyDir.medium=Memory",
        "operator.extraVolumeMounts[0].name=opt",
        "operator.extraVolumeMounts[0].mountPath=/opt",
    ),
    "everything": (
        "commonLabels.team=data",
        "commonLabels.app\\.kubernetes\\.io/name=mine",
        "commonAnnotations.note=x",
        "podLabels.app\\.kubernetes\\.io/component=mine",
        "podAnnotations.note=y",
        "priorityClassName=high",
        "nodeSelector.disk=ssd",
        "tolerations[0].operator=Exists",
        "metrics.serviceMonitor.enabled=true",
        "metrics.serviceMonitor.labels.release=prometheus",
        "operator.extraArgs={--workers=3}",
        "operator.extraEnv[0].name=A",
        "operator.extraEnv[0].value=b",
        "networkPolicy.from[0].podSelector.matchLabels.app=prometheus",
        "serviceAccount.name=somebody",
        "serviceAccount.annotations.note=z",
        "extraObjects[0].apiVersion=v1",
        "extraObjects[0].kind=ConfigMap",
        "extraObjects[0].metadata.name=of-{{ .Release.Name }}",
    ),
    "no rbac": ("rbac.create=false", "serviceAccount.create=false"),
}


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the `helm` that the project builds (hack/kind)."""
    cache = os.environ.get("POOLFLEET_CACHE", str(Path.home() / ".cache" / "poolfleet"))
    binary = Path(os.environ.get("POOLFLEET_BIN", f"{cache}/kind/bin")) / "helm"
    return subprocess.run([str(binary), *arguments], capture_output=True, text=True, check=False, timeout=60)


def template(
    *values: str,
    release: str = "poolfleet",
    chart: Path = CHART,
    apis: tuple[str, ...] = (),
    only: str | None = None,
    file: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `helm template` with `--set` for each of `values`, and if given a values file, or one template only."""
    # A helm built without its linker flags takes itself for the client of an ancient cluster.
    command = ["template", release, str(chart), "--namespace=poolfleet-system", "--kube-version=1.34.0"]
    command += [f"--set={value}" for value in values] + [f"--api-versions={api}" for api in apis]
    command += [f"--show-only={only}"] if only else []
    command += [f"--values={file}"] if file else []
    return helm(*command)


@functools.cache
def rendered(name: str) -> tuple[Object, ...]:
    """Every object of one of RENDERS."""
    apis = ("monitoring.coreos.com/v1",) if name == "everything" else ()
    result = template(*RENDERS[name], apis=apis)
    assert result.returncode == 0, result.stderr
    return tuple(document for document in yaml.safe_load_all(result.stdout) if document)


def of_kind(name: str, kind: str) -> list[Object]:
    """The objects of a kind in one of RENDERS."""
    return [obj for obj in rendered(name) if obj["kind"] == kind]


def deployment(name: str) -> Object:
    """The operator's Deployment in one of RENDERS."""
    (only,) = of_kind(name, "Deployment")
    return only


def arguments(name: str) -> list[str]:
    """The operator's command line in one of RENDERS, without `python3 -m poolfleet`."""
    container = deployment(name)["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["python3", "-m", "poolfleet"]
    return list(container["args"])


def rules(name: str, *role_kinds: str) -> Iterator[tuple[str, str, set[str], Object]]:
    """(group, resource, verbs, rule) for each rule of the operator's own roles in one of RENDERS."""
    for obj in rendered(name):
        if obj["kind"] in role_kinds and not obj["metadata"]["name"].endswith(("-view", "-edit", "-admin")):
            for rule in obj["rules"]:
                for group in rule["apiGroups"]:
                    for resource in rule["resources"]:
                        yield group, resource, set(rule["verbs"]), rule
