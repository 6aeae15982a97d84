"""A MkDocs hook: ``lang: pt-BR`` in a page's front matter becomes ``<html lang="pt-BR">``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.pages import Page


def on_post_page(output: str, /, *, page: Page, **_: Any) -> str:
    """Set the page's language in place of the theme's."""
    language = page.meta.get("lang")
    if language is None:
        return output
    output, replaced = re.subn(r'(<html\b[^>]*\blang=)"[^"]*"', rf'\1"{language}"', output, count=1)
    if not replaced:
        raise ValueError(f"{page.file.src_uri}: the theme has no <html lang> to replace")
    return output
