"""From samples to figures: medians, spreads, and how subjects compare."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from benches.loads import Sample
from benches.plan import Bar, Scenario

# A program that uses less of its core than this waits for something: for the load, most likely.
BUSY = 0.9


@dataclass
class Outcome:
    """What a subject has shown in the rounds of a scenario."""

    samples: list[Sample] = field(default_factory=list)
    # Why it has no more samples.
    failure: str | None = None

    def median(self, metric: str) -> float:
        return statistics.median(sample[metric] for sample in self.samples)

    def spread(self, metric: str) -> float:
        """Return how far the extremes are apart, as a share of the median."""
        values = [sample[metric] for sample in self.samples]
        middle = statistics.median(values)
        return (max(values) - min(values)) / middle if middle else 0.0

    @property
    def is_busy(self) -> bool:
        """Whether its speed is its own, and not that of what feeds it."""
        return self.median("busy") >= BUSY * (1 - self.median("disturbed"))


@dataclass
class Result:
    """A scenario that was measured."""

    scenario: Scenario
    rounds: int
    seconds: float
    measured_at: str
    outcomes: dict[str, Outcome]


@dataclass(frozen=True)
class Speed:
    """How many times as fast a subject is as another."""

    ratio: float
    # Whether it compares processor time, because one of them could have done more.
    is_by_cpu: bool


@dataclass(frozen=True)
class Verdict:
    """A bar, and where a subject stands: ``value`` is None where one of the two has failed."""

    bar: Bar
    value: float | None
    is_by_cpu: bool = False

    @property
    def is_met(self) -> bool:
        if self.value is None:
            return False
        if self.bar.metric in ("speed", "rate"):
            return self.value >= self.bar.limit
        return self.value <= self.bar.limit


def speed(ours: Outcome, theirs: Outcome) -> Speed:
    """Compare rates or, where the load was the bottleneck, processor time per datagram."""
    if ours.is_busy and theirs.is_busy:
        return Speed(ours.median("rate") / theirs.median("rate"), is_by_cpu=False)
    return Speed(theirs.median("cpu_ns") / ours.median("cpu_ns"), is_by_cpu=True)


def judge(bar: Bar, outcomes: dict[str, Outcome]) -> Verdict:
    """Hold a subject to a bar."""
    both = outcomes.get(bar.subject), outcomes.get(bar.reference)
    ours, theirs = both
    if ours is None or theirs is None or not ours.samples or not theirs.samples:
        return Verdict(bar, None)
    if bar.metric == "speed":
        found = speed(ours, theirs)
        return Verdict(bar, found.ratio, found.is_by_cpu)
    if bar.metric == "rate":
        return Verdict(bar, ours.median("rate") / theirs.median("rate"))
    if bar.metric == "cpu":
        return Verdict(bar, ours.median("cpu_ns") / theirs.median("cpu_ns"))
    if bar.metric == "bytes":
        return Verdict(bar, ours.median("bytes") - theirs.median("bytes"))
    return Verdict(bar, ours.median(bar.metric) / theirs.median(bar.metric))


def verdicts(result: Result) -> list[Verdict]:
    return [judge(bar, result.outcomes) for bar in result.scenario.bars]
