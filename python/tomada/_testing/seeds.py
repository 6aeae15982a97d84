"""The seeds of links and networks that were not given one."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from typing import SupportsIndex

# Short enough for the report of a failure.
BITS = 32

# The seeds for the test that runs, if the plug-in for pytest has set some.
_of_test: Iterator[int] | None = None


def fresh() -> int:
    """Return a seed that was not used before."""
    return random.SystemRandom().getrandbits(BITS)


def of_test(base: int, name: str) -> Iterator[int]:
    """Yield the seeds for a test: the same ones for the same base and name."""
    chosen = random.Random(base ^ zlib.crc32(name.encode()) << BITS)  # noqa: S311 - not for secrets
    while True:
        yield chosen.getrandbits(BITS)


def use(seeds: Iterator[int] | None) -> None:
    """Set the seeds for links and networks that are created from now on."""
    global _of_test  # noqa: PLW0603 - a test runs alone in its process, or in a thread of it
    _of_test = seeds


def chosen(seed: int | None) -> int:
    """Return a given seed, the next one of the test that runs, or a fresh one."""
    if seed is not None:
        if not isinstance(seed, SupportsIndex):
            raise TypeError(f"seed must be an int, not {seed!r}")
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"seed must be from 0 to 2**64 - 1, not {seed}")
        return int(seed)
    return fresh() if _of_test is None else next(_of_test)
