"""How a worker exits: like a Python program, but without the exit steps of its parent.

A worker is a fork in the middle of the parent's program. Returning from there, or raising
SystemExit, would run the parent's `finally` blocks; finalizing the interpreter would also write
the parent's buffered file contents a second time. Therefore a worker runs its own steps of a
normal exit and then calls :func:`os._exit`, like a process of ``multiprocessing``.
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

# The classes of open(). Flushing is all that closing them requires here.
PLAIN = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom, io.BufferedReader, io.FileIO)

# The files that were open before the fork.
_inherited: dict[int, weakref.ref[Any]] = {}


def flush_before_fork() -> None:
    """Flush this process's buffers, which each child would otherwise write again."""
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
    """Unregister the parent's exit handlers in the child."""
    atexit._clear()  # noqa: SLF001 - as multiprocessing does
    # TemporaryDirectory, for example, removes its directory in this way.
    for finalizer in list(getattr(weakref.finalize, "_registry", ())):
        finalizer.atexit = False
    if getattr(weakref.finalize, "_registered_with_atexit", False):
        finalize: Any = weakref.finalize
        atexit.register(finalize._exitfunc)  # noqa: SLF001 - the class does so itself
    atexit.register(logging.shutdown)


def leave(status: int) -> NoReturn:
    """End a forked process after flushing its output, without any other exit step."""
    flush_streams()
    os._exit(status)


def leave_in_order(status: int, seconds: float) -> NoReturn:
    """Exit a worker as Python exits, within a limit of some seconds.

    This waits for non-daemon threads, runs :mod:`atexit` functions, and flushes files.
    """
    try:
        if signal.getitimer(signal.ITIMER_REAL)[0] == 0:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        threads: Any = threading
        _attempt(threads._shutdown)  # noqa: SLF001 - as multiprocessing does
        _attempt(atexit._run_exitfuncs)  # noqa: SLF001 - as above
        _attempt(_close_files)
    finally:
        leave(status)


def flush_streams() -> None:
    """Flush standard output and standard error."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def _attempt(step: Callable[[], object]) -> None:
    try:
        step()
    except BaseException:
        logger.exception("a worker's end has failed in part")


def _files() -> list[Any]:
    """Return the file objects of this process, oldest first."""
    objects = gc.get_objects()
    # By type, because some objects run code when asked for their class.
    kinds = map(issubclass, map(type, objects), itertools.repeat(_io._IOBase))  # noqa: SLF001 - io.IOBase asks ABCMeta
    return list(itertools.compress(objects, kinds))


def _close_files() -> None:
    """Flush or close files, as the interpreter does when it exits."""
    files = [file for file in _files() if _is_regular(file) or not _is_inherited(file)]
    plain = [file for file in files if isinstance(file, PLAIN)]
    others = [file for file in files if not isinstance(file, PLAIN) and not _is_inherited(file)]
    # A text file may wrap, for example, a GzipFile, whose close() writes to another file.
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
    except Exception:  # noqa: BLE001 - it may be any class
        return False
