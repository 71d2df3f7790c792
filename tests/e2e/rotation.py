"""A PostgreSQL whose roles the operator may alter, and rotations of their passwords as a test sees them."""

import itertools
import json
import secrets
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from poolfleet.api import names
from tests.e2e import kit, styles
from tests.e2e.styles import QUERIES, Outcome, Style

ROLE = "shop"  # on the server, and the database that it owns
ROLE_SECRET = "shop-role"
CLIENT = "web"  # a client user, and the Secret with its login
MAX_CONNECTIONS = 60
ADMIN = kit.Target.ADMIN_SECRET

PSYCOPG_POOL = replace(styles.PSYCOPG_POOL, name="psycopg_pool")
ASYNCPG = Style("asyncpg pool", "pooled", ("--driver", "asyncpg", "--clients", "4", "--interval-ms", "40", *QUERIES))
# Stays connected, and tells every answer that took long: what a stall is measured with.
PROBE = Style(
    "probe",
    "steady",
    ("--stay", "--clients", "3", "--interval-ms", "30", "--tell-ms", "50", "--timeout", "30", "--until-eof"),
)
PER_QUERY = replace(styles.PER_QUERY, options=(*styles.PER_QUERY.options, "--tell-ms", "50"))
STYLES = (*(each.slower(100) for each in (PER_QUERY, PSYCOPG_POOL, ASYNCPG, styles.PGXPOOL)), PROBE)
"""Less load than elsewhere: two cores are shared by clients, pool, database and cluster, and what is looked for is how
long a query waits for the rotation, not for a core."""


@dataclass(frozen=True)
class Watched:
    """A version of a PgPool, and when it was seen here, in seconds since the epoch."""

    at: float
    status: kit.Manifest

    def line(self, secret: str) -> kit.Manifest:
        """status.rotations of a Secret; empty if there is none."""
        lines = self.status.get("rotations") or ()
        return next((line for line in lines if line["secret"] == secret), {})

    def condition(self, type: str) -> tuple[str, str]:
        """Status and reason of a condition."""
        conditions = self.status.get("conditions") or ()
        return next(((c["status"], c["reason"]) for c in conditions if c["type"] == type), ("", ""))


class Watch:
    """Every status of a PgPool since this began: with Watch(pool) as watch: …"""

    def __init__(self, pool: kit.Pool) -> None:
        self.all: list[Watched] = []
        where = ("-n", pool.namespace, "get", "pgpool", pool.name, "--watch", "-o", "json")
        self._process = pool.kubectl.popen(*where, stdout=subprocess.PIPE)
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        kit.await_until(lambda: self.all, 20, "a first version of the PgPool", interval=0.02)
        return self

    def __exit__(self, *exc: object) -> None:
        ended = self._process.poll()
        self._process.kill()
        self._thread.join(10)
        assert exc[0] is not None or ended is None, f"the watch has ended before the test, with {ended}"

    @property
    def last(self) -> Watched:
        """The newest."""
        return self.all[-1]

    def _read(self) -> None:
        assert self._process.stdout is not None
        lines: list[str] = []
        with self._process:
            for line in self._process.stdout:
                lines.append(line)
                if line == "}\n":  # the end of an object; everything inside is indented
                    self.all.append(Watched(time.time(), json.loads("".join(lines)).get("status") or {}))
                    lines.clear()


@dataclass(frozen=True)
class Rotated:
    """One rotation, from when it was asked for until status said that it was over; in seconds since the epoch."""

    begun: float
    ended: float

    @property
    def took(self) -> float:
        """Seconds."""
        return self.ended - self.begun


_tokens = itertools.count(1)


@dataclass
class Place:
    """A pool whose role's password may be rotated, and the server behind it."""

    postgres: kit.Postgres
    pool: kit.Pool
    client: kit.Login  # through the pool
    role: str = ROLE
    secret: str = ROLE_SECRET
    former: list[str] = field(default_factory=list)  # passwords that were valid

    @classmethod
    def make(cls, postgres: kit.Postgres, name: str, **spec: object) -> "Place":
        """Role, database, Secrets and a pool with three pods in the PostgreSQL's own namespace. It is not awaited."""
        kubectl, namespace = postgres.kubectl, postgres.namespace
        password, client = secrets.token_urlsafe(18), secrets.token_urlsafe(18)
        postgres.make(ROLE, password)
        admin = kubectl.secret(namespace, ADMIN)["username"]
        postgres.sql(f"ALTER ROLE {kit.ident(admin)} CREATEROLE")
        may_alter(postgres, ROLE)
        kubectl.apply(
            handed_over(kit.basic_auth(namespace, ROLE_SECRET, ROLE, password)),
            kit.basic_auth(namespace, CLIENT, CLIENT, client),
        )
        pool = kit.Pool(kubectl, namespace, name)
        pool.apply(
            {
                "server": server(postgres, ROLE),
                "databases": [database(ROLE, ROLE_SECRET, strategy="Password")],
                "users": [{"secretRef": {"name": CLIENT}}],
                "replicas": 3,
                **spec,
            }
        )
        login = kit.Login(f"{name}.{namespace}.svc", names.PGBOUNCER_PORT, CLIENT, client, ROLE)
        return cls(postgres, pool, login)

    @property
    def direct(self) -> kit.Login:
        """The role's login, straight to PostgreSQL."""
        return kit.Login(self.postgres.host, 5432, self.role, "", ROLE)

    def target(self) -> kit.Target:
        """What `guarded` wants to know."""
        return kit.Target(self.postgres, self.postgres.namespace, self.direct)

    def stored(self, secret: str = "") -> str:
        """The password in a Secret (default: the role's); "" if there is none."""
        found = self.pool.kubectl.find("-n", self.pool.namespace, "secret", secret or self.secret)
        return self.pool.kubectl.secret(self.pool.namespace, secret or self.secret)["password"] if found else ""

    def works(self, password: str) -> bool:
        """Whether PostgreSQL takes this password of the role."""
        login = replace(self.direct, password=password)
        try:
            return self.postgres.psql(login, "SELECT 1") == "1"
        except kit.KubectlError as error:
            if "password authentication failed" in str(error):
                return False
            raise

    def ask(self) -> str:
        """Ask for a rotation, now; returns the annotation's value."""
        token = f"{time.time():.3f}-{next(_tokens)}"
        annotate(self.pool, token)
        return token

    def rotate(self, watch: Watch, timeout: float = 30) -> Rotated:
        """Ask for a rotation and wait until it is over."""
        begun = time.time()
        before = watch.last.line(self.secret).get("lastRotationTime")
        self.ask()
        return Rotated(begun, await_rotated(watch, self.secret, before, timeout))

    def assert_only_the_stored_password_works(self) -> None:
        """The Secret's password logs in, and the one that the Secret had when this was asked before does not."""
        password = self.stored()
        assert password not in self.former, "the Secret still has a former password"
        assert self.works(password), f"the password in Secret {self.secret} does not log in"
        assert not self.former or not self.works(self.former[-1]), "the former password still logs in"
        self.former.append(password)


def await_rotated(watch: Watch, secret: str, before: str | None, timeout: float = 30) -> float:
    """Wait until status has another lastRotationTime than `before` and all is current; returns when that was seen."""

    def over() -> Watched | None:
        seen = watch.last
        line = seen.line(secret)
        done = line.get("lastRotationTime") not in (None, before) and line.get("phase") == "Idle"
        return seen if done and seen.condition("CredentialsCurrent")[0] == "True" else None

    try:
        seen = kit.await_until(over, timeout, f"Secret {secret} was rotated", interval=0.02)
    except AssertionError as error:
        phases = [(round(w.at, 2), w.line(secret).get("phase"), w.line(secret).get("message")) for w in watch.all]
        raise AssertionError(f"{error}; at last {phases[-8:]}, {watch.last.condition('CredentialsCurrent')}") from None
    assert seen is not None
    return seen.at


def annotate(pool: kit.Pool, token: str) -> None:
    """Set the annotation that asks for rotations."""
    pool.kubectl.patch(pool.namespace, f"pgpool/{pool.name}", {"metadata": {"annotations": {names.ROTATE: token}}})


def server(postgres: kit.Postgres, *managed: str) -> kit.Manifest:
    """An inline server with these managedRoles."""
    return {
        "host": postgres.host,
        "maxConnections": MAX_CONNECTIONS,
        "headroom": 0,
        "adminSecretRef": {"name": ADMIN},
        "managedRoles": [*managed],
    }


def database(name: str, secret: str, mode: str = "transaction", **rotation: object) -> kit.Manifest:
    """An entry of spec.databases: the database of ROLE on the server, under another login."""
    return {
        "name": name,
        "serverDatabase": ROLE,
        "poolMode": mode,
        "credentialsSecretRef": {"name": secret},
        "rotation": rotation,
    }


def may_alter(postgres: kit.Postgres, *roles: str) -> None:
    """Give the admin login the right to alter these roles, and no other right of theirs."""
    admin = postgres.kubectl.secret(postgres.namespace, ADMIN)["username"]
    listed = ", ".join(kit.ident(role) for role in roles)
    postgres.sql(f"GRANT {listed} TO {kit.ident(admin)} WITH ADMIN OPTION, INHERIT FALSE, SET FALSE")


def handed_over(secret: kit.Manifest) -> kit.Manifest:
    """The Secret with the label by which a rotation may write it."""
    metadata = secret["metadata"]
    return {**secret, "metadata": {**metadata, "labels": {**metadata["labels"], names.LABEL_MANAGED: "true"}}}


def stalls(rotations: Sequence[Rotated], outcomes: Iterable[Outcome]) -> list[float]:
    """For each rotation the longest that an answer of a style with --tell-ms took during it, in seconds."""
    slow = [(line["t"] - line["took"], line["t"]) for each in outcomes for line in each.lines if "took" in line]
    return [
        max((until - since for since, until in slow if since < each.ended and until > each.begun), default=0.0)
        for each in rotations
    ]


def assert_patient(lines: Sequence[kit.Manifest], rotations: Sequence[Rotated]) -> int:
    """None of the long transactions failed, and every rotation was entirely inside one. Returns how many there were."""
    assert [line for line in lines if "error" in line] == []
    spans = [(line["begun"], line["t"]) for line in lines if "begun" in line]
    for each in rotations:
        assert any(begun < each.begun and each.ended < end for begun, end in spans), (each, spans)
    return len(spans)
