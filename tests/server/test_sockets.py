"""Sockets given to a server: by the program, by descriptor number, and by systemd."""

import os
import socket as std
import subprocess
import sys

import pytest

from peer import DEADLINE
from serving import ask, client, server
from skips import NO_IPV6, needs
from support import Kind, eventually, open_descriptors
from tomada import socket
from tomada._address import format_address
from traffic import numbered


def echo(data, _):
    return data


@pytest.mark.parametrize("module", [std, socket])
def test_given_socket_stays_open(module, inet):
    with inet.bound(module) as sock:
        with server(echo, None, sock=sock) as serving:
            assert serving.address == sock.getsockname()
            assert ask(serving.address, b"x") == b"x"
        with client(sock.getsockname(), local=("127.0.0.1", 0)) as asker:
            asker.send(b"after the server")
            assert sock.recvfrom(100) == (b"after the server", asker.getsockname())


def test_given_socket_has_its_queued_datagrams_handled(inet):
    with inet.bound(std) as sock, client(sock.getsockname()) as asker:
        for data in numbered(5):
            asker.send(data)
        with server(echo, None, sock=sock):
            assert [asker.recv(100) for _ in range(5)] == numbered(5)


def test_given_socket_has_its_backlog_handled(inet):
    with inet.bound(socket) as sock, client(sock.getsockname()) as asker:
        sock.gro = True
        for data in numbered(5):
            asker.send(data)
        assert sock.recvfrom(100)[0] == numbered(5)[0]
        with server(echo, None, sock=sock):
            assert [asker.recv(100) for _ in range(4)] == numbered(5)[1:]


def test_given_descriptor_is_owned_by_the_server(inet):
    sock = inet.bound(std)
    address, before = sock.getsockname(), open_descriptors()
    with server(echo, None, fd=sock.detach()) as serving:
        assert serving.address == address
        assert ask(address, b"x") == b"x"
    # The thread's own descriptors are closed at its very end.
    eventually(lambda: open_descriptors() <= before - 1)


@pytest.mark.parametrize("workers", [1, 3])
def test_given_socket_is_shared_by_workers(inet, workers):
    with inet.bound(std) as sock, server(echo, None, sock=sock, workers=workers) as serving:
        for data in numbered(20):
            assert ask(serving.address, data) == data


def test_given_socketpair_works_without_names():
    ours, theirs = std.socketpair(std.AF_UNIX, std.SOCK_DGRAM)
    with theirs, ours, server(echo, None, sock=ours):
        theirs.settimeout(DEADLINE)
        theirs.send(b"x")
        assert theirs.recv(10) == b"x"


def test_given_socket_must_be_a_bound_datagram_socket_and_stays_open(inet):
    before = open_descriptors()
    with std.socket(std.AF_INET, std.SOCK_STREAM) as stream:
        for options in ({"sock": stream}, {"fd": stream.fileno()}):
            with pytest.raises(ValueError, match="no datagram socket"):
                server(echo, None, **options).start()
        assert stream.fileno() >= 0
        assert stream.getsockname()
    with inet.open(std) as unbound:
        for options in ({"sock": unbound}, {"fd": unbound.fileno()}):
            with pytest.raises(ValueError, match="bound to no address"):
                server(echo, None, **options).start()
        assert unbound.getsockname()
    with pytest.raises(OSError, match="Bad file descriptor: descriptor "):
        server(echo, None, fd=12345).start()
    eventually(lambda: open_descriptors() <= before)


def test_server_without_any_address_lists_the_options(monkeypatch):
    monkeypatch.delenv("LISTEN_FDS", raising=False)
    with pytest.raises(ValueError, match="LISTEN_FDS"):
        server(echo, None).start()


def test_descriptors_passed_to_another_process_are_not_taken(monkeypatch):
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", "1")
    with pytest.raises(ValueError, match="no address to serve"):
        server(echo, None).start()
    assert "LISTEN_FDS" not in os.environ


PROGRAM = """
import os, sys, threading, tomada
server = tomada.Server(None, lambda data, address: data[::-1], workers=int(sys.argv[1]))
def tell():
    server.ready.wait()
    print(server.address, os.environ.get("LISTEN_FDS"), os.get_inheritable(3), flush=True)
threading.Thread(target=tell, daemon=True).start()
server.serve_forever()
"""


@needs("systemd-socket-activate")
@pytest.mark.parametrize("name", ["AF_INET", "AF_INET6", "path"])
@pytest.mark.parametrize("workers", [1, 2])
def test_systemd_passes_a_socket(tmp_path, name, workers, speaks_ipv6):
    kind = Kind(name, tmp_path)
    if name == "AF_INET6" and not speaks_ipv6:
        pytest.skip(NO_IPV6)
    address = kind.address()
    if not kind.is_unix:
        with kind.bound(std) as sock:
            address = sock.getsockname()  # soon released
    command = ["systemd-socket-activate", "--datagram", "--listen", format_address(address)]
    command += [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(
        [*command, str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,
    ) as process:
        try:
            eventually(lambda: is_listening(process))
            # The first datagram starts the program, and gets a reply too.
            with client(address, local=kind.address()) as sock:
                sock.send(b"first")
                assert sock.recv(100) == b"tsrif"
                assert f"{address} None False" in process.stdout.readline().decode()
                for data in numbered(10):
                    sock.send(data)
                    assert sock.recv(100) == data[::-1]
            process.terminate()
            assert process.wait(DEADLINE) == 0
        finally:
            process.kill()


@needs("systemd-socket-activate")
@pytest.mark.parametrize("workers", [1, 2])
def test_systemd_passes_several_sockets_to_as_many_workers(tmp_path, workers):
    paths = [str(tmp_path / name) for name in ("first", "second")]
    listens = [f"--listen={path}" for path in paths]
    command = [
        "systemd-socket-activate",
        "--datagram",
        *listens,
        sys.executable,
        "-c",
        PROGRAM,
        str(workers),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        try:
            eventually(lambda: is_listening(process))
            eventually(lambda: is_listening(process))
            for number, path in enumerate(paths):
                with client(path, local=str(tmp_path / str(number))) as sock:
                    sock.send(b"abc")
                    if workers == 2:
                        assert sock.recv(100) == b"cba"
            if workers == 1:
                _, errors = process.communicate(timeout=DEADLINE)
                assert b"each of which needs a worker: pass workers=2" in errors
        finally:
            process.terminate()


def is_listening(process):
    line = process.stderr.readline()
    assert line, "the service has exited"
    return line.startswith(b"Listening on")


@pytest.mark.thread_unsafe(reason="it changes its parameter")
@pytest.mark.parametrize("options", [{"groups": ["239.1.2.3"]}, {"fd": True}])
def test_steering_requires_a_socket_per_worker(options, inet):
    address = ("127.0.0.1", 0)
    with inet.bound(std) as sock:
        if options.pop("fd", None):
            address, options = None, {"sock": sock}
        with pytest.raises(ValueError, match="nothing to steer"):
            server(echo, address, workers=2, steering="cpu", **options).start()
