"""The load of a lane: load generator processes, and how a lane waits for the counters."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benches.children import Child

# How often counters are read without a change before missing datagrams count as lost, and how long
# each pause between is, in seconds. A machine that stalls also stalls the pauses.
PATIENCE = 300
PAUSE = 0.01
# How long a load may take to end on a busy machine, in seconds.
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
        return self.program in {"load", "dtls-load"}

    @property
    def is_secured(self) -> bool:
        """Whether it sends through DTLS."""
        return self.program == "dtls-load"


def blast(rate: int, *, size: int = 64, gso: bool = False, source: str = "127.0.0.1") -> Load:
    """Send ``rate`` datagrams per second, no matter how many arrive."""
    return Load("blast", {"rate": rate, "size": size, "gso": gso, "from": source})


def ask(*, clients: int = 8, window: int = 16, size: int = 64, gso: bool = False) -> Load:
    """Keep ``window`` requests in flight in each client."""
    # A request without a reply within the timeout counts as lost.
    options = {"clients": clients, "window": window, "size": size, "gso": gso, "timeout": 5}
    return Load("load", {**options, "sleep": True})


def ask_in_sessions(*, clients: int = 8) -> Load:
    """Keep a request in flight in each of several DTLS sessions."""
    options = {"clients": clients, "window": clients, "timeout": 5}
    return Load("dtls-load", {**options, "gso": False, "sleep": True})


@dataclass(frozen=True)
class Sent:
    """The results that loads print at their end, and how many datagrams they sent."""

    results: list[dict[str, Any]]
    total: int
    singly: int


@contextlib.contextmanager
def running(loads: tuple[Load, ...], port: int, seconds: float) -> Iterator[Callable[[], Sent]]:
    """Run loads on a port, on the cores in turn; yield a function that ends them."""
    cores = sorted(os.sched_getaffinity(0))
    with contextlib.ExitStack() as stack:
        children = [
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

        def end() -> Sent:
            results = [child.stop(END) for child in children]
            counts = [int(result["sent"]) for result in results]
            pairs = zip(loads, counts, strict=True)
            return Sent(
                results, sum(counts), sum(n for load, n in pairs if not load.options["gso"])
            )

        yield end


def settling(total: Callable[[], int], sent: int) -> Iterator[None]:
    """Yield until the counters explain all datagrams, or stay unchanged for too long.

    The caller pauses each time.
    """
    last, unchanged = -1, 0
    while (now := total()) < sent and unchanged < PATIENCE:
        last, unchanged = now, unchanged + 1 if now == last else 0
        yield


def settle(total: Callable[[], int], sent: int) -> None:
    for _ in settling(total, sent):
        time.sleep(PAUSE)
