"""Large amounts: a million datagrams, long ones, resized buffers, and received descriptors."""

import errno
import gc
import os
import socket as std
import weakref
from pathlib import Path

import pytest

import tomada
from skips import NO_ROOT
from support import DEADLINE, Call, fill, open_descriptors, run
from tomada import socket
from traffic import RECEIVE_SOME, payloads

MEMORY = """
import resource, sys
import socket as std
import tomada
from tomada import socket

def used():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

receiver = std.socket(std.AF_INET, std.SOCK_DGRAM)
receiver.bind(("127.0.0.1", 0))
to = receiver.getsockname()
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
"""


@pytest.mark.parametrize(
    "datagrams",
    [
        "[b'%03d' % (at % 1000) for at in range(1_000_000)]",
        "[(data, to) for data in (b'x' * 100, b'y' * 99) for _ in range(500_000)]",
        "(bytes(at % 700) for at in range(1_000_000))",
    ],
    ids=["payloads", "pairs", "generated"],
)
def test_send_many_of_a_million_datagrams_takes_no_more_memory_than_a_few(datagrams):
    program = f"""
sender.connect(to)
datagrams = {datagrams}
sender.send_many([bytes(65_507)] * 100)
before = used()
assert sender.send_many(datagrams) == 1_000_000
assert used() - before < 64, (before, used())
assert sender.stats().sent == 1_000_100
"""
    assert run(MEMORY + program) == ""


def test_recv_many_with_a_huge_maximum_allocates_no_memory():
    program = """
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("127.0.0.1", 0))
sock.sendto(b"x", sock.getsockname())
sock.recv_many()
before = used()
for most in (10**6, 10**9, sys.maxsize):
    sock.sendto(b"x", sock.getsockname())
    assert len(sock.recv_many(most)) == 1
assert used() - before < 8, (before, used())
"""
    assert run(MEMORY + program) == ""


def test_recv_many_leaks_no_memory():
    program = """
import gc
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("127.0.0.1", 0))
def rounds(count):
    for _ in range(count):
        sender.send_many([bytes(60_000)] * 2, sock.getsockname())
        kept = sock.recv_many()
        assert len(kept) == 2
rounds(50)
before = used()
rounds(2000)
assert used() - before < 8, (before, used())
"""
    assert run(MEMORY + program) == ""


def test_send_many_prevents_resizing_a_buffer(unix):
    with unix.bound(socket) as receiver, unix.open(socket) as sender:
        count = fill(sender, receiver.getsockname())
        buffers = [bytearray(b"%d" % number) * 100 for number in range(5)]
        expected = [bytes(buffer) for buffer in buffers]
        call = Call(sender.send_many, buffers, receiver.getsockname()).until_it_waits()
        for buffer in buffers:
            with pytest.raises(BufferError):
                buffer.extend(b"more")
        received = [receiver.recv(1000) for _ in range(count + 5)]
        assert call.result() == 5
        assert received[count:] == expected
        for buffer in buffers:
            buffer.extend(b"more")


@pytest.mark.parametrize("errors", ["raise", "continue"])
def test_send_many_releases_buffers_after_errors(inet, errors):
    with inet.bound(socket) as sock:
        buffers = [bytearray(b"x"), bytearray(70_000), bytearray(b"y")]
        with pytest.raises(OSError):  # noqa: PT011 - of either kind
            sock.send_many([*buffers], sock.getsockname())
        with pytest.raises(TypeError):
            sock.send_many([*buffers[::2], None], sock.getsockname(), errors=errors)
        for buffer in buffers:
            buffer.extend(b"more")


def test_send_many_releases_sent_objects(inet):
    class Data(bytearray):
        pass

    with inet.bound(socket) as sock:
        data = Data(b"x")
        watch = weakref.ref(data)
        assert sock.send_many([data] * 3, sock.getsockname()) == 3
        assert sock.send_many([(data, sock.getsockname())]) == 1
        del data
        gc.collect()
        assert watch() is None


@pytest.mark.parametrize("size", [65_507, 65_536, 65_537, 100_000, 180_000])
def test_recv_many_does_not_truncate_a_long_af_unix_datagram(unix, peer, size):
    other = peer(unix)
    data = os.urandom(size)
    with unix.bound(socket) as sock, unix.open(std) as sender:
        for _ in range(2):
            sender.sendto(data, sock.getsockname())
            assert sock.recv_many() == [(data, None)]
        sender.sendto(data, sock.getsockname())
        (datagram,) = sock.recv_datagrams()
        assert (datagram.data, datagram.truncated) == (data, False)
        assert sock.send_many([data], other.address) == 1
        assert other.do("collect", count=1)[0][0] == data[: 1 << 17]
        assert sock.stats().truncated == 0


def test_recv_many_of_a_datagram_beyond_the_limit_of_send_buffers_is_not_truncated(unix):
    limit = int(Path("/proc/sys/net/core/wmem_max").read_text())
    size = min(2 * limit + 100_000, 550_000)  # the kernel allocates it in one piece
    with unix.bound(socket) as sock, unix.open(std) as sender:
        try:
            sender.setsockopt(std.SOL_SOCKET, socket.SO_SNDBUFFORCE, size)
        except PermissionError as error:
            pytest.skip(f"{NO_ROOT} send a datagram this long: {error}")
        sender.sendto(bytes(size), sock.getsockname())
        assert len(sock.recv_many()[0][0]) == size
        assert sock.stats().truncated == 0


def test_send_many_names_a_datagram_too_long_for_the_peers_queue(unix):
    with unix.bound(socket) as receiver, unix.open(socket) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)
        items = [b"a", bytes(1_000_000), b"b"]
        failures = sender.send_many(items, receiver.getsockname(), errors="continue")
        assert [(index, error.errno) for index, error in failures] == [(1, errno.EMSGSIZE)]
        assert payloads(receiver) == [b"a", b"b"]


MANY = {name: way for name, way in RECEIVE_SOME.items() if name != "recvfrom"}


@pytest.mark.thread_unsafe(reason="descriptor numbers are reused")
@pytest.mark.parametrize("take", MANY.values(), ids=MANY)
def test_recv_many_closes_received_descriptors(unix, peer, take):
    other = peer(unix)
    with unix.bound(socket) as sock:
        sock.sendto(b"x", sock.getsockname())
        take(sock, 10)
        before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names only
        for _ in range(3):
            other.do("send_file", text="not wanted", to=sock.getsockname())
        received = []
        while len(received) < 3:
            received += take(sock, 10)
        assert received == [(b"a file", other.address)] * 3
        assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_many_short_threads_leak_no_memory_or_descriptors(inet):
    with inet.bound(socket) as sock:
        batch = tomada.Batch(4)

        def use():
            sock.send_many([b"a", b"b"], sock.getsockname())
            assert len(sock.recv_many()) == 2
            sock.send_many([b"c"], sock.getsockname())
            return sock.recv_batch(batch)

        assert Call(use).result() == 1
        before = open_descriptors()
        for _ in range(50):
            assert Call(use).result(DEADLINE) == 1
        assert open_descriptors() == before
