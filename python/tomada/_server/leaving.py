"""How a worker ends: with what Python does at a program's end, and without its parent's part.

A worker is a fork in the middle of the parent's program. To return from there, or to raise
SystemExit, would run the parent's `finally` blocks, and finalizing the interpreter would run its
destructors. So a worker ends with :func:`os._exit`, as a process of ``multiprocessing`` does, after
the steps of a normal end that belong to the worker.

One rule covers the parent's files and log handlers: what they have buffered at the fork, the child
discards unwritten, and the parent writes. The child then flushes them as if they were its own, but
never closes them. An inherited object whose class is not known stays untouched, except that log
handlers are flushed.
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

# The classes of open(). Only objects of exactly these are known not to run anybody's code.
WRITERS = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)
READERS = (io.BufferedReader, io.FileIO)


class _Inherited:
    """What the child has from its parent and must not close."""

    # Files by their id(), those apart that can be flushed without harm.
    files: dict[int, weakref.ref[Any]] = {}  # noqa: RUF012 - there is one process
    handlers: list[Any] = []  # noqa: RUF012 - likewise, of weak references


# In the parent


def flush_before_fork() -> None:
    """Write what this process has buffered, so that it comes before what its children write.

    It is to run in the thread that forks: another one would wait for ever for the locks that a
    signal handler's thread holds. It waits neither for a lock of a log handler nor for the reader
    of a pipe.
    """
    flush_streams()
    for file in _files():
        with contextlib.suppress(Exception):
            if _is_regular(file):
                file.flush()
    for reference in list(_handler_list()):
        with contextlib.suppress(Exception):
            _flush_own(reference())


def _flush_own(handler: Any) -> None:
    """Flush a log handler that buffers records in a way of its own, unless it is in use."""
    # The others write each record at once, or the child knows how to discard their records.
    known = [logging.Handler.flush, logging.StreamHandler.flush]
    if "logging.handlers" in sys.modules:
        handlers = sys.modules["logging.handlers"]
        known += [handlers.BufferingHandler.flush, handlers.MemoryHandler.flush]
    if type(handler).flush in known:
        return
    lock = handler.lock
    if lock is None or lock.acquire(blocking=False):
        try:
            handler.flush()
        finally:
            if lock is not None:
                lock.release()


# In the child


def forget_parent() -> None:
    """Take nothing of what the parent does at its end for the child's own."""
    for file in _files():
        if not _discard(file):
            _Inherited.files[id(file)] = weakref.ref(file)
    _Inherited.handlers += _handler_list()
    _handler_list().clear()  # which logging.shutdown() closes
    forget_records()
    atexit._clear()  # noqa: SLF001 - as multiprocessing does
    # TemporaryDirectory, for one, removes its directory in this way.
    for finalizer in list(getattr(weakref.finalize, "_registry", ())):
        finalizer.atexit = False
    # What the parent has imported has registered this, and does so once.
    atexit.register(logging.shutdown)
    if getattr(weakref.finalize, "_registered_with_atexit", False):
        finalize: Any = weakref.finalize
        atexit.register(finalize._exitfunc)  # noqa: SLF001 - there is no other way
    if "multiprocessing.util" in sys.modules:
        # It would terminate the parent's processes; finalizers of another process it ignores.
        sys.modules["multiprocessing.process"]._children.clear()  # noqa: SLF001 - as above
        atexit.register(sys.modules["multiprocessing.util"]._exit_function)  # noqa: SLF001


def forget_records() -> None:
    """Discard the records that log handlers keep for the process that has forked this one."""
    if "logging.handlers" in sys.modules:
        for reference in _Inherited.handlers:
            handler = reference()
            if isinstance(handler, sys.modules["logging.handlers"].BufferingHandler):
                handler.buffer = []


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
        _attempt(_write_buffered)
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


def _write_buffered() -> None:
    """Write what files and log handlers have buffered, as an interpreter does that ends."""
    files = [file for file in _files() if not _is_inherited(file)]
    plain = [file.flush for file in files if type(file) in WRITERS]
    # A GzipFile, for one, whose close() writes its end into another file.
    others = [file.close for file in reversed(files) if type(file) not in WRITERS + READERS]
    handlers = [reference() for reference in reversed(_Inherited.handlers)]
    flush = [handler.flush for handler in handlers if handler is not None]
    # What is sure not to hang comes first.
    for step in (*plain, *others, *plain, *flush, *plain):
        with contextlib.suppress(Exception):
            step()


def _is_inherited(file: Any) -> bool:
    reference = _Inherited.files.get(id(file))
    return reference is not None and reference() is file


def _discard(file: Any) -> bool:
    """Empty the buffer of a plain file without writing it, and say whether it is one.

    It replaces the buffer's lock, too, which a thread of the parent may have held at the fork.
    """
    try:
        buffer = _buffer(file)
        if buffer is None or buffer.raw.closed:
            return False
        kind, raw = type(buffer), buffer.raw
        size = buffer.__sizeof__() - kind.__basicsize__
        # The constructor makes a new buffer and a new lock.
        kind.__init__(buffer, io.BytesIO(), size)
        try:
            if file is not buffer:
                file.flush()  # text that has not reached the buffer yet
        finally:
            kind.__init__(buffer, raw, size)
    except Exception:  # noqa: BLE001 - closed, or detached
        return False
    return True


# In both


def _files() -> list[Any]:
    """Return the file objects of this process."""
    objects = gc.get_objects()
    # By type: some objects run a program to say their class.
    kinds = map(issubclass, map(type, objects), itertools.repeat(_io._IOBase))  # noqa: SLF001 - io.IOBase asks ABCMeta
    return list(itertools.compress(objects, kinds))


def _buffer(file: Any) -> Any:
    """Return the buffer for writing of a file of ``open``, and ``None`` of any other."""
    buffer = file.buffer if type(file) is io.TextIOWrapper else file
    is_plain = type(buffer) in WRITERS[1:] and type(buffer.raw) is io.FileIO
    return buffer if is_plain else None


def _is_regular(file: Any) -> bool:
    buffer = _buffer(file)
    return buffer is not None and stat.S_ISREG(os.fstat(buffer.raw.fileno()).st_mode)


def _handler_list() -> list[Any]:
    """Return weak references to the log handlers that logging.shutdown() closes, the list itself."""
    return getattr(logging, "_handlerList", [])
