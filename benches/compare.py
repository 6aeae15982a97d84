"""Two builds of tomada side by side: ``python -m benches.compare OLD [SCENARIO ...]``.

``OLD`` is the interpreter of an environment in which the other build is installed, such as
``../before/.venv/bin/python``. Each scenario measures tomada's own subjects alone, those of the old
build and of this one in turns, and the table says how the new figures compare with the old ones.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from benches import suite
from benches.figures import Outcome, speed
from benches.loads import Subject, Window
from benches.plan import Scenario, scenarios

# For which metric less is better, and which of them a scenario is judged by, in this order.
LESS_IS_BETTER = ("p50", "p99", "bytes")


def main() -> int:
    planned = [scenario for scenario in scenarios() if ours(scenario)]
    options = parser([scenario.name for scenario in planned]).parse_args()
    names = options.scenarios or [s.name for s in planned if s.is_quick or not options.quick]
    with contextlib.suppress(PermissionError):
        # Nothing else on the machine shall take the cores from what is measured.
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    window = Window(options.seconds, warmup=min(0.25, options.seconds / 2))
    table = Table("scenario", "subject", "compared by", "old", "new", "new / old")
    worst = math.inf
    for scenario in planned:
        if scenario.name not in names:
            continue
        result = suite.measure(paired(scenario, options.old), window, options.rounds)
        for subject in ours(scenario):
            before, after = (result.outcomes[f"{age}: {subject.name}"] for age in ("old", "new"))
            if failure := after.failure or before.failure:
                table.add_row(scenario.name, subject.name, "", "", "", failure)
                worst = 0.0
                continue
            metric, ratio = compare(scenario, before, after)
            worst = min(worst, ratio)
            medians = [f"{outcome.median(metric):,.4g}" for outcome in (before, after)]
            table.add_row(scenario.name, subject.name, metric, *medians, f"{ratio:.3f}")
    Console(width=120).print(table)
    print(f"The worst is {worst:.3f} of the old one: above 1 is faster, or less memory.")
    return int(worst < options.least)


def ours(scenario: Scenario) -> list[Subject]:
    return [subject for subject in scenario.subjects if subject.group == "tomada"]


def paired(scenario: Scenario, old: str) -> Scenario:
    """Return a scenario of tomada's subjects alone, each by the old build and by this one."""
    subjects = [
        replace(subject, name=f"{age}: {subject.name}", python=python)
        for subject in ours(scenario)
        for age, python in (("old", old), ("new", None))
    ]
    return replace(scenario, subjects=tuple(subjects), bars=())


def compare(scenario: Scenario, before: Outcome, after: Outcome) -> tuple[str, float]:
    """Return what to compare two builds by, and how many times as good the new one is."""
    metric = scenario.load.metrics[0]
    if metric in LESS_IS_BETTER:
        return metric, before.median(metric) / after.median(metric)
    if "cpu_ns" not in scenario.load.metrics:
        return metric, after.median(metric) / before.median(metric)
    found = speed(after, before)
    return ("cpu_ns" if found.is_by_cpu else metric), found.ratio


def parser(names: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benches.compare", description=__doc__)
    parser.add_argument("old", help="the interpreter of the other build's environment")
    parser.add_argument("scenarios", nargs="*", choices=[*names, []], metavar="SCENARIO")
    parser.add_argument("--quick", action="store_true", help="only the scenarios that matter most")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="how long each looks at one")
    parser.add_argument("--least", type=float, default=0.95, help="fail where a ratio is below")
    return parser


if __name__ == "__main__":
    sys.exit(main())
