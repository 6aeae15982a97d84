"""Segmentation offload (``UDP_SEGMENT``): datagrams are sent as runs or, if necessary, singly.

A plain socket with ``UDP_GRO`` sees which datagrams were sent as a run, because the loopback device
does not split runs.
"""

import asyncio
import itertools
import os
import socket as std
import struct

import pytest

import tomada
import tomada.asyncio
from support import DEADLINE
from tomada import socket
from traffic import numbered, payloads

ONE = [b"12345678"] * 10


@pytest.fixture(params=["inet", "inet6"])
def pair(request):
    """Provide a sending socket, and a plain one that shows the runs that it sent."""
    kind = request.getfixturevalue(request.param)
    with kind.bound(socket) as sender, kind.bound(std) as receiver:
        receiver.setsockopt(std.IPPROTO_UDP, socket.UDP_GRO, 1)
        sender.connect(receiver.getsockname())
        yield sender, receiver


def pieces(receiver):
    """Receive the queued messages, as (length, segment length)."""
    receiver.setblocking(False)
    seen = []
    try:
        while True:
            data, ancillary, _, _ = receiver.recvmsg(1 << 17, 100)
            sizes = [struct.unpack("i", value)[0] for *_, value in ancillary]
            seen.append((len(data), sizes[0] if sizes else None))
    except BlockingIOError:
        return seen
    finally:
        receiver.settimeout(DEADLINE)


def by_list(sender, datagrams):
    return sender.send_many(datagrams)


def by_generator(sender, datagrams):
    return sender.send_many(iter(datagrams))


def by_batch(sender, datagrams):
    batch = tomada.Batch()
    for data in datagrams:
        batch.append(data)
    return sender.send_batch(batch)


every_way = pytest.mark.parametrize("send", [by_list, by_generator, by_batch])


@every_way
def test_datagrams_of_one_size_are_sent_as_one_run(pair, send):
    sender, receiver = pair
    assert send(sender, ONE) == 10
    assert pieces(receiver) == [(80, 8)]
    assert (sender.stats().sent, sender.stats().send_calls) == (10, 1)


@every_way
def test_last_datagram_of_a_run_may_be_shorter(pair, send):
    sender, receiver = pair
    sizes = [8, 8, 3, 8, 8, 9, 9, 1, 1, 0, 5, 0, 0, 7]
    assert send(sender, [bytes(size) for size in sizes]) == len(sizes)
    assert pieces(receiver) == [
        (19, 8),
        (16, 8),
        (19, 9),
        (1, None),
        (0, None),
        (5, None),
        (0, None),
        (0, None),
        (7, None),
    ]


@every_way
def test_run_is_no_longer_than_every_kernel_accepts(pair, send):
    sender, receiver = pair
    assert send(sender, [b"x" * 20] * 150) == 150
    assert pieces(receiver) == [(64 * 20, 20), (64 * 20, 20), (22 * 20, 20)]
    assert send(sender, [bytes(20_000)] * 7) == 7
    assert pieces(receiver) == [(60_000, 20_000), (60_000, 20_000), (20_000, None)]
    assert send(sender, [bytes(40_000)] * 2) == 2
    assert pieces(receiver) == [(40_000, None)] * 2


def test_run_goes_to_one_peer(inet):
    with inet.bound(socket) as sender, inet.bound(std) as first, inet.bound(std) as second:
        for receiver in (first, second):
            receiver.setsockopt(std.IPPROTO_UDP, socket.UDP_GRO, 1)
        near, far = first.getsockname(), second.getsockname()
        to = [near, near, far, near, far, far]
        assert sender.send_many([(b"x" * 8, address) for address in to]) == 6
        assert pieces(first) == [(16, 8), (8, None)]
        assert pieces(second) == [(8, None), (16, 8)]
        # Equal addresses are the same peer, even if they are different objects.
        assert sender.send_many([(b"x" * 8, (near[0], int(str(near[1])))) for _ in range(5)]) == 5
        assert pieces(first) == [(40, 8)]


def test_buffers_in_separate_memory_are_sent_as_one_run(pair):
    sender, receiver = pair
    datagrams = [bytearray(b"%08d" % number) for number in range(64)]
    assert sender.send_many(datagrams) == 64
    data, _, _, _ = receiver.recvmsg(1 << 16, 100)
    assert data == b"".join(datagrams)


@pytest.fixture
def refused(inet):
    """Provide a socket for which the kernel refuses runs, and a plain one.

    Without a checksum the kernel refuses segmentation (EINVAL). This simulates a device that cannot
    compute checksums.
    """
    with inet.bound(socket) as sender, inet.bound(std) as receiver:
        receiver.setsockopt(std.IPPROTO_UDP, socket.UDP_GRO, 1)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_NO_CHECK, 1)
        sender.connect(receiver.getsockname())
        yield sender, receiver


@every_way
def test_refused_run_is_sent_one_by_one(refused, send):
    sender, receiver = refused
    for _ in range(3):
        assert send(sender, ONE) == 10
        assert pieces(receiver) == [(8, None)] * 10
    assert sender.stats().sent == 30


@pytest.mark.parametrize("errors", ["raise", "continue"])
def test_refused_run_is_not_an_error(refused, errors):
    sender, receiver = refused
    datagrams = [*numbered(30), bytes(100), b"x", *numbered(10, 3)]
    assert sender.send_many(datagrams, errors=errors) == (42 if errors == "raise" else [])
    assert payloads_of(receiver) == datagrams


def payloads_of(receiver):
    receiver.setblocking(False)
    received = []
    try:
        while True:
            received.append(receiver.recv(1 << 17))
    except BlockingIOError:
        return received


@every_way
def test_refused_run_costs_one_extra_call_only_once(refused, send):
    sender, _ = refused
    send(sender, ONE)
    before = sender.stats().send_calls
    send(sender, ONE)
    # Other datagrams of this size are not tried as runs again.
    assert sender.stats().send_calls == before + 1


def test_datagram_too_long_for_the_path_does_not_prevent_runs_of_others(pair):
    sender, receiver = pair
    datagrams = [*ONE, bytes(65_536), *ONE]
    failures = sender.send_many(datagrams, errors="continue")
    assert [index for index, _ in failures] == [10]
    assert pieces(receiver) == [(80, 8), (80, 8)]
    assert sender.send_many(ONE) == 10
    assert pieces(receiver) == [(80, 8)]


def test_user_segment_size_is_left_alone(pair):
    sender, receiver = pair
    sender.setsockopt(socket.IPPROTO_UDP, socket.UDP_SEGMENT, 4)
    assert sender.send_many([b"12345678"] * 2) == 2
    # The kernel split each as the user requested.
    assert pieces(receiver) == [(8, 4), (8, 4)]
    assert sender.getsockopt(socket.IPPROTO_UDP, socket.UDP_SEGMENT) == 4


def test_user_segment_size_that_is_set_later_is_noticed(pair):
    sender, receiver = pair
    assert sender.send_many(ONE) == 10
    assert pieces(receiver) == [(80, 8)]
    sender.setsockopt(socket.IPPROTO_UDP, socket.UDP_SEGMENT, 4)
    assert sender.send_many([b"12345678"] * 2) == 2
    assert pieces(receiver) == [(8, 4), (8, 4)]
    sender.setsockopt(socket.IPPROTO_UDP, socket.UDP_SEGMENT, 0)
    assert sender.send_many(ONE) == 10
    assert pieces(receiver) == [(80, 8)]


def test_msg_more_makes_the_kernel_join_what_is_sent(pair):
    sender, receiver = pair
    assert sender.send_many([b"one", b"two"], flags=socket.MSG_MORE) == 2
    assert pieces(receiver) == []
    sender.send(b"six")
    assert receiver.recv(100) == b"onetwosix"


@every_way
def test_corked_socket_joins_what_is_sent(pair, send):
    sender, receiver = pair
    sender.setsockopt(socket.IPPROTO_UDP, socket.UDP_CORK, 1)
    assert send(sender, ONE) == 10
    assert send(sender, [b"and", b"more"]) == 2
    assert pieces(receiver) == []
    sender.setsockopt(socket.IPPROTO_UDP, socket.UDP_CORK, 0)
    assert pieces(receiver) == [(87, None)]
    assert send(sender, ONE) == 10
    assert pieces(receiver) == [(80, 8)]


def test_socket_corked_by_another_holder_joins_what_is_sent(pair):
    other, receiver = pair
    with socket.socket(fileno=os.dup(other.fileno())) as sender:
        for holder in (std.socket(fileno=os.dup(other.fileno())), other):
            with holder:
                holder.setsockopt(std.IPPROTO_UDP, socket.UDP_CORK, 1)
                assert sender.send_many([b"a", b"b"]) == 2
                holder.setsockopt(std.IPPROTO_UDP, socket.UDP_CORK, 0)
                assert pieces(receiver) == [(2, None)]


@pytest.mark.parametrize(
    "share",
    [
        lambda sock: sock.dup(),
        lambda sock: std.socket(fileno=os.dup(sock.fileno())),
        lambda sock: std.fromfd(sock.fileno(), sock.family, sock.type),
    ],
    ids=["dup", "os.dup", "fromfd"],
)
@every_way
def test_send_many_on_a_socket_corked_through_a_duplicate_joins_what_is_sent(pair, send, share):
    sender, receiver = pair
    with share(sender) as holder:
        holder.setsockopt(std.IPPROTO_UDP, socket.UDP_CORK, 1)
        assert send(sender, ONE) == 10
        holder.setsockopt(std.IPPROTO_UDP, socket.UDP_CORK, 0)
    assert pieces(receiver) == [(80, None)]
    assert send(sender, ONE) == 10
    assert pieces(receiver) == [(80, 8)]


@every_way
def test_datagram_left_open_by_msg_more_ends_with_the_first_datagram_alone(pair, send):
    sender, receiver = pair
    sender.send(b"open, ", socket.MSG_MORE)
    assert send(sender, ONE) == 10
    assert pieces(receiver) == [(14, None), (72, 8)]
    sender.sendmsg([b"open, "], [], socket.MSG_MORE)
    assert send(sender, ONE) == 10
    assert pieces(receiver) == [(14, None), (72, 8)]
    assert sender.send_many([b"1", b"2"], flags=socket.MSG_MORE) == 2
    assert send(sender, ONE[:2]) == 2
    assert pieces(receiver) == [(10, None), (8, None)]


def test_transport_on_a_corked_socket_joins_what_is_sent(pair):
    sender, receiver = pair

    async def send():
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, sock=sender)
        sender.setsockopt(socket.IPPROTO_UDP, socket.UDP_CORK, 1)
        for data in ONE:
            transport.sendto(data)
        await asyncio.sleep(0)
        sender.setsockopt(socket.IPPROTO_UDP, socket.UDP_CORK, 0)
        assert pieces(receiver) == [(80, None)]
        transport.close()

    tomada.asyncio.run(send())


def test_runs_are_used_again_after_an_option_is_reset(refused):
    sender, receiver = refused
    assert sender.send_many(ONE) == 10
    assert pieces(receiver) == [(8, None)] * 10
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_NO_CHECK, 0)
    assert sender.send_many(ONE) == 10
    assert pieces(receiver) == [(80, 8)]


def test_af_unix_has_no_runs(unix):
    with unix.bound(socket) as sock:
        assert sock.send_many(ONE, sock.getsockname()) == 10
        assert payloads(sock) == ONE


@pytest.mark.parametrize("size", [1, 2, 63, 64, 511, 1023, 1024, 1472, 1473, 8000, 32_753, 32_754])
@pytest.mark.parametrize("gro", [False, True], ids=["plain", "coalescing"])
def test_datagrams_of_every_size_arrive_in_order(inet, size, gro):
    with inet.bound(socket) as sender, inet.bound(socket) as receiver:
        receiver.gro = gro
        sender.connect(receiver.getsockname())
        for count in (1, 2, 3, 63, 64, 65):
            datagrams = (
                numbered(count, size) if size > 1 else [b"%d" % (at % 10) for at in range(count)]
            )
            # As much at a time as the receiver has room for.
            step = max(1, 100_000 // (size + 1000))
            for start in range(0, count, step):
                some = datagrams[start : start + step]
                assert sender.send_many(some) == len(some)
                received = []
                while len(received) < len(some):
                    received += [data for data, _ in receiver.recv_many()]
                assert received == some


def test_sizes_in_every_order_arrive_in_order(inet):
    with inet.bound(socket) as sender, inet.bound(std) as receiver:
        sender.connect(receiver.getsockname())
        for sizes in itertools.product([0, 1, 2, 3], repeat=4):
            datagrams = [bytes([at]) * size for at, size in enumerate(sizes)]
            assert sender.send_many(datagrams) == 4
            assert payloads_of(receiver) == datagrams
