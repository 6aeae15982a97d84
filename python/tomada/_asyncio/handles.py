"""The standard loop that tomada's extends, and the report of an exception from a callback."""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn

# Saved, because some programs replace them.
StandardLoop = asyncio.SelectorEventLoop
standard_time = asyncio.BaseEventLoop.time
run_handle = asyncio.Handle._run


class _Raising:
    """Takes the place of a handle's context, to make the handle report an exception once."""

    def __init__(self, handle: Any, error: BaseException) -> None:
        self._handle = handle
        self._context = handle._context
        self._error = error

    def run(self, *_: object) -> NoReturn:
        self._handle._context = self._context
        try:
            raise self._error
        finally:
            del self._error  # its traceback refers to this frame


def report(handle: asyncio.Handle, error: BaseException) -> None:
    """Report an exception from a handle's callback exactly as the running CPython version does."""
    running: Any = handle
    running._context = _Raising(handle, error)
    if handle.cancelled():  # by its callback
        running._args = ()
    running._run()
