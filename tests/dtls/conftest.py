"""The results of the tests with other implementations."""

import pytest

import dtls_interop


def pytest_configure(config):
    config.addinivalue_line("markers", "interop(peer, role, what): a session with another program")
    config.pluginmanager.register(dtls_interop.Results(), "interop-results")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Put the test of the page behind those whose results it needs."""
    items.sort(key=lambda item: item.name == "test_page_lists_what_has_passed")
