"""Coalescing (``UDP_GRO``): runs are split in order, and the backlog is returned first.

A run that a plain socket sends with ``UDP_SEGMENT`` crosses the loopback device in one piece, and
arrives at a socket with ``gro`` as one message.
"""

import errno
import functools
import os
import select
import socket as std
import struct

import pytest

import tomada
from floods import Flood, needs_loadgen
from support import CLOSED, DEADLINE, Call, eventually, run
from tomada import socket
from traffic import RECEIVE_SOME, numbered, payloads, receive, send_run

RUN = numbered(10)
# A run whose last datagram is shorter.
UNEVEN = [*numbered(4), b"end"]


@pytest.fixture(params=["AF_INET", "AF_INET6"])
def gro(request):
    """Provide a socket with coalescing enabled, and a plain one that sends to it."""
    kind = request.getfixturevalue("inet" if request.param == "AF_INET" else "inet6")
    with kind.bound(socket) as sock, kind.bound(std) as sender:
        sock.gro = True
        yield sock, sender


def from_recv(sock):
    return sock.recv(100)


def from_recv_into(sock):
    buffer = bytearray(100)
    return bytes(buffer[: sock.recv_into(buffer)])


def from_recvfrom_into(sock):
    buffer = bytearray(100)
    return bytes(buffer[: sock.recvfrom_into(buffer)[0]])


def from_recvmsg_into(sock):
    buffers = [bytearray(3), bytearray(100)]
    length = sock.recvmsg_into(buffers)[0]
    return b"".join(buffers)[:length]


# Each takes exactly one datagram.
RECEIVE_ONE = {
    "recv": from_recv,
    "recvfrom": lambda sock: sock.recvfrom(100)[0],
    "recv_into": from_recv_into,
    "recvfrom_into": from_recvfrom_into,
    "recvmsg": lambda sock: sock.recvmsg(100)[0],
    "recvmsg_into": from_recvmsg_into,
    "recv_many": lambda sock: sock.recv_many(1)[0][0],
    "recv_datagram": lambda sock: sock.recv_datagram().data,
    "recv_datagrams": lambda sock: sock.recv_datagrams(1)[0].data,
}

every_single = pytest.mark.parametrize("take", RECEIVE_ONE.values(), ids=RECEIVE_ONE)
every_way = pytest.mark.parametrize("way", RECEIVE_SOME)


def test_gro_is_off_by_default(inet):
    with inet.bound(socket) as sock:
        assert (sock.gro, sock.pending) == (False, 0)
        sock.gro = True
        assert sock.gro is True
        assert sock.getsockopt(socket.IPPROTO_UDP, socket.UDP_GRO) == 1
        sock.gro = False
        assert sock.gro is False
        assert sock.getsockopt(socket.IPPROTO_UDP, socket.UDP_GRO) == 0


def test_gro_is_only_for_udp(unix):
    with unix.open(socket) as sock:
        with pytest.raises(OSError, match=r"not supported|not available") as caught:
            sock.gro = True
        assert caught.value.errno in {errno.ENOPROTOOPT, errno.EOPNOTSUPP}
        assert (sock.gro, sock.pending) == (False, 0)


@every_way
@pytest.mark.parametrize("datagrams", [RUN, UNEVEN], ids=["even", "uneven"])
def test_run_is_split_in_order(gro, way, datagrams):
    sock, sender = gro
    send_run(sender, sock.getsockname(), b"".join(datagrams), 8)
    expected = [(data, sender.getsockname()) for data in datagrams]
    assert receive(sock, len(datagrams), way) == expected
    assert sock.pending == 0
    assert payloads(sock) == []


def test_recv_many_takes_runs_and_single_datagrams_together(gro):
    sock, sender = gro
    here = sock.getsockname()
    send_run(sender, here, b"".join(RUN), 8)
    sender.sendto(b"", here)
    send_run(sender, here, b"".join(UNEVEN), 8)
    sender.sendto(b"single", here)
    assert [data for data, _ in sock.recv_many()] == [*RUN, b"", *UNEVEN, b"single"]
    # Four messages of the kernel, and one call.
    assert (sock.stats().receive_calls, sock.stats().received) == (1, 17)


def test_recv_batch_takes_runs_and_single_datagrams_together(gro):
    sock, sender = gro
    here, there = sock.getsockname(), sender.getsockname()
    send_run(sender, here, b"".join(RUN), 8)
    sender.sendto(b"", here)
    send_run(sender, here, b"".join(UNEVEN), 8)
    batch = tomada.Batch(3)
    assert sock.recv_batch(batch) == 16
    assert [(bytes(data), to) for data, to in batch] == [
        (data, there) for data in (*RUN, b"", *UNEVEN)
    ]
    assert sock.stats().receive_calls == 1


@every_single
def test_receive_of_less_than_a_run_leaves_the_rest_pending(gro, take):
    sock, sender = gro
    send_run(sender, sock.getsockname(), b"".join(UNEVEN), 8)
    for number, data in enumerate(UNEVEN, 1):
        assert take(sock) == data
        assert sock.pending == len(UNEVEN) - number


@every_single
@every_way
def test_rest_of_a_run_is_returned_first_by_any_receive(gro, take, way):
    sock, sender = gro
    here = sock.getsockname()
    send_run(sender, here, b"".join(RUN), 8)
    sender.sendto(b"after it", here)
    first = [data for data, _ in sock.recv_many(3)]
    second = [take(sock)]
    rest = [data for data, _ in receive(sock, 7, way)]
    assert [*first, *second, *rest] == [*RUN, b"after it"]
    assert sock.pending == 0


@pytest.mark.parametrize("most", [1, 2, 3, 7, 10, 11, 64])
def test_recv_many_with_any_maximum_takes_all_in_order(gro, most):
    sock, sender = gro
    expected = []
    for number in range(5):
        datagrams = [b"%d %d" % (number, at) for at in range(7)]
        send_run(sender, sock.getsockname(), b"".join(datagrams), 3)
        expected += datagrams
    received = []
    while len(received) < 35:
        some = sock.recv_many(most)
        assert 1 <= len(some) <= most
        received += [data for data, _ in some]
    assert received == expected
    assert sock.pending == 0


def test_recv_batch_into_a_small_batch_leaves_the_rest_pending(gro):
    sock, sender = gro
    here = sock.getsockname()
    expected = []
    # Every kernel allows 64 datagrams per message; a slot has room for 128.
    for number in range(6):
        datagrams = [b"%d%02d" % (number, at) for at in range(64)]
        send_run(sender, here, b"".join(datagrams), 3)
        expected += datagrams
    batch, received = tomada.Batch(1), []
    while len(received) < len(expected):
        assert sock.recv_batch(batch) > 0
        received += [bytes(data) for data, _ in batch]
    assert received == expected


def test_recv_batch_has_a_slot_for_each_queued_message(gro):
    sock, sender = gro
    for data in (b"one", b"two", b"three"):
        sender.sendto(data, sock.getsockname())
    sock.gro = False
    assert sock.pending == 3
    batch = tomada.Batch(2)
    assert [sock.recv_batch(batch), sock.pending] == [2, 1]
    assert [sock.recv_batch(batch), bytes(batch[0])] == [1, b"three"]


def test_recv_batch_with_short_slots_loses_nothing_of_a_run(gro):
    sock, sender = gro
    send_run(sender, sock.getsockname(), b"".join(numbered(60, 1000)), 1000)
    batch, received = tomada.Batch(4, slot_size=1000), []
    while len(received) < 60:
        assert sock.recv_batch(batch) > 0
        assert batch.truncated == []
        received += [bytes(data) for data, _ in batch]
    assert received == numbered(60, 1000)
    assert sock.stats().truncated == 0


def test_recv_batch_truncates_only_the_datagram_longer_than_a_slot(gro):
    sock, sender = gro
    send_run(sender, sock.getsockname(), b"".join([b"x" * 300, b"y" * 300, b"z"]), 300)
    batch = tomada.Batch(4, slot_size=128)
    assert sock.recv_batch(batch) == 3
    assert [bytes(data) for data, _ in batch] == [b"x" * 128, b"y" * 128, b"z"]
    assert batch.truncated == [0, 1]


def test_datagram_of_a_run_is_truncated_like_a_single_one(gro):
    sock, sender = gro
    send_run(sender, sock.getsockname(), b"firstothertail", 5)
    assert sock.recvfrom(3) == (b"fir", sender.getsockname())
    data, _, flags, _ = sock.recvmsg(2)
    assert (data, bool(flags & socket.MSG_TRUNC)) == (b"ot", True)
    assert sock.recv(100) == b"tail"
    assert sock.stats().truncated == 2


def test_recvmsg_does_not_return_the_segment_size(gro):
    sock, sender = gro
    send_run(sender, sock.getsockname(), b"onetwo", 3)
    for data in (b"one", b"two"):
        assert sock.recvmsg(100, 1000) == (data, [], 0, sender.getsockname())


def test_msg_peek_takes_nothing_of_a_run(gro):
    sock, sender = gro
    send_run(sender, sock.getsockname(), b"onetwo", 3)
    for _ in range(2):
        assert sock.recv(100, socket.MSG_PEEK) == b"one"
    assert sock.pending == 2
    assert [data for data, _ in sock.recv_many()] == [b"one", b"two"]


def test_select_does_not_see_the_backlog(gro):
    sock, sender = gro
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    send_run(sender, sock.getsockname(), b"onetwo", 3)
    assert poll.poll(DEADLINE * 1000) == [(sock.fileno(), select.POLLIN)]
    assert sock.recv(100) == b"one"
    # That is the purpose of `pending`: a loop around select() checks it first.
    assert (sock.pending, poll.poll(0), select.select([sock], [], [], 0)[0]) == (1, [], [])
    sender.sendto(b"three", sock.getsockname())
    assert poll.poll(DEADLINE * 1000)
    assert [sock.recv(100), sock.recv(100)] == [b"two", b"three"]


def test_select_loop_that_checks_pending_receives_everything(gro):
    sock, sender = gro
    sock.setblocking(False)
    expected = []
    for number in range(10):
        send_run(sender, sock.getsockname(), b"".join(numbered(number + 2, 8)), 8)
        expected += numbered(number + 2, 8)
    received = []
    while len(received) < len(expected):
        assert sock.pending or select.select([sock], [], [], DEADLINE)[0]
        received.append(sock.recv(100))
    assert received == expected


def test_runs_queued_before_gro_is_disabled_are_still_split(gro):
    sock, sender = gro
    send_run(sender, sock.getsockname(), b"onetwo", 3)
    sock.gro = False
    sender.sendto(b"three", sock.getsockname())
    assert [sock.recv(100) for _ in range(3)] == [b"one", b"two", b"three"]


@needs_loadgen
def test_backlog_is_limited_when_gro_is_disabled_in_a_flood(inet):
    size, message, messages = 1000, 65_536, 64
    with inet.bound(socket) as sock:
        # The queued datagrams, the message that exceeded the limit, and the last receive.
        room = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) + (1 + messages) * message
        with Flood(sock.getsockname(), gso=True, size=size, senders=2):
            for _ in range(20):
                sock.gro = True
                before = sock.stats().kernel_drops
                eventually(lambda before=before: sock.stats().kernel_drops > before)
                sock.gro = False
                assert sock.pending * size <= room
                while sock.pending:
                    sock.recv_many()


def test_recv_many_splits_runs_if_the_user_set_the_option(inet):
    with inet.bound(socket) as sock, inet.bound(std) as sender:
        sock.setsockopt(socket.IPPROTO_UDP, socket.UDP_GRO, 1)
        send_run(sender, sock.getsockname(), b"onetwosix", 3)
        assert [data for data, _ in sock.recv_many(2)] == [b"one", b"two"]
        assert (sock.pending, sock.recv(100)) == (1, b"six")
        # A program that sets the option itself and uses the standard methods sees what the kernel
        # returns.
        send_run(sender, sock.getsockname(), b"onetwosix", 3)
        data, ancillary, _, _ = sock.recvmsg(100, 100)
        assert data == b"onetwosix"
        assert [(level, kind) for level, kind, _ in ancillary] == [
            (socket.IPPROTO_UDP, socket.UDP_GRO)
        ]
        assert struct.unpack("i", ancillary[0][2]) == (3,)


def test_run_of_maximum_length_arrives(gro):
    sock, sender = gro
    data = os.urandom(64 * 1000)
    send_run(sender, sock.getsockname(), data, 1000)
    assert b"".join(data for data, _ in receive(sock, 64, "recv_many")) == data


@pytest.mark.parametrize("timeout", [None, DEADLINE])
def test_rest_of_a_run_wakes_another_waiting_thread(gro, timeout):
    sock, sender = gro
    sock.settimeout(timeout)
    for take in RECEIVE_ONE.values():
        calls = [Call(take, sock).until_it_waits() for _ in range(3)]
        # It does not matter which of them receives from the kernel.
        send_run(sender, sock.getsockname(), b"onetwosix", 3)
        assert {call.result() for call in calls} == {b"one", b"two", b"six"}
        assert sock.pending == 0


def test_rest_of_a_run_wakes_another_thread_in_recv_batch(gro):
    sock, sender = gro
    batch = tomada.Batch()
    for _ in range(20):
        first = Call(sock.recv, 100).until_it_waits()
        second = Call(sock.recv_batch, batch).until_it_waits()
        send_run(sender, sock.getsockname(), b"onetwo", 3)
        eventually(lambda calls=(first, second): not all(call.is_alive() for call in calls))
        if first.is_alive() and second.result() == 2:
            sender.sendto(b"one", sock.getsockname())  # the other one received both
        assert first.result() == b"one"
        assert second.result() == len(batch)
        assert bytes(batch[len(batch) - 1]) == b"two"


def test_threads_that_share_a_socket_get_each_datagram_exactly_once(gro):
    sock, sender = gro
    received = []

    def take(way):
        while True:
            some = [data for data, _ in RECEIVE_SOME[way](sock, 5)]
            received.extend(data for data in some if data != b"end")
            if b"end" in some:
                return

    calls = [Call(take, way) for way in RECEIVE_SOME]
    expected = []
    for number in range(100):
        datagrams = [b"%04d %d" % (number, at) for at in range(8)]
        send_run(sender, sock.getsockname(), b"".join(datagrams), 6)
        expected.extend(datagrams)
        # As many as the socket's buffer holds on every machine.
        if number % 20 == 19:
            eventually(lambda: len(received) == len(expected))
    here = sock.getsockname()
    eventually(lambda: sender.sendto(b"end", here) and not any(c.is_alive() for c in calls))
    for call in calls:
        call.result()
    assert sorted(received) == sorted(expected)


def test_backlog_is_gone_after_close(gro):
    sock, sender = gro
    send_run(sender, sock.getsockname(), b"onetwo", 3)
    assert sock.recv(100) == b"one"
    sock.close()
    for take in (*RECEIVE_ONE.values(), functools.partial(RECEIVE_SOME["recv_batch"], count=1)):
        with pytest.raises(OSError, match=CLOSED):
            take(sock)


def test_control_messages_beyond_the_limit_set_msg_ctrunc(inet):
    wanted = {
        (std.SOL_SOCKET, 35): 1,  # SO_TIMESTAMPNS
        (std.SOL_SOCKET, 37): 1 << 3 | 1 << 4,  # for received datagrams
        (std.IPPROTO_IP, socket.IP_PKTINFO): 1,
        (std.IPPROTO_IP, socket.IP_RECVTOS): 1,
        (std.IPPROTO_IP, socket.IP_RECVTTL): 1,
        (std.IPPROTO_IP, 20): 1,  # IP_RECVORIGDSTADDR
        (std.IPPROTO_IP, std.IP_RECVOPTS): 1,
        (std.IPPROTO_IP, std.IP_RECVRETOPTS): 1,
    }
    with inet.bound(socket) as sock, inet.bound(std) as sender:
        sock.gro = True
        for (level, name), value in wanted.items():
            sock.setsockopt(level, name, value)
        sender.sendto(b"plain", sock.getsockname())
        _, messages, flags, _ = sock.recvmsg(100, 1024)
        assert (len(messages), flags & socket.MSG_CTRUNC) == (6, 0)
        # 40 bytes of options, twice: together more than a receive with coalescing has room for.
        sender.setsockopt(std.IPPROTO_IP, std.IP_OPTIONS, bytes([1]) * 40)
        sender.sendto(b"with options", sock.getsockname())
        data, messages, flags, _ = sock.recvmsg(100, 1024)
        assert (data, flags & socket.MSG_CTRUNC) == (b"with options", socket.MSG_CTRUNC)


def test_ten_thousand_runs_leak_no_memory():
    program = """
import resource, socket as std, struct
from tomada import socket
def used():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("127.0.0.1", 0))
sock.gro = True
sender = std.socket(std.AF_INET, std.SOCK_DGRAM)
segment = [(std.IPPROTO_UDP, socket.UDP_SEGMENT, struct.pack("H", 1000))]
def rounds(count):
    for _ in range(count):
        sender.sendmsg([bytes(5000)], segment, 0, sock.getsockname())
        assert len(sock.recv_many(2)) == 2
        assert sock.pending == 3
        for _ in range(3):
            sock.recv(2000)
rounds(100)
before = used()
rounds(10_000)
assert used() - before < 8, (before, used())
"""
    assert run(program) == ""
