"""Finds sockets, workers and threads that a test has left behind."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tomada._address import format_address

# How long to wait for threads and processes that are ending, in seconds.
PATIENCE = 5.0


@contextlib.contextmanager
def assert_no_udp_leaks(patience: float = PATIENCE) -> Iterator[None]:
    """Check that a block leaves no UDP socket, no child process and no thread behind.

    Anything that existed before the block does not count. Threads and processes that are about to
    end get time to do so. The garbage collector runs first, so unreachable objects count as closed.

    :param patience: How long to wait for threads and processes to end, in seconds.
    :raises AssertionError: Something was left behind; the message lists it.
    """
    before = _held()
    yield
    end = time.monotonic() + patience
    gc.collect()
    while left := {key: text for key, text in _held().items() if key not in before}:
        if time.monotonic() >= end:
            raise AssertionError("left behind: " + ", ".join(sorted(left.values())))
        time.sleep(0.01)


def _held() -> dict[object, str]:
    """Return descriptions of the UDP sockets, the child processes and the threads.

    The keys identify them: a socket's address may change, and two threads may have one name.
    """
    for process in multiprocessing.active_children():
        process.join(0)
    held: dict[object, str] = {
        thread: f"thread {thread.name!r}" for thread in threading.enumerate()
    }
    held.update(_sockets())
    held.update((text, text) for text in (*_children(), *_links()))
    return held


def _sockets() -> Iterator[tuple[tuple[str, str], str]]:
    """Yield the identities and descriptions of this process's UDP sockets."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile, or not a socket
            target = str(entry.readlink())
            if not target.startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as copy:
                is_ip = copy.family in {socket.AF_INET, socket.AF_INET6}
                if is_ip and copy.type == socket.SOCK_DGRAM:
                    where = format_address(copy.getsockname())
                    text = f"UDP socket {entry.name} of {where} ({target})"
                    yield (entry.name, target), text


def _children() -> Iterator[str]:
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # the thread has ended
            for child in (task / "children").read_text().split():
                yield f"process {child}"


def _links() -> Iterator[str]:
    """Yield the threads of links, which Python does not know about."""
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            if (task / "comm").read_text().strip() == "tomada-link":
                yield f"the thread {task.name} of a link"
