"""How a worker exits: like a Python program, but without the exit steps of its parent.

A worker is a fork in the middle of the parent's program. Returning from there, or raising
SystemExit, would run the parent's `finally` blocks, and finalizing the interpreter would run the
destructors of the parent's objects. Therefore a worker runs its own steps of a normal exit and then
calls :func:`os._exit`, like a process of ``multiprocessing``.

One rule covers inherited files and log handlers: the child discards what the parent has buffered at
the fork, because the parent writes it. At its exit, the child flushes them and never closes them.
It does not touch inherited files of classes other than those of ``open``.
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
import traceback
import weakref
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("tomada")

# The classes of open(). A subclass may run code of its own, so only exact types count.
WRITERS = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)
READERS = (io.BufferedReader, io.FileIO)


class _Inherited:
    """Files and log handlers that the child must not close."""

    # Files by their id(), except those that the child may flush.
    files: dict[int, weakref.ref[Any]] = {}  # noqa: RUF012 - there is one process
    handlers: list[Any] = []  # noqa: RUF012 - as above; weak references


# In the parent


def flush_before_fork() -> None:
    """Flush this process's buffers, so that its output precedes that of its children.

    Call it in the thread that forks: a signal handler that starts a server may have interrupted
    code that holds a lock, and any other thread would wait for that lock for ever. It skips log
    handlers that other threads are using, and pipes other than standard output and error.
    """
    for stream in (sys.stdout, sys.stderr):
        _attempt_to_flush(_flush_stream, stream)
    for file in _files():
        if type(file) in WRITERS:
            _attempt_to_flush(_flush_regular, file)
    for reference in list(_handler_list()):
        _attempt_to_flush(_flush_own, reference())


def _attempt_to_flush(flush: Callable[[Any], object], target: Any) -> None:
    """Flush something and ignore its errors, but not an exception from a signal handler."""
    try:
        flush(target)
    except Exception as error:
        # The types that logging.shutdown() ignores. A plain file runs no Python code.
        ignored = () if type(target) in WRITERS else (OSError, ValueError, RuntimeError)
        if not (isinstance(error, ignored) or _is_raised_here(error)):
            raise


def _is_raised_here(error: Exception) -> bool:
    """Return whether a C function that this module called raised an exception."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1].f_globals is globals()


def _flush_stream(stream: Any) -> None:
    if stream is not None:
        stream.flush()


def _flush_regular(file: Any) -> None:
    buffer = _buffer(file)
    if buffer is not None and stat.S_ISREG(os.fstat(buffer.raw.fileno()).st_mode):
        file.flush()


def _flush_own(handler: Any) -> None:
    """Flush a log handler that overrides `flush`, unless another thread is using it."""
    # The other handlers write each record at once, or forget_records() discards their records in
    # the child.
    known = [logging.Handler.flush, logging.StreamHandler.flush]
    if "logging.handlers" in sys.modules:
        handlers = sys.modules["logging.handlers"]
        known += [handlers.BufferingHandler.flush, handlers.MemoryHandler.flush]
    if handler is None or type(handler).flush in known:
        return
    lock = getattr(handler, "lock", None)
    if lock is None or lock.acquire(blocking=False):
        try:
            handler.flush()
        finally:
            if lock is not None:
                lock.release()


# In the child


def forget_parent() -> None:
    """Drop the parent's exit handlers and buffered data in the child."""
    for file in _files():
        if not _discard(file):
            _Inherited.files[id(file)] = weakref.ref(file)
    _Inherited.handlers += _handler_list()
    _handler_list().clear()  # logging.shutdown() would close them
    forget_records()
    atexit._clear()  # noqa: SLF001 - as multiprocessing does
    # TemporaryDirectory, for example, uses a finalizer to remove its directory.
    for finalizer in list(getattr(weakref.finalize, "_registry", ())):
        finalizer.atexit = False
    # Each module registers its function only once, on import.
    atexit.register(logging.shutdown)
    if getattr(weakref.finalize, "_registered_with_atexit", False):
        finalize: Any = weakref.finalize
        atexit.register(finalize._exitfunc)  # noqa: SLF001 - the class does so itself
    if "multiprocessing.util" in sys.modules:
        # Otherwise, the exit function would terminate the parent's child processes. It ignores the
        # parent's finalizers by itself.
        sys.modules["multiprocessing.process"]._children.clear()  # noqa: SLF001 - as above
        atexit.register(sys.modules["multiprocessing.util"]._exit_function)  # noqa: SLF001


def forget_records() -> None:
    """Discard log records that were buffered before the fork."""
    if "logging.handlers" in sys.modules:
        for reference in _Inherited.handlers:
            handler = reference()
            if isinstance(handler, sys.modules["logging.handlers"].BufferingHandler):
                handler.buffer = []


def leave(status: int) -> NoReturn:
    """Exit a forked process after flushing its output, without any other exit step."""
    flush_streams()
    os._exit(status)


def limit_time(seconds: float) -> None:
    """Have the kernel kill this process after some seconds, unless a timer is already running."""
    if signal.getitimer(signal.ITIMER_REAL)[0] == 0:
        signal.setitimer(signal.ITIMER_REAL, seconds)


def leave_in_order(status: int, seconds: float) -> NoReturn:
    """Exit a worker as Python exits, within a limit of some seconds.

    This waits for non-daemon threads, runs :mod:`atexit` functions, and flushes files.
    """
    try:
        limit_time(seconds)
        threads: Any = threading
        _attempt(threads._shutdown)  # noqa: SLF001 - as multiprocessing does
        _attempt(atexit._run_exitfuncs)  # noqa: SLF001 - as above
        _attempt(_write_buffered)
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
        logger.exception("a worker could not clean up completely")


def _write_buffered() -> None:
    """Flush or close files and log handlers, as the interpreter does when it exits."""
    files = [file for file in _files() if not _is_inherited(file)]
    plain = [file.flush for file in files if type(file) in WRITERS]
    # An example is a GzipFile, whose close() writes to another file. Raw files are left out: they
    # have no buffer, and another file may still write to them.
    others = [
        file.close
        for file in reversed(files)
        if type(file) not in WRITERS + READERS and not issubclass(type(file), _io._RawIOBase)  # noqa: SLF001 - as below
    ]
    handlers = [reference() for reference in reversed(_Inherited.handlers)]
    flush = [handler.flush for handler in handlers if handler is not None]
    # Log handlers may hang, so they come last. They may write to files.
    for step in (*plain, *others, *plain, *flush, *plain):
        with contextlib.suppress(Exception):
            step()


def _is_inherited(file: Any) -> bool:
    reference = _Inherited.files.get(id(file))
    return reference is not None and reference() is file


def _discard(file: Any) -> bool:
    """Empty the buffer of a plain file without writing it; return whether the file is plain.

    This also replaces the buffer's lock, which a thread of the parent may have held at the fork.
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
                file.flush()  # the text layer has a buffer of its own
        finally:
            kind.__init__(buffer, raw, size)
    except Exception:  # noqa: BLE001 - closed, or detached
        return False
    return True


# In both


def _files() -> list[Any]:
    """Return the file objects of this process."""
    objects = gc.get_objects()
    # By type, because some objects run code when their class is read.
    kinds = map(issubclass, map(type, objects), itertools.repeat(_io._IOBase))  # noqa: SLF001 - io.IOBase asks ABCMeta
    return list(itertools.compress(objects, kinds))


def _buffer(file: Any) -> Any:
    """Return the write buffer of a file of ``open``, or ``None`` for any other object."""
    buffer = file.buffer if type(file) is io.TextIOWrapper else file
    is_plain = type(buffer) in WRITERS[1:] and type(buffer.raw) is io.FileIO
    return buffer if is_plain else None


def _handler_list() -> list[Any]:
    """Return the list of handlers (weak references) that logging.shutdown() closes."""
    return getattr(logging, "_handlerList", [])
