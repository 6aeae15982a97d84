"""Fixtures: families of addresses, event loops, and plain ``socket`` programs to talk to."""

import asyncio
import contextlib
import inspect
import os
import resource
import signal
import socket as std
import sys
import sysconfig
import time

import pytest

pytest.register_assert_rewrite(
    "answering",
    "command",
    "faults",
    "floods",
    "linked",
    "links",
    "parity",
    "support",
    "traffic",
    "transports",
)

# A shell starts background jobs with SIGINT ignored, and the programs that the tests start inherit
# that. A handler here resets SIGINT to its default in those programs.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Imported after pytest has registered them for assertion rewriting.
import families  # noqa: E402
import faults  # noqa: E402
import links  # noqa: E402
import parallel  # noqa: E402
import skips  # noqa: E402
from answering import same  # noqa: E402
from command import Listening  # noqa: E402
from skips import pytest_addoption  # noqa: E402, F401
from support import FREE, KINDS, Kind, Peer, eventually, has_lock  # noqa: E402
from tomada import socket  # noqa: E402
from transports import LOOPS, Recorder, turns  # noqa: E402

# Name servers are not tested here: if one does not respond, query only once, and briefly.
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")


def pytest_configure(config):
    families.configure(config)
    parallel.configure(config)
    skips.pytest_configure(config)


@pytest.hookimpl(tryfirst=True)  # before pytest selects tests by their markers
def pytest_collection_modifyitems(config, items):
    """Mark families, and the tests that must not run in several threads."""
    families.mark(items)
    if int(getattr(config.option, "parallel_threads", 1)) > 1:
        parallel.mark(items)


def pytest_sessionfinish(session):
    """Fail if an extension module has enabled the global lock: the run then proves nothing."""
    if sysconfig.get_config_var("Py_GIL_DISABLED") and has_lock():
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
        print("\nan extension module has switched the global lock on")


@pytest.fixture(scope="session")
def speaks_ipv6():
    return skips.speaks_ipv6()


@pytest.fixture(params=KINDS)
def kind(request, tmp_path, speaks_ipv6):
    """Run the test with each family of addresses."""
    if request.param == "AF_INET6" and not speaks_ipv6:
        pytest.skip(skips.NO_IPV6)
    return Kind(request.param, tmp_path)


@pytest.fixture
def inet(tmp_path):
    return Kind("AF_INET", tmp_path)


@pytest.fixture
def inet6(tmp_path, speaks_ipv6):
    if not speaks_ipv6:
        pytest.skip(skips.NO_IPV6)
    return Kind("AF_INET6", tmp_path)


@pytest.fixture
def unix(tmp_path):
    return Kind("path", tmp_path)


@pytest.fixture
def peer():
    """Start plain standard-library sockets, each in its own process."""
    with contextlib.ExitStack() as stack:

        def start(kind):
            return stack.enter_context(Peer(kind.family, kind.address()))

        yield start


@pytest.fixture(scope="session")
def namespaces():
    """Require network namespaces."""
    if (why_not := links.why_not()) is not None:
        pytest.skip(why_not)


@pytest.fixture
def network(namespaces):  # noqa: ARG001 - skips the test without them
    """Make network namespaces that are removed after the test."""
    with contextlib.ExitStack() as stack:
        yield links.Network(stack)


@pytest.fixture(scope="module")
def many_descriptors():
    """Allow this process one socket for each used port."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="session")
def faults_library(tmp_path_factory):
    return faults.build(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def faulty(faults_library, tmp_path):
    """Run programs whose system calls fail."""
    return faults.Faulty(faults_library, tmp_path)


@pytest.fixture
def interruptible():
    """Let the processes that a test starts react to Ctrl-C, even if this process ignores it.

    A shell starts its background jobs with SIGINT ignored, and their children inherit that.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def unlocked(request):
    """Let a server use threads even with a global lock: they work, but are not faster."""
    if not FREE:
        monkeypatch = request.getfixturevalue("monkeypatch")
        monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)


@pytest.fixture
def handler():
    """Install a handler of SIGUSR1, and provide a list that grows with each call of the handler."""
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


@pytest.fixture
def problems():
    """Collect the calls of the loop's exception handler. Calls that a test leaves there fail it."""
    contexts = []
    yield contexts
    assert not contexts


@pytest.fixture(params=LOOPS)
def runner(request, problems):
    """Run the test on each kind of event loop, as a coroutine if it is one."""
    with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
        runner.get_loop().set_exception_handler(lambda _, context: problems.append(context))
        yield runner


@pytest.fixture
def endpoint(runner):
    """Make datagram endpoints on the running loop, bound to a free address by default.

    They are closed after the test.
    """
    opened = []

    async def make(factory=Recorder, **arguments):
        if not arguments:
            arguments = {"local_addr": ("127.0.0.1", 0)}
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_datagram_endpoint(factory, **arguments)
        opened.append(transport)
        return transport, protocol

    async def end():
        for transport in opened:
            transport.abort()
        await turns(2)

    yield make
    runner.run(end())


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Run a test that is a coroutine."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    pyfuncitem.funcargs["runner"].run(pyfuncitem.obj(**arguments))
    return True


@pytest.fixture(params=[None, same], ids=["without match", "with match"])
def match(request):
    """Make clients, without and with the argument ``match``."""
    return request.param


@pytest.fixture
def sender():
    """Open a plain socket."""
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


@pytest.fixture
def stamped():
    """Let the kernel record when each datagram arrives, as long as the test runs.

    It starts to do so some time after the first socket of the machine asks for it. Until then,
    ``SO_TIMESTAMPING`` reports nothing.
    """
    software = socket.SOF_TIMESTAMPING_RX_SOFTWARE | socket.SOF_TIMESTAMPING_SOFTWARE
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setsockopt(std.SOL_SOCKET, socket.SO_TIMESTAMPING, software)

        def is_stamped():
            sock.sendto(b"x", sock.getsockname())
            return sock.recvmsg(1, 100)[1] != []

        eventually(is_stamped)
        yield


@pytest.fixture
def raw():
    """Open a raw socket; its datagrams begin with the UDP header."""
    try:
        sock = std.socket(std.AF_INET, std.SOCK_RAW, std.IPPROTO_UDP)
    except PermissionError:
        pytest.skip(skips.NO_RAW)
    with sock:
        yield sock


@pytest.fixture
def listening(interruptible):  # noqa: ARG001 - terminates the programs
    """Start ``tomada listen``."""
    started = []

    def start(*arguments, **options):
        started.append(Listening(*arguments, **options))
        return started[-1]

    yield start
    for item in started:
        item.__exit__()
