"""Two builds of tomada side by side: ``python -m benches --against OLD [SCENARIO ...]``.

``OLD`` is the interpreter of an environment in which the other build is installed, such as
``../before/.venv/bin/python``. The subjects of the two builds alternate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from benches.figures import Outcome, Result, speed
from benches.plan import Scenario

# For these metrics, less is better.
LESS_IS_BETTER = ("p50", "p99", "bytes", "call_ns", "cpu_ns")


def ours(planned: Iterable[Scenario]) -> list[Scenario]:
    """Reduce scenarios to tomada's subjects."""
    reduced = (
        replace(
            scenario,
            subjects=tuple(subject for subject in scenario.subjects if subject.group == "tomada"),
            bars=(),
        )
        for scenario in planned
        if scenario.is_compared
    )
    return [scenario for scenario in reduced if scenario.subjects]


def paired(scenario: Scenario, old: str) -> Scenario:
    """Return a scenario with each subject twice: with the old build and with this one."""
    subjects = [
        replace(subject, name=f"{age}: {subject.name}", python=python)
        for subject in scenario.subjects
        for age, python in (("old", old), ("new", None))
    ]
    return replace(scenario, subjects=tuple(subjects))


def compare(scenario: Scenario, before: Outcome, after: Outcome) -> tuple[str, float]:
    """Return the metric of a comparison, and how many times as good the new build is."""
    metric = scenario.load.metrics[0]
    if metric in LESS_IS_BETTER:
        return metric, before.median(metric) / after.median(metric)
    if "cpu_ns" not in scenario.load.metrics:
        return metric, after.median(metric) / before.median(metric)
    found = speed(after, before)
    return ("cpu_ns" if found.is_by_cpu else metric), found.ratio


def show(results: Iterable[Result], least: float) -> int:
    """Print a table of comparisons; return 1 if a ratio is less than ``least``."""
    table = Table("scenario", "subject", "compared by", "old", "new", "new / old")
    worst = math.inf
    for result in results:
        scenario = result.scenario
        for old, new in zip(scenario.subjects[::2], scenario.subjects[1::2], strict=True):
            before, after = result.outcomes[old.name], result.outcomes[new.name]
            name = scenario.title if scenario.rows else new.name.removeprefix("new: ")
            if failure := after.failure or before.failure:
                table.add_row(scenario.name, name, "", "", "", failure)
                worst = 0.0
                continue
            metric, ratio = compare(scenario, before, after)
            worst = min(worst, ratio)
            medians = [f"{outcome.median(metric):,.4g}" for outcome in (before, after)]
            table.add_row(scenario.name, name, metric, *medians, f"{ratio:.3f}")
    Console(width=120).print(table)
    print(f"The worst is {worst:.3f} of the old one: above 1 is faster, or less memory.")
    return int(worst < least)
