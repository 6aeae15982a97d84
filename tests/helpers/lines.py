"""Does something at the n-th line that a thread runs, as a signal handler would."""

import linecache
import os
import sys
from pathlib import Path

import tomada

PACKAGE = str(Path(tomada.__file__).parent)


class AtLine:
    """Calls a function at the n-th line that this thread runs in some files.

    :param places: The prefixes of those files' names.
    :param counts: Returns whether to count a line.
    """

    def __init__(self, number, action, *, places=(PACKAGE,), counts=lambda: True):
        self._left, self._action, self._places, self._counts = number, action, places, counts
        self._pid = os.getpid()
        self.is_over = False
        self.place = None

    def _local(self, frame, event, _argument):
        if self.is_over or os.getpid() != self._pid:
            return None
        if event == "line" and self._counts() and not opens_block(frame):
            self._left -= 1
            if self._left <= 0:
                self.is_over = True
                sys.settrace(None)
                self.place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                self._action()
                return None
        return self._local

    def _global(self, frame, _event, _argument):
        if self.is_over or not frame.f_code.co_filename.startswith(self._places):
            return None
        return self._local

    def __enter__(self):
        sys.settrace(self._global)
        return self

    def __exit__(self, *_):
        sys.settrace(None)


def opens_block(frame):
    """Return whether the line opens a ``try`` or ``with`` block, where no signal handler runs.

    CPython 3.11 does not pass an exception that a trace function raises at ``try:`` to the
    enclosing blocks. A ``with`` line is traced again when its block ends; an exception raised there
    would skip ``__exit__``, and leave a lock locked.
    """
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
    return line == "try:" or line.startswith(("with ", "async with "))
