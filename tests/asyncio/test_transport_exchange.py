"""Datagrams between transports of every kind of loop and plain sockets."""

import asyncio
import contextlib
import itertools
import socket as std
import time

import pytest

import tomada.asyncio
from support import Call
from tomada import socket
from traffic import numbered, payloads, receive, send_run
from transports import Batches, Recorder, echo, given, hear, local, recorder, turns


async def test_transport_is_an_asyncio_datagram_transport(endpoint):
    transport, protocol = await endpoint()
    assert isinstance(transport, asyncio.DatagramTransport)
    assert isinstance(transport, asyncio.Transport)
    assert isinstance(transport, tomada.asyncio.DatagramTransport)
    assert protocol.transport is transport
    assert transport.get_protocol() is protocol
    assert not transport.is_closing()
    assert transport.is_reading()
    transport.note = "a program's"
    transport.sendto = print
    assert (transport.note, transport.sendto) == ("a program's", print)


async def test_echo_for_plain_sockets_in_other_processes(endpoint, kind, peer):
    transport, _ = await endpoint(recorder(datagram_received=echo), **local(kind))
    address = transport.get_extra_info("sockname")
    peers = [peer(kind) for _ in range(3)]
    sent = [b"%d of %d" % (number, size) + bytes(size) for number, size in enumerate((0, 9, 1400))]
    for other in peers:
        other.do("send", datagrams=sent, to=address)
    for other in peers:
        received = await asyncio.to_thread(other.do, "collect", count=len(sent))
        assert received == tuple((data, address) for data in sent)


async def test_connected_transport_and_a_plain_echo(endpoint, kind, peer):
    other = peer(kind)
    transport, protocol = await endpoint(remote_addr=given(other.address), **local(kind))
    assert transport.get_extra_info("peername") == other.address
    other.ask("echo", count=3)
    for data in (b"one", bytearray(b"two"), memoryview(b"three")):
        transport.sendto(data)
    assert await protocol.received(3) == [b"one", b"two", b"three"]
    assert {address for _, address in protocol.datagrams} == {other.address}


async def test_get_extra_info_names_both_ends(endpoint, kind):
    with kind.bound(std) as other:
        address = other.getsockname()
        transport, _ = await endpoint(remote_addr=given(address), **local(kind))
        sock = transport.get_extra_info("socket")
        assert transport.get_extra_info("peername") == sock.getpeername() == address
        assert transport.get_extra_info("sockname") == sock.getsockname()
        assert (sock.family, sock.type) == (kind.family, std.SOCK_DGRAM)
        assert isinstance(sock, asyncio.trsock.TransportSocket)
        assert transport.get_extra_info("no such thing") is None
        assert transport.get_extra_info("no such thing", 7) == 7


async def test_empty_datagrams_are_received_and_sent(endpoint, kind):
    with kind.bound(std) as other:
        transport, protocol = await endpoint(recorder(error_received=None), **local(kind))
        address = transport.get_extra_info("sockname")
        for data in (b"", b"x", b""):
            other.sendto(data, address)
        assert await protocol.received(3) == [b"", b"x", b""]
        for data in (b"", b"x", bytearray(), memoryview(b"")):
            transport.sendto(data, other.getsockname())
        assert await hear(other, 4) == [b"", b"x", b"", b""]


async def test_largest_datagram(endpoint, inet):
    largest = bytes(range(256)) * 256
    largest = largest[:65_507]
    with inet.bound(std) as other:
        transport, _ = await endpoint(recorder(datagram_received=echo))
        other.sendto(largest, transport.get_extra_info("sockname"))
        assert await hear(other) == [largest]


async def test_datagram_one_byte_too_long_is_an_error_and_the_others_are_sent(endpoint, inet):
    with inet.bound(std) as other:
        transport, protocol = await endpoint()
        for data in (b"before", bytes(65_508), b"after"):
            transport.sendto(data, other.getsockname())
        assert await hear(other, 2) == [b"before", b"after"]
        await protocol.until(lambda: protocol.errors)
        assert [str(error) for error in protocol.errors] == ["[Errno 90] Message too long"]
        assert not transport.is_closing()


async def test_sendto_copies_data_that_changes_later(endpoint, inet):
    with inet.bound(std) as other:
        transport, _ = await endpoint()
        data = bytearray(b"0")
        for number in range(10):
            data[:] = b"%d" % number
            transport.sendto(data, other.getsockname())
        data[:] = b"changed"
        assert await hear(other, 10) == numbered(10, size=1)


@pytest.mark.parametrize("factory", [Recorder, Batches])
@pytest.mark.parametrize("gro", [True, False])
async def test_runs_are_split_and_delivered_in_order(endpoint, inet, factory, gro):
    transport, protocol = await endpoint(factory, local_addr=("127.0.0.1", 0), gro=gro)
    address = transport.get_extra_info("sockname")
    sent = numbered(1000, size=100)
    with inet.bound(std) as sender:
        for start in range(0, len(sent), 50):
            send_run(sender, address, b"".join(sent[start : start + 50]), 100)
            await protocol.received(start + 50)
        assert protocol.datagrams == [(data, sender.getsockname()) for data in sent]


async def test_bursts_arrive_in_the_order_of_the_calls(endpoint, kind):
    with kind.bound(std) as other:
        other.setsockopt(std.SOL_SOCKET, std.SO_RCVBUF, 1 << 20)
        transport, _ = await endpoint(**local(kind))
        sizes = itertools.cycle([0, 1, 1, 40, 40, 40, 7])
        sent = [b"%04d" % number + bytes(next(sizes)) for number in range(600)]
        heard = Call(receive, other, len(sent))
        for number, data in enumerate(sent):
            transport.sendto(data, other.getsockname())
            if number % 7 == 3:
                await turns()
        received = await asyncio.to_thread(heard.result)
        assert [data for data, _ in received] == sent


async def test_burst_to_many_peers_reaches_each_in_order(endpoint, inet):
    others = [inet.bound(std) for _ in range(5)]
    transport, _ = await endpoint()
    for number in range(50):
        for other in others:
            transport.sendto(b"%d" % number, other.getsockname())
    for other in others:
        assert await hear(other, 50) == [b"%d" % number for number in range(50)]
        other.close()


async def test_replies_are_sent_after_the_batch_and_in_order(endpoint, inet):
    class Mirror(Recorder):
        def datagram_received(self, data, addr):
            self.transport.sendto(data + b"!", addr)
            super().datagram_received(data, addr)

    with inet.bound(std) as other:
        transport, protocol = await endpoint(Mirror)
        sent = numbered(100)
        for data in sent:
            other.sendto(data, transport.get_extra_info("sockname"))
        await protocol.received(len(sent))
        assert await hear(other, 100) == [data + b"!" for data in sent]
        stats = transport.get_extra_info("stats")
        assert (stats.received, stats.sent) == (100, 100)
        assert stats.send_calls < 100


async def test_datagrams_sent_after_replies_in_the_same_iteration_follow_them(endpoint, inet):
    class Later(Recorder):
        def datagram_received(self, data, addr):
            self.transport.sendto(b"reply " + data, addr)
            loop = asyncio.get_running_loop()
            loop.call_soon(self.transport.sendto, b"later " + data, addr)

    with inet.bound(std) as other:
        transport, _ = await endpoint(Later)
        for number in range(10):
            other.sendto(b"%d" % number, transport.get_extra_info("sockname"))
        received = await hear(other, 20)
        for word in (b"reply", b"later"):
            expected = [word + b" %d" % number for number in range(10)]
            assert [data for data in received if data.startswith(word)] == expected


async def test_single_datagram_is_sent_at_once(endpoint, inet):
    with inet.bound(std) as other:
        transport, _ = await endpoint()
        for _ in range(3):
            await asyncio.sleep(0.001)  # longer than a turn of a loop that does not count them
            transport.sendto(b"alone", other.getsockname())
            # Without an iteration of the loop in between.
            assert payloads(other) == [b"alone"]


async def test_burst_is_sent_within_an_iteration_of_the_loop(endpoint, inet):
    with inet.bound(std) as other:
        transport, _ = await endpoint()
        for number in range(5):
            transport.sendto(b"%d" % number, other.getsockname())
        await turns(2)
        assert payloads(other) == numbered(5, size=1)
        assert transport.get_write_buffer_size() == 0


@pytest.mark.parametrize("gro", [True, False])
async def test_reply_comes_from_the_requested_address(endpoint, inet, gro):
    transport, _ = await endpoint(
        recorder(datagram_received=echo),
        local_addr=("0.0.0.0", 0),  # noqa: S104 - the wildcard address is tested
        gro=gro,
    )
    _, port = transport.get_extra_info("sockname")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(inet.open(std)) for _ in range(20)]
        for number, client in enumerate(clients):
            client.connect((f"127.0.0.{number + 1}", port))
        for _ in range(3):
            for number, client in enumerate(clients):
                client.send(b"%d" % number)
            for number, client in enumerate(clients):
                # A connected socket receives only from the address that it sent to.
                assert await hear(client) == [b"%d" % number]


async def test_late_replies_come_from_the_requested_addresses(endpoint, inet):
    transport, protocol = await endpoint(local_addr=("0.0.0.0", 0))  # noqa: S104
    _, port = transport.get_extra_info("sockname")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(inet.open(std)) for _ in range(60)]
        for number, client in enumerate(clients):
            client.connect((f"127.0.1.{number + 1}", port))
            client.send(b"%d" % number)
        await protocol.received(len(clients))
        for data, peer in protocol.datagrams:
            transport.sendto(data, peer)
        await turns(3)
        heard = [payloads(client) for client in clients]
    # The table forgets a few of this many peers: their replies come from another address, and they
    # do not receive them.
    assert sum(data == [b"%d" % number] for number, data in enumerate(heard)) >= 50


async def test_protocol_of_changing_speed_still_replies_from_the_requested_address(endpoint, inet):
    # A slow protocol gets fewer datagrams at a time, down to one.
    class Moody(Recorder):
        def datagram_received(self, data, addr):
            end = time.perf_counter() + (100e-6 if int(data) % 40 < 5 else 0)
            while time.perf_counter() < end:
                pass
            self.transport.sendto(data, addr)

    transport, _ = await endpoint(Moody, local_addr=("0.0.0.0", 0))  # noqa: S104
    _, port = transport.get_extra_info("sockname")
    with inet.open(std) as one, inet.open(std) as two:
        clients = [one, two]
        for number, client in enumerate(clients):
            client.connect((f"127.0.0.{number + 1}", port))
        for number in range(200):
            clients[number % 2].send(b"%d" % number)
        for start, client in enumerate(clients):
            assert await hear(client, 100) == [b"%d" % number for number in range(start, 200, 2)]


async def test_ipv6_replies_come_from_the_requested_address(endpoint, inet6):
    transport, _ = await endpoint(recorder(datagram_received=echo), local_addr=("::", 0))
    port = transport.get_extra_info("sockname")[1]
    with inet6.open(std) as client:
        client.connect(("::1", port))
        client.send(b"x")
        assert await hear(client) == [b"x"]


async def test_transports_of_one_loop_exchange_datagrams(endpoint):
    _, receiver = await endpoint()
    address = receiver.transport.get_extra_info("sockname")
    senders = [(await endpoint(remote_addr=address))[0] for _ in range(20)]
    for number in range(10):
        for sender in senders:
            sender.sendto(b"%d" % number)
    await receiver.received(200)
    for sender in senders:
        name = sender.get_extra_info("sockname")
        heard = [data for data, address in receiver.datagrams if address == name]
        assert heard == numbered(10, size=1)


@pytest.mark.parametrize("module", [std, socket])
async def test_given_socket(endpoint, inet, module):
    with inet.bound(module) as sock, inet.bound(std) as other:
        address = sock.getsockname()
        other.sendto(b"before", address)
        transport, protocol = await endpoint(recorder(error_received=None), sock=sock)
        shown = transport.get_extra_info("socket")
        assert (shown.fileno(), shown.getsockname()) == (sock.fileno(), address)
        assert sock.gettimeout() == 0
        other.sendto(b"after", address)
        assert await protocol.received(2) == [b"before", b"after"]
        transport.sendto(b"reply", other.getsockname())
        assert await hear(other) == [b"reply"]
        transport.close()
        await protocol.lost()
        assert sock.fileno() == -1


async def test_given_socket_delivers_its_backlog_first(endpoint, inet):
    sock = inet.bound(socket)
    with inet.bound(std) as other:
        sock.gro = True
        send_run(other, sock.getsockname(), b"".join(numbered(10)), 8)
        assert sock.recv_many(1) == [(b"00000000", other.getsockname())]
        assert sock.pending == 9
        _, protocol = await endpoint(sock=sock)
        assert await protocol.received(9) == numbered(10)[1:]


async def test_given_end_of_a_socketpair(endpoint):
    ours, other = std.socketpair(std.AF_UNIX, std.SOCK_DGRAM)
    with other:
        transport, protocol = await endpoint(sock=ours)
        transport.sendto(b"to the other")
        assert await hear(other) == [b"to the other"]
        other.send(b"back")
        assert await protocol.received(1) == [b"back"]


async def test_allow_broadcast(endpoint, inet):
    with inet.open(std) as receiver:
        receiver.bind(("127.255.255.255", 0))
        address = receiver.getsockname()
        _, refused = await endpoint()
        refused.transport.sendto(b"x", address)
        assert [type(error) for error in refused.errors] == [PermissionError]
        transport, protocol = await endpoint(
            local_addr=("127.0.0.1", 0), remote_addr=address, allow_broadcast=True
        )
        transport.sendto(b"x")
        assert await hear(receiver) == [b"x"]
        assert protocol.errors == []
