"""Importing the package leaves an interpreter without the global lock as it was."""

import pytest

from support import FREE, run


@pytest.mark.skipif(not FREE, reason="this interpreter has a global lock")
def test_no_module_brings_the_global_lock_back():
    program = """
import sys
import tomada, tomada.asyncio, tomada.server, tomada.client, tomada.cli
from tomada import socket
print(sys._is_gil_enabled())
"""
    assert run(program) == "False\n"
