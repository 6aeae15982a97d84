"""Families of generated tests: short in ``make test``, long in ``make families``.

``TOMADA_LONG=1`` selects the long form. Only this module reads the variable. Test modules import
``length`` or ``LONG`` from here, and this import marks their tests.
"""

import os
import re
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

LONG = os.environ.get("TOMADA_LONG") == "1"

# The number of examples for hypothesis tests that do not set their own, and the factor by which the
# long form multiplies the number for those that do.
EXAMPLES = 100
FACTOR = 50

_HELPERS = Path(__file__).parent
_IMPORTED = re.compile(r"^\s*(?:from|import)\s+(\w+)", re.MULTILINE)


def length(short, long=None):
    """Return the number of repetitions: ``FACTOR`` times more in the long form."""
    return (long or FACTOR * short) if LONG else short


def configure(config):
    """Register the marker, and set hypothesis's defaults."""
    config.addinivalue_line(
        "markers", "family: generated tests; `make families` runs their long form"
    )
    # The duration of an example depends more on the machine than on the code.
    settings.register_profile("tomada", deadline=None, max_examples=length(EXAMPLES))
    settings.load_profile("tomada")


def mark(items):
    """Mark hypothesis tests, and the tests of modules that have a long form."""
    for item in items:
        generated = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
        if generated or has_long_form(item.path):
            item.add_marker(pytest.mark.family)


@cache
def has_long_form(path):
    """Return whether a module imports this one, directly or through other helpers."""
    found, seen = [path], set()
    while found:
        file = found.pop()
        if file.suffix != ".py" or file in seen or not file.exists():
            continue
        seen.add(file)
        names = _IMPORTED.findall(file.read_text(encoding="utf-8"))
        if "families" in names:
            return True
        found += [_HELPERS / f"{name}.py" for name in names]
    return False
