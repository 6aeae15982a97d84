"""Make system calls fail on demand in the programs that a test starts: see ``faults.c``.

If the kernel really ran out of a resource, every program on the machine would be affected. With
this module, only one program and its children are affected, and only as long as a test wants.
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

# In the same order as in the C source.
CALLS = (
    "socket",
    "socketpair",
    "eventfd",
    "fork",
    "thread",
    "recvmmsg",
    "sendmmsg",
    "recvmsg",
    "sendmsg",
    "recvfrom",
    "sendto",
)
# The calls that tomada receives and sends with, depending on the number of messages, and on whether
# they have control messages.
GROUPS = {
    "receive": ("recvmmsg", "recvmsg"),
    "send": ("sendmmsg", "sendmsg", "sendto"),
}

# In faults.c, a negative error down to -LAST_SIGNAL is a signal; a lower one is a limit.
LAST_SIGNAL = 64
FAULT = struct.Struct("=ii")
ALWAYS = -1


class Faults:
    """The list of failing calls, in memory that is shared with the programs."""

    def __init__(self, path):
        with Path(path).open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), len(CALLS) * FAULT.size)

    def set(self, call, error, times=ALWAYS):
        """Make a call fail with an errno, this many times or until the number is set to 0.

        Of a group, each call fails as often.
        """
        for name in GROUPS.get(call, [call]):
            # The number is written last, because the library reads it first.
            place = CALLS.index(name) * FAULT.size
            self._memory[place : place + FAULT.size] = FAULT.pack(0, 0)
            self._memory[place : place + FAULT.size] = FAULT.pack(error, times)

    def signal(self, call, number):
        """Make a signal arrive during the next call with this name; the call itself succeeds."""
        self.set(call, -number, times=1)

    def limit(self, call, most):
        """Limit the number of messages that a call takes at once."""
        self.set(call, -1 - LAST_SIGNAL - most)

    @contextlib.contextmanager
    def failing(self, call, error):
        """Make a call fail until the context ends."""
        self.set(call, error)
        try:
            yield
        finally:
            self.set(call, 0)


def faults():
    """Return the faults of the program that calls this."""
    return Faults(os.environ["FAULTS"])


def build(folder):
    """Build the library, and return its path; skip the tests if there is no compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("there is no cc command")
    library = folder / "faults.so"
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *options, "-o", library, SOURCE, "-ldl"], check=True)
    return library


class Faulty:
    """Runs programs that control the failures of their own calls."""

    def __init__(self, library, folder):
        self._library = library
        self._folder = folder
        self._count = 0

    def run(self, program, *arguments):
        """Run a program from its source, and return its output."""
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


# The beginning of a program whose calls fail.
START = """
import errno, logging, os, socket as std, sys, threading, time, warnings
import tomada
from faults import faults
from peer import DEADLINE
from serving import ask
from support import eventually, open_descriptors
from tomada import socket
from tomada import asyncio as tasks

warnings.simplefilter("error")
failing = faults()

def echo(data, _):
    return data

def attempt(call, *arguments, **options):
    try:
        return call(*arguments, **options)
    except (OSError, MemoryError) as error:
        return error
"""
