"""Guards of servers, in one process and in several."""

import os
import signal

import pytest

import tomada
from floods import accounted
from serving import ask, client, server
from support import FORKS, eventually
from tomada import socket

pytestmark = pytest.mark.thread_unsafe(reason="it forks")


@pytest.mark.parametrize("workers", [1, 2])
def test_server_replies_to_peers_that_its_guard_admits(workers):
    guard = tomada.Guard(deny=["127.0.0.2"])
    with server(lambda data, _: data, guard=guard, workers=workers) as running:
        with client(running.address, local=("127.0.0.2", 0), timeout=0.2) as denied:
            denied.send(b"let me in")
            for _ in range(10):
                assert ask(running.address) == b"ping"
            with pytest.raises(TimeoutError):
                denied.recv(100)
        assert running.stats().received == 10


def test_server_guard_must_be_a_guard():
    with pytest.raises(TypeError), server(lambda data, _: data, guard="127.0.0.0/8"):
        pass


def counts(guard):
    stats = guard.stats()
    return stats.admitted, stats.refused


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_guard_counters_are_those_of_all_workers(workers):
    guard = tomada.Guard(max_size=100)
    with server(lambda data, _: data, guard=guard, workers=workers) as running:
        for _ in range(20):
            with client(running.address) as sock:  # a new peer, which may reach another worker
                sock.send(bytes(101))
                sock.send(b"x")
                assert sock.recv(10) == b"x"
        eventually(lambda: counts(guard) == (20, 20))
        eventually(lambda: accounted(running.stats()) == 40)
        stats = running.stats()
        assert (stats.received, stats.refused) == counts(guard)
        assert guard.stats().oversized == 20
        assert "20 admitted, 20 refused" in repr(guard)
    assert counts(guard) == (20, 20)


def test_guard_counters_outlive_the_workers():
    def handle(data, _):
        if data == b"die":
            os.kill(os.getpid(), signal.SIGKILL)
        return data

    guard = tomada.Guard(rate=1e6)
    with server(handle, guard=guard, workers=2) as running:
        for count in (1, 2, 3):
            with client(running.address) as sock:
                sock.send(b"die")
            eventually(lambda: running.stats().restarts == count)  # noqa: B023
            assert ask(running.address, timeout=60) == b"ping"
        eventually(lambda: counts(guard) == (6, 0))
        running.replace_workers()
        for _ in range(10):
            assert ask(running.address) == b"ping"
        eventually(lambda: counts(guard) == (16, 0))
        assert running.stats().received == 16


def test_guard_shared_by_two_servers_and_a_socket_counts_for_all(inet):
    guard = tomada.Guard(amplification=1)
    with (
        server(lambda data, _: data, guard=guard, workers=2) as one,
        server(lambda data, _: data * 2, guard=guard) as other,
        inet.bound(socket) as sock,
    ):
        sock.guard = guard
        assert ask(one.address) == b"ping"
        with client(sock.getsockname()) as sender:
            sender.send(b"x")
            assert sock.recv(10) == b"x"
        with client(other.address) as sender:
            sender.send(b"much")
            eventually(lambda: guard.stats().over_amplification == 1)
        eventually(lambda: counts(guard) == (3, 0))


@pytest.mark.filterwarnings(FORKS)
def test_guard_in_a_child_counts_for_its_parent_too(inet):
    with inet.bound(socket) as sock, inet.open(socket) as sender:
        sock.guard = guard = tomada.Guard(max_size=10)
        for _ in range(2):
            sender.sendto(b"x", sock.getsockname())
        assert sock.recv(10) == b"x"
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = int((sock.recv(10), counts(guard)) != (b"x", (2, 0)))
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert counts(guard) == (2, 0)


def test_rate_for_ipv6_is_per_network(network):
    namespace = network.namespace()
    # A machine can use any address of its network.
    namespace.command("ip", "route", "add", "local", "fd00::/64", "dev", "lo")
    with namespace.open(socket, socket.AF_INET6) as sock:
        namespace.run(sock.bind, ("::", 0))
        sock.guard = guard = tomada.Guard(rate=0.001, burst=1)
        for number in range(1, 20):
            with namespace.open(socket, socket.AF_INET6) as sender:
                sender.setsockopt(socket.IPPROTO_IPV6, 78, 1)  # IPV6_FREEBIND
                sender.bind((f"fd00::{number}", 0))
                sender.sendto(b"x", ("::1", sock.getsockname()[1]))
        sock.setblocking(False)
        assert len(sock.recv_many(100)) == 1
        assert counts(guard) == (1, 18)
