"""Sockets given to transports and endpoints, and shared with other holders."""

import asyncio
import os
import socket as std
import struct
import warnings

import pytest

import tomada
from serving import server
from support import DEADLINE, FORKS
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
    """Return the state that a socket's holders share and that a transport restores."""
    return [sock.getsockopt(*option) for option in OPTIONS], has_kernel_filter(sock)


def mode(sock):
    return os.get_blocking(sock.fileno()), sock.gettimeout()


def has_kernel_filter(sock):
    # The value has as many bytes as the filter has instructions.
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


async def test_other_holder_reads_datagrams_sent_before_during_and_after(endpoint, shared, sender):
    sock, other = shared
    assert_reads_unmerged(other, sender)
    before = state(other)
    transport, protocol = await endpoint(sock=sock)
    transport.pause_reading()
    assert other.getsockopt(std.IPPROTO_UDP, socket.UDP_GRO) == 0
    assert_reads_unmerged(other, sender)
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
async def test_close_restores_options_that_the_transport_changed(
    endpoint, shared, sender, gro, end
):
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


async def test_options_set_by_the_user_stay(endpoint, shared):
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


async def test_given_socket_that_coalesces_is_split(endpoint, shared, sender):
    sock, _ = shared
    sock.setsockopt(std.IPPROTO_UDP, socket.UDP_GRO, 1)
    transport, protocol = await endpoint(sock=sock)
    send_run(sender, here(sock), b"".join(numbered(5)), 8)
    assert await protocol.received(5) == numbered(5)
    await close(transport, protocol)


async def test_filter_of_another_program_stays(endpoint, shared, sender):
    sock, other = shared
    # BPF_RET | BPF_K passes the first bytes of each datagram with its header: here all of them.
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


async def test_construction_that_fails_changes_nothing(endpoint, shared):
    sock, other = shared
    sock.settimeout(5)
    before = state(other), mode(sock)

    def fails():
        raise LookupError

    with pytest.raises(LookupError):
        await endpoint(fails, sock=sock)
    assert (state(other), mode(sock)) == before
    with pytest.raises(TypeError):
        await endpoint(sock=sock, guard="none")
    assert (state(other), mode(sock)) == before


async def test_construction_that_is_cancelled_changes_nothing(endpoint, shared):
    sock, other = shared
    before = state(other)
    task = asyncio.create_task(endpoint(sock=sock))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await turns(3)
    assert state(other) == before


async def test_endpoints_restore_options_too(runner, shared, sender):  # noqa: ARG001
    sock, other = shared
    before = state(other)
    async with open_endpoint(sock=sock) as endpoint:
        sender.sendto(b"x", here(sock))
        assert (await endpoint.recv_datagram()).data == b"x"
        assert state(other) != before
    assert state(other) == before
    assert_reads_unmerged(other, sender)


async def test_forgotten_transport_restores_options_too(runner, shared):  # noqa: ARG001
    sock, other = shared
    before = state(other)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Recorder, sock=sock)
    transport.pause_reading()
    assert state(other) != before
    with pytest.warns(ResourceWarning):
        transport.__del__()
    assert state(other) == before


# Several holders in one process


@pytest.fixture
def twin(shared):
    """Open another duplicate, for another transport, of the module of the first."""
    sock, _ = shared
    with type(sock)(fileno=os.dup(sock.fileno())) as twin:
        yield twin


@pytest.mark.parametrize("gro", [True, False])
@pytest.mark.parametrize("first", [0, 1])
async def test_last_transport_restores_the_options(endpoint, shared, twin, gro, first):
    sock, other = shared
    other.setsockopt(std.IPPROTO_UDP, socket.UDP_GRO, not gro)
    before = state(other)
    made = [await endpoint(sock=sock, gro=gro), await endpoint(sock=twin, gro=gro)]
    for transport, _ in made:
        transport.get_extra_info("datagram")
    during = state(other)
    assert during != before
    await close(*made[first])
    assert state(other) == during
    await close(*made[1 - first])
    assert state(other) == before


async def test_transport_that_coalesces_is_split_until_it_closes(endpoint, shared, twin, sender):
    sock, other = shared
    first = await endpoint(sock=sock, gro=True)
    transport, protocol = await endpoint(sock=twin)
    first[0].pause_reading()
    await close(*first)
    send_run(sender, here(other), b"".join(numbered(5)), 8)
    assert await protocol.received(5) == numbered(5)
    await close(transport, protocol)
    assert other.getsockopt(std.IPPROTO_UDP, socket.UDP_GRO) == 0


async def test_option_that_a_later_transport_changes_back(endpoint, shared, twin):
    sock, other = shared
    first = await endpoint(sock=sock, gro=True)
    second = await endpoint(sock=twin, gro=False)
    await close(*first)
    assert other.getsockopt(std.IPPROTO_UDP, socket.UDP_GRO) == 0
    await close(*second)
    assert other.getsockopt(std.IPPROTO_UDP, socket.UDP_GRO) == 0


async def assert_answers_from_where_it_was_asked(port):
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as asker:
        asker.setblocking(False)
        asker.connect(("127.0.0.2", port))
        asker.send(b"x")
        loop = asyncio.get_running_loop()
        assert await asyncio.wait_for(loop.sock_recv(asker, 100), DEADLINE) == b"x"


class Echo(Recorder):
    def datagram_received(self, data, addr):
        super().datagram_received(data, addr)
        self.transport.sendto(data, addr)


async def test_another_transport_still_replies_from_the_requested_address(endpoint, shared, twin):
    sock, other = shared
    first = await endpoint(sock=sock)
    second = await endpoint(Echo, sock=twin)
    await close(*first)
    await assert_answers_from_where_it_was_asked(here(other)[1])
    await close(*second)
    assert other.getsockopt(std.IPPROTO_IP, socket.IP_PKTINFO) == 0


@pytest.mark.parametrize("is_first", [True, False])
async def test_server_still_replies_from_the_requested_address(endpoint, shared, twin, is_first):
    sock, other = shared
    given = None if is_first else await endpoint(sock=sock)
    with server(lambda data, _: data, None, sock=twin):
        given = given or await endpoint(sock=sock)
        given[0].pause_reading()
        await close(*given)
        await assert_answers_from_where_it_was_asked(here(other)[1])


async def test_options_that_the_user_sets_meanwhile_stay(endpoint, shared):
    sock, other = shared
    with socket.socket(fileno=os.dup(sock.fileno())) as users:
        transport, protocol = await endpoint(sock=sock, gro=True)
        users.setsockopt(std.IPPROTO_IP, socket.IP_PKTINFO, 1)  # the same value as before
        other.setsockopt(std.IPPROTO_UDP, socket.UDP_GRO, 0)
        await close(transport, protocol)
    assert other.getsockopt(std.IPPROTO_IP, socket.IP_PKTINFO) == 1
    assert other.getsockopt(std.IPPROTO_UDP, socket.UDP_GRO) == 0


async def test_transport_of_another_library_does_not_hang(endpoint, shared, twin):
    # The standard transport on a duplicate would hang its loop in a blocking call.
    sock, other = shared
    first = await endpoint(sock=sock)
    twin.setblocking(False)  # as the standard transport does
    await close(*first)
    assert not os.get_blocking(other.fileno())
    assert twin.gettimeout() == 0


def run_in_child(function):
    if (child := os.fork()) == 0:
        status = 1
        try:
            warnings.simplefilter("ignore")
            function()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


@pytest.mark.filterwarnings(FORKS)
async def test_forked_child_leaves_its_parents_options(endpoint, shared):
    sock, other = shared
    guard = tomada.Guard(deny=["192.0.2.0/24"])
    transport, protocol = await endpoint(sock=sock, gro=True, guard=guard)
    during = state(other)
    assert run_in_child(transport.__del__) == 0
    assert state(other) == during
    await close(transport, protocol)
    assert state(other) != during
