"""Figures from samples: medians, spreads, and how subjects compare."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from benches.loads import Sample
from benches.plan import Bar, Scenario

# A program that uses less than this share of its core is waiting, most likely for the load.
BUSY = 0.9
# For the metrics of these bars, more is better.
AT_LEAST = ("speed", "rate", "call_ns")


@dataclass
class Outcome:
    """The samples of a subject, one for each round of a scenario."""

    samples: list[Sample] = field(default_factory=list)
    # Why there are fewer samples than rounds.
    failure: str | None = None

    def median(self, metric: str) -> float:
        return statistics.median(sample[metric] for sample in self.samples)

    def spread(self, metric: str) -> float:
        """Return the difference between the extremes, as a share of the median."""
        values = [sample[metric] for sample in self.samples]
        middle = statistics.median(values)
        return (max(values) - min(values)) / middle if middle else 0.0

    @property
    def is_busy(self) -> bool:
        """Whether the program, not its load, limits the speed."""
        return self.median("busy") >= BUSY * (1 - self.median("disturbed"))


@dataclass
class Result:
    """The outcomes of a scenario."""

    scenario: Scenario
    rounds: int
    seconds: float
    measured_at: str
    outcomes: dict[str, Outcome]


@dataclass(frozen=True)
class Speed:
    """How many times as fast as another subject one is."""

    ratio: float
    # Whether this compares CPU time, because one of them waited for its load.
    is_by_cpu: bool


@dataclass(frozen=True)
class Verdict:
    """The result for a bar: ``value`` is None if one of its two subjects failed."""

    bar: Bar
    value: float | None
    is_by_cpu: bool = False

    @property
    def is_met(self) -> bool:
        if self.value is None:
            return False
        if self.bar.metric in AT_LEAST:
            return self.value >= self.bar.limit
        return self.value <= self.bar.limit


def speed(ours: Outcome, theirs: Outcome) -> Speed:
    """Compare rates or, if the load was the bottleneck, CPU time per datagram."""
    if ours.is_busy and theirs.is_busy:
        return Speed(ours.median("rate") / theirs.median("rate"), is_by_cpu=False)
    return Speed(theirs.median("cpu_ns") / ours.median("cpu_ns"), is_by_cpu=True)


def judge(bar: Bar, outcomes: dict[str, Outcome]) -> Verdict:
    """Compare a subject with its target."""
    ours, theirs = outcomes.get(bar.subject), outcomes.get(bar.reference)
    if not ours or not ours.samples or (bar.reference and not (theirs and theirs.samples)):
        return Verdict(bar, None)
    if theirs is None:
        return Verdict(bar, ours.median(bar.metric))
    if bar.metric == "speed":
        found = speed(ours, theirs)
        return Verdict(bar, found.ratio, found.is_by_cpu)
    values = ours.median(bar.metric), theirs.median(bar.metric)
    if bar.metric == "bytes":
        return Verdict(bar, values[0] - values[1])
    if bar.metric == "call_ns":
        return Verdict(bar, values[1] / values[0])
    return Verdict(bar, values[0] / values[1])


def verdicts(result: Result) -> list[Verdict]:
    return [judge(bar, result.outcomes) for bar in result.scenario.bars]
