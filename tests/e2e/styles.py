"""Clients as users have them, side by side: each style is a program of hack/load that runs until it is told to end."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from tests.e2e.clients import Clients, Running
from tests.e2e.cluster import Manifest, await_until
from tests.e2e.database import Login


@dataclass(frozen=True)
class Style:
    """How an application connects."""

    name: str
    program: str
    options: tuple[str, ...]

    def slower(self, milliseconds: int) -> "Style":
        """The same with so long a pause of each client between two queries."""
        at = self.options.index("--interval-ms") + 1
        return replace(self, options=(*self.options[:at], str(milliseconds), *self.options[at + 1 :]))


LIFETIME = "6"  # seconds; far less than a drain takes. Users have minutes, and drains that are as long.
QUERIES = ("--query-ms", "10", "--until-eof", "--timeout", "30")

PER_QUERY = Style("a connection per query", "steady", ("--clients", "4", "--interval-ms", "60", *QUERIES))
PSYCOPG_POOL = Style(
    "psycopg_pool, check and max_lifetime",
    "pooled",
    ("--driver", "psycopg_pool", "--clients", "4", "--interval-ms", "40", "--max-lifetime", LIFETIME, *QUERIES),
)
PGXPOOL = Style(
    "pgxpool, MaxConnLifetime",
    "pgxpool",
    ("--clients", "4", "--interval-ms", "40", "--max-lifetime", LIFETIME, *QUERIES),
)
# All its connections ask at once, and then none for a while: idle for longer than a drain's client_idle_timeout.
ASYNCPG_QUIET = Style(
    "asyncpg pool as it comes, with pauses",
    "pooled",
    ("--driver", "asyncpg", "--clients", "4", "--interval-ms", "4500", *QUERIES),
)
NAIVE = Style("one connection for ever, hot", "steady", ("--stay", "--clients", "6", "--interval-ms", "20", *QUERIES))
SAVABLE = (PER_QUERY, PSYCOPG_POOL, PGXPOOL, ASYNCPG_QUIET)


@dataclass
class Outcome:
    """What the clients of one style saw."""

    style: Style
    lines: list[Manifest] = field(default_factory=list)

    @property
    def summary(self) -> Manifest:
        """The last line's."""
        found: Manifest = self.lines[-1]["summary"]
        return found

    @property
    def errors(self) -> list[Manifest]:
        """A line for each query or connect that failed."""
        return [line for line in self.lines if "error" in line]

    @property
    def errors_by_client(self) -> dict[int, int]:
        """How many each client saw, of those that saw any."""
        counts: dict[int, int] = {}
        for line in self.errors:
            counts[line["client"]] = counts.get(line["client"], 0) + 1
        return counts

    def __str__(self) -> str:
        summary = self.summary
        return (
            f"{self.style.name}: {summary['failed']} of {summary['queries']} queries failed, {summary['connects']} "
            f"connections, slowest {summary['slowest_s']:.2f} s"
        )


@contextlib.contextmanager
def at_work(clients: Clients, login: Login, styles: Sequence[Style]) -> Iterator[list[Outcome]]:
    """While this lasts, clients of each style are at work; afterwards the list says what they saw."""
    outcomes: list[Outcome] = []
    running: list[tuple[Style, Running]] = []
    try:
        for style in styles:
            running.append((style, clients.start(style.program, login, *style.options)))
        for style, program in running:
            await_until(program.lines, 30, f"a first answer: {style.name}")
        yield outcomes
    finally:
        for _, program in running:
            program.hang_up()
        outcomes += [Outcome(style, program.wait(60)) for style, program in running]
