"""A MkDocs hook: pages that are files of the repository, the version, and a check of the reference.

The change log is a page. Its links into the documentation become links of the site, and others
lead to the repository. After the build, each public name, and each public method and attribute of a
public class, must be on a page of the reference.
"""

from __future__ import annotations

import logging
import re
import sys
import tomllib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import griffe
from mkdocs.structure.files import File

sys.path.append(str(Path(__file__).parent))
from griffe_stubs import ALIASES, Stubs

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\((?!https?:|#)([^)]*)\)")
LINE = re.compile(r"^(\S+) py:\w+ ", re.MULTILINE)



def on_config(config: MkDocsConfig, **_: Any) -> MkDocsConfig:
    """Add the version to the configuration, for the header."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    config.extra["version_text"] = project["version"]
    return config


def on_files(files: Files, /, *, config: MkDocsConfig, **_: Any) -> Files:
    """Add the change log."""
    source = f"{config.repo_url}/blob/main"

    def moved(link: re.Match[str]) -> str:
        target = link[1]
        inside = target.startswith("docs/")
        return f"]({target.removeprefix('docs/') if inside else f'{source}/{target}'})"

    text = LINK.sub(moved, (ROOT / "CHANGELOG.md").read_text("utf-8"))
    files.append(File.generated(config, "changelog.md", content=text))
    return files


def on_post_build(*, config: MkDocsConfig, **_: Any) -> None:
    """Warn about names that the reference does not show; with ``--strict``, the build then fails."""
    inventory = Path(config.site_dir, "objects.inv").read_bytes()
    shown = set(LINE.findall(zlib.decompress(inventory.split(b"\n", 4)[4]).decode()))
    for names in public_names():
        if shown.isdisjoint(names):
            logging.getLogger("mkdocs.reference").warning("%s is not in the reference", names[0])


def public_names() -> Iterator[list[str]]:
    """Find all public names, each with the other paths at which a page may show it."""
    package = griffe.load(
        "tomada",
        search_paths=[str(ROOT / "python")],
        allow_inspection=False,
        extensions=griffe.load_extensions(Stubs),
    )
    modules = [package, *package.modules.values()]
    for module in modules:
        if module.name.startswith("_") or module.exports is None:
            continue
        for name in module.exports:
            found = module[str(name)]
            target = found.final_target if found.is_alias else found
            if name.startswith("_") or target.is_module:
                continue
            paths = [f"{module.path}.{name}", target.path]
            yield paths
            if target.is_class:
                yield from members_of(target, paths)


def members_of(cls: griffe.Class, paths: list[str]) -> Iterator[list[str]]:
    """Find the public members that a class has, or inherits from tomada's classes."""
    for name, member in cls.all_members.items():
        if not name.startswith("_") and member.canonical_path.startswith("tomada."):
            canonical = ALIASES.get(member.canonical_path, member.canonical_path)
            yield [*(f"{path}.{name}" for path in paths), canonical]
