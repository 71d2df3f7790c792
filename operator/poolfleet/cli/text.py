"""An Explanation as text for a terminal, and as JSON for programs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from pydantic.alias_generators import to_camel

from poolfleet.plan.explanation import Explanation, Line
from poolfleet.plan.simulate import Moment

Cell = str | int | None


def as_json(value: Any) -> Any:
    """A frozen value of the planning as JSON: dataclasses as objects with camelCase members."""
    if is_dataclass(value) and not isinstance(value, type):
        return {to_camel(each.name): as_json(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [as_json(item) for item in value]
    return value


def table(rows: Sequence[Sequence[Cell]], indent: str = "") -> str:
    """Columns aligned, numbers to the right, two spaces between; None is shown as "-". No trailing spaces."""
    shown = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[at]) for row in shown) for at in range(len(shown[0]))] if shown else []
    numeric = [all(isinstance(row[at], int | None) for row in rows[1:]) for at in range(len(widths))]
    lines = []
    for cells in shown:
        parts = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric, strict=True)
        ]
        lines.append(indent + "  ".join(parts).rstrip())
    return "\n".join(lines) + "\n" if lines else ""


def addition(title: str, lines: Sequence[Line]) -> Iterator[str]:
    """A column of numbers under a title, each with its sign and what it is."""
    if not lines:
        return
    width = max(len(str(line.connections)) for line in lines)
    whats = [f"of which {line.what}" if line.sign == "of which" else line.what for line in lines]
    yield f"{title}\n"
    for line, what in zip(lines, whats, strict=True):
        part = line.sign == "of which"
        number = f"({line.connections})".rjust(width + 2) if part else f" {str(line.connections).rjust(width)} "
        sign = " " if part else line.sign or " "
        yield f"  {sign} {number}  {what.ljust(max(map(len, whats)))}  {line.note}".rstrip() + "\n"
    yield "\n"


def explained(explanation: Explanation) -> str:
    """The whole explanation."""
    return "".join(_explained(explanation))


def _explained(explanation: Explanation) -> Iterator[str]:
    yield f"PgServer {explanation.server}, in connections\n\n"
    yield from addition("Budget", explanation.budget)
    if len(explanation.shared) > 2:
        yield from addition("What the pools share", explanation.shared)
    yield from addition("Now", explanation.free)
    if explanation.pools:
        yield "Pools, oldest first\n"
        head = ("POOL", "WEIGHT", "MIN", "MAX", "REPLICAS", "DATABASES", "NEEDS", "SURE", "SHARE", "RESERVE", "NOW")
        rows: list[Sequence[Cell]] = [(*head, "WHY")]
        for pool in explanation.pools:
            databases = len(pool.databases)
            asked = (pool.weight, pool.min, pool.max, pool.replicas, databases)
            given = (pool.needs, pool.sure, pool.share, pool.reserve, pool.now)
            rows.append((pool.pool, *asked, *given, pool.why))
        yield table(rows, "  ") + "\n"
    if explanation.fleets:
        yield "Clients, as status shows them\n"
        rows = [("POOL", "REPLICAS", "READY", "CLIENTS", "WAITING", "FEWEST", "MOST", "WHY")]
        for fleet in explanation.fleets:
            counts = (fleet.replicas, fleet.ready, fleet.clients, fleet.waiting, fleet.fewest, fleet.most)
            rows.append((fleet.pool, *counts, fleet.why))
        yield table(rows, "  ") + "\n"
    if explanation.pods:
        yield "Pods\n"
        rows = [("POD", "DATABASE", "FAIR", "TARGET", "POOL_SIZE", "BOUND", "WHY")]
        for pod in explanation.pods:
            rows.append((pod.pod, pod.database, pod.fair, pod.target, pod.pool_size, pod.bound, pod.why))
        yield table(rows, "  ") + "\n"
    for note in explanation.notes:
        yield f"! {note}\n"


def rolled(moments: Sequence[Moment], budget: int, surge: int) -> str:
    """The moments of a rollout, and whether they stay within the budget."""
    if not any(moment.pods or moment.ending for moment in moments):
        return "No pods, so there is nothing to roll out.\n"
    ahead = {0: "a pod less", 1: "1 surge pod"}.get(surge, f"{surge} surge pods")
    rows: list[Sequence[Cell]] = [("MOMENT", "PODS", "ENDING", "GRANTED", "LEFT", "POOL_SIZE")]
    for moment in moments:
        sizes = f"{moment.smallest}..{moment.largest}"
        rows.append((moment.what, moment.pods, moment.ending, moment.bound, budget - moment.bound, sizes))
    most = max(moment.bound for moment in moments)
    return (
        f"Rollout of all pools at once, {ahead} each; pods that end hold everything until they are gone\n"
        f"{table(rows, '  ')}\n"
        f"At most {most} of {budget} connections at any moment: {'within' if most <= budget else 'ABOVE'} the budget.\n"
    )
