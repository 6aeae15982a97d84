"""The benchmarks: ``python -m benches [SCENARIO ...]``.

Without names every scenario is measured; with them only these, and their samples replace the former
ones in the file of results, which is kept on this machine. A page is written when that file has all
of its scenarios.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benches import report, suite
from benches.figures import Result, verdicts
from benches.loads import Window
from benches.plan import Scenario, scenarios


def main() -> int:
    planned = scenarios()
    options = parser(planned).parse_args()
    names = options.scenarios or [s.name for s in planned if s.is_quick or not options.quick]
    chosen = [scenario for scenario in planned if scenario.name in names]
    with contextlib.suppress(PermissionError):
        # What else runs on the machine shall not take the cores from what is measured.
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    window = Window(options.seconds, warmup=min(0.25, options.seconds / 2))
    path = options.results
    results = {result.scenario.name: result for result in suite.load(path, planned)}
    machine = suite.machine()
    for result in measure(chosen, window, options.rounds):
        results[result.scenario.name] = result
        # At once: it takes long, and may be interrupted.
        suite.save(path, ordered(planned, results), machine)
    left = report.write(options.directory, planned, ordered(planned, results), machine)
    print(f"written to {options.directory}")
    if left:
        print(
            f"not all scenarios were measured, so these pages stay as they are: {', '.join(left)}"
        )
    return summary([results[scenario.name] for scenario in chosen])


def ordered(planned: tuple[Scenario, ...], results: dict[str, Result]) -> list[Result]:
    return [results[scenario.name] for scenario in planned if scenario.name in results]


def summary(results: list[Result]) -> int:
    """Print what stands against the bars, and what failed; return whether tomada's own did."""
    failed = 0
    for result in results:
        for verdict in verdicts(result):
            print(f"{result.scenario.name:16} {report.sentence(verdict)}")
        for name, outcome in result.outcomes.items():
            if outcome.failure is not None:
                failed += name.startswith("tomada")
                print(f"{result.scenario.name:16} {name} failed: {outcome.failure}")
    return int(failed > 0)


def measure(chosen: list[Scenario], window: Window, rounds: int) -> Iterator[Result]:
    """Measure, and show how far it is."""
    columns = (
        TextColumn("{task.description:46}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    # It shares a core with the load: a few looks a second take nothing from that.
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=2) as bar:
        task = bar.add_task("", total=rounds * sum(len(scenario.subjects) for scenario in chosen))
        done = -1

        def begin(what: str) -> None:
            nonlocal done
            done += 1
            bar.update(task, description=what, completed=done)

        for scenario in chosen:
            yield suite.measure(scenario, window, rounds, begin)
        bar.update(task, description="done", completed=done + 1)


def parser(planned: tuple[Scenario, ...]) -> argparse.ArgumentParser:
    names = [scenario.name for scenario in planned]
    parser = argparse.ArgumentParser(prog="python -m benches", description=__doc__)
    parser.add_argument("scenarios", nargs="*", choices=[*names, []], metavar="SCENARIO")
    parser.add_argument("--quick", action="store_true", help="only the scenarios that matter most")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="how long each looks at one")
    parser.add_argument("--directory", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--results", type=Path, default=Path("target/bench/results.json"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
