"""Programs that were written for an earlier version: every name and parameter is still there.

``interface-0.1.txt`` lists what version 0.1 documented. A name that a later version renames stays
for one minor version, with a ``DeprecationWarning``.
"""

import inspect
import re
import warnings
from importlib import import_module
from pathlib import Path

import pytest

DOCUMENTED = (Path(__file__).parent / "interface-0.1.txt").read_text(encoding="utf-8").splitlines()


def find(path):
    """Return the object that a dotted path names."""
    package, *names = path.split(".")
    found, module = import_module(package), package
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for name in names:
            module = f"{module}.{name}"
            found = getattr(found, name) if hasattr(found, name) else import_module(module)
    return found


@pytest.mark.parametrize("line", DOCUMENTED)
def test_name_of_0_1_accepts_the_same_arguments(line):
    path, _, listed = line.removesuffix(")").partition("(")
    found = find(path)
    if not line.endswith(")"):
        return
    positional, _, keywords = re.sub(r", \*(, |$)|^\*, ", " * ", listed).partition(" * ")
    parameters = dict(inspect.signature(found).parameters)
    parameters.pop("self", None)
    at_first = positional.split(", ") if positional else []
    assert list(parameters)[: len(at_first)] == at_first
    assert set(keywords.split(", ") if keywords else ()) <= set(parameters)
