"""Tests of sessions with other implementations, and the page of the documentation that lists them.

``@interop(peer, role, what)`` marks a test: ``role`` is tomada's, and the texts may contain
parameters of the test. ``make interop`` writes the page from the tests that have passed.
"""

import importlib.metadata
import platform
import re
import subprocess
from pathlib import Path

import pytest

import tools
from tomada import dtls

PAGE = Path(__file__).parents[2] / "docs/reference/dtls-interop.md"
ROLES = ("server", "client")
# The descriptions of sessions, by the test parameters that select them.
WHAT = {
    "rsa": "RSA certificate",
    "ecdsa": "ECDSA certificate",
    "mutual": "certificates of both sides",
    "small": "messages in fragments, datagrams of 300 bytes",
    "psk": "pre-shared key",
    "resumed": "resumed session",
}
HEADER = """\
# DTLS interoperability

The test suite runs these sessions, in which both sides send data. `make interop` writes this page
from its results; the suite fails if they differ.

"""
PACKAGES = ("trio", "pyOpenSSL", "aiortc", "python-mbedtls")
COLUMNS = ("with", "session", "tomada is the server", "tomada is the client")


def interop(peer, role, what):
    """Mark a test of sessions with another implementation."""
    assert role in ROLES
    return pytest.mark.interop(peer, role, what)


def case_of(item):
    """Return the case that a test covers (peer, what, and tomada's role), or ``None``."""
    marker = item.get_closest_marker("interop")
    if marker is None:
        return None
    peer, role, what = marker.args
    parameters = getattr(item, "callspec", None)
    values = parameters.params if parameters else {}
    what = what.format(**values)
    return peer.format(**values), WHAT.get(what, what), role


class Results:
    """A plug-in that records which of the tests have passed."""

    def __init__(self):
        self.passed = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        case = case_of(item)
        if case is not None and call.when == "call" and report.passed:
            self.passed.add(case)
        return report


def page_of(cases):
    """Return the page's table of cases, with the versions of the peers above it."""
    text = HEADER + versions() + "\n"
    text += line(COLUMNS) + line(["---"] * len(COLUMNS))
    for peer, what in sorted({case[:2] for case in cases}, key=str):
        marks = ["yes" if (peer, what, role) in cases else "" for role in ROLES]
        text += line([peer, what, *marks])
    return text


def line(cells):
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|\n"


def cases_in(text):
    """Return the cases in the page's table."""
    rows = [row.strip("|").split("|") for row in text.splitlines() if row.startswith("|")]
    cells = [[cell.strip() for cell in row] for row in rows[2:]]
    return {
        (peer, what, role)
        for peer, what, *marks in cells
        for role, mark in zip(ROLES, marks, strict=True)
        if mark == "yes"
    }


def versions():
    """Return a sentence about the versions of the programs and packages."""
    ours = re.search(r"OpenSSL [\w.]+", dtls.OPENSSL_VERSION)[0]
    theirs = [
        program("openssl", "version"),
        program("gnutls-cli", "--version").replace("gnutls-cli", "GnuTLS"),
        program("coap-client-openssl").replace("coap-client-openssl v", "libcoap "),
        program("tshark", "--version").replace("TShark (Wireshark)", "Wireshark"),
        *(f"{name} {installed(name)}" for name in PACKAGES if installed(name)),
    ]
    peers = ", ".join(text for text in theirs if text)
    return f"Last run: CPython {platform.python_version()}, tomada with {ours}; {peers}.\n"


def program(name, *arguments):
    """Return the name and version that a program prints, or an empty string."""
    path = tools.find(name)
    if path is None:
        return ""
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)
    found = re.search(r"^.*?\d+\.\d+[\w.]*", done.stdout + done.stderr)
    return found[0].rstrip(".") if found else ""


def installed(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
