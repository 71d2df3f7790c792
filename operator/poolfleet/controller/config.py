"""What an operator process is told: flags, and for each an environment variable."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from poolfleet.api import names
from poolfleet.plan.model import Settings

LEVELS: Final = ("debug", "info", "warning", "error")
PULL_POLICIES: Final = ("Always", "IfNotPresent", "Never")
NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of one operator process."""

    settings: Settings  # what every pool's pods have in common
    namespaces: tuple[str, ...] = ()  # empty: the whole cluster
    lease_namespace: str = "poolfleet-system"
    lease_name: str = "poolfleet"
    identity: str = ""  # who holds the Lease: the pod's name; "": the host's
    http_port: int = 8080
    watch_secrets: bool = True
    fast_lane: bool = True
    log_level: str = "info"
    workers: int = 8
    kubeconfig: str | None = None  # None: the pod's ServiceAccount
    token_providers: Path | None = None  # None: nobody makes tokens
    # Other values only in tests; times in seconds.
    http_host: str | None = None  # all addresses
    lease_duration: float = 15.0
    lease_renew_deadline: float = 10.0
    lease_retry_period: float = 2.0
    resync_period: float = 180.0
    start_patience: float = 15.0
    agent_port: int = names.AGENT_PORT


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> Config:
    """Read the flags in `argv`, and `environ` for those not given. Exits with a message if they make no sense."""
    parser = argparse.ArgumentParser(
        prog="python3 -m poolfleet operator",
        description="Run the Poolfleet operator: PgPool resources become fleets of PgBouncer pods.",
        epilog="Every flag can be given as an environment variable instead: --agent-image as POOLFLEET_AGENT_IMAGE. "
        "Lists are separated by commas there. Flags win.",
    )

    def default(flag: str, otherwise: str = "") -> str:
        return environ.get("POOLFLEET_" + flag.upper().replace("-", "_"), otherwise)

    def some(flag: str) -> list[str]:
        return [part.strip() for part in default(flag).split(",") if part.strip()]

    add = parser.add_argument
    add("--namespace", action="append", metavar="NAME", help="serve PgPools of this namespace only; may be repeated")
    add("--lease-namespace", default=default("lease-namespace", _own_namespace(environ)), metavar="NAME",
        help="namespace of the Lease (default: the pod's own, %(default)s)")  # fmt: skip
    add("--lease-name", default=default("lease-name", "poolfleet"), metavar="NAME", help="its name (%(default)s)")
    add("--agent-image", default=default("agent-image"), metavar="IMAGE",
        help="image of the agent beside every PgBouncer: the operator's own")  # fmt: skip
    add("--pgbouncer-image", default=default("pgbouncer-image"), metavar="IMAGE",
        help="image of PgBouncer for pools that name none")  # fmt: skip
    add("--image-pull-policy", default=default("image-pull-policy", "IfNotPresent"), choices=PULL_POLICIES,
        help="pull policy of the pools' pods (%(default)s)")  # fmt: skip
    add("--image-pull-secret", action="append", metavar="NAME",
        help="Secret in each pool's namespace with which its pods pull; may be repeated")  # fmt: skip
    add("--run-as-user", type=int, default=default("run-as-user") or None, metavar="UID",
        help="user of the pools' pods; left out: the platform's choice")  # fmt: skip
    add("--http-port", type=int, default=default("http-port", "8080"), metavar="PORT",
        help="port of /healthz, /readyz and /metrics (%(default)s)")  # fmt: skip
    add("--watch-secrets", action=argparse.BooleanOptionalAction, default=_truth(default("watch-secrets", "true")),
        help="list and watch labelled Secrets; if not, all are read by name every 60 s")  # fmt: skip
    add("--fast-lane", action=argparse.BooleanOptionalAction, default=_truth(default("fast-lane", "true")),
        help="send directives to the agents by HTTP as well; if not, they take them from the annotations alone, a "
        "second or two later")  # fmt: skip
    add("--workers", type=int, default=default("workers", "8"), metavar="N",
        help="reconciliations at the same time (%(default)s)")  # fmt: skip
    add("--log-level", default=default("log-level", "info"), choices=LEVELS, help="(%(default)s)")
    add("--token-providers", default=default("token-providers") or None, metavar="FILE", type=Path,
        help="who makes short-lived passwords of server roles, and for whose PgServers (JSON)")  # fmt: skip
    add("--kubeconfig", default=default("kubeconfig") or None, metavar="FILE",
        help="how to reach the API server; left out: the pod's ServiceAccount")  # fmt: skip
    given = parser.parse_args([*argv])
    for flag in ("agent-image", "pgbouncer-image"):
        if not getattr(given, flag.replace("-", "_")):
            parser.error(f"--{flag} is required")
    if given.workers < 1:
        parser.error("--workers must be at least 1")
    return Config(
        settings=Settings(
            agent_image=given.agent_image,
            pgbouncer_image=given.pgbouncer_image,
            image_pull_policy=given.image_pull_policy,
            image_pull_secrets=tuple(given.image_pull_secret or some("image-pull-secrets")),
            run_as_user=given.run_as_user,
            operator_namespace=_own_namespace(environ),
        ),
        namespaces=tuple(dict.fromkeys(given.namespace or some("namespaces"))),
        lease_namespace=given.lease_namespace,
        lease_name=given.lease_name,
        identity=environ.get("POD_NAME", ""),
        http_port=given.http_port,
        watch_secrets=given.watch_secrets,
        fast_lane=given.fast_lane,
        log_level=given.log_level,
        workers=given.workers,
        kubeconfig=given.kubeconfig,
        token_providers=given.token_providers,
    )


def _own_namespace(environ: Mapping[str, str]) -> str:
    if environ.get("POD_NAMESPACE"):
        return environ["POD_NAMESPACE"]
    return NAMESPACE_FILE.read_text().strip() if NAMESPACE_FILE.is_file() else "poolfleet-system"


def _truth(text: str) -> bool:
    return text.strip().lower() not in ("false", "0", "no", "off")
