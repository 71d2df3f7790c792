"""Numbers over time as an SVG file: panels below each other, in each a line per contender. Pure.

The colours are middling ones and the ground is left transparent, so that light and dark pages show it alike.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

GREY = "#808080"
BUDGET = 'stroke="#dc4444" stroke-dasharray="8 4"'
COLOURS = ("#d97706", "#8b5cf6", "#059669", "#0284c7")
WIDTH, PANEL, TOP, LEFT, RIGHT, GAP = 860, 250, 66, 52, 20, 64
FONT = "font-family=\"system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif\""


@dataclass(frozen=True)
class Line:
    """One contender: (seconds, number), each held until the next."""

    name: str
    points: Sequence[tuple[float, int]]


@dataclass(frozen=True)
class Panel:
    """What is counted, and by whom."""

    title: str
    lines: Sequence[Line]
    steps: Sequence[tuple[float, str]]  # (seconds, what was done then)
    most: int  # where the axis ends
    tick: int = 20  # between two numbers at the axis
    budget: int | None = None
    height: int = PANEL


@dataclass(frozen=True)
class Scale:
    """Seconds and numbers to the picture's coordinates, for the panel whose upper edge is at `top`."""

    top: float
    seconds: float
    most: int
    height: int = PANEL

    def x(self, seconds: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * seconds / self.seconds, 1)

    def y(self, number: float) -> float:
        return round(self.top + self.height * (1 - number / self.most), 1)


def svg(title: str, panels: Sequence[Panel]) -> str:
    """The picture. A name has one colour in all panels. Raises ValueError without panels or points."""
    seconds = max((at for panel in panels for line in panel.lines for at, _ in line.points), default=0.0)
    if not seconds:
        raise ValueError("there is nothing to draw")
    names = dict.fromkeys(line.name for panel in panels for line in panel.lines)
    strokes = {name: f'stroke="{colour}"' for name, colour in zip(names, COLOURS, strict=False)}
    budgets = {f"budget {panel.budget}": BUDGET for panel in panels if panel.budget is not None}
    body = [text(LEFT, 18, title, weight="600", size=15)]
    for number, (name, stroke) in enumerate([*strokes.items(), *budgets.items()]):
        x = LEFT + 190 * number
        body.append(f'<path d="M{x} 36h26" {stroke} stroke-width="3"/>')
        body.append(text(x + 32, 40, name))
    top = TOP + 14
    for panel in panels:
        body += drawn(panel, Scale(top, seconds, panel.most, panel.height), strokes)
        top += panel.height + GAP
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top - 14}" {FONT} font-size="12" role="img">'
    return "\n".join([head, *body, "</svg>", ""])


def drawn(panel: Panel, scale: Scale, strokes: Mapping[str, str]) -> Iterator[str]:
    """Title, axes, steps, budget and lines of one panel."""
    bottom, end = scale.y(0), WIDTH - RIGHT
    yield text(LEFT, scale.top - 8, panel.title, weight="600")
    for number in range(0, panel.most + 1, panel.tick):
        y = scale.y(number)
        yield f'<path d="M{LEFT} {y}H{end}" stroke="{GREY}" stroke-opacity="0.25"/>'
        yield text(LEFT - 8, y + 4, str(number), anchor="end")
    for seconds in range(0, int(scale.seconds) + 1, 10):
        yield text(scale.x(seconds), bottom + 16, f"{seconds} s", anchor="middle")
    for at, what in panel.steps:
        yield f'<path d="M{scale.x(at)} {scale.top}V{bottom}" stroke="{GREY}" stroke-dasharray="2 4"/>'
        yield text(scale.x(at), bottom + 32, what, anchor="middle")
    for line in panel.lines:
        yield f'<path d="{steps(line.points, scale)}" fill="none" {strokes[line.name]} stroke-width="1.6"/>'
    if panel.budget is not None:
        yield f'<path d="M{LEFT} {scale.y(panel.budget)}H{end}" {BUDGET} stroke-width="1.5"/>'


def steps(points: Sequence[tuple[float, int]], scale: Scale) -> str:
    """The path of a line that jumps at each point; points that change nothing are left out."""
    (first, value), *rest = points
    path = [f"M{scale.x(first)} {scale.y(value)}"]
    for at, number in rest:
        if number != value:
            path.append(f"H{scale.x(at)}V{scale.y(number)}")
            value = number
    return "".join([*path, f"H{scale.x(points[-1][0])}"])


def text(x: float, y: float, words: str, anchor: str = "start", weight: str = "", size: int = 0) -> str:
    """One label."""
    more = (f' font-weight="{weight}"' if weight else "") + (f' font-size="{size}"' if size else "")
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{GREY}"{more}>{escape(words)}</text>'
