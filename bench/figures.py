"""What a benchmark says, as a table on the terminal and in docs/benchmarks.md. Pure."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    what: str
    measured: str
    goal: str = ""
    met: bool | None = None  # None: there is no goal
    note: str = ""  # how it was measured, or what to compare it with

    @property
    def verdict(self) -> str:
        """The goal, and whether it was met."""
        return self.goal if self.met is None else f"{self.goal} {'yes' if self.met else 'MISSED'}"


def spread(values: Sequence[float], form: str = ".1f", unit: str = "") -> str:
    """Median and range, such as "24.1 MiB (23.9–25.0)"; one value alone stands without a range."""
    middle = f"{statistics.median(values):{form}}{unit}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):{form}}–{max(values):{form}})"


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of `values` that at least `percent` % of them do not exceed (nearest rank). ValueError if empty."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]


HEAD = ("what", "measured", "goal", "how, and what to compare it with")


def text(figures: Sequence[Figure]) -> str:
    """The table for a terminal; notes stand below their line's name."""
    rows = [HEAD[:3], *((f.what, f.measured, f.verdict) for f in figures)]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "-" * (sum(widths) + 4))
    notes = ["", *(f"  {f.what}: {f.note}" for f in figures if f.note)]
    return "\n".join(lines + (notes if len(notes) > 1 else []))


def markdown(figures: Sequence[Figure]) -> str:
    """The table for a page."""
    rows = [HEAD, ("---",) * len(HEAD), *((f.what, f.measured, f.verdict, f.note) for f in figures)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


Rows = Sequence[Sequence[str]]


def columns(rows: Rows) -> str:
    """Contenders side by side for a terminal; the first row has their names, the first column says what was counted."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]])


def columns_markdown(rows: Rows) -> str:
    """The same for a page."""
    head, *body = rows
    return "\n".join("| " + " | ".join(row).strip() + " |" for row in (head, ("---",) * len(head), *body))
