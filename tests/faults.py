"""System calls that fail on demand, in the programs that a test starts: see ``faults.c``.

What the kernel really lacks would be lacking for everybody on the machine. This way it is lacking
for one program and its children, for as long as a test says.
"""

import contextlib
import mmap
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from support import Child

SOURCE = Path(__file__).with_name("faults.c")

# In the order of the C source.
CALLS = (
    "socket",
    "socketpair",
    "eventfd",
    "pipe",
    "fork",
    "thread",
    "recvmmsg",
    "sendmmsg",
    "recvfrom",
    "sendto",
)

# In faults.c, a number below this one limits a call.
LAST_SIGNAL = 64
FAULT = struct.Struct("=ii")
ALWAYS = -1


class Faults:
    """Which calls fail, shared with the programs."""

    def __init__(self, path):
        with Path(path).open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), len(CALLS) * FAULT.size)

    def set(self, call, error, times=ALWAYS):
        """Have a call fail with an errno, so many times or until it is set to 0."""
        # The number last: it is looked at first.
        place = CALLS.index(call) * FAULT.size
        self._memory[place : place + FAULT.size] = FAULT.pack(0, 0)
        self._memory[place : place + FAULT.size] = FAULT.pack(error, times)

    def signal(self, call, number):
        """Have a signal arrive in the middle of the next call of its name, which does not fail."""
        self.set(call, -number, times=1)

    def limit(self, call, most):
        """Have a call that takes several messages take no more than these at once."""
        self.set(call, -1 - LAST_SIGNAL - most)

    @contextlib.contextmanager
    def failing(self, call, error):
        """Have a call fail for a while."""
        self.set(call, error)
        try:
            yield
        finally:
            self.set(call, 0)


def faults():
    """Give the faults of the program that this is called in."""
    return Faults(os.environ["FAULTS"])


def build(folder):
    """Build the library, and return its path; skip the tests where there is no compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("there is no cc command")
    library = folder / "faults.so"
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *options, "-o", library, SOURCE, "-ldl"], check=True)
    return library


class Faulty:
    """Runs programs whose calls fail as they say themselves."""

    def __init__(self, library, folder):
        self._library = library
        self._folder = folder
        self._count = 0

    def run(self, program, *arguments):
        """Run the text of a program to its end, and return what it prints."""
        self._count += 1
        path = self._folder / f"faults{self._count}"
        path.write_bytes(bytes(len(CALLS) * FAULT.size))
        folder = str(SOURCE.parent)
        environment = os.environ | {
            "FAULTS": str(path),
            "LD_PRELOAD": str(self._library),
            "PYTHONPATH": os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")])),
        }
        with Child("-c", program, *arguments, env=environment) as child:
            status, output, errors = child.end()
        assert status == 0, errors
        return output
