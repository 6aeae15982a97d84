"""Measure memory, descriptors and threads of processes over time."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benches.children import memory

IS_FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
# The share of a process's samples that count as its warm-up.
WARM_UP = 0.25


@dataclass(frozen=True)
class Sample:
    """The resources of a process at one moment; memory in bytes.

    ``rss`` is resident memory; ``pss`` divides shared pages among their processes; ``uss`` leaves
    them out. ``in_use`` is what ``malloc`` has handed out, without the free memory between; it is
    known only of the process that looks.
    """

    process: str
    pid: int
    rss: int
    pss: int
    uss: int
    descriptors: int
    threads: int
    in_use: int | None = None


def sample(process: str, pid: int) -> Sample:
    folder = Path(f"/proc/{pid}")
    found = memory(pid)
    return Sample(
        process,
        pid,
        found["Rss"],
        found["Pss"],
        found["Private_Clean"] + found["Private_Dirty"],
        # Reading the folder itself takes a descriptor.
        sum(1 for _ in (folder / "fd").iterdir()) - (process == SELF),
        sum(1 for _ in (folder / "task").iterdir()),
        in_use() if process == SELF else None,
    )


class _Mallinfo2(ctypes.Structure):
    """The result of mallinfo2(3)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def in_use() -> int | None:
    """Return how many bytes ``malloc`` has handed out to this process, or None if it cannot say.

    CPython takes the memory of small objects from it only if ``PYTHONMALLOC`` is ``malloc``.
    """
    if IS_FREE_THREADED:  # all objects are in mimalloc's memory
        return None
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except AttributeError:  # only glibc has it
        return None
    mallinfo2.restype = _Mallinfo2
    found = mallinfo2()
    return int(found.uordblks + found.hblkhd)


def children(pid: int) -> Iterator[int]:
    """Yield the child processes of a process."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            yield from map(int, (task / "children").read_text().split())


def workers() -> set[int]:
    """Return the workers of this process's servers."""
    return {worker for supervisor in children(os.getpid()) for worker in children(supervisor)}


SELF = "itself"


def look_around(*, has_supervisors: bool) -> list[Sample]:
    """Take samples of this process, of the supervisors of its servers, and of their workers."""
    # Memory that glibc keeps for later is not a leak. Each of its arenas may keep as much as a sink
    # held while its engine was down.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    pid = os.getpid()
    samples = [sample(SELF, pid)]
    for supervisor in children(pid) if has_supervisors else ():
        samples.append(sample("supervisor", supervisor))
        samples.extend(sample("worker", worker) for worker in children(supervisor))
    return samples


@dataclass(frozen=True)
class Growth:
    """The maximum after the warm-up minus the maximum during it."""

    process: str
    samples: int
    rss: int
    rss_growth: int
    pss_growth: int
    uss_growth: int
    descriptors: int
    descriptors_growth: int
    threads: int
    threads_growth: int
    in_use_growth: int | None


def growth(process: str, samples: list[Sample]) -> Growth:
    warm = max(1, int(len(samples) * WARM_UP))
    before, after = samples[:warm], samples[warm:] or samples[-1:]

    def more(name: str) -> int:
        return max(getattr(s, name) for s in after) - max(getattr(s, name) for s in before)

    last = samples[-1]
    return Growth(
        process,
        len(samples),
        last.rss,
        more("rss"),
        more("pss"),
        more("uss"),
        last.descriptors,
        more("descriptors"),
        last.threads,
        more("threads"),
        None if last.in_use is None else more("in_use"),
    )
