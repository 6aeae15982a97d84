"""The tables of the soak, for the terminal and for the documentation page."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from rich.table import Table

from benches.report import digits, facts, markdown

if TYPE_CHECKING:
    from rich.console import Console

# The text between these lines is generated; the rest of the page is written by hand.
BEGIN = "<!-- Written by `make soak`, up to the end mark. -->"
END = "<!-- End of the text written by `make soak`. -->"

Rows = list[list[str]]

TRAFFIC = ["traffic", "sent", "received", "refused", "dropped", "filtered", "killed", "unexplained"]
COUNTS = (
    *("sent", "received", "refused", "kernel_drops", "filter_drops"),
    *("lost_with_killed", "unexplained"),
)
PROCESSES = [
    *("process", "samples", "resident", "growth", "private growth", "in use growth"),
    *("descriptors", "threads"),
]


def traffic(lanes: dict[str, dict[str, int]]) -> Rows:
    return [
        [lane, *(f"{counts[name]:,}" for name in COUNTS)]
        for lane, counts in [*lanes.items(), ("**all**", total(lanes))]
    ]


def total(lanes: dict[str, dict[str, int]]) -> dict[str, int]:
    return {name: sum(counts[name] for counts in lanes.values()) for name in COUNTS}


def processes(found: list[dict[str, Any]]) -> Rows:
    return [
        [
            growth["process"],
            f"{growth['samples']:,}",
            mebibytes(growth["rss"]),
            more(growth["rss_growth"]),
            more(growth["uss_growth"]),
            more(growth["in_use_growth"]),
            f"{growth['descriptors']} ({growth['descriptors_growth']:+d})",
            f"{growth['threads']} ({growth['threads_growth']:+d})",
        ]
        for growth in found
    ]


def more(size: float | None) -> str:
    return "" if size is None else f"{size / 2**20:+.2f} MiB"


def mebibytes(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"


def section(results: dict[str, Any]) -> str:
    """Describe a run."""
    shares = results["shares"]
    found = "; ".join(results["missed"]) or (
        "no datagram is unexplained, and the memory of no process grew by more than "
        f"{mebibytes(results['bar'])}"
    )
    summary = f"""\
`{results["command"]}`, {results["measured_at"].partition("T")[0]}, {facts(results["machine"])}: in
{results["seconds"] / 60:.1f} minutes, servers received {digits(shares["server"])} datagrams,
asyncio {digits(shares["asyncio"])} and sockets {digits(shares["socket"])}.
{shares["singly"] / shares["all"]:.0%} of the datagrams were sent one by one, the others in runs
(`UDP_SEGMENT`). **{found[:1].upper()}{found[1:]}.**"""
    return f"""\
{fill(summary, 100)}

{markdown(TRAFFIC, traffic(results["lanes"]))}
*Dropped* is `kernel_drops` and *filtered* `filter_drops`; both count a run as one. *Killed* counts
datagrams lost in workers that the test killed. The rows marked *replies* count the replies that the
load generator received, and those marked *link* what arrived at a link, which loses and duplicates
some of it on the way to the server.

{fill(f"The run also included: {deeds(results['deeds'])}.", 100)}

{markdown(PROCESSES, processes(results["processes"]))}
Samples are taken between two rounds, when no traffic is in flight. The first quarter of the samples
is the warm-up. Growth is the maximum after the warm-up minus the maximum during it; for descriptors
and threads, it is in parentheses. Private memory is not shared with other processes. For several
processes of one kind, the table shows the one that grew most.

Memory in use is what `malloc` has handed out. It is not known of workers and their supervisors, and
except in the sinks, it does not include Python's small objects. Neither it nor resident memory may
grow. If only resident memory grows, it is free memory that `malloc` cannot return to the system,
because it lies between objects in use.
"""


def deeds(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in sorted(counts.items()))


def write_into(page: Path, text: str) -> None:
    """Replace the text between the two marks of a page."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")


def show(results: dict[str, Any], console: Console) -> None:
    console.print(rich_table("traffic", TRAFFIC, traffic(results["lanes"])))
    console.print(rich_table("processes", PROCESSES, processes(results["processes"])))


def rich_table(title: str, headings: list[str], rows: Rows) -> Table:
    table = Table(title=title)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(cell.strip("*") for cell in row))
    return table
