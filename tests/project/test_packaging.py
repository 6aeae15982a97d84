"""The installed package: its imports, its metadata, and how it is built."""

import os
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


# Calls the backend as pip does, with a maturin that only prints its arguments.
BACKEND = f"""
import os, sys, types
maturin = sys.modules["maturin"] = types.ModuleType("maturin")
maturin.build_wheel = maturin.build_editable = lambda _: print(os.environ["MATURIN_PEP517_ARGS"])
sys.path.insert(0, {str(ROOT / "scripts")!r})
import build_backend
build_backend.build_wheel("folder")
"""


@pytest.mark.parametrize(
    ("pkg_config", "variables", "arguments"),
    [
        ("exit 0", {}, ""),
        ("exit 1", {}, "--features vendored"),
        (None, {}, "--features vendored"),
        ("exit 0", {"TOMADA_DTLS": "no"}, "--no-default-features --features python"),
        (None, {"TOMADA_DTLS": "no"}, "--no-default-features --features python"),
        ("exit 1", {"MATURIN_PEP517_ARGS": "--locked"}, "--locked --features vendored"),
        ("exit 1", {"MATURIN_PEP517_ARGS": "-F dtls"}, "-F dtls"),
    ],
)
def test_installing_uses_the_openssl_of_this_machine(tmp_path, pkg_config, variables, arguments):
    if pkg_config is not None:
        program = tmp_path / "pkg-config"
        program.write_text(f"#!/bin/sh\n{pkg_config}\n", encoding="utf-8")
        program.chmod(0o700)
    unset = {"MATURIN_PEP517_ARGS", "TOMADA_DTLS"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"PATH": str(tmp_path), **variables}
    command = [sys.executable, "-I", "-c", BACKEND]
    said = subprocess.check_output(command, env=environment, text=True).splitlines()
    assert said[-1] == arguments
    takes_minutes = ["compiling OpenSSL, which takes about three minutes"] * (len(said) - 1)
    assert [line.partition(":")[0] for line in said[:-1]] == takes_minutes
    assert bool(takes_minutes) == ("vendored" in arguments)
