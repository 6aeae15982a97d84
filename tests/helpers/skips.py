"""Decides which tests may be skipped, and says how to run them.

At its end, plain ``pytest`` lists the tools that would enable skipped tests. With
``--strict-skips``, the default if ``CI`` is set, a skipped test fails the session if its program
is installed, or if its reason is not in ``ALLOWED`` or does not hold.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import socket as std
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

import tools
from support import FREE
from tomada import _core

if TYPE_CHECKING:
    from collections.abc import Callable

NO_ROOT = "only root may"
NO_RAW = f"{NO_ROOT} open a raw socket"
NO_IPV6 = "this machine has no IPv6"
NO_GRO = "this kernel has no UDP_GRO"
NO_IN_USE = "this system cannot say how much memory is in use"
NO_DTLS = "this build of tomada does not include DTLS"
HAS_DTLS = hasattr(_core, "DtlsContext")

# The message of program() and links.why_not().
NO_PROGRAM = re.compile(r"there is no (\S+) command")
# The message of pytest.importorskip, libraries and documents.py.
NO_PACKAGE = re.compile(
    r"(?:could not import |No module named )'([\w.]+)'|^(\S+) is not installed$"
)

UDP_GRO = 104  # linux/udp.h
CAP_NET_ADMIN, CAP_SYS_ADMIN = 12, 21


def program(name):
    """Return the path of a program, or skip the test if it is not installed."""
    path = tools.find(name)
    if path is None:
        pytest.skip(f"there is no {name} command")
    return path


def needs(name):
    """Mark a test that needs a program."""
    return pytest.mark.skipif(tools.find(name) is None, reason=f"there is no {name} command")


def speaks_ipv6():
    try:
        with std.socket(std.AF_INET6, std.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def has_gro():
    """Return whether the kernel coalesces received datagrams."""
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        try:
            sock.setsockopt(std.IPPROTO_UDP, UDP_GRO, 1)
        except OSError:
            return False
    return True


def knows_memory_in_use():
    """Return whether ``malloc`` has all memory and says how much is in use: glibc's does."""
    return not FREE and hasattr(ctypes.CDLL(None), "mallinfo2")


def has_fair_queueing():
    """Return whether the kernel has the queueing discipline that knows transmit times."""
    commands = tools.find("unshare"), tools.find("tc")
    if None in commands:
        return False
    unshare, tc = commands
    add = [unshare, "--net", tc, "qdisc", "add", "dev", "lo", "root", "fq"]
    return subprocess.run(add, capture_output=True, check=False).returncode == 0


def is_privileged():
    """Return whether this process has the privileges that root has outside containers."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    capabilities = int(re.search(r"^CapEff:\s*(\w+)", status, re.MULTILINE)[1], 16)
    wanted = 1 << CAP_NET_ADMIN | 1 << CAP_SYS_ADMIN
    return os.geteuid() == 0 and capabilities & wanted == wanted


UNKNOWN = "tests/helpers/skips.py does not allow this reason"


class Allowed(NamedTuple):
    """A valid reason to skip a test, if a condition holds."""

    reason: str
    """A regular expression that the reason matches from its start."""
    holds: Callable[[], bool]
    why: str
    """Why the condition cannot be avoided."""


ALLOWED = [
    Allowed(NO_ROOT, lambda: not is_privileged(), "only root may make networks"),
    Allowed(NO_IPV6, lambda: not speaks_ipv6(), "the kernel decides"),
    Allowed(NO_GRO, lambda: not has_gro(), "Linux has it since 5.0"),
    Allowed(NO_IN_USE, lambda: not knows_memory_in_use(), "the C library decides"),
    Allowed(NO_DTLS, lambda: not HAS_DTLS, "TOMADA_DTLS=no leaves it out"),
    Allowed(
        "this kernel has no fair queueing",
        lambda: not has_fair_queueing(),
        "the kernel was built without sch_fq",
    ),
    Allowed(
        "this machine has one CPU",
        lambda: len(os.sched_getaffinity(0)) == 1,
        "the test needs two",
    ),
    Allowed(
        "this machine has no link-local address",
        lambda: "fe80" not in read("/proc/net/if_inet6"),
        "tests must not change the machine's own network",
    ),
    Allowed(
        "this machine has no route for multicast",
        lambda: not any(" 0003 " in line or "\t0003\t" in line for line in routes()),
        "tests must not change the machine's routes",
    ),
    Allowed(
        "there is hardly a limit here",
        lambda: int(read("/proc/sys/net/ipv4/igmp_max_memberships") or 0) > 1000,
        "tests must not change the machine's limit",
    ),
    Allowed(
        "this interpreter was installed without its tests",
        lambda: importlib.util.find_spec("test.test_socket") is None,
        "some systems package the tests separately",
    ),
    Allowed(
        "gro is for IP",
        lambda: True,
        "AF_UNIX has no such option, but is combined with it as a parameter",
    ),
    Allowed("this interpreter has no global lock", lambda: FREE, "the test needs a global lock"),
    Allowed(
        "this interpreter has a global lock",
        lambda: not FREE,
        "the test needs an interpreter without it",
    ),
    Allowed(
        "the interpreter's allocator has reserved",
        lambda: FREE,
        "the allocator reserves more than the limits",
    ),
    Allowed(
        "python-mbedtls has no wheels for this interpreter",
        lambda: sys.version_info >= (3, 13),
        "its source needs an old release of Mbed TLS",
    ),
    Allowed(
        r"it depends on the release of 3\.12",
        lambda: sys.version_info[:2] == (3, 12),
        "both answers are right",
    ),
]


def read(path):
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""


def routes():
    return read("/proc/net/route").splitlines()


def lacks_wheels():
    """Return whether packages may be missing: not all libraries support all interpreters."""
    return FREE or sys.version_info >= (3, 15)


def pytest_addoption(parser):
    parser.addoption(
        "--strict-skips",
        action="store_true",
        default="CI" in os.environ,
        help="fail if a test is skipped for a reason that tests/helpers/skips.py does not allow",
    )


def pytest_configure(config):
    # pytest-run-parallel itself skips tests that another run covers in one thread.
    parallel = config.getoption("skip_thread_unsafe", default=False)
    strict = config.getoption("strict_skips") and not parallel
    config.pluginmanager.register(Skips(strict=strict), "skips-of-run")


class Skips:
    """A plugin that records which tests were skipped, and why."""

    def __init__(self, *, strict):
        self._strict = strict
        self._skipped = []

    def pytest_runtest_logreport(self, report):
        if report.skipped and not hasattr(report, "wasxfail"):
            self._add(report)

    def pytest_collectreport(self, report):
        if report.skipped:
            self._add(report)

    def _add(self, report):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        self._skipped.append((report.nodeid, reason.removeprefix("Skipped: ")))

    def wrong(self):
        """Return the tests that must not be skipped, each with the problem."""
        found = ((test, why_not(reason), reason) for test, reason in self._skipped)
        return [(test, reason, wrong) for test, wrong, reason in found if wrong]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session):
        if self._strict and self.wrong() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter):
        result = yield  # pytest lists every skipped test
        for line in summary([reason for _, reason in self._skipped]):
            terminalreporter.write_line(line)
        if self._strict and (wrong := self.wrong()):
            terminalreporter.section("tests that must not be skipped", red=True)
            for test, reason, why in wrong:
                terminalreporter.write_line(f"{test}: {reason} ({why})")
        return result


def why_not(reason):
    """Return the problem with skipping a test for this reason, or None."""
    if match := NO_PROGRAM.match(reason):
        if match[1] not in tools.PACKAGES:
            return "tests/tools.py does not know this program"
        return "but there is one" if tools.find(match[1]) else None
    if NO_PACKAGE.search(reason):
        return None if lacks_wheels() else "install the dependency groups `test` and `peers`"
    for allowed in ALLOWED:
        if re.match(allowed.reason, reason):
            return None if allowed.holds() else "but that is not so"
    return UNKNOWN


def summary(reasons):
    """Say in a line or two how to run the skipped tests."""
    programs = Counter(match[1] for reason in reasons if (match := NO_PROGRAM.match(reason)))
    packages = Counter(
        match[1] or match[2] for reason in reasons if (match := NO_PACKAGE.search(reason))
    )
    root = sum(reason.startswith(NO_ROOT) for reason in reasons)
    if programs:
        names = ", ".join(name for name, _ in programs.most_common())
        yield f"{tests(programs.total())} skipped; `make test-tools` installs {names} for them"
    if packages:
        names = ", ".join(sorted(packages))
        yield f"{tests(packages.total())} skipped that use Python packages: {names}"
    if root:
        yield f"{tests(root)} skipped that only root may run"


def tests(count):
    return f"{count} test{'s' * (count != 1)}"
