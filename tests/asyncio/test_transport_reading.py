"""Delivery of datagrams: one by one, in batches, with metadata, paused, and under load."""

import asyncio
import itertools
import socket as std

import pytest

import tomada
from tomada import socket
from traffic import numbered, payloads, send_run
from transports import Batches, Recorder, hear, local, recorder, turns


def send_all(inet, transport, datagrams):
    """Send datagrams from a plain socket, and return its address."""
    with inet.bound(std) as sender:
        for data in datagrams:
            sender.sendto(data, transport.get_extra_info("sockname"))
        return sender.getsockname()


async def test_batches_have_all_queued_datagrams(endpoint, inet):
    transport, protocol = await endpoint(Batches)
    sender = send_all(inet, transport, numbered(50))
    assert await protocol.received(50) == numbered(50)
    assert {address for _, address in protocol.datagrams} == {sender}
    assert all(type(batch) is list for batch in protocol.batches)
    assert len(protocol.batches) < 50


async def test_batches_only_if_the_type_defines_the_method(endpoint, inet):
    class Anything(Recorder):
        def __getattr__(self, name):
            if name.startswith("_"):
                raise AttributeError(name)
            raise AssertionError(name)

    for factory in (Recorder, Anything):
        transport, protocol = await endpoint(factory)
        if factory is Recorder:
            protocol.datagrams_received = None
        send_all(inet, transport, numbered(5))
        assert await protocol.received(5) == numbered(5)


async def test_set_protocol_in_the_middle_of_a_batch(endpoint, inet):
    for first, then in itertools.product([Recorder, Batches], repeat=2):

        class Replaced(first):
            def replace(self):
                self.transport.set_protocol(self.successor)

        def datagram_received(self, data, addr):
            Recorder.datagram_received(self, data, addr)
            self.replace()

        def datagrams_received(self, datagrams):
            Batches.datagrams_received(self, datagrams)
            self.replace()

        if first is Recorder:
            Replaced.datagram_received = datagram_received
        else:
            Replaced.datagrams_received = datagrams_received
        transport, protocol = await endpoint(Replaced)
        protocol.successor = then()
        send_all(inet, transport, numbered(40))
        await protocol.received(1)
        await protocol.successor.received(40 - len(protocol.datagrams))
        assert protocol.payloads + protocol.successor.payloads == numbered(40)
        assert transport.get_protocol() is protocol.successor
        assert protocol.successor.calls == []
        transport.close()
        await protocol.successor.lost()
        assert protocol.calls == ["made"]


# Pausing


async def test_pause_reading_delivers_nothing_and_loses_nothing(endpoint, kind):
    transport, protocol = await endpoint(**local(kind))
    with kind.bound(std) as sender:
        address = transport.get_extra_info("sockname")
        for start in range(0, 20, 4):
            transport.pause_reading()
            transport.pause_reading()
            assert not transport.is_reading()
            for number in range(start, start + 4):
                sender.sendto(b"%d" % number, address)
            await turns(5)
            assert len(protocol.datagrams) == start
            transport.resume_reading()
            transport.resume_reading()
            assert transport.is_reading()
            await protocol.received(start + 4)
    assert protocol.payloads == [b"%d" % number for number in range(20)]


@pytest.mark.parametrize("gro", [True, False])
async def test_pause_reading_in_the_callback_stops_within_the_batch(endpoint, inet, gro):
    def datagram_received(self, data, addr):
        Recorder.datagram_received(self, data, addr)
        self.transport.pause_reading()

    transport, protocol = await endpoint(
        recorder(datagram_received=datagram_received), local_addr=("127.0.0.1", 0), gro=gro
    )
    with inet.bound(std) as sender:
        send_run(sender, transport.get_extra_info("sockname"), b"".join(numbered(30)), 8)
    for count in range(1, 31):
        await protocol.received(count)
        await turns(5)
        assert len(protocol.datagrams) == count
        transport.resume_reading()
    assert protocol.payloads == numbered(30)


async def test_pause_and_resume_reading_in_the_callback_changes_nothing(endpoint, inet):
    def datagram_received(self, data, addr):
        Recorder.datagram_received(self, data, addr)
        self.transport.pause_reading()
        self.transport.resume_reading()

    transport, protocol = await endpoint(recorder(datagram_received=datagram_received))
    send_all(inet, transport, numbered(100))
    assert await protocol.received(100) == numbered(100)


async def test_pause_reading_before_the_first_datagram(endpoint, inet):
    def connection_made(self, transport):
        Recorder.connection_made(self, transport)
        transport.pause_reading()

    transport, protocol = await endpoint(recorder(connection_made=connection_made))
    send_all(inet, transport, [b"x"])
    await turns(5)
    assert protocol.datagrams == []
    transport.resume_reading()
    assert await protocol.received(1) == [b"x"]


async def test_backlog_of_a_paused_transport_survives_a_new_protocol(endpoint, inet):
    transport, _ = await endpoint()
    transport.pause_reading()
    send_all(inet, transport, numbered(10))
    successor = Batches()
    transport.set_protocol(successor)
    transport.resume_reading()
    assert await successor.received(10) == numbered(10)


# Metadata


async def test_metadata_of_the_datagram_being_delivered(endpoint, inet):
    class Curious(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            assert transport.get_extra_info("datagram") is None
            self.about = []

        def datagram_received(self, data, addr):
            about = self.transport.get_extra_info("datagram")
            assert (about.data, about.address) == (data, addr)
            self.about.append(about)
            super().datagram_received(data, addr)

    transport, protocol = await endpoint(Curious, local_addr=("0.0.0.0", 0))  # noqa: S104
    _, port = transport.get_extra_info("sockname")
    with inet.bound(std) as sender:
        for number in range(5):
            sender.setsockopt(std.IPPROTO_IP, std.IP_TTL, 10 + number)
            sender.sendto(b"%d" % number, (f"127.0.0.{number + 1}", port))
        await protocol.received(5)
        for number, about in enumerate(protocol.about):
            assert type(about) is tomada.Datagram
            assert about.ttl == 10 + number
            assert about.destination == f"127.0.0.{number + 1}"
            assert not about.truncated
            about.reply(b"re %d" % number)
        assert await hear(sender, 5) == [b"re %d" % number for number in range(5)]
    assert transport.get_extra_info("datagram") is None


async def test_stats_of_a_transport(endpoint, inet):
    transport, protocol = await endpoint()
    assert type(transport.get_extra_info("stats")) is tomada.Stats
    sender = send_all(inet, transport, numbered(3))
    await protocol.received(3)
    transport.sendto(b"12345", sender)
    stats = transport.get_extra_info("stats")
    assert (stats.received, stats.received_bytes) == (3, 24)
    assert (stats.sent, stats.sent_bytes) == (1, 5)
    transport.abort()
    await protocol.lost()
    assert transport.get_extra_info("stats", "gone") == "gone"


async def test_stats_counts_kernel_drops(endpoint, inet):
    transport, protocol = await endpoint()
    transport.get_extra_info("socket").setsockopt(std.SOL_SOCKET, std.SO_RCVBUF, 1)
    send_all(inet, transport, numbered(500))
    await protocol.received(1)
    await turns(5)
    drops = transport.get_extra_info("stats").kernel_drops
    assert 0 < drops == 500 - len(protocol.datagrams)


# Fairness: under an endless flood, everything else continues.


@pytest.fixture
def flood(endpoint, inet):
    """Start a flood: transports that send themselves a new datagram for each one received."""

    async def start(count=1, cost=0):
        def datagram_received(self, data, _):
            for _ in range(cost):
                pass
            self.count += 1
            self.transport.sendto(data, self.transport.get_extra_info("sockname"))

        kind = recorder(datagram_received=datagram_received, count=0)
        floods = [await endpoint(kind) for _ in range(count)]
        for transport, _ in floods:
            send_all(inet, transport, numbered(200))
        return [protocol for _, protocol in floods]

    return start


async def test_callbacks_and_timers_run_under_a_flood(flood):
    (flooded,) = await flood()
    loop = asyncio.get_running_loop()
    for _ in range(50):
        before = flooded.count
        await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        future = loop.create_future()
        loop.call_later(0, future.set_result, None)
        await future
    # The flood continues, too.
    while flooded.count < before + 1000:
        await turns()


async def test_stream_continues_under_a_flood(flood):
    async def serve(reader, writer):
        while data := await reader.read(1000):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    (flooded,) = await flood()
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    for number in range(100):
        writer.write(b"%08d" % number)
        assert await reader.readexactly(8) == b"%08d" % number
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
    before = flooded.count
    while flooded.count < before + 1000:
        await turns()


async def test_floods_of_several_transports_share_the_loop(flood):
    floods = await flood(count=5)
    loop = asyncio.get_running_loop()
    for _ in range(20):
        before = [protocol.count for protocol in floods]
        while any(
            protocol.count < start + 10 for protocol, start in zip(floods, before, strict=True)
        ):
            await turns()
    assert loop.is_running()


async def test_slow_protocol_lets_others_run_after_each_datagram(flood):
    # So slow that each datagram takes longer than a drain should.
    (flooded,) = await flood(cost=20_000)
    await turns(10)
    counts = []
    for _ in range(50):
        counts.append(flooded.count)
        await turns()
    steps = [after - before for before, after in itertools.pairwise(counts)]
    assert max(steps) == 1


async def test_batch_for_a_slow_protocol_becomes_shorter(endpoint, inet):
    class Slow(Batches):
        def datagrams_received(self, datagrams):
            super().datagrams_received(datagrams)
            for _ in range(20_000 * len(datagrams)):
                pass

    transport, protocol = await endpoint(Slow, local_addr=("127.0.0.1", 0), gro=False)
    for start in range(0, 300, 100):
        send_all(inet, transport, numbered(100))
        await protocol.received(start + 100)
    assert len(protocol.batches[-1]) < 16


async def test_program_may_read_from_the_socket_meanwhile(endpoint, inet):
    with inet.bound(socket) as sock:
        transport, protocol = await endpoint(sock=sock)
        transport.pause_reading()
        send_all(inet, transport, numbered(10))
        assert payloads(sock) == numbered(10)
        transport.resume_reading()
        send_all(inet, transport, [b"after"])
        assert await protocol.received(1) == [b"after"]
        transport.abort()
        await protocol.lost()
