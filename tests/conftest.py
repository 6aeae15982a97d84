"""Fixtures: families of addresses, and plain ``socket`` programs to talk to."""

import contextlib
import os
import signal
import socket as std
import time

import pytest

pytest.register_assert_rewrite("parity", "support", "traffic")

# Whoever starts the tests in the background of a shell has them ignore SIGINT, and the programs that
# they start with them. One that has a handler starts programs that do not.
signal.signal(signal.SIGINT, signal.default_int_handler)

from support import KINDS, Kind, Peer  # noqa: E402 - after its assertions are rewritten

# A name server that does not answer is not what is tested: ask once, and not for long.
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")


@pytest.fixture(scope="session")
def speaks_ipv6():
    try:
        with std.socket(std.AF_INET6, std.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.fixture(params=KINDS)
def kind(request, tmp_path, speaks_ipv6):
    """Every family of addresses in turn."""
    if request.param == "AF_INET6" and not speaks_ipv6:
        pytest.skip("this machine has no IPv6")
    return Kind(request.param, tmp_path)


@pytest.fixture
def inet(tmp_path):
    return Kind("AF_INET", tmp_path)


@pytest.fixture
def inet6(tmp_path, speaks_ipv6):
    if not speaks_ipv6:
        pytest.skip("this machine has no IPv6")
    return Kind("AF_INET6", tmp_path)


@pytest.fixture
def unix(tmp_path):
    return Kind("path", tmp_path)


@pytest.fixture
def peer():
    """Start plain standard-library sockets, each in a process of its own."""
    with contextlib.ExitStack() as stack:

        def start(kind):
            return stack.enter_context(Peer(kind.family, kind.address()))

        yield start


@pytest.fixture
def interruptible():
    """Let the processes that a test starts heed Ctrl-C, even where this one is told not to.

    A shell makes its background jobs deaf to it, and their children inherit that.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def handler():
    """Install a handler of SIGUSR1, and give a list that grows with each of its calls."""
    calls = []

    def install(action=lambda: None):
        def handle(*_):
            calls.append(time.monotonic())
            action()

        signal.signal(signal.SIGUSR1, handle)
        return calls

    before = signal.getsignal(signal.SIGUSR1)
    yield install
    signal.signal(signal.SIGUSR1, before)
