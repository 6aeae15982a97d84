"""How a worker ends: with what Python does at a program's end, and without its parent's part.

A worker is a fork in the middle of the parent's program. To return from there, or to raise
SystemExit, would run the parent's `finally` blocks; finalizing the interpreter would also write
what the parent's files have buffered a second time. So a worker ends with :func:`os._exit`, as a
process of ``multiprocessing`` does, after the steps of a normal end that are its own.
"""

from __future__ import annotations

import _io
import atexit
import contextlib
import gc
import io
import itertools
import logging
import os
import signal
import stat
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("tomada")

# The classes of open(), whose flush() is all that their end does.
PLAIN = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom, io.BufferedReader, io.FileIO)

# The files that were open before the fork.
_inherited: dict[int, weakref.ref[Any]] = {}


def flush_before_fork() -> None:
    """Write what this process has buffered, which each child would write again."""
    flush_streams()
    _inherited.clear()
    for file in _files():
        with contextlib.suppress(Exception):
            _inherited[id(file)] = weakref.ref(file)
            if _is_regular(file):  # a pipe may be full
                file.flush()
    for reference in list(getattr(logging, "_handlerList", ())):
        with contextlib.suppress(Exception):
            reference().flush()


def forget_parent() -> None:
    """Take nothing of what the parent does at its end for the child's own."""
    atexit._clear()  # noqa: SLF001 - as multiprocessing does
    # TemporaryDirectory, for one, removes its directory in this way.
    for finalizer in list(getattr(weakref.finalize, "_registry", ())):
        finalizer.atexit = False
    if getattr(weakref.finalize, "_registered_with_atexit", False):
        finalize: Any = weakref.finalize
        atexit.register(finalize._exitfunc)  # noqa: SLF001 - it has registered that itself
    atexit.register(logging.shutdown)


def leave(status: int) -> NoReturn:
    """End a forked process, with what it has printed and nothing else."""
    flush_streams()
    os._exit(status)


def leave_in_order(status: int, seconds: float) -> NoReturn:
    """End a worker as Python ends, within some seconds.

    It waits for threads that are not daemons, runs what was registered with :mod:`atexit`, and
    writes what is buffered.
    """
    try:
        if signal.getitimer(signal.ITIMER_REAL)[0] == 0:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        threads: Any = threading
        _attempt(threads._shutdown)  # noqa: SLF001 - as multiprocessing does
        _attempt(atexit._run_exitfuncs)  # noqa: SLF001 - likewise
        _attempt(_close_files)
    finally:
        leave(status)


def flush_streams() -> None:
    """Write what was printed."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def _attempt(step: Callable[[], object]) -> None:
    try:
        step()
    except BaseException:
        logger.exception("a worker's end has failed in part")


def _files() -> list[Any]:
    """Return the file objects of this process, the oldest first."""
    objects = gc.get_objects()
    # By type: some objects run a program to say their class.
    kinds = map(issubclass, map(type, objects), itertools.repeat(_io._IOBase))  # noqa: SLF001 - io.IOBase asks ABCMeta
    return list(itertools.compress(objects, kinds))


def _close_files() -> None:
    """Write what files have buffered, as their end does in an interpreter that ends."""
    files = [file for file in _files() if _is_regular(file) or not _is_inherited(file)]
    plain = [file for file in files if isinstance(file, PLAIN)]
    others = [file for file in files if not isinstance(file, PLAIN) and not _is_inherited(file)]
    # A text file may be around a GzipFile, for one, whose close() writes its end into another file.
    steps = [file.flush for file in plain]
    steps += [file.close for file in reversed(others)]
    steps += [file.flush for file in plain]
    for step in steps:
        with contextlib.suppress(Exception):
            step()


def _is_inherited(file: Any) -> bool:
    reference = _inherited.get(id(file))
    return reference is not None and reference() is file


def _is_regular(file: Any) -> bool:
    try:
        return stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except Exception:  # noqa: BLE001 - it may be anybody's class
        return False
