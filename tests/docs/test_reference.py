"""The reference documentation lists every public name."""

import re
from pathlib import Path

import pytest

import tomada
import tomada.asyncio
import tomada.testing
from tomada import _core

PAGES = Path(__file__).parents[2] / "docs" / "reference"
TEXT = {path.name: path.read_text(encoding="utf-8") for path in PAGES.glob("*.md")}
SHOWN = {name for text in TEXT.values() for name in re.findall(r"^::: (\S+)", text, re.MULTILINE)}

PUBLIC = [f"tomada.{name}" for name in tomada.__all__ if not name.startswith("_")]
PUBLIC += [f"tomada.asyncio.{name}" for name in tomada.asyncio.__all__]
PUBLIC += [
    f"{getattr(tomada.testing, name).__module__}.{name}"
    for name in tomada.testing.__all__
    if name != "strategies"
]


@pytest.mark.parametrize("name", [*PUBLIC, "tomada._core.Socket"])
def test_public_name_is_documented(name):
    assert name in SHOWN


@pytest.mark.parametrize("name", _core.CONSTANTS)
def test_constant_is_documented(name):
    assert f"`{name}`" in TEXT["constants.md"]


def test_documented_constants_exist():
    names = set(
        re.findall(r"`((?:SO|SCM|SOF|IP|IPV6|UDP|MSG|MCAST)_[A-Z0-9_]+)`", TEXT["constants.md"])
    )
    assert names - {"SO_REUSEPORT"} <= set(_core.CONSTANTS)
