"""Buffers longer than all memory: a mapped sparse file, which takes no memory."""

import errno
import mmap
import os
import socket as std

import pytest

import tomada
from parity import assert_same
from serving import ask, server
from tomada import socket

LONG = 2**42


@pytest.fixture(scope="module")
def long():
    file = os.memfd_create("long")
    os.truncate(file, LONG)
    with mmap.mmap(file, LONG, access=mmap.ACCESS_READ) as mapped:
        os.close(file)
        yield mapped


CALLS = {
    "bind": lambda sock, long: sock.bind(long),
    "connect": lambda sock, long: sock.connect(long),
    "sendto": lambda sock, long: sock.sendto(b"x", long),
    "send": lambda sock, long: sock.send(long),
    "sendmsg": lambda sock, long: sock.sendmsg([long]),
    "ancdata": lambda sock, long: sock.sendmsg([b"x"], [(1, 1, long)]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_socket_rejects_a_huge_buffer(call, long):
    assert_same(lambda side: call(side.open(std.AF_UNIX), long), OSError)


def test_setsockopt_rejects_a_huge_buffer(long):
    with (
        socket.socket(std.AF_UNIX, std.SOCK_DGRAM) as sock,
        pytest.raises((OSError, MemoryError)),
    ):
        sock.setsockopt(std.SOL_SOCKET, std.SO_REUSEADDR, long)


def test_batch_rejects_a_huge_buffer(long):
    batch = tomada.Batch()
    for append in (lambda: batch.append(long), lambda: batch.extend(long, 1000)):
        with pytest.raises(ValueError, match=f"no room for {LONG} bytes more"):
            append()
    assert len(batch) == 0


async def test_transport_rejects_a_huge_buffer(endpoint, long):
    transport, protocol = await endpoint()
    with memoryview(long) as view:
        transport.sendto(view, transport.get_extra_info("sockname"))
    assert [error.errno for error in protocol.errors] == [errno.EMSGSIZE]
    assert transport.get_write_buffer_size() == 0


def test_server_rejects_a_huge_reply(long):
    def handle(_, address):
        with memoryview(long) as view:
            try:
                serving.sendto(view, address)
            except OSError as error:
                return b"%d" % error.errno

    with server(handle) as serving:
        assert ask(serving.address) == b"%d" % errno.EMSGSIZE
