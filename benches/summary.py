"""The overview of the results: one chart, for light and dark pages, and one table.

Both are generated from the pages of results, because the pages are in the repository and the
samples are not. ``python -m benches.summary`` regenerates them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from benches import plots

DIRECTORY = Path(__file__).parents[1] / "docs" / "benchmarks"
BEGIN, END = "<!-- summary: begin -->\n", "<!-- summary: end -->\n"

# The cells of a page's tables of results, by heading, subject and column.
Tables = dict[str, dict[str, dict[str, str]]]


@dataclass(frozen=True)
class Row:
    """A row of the table: where its figures come from, and which of tomada's subjects it shows."""

    title: str
    call: str
    page: str
    heading: str
    subject: str
    column: str = "datagrams/s"

    def cells(self, pages: dict[str, Tables]) -> list[str]:
        found = pages[self.page][self.heading]
        figures = [found[name][self.column] for name in (*PEERS, self.subject)]
        return [f"[{self.title}]({self.page}.md), {self.call}", *figures]


PEERS = ("asyncio", "uvloop", "socket")
ECHO = "64 bytes, 8 clients with 8 requests in flight each"
RUNS = "64 bytes, 8 clients that send windows of 32 with GSO"
FROM_ONE = "64 bytes from a sender with GSO"
TO_MANY = "64 bytes to 1,000 peers in turn"
LOOPS = "64 bytes, event loops at one end, a client in Rust at the other"
RECEIVE, SEND = "tomada: recv_many, gro", "tomada: send_many"
ROWS = (
    Row("echo", "`Server`", "echo", ECHO, "tomada: Server"),
    Row("echo of runs of 32", "`Server`", "echo", RUNS, "tomada: Server"),
    Row("receive from one peer", "`recv_many` with `gro`", "receive", FROM_ONE, RECEIVE),
    Row("send to one peer", "`send_many`", "send", "64 bytes to one peer", SEND),
    Row("send to 1,000 peers in turn", "`send_many`", "send", TO_MANY, SEND),
    Row("median round trip", "`asyncio`", "round-trip", LOOPS, "tomada: asyncio", "p50"),
)

# The bars of the chart, each with its label.
BARS = {
    "asyncio": "asyncio",
    "trio": "trio",
    "socketserver": "socketserver",
    "uvloop": "uvloop",
    "socket": "socket",
    "tomada: asyncio": "tomada.asyncio",
    "tomada: Server": "tomada.Server",
}
TITLE = "Echo server on one core: 64-byte datagrams per second"
SIZE = 7.5, 2.8  # in inches
AXES = 0.24, 0.0, 0.65, 0.87  # left, bottom, width and height, as shares of it
SCHEMES = {
    "light": {"text": "#24292f", "peer": "#9aa4af", "tomada": "#00796b"},
    "dark": {"text": "#e6edf3", "peer": "#5d6875", "tomada": "#2bbbad"},
}
FACTORS = {"k": 1e3, "M": 1e6}


def tables(text: str) -> Tables:
    """Read the first table below each heading of a page."""
    found: Tables = {}
    for section in text.split("\n## ")[1:]:
        heading, *lines = section.splitlines()
        rows: list[list[str]] = []
        for line in lines:
            if line.startswith("|"):
                rows.append([cell.strip() for cell in line[1:-1].split("|")])
            elif rows:
                break
        if rows:
            (_, *columns), _, *subjects = rows
            found[heading] = {
                name: dict(zip(columns, cells, strict=True)) for name, *cells in subjects
            }
    return found


def table(pages: dict[str, Tables]) -> str:
    """Return the table: a row for each task, with the peers' figures beside tomada's."""
    head = ["datagrams per second", *PEERS, "tomada"]
    lines = [head, ["---", *["---:"] * (len(PEERS) + 1)]]
    lines += [row.cells(pages) for row in ROWS]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def chart(pages: dict[str, Tables], scheme: str) -> str:
    """Draw the chart: a bar for each echo server, from zero."""
    colours = SCHEMES[scheme]
    rates = [pages["echo"][ECHO][name]["datagrams/s"] for name in BARS]
    fills = [colours["tomada" if name.startswith("tomada") else "peer"] for name in BARS]
    described = ", ".join(map(" ".join, zip(BARS.values(), rates, strict=True)))
    text = dict.fromkeys(("text.color", "ytick.color"), colours["text"])
    with mpl.rc_context({**plots.STYLE, **text, "font.size": 11}):
        figure = Figure(figsize=SIZE)
        axes = figure.add_axes(AXES)
        bars = axes.barh(list(BARS.values()), [number(rate) for rate in rates], 0.7, color=fills)
        axes.bar_label(bars, rates, padding=6)
        axes.invert_yaxis()
        axes.set_xticks([])
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        figure.text(0.02, 0.92, TITLE, fontsize=12, fontweight="bold")
        return plots.svg(figure, f"{TITLE}. {described}")


def number(rate: str) -> float:
    """Return the rate that a cell shows, such as ``53.2 k``."""
    value, _, factor = rate.partition(" ")
    return float(value) * FACTORS[factor]


def write(directory: Path) -> bool:
    """Write the charts, and the table into the overview, if all pages that they need exist."""
    paths = {row.page: directory / f"{row.page}.md" for row in ROWS}
    overview = directory / "README.md"
    if not all(path.exists() for path in [overview, *paths.values()]):
        return False
    pages = {name: tables(path.read_text("utf-8")) for name, path in paths.items()}
    for scheme in SCHEMES:
        (directory / f"summary-{scheme}.svg").write_text(chart(pages, scheme), "utf-8")
    before, _, rest = overview.read_text("utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    overview.write_text(f"{before}{BEGIN}\n{table(pages)}\n{END}{after}", "utf-8")
    return True


if __name__ == "__main__":
    write(DIRECTORY)
