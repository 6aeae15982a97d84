"""Charts in SVG: a subject per row, on a logarithmic scale."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter

from benches.figures import Outcome, Result

WIDTH = 8.0  # in inches
ROW = 0.24
MARGIN = 0.9

# Grey enough for a white page and a dark one: the background is transparent.
TEXT = "#768390"
COLOURS = {"limit": "#8c959f", "peer": "#2f81f7", "tomada": "#e0701d"}

# The same figures produce the same file. Text stays text, in the reader's font.
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tomada",
    "font.family": "sans-serif",
    "font.size": 9,
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "none"),
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), TEXT),
}

# The label of a load's first metric, the factor that converts it to the unit, and the unit.
METRICS = {
    "rate": ("{unit}s per second", 1.0, ""),
    "p50": ("median latency", 1e-9, "s"),
    "p99": ("99th percentile", 1e-9, "s"),
    "bytes": ("bytes per socket", 1.0, "B"),
    "session_bytes": ("bytes per session", 1.0, "B"),
}

# The least value to draw: a logarithmic scale has no zero, but a timer may be exactly on time.
LEAST = 100e-9


def chart(result: Result) -> str:
    """Draw the median of each measured subject, and a line between its extremes."""
    metric = result.scenario.load.metrics[0]
    label, factor, unit = METRICS[metric]
    label = label.format(unit=result.scenario.load.unit)
    rows = [
        (subject, values)
        for subject in result.scenario.subjects
        if (outcome := result.outcomes.get(subject.name))
        and (values := values_of(outcome, metric, factor))
    ]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, MARGIN + ROW * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for row, (subject, (low, middle, high)) in enumerate(rows):
            colour = COLOURS[subject.group]
            axes.plot([low, high], [row, row], color=colour, linewidth=1.5)
            axes.plot(middle, row, "o", color=colour, markersize=6, gid=f"median-{row}")
            axes.annotate(
                EngFormatter(unit, places=None)(float(f"{middle:.3g}")),
                (high, row),
                xytext=(7, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axes.set_xscale("log")
        axes.margins(x=0.12)
        axes.set_yticks(range(len(rows)), [subject.name for subject, _ in rows])
        axes.invert_yaxis()
        axes.set_title(f"{result.scenario.title}: {label}", loc="left", fontsize=10)
        axes.xaxis.set_major_formatter(EngFormatter(unit))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="x", color=TEXT, alpha=0.3)
        axes.tick_params(which="both", length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        return svg(figure)


def svg(figure: Figure, title: str | None = None) -> str:
    """Return a figure as SVG, with a title for screen readers."""
    file = io.BytesIO()
    metadata = {"Date": None, "Creator": None, **({"Title": title} if title else {})}
    FigureCanvasSVG(figure).print_svg(file, metadata=metadata)
    return file.getvalue().decode()


def values_of(outcome: Outcome, metric: str, factor: float) -> tuple[float, float, float] | None:
    """Return the minimum, the median and the maximum of the samples."""
    if not outcome.samples:
        return None
    every = [max(sample[metric] * factor, LEAST) for sample in outcome.samples]
    return min(every), max(outcome.median(metric) * factor, LEAST), max(every)
