"""Runs that skip tests, and the program that installs the required tools."""

import ast
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import skips
import tools
from skips import UNKNOWN
from support import HELPERS

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

TESTS = Path(__file__).parents[1]

SKIPS = re.compile(r"(pytest\.)?(mark\.)?(skip|skipif|importorskip)")

# Tests that continuous integration must not skip.
REQUIRED = {"the load generator is not built: make test builds it"}

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
    assert any(re.match(allowed.reason, reason) for reason, _ in reasons())


@functools.cache
def reasons():
    """Find the reasons in the calls that skip tests, with their places.

    A reason that is computed, such as the text of an exception, is not among them.
    """
    found = []
    for path in TESTS.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        constants = {
            node.targets[0].id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and SKIPS.fullmatch(ast.unparse(node.func)):
                given = [word.value for word in node.keywords if word.arg == "reason"]
                if ast.unparse(node.func) == "pytest.skip":
                    given += node.args
                texts = [text(each, constants) for each in given]
                place = f"{path.relative_to(TESTS)}:{node.lineno}"
                found += [(each, place) for each in texts if each is not None]
    return found


def text(node, constants):
    """Return the text of an expression, with ``?`` for its variables, or None."""
    match node:
        case ast.Constant(value=str(value)):
            return value
        case ast.Name(id=name) if name in constants:
            return text(constants[name], {})
        case ast.Name(id=name) | ast.Attribute(attr=name) if name.isupper():
            return getattr(skips, name)
        case ast.JoinedStr(values=parts):
            return "".join(text(part, constants) or "?" for part in parts)
        case ast.FormattedValue(value=value):
            return text(value, constants)
    return None


def test_every_reason_that_tests_give_is_allowed():
    assert len(reasons()) > 50
    unknown = [(reason, place) for reason, place in reasons() if skips.why_not(reason) == UNKNOWN]
    assert [found for found in unknown if found[0] not in REQUIRED] == []
    assert {reason for reason, _ in unknown} == REQUIRED


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ('pytest.skip("no moon")', "no moon"),
        ('pytest.mark.skipif(True, reason="no moon")', "no moon"),
        ('pytest.skip(f"{skips.NO_ROOT} fly to {place}")', "only root may fly to ?"),
        ("pytest.skip(NO_IPV6)", skips.NO_IPV6),
        ("pytest.skip(MOON)", "no moon"),
        ("pytest.skip(str(error))", None),
    ],
)
def test_reasons_are_found(monkeypatch, tmp_path, source, reason):
    (tmp_path / "test_it.py").write_text(f'MOON = "no moon"\n{source}\n', encoding="utf-8")
    monkeypatch.setattr(sys.modules[__name__], "TESTS", tmp_path)
    found = reasons.__wrapped__()
    assert found == ([(reason, "test_it.py:2")] if reason else [])


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
