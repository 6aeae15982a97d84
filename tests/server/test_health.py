"""Probes over HTTP: whether a server lives, whether it is ready, its metrics."""

import contextlib
import http.client
import math
import os
import re
import signal
import socket as std
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

import tomada
from peer import DEADLINE
from serving import ask, client, server, until_refused
from skips import NO_IPV6
from support import Call, Child, eventually, open_descriptors
from tomada import _reports
from tomada._proxy_header import header_for
from tomada._server import health, health_http, supervisor

pytestmark = pytest.mark.thread_unsafe(reason="it forks")

LOOPBACK = ("127.0.0.1", 0)


def echo(data, address):
    return data


def tell_pid(data, address):
    return b"%d" % os.getpid()


def probe(address, path, method="GET"):
    connection = http.client.HTTPConnection(*address[:2], timeout=DEADLINE)
    with contextlib.closing(connection):
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode()


@pytest.mark.parametrize("workers", [1, 2])
def test_running_server_lives_and_is_ready(workers):
    with server(echo, workers=workers, health=LOOPBACK) as serving:
        at = serving.health_address
        assert probe(at, "/live") == (200, "live\n")
        assert probe(at, "/ready?verbose=1") == (200, "ready\n")
        assert probe(at, "/ready", "HEAD") == (200, "")
        assert probe(at, "/nothing") == (404, "there are /live, /ready, /metrics\n")
        assert probe(at, "/ready", "POST")[0] == 501
    with pytest.raises(ConnectionRefusedError):
        probe(at, "/live")


def test_health_over_ipv6(speaks_ipv6):
    if not speaks_ipv6:
        pytest.skip(NO_IPV6)
    with server(echo, health=("::1", 0)) as serving:
        assert probe(serving.health_address, "/ready") == (200, "ready\n")


def test_server_without_health_has_no_address():
    with server(echo) as serving:
        assert serving.health_address is None
        assert serving.status == "running"
    assert serving.status == "stopped"


@pytest.mark.parametrize("workers", [1, 2])
def test_occupied_health_address_fails_the_start(workers, inet):
    with std.create_server(("127.0.0.1", 0)) as other:
        serving = server(echo, workers=workers, health=other.getsockname())
        with pytest.raises(OSError, match=r"in use.*\(health\)"):
            serving.start()
        assert serving.status == "stopped"


@pytest.mark.parametrize("wrong", ["127.0.0.1:80", 80])
def test_wrong_health_address_is_refused(wrong):
    with pytest.raises(TypeError, match="health must be"):
        server(echo, health=wrong)


class Gate:
    """Lets a process wait for this one, through pipes."""

    def __init__(self):
        self._entered, self._open = os.pipe(), os.pipe()

    def wait(self):
        os.write(self._entered[1], b"x")
        os.read(self._open[0], 1)

    def until_entered(self):
        os.read(self._entered[0], 1)

    def open(self):
        os.write(self._open[1], b"x")

    def close(self):
        for fd in (*self._entered, *self._open):
            os.close(fd)


@pytest.fixture
def gate():
    made = Gate()
    yield made
    made.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_server_is_not_ready_while_it_starts(gate, workers):
    serving = server(echo, workers=workers, health=LOOPBACK, init=gate.wait)
    start = Call(serving.start)
    for _ in range(workers):
        gate.until_entered()
    at = serving.health_address
    assert probe(at, "/ready") == (503, "starting\n")
    assert probe(at, "/live")[0] == 200
    for _ in range(workers):
        gate.open()
    start.result()
    assert probe(at, "/ready")[0] == 200
    serving.stop()


@pytest.mark.parametrize("workers", [1, 2])
def test_server_is_not_ready_while_it_drains(gate, workers):
    def handle(data, address):
        if data == b"wait":
            gate.wait()
        return data

    serving = server(handle, workers=workers, health=LOOPBACK, drain=60)
    serving.start()
    at = serving.health_address
    with client(serving.address) as sock:
        sock.send(b"wait")
        gate.until_entered()
        stop = Call(serving.stop)
        eventually(lambda: probe(at, "/ready") == (503, "draining\n"))
        assert probe(at, "/live")[0] == 200
        gate.open()
        assert sock.recv(10) == b"wait"
    stop.result()


# How a drain begins, told to a server in another process.
ENDS = {
    "a signal": lambda child, _: child.signal(signal.SIGTERM),
    "a signal for each process": lambda child, _: os.killpg(child.pid, signal.SIGTERM),
    "a signal for the supervisor": lambda _, supervisor: os.kill(supervisor, signal.SIGTERM),
    "a handler": lambda _, __: None,
}

PROGRAM = """
import os, sys, tomada

def handle(data, address):
    if data == b"a handler":
        server.stop()
    os.write(1, b"entered\\n")
    os.read(int(sys.argv[2]), 1)
    return data

class Announced(tomada.Server):
    def start(self):  # serve_forever() calls it, and handles signals by then
        super().start()
        print(self.address[1], self.health_address[1], flush=True)

server = Announced(
    ("127.0.0.1", 0), handle, workers=int(sys.argv[1]), health=("127.0.0.1", 0), drain=60
)
server.serve_forever()
"""


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("workers", [1, 2])
def test_server_is_not_ready_before_it_refuses_a_datagram(workers, end):
    if workers == 1 and "supervisor" in end:
        return  # there is none
    read, write = os.pipe()
    with Child("-c", PROGRAM, workers, read, pass_fds=(read,)) as child:
        port, http_port = map(int, child.line().split())
        assert probe(("127.0.0.1", http_port), "/ready") == (200, "ready\n")
        with client(("127.0.0.1", port)) as sock, client(("127.0.0.1", port)) as other:
            sock.send(end.encode())
            assert child.line() == "entered"
            ENDS[end](child, children(child.pid)[0] if workers > 1 else None)
            until_refused(other)
            assert probe(("127.0.0.1", http_port), "/ready") == (503, "draining\n")
            os.close(write)
            assert sock.recv(100) == end.encode()
        assert child.end()[0] == 0
    os.close(read)


def children(pid):
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [*map(int, text.split())]


def test_stuck_server_does_not_live(gate, monkeypatch):
    monkeypatch.setattr(health, "STUCK", 0.0)

    def handle(data, address):
        gate.wait()

    with server(handle, health=LOOPBACK) as serving, client(serving.address) as sock:
        sock.send(b"one")
        gate.until_entered()
        at = serving.health_address
        monkeypatch.setattr(health, "STUCK", 1e-9)
        eventually(lambda: probe(at, "/live")[0] == 200)  # nothing waits
        sock.send(b"two")
        eventually(lambda: probe(at, "/live")[0] == 503)
        gate.open()
        gate.until_entered()
        assert probe(at, "/live")[0] == 200
        gate.open()


def test_server_with_one_stopped_worker_does_not_live(monkeypatch):
    monkeypatch.setattr(health, "STUCK", 0.0)

    with server(tell_pid, workers=2, health=LOOPBACK) as serving:
        at, stopped = serving.health_address, int(ask(serving.address))
        monkeypatch.setattr(health, "STUCK", 1e-9)
        assert probe(at, "/live")[0] == 200
        os.kill(stopped, signal.SIGSTOP)
        try:
            with contextlib.ExitStack() as stack:
                for _ in range(50):  # some of them for the stopped worker
                    stack.enter_context(client(serving.address)).send(b"x")
                eventually(lambda: probe(at, "/live")[0] == 503)
                assert probe(at, "/live")[0] == 503
        finally:
            os.kill(stopped, signal.SIGCONT)
        eventually(lambda: probe(at, "/live")[0] == 200)


def test_server_without_a_running_worker_is_not_ready(monkeypatch):
    monkeypatch.setattr(supervisor, "FIRST_DELAY", 0.01)
    read, write = os.pipe()
    os.write(write, b"12")

    with server(tell_pid, workers=2, init=lambda: os.read(read, 1), health=LOOPBACK) as serving:
        at = serving.health_address

        def workers():
            _, text = probe(at, "/metrics")
            return re.search(r"^tomada_server_workers\{.*\} (.*)$", text, re.MULTILINE)[1]

        assert (probe(at, "/ready"), workers()) == ((200, "ready\n"), "2.0")
        pids = set()
        eventually(lambda: pids.add(int(ask(serving.address))) or len(pids) == 2)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: probe(at, "/ready") == (503, "no worker is running\n"))
        assert workers() == "0.0"
        os.write(write, b"3")
        eventually(lambda: probe(at, "/ready") == (200, "ready\n"))
        assert workers() == "1.0"
        # The worker that does not start yet must not get the other one restarted.
        with contextlib.ExitStack() as stack:
            for _ in range(50):  # some of them for the missing worker
                stack.enter_context(client(serving.address)).send(b"x")
            monkeypatch.setattr(health, "STUCK", 1e-9)
            eventually(lambda: [probe(at, "/live")[0] for _ in range(3)] == [200] * 3)
        os.write(write, b"4")
        eventually(lambda: workers() == "2.0")
    os.close(read)
    os.close(write)


@pytest.mark.parametrize(
    ("trusted", "payload"),
    [("10.0.0.0/8", header_for(("192.0.2.1", 9), LOOPBACK)), ("127.0.0.1", b"")],
)
def test_refused_headers_are_progress(trusted, payload):
    with server(echo, proxy=[trusted]) as serving, client(serving.address) as sock:
        sock.send(payload + b"data")
        counters = serving._run.context.counters  # noqa: SLF001 - what health.py sees
        eventually(lambda: counters.progress(0) == 1)


def test_datagram_that_has_just_arrived_does_not_end_an_idle_server(monkeypatch):
    now, progress = 1000.0, [0, 0]
    monkeypatch.setattr(health, "time", SimpleNamespace(monotonic=lambda: now))
    counters = SimpleNamespace(progress=lambda worker: progress[worker])
    with (
        std.socket(std.AF_INET, std.SOCK_DGRAM) as sock,
        std.socket(std.AF_INET, std.SOCK_DGRAM) as sender,
    ):
        sock.bind(LOOPBACK)
        listeners = SimpleNamespace(sockets=[sock], of=lambda _: sock)
        context = SimpleNamespace(
            counters=counters, listeners=listeners, settings=SimpleNamespace(cores=2)
        )
        life = SimpleNamespace(live_workers=frozenset({0, 1}))
        probed = health.Health(context, life)
        assert probed.is_live
        now += 2 * health.STUCK
        sender.sendto(b"x", sock.getsockname())
        assert probed.is_live
        now += health.STUCK
        assert not probed.is_live
        for worker in (0, 1):  # both receive from this socket
            progress[worker] = 1
            assert probed.is_live
            now += health.STUCK
            assert not probed.is_live


def is_closed(sock):
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def test_slow_clients_do_not_keep_others_from_an_answer():
    before = open_descriptors()
    with server(echo, health=LOOPBACK) as serving:
        at = serving.health_address
        slow = [std.create_connection(at) for _ in range(3 * health_http.CONNECTIONS)]
        for sock in slow:
            sock.sendall(b"GET /live HTTP/1.1\r\nX: ")
        assert probe(at, "/ready") == (200, "ready\n")
        assert is_closed(slow[0])  # for the others
        for sock in slow:
            sock.close()
    eventually(lambda: open_descriptors() == before)


def test_connection_that_takes_too_long_is_closed(monkeypatch):
    monkeypatch.setattr(health_http, "PATIENCE", 0.05)
    monkeypatch.setattr(health_http, "LOOK", 0.01)
    with server(echo, health=LOOPBACK) as serving:
        with std.create_connection(serving.health_address) as sock:
            sock.settimeout(DEADLINE)
            sock.sendall(b"GET /live HTT")
            assert is_closed(sock)
        assert probe(serving.health_address, "/ready")[0] == 200


def test_garbage_ends_its_own_connection_alone(caplog):
    with server(echo, health=LOOPBACK) as serving:
        at = serving.health_address
        for garbage in (b"GET " + b"x" * 100_000 + b"\r\n\r\n", b"\r\n"):
            # The server closes the connection without having read all of a long request, so
            # that any of the client's calls can find it reset.
            gone = contextlib.suppress(ConnectionResetError, BrokenPipeError)
            with std.create_connection(at, DEADLINE) as sock, gone:
                sock.sendall(garbage)
                while sock.recv(1 << 16):
                    pass
        with std.create_connection(at, DEADLINE) as sock, sock.makefile("rb") as answer:
            sock.sendall(b"\x00\xff\r\n\r\n")
            assert b"Error code: 400" in answer.read()
        assert probe(at, "/ready")[0] == 200
    assert not caplog.records


def test_metrics_that_always_fail_do_not_fill_the_log(caplog, monkeypatch):
    def fail(_):
        raise RuntimeError("the collector of the program is wrong")

    monkeypatch.setattr(health.Health, "metrics", fail)
    monkeypatch.setattr(_reports, "SECONDS_BETWEEN", math.inf)
    with server(echo, health=LOOPBACK) as serving:
        for _ in range(5):
            assert probe(serving.health_address, "/metrics") == (500, "see the log\n")
    (record,) = caplog.records
    assert record.message == "cannot answer /metrics"
    assert "the collector of the program is wrong" in record.exc_text


def test_health_port_is_free_when_the_server_has_ended():
    serving = server(echo, workers=2, health=LOOPBACK)
    serving.start()
    at = serving.health_address
    serving.stop()
    with server(echo, workers=2, health=at) as again:
        assert probe(again.health_address, "/ready")[0] == 200


def test_metrics_have_the_state_and_the_reasons_of_a_guard():
    pytest.importorskip("prometheus_client")
    guard = tomada.Guard(max_size=3)
    with server(echo, workers=2, guard=guard, health=LOOPBACK) as serving:
        assert ask(serving.address, b"abc") == b"abc"
        with client(serving.address) as sock:
            sock.send(b"too long")
            eventually(lambda: guard.stats().refused)
        status, text = probe(serving.health_address, "/metrics")
    assert status == 200
    assert re.search(r"^tomada_server_received_total\{.*\} 1\.0$", text, re.MULTILINE)
    assert re.search(r"^tomada_server_handler_seconds_total\{", text, re.MULTILINE)
    assert re.search(r'^tomada_server_state\{.*state="running"\} 1\.0$', text, re.MULTILINE)
    assert re.search(r'^tomada_server_state\{.*state="draining"\} 0\.0$', text, re.MULTILINE)
    assert re.search(r'^tomada_guard_refused_total\{.*"oversized"\} 1\.0$', text, re.MULTILINE)
    names = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
    assert len(names) == len(set(names))
    for name, kind in names:
        assert kind != "counter" or name.endswith("_total")


def test_metrics_of_a_collector_of_the_program_are_there_once():
    prometheus_client = pytest.importorskip("prometheus_client")
    from tomada.metrics import ServerCollector

    with server(echo, health=LOOPBACK) as serving:
        collector = ServerCollector(serving)
        text = probe(serving.health_address, "/metrics")[1]
        prometheus_client.REGISTRY.unregister(collector)
    assert text.count("# TYPE tomada_server_received_total") == 1
    assert "# TYPE process_cpu_seconds_total" in text


def test_metrics_without_prometheus_client_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tomada._server.collector", None)
    with server(echo, health=LOOPBACK) as serving:
        assert probe(serving.health_address, "/metrics") == (501, "install tomada[metrics]\n")


def test_probes_at_the_same_time():
    with server(echo, health=LOOPBACK) as serving:
        at = serving.health_address
        calls = [Call(probe, at, "/ready") for _ in range(8)]
        assert [call.result() for call in calls] == [(200, "ready\n")] * 8
    assert not [one for one in threading.enumerate() if one.name.endswith("-health")]
