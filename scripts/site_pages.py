"""A MkDocs hook: the change log as a page, the version, and a check of the reference.

The change log is a page of the site. Its links to the documentation become links within the site,
and its other links go to the repository. After the build, each public name, and each public method
and attribute of a public class, must be on a page of the reference. For an attribute, it is enough
that the docstring of its class names it; for a constant, that the text of a page does.
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
from griffe_stubs import Stubs

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


def on_post_page(output: str, **_: Any) -> str:
    """Label the search for screen readers, because the theme does not."""
    output, replaced = re.subn(r'(class="md-search") ', r'\1 aria-label="Search" ', output)
    if not replaced:
        raise ValueError("the theme has no search to name")
    return output


def on_post_build(*, config: MkDocsConfig, **_: Any) -> None:
    """Warn about names that the reference lacks; with ``--strict``, the build then fails."""
    inventory = Path(config.site_dir, "objects.inv").read_bytes()
    shown = set(LINE.findall(zlib.decompress(inventory.split(b"\n", 4)[4]).decode()))
    pages = [page.read_text("utf-8") for page in Path(config.docs_dir, "reference").glob("*.md")]
    in_text = {f"`{name}`" for page in pages for name in re.findall(r"`(\w+)`", page)}
    for name, places in public_names():
        if not shown & places and not in_text & places:
            logging.getLogger("mkdocs.reference").warning("%s is not in the reference", name)


def public_names() -> Iterator[tuple[str, set[str]]]:
    """Yield all public names, each with the names under which pages may show it."""
    package = griffe.load(
        "tomada",
        search_paths=[str(ROOT / "python")],
        allow_inspection=False,
        extensions=griffe.load_extensions(Stubs),
    )
    for module in [package, *package.modules.values()]:
        if module.name.startswith("_") or module.exports is None:
            continue
        for name in map(str, module.exports):
            target = module[name].final_target if module[name].is_alias else module[name]
            if name.startswith("_") or target.is_module:
                continue
            path = f"{module.path}.{name}"
            yield path, {path, target.path, *([f"`{name}`"] if target.is_attribute else [])}
            if target.is_class:
                yield from members_of(target, path)


def members_of(cls: griffe.Class, path: str) -> Iterator[tuple[str, set[str]]]:
    """Yield the public members that a class has, or inherits from tomada's classes."""
    text = cls.docstring.value if cls.docstring is not None else ""
    for name, member in cls.all_members.items():
        if name.startswith("_") or f":param {name}:" in text or f"`{name}`" in text:
            continue
        # The methods of an event loop are documented by the standard library.
        if member.canonical_path.startswith("tomada._core.LoopCore."):
            continue
        yield f"{path}.{name}", {f"{path}.{name}", f"{cls.path}.{name}", member.canonical_path}
