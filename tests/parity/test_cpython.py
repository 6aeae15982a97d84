"""CPython's own tests for the running interpreter, with tomada's classes substituted."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest

from support import Call

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

if TYPE_CHECKING:
    from collections.abc import Iterable

# For each test, its outcome (passed, skipped or failed) and the reason.
Outcomes: TypeAlias = "dict[str, tuple[str, str]]"

RUN = Path(__file__).parents[1] / "cpython" / "run.py"

# The classes that each substitution should use.
CLASSES = {
    "socket": {"socket": "tomada.socket.socket"},
    "loop": {
        "loop": "tomada.asyncio.EventLoop",
        "transport": "tomada._asyncio.transport.DatagramTransport",
    },
}
CLASSES["both"] = CLASSES["socket"] | CLASSES["loop"]

SOCKETS = ["test_socket", "test_socketserver"]
LOOPS = [
    f"test_asyncio.{name}"
    for name in (
        "test_base_events",
        "test_events",
        "test_runners",
        "test_selector_events",
        "test_sendfile",
        "test_sock_lowlevel",
        "test_streams",
        "test_unix_events",
    )
]

# Tests that pass with the standard classes but may fail with tomada's, each with its reason.
KNOWN_DIFFERENCES = {
    "test_socket.PurePythonSocketPairTest.test_injected_authentication_failure": (
        "assigns to socket.socket.getsockname and expects a stream socket to have the new method; "
        "stream sockets are the standard library's own, of its own class"
    ),
    "test_base_events.BaseLoopSockSendfileTests.test__sock_sendfile_native_failure": (
        "expects a loop with only the base class's methods, which cannot send files; tomada's loop "
        "extends the standard library's for Unix, which can"
    ),
    "test_base_events.BaseLoopSockSendfileTests.test_sock_sendfile_no_fallback": "the same",
}


# At most this many failed tests are retried.
FEW = 5


def is_known(name: str) -> bool:
    return ".".join(name.split(".")[-3:]) in KNOWN_DIFFERENCES


def has_tests() -> bool:
    return all(map(importlib.util.find_spec, ("test", "test.test_socket", "test.test_asyncio")))


def outcomes(variant: str, *names: str) -> tuple[dict[str, str], Outcomes]:
    """Run tests; return the classes that they used, and the outcome of each test."""
    # Tests that are killed leave files in the current directory.
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(
            [sys.executable, RUN, variant, *names],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
    assert run.returncode == 0, run.stderr
    classes, *tests = map(json.loads, run.stdout.splitlines())
    return classes, {test["test"]: (test["outcome"], test["why"]) for test in tests}


def worse_of(passed: Iterable[str], ours: Outcomes) -> Outcomes:
    """Return the outcomes of tests that pass with the standard classes, but not with tomada's."""
    return {
        name: ours.get(name, ("not run", ""))
        for name in passed
        if not is_known(name) and ours.get(name, ("", ""))[0] != "passed"
    }


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("module", "variants"),
    [(module, ["socket"]) for module in SOCKETS]
    # At the same time, because they mostly wait.
    + [(module, ["loop", "both"]) for module in LOOPS],
    ids=SOCKETS + LOOPS,
)
def test_cpython_tests_that_pass_with_the_standard_classes_pass_with_tomadas(module, variants):
    if not has_tests():
        pytest.skip("this interpreter was installed without its tests")
    runs = {variant: Call(outcomes, variant, module) for variant in ["stock", *variants]}
    stock_classes, stock = runs["stock"].result(280)
    passed = [name for name, (outcome, _) in stock.items() if outcome == "passed"]
    assert len(passed) > 10, "hardly any test passes with the standard classes"
    for variant in variants:
        our_classes, ours = runs[variant].result(280)
        assert our_classes == stock_classes | CLASSES[variant]
        worse = worse_of(passed, ours)
        if 0 < len(worse) <= FEW:
            # Some of these tests depend on timing and may fail while the rest of their module keeps
            # the machine busy. By themselves they must pass.
            worse = worse_of(
                worse, outcomes(variant, *(name.removeprefix("test.") for name in worse))[1]
            )
        report = "\n\n".join(f"{name}: {outcome}\n{why}" for name, (outcome, why) in worse.items())
        assert not worse, f"with tomada's {variant}:\n{report}"
