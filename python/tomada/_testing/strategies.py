"""Hypothesis strategies for datagrams, and for what a network does to them.

``from tomada.testing import strategies`` needs hypothesis. A failure shrinks to a network that
interferes as little as possible: a short script in which most datagrams pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import strategies as st

from tomada._testing.impairments import Impairments

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

__all__ = ["datagrams", "impairments", "scripts", "steps"]

# The largest payload in an Ethernet frame, over IPv4.
LARGEST = 1472


def datagrams(max_size: int = LARGEST) -> SearchStrategy[bytes]:
    """Return a strategy for payloads of 0 to ``max_size`` bytes."""
    return st.binary(max_size=max_size)


def steps(*, max_delay: float = 1.0) -> SearchStrategy[str]:
    """Return a strategy for the fate of one datagram: a step of a script.

    :param max_delay: The longest delay in seconds, rounded to milliseconds.
    """
    delays = st.integers(1, max(1, round(max_delay * 1000)))
    return st.one_of(
        st.just("pass"),
        st.just("drop"),
        st.just("duplicate"),
        st.just("reorder"),
        delays.map("delay {}ms".format),
        st.integers(0, 100).map("truncate {}".format),
        st.just("corrupt"),
    )


def scripts(*, max_size: int = 30, max_delay: float = 1.0) -> SearchStrategy[list[str]]:
    """Return a strategy for schedules: the fates of a network's first datagrams.

    :param max_size: The maximum number of steps. Later datagrams pass unchanged.
    :param max_delay: The longest delay in seconds.
    """
    return st.lists(steps(max_delay=max_delay), max_size=max_size)


def impairments(*, max_share: float = 0.3, max_delay: float = 1.0) -> SearchStrategy[Impairments]:
    """Return a strategy for :class:`Impairments`, without a rate, an MTU or a script.

    :param max_share: The maximum share of each impairment.
    :param max_delay: The maximum delay and the maximum jitter, in seconds.
    """
    shares = st.floats(0.0, max_share)
    delays = st.floats(0.0, max_delay)
    return st.builds(
        Impairments,
        loss=shares,
        delay=delays,
        jitter=delays,
        reorder=shares,
        duplicate=shares,
        corrupt=shares,
        truncate=shares,
    )
