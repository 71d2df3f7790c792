"""What happens while nobody asks: sessions by address in PostgreSQL, and every version of a PgServer and its ledger."""

import json
import tempfile
from datetime import datetime
from pathlib import Path

from tests.e2e.cluster import Kubectl, Manifest
from tests.e2e.database import Postgres, Sampler


class Sessions(Sampler):
    """Sessions in PostgreSQL by the address that they come from, twenty times a second."""

    def __init__(self, postgres: Postgres) -> None:
        super().__init__(postgres, interval=0.05)
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
