"""Sockets that are given to transports and endpoints, and shared with other holders."""

import asyncio
import os
import socket as std
import struct

import pytest

import tomada
from support import DEADLINE
from tomada import socket
from tomada.asyncio import open_endpoint
from traffic import numbered, send_run
from transports import Recorder, turns

# The options that a transport may change, by level and name.
OPTIONS = (
    (std.IPPROTO_UDP, socket.UDP_GRO),
    (std.IPPROTO_IP, socket.IP_PKTINFO),
    (std.IPPROTO_IP, socket.IP_RECVERR),
    (std.IPPROTO_IP, socket.IP_RECVTTL),
    (std.IPPROTO_IP, socket.IP_RECVTOS),
    (std.SOL_SOCKET, socket.SO_TIMESTAMPNS),
)

# SO_GET_FILTER in the kernel's asm-generic/socket.h.
SO_GET_FILTER = 26


def state(sock):
    """Return all state of a socket that its holders share."""
    options = [sock.getsockopt(*option) for option in OPTIONS]
    has_filter = has_kernel_filter(sock)
    return options, has_filter, os.get_blocking(sock.fileno())


def has_kernel_filter(sock):
    # The result has the length of the filter's program.
    try:
        return bool(sock.getsockopt(std.SOL_SOCKET, SO_GET_FILTER, 1024))
    except OSError:
        return True


@pytest.fixture(params=[std, socket], ids=["standard", "tomada"])
def shared(request):
    """Open a socket, and a duplicate that belongs to another holder."""
    with request.param.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", 0))  # noqa: S104 - replies then need the local address
        with std.socket(fileno=os.dup(sock.fileno())) as other:
            yield sock, other


def here(sock):
    return ("127.0.0.1", sock.getsockname()[1])


def assert_reads_unmerged(other, sender):
    send_run(sender, here(other), b"".join(numbered(5)), 8)
    other.settimeout(DEADLINE)
    assert [other.recv(1 << 16) for _ in range(5)] == numbered(5)
    os.set_blocking(other.fileno(), True)


async def test_others_read_what_was_sent_before_during_and_after(endpoint, shared, sender):
    sock, other = shared
    assert_reads_unmerged(other, sender)
    before = state(other)
    transport, protocol = await endpoint(sock=sock)
    transport.pause_reading()
    assert other.getsockopt(std.IPPROTO_UDP, socket.UDP_GRO) == 0
    assert_reads_unmerged(other, sender)
    os.set_blocking(other.fileno(), False)  # as the transport found it
    transport.resume_reading()
    sender.sendto(b"x", here(other))
    await protocol.received(1)
    transport.close()
    await protocol.lost()
    assert state(other) == before
    assert_reads_unmerged(other, sender)


async def close(transport, protocol):
    transport.close()
    await protocol.lost()


async def abort(transport, protocol):
    transport.abort()
    await protocol.lost()


@pytest.mark.parametrize("end", [close, abort])
@pytest.mark.parametrize("gro", [None, False, True])
async def test_what_a_transport_changes_is_restored(endpoint, shared, sender, gro, end):
    sock, other = shared
    before = state(other)
    guard = tomada.Guard(deny=["192.0.2.0/24"])
    transport, protocol = await endpoint(sock=sock, gro=gro, guard=guard)
    transport.get_extra_info("datagram")  # this enables all metadata options
    await turns(2)
    assert state(other) != before
    assert other.getsockopt(std.IPPROTO_UDP, socket.UDP_GRO) == bool(gro)
    await end(transport, protocol)
    await turns(2)
    assert state(other) == before
    assert_reads_unmerged(other, sender)


async def test_what_the_user_had_set_stays(endpoint, shared):
    sock, other = shared
    sock.setsockopt(std.IPPROTO_IP, socket.IP_PKTINFO, 1)
    sock.setsockopt(std.IPPROTO_IP, socket.IP_RECVERR, 1)
    sock.setsockopt(std.IPPROTO_UDP, socket.UDP_GRO, 1)
    sock.setblocking(False)
    before = state(other)
    transport, protocol = await endpoint(sock=sock)
    transport.get_extra_info("datagram")
    await close(transport, protocol)
    assert state(other) == before


async def test_a_socket_that_merges_is_split(endpoint, shared, sender):
    sock, _ = shared
    sock.setsockopt(std.IPPROTO_UDP, socket.UDP_GRO, 1)
    transport, protocol = await endpoint(sock=sock)
    send_run(sender, here(sock), b"".join(numbered(5)), 8)
    assert await protocol.received(5) == numbered(5)
    await close(transport, protocol)


async def test_another_programs_filter_stays(endpoint, shared, sender):
    sock, other = shared
    # BPF_RET | BPF_K passes the first bytes of each datagram, including its header: here all.
    program = struct.pack("HBBI", 6, 0, 0, 0xFFFF)
    memory = bytearray(program)
    attach(other, memory)
    transport, protocol = await endpoint(sock=sock, guard=tomada.Guard(deny=["192.0.2.0/24"]))
    sender.sendto(b"x", here(sock))
    await protocol.received(1)
    await close(transport, protocol)
    assert has_kernel_filter(other)


def attach(sock, memory):
    import ctypes

    buffer = (ctypes.c_char * len(memory)).from_buffer(memory)
    value = struct.pack("HL", 1, ctypes.addressof(buffer))
    sock.setsockopt(std.SOL_SOCKET, socket.SO_ATTACH_FILTER, value)


async def test_a_construction_that_fails_changes_nothing(endpoint, shared):
    sock, other = shared
    sock.settimeout(5)
    # The blocking mode is shared; the standard module's timeout has changed it.
    before, timeout = state(other), sock.gettimeout()

    def fails():
        raise LookupError

    with pytest.raises(LookupError):
        await endpoint(fails, sock=sock)
    assert (state(other), sock.gettimeout()) == (before, timeout)
    with pytest.raises(TypeError):
        await endpoint(sock=sock, guard="none")
    assert (state(other), sock.gettimeout()) == (before, timeout)


async def test_a_construction_that_is_cancelled_changes_nothing(endpoint, shared):
    sock, other = shared
    before = state(other)
    task = asyncio.create_task(endpoint(sock=sock))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await turns(3)
    assert state(other) == before


async def test_endpoints_restore_too(runner, shared, sender):  # noqa: ARG001
    sock, other = shared
    before = state(other)
    async with open_endpoint(sock=sock) as endpoint:
        sender.sendto(b"x", here(sock))
        assert (await endpoint.recv_datagram()).data == b"x"
        assert state(other) != before
    assert state(other) == before
    assert_reads_unmerged(other, sender)


async def test_gro_is_on_for_sockets_of_its_own(endpoint):
    transport, _ = await endpoint()
    assert transport.get_extra_info("socket").getsockopt(std.IPPROTO_UDP, socket.UDP_GRO) == 1


async def test_a_transport_that_is_forgotten_restores_too(runner, shared):  # noqa: ARG001
    sock, other = shared
    before = state(other)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Recorder, sock=sock)
    transport.pause_reading()
    assert state(other) != before
    with pytest.warns(ResourceWarning):
        transport.__del__()
    assert state(other) == before
