"""Floods of datagrams, and the sum that must come out: sent = received + refused + dropped."""

import contextlib
import os
import time

import pytest

from benches.children import LOADGEN, Child
from peer import DEADLINE

needs_loadgen = pytest.mark.skipif(
    not LOADGEN.exists(), reason="the load generator is not built: make test builds it"
)

# A receive buffer that a flood fills at once.
SMALL_BUFFER = 8192
# How many datagrams the load generator sends as one run, and the most that the kernel sends so.
RUN, LONGEST_RUN = 64, 128


class Flood:
    """Senders in Rust that never pause, each in a process of its own, and know what they sent."""

    def __init__(self, address, *, gso=False, size=64, senders=1):
        core = min(os.sched_getaffinity(0))
        options = {"port": address[1], "gso": gso, "size": size}
        self._stack = contextlib.ExitStack()
        self._children = [
            self._stack.enter_context(Child("loadgen blast", core, DEADLINE, **options))
            for _ in range(senders)
        ]

    def stop(self):
        """End all senders, and return how many datagrams left."""
        return sum(child.stop()["sent"] for child in self._children)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()


def accounted(stats):
    """Add up what became of datagrams that came one by one."""
    return stats.received + stats.refused + stats.kernel_drops + stats.filter_drops


def is_overrun(stats):
    """Say whether several times more came than was received, and something was."""
    return stats.received > 0 and stats.kernel_drops > 3 * stats.received


def assert_settled(take, stats, sent):
    """Take what is left in a queue until every datagram that was sent is accounted for."""
    end = time.monotonic() + DEADLINE
    while accounted(stats()) < sent and time.monotonic() < end:
        take()
    found = stats()
    assert accounted(found) == sent, found
    assert found.kernel_drops + found.filter_drops > 0, found


def assert_bounded(stats, sent):
    """Check the bounds that hold where the kernel drops whole runs, and counts each as one."""
    certain = stats.received + stats.refused
    assert certain + stats.kernel_drops < sent, stats
    assert sent <= certain + LONGEST_RUN * stats.kernel_drops, stats
    # All runs of the load generator have one length, so that here the sum is known.
    assert sent == certain + RUN * stats.kernel_drops, stats
