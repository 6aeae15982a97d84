"""Runs that skip tests, and the program that installs the required tools."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import skips
import tools
from support import HELPERS

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

TESTS = Path(__file__).parents[1]

MODULE = """
import pytest, tools
from skips import needs, program

tools.PACKAGES |= {"no-such-program": "no-such-package"}

@needs("no-such-program")
def test_it_uses_a_program():
    raise AssertionError

def test_it_uses_one_as_well():
    program("no-such-program")

def test_it_skips():
    pytest.skip(REASON)
"""


def pytest_run(folder, reason, *arguments):
    """Run a module of tests; return its status and its lines of output."""
    path = folder / "test_it.py"
    path.write_text(f"REASON = {reason!r}\n{MODULE}", encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    paths = filter(None, [str(HELPERS), os.getenv("PYTHONPATH")])
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    command = [sys.executable, "-m", "pytest", "-p", "skips", "-p", "no:cacheprovider"]
    options = ["-c", os.devnull, "--rootdir", str(folder), *arguments]
    done = subprocess.run(
        [*command, *options, path], capture_output=True, text=True, env=environment, check=False
    )
    return done.returncode, done.stdout.splitlines()


def test_plain_run_lists_tools_that_would_enable_tests_and_passes(tmp_path):
    status, lines = pytest_run(tmp_path, "no reason at all")
    assert status == 0
    assert "2 tests skipped; `make test-tools` installs no-such-program for them" in lines
    assert not any("no reason at all" in line for line in lines)


def test_strict_run_fails_for_a_reason_that_is_not_allowed(tmp_path):
    status, lines = pytest_run(tmp_path, "no reason at all", "--strict-skips")
    assert status == 1
    (line,) = [line for line in lines if "::test_it_skips" in line]
    assert line.endswith(": no reason at all (tests/helpers/skips.py does not allow this reason)")
    assert not any("::test_it_uses" in line for line in lines)


def test_strict_run_passes_if_only_unavailable_programs_are_missing(tmp_path):
    status, _ = pytest_run(tmp_path, "there is no no-such-program command", "--strict-skips")
    assert status == 0


@pytest.mark.parametrize(
    ("reason", "wrong"),
    [
        ("there is no sh command", "tests/tools.py does not know this program"),
        ("there is no cc command", "but there is one"),
        ("there is no tshark command", None),
        ("this machine has no IPv6", None),
        ("network namespaces want root", "tests/helpers/skips.py does not allow this reason"),
    ],
)
def test_why_not_judges_each_reason(monkeypatch, reason, wrong):
    monkeypatch.setattr(tools, "find", {"cc": "/usr/bin/cc"}.get)
    monkeypatch.setattr(skips, "speaks_ipv6", lambda: False)
    assert skips.why_not(reason) == wrong


@pytest.mark.parametrize("allowed", skips.ALLOWED, ids=lambda allowed: allowed.reason)
def test_every_allowed_reason_is_explained_and_used(allowed):
    assert allowed.why
    assert isinstance(allowed.holds(), bool)
    own = {"skips.py", "test_skips.py"}
    paths = [path for path in TESTS.glob("*/*.py") if path.name not in own]
    sources = [path.read_text(encoding="utf-8") for path in paths]
    words = allowed.reason.replace("\\", "")
    if words not in (skips.NO_ROOT, skips.NO_IPV6, skips.NO_DTLS):  # which have names
        assert any(words in source for source in sources)


@pytest.mark.parametrize("reason", ["could not import 'numpy'", "No module named 'numpy'"])
@pytest.mark.parametrize("lacks", [False, True])
def test_package_without_wheels_may_be_missing(monkeypatch, reason, lacks):
    monkeypatch.setattr(skips, "lacks_wheels", lambda: lacks)
    assert (skips.why_not(reason) is None) == lacks
    assert list(skips.summary([reason])) == ["1 test skipped that use Python packages: numpy"]


@pytest.fixture
def apt(monkeypatch):
    """Replace apt-get by one that has all packages except that of ``nft``; return its calls."""
    installed, calls = set(), []

    def find(program):
        return program if tools.PACKAGES[program] in installed else None

    def run(command, _):
        calls.append(command[:2])
        packages = set(command) & set(tools.PACKAGES.values())
        if "nftables" in packages:
            return False
        installed.update(packages)
        return True

    monkeypatch.setattr(tools, "find", find)
    monkeypatch.setattr(tools, "run", run)
    monkeypatch.setattr(tools, "PAUSE", 0)
    monkeypatch.setattr(tools, "may_install", lambda: True)
    monkeypatch.setattr(tools.shutil, "which", lambda program: program)
    return calls


def test_tools_that_cannot_be_installed_are_named_and_the_rest_is_installed(apt, capsys):
    tools.main()
    assert capsys.readouterr().out.splitlines() == [
        "could not install: nftables",
        "tests are skipped that use: nft",
    ]
    assert apt.count(["apt-get", "install"]) == tools.ATTEMPTS + len(set(tools.PACKAGES.values()))


def test_tools_lists_the_programs_on_systems_other_than_debian(apt, monkeypatch, capsys):
    monkeypatch.setattr(tools.shutil, "which", lambda _: None)
    tools.main()
    line = "this is neither Debian nor Ubuntu; the tests also use: "
    assert capsys.readouterr().out == line + " ".join(tools.PACKAGES) + "\n"
    assert not apt


def test_tools_shows_the_command_without_root(apt, monkeypatch, capsys):
    monkeypatch.setattr(tools, "may_install", lambda: False)
    tools.main()
    assert capsys.readouterr().out.startswith("run this as root: apt-get install bind9-dnsutils ")
    assert not apt
