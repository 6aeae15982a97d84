"""The numbers of the page about tests: neither too high, nor much too low."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "about" / "testing.md").read_text(encoding="utf-8")


def count(pattern, *globs):
    """Return how often lines of files match a pattern."""
    texts = [path.read_text(encoding="utf-8") for glob in globs for path in ROOT.glob(glob)]
    return sum(len(re.findall(pattern, text, re.MULTILINE)) for text in texts)


ACTUAL = {
    "Python test functions": count(r"^ *(?:async )?def test_", "tests/**/*.py"),
    "Rust unit tests": count(
        r"^ *#\[test\]$", "src/**/*.rs", "benches/loadgen/src/**/*.rs", "fuzz/tests/*.rs"
    ),
    "models of locks": count(r"^ *fn loom_", "src/**/*.rs"),
    "fuzz targets": len(list((ROOT / "fuzz" / "corpus").iterdir())),
    "DTLS sessions": count(r"^\| .* (?:yes|\|) \|$", "docs/reference/dtls-interop.md"),
}


@pytest.mark.parametrize("name", ACTUAL)
def test_page_says_how_many_there_are(name):
    (said,) = re.findall(rf"^\| ([\d,]+) \| {name}", PAGE, re.MULTILINE)
    assert ACTUAL[name] / 1.25 < int(said.replace(",", "")) <= ACTUAL[name]


def test_page_names_every_count():
    assert len(re.findall(r"^\| [\d,]+ \|", PAGE, re.MULTILINE)) == len(ACTUAL)
