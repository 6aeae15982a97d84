"""The load of a lane: programs of the load generator, and how a lane waits for its sum."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benches.children import Child

# How long counters may stand still until what is missing is taken for lost.
PATIENCE = 3.0
# How long a load may take to end, on a machine that is busy.
END = 30.0

_turns = itertools.count()


@dataclass(frozen=True)
class Load:
    """A program of the load generator, and its options."""

    program: str
    options: dict[str, object]

    @property
    def is_closed(self) -> bool:
        """Whether it waits for replies."""
        return self.program == "load"


def blast(rate: int, *, size: int = 64, gso: bool = False) -> Load:
    """Send so many datagrams a second, whatever becomes of them."""
    return Load("blast", {"rate": rate, "size": size, "gso": gso})


def ask(*, clients: int = 8, window: int = 16, size: int = 64, gso: bool = False) -> Load:
    """Keep a number of requests in flight in each client."""
    # A request that was not answered in that time was lost.
    options = {"clients": clients, "window": window, "size": size, "gso": gso, "timeout": 5}
    return Load("load", {**options, "sleep": True})


@contextlib.contextmanager
def running(loads: tuple[Load, ...], port: int, seconds: float) -> Iterator[list[Child]]:
    """Run loads on a port, on the cores in turn."""
    cores = sorted(os.sched_getaffinity(0))
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                Child(
                    f"loadgen {load.program}",
                    cores[next(_turns) % len(cores)],
                    seconds + END,
                    port=port,
                    **load.options,
                )
            )
            for load in loads
        ]


@dataclass(frozen=True)
class Sent:
    """What loads have sent, and what they say of it at their end."""

    results: list[dict[str, Any]]
    total: int
    # Of these, how many were sent one by one.
    singly: int


def end(loads: tuple[Load, ...], children: list[Child]) -> Sent:
    """Tell loads to end, and return what they have sent."""
    results = [child.stop(END) for child in children]
    counts = [int(result["sent"]) for result in results]
    singly = [count for load, count in zip(loads, counts, strict=True) if not load.options["gso"]]
    return Sent(results, sum(counts), sum(singly))


class Settling:
    """Says when all of a sum is there, or when it has stood still for too long."""

    def __init__(self, total: Callable[[], int], sent: int) -> None:
        self._total, self._sent = total, sent
        self._last, self._since = -1, time.monotonic()

    def is_over(self) -> bool:
        total, now = self._total(), time.monotonic()
        if total != self._last:
            self._last, self._since = total, now
        return total >= self._sent or now - self._since > PATIENCE
