"""SIGHUP to ``tomada serve --app``: new workers run new code, or the old ones stay and log why."""

import re
import signal

import pytest

from serving import ask, client
from support import eventually
from test_cli_serve import Serving

pytestmark = pytest.mark.usefixtures("interruptible")

HANDLER = """
from . import words

def handle(data, address):
    return words.WORD
"""


@pytest.fixture
def app(tmp_path, monkeypatch):
    package = tmp_path / "service"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "app.py").write_text(HANDLER)
    (package / "words.py").write_text("WORD = b'old'\n")
    monkeypatch.chdir(tmp_path)
    return package


@pytest.fixture
def serving(app):
    with Serving("127.0.0.1:0", "--workers", 2, "--app", "service.app:handle") as found:
        yield found


def replies(address):
    """Send requests from enough ports to reach every worker."""
    return {ask(address) for _ in range(30)}


def test_new_workers_have_new_code_of_every_module(serving, app):
    assert replies(serving.address) == {b"old"}
    # The same length, and usually within the same second.
    (app / "words.py").write_text("WORD = b'new'\n")
    serving.signal(signal.SIGHUP)
    eventually(lambda: replies(serving.address) == {b"new"})
    (app / "added.py").write_text("WORD = b'added'\n")
    (app / "app.py").write_text(HANDLER.replace("words", "added"))
    serving.signal(signal.SIGHUP)
    eventually(lambda: replies(serving.address) == {b"added"})
    serving.signal(signal.SIGTERM)
    assert serving.end()[0] == 0


@pytest.mark.parametrize("code", ["WORD = ", "raise LookupError('not yet')", "import nowhere"])
def test_code_that_cannot_be_imported_leaves_the_old_workers(serving, app, code):
    (app / "words.py").write_text(code)
    serving.signal(signal.SIGHUP)
    with client(serving.address) as sock:
        lines = []

        def is_said():
            sock.send(b"x")
            assert sock.recv(10) == b"old"
            lines.append(serving.error_line())
            return "keeps its process" in lines[-1]

        eventually(is_said)
    assert re.search("worker 0 keeps its process: the new one could not start: ", lines[-1])
    assert "words.py" in "".join(lines)
    (app / "words.py").write_text("WORD = b'mended'")
    serving.signal(signal.SIGHUP)
    eventually(lambda: replies(serving.address) == {b"mended"})
    serving.signal(signal.SIGTERM)
    assert serving.end()[0] == 0
