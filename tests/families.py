"""Families of tests: generated ones, short in ``make test`` and long in ``make families``.

``TOMADA_LONG=1`` selects the long forms.
"""

import os

import pytest
from hypothesis import settings

LONG = os.environ.get("TOMADA_LONG") == "1"

# What hypothesis tries of a test that does not say how much, and how many times as much in the long
# form of one that does.
EXAMPLES = 100
FACTOR = 50

family = pytest.mark.family


def length(short, long=None):
    """Return how often a family tries something: ``FACTOR`` times more often where long."""
    return (long or FACTOR * short) if LONG else short


def configure(config):
    """Declare the marker, and set what hypothesis does where a test does not say."""
    config.addinivalue_line(
        "markers", "family: generated tests, of which `make families` runs the long form"
    )
    # How long an example takes says more about the machine than about the code.
    settings.register_profile("tomada", deadline=None, max_examples=length(EXAMPLES))
    settings.load_profile("tomada")


def mark(items):
    """Mark the tests that hypothesis makes, and those of modules that have a long form."""
    for item in items:
        generated = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
        if generated or getattr(getattr(item, "module", None), "length", None) is length:
            item.add_marker(family)
