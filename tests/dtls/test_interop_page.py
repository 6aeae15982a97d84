"""The page of the documentation about other implementations."""

import os
from pathlib import Path

import pytest

from dtls_interop import PAGE, Results, case_of, cases_in, page_of

FILES = {path.name for path in Path(__file__).parent.glob("test_interop_*.py")}


@pytest.mark.thread_unsafe(reason="it compares what other tests have shown")
def test_page_lists_what_has_passed(request):
    passed = request.config.pluginmanager.get_plugin("interop-results").passed
    if os.environ.get("TOMADA_WRITE_INTEROP") == "1":
        PAGE.write_text(page_of(passed), encoding="utf-8")
    listed = cases_in(PAGE.read_text(encoding="utf-8"))
    assert passed <= listed
    items = [item for item in request.session.items if item.path.parent == Path(__file__).parent]
    if {item.path.name for item in items} >= FILES and not request.config.option.keyword:
        # Skipped tests count as well: the page is from a machine that can run them.
        assert listed == {case for item in items if (case := case_of(item))}


def test_page_shows_each_case():
    cases = {("one", "this", "server"), ("one", "this", "client"), ("two", "that", "client")}
    assert cases_in(page_of(cases)) == cases
    assert Results().passed == set()
