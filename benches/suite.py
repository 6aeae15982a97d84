"""Measures scenarios, and keeps the results in a file."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from benches.children import ChildFailed
from benches.figures import Outcome, Result
from benches.loads import Load, Sample, Subject, Window
from benches.plan import Scenario

# If other processes take more than this share of the core, a measurement is repeated.
DISTURBED = 0.03
ATTEMPTS = 4

PEERS = ("uvloop", "aiofastnet", "asyncio-dgram", "asyncudp", "anyio", "trio")


def measure(
    scenario: Scenario,
    window: Window,
    rounds: int,
    begin: Callable[[str], None] = lambda _: None,
    attempts: int = ATTEMPTS,
) -> Result:
    """Measure every subject once per round. Each round begins with a different subject.

    A subject that fails is left out of further rounds.

    :param begin: Called with the name of the next measurement.
    :param attempts: The maximum number of attempts if other programs disturb a measurement.
    """
    rounds = min(rounds, scenario.most_rounds)
    outcomes = {subject.name: Outcome() for subject in scenario.subjects}
    for number in range(rounds):
        first = number * len(scenario.subjects) // rounds
        for subject in scenario.subjects[first:] + scenario.subjects[:first]:
            begin(f"{scenario.name}: {subject.name}")
            outcome = outcomes[subject.name]
            if outcome.failure is not None:
                continue
            try:
                sample = undisturbed(scenario.load, subject, window, attempts)
            except (ChildFailed, OSError) as error:
                outcome.failure = str(error)
            else:
                # Six digits are more than the precision of any measurement.
                outcome.samples.append({name: float(f"{x:.6g}") for name, x in sample.items()})
    now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    return Result(scenario, rounds, window.seconds, now, outcomes)


def undisturbed(load: Load, subject: Subject, window: Window, attempts: int) -> Sample:
    """Measure, and repeat the measurement if another program used the core meanwhile."""
    samples = [load.measure(subject, window)]
    while samples[-1].get("disturbed", 0) > DISTURBED and len(samples) < attempts:
        samples.append(load.measure(subject, window))
    return min(samples, key=lambda sample: sample.get("disturbed", 0))


def machine() -> dict[str, str]:
    """Describe the machine and the versions."""
    versions = {name: installed(name) for name in PEERS}
    model = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "CPython": platform.python_version(),
        "Linux": platform.release(),
        "processor": model[0] if model else platform.machine(),
        "cores": str(os.cpu_count()),
        "priority": str(os.getpriority(os.PRIO_PROCESS, 0)),
        **{name: version for name, version in versions.items() if version},
    }


def installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def save(path: Path, results: Iterable[Result], machine: dict[str, str]) -> None:
    """Write results to a file, as JSON."""
    scenarios = {
        result.scenario.name: {
            "rounds": result.rounds,
            "seconds": result.seconds,
            "measured_at": result.measured_at,
            "subjects": {name: asdict(outcome) for name, outcome in result.outcomes.items()},
        }
        for result in results
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "scenarios": scenarios}, indent=1) + "\n")


def load(path: Path, scenarios: Iterable[Scenario]) -> list[Result]:
    """Read the results in a file, except those of scenarios that no longer exist."""
    known = json.loads(path.read_text())["scenarios"] if path.exists() else {}
    return [
        result(scenario, known[scenario.name]) for scenario in scenarios if scenario.name in known
    ]


def result(scenario: Scenario, known: dict[str, Any]) -> Result:
    outcomes = {name: Outcome(**outcome) for name, outcome in known["subjects"].items()}
    return Result(scenario, known["rounds"], known["seconds"], known["measured_at"], outcomes)
