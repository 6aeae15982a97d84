"""``tomada demo``, the program that shows the library to newcomers."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import tomada
from tomada import cli, demo

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")


def run(*arguments, **options):
    command = [sys.executable, "-m", "tomada", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, **options
    )


def free_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("first line\n\nnão é ASCII\n" + "a long line " * 200 + "\n")
    return path


def test_demo_pairs_exchange_every_line(text):
    port = free_port()
    result = run("demo", str(text), "--port", str(port))
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"on 127.0.0.1:{port} " in result.stdout
    assert "first line" in result.stdout
    assert "FIRST LINE" in result.stdout
    rows = re.findall(
        r"^(\S+(?: \S+)?) +(\S+(?: \S+)?) +4 +2,423 +0 +", result.stdout, re.MULTILINE
    )
    assert [(one.strip(), other.strip()) for one, other in rows] == [
        ("tomada", "tomada"),
        ("tomada", "plain socket"),
        ("plain socket", "tomada"),
    ]
    assert "every reply matched" in result.stdout


def test_demo_default_text_is_the_readme():
    title, text = demo.read_text(None)
    assert "README" in title
    assert text.splitlines()[0].endswith(b" tomada")


def test_demo_reports_and_replaces_a_taken_port(text):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        result = run("demo", str(text), "--port", str(port))
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"port {port} is taken" in result.stdout


def test_demo_counts_wrong_replies_and_fails(text, monkeypatch, capsys):
    original = demo.run_pair

    def one_wrong(*arguments):
        result = original(*arguments)
        result.mismatches += 1
        return result

    monkeypatch.setattr(demo, "run_pair", one_wrong)
    assert demo.main(str(text), free_port()) == 1
    assert "3 replies were wrong or missing" in capsys.readouterr().out


@pytest.mark.parametrize("asking", [demo.asking, demo.asking_with_tomada])
def test_demo_client_counts_mismatches(asking):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(5)
        port = server.getsockname()[1]

        def answer_wrongly():
            for _ in range(2):
                line, client = server.recvfrom(100)
                server.sendto(line, client)  # correct only for text in capitals

        thread = threading.Thread(target=answer_wrongly)
        thread.start()
        with asking(port) as ask:
            result = demo.converse(ask, [b"RIGHT", b"wrong"])
        thread.join()
    assert (result.datagrams, result.mismatches) == (2, 1)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"\xff\xfe", "is not UTF-8 text"), (b"x" * 70_000, "has a line of 70,000 bytes")],
)
def test_demo_rejects_text_that_cannot_be_sent(tmp_path, content, complaint, capsys):
    path = tmp_path / "text"
    path.write_bytes(content)
    assert cli.main(["demo", str(path)]) == 1
    assert complaint in capsys.readouterr().err


def test_demo_reports_a_missing_file_in_one_line(capsys):
    assert cli.main(["demo", "/no/such/file"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "/no/such/file" in error


def children(parent):
    """Return the demo's processes that were started with this mark."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            environment = (process / "environ").read_bytes()
        except OSError:
            continue  # it exited meanwhile
        if b"tomada.demo" in command and f"DEMO_TEST={parent}".encode() in environment:
            found.append(process)
    return found


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.01)  # how often to read the process table


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_demo_leaves_no_process_behind(tmp_path, end):
    text = tmp_path / "text"
    text.write_text("line\n" * 500_000)
    mark = f"{os.getpid()}.{end.value}"
    command = [sys.executable, "-m", "tomada", "demo", str(text), "--port", str(free_port())]
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "DEMO_TEST": mark},
        start_new_session=True,
    ) as process:
        try:
            wait_until(lambda: len(children(mark)) == 2)
            process.send_signal(end)
            _, error = process.communicate(timeout=20)
        finally:
            process.kill()
    if end == signal.SIGINT:
        assert process.returncode == 130
        assert error == b""
    wait_until(lambda: not children(mark))


def test_demo_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"tomada {tomada.__version__}\n"
