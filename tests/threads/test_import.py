"""Importing the package does not enable the global lock in an interpreter without it."""

import pytest

from support import FREE, run

pytestmark = pytest.mark.thread_unsafe(reason="it starts threads itself")


@pytest.mark.skipif(not FREE, reason="this interpreter has a global lock")
def test_import_does_not_enable_the_global_lock():
    program = """
import sys
import tomada, tomada.asyncio, tomada.server, tomada.client, tomada.cli
from tomada import socket
print(sys._is_gil_enabled())
"""
    assert run(program) == "False\n"
