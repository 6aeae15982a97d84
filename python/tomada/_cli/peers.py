"""Servers and clients in processes of their own, which end with the process that started them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def started(module: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a module in a process with pipes, and ensure that it is killed and reaped."""
    command = [sys.executable, "-m", module, *arguments]
    with contextlib.ExitStack() as stack:
        with interrupts_put_off():
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            stack.enter_context(process)
            stack.callback(process.kill)
        yield process


@contextlib.contextmanager
def interrupts_put_off() -> Iterator[None]:
    """Defer Ctrl-C during the block.

    While a process starts, Ctrl-C could leave it running without a reference to it.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if came:
            raise KeyboardInterrupt


def end_with_parent() -> None:
    """End the process when the other end of its standard input is closed."""

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
