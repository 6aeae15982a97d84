"""Signals that end a server or replace its workers, and that leave no process behind."""

import os
import re
import signal
import textwrap
from pathlib import Path

import pytest

from serving import Load, ask, client, members
from support import Child, eventually

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

# A server that prints its address and, when it returns, its counters.
PROGRAM = """
import os, sys, threading, time, tomada

def handle(data, address):
    if data == b"block":
        print("blocked", flush=True)
        while True:
            time.sleep(60)
    return b"%d %s" % (os.getpid(), data)

server = tomada.Server(("127.0.0.1", 0), handle, workers={workers}, drain={drain})

def tell():
    server.ready.wait()
    print(*server.address, flush=True)

threading.Thread(target=tell, daemon=True).start()
server.serve_forever()
stats = server.stats()
print(stats.received, stats.sent, stats.restarts, flush=True)
"""

WORKERS = [1, 2]


@pytest.fixture
def serve(interruptible):
    children = []

    def start(workers=1, drain=5.0, program=PROGRAM):
        child = Child("-c", textwrap.dedent(program).format(workers=workers, drain=drain))
        children.append(child)
        host, port = child.line().split()
        return child, (host, int(port))

    yield start
    for child in children:
        child.__exit__()


def counts(child):
    status, output, errors = child.end()
    assert status == 0, errors
    return [int(count) for count in output.split()], errors


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_under_load_leaves_no_request_without_reply_or_refusal(serve, workers, number):
    child, address = serve(workers)
    with Load(address) as load:
        eventually(lambda: load.answered > 200)
        child.signal(number)
        load.join()
    (received, sent, restarts), errors = counts(child)
    assert load.lost == 0
    assert load.refused == 4
    assert received == sent == load.answered
    assert restarts == 0
    assert errors == ""
    assert members(child.pid) == []


@pytest.mark.parametrize("workers", WORKERS)
def test_ctrl_c_in_a_terminal_reaches_all_processes_and_leaves_none(serve, workers):
    child, address = serve(workers)
    assert ask(address)
    os.killpg(child.pid, signal.SIGINT)
    (received, sent, restarts), errors = counts(child)
    assert (received, sent, restarts) == (1, 1, 0)
    assert errors == ""
    assert members(child.pid) == []


def test_sighup_changes_nothing_in_a_server_with_one_process(serve):
    child, address = serve(1)
    assert ask(address)
    child.signal(signal.SIGHUP)
    assert ask(address)
    child.signal(signal.SIGTERM)
    (received, sent, restarts), errors = counts(child)
    assert (received, sent, restarts) == (2, 2, 0)
    assert errors == ""


def test_sighup_replaces_the_workers_under_load_and_loses_nothing(serve):
    child, address = serve(2)
    with Load(address) as load:
        eventually(lambda: len(load.replies) >= 1)
        for _ in range(3):
            before = set(load.replies)
            child.signal(signal.SIGHUP)
            eventually(lambda: load.replies.keys() - before)  # noqa: B023 - called immediately
        load.stop()
    child.signal(signal.SIGTERM)
    (received, sent, restarts), errors = counts(child)
    assert (load.lost, load.refused, restarts) == (0, 0, 0)
    assert received == sent == load.answered
    assert errors == ""


@pytest.mark.parametrize("workers", WORKERS)
def test_blocked_handler_does_not_keep_the_program_from_exiting(serve, workers):
    child, address = serve(workers, drain=0.1)
    with client(address) as sock:
        sock.send(b"block")
        assert child.line() == "blocked"
        child.signal(signal.SIGTERM)
        _, errors = counts(child)
    assert re.search("has not returned|has not exited in time", errors)
    assert members(child.pid) == []


@pytest.mark.parametrize("workers", WORKERS)
def test_second_ctrl_c_ends_the_server_at_once(serve, workers):
    child, address = serve(workers, drain=1000)
    with client(address) as sock:
        sock.send(b"block")
        assert child.line() == "blocked"
        child.signal(signal.SIGINT)
        with client(address, 0.05) as other:
            eventually(lambda: is_refused(other))
        child.signal(signal.SIGINT)
        status, _, errors = child.end()
    assert status != 0
    assert "KeyboardInterrupt" in errors
    eventually(lambda: members(child.pid) == [])


def is_refused(sock):
    try:
        sock.send(b"x")
        sock.recv(10)
    except ConnectionRefusedError:
        return True
    except TimeoutError:
        pass
    return False


def test_workers_exit_when_the_program_is_killed(serve):
    child, address = serve(2)
    assert ask(address)
    child.signal(signal.SIGKILL)
    eventually(lambda: members(child.pid) == [])


def test_workers_exit_and_the_program_fails_when_the_supervisor_is_killed(serve):
    child, address = serve(2)
    worker = int(ask(address).split()[0])
    supervisor = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(supervisor, signal.SIGKILL)
    status, _, errors = child.end()
    assert status == 1
    assert "supervisor of the workers has ended with status -9" in errors
    eventually(lambda: members(child.pid) == [])


def test_sigterm_to_the_supervisor_ends_all_processes_in_order(serve):
    child, address = serve(2)
    worker = int(ask(address).split()[0])
    supervisor = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(supervisor, signal.SIGTERM)
    (received, sent, _), errors = counts(child)
    assert received == sent == 1
    assert errors == ""
    assert members(child.pid) == []


def test_server_in_the_background_ends_with_its_program(serve):
    for workers in WORKERS:
        child, address = serve(
            workers,
            program="""
            import tomada
            server = tomada.Server(("127.0.0.1", 0), lambda data, _: data, workers={workers})
            server.start()
            print(*server.address, flush=True)
            input()
            """,
        )
        assert ask(address) == b"ping"
        child.tell("\n")
        status, _, errors = child.end()
        assert (status, errors) == (0, "")
        eventually(lambda: members(child.pid) == [])  # noqa: B023 - polled at once


def test_serve_is_a_whole_program(serve):
    child, address = serve(
        program="""
        import tomada
        def handle(data, address):
            return b"%d bytes" % len(data)
        import socket
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.bind(("127.0.0.1", 0))
            address = s.getsockname()
        print(*address, flush=True)
        tomada.serve(address, handle)
        print("served")
        """,
    )
    eventually(lambda: answers(address, b"4 bytes"))
    child.signal(signal.SIGTERM)
    assert child.end()[:2] == (0, "served\n")


def answers(address, expected):
    try:
        return ask(address, timeout=0.2) == expected
    except (ConnectionRefusedError, TimeoutError):
        return False


def test_serve_restores_the_programs_own_handlers(serve):
    child, _ = serve(
        program="""
        import signal, threading, tomada
        mine = lambda *_: None
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for number in numbers:
            signal.signal(number, mine)
        server = tomada.Server(("127.0.0.1", 0), lambda data, _: data, workers=2)
        threading.Thread(
            target=lambda: (server.ready.wait(), print(*server.address, flush=True))
        ).start()
        server.serve_forever()
        print([signal.getsignal(number) is mine for number in numbers], signal.set_wakeup_fd(-1))
        """,
    )
    child.signal(signal.SIGTERM)
    assert child.end()[:2] == (0, "[True, True, True] -1\n")
