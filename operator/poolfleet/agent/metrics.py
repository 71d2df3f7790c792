"""/metrics in Prometheus' text format, written by hand: a client library would weigh more than the rest of the agent.

Names of PgBouncer's numbers are those of the pgbouncer_exporter that dashboards know; PgBouncer's microseconds become
seconds.
"""

import os
import resource
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from poolfleet.agent.drain import Phase
from poolfleet.agent.engine import Engine
from poolfleet.agent.logs import log
from poolfleet.pgbouncer import show
from poolfleet.pgbouncer.admin import AdminError

Sample = tuple[Mapping[str, str], float]

_POOLS: Final = (
    ("client_active_connections", "cl_active", "Clients linked to a server connection or idle"),
    ("client_waiting_connections", "cl_waiting", "Clients waiting for a server connection"),
    ("server_active_connections", "sv_active", "Server connections linked to a client"),
    ("server_active_cancel_connections", "sv_active_cancel", "Server connections that carry a cancel request"),
    ("server_being_canceled_connections", "sv_being_canceled", "Server connections waiting for a cancel to finish"),
    ("server_idle_connections", "sv_idle", "Server connections ready for a client"),
    ("server_used_connections", "sv_used", "Server connections idle for longer than server_check_delay"),
    ("server_testing_connections", "sv_tested", "Server connections running a reset or check query"),
    ("server_login_connections", "sv_login", "Server connections logging in"),
)
_STATS: Final = (
    ("sql_transactions_pooled_total", "total_xact_count", 1.0, "Transactions"),
    ("queries_pooled_total", "total_query_count", 1.0, "Queries"),
    ("received_bytes_total", "total_received", 1.0, "Bytes received from clients"),
    ("sent_bytes_total", "total_sent", 1.0, "Bytes sent to clients"),
    ("server_in_transaction_seconds_total", "total_xact_time", 1e-6, "Time spent in transactions"),
    ("queries_duration_seconds_total", "total_query_time", 1e-6, "Time spent in queries"),
    ("client_wait_seconds_total", "total_wait_time", 1e-6, "Time that clients waited for a server connection"),
    ("server_assignments_total", "total_server_assignment_count", 1.0, "Server connections given to clients"),
    ("client_logins_total", "total_client_login_count", 1.0, "Logins of clients"),
)


class _Text:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, name: str, kind: str, text: str, samples: Iterable[Sample]) -> None:
        """One metric family; left out if it has no sample."""
        found = list(samples)
        if found:
            self.lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            self.lines += [f"{name}{_labels(labels)} {value!r}" for labels, value in found]


def _labels(labels: Mapping[str, str]) -> str:
    def escaped(value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    return "{" + ",".join(f'{name}="{escaped(value)}"' for name, value in labels.items()) + "}" if labels else ""


async def exposition(engine: Engine) -> str:
    """The whole page; PgBouncer's part is missing while it does not answer."""
    text = _Text()
    _agent(text, engine)
    try:
        await _pgbouncer(text, engine)
        up = 1.0
    except (AdminError, ValueError) as error:
        log.info("no statistics from PgBouncer", extra={"reason": str(error)})
        up = 0.0
    text.add("pgbouncer_up", "gauge", "PgBouncer answers on its admin console", [({}, up)])
    return "\n".join(text.lines) + "\n"


async def _pgbouncer(text: _Text, engine: Engine) -> None:
    connection = await engine.console.fresh()
    try:
        databases = show.databases(await connection.query("SHOW DATABASES"))
        pools = show.pools(await connection.query("SHOW POOLS"))
        stats = show.stats(await connection.query("SHOW STATS"))
    finally:
        connection.close()
    for name, field, words in (
        ("pool_size", "pool_size", "Limit of server connections of one pool"),
        ("max_connections", "max_connections", "Limit of server connections of the database"),
        ("current_connections", "current_connections", "Server connections, logins and cancels included"),
    ):
        values = [({"name": d.name}, float(getattr(d, field))) for d in databases]
        text.add(f"pgbouncer_databases_{name}", "gauge", words, values)
    for name, field, words in _POOLS:
        values = [({"database": p.database, "user": p.user}, float(getattr(p, field))) for p in pools]
        text.add(f"pgbouncer_pools_{name}", "gauge", words, values)
    waits = [({"database": p.database, "user": p.user}, p.maxwait_us / 1e6) for p in pools]
    text.add("pgbouncer_pools_client_maxwait_seconds", "gauge", "Wait of the first client in the queue", waits)
    for name, field, factor, words in _STATS:
        values = [({"database": n}, row[field] * factor) for n, row in stats.items() if field in row]
        text.add(f"pgbouncer_stats_{name}", "counter", words, values)


def _agent(text: _Text, engine: Engine) -> None:
    state, applied = engine.state, engine.intake.applied
    info = {"version": state.version, "pgbouncer": state.pgbouncer}
    text.add("poolfleet_agent_info", "gauge", "Versions", [(info, 1.0)])
    text.add("poolfleet_agent_revision", "gauge", "Applied ledger revision", [({}, float(state.rev))])
    granted = [({"database": name}, float(n)) for name, n in (applied.grant if applied else {}).items()]
    text.add("poolfleet_agent_granted_connections", "gauge", "Connections granted to this pod", granted)
    for name, field, words in (
        ("loaded_connections", "loaded", "Limit that PgBouncer has loaded"),
        ("held_connections", "held", "Server connections that PgBouncer holds"),
    ):
        values = [({"database": n}, float(getattr(d, field))) for n, d in state.databases.items()]
        text.add(f"poolfleet_agent_{name}", "gauge", words, values)
    for name, value, words in (
        ("ready", state.ready, "The pod is ready"),
        ("draining", state.draining, "The pod drains"),
        ("clients_cut", state.cut, "Clients that were left when the drain's time was over"),
        ("config_error", bool(state.config_error), "A newer configuration was refused"),
    ):
        text.add(f"poolfleet_agent_{name}", "gauge", words, [({}, float(value))])
    phase = [({"phase": str(phase)}, float(phase is engine.drain.phase)) for phase in Phase]
    text.add("poolfleet_agent_drain_phase", "gauge", "How far the drain is: 1 for the phase that it is in", phase)
    if state.cpu is not None:
        cpu = state.cpu
        text.add("poolfleet_agent_pgbouncer_cpu_cores", "gauge", "CPU of PgBouncer over the last seconds", [({}, cpu)])
    text.add("poolfleet_agent_clients_moved_total", "counter", "Idle clients closed to move them", [({}, state.moved)])
    reloads = [({"result": result}, float(n)) for result, n in engine.reloads.items()]
    text.add("poolfleet_agent_reloads_total", "counter", "Loads by result", reloads)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    usage = resource.getrusage(resource.RUSAGE_SELF)
    memory = float(pages * os.sysconf("SC_PAGE_SIZE"))
    text.add("process_resident_memory_bytes", "gauge", "Resident memory of the agent", [({}, memory)])
    text.add("process_cpu_seconds_total", "counter", "CPU of the agent", [({}, usage.ru_utime + usage.ru_stime)])
