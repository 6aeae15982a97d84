"""Run the interpreter's own tests, with tomada's classes or the standard ones.

``python run.py stock|socket|loop|both NAME …`` prints JSON. Each NAME is a module or a test. The
first line has the classes that datagrams go through; then each test has a line with its name, its
outcome (passed, skipped or failed), and the reason or traceback.
"""

from __future__ import annotations

import asyncio
import fnmatch
import json
import sys
import unittest
from collections.abc import Iterator

from substitutes import classes, substitute
from test import support

# tomada never replaces these families. Some of their tests hang if a kernel supports a family only
# in part.
FOREIGN = [
    "*VSOCK*",
    "*CAN*",
    "*ISOTP*",
    "*J1939*",
    "*RDS*",
    "*QIPCRTR*",
    "*Bluetooth*",
    "*HyperV*",
]
FOREIGN += ["*TIPC*", "LinuxKernelCryptoAPI", "*SCTP*"]


class Report(unittest.TestResult):
    """Print each outcome when it is known."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = True

    def _say(self, test: unittest.TestCase, outcome: str, why: str = "") -> None:
        line = json.dumps({"test": test.id(), "outcome": outcome, "why": why})
        print(line, file=sys.__stdout__, flush=True)

    def addSuccess(self, test: unittest.TestCase) -> None:
        super().addSuccess(test)
        self._say(test, "passed")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        self._say(test, "skipped", reason)

    def addFailure(self, test, error) -> None:
        super().addFailure(test, error)
        self._say(test, "failed", self.failures[-1][1])

    def addError(self, test, error) -> None:
        super().addError(test, error)
        self._say(test, "failed", self.errors[-1][1])


def selected(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from selected(test)
        elif not any(fnmatch.fnmatchcase(type(test).__name__, name) for name in FOREIGN):
            yield test


def main(variant: str, names: list[str]) -> None:
    substitute(variant)
    print(json.dumps(asyncio.run(classes())), flush=True)
    support.use_resources = ["network"]  # loopback only; "urlfetch" and the like stay off
    for name in names:
        suite = unittest.defaultTestLoader.loadTestsFromName(f"test.{name}")
        unittest.TestSuite(selected(suite)).run(Report())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
