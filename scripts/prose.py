"""Find expressions that read as if translated, in pages, docstrings and comments.

``python scripts/prose.py`` reads every ``*.md``, ``*.py``, ``*.pyi`` and ``*.rs`` file of the
repository and prints each expression of ``RULES`` with a better one. Code, in blocks or in
backquotes, is not prose. Pages that declare another language (``lang:``) are skipped.

To overrule a finding, give a reason in the line above the paragraph, comment or docstring::

    <!-- prose: allow "tally": the name of another library's class -->
    # prose: allow "tally": the name of another library's class

An allowance without a finding is an error.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import sys
import tokenize
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
SUFFIXES = (".md", ".py", ".pyi", ".rs")

# Regular expressions over text with single spaces, each with a better wording.
# Case matters only in (?-i:...).
RULES = {
    r"(?-i:\b(?:Who|Whoever|Whose|What|Whatever)\b)(?![^.!?]*\?)": "name the thing or the person",
    r"\b(?:for|from|by|to|of) who\b": "name the person: for callers that …",
    r"(?<!\bthere )\b(?:is|are|was|were) no (?!longer\b|one\b)": "is not a …; does not have a …",
    r"\b(?:for )?want of\b": "without; because there is no …; lack of",
    r"\bas (?:you|they|we|it|one) likes?\b": "as you prefer; at your option",
    r"\bbe it\b": "whether; either",
    r"\bwould have it\b": "wants; requires",
    r"\bthere being\b": "because there is",
    r"\bso many\b": "this many; the number of",
    r"\b(?<!there are )(?<!there is )no more\b(?! than\b)": "no longer",
    r"\bat the most\b": "at most",
    r"\bonce a while\b": "occasionally; at intervals",
    r"\bin the place of\b": "instead of",
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"\bask(?:s|ed|ing)?(?: \w+)? again\b": "retransmit; retry",
    r"\bglued?(?:s)?\b|\bgluing\b": "coalesced; coalesce",
    r"\bcuts? (?:them |it )?up\b|\bcutting up\b": "split",
    r"\bcuts? (?:them |it )?off\b|\bcutting off\b": "truncated; truncate",
    r"\bt(?:ake|akes|aken|aking|ook)(?: \w+)? apart\b": "split",
    r"\bvolleys?\b": "attempt; batch",
    r"\bflying\b": "in flight",
    r"\bland(?:s|ed)?\b": "complete; arrive",
    r"\bbells?\b|\brung\b|\brang\b|\brings? (?:it|the)\b": "wake-up; wakes",
    r"\btall(?:y|ies)\b": "shared counters",
    r"\buntold\b": "counter delta",
    r"\binbox(?:es)?\b": "backlog",
    r"\boutbox(?:es)?\b": "send backlog",
    r"\b(?:kept|held) (?:ones|datagrams|back)\b|\bwhat (?:is|was) (?:kept|held)\b": "backlog",
    r"\bnobody (?:took|has taken)\b": "backlog",
}
PATTERNS = {re.compile(rule, re.IGNORECASE): better for rule, better in RULES.items()}
ALLOWANCE = re.compile(r'^\W*prose: allow "(?P<what>[^"]+)": \w')


@dataclass
class Paragraph:
    """Text of one or more lines, with single spaces."""

    text: str = ""
    starts: list[int] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)

    def add(self, number: int, line: str) -> None:
        words = " ".join(line.split())
        self.text += " " if self.text else ""
        self.starts.append(len(self.text))
        self.lines.append(number)
        self.text += words

    def line_at(self, offset: int) -> int:
        return self.lines[bisect_right(self.starts, offset) - 1]


@dataclass
class Block:
    """The scope of an allowance: a paragraph of a page, a comment or a docstring."""

    first_line: int
    paragraphs: list[Paragraph]


@dataclass
class Finding:
    line: int
    what: str
    better: str


@dataclass
class Allowance:
    line: int
    what: str
    is_used: bool = False


def paragraphs(lines: Iterable[tuple[int, str]]) -> list[Paragraph]:
    """Join consecutive numbered lines into paragraphs, which empty lines separate."""
    found = [Paragraph()]
    for number, line in lines:
        if line.strip():
            found[-1].add(number, without_code(line))
        else:
            found.append(Paragraph())
    return [paragraph for paragraph in found if paragraph.text]


def without_code(line: str) -> str:
    """Blank out code in backquotes and the targets of links."""
    line = re.sub(r"``.+?``|`[^`]+`", "`", line)
    return re.sub(r"\]\([^)]*\)", "]", line)


# Pages


def page_blocks(text: str) -> Iterator[Block]:
    """Split a page into paragraphs; headings and the rows of tables are paragraphs of their own."""
    if re.match(r"---\n(?:.*\n)*?lang: (?!en)", text):
        return
    text = re.sub(r"^```.*?^```$", blank_lines, text, flags=re.MULTILINE | re.DOTALL)
    block: list[tuple[int, str]] = []
    for number, line in enumerate([*text.splitlines(), ""], 1):
        is_alone = line.startswith(("|", "#", "<!--"))
        if (is_alone or not line.strip()) and block:
            yield Block(block[0][0], paragraphs(block))
            block = []
        if line.startswith("#"):  # a heading may begin with a question word
            line = re.sub(r"^#+ Wh(?:at|o)\b", "", line)  # noqa: PLW2901
        if is_alone:
            yield Block(number, paragraphs([(number, line)]))
        elif line.strip():
            block.append((number, line))


def blank_lines(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n")


# Python


def python_blocks(text: str) -> Iterator[Block]:
    """Find comments and docstrings, including those of attributes."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            value = node.value.value
            if isinstance(value, str):
                lines = enumerate(value.splitlines(), node.lineno)
                yield Block(node.lineno, paragraphs(without_literal_blocks(lines)))
    comments = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            is_alone = not token.line[: token.start[1]].strip()
            comments.append((token.start[0], token.string.lstrip("#:! "), is_alone))
    yield from comment_blocks(comments)


def without_literal_blocks(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Leave out blocks that are indented below a line ending with two colons."""
    margin = None
    for number, line in lines:
        indent = len(line) - len(line.lstrip())
        if margin is not None and line.strip() and indent <= margin:
            margin = None
        if margin is None:
            yield number, line
            if line.rstrip().endswith("::"):
                margin = indent
        else:
            yield number, ""


# Rust

TOKEN = re.compile(
    r"""//(?P<line>[^\n]*) | /\*(?P<block>.*?)\*/ | b?r(?P<hashes>\#*)".*?"(?P=hashes)
      | "(?:\\.|[^"\\])*" | '(?:\\.[^']*|[^\\'])'""",
    re.VERBOSE | re.DOTALL,
)


def rust_blocks(text: str) -> Iterator[Block]:
    comments = []
    for token in TOKEN.finditer(text):
        comment = token["line"] if token["line"] is not None else token["block"]
        if comment is None:
            continue
        first = text.count("\n", 0, token.start()) + 1
        before = text[text.rfind("\n", 0, token.start()) + 1 : token.start()]
        for number, line in enumerate(comment.split("\n"), first):
            comments.append((number, line.lstrip("/!* "), not before.strip()))
    yield from comment_blocks(comments)


def comment_blocks(comments: Iterable[tuple[int, str, bool]]) -> Iterator[Block]:
    """Join comments on consecutive lines of their own; an allowance is a block of its own."""
    block: list[tuple[int, str]] = []
    for number, text, is_alone in comments:
        is_allowance = ALLOWANCE.match(text) is not None
        if block and (not is_alone or is_allowance or number != block[-1][0] + 1):
            yield Block(block[0][0], paragraphs(block))
            block = []
        block.append((number, text))
        if not is_alone or is_allowance:
            yield Block(number, paragraphs(block))
            block = []
    if block:
        yield Block(block[0][0], paragraphs(block))


# Findings

READERS = {
    ".md": page_blocks,
    ".py": python_blocks,
    ".pyi": python_blocks,
    ".rs": rust_blocks,
}


def check(text: str, suffix: str) -> list[Finding]:
    """Find the expressions of a file that are not allowed."""
    blocks = sorted(READERS[suffix](text), key=lambda block: block.first_line)
    findings: list[Finding] = []
    allowed: list[Allowance] = []
    unused: list[Allowance] = []
    for block in blocks:
        first = block.paragraphs[0] if block.paragraphs else Paragraph()
        if allowance := ALLOWANCE.match(first.text):
            allowed.append(Allowance(block.first_line, allowance["what"].lower()))
            unused.append(allowed[-1])
            continue
        for finding in findings_in(block):
            fitting = [one for one in allowed if one.what in finding.what.lower()]
            for one in fitting:
                one.is_used = True
            if not fitting:
                findings.append(finding)
        allowed = []
    findings += [
        Finding(one.line, f'allow "{one.what}"', "remove it: nothing needs it")
        for one in unused
        if not one.is_used
    ]
    return sorted(findings, key=lambda finding: finding.line)


def findings_in(block: Block) -> Iterator[Finding]:
    for paragraph in block.paragraphs:
        for pattern, better in PATTERNS.items():
            for match in pattern.finditer(paragraph.text):
                yield Finding(paragraph.line_at(match.start()), match[0].strip(), better)


# The repository


def prose_files() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [Path(name) for name in listed.splitlines() if name.endswith(SUFFIXES)]
    return sorted(path for path in paths if (ROOT / path).is_file())


def main() -> int:
    arguments = argparse.ArgumentParser(description="Find expressions that need plainer words.")
    arguments.add_argument("files", nargs="*", type=Path, help="all of the repository's if none")
    files = arguments.parse_args().files or prose_files()
    is_plain = True
    for path in files:
        for finding in check((ROOT / path).read_text("utf-8"), path.suffix):
            print(f"{path}:{finding.line}: {finding.what!r}: {finding.better}")
            is_plain = False
    return 0 if is_plain else 1


if __name__ == "__main__":
    sys.exit(main())
