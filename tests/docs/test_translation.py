"""The Portuguese course has every page of the English tutorial, with the same programs."""

import ast
import re
from itertools import pairwise

import pytest
import yaml
from sybil import Document
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

from documents import INFO, ROOT

ENGLISH, PORTUGUESE = ROOT / "docs/tutorial", ROOT / "docs/pt"
# The pages of the tutorial, in its order. The course has others as well.
TRANSLATIONS = {
    "datagrams.md": "datagramas.md",
    "servers.md": "servidores.md",
    "encryption.md": "criptografia.md",
}


def blocks(path):
    """Return the code blocks of a page: their languages, whether they are files, their sources."""
    document = Document(path.read_text(encoding="utf-8"), str(path))
    lexemes = [region.lexemes for region in RawFencedCodeBlockLexer(INFO)(document)]
    return [(each["language"], bool(each["title"]), each["source"]) for each in lexemes]


def interface(source):
    """Return the attributes and keyword arguments that a program uses, which are not translated."""
    names = [
        node.attr if isinstance(node, ast.Attribute) else node.arg
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute | ast.keyword)
    ]
    # A literal of bytes becomes an encoded text if its translation has accents.
    return [name for name in names if name != "encode"]


def headings(path):
    """Return the levels of the headings of a page."""
    text = re.sub(r"(?ms)^```.*?^```$", "", path.read_text(encoding="utf-8"))
    return re.findall(r"(?m)^#+(?= )", text)


def navigation(folder):
    """Return the names of the pages of a folder in the site's navigation, in order."""

    def pages(entry):
        if isinstance(entry, str):
            yield entry
        else:
            for each in entry.values() if isinstance(entry, dict) else entry:
                yield from pages(each)

    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    return [page.removeprefix(folder) for page in pages(nav) if page.startswith(folder)]


def test_every_page_of_the_tutorial_has_a_translation():
    assert {path.name for path in ENGLISH.glob("*.md")} == set(TRANSLATIONS)


@pytest.mark.parametrize(("english", "portuguese"), TRANSLATIONS.items())
def test_translation_has_the_same_sections_and_programs(english, portuguese):
    original, translation = blocks(ENGLISH / english), blocks(PORTUGUESE / portuguese)
    assert [block[:2] for block in translation] == [block[:2] for block in original]
    for (language, _, source), (_, _, translated) in zip(original, translation, strict=True):
        if language == "python":
            assert interface(translated) == interface(source)
    assert headings(PORTUGUESE / portuguese) == headings(ENGLISH / english)


def test_navigation_has_the_translations_in_the_same_order():
    assert navigation("tutorial/") == [*TRANSLATIONS]
    course = navigation("pt/")
    assert [name for name in course if name in TRANSLATIONS.values()] == [*TRANSLATIONS.values()]
    assert sorted(course) == sorted(path.name for path in PORTUGUESE.glob("*.md"))


def test_first_page_of_the_course_lists_the_others():
    first, *others = navigation("pt/")
    text = (PORTUGUESE / first).read_text(encoding="utf-8")
    assert re.findall(r"(?m)^\d\. .*?\(([\w-]+\.md)\)", text) == others


def test_each_page_of_the_course_links_to_the_next():
    for name, following in pairwise(navigation("pt/")):
        text = (PORTUGUESE / name).read_text(encoding="utf-8")
        assert re.findall(r"(?m)^\[A seguir: [^]]*\]\(([^)]*)\)", text) == [following]
