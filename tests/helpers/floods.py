"""Floods of datagrams, and the equation that must hold: sent = received + refused + dropped."""

import contextlib
import os
import time

import pytest

from benches.children import LOADGEN, Child
from peer import DEADLINE

needs_loadgen = pytest.mark.skipif(
    not LOADGEN.exists(), reason="the load generator is not built: make test builds it"
)

# A receive buffer that a flood fills immediately.
SMALL_BUFFER = 8192
# The number of datagrams in each run of the load generator, and the kernel's maximum for a run.
RUN, LONGEST_RUN = 64, 128


class Flood:
    """Senders in Rust that never pause, each in its own process, and count their datagrams."""

    def __init__(self, address, *, gso=False, size=64, senders=1):
        core = min(os.sched_getaffinity(0))
        options = {"port": address[1], "gso": gso, "size": size}
        self._stack = contextlib.ExitStack()
        self._children = [
            self._stack.enter_context(Child("loadgen blast", core, DEADLINE, **options))
            for _ in range(senders)
        ]

    def stop(self):
        """End all senders, and return how many datagrams they sent."""
        return sum(child.stop()["sent"] for child in self._children)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()


def accounted(stats):
    """Add up the outcomes of datagrams that were sent one by one."""
    return stats.received + stats.refused + stats.kernel_drops + stats.filter_drops


def is_overrun(stats):
    """Return whether far more datagrams arrived than were received, and some were received."""
    return stats.received > 0 and stats.kernel_drops > 3 * stats.received


def assert_settled(take, stats, sent):
    """Receive the rest of a queue until every datagram that was sent is accounted for."""
    end = time.monotonic() + DEADLINE
    while accounted(stats()) < sent and time.monotonic() < end:
        take()
    found = stats()
    assert accounted(found) == sent, found
    assert found.kernel_drops + found.filter_drops > 0, found


def assert_bounded(stats, sent):
    """Check the bounds that hold if the kernel drops whole runs and counts each as one."""
    certain = stats.received + stats.refused
    assert certain + stats.kernel_drops < sent, stats
    assert sent <= certain + LONGEST_RUN * stats.kernel_drops, stats
    # All runs of the load generator have the same length, so the sum is exact here.
    assert sent == certain + RUN * stats.kernel_drops, stats
