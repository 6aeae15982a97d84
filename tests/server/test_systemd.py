"""Messages to a service manager (sd_notify), read from a real notification socket."""

import os
import signal
import socket as std
import time
from types import SimpleNamespace

import pytest

from command import Serving
from peer import DEADLINE
from serving import client
from support import Child
from tomada._server import systemd

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

# Becomes the server in the same process, as the children of systemd do.
EXEC = """
import os, sys
os.environ["WATCHDOG_PID"] = str({pid})
os.execv(sys.executable, [sys.executable, "-m", "tomada", "serve", *sys.argv[1:]])
"""


class Manager:
    """A service manager's end: a socket that gets messages."""

    def __init__(self, path):
        self._socket = std.socket(std.AF_UNIX, std.SOCK_DGRAM)
        self._socket.settimeout(DEADLINE)
        self._socket.bind("\0" + path[1:] if path.startswith("@") else path)
        self.environment = {**os.environ, "NOTIFY_SOCKET": path}

    def message(self):
        """Return the next message, as a dictionary."""
        lines = self._socket.recv(1 << 16).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def until(self, name):
        """Return the next message that sets a variable."""
        while name not in (found := self.message()):
            pass
        return found

    def close(self):
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    path = str(tmp_path / "notify")
    if request.param == "abstract":
        path = f"@tomada-notify-{os.getpid()}"
    made = Manager(path)
    yield made
    made.close()


@pytest.fixture
def app(tmp_path, monkeypatch):
    (tmp_path / "service.py").write_text("def echo(data, address):\n    return data\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def microseconds():
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize("workers", [1, 2])
def test_manager_is_told_of_ready_reloading_and_stopping(manager, workers):
    arguments = ("127.0.0.1:0", "--app", "service:echo", "--workers", workers)
    with Serving(*arguments, env=manager.environment) as server:
        ready = manager.until("READY")
        assert ready["READY"] == "1"
        assert ready["STATUS"].startswith(f"serving 127.0.0.1:{server.address[1]}")
        for _ in range(2):
            before = microseconds()
            server.signal(signal.SIGHUP)
            reloading = manager.until("RELOADING")
            assert reloading["RELOADING"] == "1"
            assert before <= int(reloading["MONOTONIC_USEC"]) <= microseconds()
            assert manager.until("READY")["READY"] == "1"
        server.signal(signal.SIGTERM)
        assert manager.until("STOPPING")["STOPPING"] == "1"
        assert server.end()[0] == 0


FAILED = "; workers could not be replaced: see the log"


def test_reload_that_fails_is_over_too_and_says_so(manager, app):
    arguments = ("127.0.0.1:0", "--app", "service:echo", "--workers", 2)
    with Serving(*arguments, env=manager.environment) as server:
        manager.until("READY")
        (app / "service.py").write_text("nothing = 5\n")
        server.signal(signal.SIGHUP)
        manager.until("RELOADING")
        assert manager.until("READY")["STATUS"].endswith(FAILED)
        (app / "service.py").write_text("def echo(data, address):\n    return data\n")
        server.signal(signal.SIGHUP)
        manager.until("RELOADING")
        assert not manager.until("READY")["STATUS"].endswith(FAILED)


@pytest.mark.parametrize("workers", [1, 2])
def test_watchdog_hears_from_the_server(manager, workers):
    environment = {**manager.environment, "WATCHDOG_USEC": "20000"}
    command = ("-c", EXEC.format(pid="os.getpid()"))
    with Serving("127.0.0.1:0", "--workers", workers, command=command, env=environment) as server:
        manager.until("READY")
        for _ in range(5):
            assert manager.until("WATCHDOG")["WATCHDOG"] == "1"
        server.signal(signal.SIGTERM)
        assert server.end()[0] == 0


def test_watchdog_hears_in_time_after_an_early_wake_up(monkeypatch):
    now, live = 1000.0, SimpleNamespace(is_live=True)
    monkeypatch.setattr(systemd, "time", SimpleNamespace(monotonic=lambda: now))
    heard = systemd.Manager({"NOTIFY_SOCKET": "/nobody", "WATCHDOG_USEC": "10000000"})
    monkeypatch.setattr(heard, "_status", lambda _: "")
    life = SimpleNamespace(replacements=0, has_failed_to_replace=False)
    assert heard.tick(None, live, life) == 5
    now += 4.5
    life.replacements = 1  # workers were replaced
    assert heard.tick(None, live, life) == 0.5
    heard.close()


def test_watchdog_of_another_process_is_left_alone(manager):
    environment = {**manager.environment, "WATCHDOG_USEC": "1000"}
    command = ("-c", EXEC.format(pid=1))
    with Serving("127.0.0.1:0", command=command, env=environment) as server:
        manager.until("READY")
        server.signal(signal.SIGHUP)
        assert "WATCHDOG" not in manager.message()
        server.signal(signal.SIGTERM)
        while "STOPPING" not in (message := manager.message()):
            assert "WATCHDOG" not in message


STUCK = """
import os, sys, tomada
from tomada._server import health, systemd
health.STUCK, systemd.STATUS = 0.01, 0.001

def handle(data, address):
    os.read(int(sys.argv[1]), 1)

server = tomada.Server(("127.0.0.1", 0), handle, drain=0)
server.start()
print(server.address[1], flush=True)
server.serve_forever()
"""


def test_watchdog_does_not_hear_from_a_stuck_server(manager):
    read, write = os.pipe()
    environment = {**manager.environment, "WATCHDOG_USEC": "2000"}
    with Child("-c", STUCK, read, pass_fds=(read,), env=environment) as server:
        with client(("127.0.0.1", int(server.line()))) as sock:
            manager.until("WATCHDOG")
            sock.send(b"the handler does not return")
            sock.send(b"and this one waits")
            silent = 0
            while silent < 20:
                silent = 0 if "WATCHDOG" in manager.message() else silent + 1
        os.close(write)
    os.close(read)


def test_manager_that_is_gone_changes_nothing(tmp_path):
    environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "1000"}
    with Serving("127.0.0.1:0", env=environment) as server:
        server.signal(signal.SIGTERM)
        assert server.end()[0] == 0
