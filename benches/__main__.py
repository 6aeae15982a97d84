"""The benchmarks: ``python -m benches [SCENARIO ...]``.

Without names every scenario is measured; otherwise only those that are named, or that belong to a
page that is named. Their samples replace earlier ones in the file of results, which is not part of
the repository. A page is written if that file has all of its scenarios.

With ``--against``, tomada's own subjects are measured with two builds instead.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benches import compare, report, suite
from benches.figures import Result, verdicts
from benches.loads import Window
from benches.plan import Scenario, scenarios


def main() -> int:
    planned = [plan for plan in scenarios() if os.geteuid() == 0 or not plan.needs_root]
    options = parser(planned).parse_args()
    chosen = [
        scenario
        for scenario in planned
        if {scenario.name, scenario.page} & set(options.scenarios)
        or (not options.scenarios and (scenario.is_quick or not options.quick))
    ]
    with contextlib.suppress(PermissionError):
        # Other processes must not take the cores from the measured one.
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    window = Window(options.seconds, warmup=min(0.25, options.seconds / 2))
    if options.against:
        chosen = [compare.paired(scenario, options.against) for scenario in compare.ours(chosen)]
        return compare.show(measure(chosen, window, options.rounds), options.least)
    machine = suite.machine()
    results = {result.scenario.name: result for result in suite.load(options.results, planned)}

    def ordered() -> list[Result]:
        return [results[scenario.name] for scenario in planned if scenario.name in results]

    for result in measure(chosen, window, options.rounds):
        results[result.scenario.name] = result
        # Save after each result, because a run takes long and may be interrupted.
        suite.save(options.results, ordered(), machine)
    left = report.write(options.directory, planned, ordered(), machine)
    print(f"written to {options.directory}")
    if left:
        print(f"not written, because scenarios of them were not measured: {', '.join(left)}")
    return summary([results[scenario.name] for scenario in chosen])


def summary(results: list[Result]) -> int:
    """Print how results compare with the targets, and failures; return 1 if tomada failed."""
    status = 0
    for result in results:
        for verdict in verdicts(result):
            print(f"{result.scenario.name:16} {report.sentence(verdict)}")
        for subject in result.scenario.subjects:
            if failure := result.outcomes[subject.name].failure:
                status |= subject.group == "tomada"
                print(f"{result.scenario.name:16} {subject.name} failed: {failure}")
    return int(status)


def measure(chosen: list[Scenario], window: Window, rounds: int) -> Iterator[Result]:
    """Measure, and show the progress."""
    columns = (
        TextColumn("{task.description:46}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    total = sum(min(rounds, one.most_rounds) * len(one.subjects) for one in chosen)
    # The progress bar shares a core with the load, so it must not refresh often.
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=2) as bar:
        task = bar.add_task("", total=total, completed=-1)

        def begin(what: str) -> None:
            bar.update(task, description=what, advance=1)

        for scenario in chosen:
            yield suite.measure(scenario, window, rounds, begin)
        begin("done")


def parser(planned: list[Scenario]) -> argparse.ArgumentParser:
    names = {scenario.name for scenario in planned} | {scenario.page for scenario in planned}
    parser = argparse.ArgumentParser(prog="python -m benches", description=__doc__)
    add: Callable[..., object] = parser.add_argument
    add("scenarios", nargs="*", choices=[*sorted(names), []], metavar="SCENARIO")
    add("--quick", action="store_true", help="only the scenarios that matter most")
    add("--rounds", type=int, default=5)
    add("--seconds", type=float, default=0.5, help="how long to measure a subject in each round")
    add("--directory", type=Path, default=Path("docs/benchmarks"))
    add("--results", type=Path, default=Path("target/bench/results.json"))
    add("--against", metavar="PYTHON", help="the interpreter of another build's environment")
    add("--least", type=float, default=0.95, help="with --against: fail below this ratio")
    return parser


if __name__ == "__main__":
    sys.exit(main())
