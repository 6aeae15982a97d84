"""CPython's own tests, of the running interpreter, with tomada's sockets in place of its own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parent / "cpython" / "run.py"

# Tests that pass with the standard class and need not pass with tomada's, each with its reason.
KNOWN_DIFFERENCES = {
    "test.test_socket.PurePythonSocketPairTest.test_injected_authentication_failure": (
        "assigns to socket.socket.getsockname and expects a stream socket to have the new method; "
        "stream sockets are the standard library's own objects, of its own class"
    ),
}


def outcomes(variant: str, module: str) -> tuple[str, dict[str, tuple[str, str]]]:
    """Run a module's tests; return the class of its datagram sockets, and what became of each."""
    run = subprocess.run(
        [sys.executable, RUN, variant, module],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    first, *tests = map(json.loads, run.stdout.splitlines())
    return first["class"], {test["test"]: (test["outcome"], test["why"]) for test in tests}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("module", ["test_socket", "test_socketserver"])
def test_what_passes_with_the_standard_class_passes_with_tomadas(module):
    if importlib.util.find_spec(f"test.{module}") is None:
        pytest.skip("this interpreter was installed without its tests")
    stock_class, stock = outcomes("stock", module)
    our_class, ours = outcomes("tomada", module)
    assert (stock_class, our_class) == ("socket.socket", "tomada.socket.socket")
    passed = [name for name, (outcome, _) in stock.items() if outcome == "passed"]
    assert len(passed) > 10, "hardly any test passes with the standard class"
    worse = {
        name: ours.get(name, ("not run", ""))
        for name in passed
        if name not in KNOWN_DIFFERENCES and ours.get(name, ("", ""))[0] != "passed"
    }
    report = "\n\n".join(f"{name}: {outcome}\n{why}" for name, (outcome, why) in worse.items())
    assert not worse, report
