"""scripts/prose.py: which expressions it finds, where, and how to overrule it."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "prose.py"


@pytest.fixture(scope="module")
def prose():
    spec = importlib.util.spec_from_file_location("prose", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["prose"] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["prose"]


# A sentence with each expression, and plain sentences.
SENTENCES = {
    "Who": ("Who wants more, asks.", "Programs that want more ask. Who asks?"),
    "Whoever": ("It wakes. Whoever polls knows.", "Callers that poll know."),
    "What": ("What finds no room is dropped.", "The kernel drops it. What does that mean?"),
    "for who": ("It is for who has a core.", "It is for those who have a core."),
    "is no": ("That is no port.", "That is not a port. There is no port. It is no longer open."),
    "for want of": ("It is dropped for want of room.", "It is dropped: there is no room."),
    "as you like": ("Use one, as you like.", "Use one, at your option."),
    "would have it": ("As the kernel would have it.", "As the kernel requires."),
    "there being": ("It waits, there being none.", "It waits, because there is none."),
    "so many": ("So many are queued at the most.", "This number is queued."),
    "no more": ("It has the address no more.", "No more than two. There are no more datagrams."),
    "at the most": ("Two, at the most.", "At most two."),
    "once a while": ("It is logged once a while.", "It is logged once in a while."),
    "in the place of": ("Use it in the place of the other.", "Use it instead of the other."),
    "be it": ("A peer, be it near or far.", "A near or far peer. Can it be? It can."),
    "mended": ("Both are mended.", "Both are fixed; it is recommended."),
    "asks again": ("It asks again.", "It retries."),
    "asked for again": ("It is asked for again.", "It is retransmitted."),
    "glues": ("The kernel glues them.", "The kernel coalesces them."),
    "cut up": ("The card cuts them up.", "The card splits them."),
    "cut off": ("The end is cut off.", "The end is truncated."),
    "take apart": ("It takes them apart.", "It splits them, apart from others."),
    "volley": ("It sends a volley.", "It sends a batch."),
    "flying": ("Two are flying.", "Two are in flight."),
    "lands": ("A reply lands.", "A reply arrives on an island."),
    "rung": ("The bell is rung.", "The ring wakes it."),
    "tally": ("It keeps a tally.", "It has shared counters."),
    "untold": ("It has untold counts.", "It has a counter delta."),
    "inbox": ("It is in the inbox.", "It is in the backlog."),
    "outbox": ("It is in the outbox.", "It is in the send backlog."),
    "kept datagrams": ("It returns kept datagrams.", "It returns the backlog it has kept."),
    "nobody took": ("The rest that nobody took.", "The rest of the backlog."),
}


@pytest.mark.parametrize("name", SENTENCES)
def test_prose_finds_an_expression(prose, name):
    wrong, plain = SENTENCES[name]
    assert prose.check(wrong, ".md")
    assert not prose.check(plain, ".md")


def test_prose_rules_have_examples(prose):
    wrong = [sentence for sentence, _ in SENTENCES.values()]
    for pattern in prose.PATTERNS:
        assert any(map(pattern.search, wrong)), pattern.pattern


def lines(prose, text, suffix):
    return [finding.line for finding in prose.check(text, suffix)]


PAGE = """\
# What a volley is

Read `volley`, [it](volley.md) and

```python
# a volley
```

it goes on with so
many, and a

* list that is
  no list.

| a table | with a volley |
"""


def test_prose_page(prose):
    assert lines(prose, PAGE, ".md") == [1, 9, 12, 15]


def test_prose_page_without_front_matter_or_in_english(prose):
    assert lines(prose, "---\ntitle: x\n---\n\nA volley.\n", ".md") == [5]
    assert lines(prose, "---\nlang: en\n---\n\nA volley.\n", ".md") == [5]


def test_prose_page_in_another_language(prose):
    assert not lines(prose, "---\nlang: pt-BR\n---\n\nWhat volley.\n", ".md")


PYTHON = '''\
"""A volley.

An ``inbox``, and::

    a volley

An inbox.
"""

name = "volley"  # a volley
"""There being
so many."""

# It is
# no comment.
#: volley


def function():
    """Do it."""
    return "volley"
'''


def test_prose_python(prose):
    assert lines(prose, PYTHON, ".py") == [1, 7, 10, 11, 12, 14, 16]
    assert lines(prose, PYTHON, ".pyi") == [1, 7, 10, 11, 12, 14, 16]


RUST = """\
//! A volley,
//! there
//! being one.

/// It `volley`s: "volley".
fn function<'a>(text: &'a str) -> char { // a volley
    let text = "https://volley"; let raw = r#"// volley"#;
    /* a
       volley */
    '"' // volley
}
"""


def test_prose_rust(prose):
    assert lines(prose, RUST, ".rs") == [1, 2, 5, 6, 9, 10]


ALLOWED = {
    ".md": '<!-- prose: allow "volley": a class -->\nA volley.\n\n',
    ".py": '# prose: allow "volley": a class\n"""A\nvolley."""\n',
    ".rs": '// prose: allow "volley": a class\n// A volley\n// and a volley.\n\n',
}


@pytest.mark.parametrize("suffix", ALLOWED)
def test_prose_allowed_for_the_next_block(prose, suffix):
    text = ALLOWED[suffix]
    assert not prose.check(text, suffix)
    again = "# A volley." if suffix == ".py" else "// A volley."
    assert lines(prose, text + again, suffix) == [text.count("\n") + 1]


@pytest.mark.parametrize("suffix", ALLOWED)
def test_prose_allowed_for_one_expression(prose, suffix):
    text = ALLOWED[suffix].replace('"volley"', '"inbox"')
    found = prose.check(text, suffix)
    assert any("allow" in finding.what for finding in found)
    assert any("volley" in finding.what for finding in found)


@pytest.mark.parametrize("suffix", ALLOWED)
def test_prose_allowed_without_a_reason(prose, suffix):
    assert prose.check(ALLOWED[suffix].replace(": a class", ""), suffix)


def test_prose_command(tmp_path):
    page = tmp_path / "page.md"
    for text, status in {"A volley.\n": 1, "A batch.\n": 0}.items():
        page.write_text(text, encoding="utf-8")
        command = [sys.executable, SCRIPT, page]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (status, "")
        assert (f"{page}:1: 'volley'" in done.stdout) == bool(status)
