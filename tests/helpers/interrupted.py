"""Run a program again and again, and press Ctrl-C at a later line each time.

    python interrupted.py STEP PROGRAM ARGUMENT…

Lines count if they belong to the program or to tomada, and if the main thread runs them after the
program has printed its first line ("listening on …"): from then on, Ctrl-C must end it cleanly. In
the last run, the program has fewer lines, and Ctrl-C arrives while it waits. At the end, the number
of runs is printed.
"""

import contextlib
import faulthandler
import gc
import io
import os
import re
import runpy
import signal
import socket as std
import sys
import threading

from lines import PACKAGE, AtLine
from support import sleeps_in_the_kernel

DEADLINE = 60
MAIN = threading.main_thread().native_id
LOOKS = 500


class Output(io.StringIO):
    """The output of a program."""

    @property
    def has_line(self):
        return "\n" in self.getvalue()

    def addresses(self):
        found = re.findall(r"^listening on (.*):(\d+)$", self.getvalue(), re.MULTILINE)
        return [(host, int(port)) for host, port in found]


class Interruption(AtLine):
    """Ctrl-C at the n-th line after the first output, or else when the main thread waits."""

    def __init__(self, program, number, output):
        places = (program, PACKAGE)
        super().__init__(number, self._press, places=places, counts=lambda: output.has_line)
        self._output = output
        self._once = threading.Lock()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def _press(self):
        """Press Ctrl-C, unless it was pressed already."""
        if self._once.acquire(blocking=False):
            os.kill(os.getpid(), signal.SIGINT)

    def _watch(self):
        looks = 0  # how many times in a row the main thread was waiting
        while looks < LOOKS and not self.is_over:
            is_waiting = self._output.has_line and sleeps_in_the_kernel("self", MAIN)
            looks = looks + 1 if is_waiting else 0
            os.sched_yield()
        self._press()
        self.is_over = True

    def __enter__(self):
        self._watcher.start()
        return super().__enter__()

    def __exit__(self, *_):
        super().__exit__()
        self._once.acquire(blocking=False)
        self.is_over = True
        self._watcher.join()


def run(program, number):
    """Run the program once; return where it was interrupted, or None if it was waiting."""
    output = Output()
    interruption = Interruption(program, number, output)
    try:
        with contextlib.redirect_stdout(output), interruption:
            runpy.run_path(program, run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    except BaseException as error:
        error.add_note(f"interrupted at {interruption.place}")
        raise
    for address in output.addresses():
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
            sock.bind(address)  # fails unless the program has freed the address
    assert threading.active_count() == 1, threading.enumerate()
    return interruption.place


def main(step, program, *arguments):
    sys.argv = [program, *arguments]
    number = 1
    # Otherwise the collector might call __del__ of an earlier run's objects, and Python ignores
    # exceptions that are raised there.
    gc.disable()
    while True:
        gc.collect()
        faulthandler.dump_traceback_later(DEADLINE, exit=True)
        if run(program, number) is None:
            print(1 + number // step)
            return
        number += step


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
