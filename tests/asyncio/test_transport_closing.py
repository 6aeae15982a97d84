"""The end of a transport: close, abort, garbage collection, and ten thousand in a row."""

import asyncio
import errno
import gc
import os
import resource
import socket as std
import warnings
import weakref

import pytest

from support import fill, open_descriptors
from tomada import socket
from traffic import numbered, payloads
from transports import LOOPS, Batches, Recorder, given, local, open_first, recorder, turns


async def test_close_sends_the_send_backlog_and_calls_connection_lost_once(endpoint, inet):
    with inet.bound(std) as other:
        transport, protocol = await endpoint()
        for data in numbered(10):
            transport.sendto(data, other.getsockname())
        transport.close()
        assert transport.is_closing()
        assert not transport.is_reading()
        transport.close()
        assert payloads(other) == numbered(10)
        assert protocol.calls == ["made"]
        await protocol.lost()
        transport.close()
        transport.abort()
        await turns(3)
        assert protocol.calls == ["made", "lost"]
        assert transport.get_extra_info("socket").fileno() == -1


async def test_close_waits_for_room(endpoint, unix):
    with unix.bound(std) as other:
        transport, protocol = await endpoint(remote_addr=other.getsockname(), **local(unix))
        with unix.open(std) as stranger:
            count = fill(stranger, other.getsockname())
        sent = [b"item %d" % number for number in range(50)]
        for data in sent:
            transport.sendto(data)
        transport.close()
        await turns(5)
        assert protocol.calls == ["made"]
        received = []
        while "lost" not in protocol.calls:
            received += payloads(other)
            await turns()
        assert [*received, *payloads(other)][count:] == sent


@pytest.mark.parametrize("closing", [False, True])
async def test_abort_drops_the_send_backlog(endpoint, unix, closing):
    with unix.bound(std) as other:
        transport, protocol = await endpoint(remote_addr=other.getsockname(), **local(unix))
        with unix.open(std) as stranger:
            count = fill(stranger, other.getsockname())
        for _ in range(50):
            transport.sendto(b"item")
        if closing:
            transport.close()
        descriptor = transport.get_extra_info("socket").fileno()
        transport.abort()
        assert transport.is_closing()
        assert transport.get_write_buffer_size() == 0
        loop = asyncio.get_running_loop()
        assert not loop.remove_writer(descriptor)
        await protocol.lost()
        assert len(payloads(other)) == count
        assert protocol.calls == ["made", "lost"]


async def test_close_when_the_peer_without_room_vanishes(endpoint, unix):
    other = unix.bound(std)
    transport, protocol = await endpoint(remote_addr=other.getsockname(), **local(unix))
    with unix.open(std) as stranger:
        fill(stranger, other.getsockname())
    for _ in range(3):
        transport.sendto(b"item")
    transport.close()
    other.close()
    await protocol.lost()
    assert {error.errno for error in protocol.errors} == {errno.ECONNREFUSED, errno.ENOTCONN}


@pytest.mark.parametrize("end", ["close", "abort"])
@pytest.mark.parametrize("base", [Recorder, Batches])
async def test_callback_that_closes_the_transport_is_the_last(endpoint, inet, base, end):
    class Ending(base):
        def datagram_received(self, data, addr):
            Recorder.datagram_received(self, data, addr)
            getattr(self.transport, end)()

        def connection_lost(self, error):
            # No other callback follows.
            super().connection_lost(error)
            self.delivered = len(self.datagrams)

    if base is Batches:
        Ending.datagrams_received = lambda self, pairs: Ending.datagram_received(self, *pairs[0])
    transport, protocol = await endpoint(Ending)
    with inet.bound(std) as sender:
        for data in numbered(100):
            sender.sendto(data, transport.get_extra_info("sockname"))
        await protocol.lost()
        await turns(3)
    assert protocol.payloads == numbered(1)


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_datagrams_sent_by_a_callback_before_close_are_sent(endpoint, inet, end):
    def datagram_received(self, data, addr):
        for number in range(5):
            self.transport.sendto(data + b"%d" % number, addr)
        getattr(self.transport, end)()

    transport, protocol = await endpoint(recorder(datagram_received=datagram_received))
    with inet.bound(std) as other:
        other.sendto(b"x", transport.get_extra_info("sockname"))
        await protocol.lost()
        sent = [b"x%d" % number for number in range(5)]
        assert payloads(other) == (sent if end == "close" else [])


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_connection_made_may_close_the_transport(endpoint, end):
    def connection_made(self, transport):
        Recorder.connection_made(self, transport)
        getattr(transport, end)()

    transport, protocol = await endpoint(recorder(connection_made=connection_made))
    assert transport.is_closing()
    await protocol.lost()
    assert protocol.calls == ["made", "lost"]


async def test_connection_lost_may_use_the_transport(endpoint):
    def connection_lost(self, error):
        Recorder.connection_lost(self, error)
        self.transport.sendto(b"x", ("127.0.0.1", 9))
        self.transport.close()
        self.transport.abort()
        self.transport.pause_reading()
        self.transport.resume_reading()
        self.name = self.transport.get_extra_info("sockname")

    transport, protocol = await endpoint(recorder(connection_lost=connection_lost))
    name = transport.get_extra_info("sockname")
    transport.close()
    await protocol.lost()
    assert protocol.name == name


async def test_methods_of_a_closed_transport(endpoint):
    transport, protocol = await endpoint()
    name = transport.get_extra_info("sockname")
    transport.abort()
    await protocol.lost()
    await turns(2)
    transport.sendto(b"x", ("127.0.0.1", 9))
    transport.sendto_many([b"x"], ("127.0.0.1", 9))
    transport.close()
    transport.abort()
    transport.pause_reading()
    transport.resume_reading()
    transport.set_write_buffer_limits(0)
    assert not transport.is_reading()
    assert transport.is_closing()
    assert transport.get_write_buffer_size() == 0
    assert transport.get_extra_info("sockname") == name
    assert "closed" in repr(transport)


async def test_port_is_free_after_connection_lost(endpoint, kind):
    transport, protocol = await endpoint(**local(kind))
    name = transport.get_extra_info("sockname")
    transport.close()
    await protocol.lost()
    await turns()
    again, _ = await endpoint(local_addr=given(name), family=kind.family)
    assert again.get_extra_info("sockname") == name


async def test_repr_shows_the_state(endpoint, unix):
    with unix.bound(std) as other:
        transport, protocol = await endpoint(remote_addr=other.getsockname(), **local(unix))
        fd = transport.get_extra_info("socket").fileno()
        idle = f"<DatagramTransport fd={fd} read=polling write=<idle, bufsize=0>>"
        assert repr(transport) == idle
        with unix.open(std) as stranger:
            fill(stranger, other.getsockname())
        transport.sendto(b"item")
        transport.pause_reading()
        busy = f"fd={fd} read=idle write=<polling, bufsize=4>>"
        assert repr(transport) == f"<DatagramTransport {busy}"
        transport.close()
        assert repr(transport) == f"<DatagramTransport closing {busy}"
        transport.abort()
        await protocol.lost()
        await turns()
        assert repr(transport) == f"<DatagramTransport closed fd={fd}>"


def test_loop_closed_with_open_transports(problems, runner):
    del problems
    before = open_descriptors()
    protocol = Recorder()
    runner.run(make(runner.get_loop(), protocol))
    runner.close()
    assert protocol.calls == ["made"]
    del protocol
    with pytest.warns(ResourceWarning, match=r"^unclosed transport <DatagramTransport fd="):
        gc.collect()
    assert open_descriptors() < before


@pytest.mark.parametrize("new_loop", LOOPS.values(), ids=LOOPS)
def test_accepted_datagrams_are_sent_though_the_loop_stops_at_once(inet, new_loop):
    loop = new_loop()

    async def main(to):
        transport, _ = await loop.create_datagram_endpoint(Recorder, local_addr=("127.0.0.1", 0))
        loop.call_soon(send, transport, to)
        await loop.create_future()

    def send(transport, to):
        for data in numbered(5):
            transport.sendto(data, to)
        loop.stop()

    with inet.bound(std) as other:
        task = loop.create_task(main(other.getsockname()))
        loop.run_forever()
        task.cancel()
        # A program that stops a loop and never runs it again has closed no transport either.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loop.close()
            del task
            gc.collect()
        assert payloads(other) == numbered(5)


async def test_transport_without_references_continues(endpoint, inet):
    del endpoint
    protocol = Recorder()
    loop = asyncio.get_running_loop()
    with inet.bound(std) as sender:
        # Its loop refers to it.
        name = (await make(loop, protocol)).get_extra_info("sockname")
        gc.collect()
        sender.sendto(b"x", name)
        assert await protocol.received(1) == [b"x"]
        protocol.transport.close()
        await protocol.lost()


async def make(loop, protocol):
    transport, _ = await loop.create_datagram_endpoint(
        lambda: protocol, local_addr=("127.0.0.1", 0)
    )
    return transport


async def test_closed_transport_is_freed_without_the_garbage_collector(endpoint):
    del endpoint
    gc.collect()
    gc.disable()
    try:
        loop = asyncio.get_running_loop()
        protocol = Recorder()
        transport = await make(loop, protocol)
        transport.sendto(b"x", transport.get_extra_info("sockname"))
        await protocol.received(1)
        transport.close()
        await protocol.lost()
        del protocol.transport
        await turns(2)
        freed = weakref.ref(transport)
        del transport
        assert freed() is None
    finally:
        gc.enable()


async def test_ten_thousand_transports_leave_nothing_behind(endpoint):
    del endpoint
    loop = asyncio.get_running_loop()

    class Plain(asyncio.DatagramProtocol):
        """Closes its transport once it has received its own datagram."""

        def connection_made(self, transport):
            self.transport = transport
            transport.sendto(b"x", transport.get_extra_info("sockname"))
            transport.sendto(b"y", transport.get_extra_info("sockname"))

        def datagram_received(self, data, addr):
            del data, addr
            self.transport.close()

    async def cycle(count):
        for _ in range(count):
            await loop.create_datagram_endpoint(Plain, local_addr=("127.0.0.1", 0))
            await turns(2)
        await turns(10)
        gc.collect()
        return open_descriptors(), resident()

    await cycle(500)
    descriptors, memory = await cycle(500)
    after, grown = await cycle(9_000)
    assert after == descriptors
    assert grown - memory < 4 << 20


def resident():
    """Return the memory of this process in bytes."""
    with open("/proc/self/statm") as statm:  # noqa: PTH123 - a file of the kernel
        return int(statm.read().split()[1]) * resource.getpagesize()


async def test_own_socket_is_closed_with_the_transport(endpoint, inet):
    await open_first(endpoint)
    before = open_descriptors()
    for module in (std, socket):
        sock = inet.bound(module)
        transport, protocol = await endpoint(sock=sock)
        transport.close()
        await protocol.lost()
        await turns()
        assert sock.fileno() == -1
    assert open_descriptors() == before
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(transport._sock_fd)  # noqa: SLF001 - the descriptor is needed
