"""``tomada serve``, with plain sockets as clients."""

import json
import re
import signal
import socket as std
import subprocess
import sys
from pathlib import Path

import pytest

from command import OnTerminal, Serving, run
from peer import DEADLINE
from skips import program
from support import eventually
from tomada import cli

pytest.importorskip("tomada.server")
pytestmark = [
    pytest.mark.usefixtures("interruptible"),
    pytest.mark.thread_unsafe(reason="it runs programs"),
]


@pytest.fixture
def serving():
    started = []

    def start(*arguments):
        started.append(Serving(*arguments))
        return started[-1]

    yield start
    for item in started:
        item.__exit__()


@pytest.fixture
def client(inet):
    with inet.bound(std) as sock:
        yield sock


def ask(sock, address, data):
    sock.sendto(data, address)
    return sock.recv(1 << 16)


@pytest.mark.parametrize("options", [(), ("--echo",), ("--workers", 2)])
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_serve_echoes_until_interrupted(serving, client, options, end):
    server = serving("127.0.0.1:0", *options)
    for number in range(20):
        assert ask(client, server.address, b"%d" % number) == b"%d" % number
    server.signal(end)
    status, output, errors = server.end()
    assert (status, output) == (0, "")
    assert re.search(r"\b20 received, ", errors)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_serve_discards_queued_datagrams_at_a_second_signal(
    serving, client, tmp_path, end, workers
):
    slow = "import time\n\ndef handle(data, address):\n    time.sleep(0.1)\n    return data\n"
    (tmp_path / "slow.py").write_text(slow, encoding="utf-8")
    options = ("--app-dir", tmp_path, "--workers", workers, "--drain", 600)
    server = serving("127.0.0.1:0", "--app", "slow:handle", *options)
    client.connect(server.address)
    for number in range(200):
        client.send(b"%d" % number)
    client.recv(100)
    server.signal(end)

    def is_draining():
        try:
            client.send(b"too late")
        except ConnectionRefusedError:
            return True
        return False

    eventually(is_draining)
    server.signal(end)
    status, output, errors = server.end()
    assert (status, output) == (130, "")
    assert " received, " not in errors  # the summary of an orderly end


def test_serve_prints_counters_as_json(serving, client):
    server = serving("127.0.0.1:0", "--json")
    ask(client, server.address, b"abc")
    server.signal(signal.SIGTERM)
    status, output, _ = server.end()
    counters = json.loads(output)
    assert status == 0
    assert (counters["received"], counters["received_bytes"], counters["sent"]) == (1, 3, 1)


def test_serve_discard_counts_datagrams_and_does_not_reply(serving, client):
    server = serving("127.0.0.1:0", "--discard", "--json")
    for _ in range(5):
        client.sendto(b"x", server.address)
    server.signal(signal.SIGTERM)  # queued datagrams are handled before the end
    counters = json.loads(server.end()[1])
    assert (counters["received"], counters["sent"]) == (5, 0)


def test_serve_prints_datagrams(serving, client):
    server = serving("127.0.0.1:0", "--print")
    client.sendto(b"abc", server.address)
    host, port = client.getsockname()
    assert server.line() == f"{host}:{port} 3 bytes: abc"


@pytest.fixture
def app(tmp_path, monkeypatch):
    (tmp_path / "service.py").write_text(
        "def upper(data, address):\n    return data.upper()\n"
        "class Group:\n    lower = staticmethod(lambda data, address: data.lower())\n"
        "number = 5\n"
        "async def later(data, address):\n    yield data\n"
    )
    (tmp_path / "broken.py").write_text("import no_such_module_at_all\n")
    (tmp_path / "wrong.py").write_text("raise ValueError('no_such_module_at_all')\n")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize(
    ("name", "reply"), [("service:upper", b"ABC"), ("service:Group.lower", b"abc")]
)
def test_serve_finds_an_app_in_the_current_directory(serving, client, name, reply):
    server = serving("127.0.0.1:0", "--app", name)
    assert ask(client, server.address, b"aBc") == reply


def test_serve_joins_a_group(serving, client):
    server = serving("0.0.0.0:0", "--group", "239.255.12.35")
    client.setsockopt(std.IPPROTO_IP, std.IP_MULTICAST_IF, std.inet_aton("127.0.0.1"))
    try:
        client.sendto(b"abc", ("239.255.12.35", server.address[1]))
    except OSError:
        pytest.skip("this machine has no route for multicast")
    assert ask(client, ("127.0.0.1", server.address[1]), b"abc") == b"abc"


def test_serve_shows_its_activity_on_a_terminal(client):
    with OnTerminal("serve", "127.0.0.1:0") as server:
        server.until("Ctrl-C ends it")
        _, port = re.search(r"serving (\S+):(\d+)", server.shown).groups()
        for _ in range(5):
            ask(client, ("127.0.0.1", int(port)), b"x")
        server.until("total 5")
        assert re.search(r"received [\d,]+/s  sent [\d,]+/s  total 5", server.shown)
        server.process.send_signal(signal.SIGINT)
        server.until("5 received")
        assert server.process.wait() == 0


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--app", "service"], "'service' does not name a function: write MODULE:FUNCTION"),
        (["--app", "nowhere:handle"], "there is no module 'nowhere' here"),
        (
            ["--app", "service.py:handle"],
            "'service.py' is a path, not a module: write service:handle",
        ),
        (["--app", "./a/b.py:handle"], "'./a/b.py' is a path, not a module: write a.b:handle"),
        (
            ["--app", "/nowhere/b.py:handle"],
            "'/nowhere/b.py' is a path, not a module: write b:handle, in the directory /nowhere",
        ),
        (["--app", "service:nothing"], "there is no 'nothing' in service"),
        (["--app", "service:later"], "service:later is an async generator function"),
        (["--app", "service:number"], "service:number is not a function, but int"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_serve_invalid_app_exits_with_status_1_and_one_line(arguments, complaint, workers):
    status, _, errors = run("serve", "127.0.0.1:0", *arguments, "--workers", workers)
    assert status == 1
    last = errors.splitlines()[-1]
    assert last.startswith(f"tomada serve: app: {complaint}")
    assert last.endswith(" (--app)")
    assert workers > 1 or errors == f"{last}\n"


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("module", ["broken", "wrong"])
def test_serve_app_that_fails_to_import_shows_a_traceback(module, workers):
    arguments = "--app", f"{module}:handle", "--workers", workers
    status, _, errors = run("serve", "127.0.0.1:0", *arguments)
    assert status == 1
    assert f"{module}.py" in errors
    assert "no_such_module_at_all" in errors


def test_serve_taken_port_exits_with_status_1(client):
    host, port = client.getsockname()
    status, _, errors = run("serve", f"{host}:{port}")
    assert status == 1
    assert "Address already in use" in errors


def test_serve_rejects_conflicting_options(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", "--echo", "--discard"])
    assert ended.value.code == 2
    assert "not allowed with argument" in capsys.readouterr().err


# Each sends its standard input as a datagram, and prints the reply.
SHELL = {
    "nc": ["nc", "-u", "{host}", "{port}"],
    "socat": ["socat", "-", "UDP:{host}:{port}"],
    "ncat": ["ncat", "-u", "{host}", "{port}"],
}


@pytest.mark.parametrize("name", SHELL)
def test_serve_replies_to_a_shell_client(serving, name):
    program(name)
    host, port = serving("127.0.0.1:0").address
    command = [part.format(host=host, port=port) for part in SHELL[name]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.write(b"hello")
        process.stdin.flush()
        assert process.stdout.read(5) == b"hello"
        process.kill()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("style", ["console", "text", "json"])
def test_log_on_a_full_disk_does_not_stop_the_server(inet, style, workers):
    """Nothing can be written, from the first line to the last one."""
    with inet.bound(std) as sock, Path("/dev/full").open("wb") as full:
        number = sock.fileno()
        arguments = ("--fd", number, "--log-format", style, "--access-log", 1, "--workers", workers)
        process = subprocess.Popen(
            [sys.executable, "-m", "tomada", "serve", *map(str, arguments)],
            pass_fds=(number,),
            stdout=full,
            stderr=full,
        )
        with process, inet.bound(std) as client:
            for _ in range(3):
                assert ask(client, sock.getsockname(), b"abc") == b"abc"
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE) == 0
