"""What happens while nobody asks: sessions by address in PostgreSQL, and every version of a PgServer and its ledger."""

import json
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tests.e2e.cluster import Kubectl, Manifest, await_until
from tests.e2e.database import Postgres, Sampler


class Sessions(Sampler):
    """Sessions in PostgreSQL by the address that they come from, by default twenty times a second."""

    def __init__(self, postgres: Postgres, interval: float = 0.05) -> None:
        super().__init__(postgres, interval)
        self.SQL = Sampler.SQL.replace("coalesce(usename, '')", "coalesce(host(client_addr), '')")
        assert self.SQL != Sampler.SQL

    def now(self, address: str) -> int:
        """Sessions from `address` in the newest sample."""
        return self.samples[-1][1].get(address, 0) if self.samples else 0


class Versions:
    """Every version of a PgServer that the API server has shown since this began."""

    def __init__(self, kubectl: Kubectl, namespace: str, name: str) -> None:
        self._out = tempfile.NamedTemporaryFile("w+")  # noqa: SIM115 (closed in `end`)
        watch = ("-n", namespace, "get", "pgserver", name, "--watch", "-o", "json")
        self._process = kubectl.popen(*watch, stdout=self._out)

    def all(self) -> list[Manifest]:
        """The versions so far, oldest first."""
        text, versions, decoder = Path(self._out.name).read_text().lstrip(), [], json.JSONDecoder()
        while text:
            try:
                version, end = decoder.raw_decode(text)
            except ValueError:
                break  # half written
            versions.append(version)
            text = text[end:].lstrip()
        return versions

    def end(self) -> None:
        """End the watch."""
        self._process.kill()
        self._process.wait()
        self._out.close()


def entries(server: Manifest) -> list[Manifest]:
    """The entries of a PgServer's ledger."""
    found: list[Manifest] = ((server.get("status") or {}).get("ledger") or {}).get("entries") or []
    return found


def promised(server: Manifest) -> int:
    """The sum of the bounds in a PgServer's ledger."""
    return sum(entry["bound"] for entry in entries(server))


def is_rebuilt(server: Manifest) -> bool:
    """Whether a PgServer says that its ledger was rebuilt, and the grace is not over."""
    return "rebuiltAt" in ((server.get("status") or {}).get("ledger") or {})


def seconds(timestamp: str) -> float:
    """A timestamp of Kubernetes in seconds since the epoch."""
    return datetime.fromisoformat(timestamp).timestamp()


@dataclass(frozen=True)
class Step:
    """One version of a PgServer's status, and when it was seen here."""

    at: float  # seconds since the epoch
    budget: int
    reserve: int
    ghosts: int
    bounds: dict[tuple[str, str], int]  # by (pod name, database)
    grants: dict[tuple[str, str], int]
    since: dict[tuple[str, str], float]  # when the newest grant was decided, by the ledger itself
    shares: dict[str, int]  # status.pools[].budget by "<namespace>/<name>"

    @classmethod
    def of(cls, server: Manifest, at: float) -> "Step":
        """From a PgServer as the API server shows it."""
        status, by_pod = server.get("status") or {}, [((e["podName"], e["database"]), e) for e in entries(server)]
        return cls(
            at,
            int(status.get("budget") or 0),
            int(status.get("reserve") or 0),
            int(status.get("ghosts") or 0),
            {key: int(entry["bound"]) for key, entry in by_pod},
            {key: int(entry["grant"]) for key, entry in by_pod},
            {key: seconds(entry["since"]) for key, entry in by_pod},
            {f"{p['namespace']}/{p['name']}": int(p.get("budget") or 0) for p in status.get("pools") or ()},
        )

    @property
    def bound(self) -> int:
        """Σ bounds: what may be held at this moment."""
        return sum(self.bounds.values())

    @property
    def grantable(self) -> int:
        """What may be granted to pods that are there."""
        return self.budget - self.reserve - self.ghosts


class Steps:
    """Every status of a PgServer since this began, with the time at which each was seen: with Steps(…) as steps: …"""

    def __init__(self, kubectl: Kubectl, namespace: str, name: str) -> None:
        self.all: list[Step] = []
        watch = ("-n", namespace, "get", "pgserver", name, "--watch", "-o", "json")
        self._process = kubectl.popen(*watch, stdout=subprocess.PIPE)
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> "Steps":
        self._thread.start()
        await_until(lambda: self.all, 20, "a first version of the PgServer", interval=0.02)
        return self

    def __exit__(self, *exc: object) -> None:
        ended = self._process.poll()
        self._process.kill()
        self._thread.join(10)
        assert exc[0] is not None or ended is None, f"the watch has ended before the test, with {ended}"

    @property
    def last(self) -> Step:
        """The newest."""
        return self.all[-1]

    def _read(self) -> None:
        assert self._process.stdout is not None
        lines: list[str] = []
        with self._process:
            for line in self._process.stdout:
                lines.append(line)
                if line == "}\n":  # the end of an object; everything inside is indented
                    self.all.append(Step.of(json.loads("".join(lines)), time.time()))
                    lines.clear()
