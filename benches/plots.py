"""Charts in SVG, drawn by hand so that they follow the reader's light or dark theme."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

from benches.figures import Outcome, Result

WIDTH = 760
LEFT = 230
RIGHT = 90
ROW = 22
TOP = 46

STYLE = """\
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600; font-size: 14px }
.tick { fill: #656d76; font-size: 11px }
line { stroke: #d0d7de }
.limit { fill: #8c959f; stroke: #8c959f }
.peer { fill: #0969da; stroke: #0969da }
.tomada { fill: #cf5c00; stroke: #cf5c00 }
.spread { stroke-width: 2 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .tick { fill: #8d96a0 }
  line { stroke: #3d444d }
  .limit { fill: #9198a1; stroke: #9198a1 }
  .peer { fill: #4493f8; stroke: #4493f8 }
  .tomada { fill: #f0883e; stroke: #f0883e }
}"""

# What the first metric of a load is called, what to multiply it with, and the unit of that.
METRICS = {
    "rate": ("datagrams per second", 1.0, ""),
    "p50": ("median latency", 1e-9, "s"),
    "p99": ("99th percentile", 1e-9, "s"),
    "bytes": ("bytes per socket", 1.0, "B"),
}


def chart(result: Result) -> str:
    """Draw a subject per row on a logarithmic scale: the median, and a line for the extremes."""
    metric = result.scenario.load.metrics[0]
    label, factor, unit = METRICS[metric]
    rows = [
        (subject, values)
        for subject in result.scenario.subjects
        if (outcome := result.outcomes.get(subject.name))
        and (values := values_of(outcome, metric, factor))
    ]
    every = [value for _, values in rows for value in values] or [1.0]
    scale = Scale(min(every), max(every))
    bottom = TOP + ROW * len(rows)
    parts = [text(12, 20, f"{result.scenario.title}: {label}", "title")]
    for tick in scale.ticks():
        x = scale.x(tick)
        parts.append(f'<line x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(text(x, bottom + 16, si(tick, unit), "tick", "middle"))
    for number, (subject, values) in enumerate(rows):
        y = TOP + ROW * number + ROW // 2
        low, middle, high = (scale.x(value) for value in values)
        parts += [
            text(LEFT - 12, y + 4, subject.name, "", "end"),
            line(subject.group, low, high, y),
            f'<circle class="{subject.group}" cx="{middle:.1f}" cy="{y}" r="5"/>',
            text(high + 12, y + 4, si(values[1], unit), "tick"),
        ]
    height = bottom + 30
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}">\n<style>\n{STYLE}\n</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


# A scale of powers has no place for zero, as how late a timer is may be. In seconds, or a second.
LEAST = 100e-9


def values_of(outcome: Outcome, metric: str, factor: float) -> tuple[float, float, float] | None:
    """Return the least, the median and the greatest of what was measured."""
    if not outcome.samples:
        return None
    every = [max(sample[metric] * factor, LEAST) for sample in outcome.samples]
    return min(every), max(outcome.median(metric) * factor, LEAST), max(every)


class Scale:
    """A logarithmic one, over whole powers of ten and their halves."""

    def __init__(self, least: float, greatest: float) -> None:
        self.low = math.floor(math.log10(least) * 2) / 2
        self.high = max(math.ceil(math.log10(greatest) * 2) / 2, self.low + 0.5)

    def x(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def ticks(self) -> list[float]:
        """Return 1, 2 and 5 times the powers of ten that it covers, or only the powers."""
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        steps = (1, 2, 5) if self.high - self.low <= 2 else (1,)
        every = [step * 10.0**power for power in powers for step in steps]
        return [tick for tick in every if self.low <= math.log10(tick) + 1e-9 <= self.high + 2e-9]


def si(value: float, unit: str) -> str:
    """Write a number with three digits and the prefix of its size."""
    prefixes = [(1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n")]
    size, prefix = next((pair for pair in prefixes if value >= pair[0] * 0.9995), prefixes[-1])
    return f"{value / size:.3g} {prefix}{unit}".rstrip()


def text(x: float, y: float, words: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'


def line(kind: str, start: float, end: float, y: float) -> str:
    return f'<line class="spread {kind}" x1="{start:.1f}" y1="{y}" x2="{end:.1f}" y2="{y}"/>'
