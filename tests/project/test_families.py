"""Families: what has a long form is marked, and so runs in ``make families``."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import families

TESTS = Path(__file__).parents[1]

FAMILIES = "helpers/families.py"
# This file contains the variable's name as data.
NAME_ONLY = "cli/test_options.py"


def marks_of(path, **attributes):
    """Return the names of the markers that a test of a module gets."""
    marks = []
    item = SimpleNamespace(path=path, add_marker=lambda mark: marks.append(mark.name), **attributes)
    families.mark([item])
    return marks


@pytest.mark.parametrize(
    "line",
    [
        "from families import length",
        "from families import LONG as IS_LONG",
        "import families",
        "def test_it():\n    from families import length",
        "from replies import SINGLE",
        "import attack",
    ],
)
def test_module_that_imports_families_is_marked(line, tmp_path):
    path = tmp_path / "test_it.py"
    path.write_text(f"import os\n{line}\n", encoding="utf-8")
    assert marks_of(path) == ["family"]


def test_other_module_is_not_marked(tmp_path):
    path = tmp_path / "test_it.py"
    path.write_text("import os\nfrom support import eventually\n", encoding="utf-8")
    assert marks_of(path) == []
    page = tmp_path / "page.md"
    page.write_text("import families\n", encoding="utf-8")
    assert marks_of(page) == []


def test_hypothesis_test_is_marked(tmp_path):
    path = tmp_path / "test_it.py"
    path.write_text("import hypothesis\n", encoding="utf-8")
    assert marks_of(path, obj=SimpleNamespace(is_hypothesis_test=True)) == ["family"]


def containing(pattern):
    """Return the test files that contain a pattern."""
    return {
        path.relative_to(TESTS).as_posix()
        for path in TESTS.rglob("*.py")
        if re.search(pattern, path.read_text(encoding="utf-8"))
    }


def test_only_families_reads_the_variable():
    assert containing(r"""["']TOMADA_LONG\b""") == {FAMILIES, NAME_ONLY}


def test_no_module_marks_its_own_tests():
    """Otherwise a module could mark some of its tests, and have a long form of others."""
    assert containing(r"\bmark\.family\b") == {FAMILIES}


def test_suite_gives_this_module_its_marker(request):
    """This module imports ``families``, so ``conftest.py`` has marked this test."""
    assert request.node.get_closest_marker("family")
