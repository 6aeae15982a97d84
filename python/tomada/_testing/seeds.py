"""Seeds for links and networks that are created without one."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from functools import partial
from typing import SupportsIndex

# Short enough for a failure report.
BITS = 32

# Returns the next seed for the running test. The pytest plug-in sets it.
_of_test: Callable[[], int] | None = None


def fresh() -> int:
    """Return a random seed."""
    return random.SystemRandom().getrandbits(BITS)


def of_test(base: int, name: str) -> Callable[[], int]:
    """Return a function that returns the next seed for a test, from any thread.

    For the same base and name, the seeds are the same.
    """
    chosen = random.Random(base ^ zlib.crc32(name.encode()) << BITS)  # noqa: S311 - not for secrets
    return partial(chosen.getrandbits, BITS)


def use(draw: Callable[[], int] | None) -> None:
    """Set the function that returns seeds for links and networks that are created from now on."""
    global _of_test  # noqa: PLW0603 - a test runs alone in its process, or in a thread of it
    _of_test = draw


def chosen(seed: int | None) -> int:
    """Return the given seed, the running test's next one, or a fresh one."""
    if seed is not None:
        if not isinstance(seed, SupportsIndex):
            raise TypeError(f"seed must be an int, not {seed!r}")
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"seed must be from 0 to 2**64 - 1, not {seed}")
        return int(seed)
    draw = _of_test or fresh  # read once: a thread may outlive its test
    return draw()
