"""The reference documentation lists every public name."""

import ast
import re
from pathlib import Path

import pytest

from tomada import _core

ROOT = Path(__file__).parents[2]
TEXT = {path.name: path.read_text(encoding="utf-8") for path in ROOT.glob("docs/reference/*.md")}
SHOWN = {name for text in TEXT.values() for name in re.findall(r"^::: (\S+)", text, re.MULTILINE)}
SHOWN_NAMES = {name.rpartition(".")[2] for name in SHOWN}

# Classes that pages show under the names that the core gives them, and a module of functions.
ELSEWHERE = {"tomada.dtls.Session": "DtlsSession", "tomada.testing.strategies": "datagrams"}


def public_names():
    """Read the public names of all public modules, without importing what they need."""
    for path in [ROOT / "python/tomada/__init__.py", *ROOT.glob("python/tomada/[!_]*.py")]:
        module = "tomada" if path.stem == "__init__" else f"tomada.{path.stem}"
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            is_list = isinstance(node, ast.Assign) and isinstance(node.value, ast.List)
            if is_list and ast.unparse(node.targets[0]) == "__all__":
                yield from (f"{module}.{name}" for name in ast.literal_eval(node.value))


@pytest.mark.parametrize("name", [name for name in public_names() if "__" not in name])
def test_public_name_is_documented(name):
    shown = ELSEWHERE.get(name, name.rpartition(".")[2])
    # A text is enough for a constant.
    is_in_text = shown.isupper() and any(f"`{shown}`" in text for text in TEXT.values())
    assert shown in SHOWN_NAMES or is_in_text


def test_public_names_of_all_modules_are_found():
    modules = {name.rpartition(".")[0] for name in public_names()}
    assert {"tomada", "tomada.asyncio", "tomada.dtls", "tomada.sinks", "tomada.trio"} <= modules


def test_socket_is_documented():
    assert "tomada.socket.socket" in SHOWN


@pytest.mark.parametrize("name", _core.CONSTANTS)
def test_constant_is_documented(name):
    assert f"`{name}`" in TEXT["constants.md"]


def test_documented_constants_exist():
    names = set(
        re.findall(r"`((?:SO|SCM|SOF|IP|IPV6|UDP|MSG|MCAST)_[A-Z0-9_]+)`", TEXT["constants.md"])
    )
    assert names - {"SO_REUSEPORT"} <= set(_core.CONSTANTS)
