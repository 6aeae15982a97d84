"""The result pages: tables in Markdown, and how the results compare with the targets."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path

from benches import plots, summary
from benches.figures import AT_LEAST, Outcome, Result, Verdict, speed, verdicts
from benches.plan import Bar, Scenario

# The pages in order, each with its title and the text above its tables.
PAGES = tomllib.loads(Path(__file__).with_name("pages.toml").read_text())


def write(
    directory: Path, planned: Iterable[Scenario], results: list[Result], machine: dict[str, str]
) -> list[str]:
    """Write the pages whose scenarios were all measured, their charts, and the overview.

    Pages that lack a result stay unchanged, and so does the overview. Return the names of those.
    """
    directory.mkdir(parents=True, exist_ok=True)
    measured = {result.scenario.name for result in results}
    missing = {scenario.page for scenario in planned if scenario.name not in measured}
    if not missing:
        (directory / "README.md").write_text(overview(results, machine))
    for page in PAGES:
        mine = [result for result in results if result.scenario.page == page]
        if page in missing or not mine:
            continue
        (directory / f"{page}.md").write_text(page_of(page, mine))
        for result in mine:
            if has_chart(result):
                (directory / f"{result.scenario.name}.svg").write_text(plots.chart(result))
    summary.write(directory)
    return sorted(missing)


# The site and GitHub show the chart that suits their background.
CHARTS = f"""\
![{summary.TITLE}](summary-light.svg#gh-light-mode-only)
![{summary.TITLE}](summary-dark.svg#gh-dark-mode-only)"""


def overview(results: list[Result], machine: dict[str, str]) -> str:
    titles = {page: text["title"] for page, text in PAGES.items()} | {"programs": "Programs"}
    links = "\n".join(f"- [{title}]({page}.md)" for page, title in titles.items())
    stands = [
        line
        for result in results
        if not result.scenario.rows and (line := bars(result, with_title=True))
    ]
    return f"""# Benchmarks

{CHARTS}

{summary.BEGIN}{summary.END}
All figures are of 64-byte datagrams on loopback. Where batches do not form, tomada gains little or
nothing: each send to another peer is a pass through the kernel, and most of a round trip is spent
waking a sleeping thread.

## Pages

{links}

## How it is measured

All benchmarks run on loopback, with the measured program on one core and the load on another. The
subjects of a table alternate within each round. Results are medians over the rounds; the spread is
the difference between the extremes. Rates come from the programs' own counters, CPU time from the
operating system. *Rust* is the upper limit: the same system calls in a bare loop.

{facts(machine)}. \
Results vary between machines and days, so compare only within a table. To
reproduce them, run `make bench`, or `make bench-quick` in two minutes; those of guards need root.

## Targets

{chr(10).join(stands)}"""


def page_of(page: str, results: list[Result]) -> str:
    parts = ["# {title}\n\n{text}\n".format(**PAGES[page])]
    for rows, group in itertools.groupby(results, key=lambda result: result.scenario.rows):
        found = list(group)
        if rows:
            parts += [common_table(rows, found), measured(found[0])]
            continue
        for result in found:
            scenario = result.scenario
            parts.append(f"## {scenario.title[:1].upper()}{scenario.title[1:]}\n")
            if has_chart(result):
                parts.append(f"![{scenario.title}]({scenario.name}.svg)\n")
            parts += [table(result), bars(result, with_title=False), measured(result)]
    return "\n".join(part for part in parts if part)


def measured(result: Result) -> str:
    date = result.measured_at.partition("T")[0]
    return f"{date}, {result.rounds} rounds of {result.seconds:g} s each.\n"


def has_chart(result: Result) -> bool:
    return result.scenario.load.metrics[0] in plots.METRICS and not result.scenario.rows


def common_table(heading: str, results: list[Result]) -> str:
    """Return a table with a row for each scenario, and a column for each of its two subjects."""
    metric = results[0].scenario.load.metrics[0]
    names = [f"{name}, ns" for name in results[0].outcomes]
    rows = []
    for result in results:
        (verdict,) = verdicts(result)
        failures = [outcome.failure for outcome in result.outcomes.values() if outcome.failure]
        if verdict.value is None:
            rows.append([result.scenario.title, "failed", *failures, "", ""])
            continue
        times = [f"{outcome.median(metric):,.0f}" for outcome in result.outcomes.values()]
        ratio = f"{verdict.value:.2f} ×"
        rows.append([result.scenario.title, *times, ratio, target(verdict.bar)])
    return markdown([heading, *names, "ratio", "target"], rows)


def bars(result: Result, *, with_title: bool) -> str:
    """Return a table of the bars of a scenario, or an empty string if there are none."""
    judged = verdicts(result)
    if not judged:
        return ""
    scenario = result.scenario
    title = f"### [{PAGES[scenario.page]['title']}]({scenario.page}.md): {scenario.title}\n\n"
    lines = [bar_row(verdict, scenario.load.unit) for verdict in judged]
    head = "| subject | compared with | target | result | |\n|---|---|---:|---:|---|\n"
    return (title if with_title else "") + head + "\n".join(lines) + "\n"


# The metrics to name in a table, because the amount does not show which one it is.
METRICS = {"p50": "p50", "p99": "p99", "cpu_ns": "CPU per {unit}", "lost": "lost"}


def bar_row(verdict: Verdict, unit: str = "datagram") -> str:
    bar = verdict.bar
    found = "failed" if verdict.value is None else shown(verdict.value, bar)
    metric = f", {METRICS[bar.metric].format(unit=unit)}" if bar.metric in METRICS else ""
    basis = f", CPU per {unit}" if verdict.is_by_cpu else ""
    stand = "met" if verdict.is_met else "**missed**"
    return f"| {bar.subject}{metric} | {bar.reference} | {target(bar)} | {found}{basis} | {stand} |"


def target(bar: Bar) -> str:
    return f"{'≥' if bar.metric in AT_LEAST else '≤'} {shown(bar.limit, bar)}"


def shown(value: float, bar: Bar) -> str:
    """Format a value of a target: a ratio, or an amount."""
    is_time = not bar.reference and bar.metric in {"p50", "p99", "cpu_ns"}
    return duration(value) if is_time else amount(value, bar.metric)


def sentence(verdict: Verdict) -> str:
    """Say for a terminal how a subject compares with its target."""
    subject, reference, limit, found, stand = bar_row(verdict).strip("| ").split(" | ")
    of = f" of {reference}" if reference else ""
    return f"{subject}: {found}{of}, {limit}: {stand.strip('*')}"


def amount(value: float, metric: str) -> str:
    if metric == "growth":
        return mebibytes(value)
    if metric == "lost":
        return f"{value:.2%}"
    if metric == "bytes":
        return f"{value / 1024:+.2f} KiB"
    return f"{value:.3g} ×" if value < 100 else f"{value:.0f} ×"


def mebibytes(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"


def counted(name: str) -> Callable[[Outcome], str]:
    return lambda outcome: f"{outcome.median(name):,.0f}"


# The columns of a table: a heading and a cell for each metric that a load has.
COLUMNS: dict[str, tuple[str, Callable[[Outcome], str]]] = {
    "rate": ("{unit}s/s", lambda outcome: f"{digits(outcome.median('rate'))}"),
    "spread": ("spread", lambda outcome: f"{outcome.spread('rate'):.0%}"),
    "cpu_ns": ("CPU per {unit}", lambda outcome: duration(outcome.median("cpu_ns"))),
    "busy": ("busy", lambda outcome: f"{min(1, outcome.median('busy')):.0%}"),
    "lost": ("lost", lambda outcome: f"{outcome.median('lost'):.1%}"),
    "p50": ("p50", lambda outcome: duration(outcome.median("p50"))),
    "p99": ("p99", lambda outcome: duration(outcome.median("p99"))),
    "bytes": ("per socket", lambda outcome: f"{outcome.median('bytes') / 1024:.2f} KiB"),
    "session_bytes": (
        "per session",
        lambda outcome: f"{outcome.median('session_bytes') / 1024:.2f} KiB",
    ),
    "growth": ("memory growth", lambda outcome: mebibytes(outcome.median("growth"))),
    "requests": ("requests", counted("requests")),
    "admitted": ("admitted", counted("admitted")),
    "over_ceiling": ("refused, over the ceiling", counted("over_ceiling")),
    "over_rate": ("refused, over the rate", counted("over_rate")),
    "dropped": ("dropped, buffer full", counted("dropped")),
}


def table(result: Result) -> str:
    """Return the table of a scenario: a row for each subject."""
    metrics = result.scenario.load.metrics
    names = [
        name for name in COLUMNS if name in metrics or (name == "spread" and "rate" in metrics)
    ]
    reference = result.outcomes.get(result.scenario.reference)
    has_speed = "cpu_ns" in metrics and reference is not None and bool(reference.samples)
    unit = result.scenario.load.unit
    headings = [COLUMNS[name][0].format(unit=unit) for name in names]
    if has_speed:
        headings.append(f"× {result.scenario.reference}")
    rows, notes = [], []
    for subject, outcome in result.outcomes.items():
        if outcome.failure is not None:
            notes.append(f"{subject} failed: {outcome.failure}")
        if not outcome.samples:
            cells = ["failed", *[""] * (len(headings) - 1)]
        else:
            cells = [COLUMNS[name][1](outcome) for name in names]
            if has_speed and reference is not None:
                found = speed(outcome, reference)
                cells.append(f"{found.ratio:.2f}{' by CPU' if found.is_by_cpu else ''}")
        rows.append([subject, *cells])
    text = markdown(["", *headings], rows)
    if has_speed and any("by CPU" in cell for row in rows for cell in row):
        text += (
            f"\n*By CPU*: the load was the bottleneck, so CPU time per {unit} is compared instead "
            "of the rate.\n"
        )
    return text + "".join(f"\n{note}\n" for note in notes)


def markdown(headings: list[str], rows: Iterable[list[str]]) -> str:
    """Return a table with a column of names and columns of numbers."""
    name, *others = headings
    lines = [
        f"| {name + ' ' if name else ''}| {' | '.join(others)} |",
        f"|---|{'---:|' * len(others)}",
        *(f"| {' | '.join(cells)} |" for cells in rows),
    ]
    return "\n".join(lines) + "\n"


def facts(machine: dict[str, str]) -> str:
    """Describe the machine in one line."""
    return ", ".join(f"{name} {value}" for name, value in machine.items())


def digits(number: float) -> str:
    """Format a rate with three significant digits."""
    if number >= 1e6:
        return f"{number / 1e6:.3g} M"
    return f"{number / 1e3:.3g} k"


def duration(nanoseconds: float) -> str:
    if nanoseconds < 1000:
        return f"{nanoseconds:.0f} ns"
    if nanoseconds < 1e6:
        return f"{nanoseconds / 1e3:.3g} µs"
    return f"{nanoseconds / 1e6:.3g} ms"
