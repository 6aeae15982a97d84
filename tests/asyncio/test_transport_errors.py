"""Errors around transports, which continue: ICMP, protocols that raise, lost sockets."""

import asyncio
import errno
import os
import socket as std

import pytest

import tomada
from support import RefusalError
from tomada import socket
from traffic import numbered
from transports import Batches, Recorder, hear, local, recorder, turns


def vacant(kind):
    """Make an address where no socket is bound any longer."""
    with kind.bound(std) as gone:
        return gone.getsockname()


async def test_error_received_gets_refusals_and_nothing_closes(endpoint, inet):
    with inet.bound(std) as other:
        address = other.getsockname()
    transport, protocol = await endpoint(remote_addr=address)
    for count in range(1, 6):
        transport.sendto(b"lost")
        await protocol.until(lambda count=count: len(protocol.errors) >= count)
        await turns(2)
    assert {type(error) for error in protocol.errors} == {ConnectionRefusedError}
    assert not transport.is_closing()
    with inet.open(std) as other:
        other.bind(address)
        other.connect(transport.get_extra_info("sockname"))
        other.send(b"here I am")
        assert await protocol.received(1) == [b"here I am"]
        transport.sendto(b"at last")
        assert await hear(other) == [b"at last"]


async def test_refusal_does_not_swallow_a_datagram(endpoint, inet):
    # The kernel reports it instead of sending the next datagram.
    with inet.bound(std) as other:
        address = other.getsockname()
    transport, protocol = await endpoint(remote_addr=address)
    transport.sendto(b"lost")
    with inet.open(std) as other:
        other.bind(address)
        transport.sendto_many(numbered(5))
        assert await hear(other, 5) == numbered(5)
        assert [type(error) for error in protocol.errors] == [ConnectionRefusedError]


async def test_refusal_arrives_between_datagrams(endpoint, inet):
    with inet.bound(std) as other:
        transport, protocol = await endpoint(remote_addr=other.getsockname())
        other.connect(transport.get_extra_info("sockname"))
        transport.pause_reading()
        for data in numbered(3):
            other.send(data)
    transport.sendto(b"lost")
    transport.resume_reading()
    assert await protocol.received(3) == numbered(3)
    await protocol.until(lambda: protocol.errors)
    assert [type(error) for error in protocol.errors] == [ConnectionRefusedError]


async def test_error_queue_names_the_peer(endpoint, inet):
    gone = [vacant(inet) for _ in range(3)]
    transport, protocol = await endpoint()
    sock = transport.get_extra_info("socket")
    sock.setsockopt(std.IPPROTO_IP, socket.IP_RECVERR, 1)
    with inet.bound(std) as other:
        for address in gone:
            transport.sendto(b"lost", address)
            transport.sendto(b"heard", other.getsockname())
        assert await hear(other, 3) == [b"heard"] * 3
    await protocol.until(
        lambda: sum(hasattr(error, "datagram_error") for error in protocol.errors) >= 3
    )
    told = [error.datagram_error for error in protocol.errors if hasattr(error, "datagram_error")]
    assert {type(error) for error in told} == {tomada.DatagramError}
    assert {error.peer for error in told} == set(gone)
    assert {error.errno for error in protocol.errors} == {errno.ECONNREFUSED}
    assert transport.get_extra_info("errors") == []


async def test_full_error_queue_delays_nothing(endpoint, inet):
    gone = vacant(inet)
    transport, protocol = await endpoint()
    transport.get_extra_info("socket").setsockopt(std.IPPROTO_IP, socket.IP_RECVERR, 1)
    for _ in range(200):
        transport.sendto(b"lost", gone)
        await turns()
    with inet.bound(std) as other:
        other.sendto(b"x", transport.get_extra_info("sockname"))
        assert await protocol.received(1) == [b"x"]
    while transport.get_extra_info("errors"):
        await turns()
    # The loop sleeps again: no error is left that would wake it.
    await turns(5)
    count = len(protocol.errors)
    await asyncio.sleep(0.01)
    assert len(protocol.errors) == count


@pytest.mark.parametrize("base", [Recorder, Batches])
async def test_protocol_that_raises_does_not_stop_the_transport(endpoint, inet, problems, base):
    class Raising(base):
        def datagram_received(self, data, addr):
            Recorder.datagram_received(self, data, addr)
            self.transport.sendto(data, addr)
            raise RefusalError(data, "no")

    if base is Batches:
        Raising.datagrams_received = lambda self, pairs: [
            Raising.datagram_received(self, *pair) for pair in pairs
        ]
    transport, protocol = await endpoint(Raising)
    with inet.bound(std) as other:
        for number, data in enumerate(numbered(20)):
            other.sendto(data, transport.get_extra_info("sockname"))
            if base is Batches:
                # An exception ends the call, and with it the whole batch.
                await protocol.received(number + 1)
        assert await protocol.received(20) == numbered(20)
        assert await hear(other, 20) == numbered(20)
    assert [problem["exception"].args for problem in problems] == [
        (data, "no") for data in numbered(20)
    ]
    for problem in problems:
        assert problem["transport"] is transport
        assert problem["protocol"] is protocol
        name = "datagram_received" if base is Recorder else "datagrams_received"
        assert problem["message"] == f"Exception in callback {name}()"
    assert not transport.is_closing()
    problems.clear()


async def test_error_received_may_raise(endpoint, inet, problems):
    def error_received(self, error):
        Recorder.error_received(self, error)
        raise RefusalError("not", "mine")

    transport, protocol = await endpoint(
        recorder(error_received=error_received), remote_addr=vacant(inet)
    )
    for count in (1, 2):
        transport.sendto(b"lost")
        await protocol.until(lambda count=count: len(protocol.errors) >= count)
        await turns(2)
    assert {type(problem["exception"]) for problem in problems} == {RefusalError}
    assert not transport.is_closing()
    problems.clear()


async def test_protocol_without_error_received(endpoint, inet, problems):
    class Bare(asyncio.BaseProtocol):
        def connection_made(self, transport):
            self.transport = transport

    transport, _ = await endpoint(Bare)
    with inet.bound(std) as other:
        other.sendto(b"x", transport.get_extra_info("sockname"))
    while not problems:
        await turns()
    assert [type(problem["exception"]) for problem in problems] == [AttributeError]
    assert not transport.is_closing()
    problems.clear()


async def test_connection_lost_may_raise(endpoint, problems):
    def connection_lost(self, error):
        Recorder.connection_lost(self, error)
        raise RefusalError("so", "soon")

    transport, protocol = await endpoint(recorder(connection_lost=connection_lost))
    transport.close()
    await protocol.lost()
    await turns()
    assert [type(problem["exception"]) for problem in problems] == [RefusalError]
    assert transport.get_extra_info("socket").fileno() == -1
    problems.clear()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_exit_exception_in_a_callback_ends_the_loop_and_loses_nothing(
    runner, endpoint, inet, error
):
    def datagram_received(self, data, addr):
        Recorder.datagram_received(self, data, addr)
        if data == b"00000003":
            raise error

    factory = recorder(datagram_received=datagram_received)
    transport, protocol = runner.run(endpoint(factory))
    with inet.bound(std) as other:
        for data in numbered(10):
            other.sendto(data, transport.get_extra_info("sockname"))
    with pytest.raises(error):
        runner.run(protocol.received(10))
    runner.run(protocol.received(10))
    assert protocol.payloads == numbered(10)


@pytest.mark.parametrize("module", [std, socket])
async def test_transport_keeps_the_descriptor_of_a_closed_socket(endpoint, inet, module):
    # libuv would abort the process if the descriptor were closed.
    sock = inet.bound(module)
    transport, protocol = await endpoint(sock=sock)
    sock.close()
    await turns(3)
    with inet.bound(std) as other:
        transport.sendto(b"x", other.getsockname())
        transport.sendto_many([b"y"], other.getsockname())
        assert await hear(other, 2) == [b"x", b"y"]
        other.sendto(b"z", transport.get_extra_info("sockname"))
        await protocol.received(1)
    assert not transport.is_closing()
    transport.close()
    await protocol.lost()
    assert protocol.payloads == [b"z"]
    assert sock.fileno() == -1


async def test_descriptor_closed_under_its_transport(endpoint, inet):
    transport, protocol = await endpoint()
    await turns(3)
    sock = transport.get_extra_info("socket")
    # Something else takes the number, so that no later close affects it.
    spare = os.open("/dev/null", os.O_RDONLY)
    os.dup2(spare, sock.fileno())
    os.close(spare)
    with inet.bound(std) as other:
        transport.sendto(b"x", other.getsockname())
        await turns(3)
        assert {error.errno for error in protocol.errors} == {errno.ENOTSOCK}
    transport.abort()
    await protocol.lost()


async def test_send_errors_are_reported_in_the_order_of_the_datagrams(endpoint, unix):
    transport, protocol = await endpoint(**local(unix))
    with unix.bound(std) as other:
        refusing = vacant(unix)
        nowhere = unix.address()
        transport.sendto_many(
            [
                (b"one", other.getsockname()),
                (b"lost", nowhere),
                (b"two", other.getsockname()),
                (b"lost", refusing),
                (b"three", other.getsockname()),
            ]
        )
        assert await hear(other, 3) == [b"one", b"two", b"three"]
    assert [type(error) for error in protocol.errors] == [
        FileNotFoundError,
        ConnectionRefusedError,
    ]
