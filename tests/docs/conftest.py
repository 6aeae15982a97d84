"""Fixtures for tests of the examples and the documentation."""

import contextlib
import os
import socket as std

import pytest

from examples import EXAMPLES
from support import DEVELOPMENT, Child

ANY_PORT = "--listen", "127.0.0.1:0"


@pytest.fixture
def start(interruptible):  # noqa: ARG001
    """Start an example server, and provide it with its port."""
    with contextlib.ExitStack() as stack:

        def start(name, *arguments, where=ANY_PORT):
            child = stack.enter_context(
                Child(EXAMPLES / name, *where, *arguments, env=os.environ | DEVELOPMENT)
            )
            line = child.line()
            assert line.startswith("listening on 127.0.0.1:"), line
            return child, int(line.rpartition(":")[2])

        yield start


@pytest.fixture
def port():
    """Return a free port, so that a server on the documented one does not matter."""
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
