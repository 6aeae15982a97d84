"""SIGHUP to ``tomada serve --app``: new workers run new code, or the old ones stay and log why."""

import logging
import os
import re
import signal
import time
from pathlib import Path

import pytest

from command import Serving
from serving import ask, client, server
from support import eventually

pytestmark = [
    pytest.mark.usefixtures("interruptible"),
    pytest.mark.thread_unsafe(reason="it runs programs"),
]

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


def test_reload_runs_new_code_of_every_module(serving, app):
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
def test_reload_with_code_that_cannot_be_imported_keeps_the_old_workers(serving, app, code):
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


# A module that writes which process imports it, and then waits while a file exists.
WAITING = """
import os, pathlib, time

folder = pathlib.Path(__file__).parent
with open(folder / "imports", "a") as file:
    print("{word}", os.getpid(), file=file)
while (folder / "{word}").exists():
    time.sleep(0.01)
WORD = b"{word} %d" % os.getpid()
"""


class Waiting:
    """The versions of the module."""

    def __init__(self, folder):
        self._folder = folder
        (folder / "imports").touch()

    def write(self, word, *, waits=False):
        if waits:
            (self._folder / word).touch()
        # At once, because a worker may be importing it.
        new = self._folder / "words.new"
        new.write_text(WAITING.format(word=word))
        new.replace(self._folder / "words.py")

    def go_on(self, word):
        (self._folder / word).unlink()

    def imports(self, word):
        lines = (self._folder / "imports").read_text().splitlines()
        return [int(pid) for found, pid in map(str.split, lines) if found == word]


@pytest.fixture
def code(app):
    waiting = Waiting(app)
    waiting.write("v1")
    return waiting


def words(address):
    return {reply.split()[0] for reply in replies(address)}


def test_reload_replaces_a_worker_that_is_not_ready(code, serving):
    victim = code.imports("v1")[0]
    code.write("v2", waits=True)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: code.imports("v2"))
    code.write("v3")
    serving.signal(signal.SIGHUP)
    # The one that waits has its own sockets.
    eventually(lambda: len(code.imports("v3")) == 2)
    eventually(lambda: words(serving.address) == {b"v3"})
    serving.signal(signal.SIGTERM)
    assert serving.end()[0] == 0
    assert len(code.imports("v2")) == 1


def test_reload_replaces_a_worker_that_becomes_ready_meanwhile(code, serving):
    victim = code.imports("v1")[0]
    code.write("v2", waits=True)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: code.imports("v2"))
    code.write("v3", waits=True)
    serving.signal(signal.SIGHUP)
    eventually(lambda: code.imports("v3"))
    code.go_on("v2")
    code.go_on("v3")
    eventually(lambda: words(serving.address) == {b"v3"})
    serving.signal(signal.SIGTERM)
    assert serving.end()[0] == 0


def test_reload_replaces_a_successor_that_hangs(code, serving):
    code.write("v2", waits=True)
    serving.signal(signal.SIGHUP)
    eventually(lambda: code.imports("v2"))
    assert words(serving.address) == {b"v1"}
    code.write("v3")
    serving.signal(signal.SIGHUP)
    eventually(lambda: words(serving.address) == {b"v3"})
    (hung,) = code.imports("v2")
    eventually(lambda: not Path(f"/proc/{hung}").exists())
    serving.signal(signal.SIGTERM)
    status, _, errors = serving.end()
    assert status == 0
    assert "keeps its process" not in errors


def test_many_reloads_in_a_row_end_with_the_last_code(code, serving):
    for number in range(2, 20):
        code.write(f"v{number}", waits=number % 3 == 0)
        serving.signal(signal.SIGHUP)
        if number % 2:
            eventually(lambda name=f"v{number}": code.imports(name))
    code.write("last")
    serving.signal(signal.SIGHUP)
    eventually(lambda: words(serving.address) == {b"last"})
    serving.signal(signal.SIGTERM)
    assert serving.end()[0] == 0


def test_slow_successor_is_logged_once(monkeypatch, tmp_path):
    from tomada._server import supervisor

    monkeypatch.setattr(supervisor, "SLOW", 0.1)
    monkeypatch.setattr(supervisor, "LOOK", 0.05)
    log = tmp_path / "log"
    handler = logging.FileHandler(log)
    monkeypatch.setattr(supervisor.logger, "handlers", [handler])
    flag = tmp_path / "waits"

    def init():
        while flag.exists():
            time.sleep(0.01)

    with server(lambda *_: b"%d" % os.getpid(), workers=2, init=init) as serving:
        old = replies(serving.address)
        flag.touch()
        serving.replace_workers()
        eventually(lambda: "is not ready after 0.1 seconds" in log.read_text())
        assert replies(serving.address) <= old
        flag.unlink()
        eventually(lambda: not replies(serving.address) & old)
    handler.close()
    assert log.read_text().count("worker 0: the new process") == 1
