"""The installed package: its imports, its metadata, and how it is built."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import pytest

import tomada
from skips import HAS_DTLS, NO_DTLS
from support import run

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_package_works_with_only_the_standard_library():
    command = [sys.executable, "-I", "-W", "error", ROOT / "tests" / "smoke.py"]
    command += [] if HAS_DTLS else ["without-dtls"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"tomada {tomada.__version__} works")


# Modules that a program imports only if it asks for them: event loops, encryption, and sinks.
OPTIONAL = {"asyncio", "ssl", "trio", "tomada._asyncio", "tomada._sinks", "tomada.dtls"}
# Modules that a program does not need either, if it only uses sockets.
SERVICES = {"logging", "multiprocessing", "re", "tomada.client", "tomada.server", "typing"}

IMPORTED = """
import sys
before = set(sys.modules)
{}
print(*set(sys.modules) - before)
"""


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import tomada", OPTIONAL | SERVICES),
        ("from tomada import socket", OPTIONAL | SERVICES),
        ("from tomada import Client", OPTIONAL),
        ("from tomada import Server", OPTIONAL),
        ("import tomada.dtls", OPTIONAL - {"tomada.dtls"}),
    ],
)
def test_importing_imports_nothing_optional(statement, unwanted):
    if statement == "import tomada.dtls" and not HAS_DTLS:
        pytest.skip(NO_DTLS)
    imported = set(run(IMPORTED.format(statement)).split())
    assert "tomada._core" in imported
    assert not imported & unwanted


def test_versions_agree():
    cargo = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))["package"]
    installed = metadata("tomada")["Version"]
    assert PROJECT["version"] == cargo["version"] == tomada.__version__ == installed
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(\d\S*)\]", changes, re.MULTILINE)[0] == PROJECT["version"]


def test_package_has_no_dependencies():
    needed = metadata("tomada").get_all("Requires-Dist") or []
    assert [line for line in needed if "extra ==" not in line] == []


@pytest.mark.parametrize("name", ["LICENSE-MIT", "LICENSE-APACHE"])
def test_package_includes_a_licence(name):
    assert name in (metadata("tomada").get_all("License-File") or [])
    assert (ROOT / name).is_file()
