"""Run every program and command of README and the documentation."""

import re

import pytest

from documents import ROOT, documents, fits, run_document

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", documents())
def test_document_shows_what_happens(name, tmp_path, port):
    run_document(name, tmp_path, port)


def test_documented_certificates_cannot_sign_others():
    # `openssl req -x509` makes authorities unless it is told otherwise.
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in documents())
    commands = re.findall(r"openssl req (?:\\\n|[^\n])*", text)
    signed = [command for command in commands if " -CA " in command]
    assert len(signed) >= 4
    assert [command for command in signed if "CA:FALSE" not in command] == []


def test_all_documents_are_found():
    assert {"README.md", "CONTRIBUTING.md", "docs/benchmarks/per-call.md"} <= set(documents())


WRONG = {
    "a program that fails": "```python\nraise SystemExit(3)\n```\n",
    "a warning": "```python\nimport warnings; warnings.warn('no')\n```\n",
    "another output": "```python\nprint('yes')\n```\n\n```text\nno\n```\n",
    "more output": "```python\nprint('yes\\nno')\n```\n\n```text\nyes\n```\n",
    "a command that fails": "```console\n$ false\n```\n",
    "a command that prints something else": "```console\n$ echo yes\nno\n```\n",
    "a command that prints more": "```console\n$ echo 'yes\nno'\nyes\n```\n",
    "a command that ends early": "```console\n$ echo yes\nyes\nno\n```\n",
    "an unknown target": "```console\n$ make nothing-of-this-name\n```\n",
    "an unknown language": "```cobol\nSTOP RUN.\n```\n",
    "an invalid unit": '```ini title="x.service"\n[Service]\nExecStart=no/path\n```\n',
}


@pytest.mark.parametrize("what", WRONG)
def test_errors_of_a_document_are_found(what, tmp_path, port):
    document = tmp_path / "document.md"
    document.write_text(WRONG[what], encoding="utf-8")
    with pytest.raises(AssertionError) as caught:
        run_document(document, tmp_path, port)
    notes = getattr(caught.value, "__notes__", [])
    assert "document.md" in "\n".join([str(caught.value), *notes])


RIGHT = """
```python title="server.py"
print("port 1234")
print("two\\nthree\\nfour")
input()
```

```console
$ python server.py
port 1234
…
four
…
$ echo "port 1234"  # a comment
port …
$ true
```

```python
print("one\\ntwo")
```

```text
o…
…
```

```python
import asyncio

async def main():
    loop = asyncio.get_running_loop()
    loop.slow_callback_duration = 0
    print(loop.get_debug())

asyncio.run(main())
```

```text
True
```

<!-- skip: next "it is not meant to work" -->

```python
raise SystemExit(3)
```

```text
a drawing
```
"""


def test_correct_document_passes(tmp_path, port):
    document = tmp_path / "document.md"
    document.write_text(RIGHT, encoding="utf-8")
    run_document(document, tmp_path, port)
    assert str(port) in (tmp_path / "server.py").read_text(encoding="utf-8")


def test_ellipsis_matches_any_text():
    assert fits("('127.0.0.1', …) sent 'a.b'", "('127.0.0.1', 1) sent 'a.b'")
    assert not fits("a.b", "axb")
    assert fits("…", "")
