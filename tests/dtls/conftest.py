"""The results of the tests with other implementations."""

import pytest

from tomada import _core

if hasattr(_core, "DtlsContext"):
    import dtls_interop
else:
    collect_ignore_glob = ["test_*.py"]  # a build without DTLS has nothing to test


def pytest_configure(config):
    config.addinivalue_line("markers", "interop(peer, role, what): a session with another program")
    if hasattr(_core, "DtlsContext"):
        config.pluginmanager.register(dtls_interop.Results(), "interop-results")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Put the test of the page behind those whose results it needs."""
    items.sort(key=lambda item: item.name == "test_page_lists_what_has_passed")
