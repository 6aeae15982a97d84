"""A pytest plugin that prints the outcome of each test, like ``tests/cpython/run.py``."""

import asyncio
import json
import os

from substitutes import classes, substitute


def say(line):
    with open(os.environ["OUTCOMES"], "a", encoding="utf-8") as file:  # noqa: PTH123
        file.write(json.dumps(line) + "\n")


def pytest_configure():
    substitute(os.environ["VARIANT"])
    say(asyncio.run(classes()))


def pytest_runtest_logreport(report):
    if report.when == "call" or not report.passed:
        why = "" if report.passed else report.longreprtext
        say({"test": report.nodeid, "outcome": report.outcome, "why": why})
