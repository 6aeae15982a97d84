"""Waiting: for ever, with a timeout, or not at all."""

import errno
import itertools
import socket as std
import threading
import time

import pytest

from parity import assert_same
from support import DEADLINE, RECEIVE, Call, eventually, fill, open_descriptors
from tomada import socket

SEND = {
    "send": lambda sock: sock.send(b"late"),
    "sendall": lambda sock: sock.sendall(b"late"),
    "sendto": lambda sock: sock.sendto(b"late", sock.getpeername()),
    "sendmsg": lambda sock: sock.sendmsg([b"late"]),
}

every_receive = pytest.mark.parametrize("receive", RECEIVE.values(), ids=RECEIVE)
every_send = pytest.mark.parametrize("send", SEND.values(), ids=SEND)


@every_receive
def test_nonblocking_receive_raises(kind, receive):
    with kind.bound(socket) as sock:
        sock.setblocking(False)
        with pytest.raises(BlockingIOError) as caught:
            receive(sock)
        assert caught.value.errno == errno.EAGAIN


@every_receive
def test_timeout_does_not_end_early(kind, receive):
    with kind.bound(socket) as sock:
        for timeout in (0.02, 0.001, 1e-9):
            sock.settimeout(timeout)
            start = time.monotonic()
            with pytest.raises(TimeoutError, match=r"^timed out$") as caught:
                receive(sock)
            assert time.monotonic() - start >= timeout
            assert caught.value.errno is None
            assert isinstance(caught.value, std.timeout)


def test_messages_of_timeouts_and_nonblocking_errors_are_the_standard_classs():
    def receiving(timeout, *flags):
        def case(side):
            sock = side.bound()
            sock.settimeout(timeout)
            sock.recvfrom(100, *flags)

        return case

    assert_same(receiving(0.001), TimeoutError)
    assert_same(receiving(0), BlockingIOError)
    assert_same(receiving(0, std.MSG_DONTWAIT), BlockingIOError)
    assert_same(receiving(None, std.MSG_DONTWAIT), BlockingIOError)


def test_msg_dontwait_with_a_timeout():
    # The standard class applies the timeout first, and ignores the flag.
    def case(side):
        sock = side.bound()
        sock.settimeout(0.001)
        sock.recv(100, std.MSG_DONTWAIT)

    assert_same(case, TimeoutError)


@every_receive
@pytest.mark.parametrize("timeout", [None, DEADLINE])
def test_datagram_that_arrives_ends_the_wait(kind, peer, receive, timeout):
    other = peer(kind)
    with kind.bound(socket) as sock:
        sock.settimeout(timeout)
        call = Call(receive, sock).until_it_waits()
        other.do("send", datagrams=[b"awaited"], to=sock.getsockname())
        assert call.result() in {b"awaited", 7}


def test_empty_datagram_ends_a_wait(kind, peer):
    other = peer(kind)
    with kind.bound(socket) as sock:
        call = Call(sock.recvfrom, 100).until_it_waits()
        other.do("send", datagrams=[b""], to=sock.getsockname())
        assert call.result() == (b"", other.address)


def test_queued_datagram_is_returned_even_with_the_shortest_timeout(kind, peer):
    other = peer(kind)
    with kind.bound(socket) as sock:
        other.do("send", datagrams=[b"a", b"b"], to=sock.getsockname())
        sock.settimeout(1e-9)
        assert sock.recv(10) == b"a"
        sock.settimeout(0)
        assert sock.recv(10) == b"b"


def test_other_threads_run_while_one_waits(inet):
    with inet.bound(socket) as sock:
        call = Call(sock.recv, 10).until_it_waits()
        assert sum(range(1000)) == 499_500
        sock.sendto(b"x", sock.getsockname())
        assert call.result() == b"x"


def test_settimeout_applies_to_the_next_wait(inet):
    with inet.bound(socket) as sock:
        sock.settimeout(None)
        call = Call(sock.recv, 10).until_it_waits()
        sock.settimeout(0)
        assert call.is_alive()
        with pytest.raises(BlockingIOError):
            sock.recv(10)
        sock.sendto(b"x", sock.getsockname())
        assert call.result() == b"x"


def test_many_threads_get_each_datagram_exactly_once(inet):
    datagrams = [b"%d" % number for number in range(400)]
    with inet.bound(socket) as sock, inet.open(std) as sender:
        received = [[] for _ in range(8)]

        def receive(mine):
            while data := sock.recvfrom(100)[0]:
                mine.append(data)

        calls = [Call(receive, mine).until_it_waits() for mine in received]
        for part in range(0, 400, 40):
            for data in datagrams[part : part + 40]:
                sender.sendto(data, sock.getsockname())
            # The queue holds a few hundred: let the threads read before more are sent.
            eventually(lambda part=part: sum(map(len, received)) == part + 40)
        for _ in calls:
            sender.sendto(b"", sock.getsockname())
        for call in calls:
            call.result()
        assert sorted(itertools.chain(*received)) == sorted(datagrams)


def test_two_hundred_waiting_threads_each_get_one_datagram(inet):
    with inet.bound(socket) as sock, inet.open(std) as sender:
        calls = [Call(sock.recv, 100) for _ in range(200)]
        for number in range(200):
            calls[number].until_it_waits()
        for number in range(200):
            sender.sendto(b"%d" % number, sock.getsockname())
        received = sorted(int(call.result()) for call in calls)
        assert received == list(range(200))


def test_threads_that_have_waited_leave_nothing_behind(inet):
    with inet.bound(socket) as sock:
        # The first wait of a thread may open something that its later waits reuse.
        sock.settimeout(0.001)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.settimeout(DEADLINE)
        threads, descriptors = threading.active_count(), open_descriptors()
        for _ in range(5):
            calls = [Call(sock.recv, 100).until_it_waits() for _ in range(20)]
            for _ in calls:
                sock.sendto(b"x", sock.getsockname())
            assert [call.result() for call in calls] == [b"x"] * 20
        assert threading.active_count() == threads
        # A thread's resources are released a moment after its last Python code.
        eventually(lambda: open_descriptors() == descriptors)


@pytest.fixture(params=["connected", "unconnected"])
def full(request, unix):
    """Fill a socket's queue; provide it, a socket with more to send, and its way to send."""
    with unix.bound(socket) as receiver, unix.open(socket) as sender:
        to = receiver.getsockname()
        sender.connect(to)
        count = fill(sender, to)
        if request.param == "unconnected":
            sender.close()
            with unix.open(socket) as stranger:
                yield receiver, stranger, lambda: stranger.sendto(b"late", to), count
        else:
            yield receiver, sender, lambda: sender.send(b"late"), count


def test_sender_waits_for_room_and_the_reader_wakes_it(full):
    receiver, _, send, count = full
    call = Call(send).until_it_waits()
    assert [int(receiver.recv(100)) for _ in range(count)] == list(range(count))
    assert call.result() == 4
    assert receiver.recv(100) == b"late"


def test_sender_without_a_timeout_waits_for_room(full):
    receiver, sender, send, _ = full
    sender.settimeout(None)
    call = Call(send).until_it_waits()
    assert receiver.recv(100) == b"0"
    assert call.result() == 4


def test_sender_times_out_and_has_sent_nothing(full):
    receiver, sender, send, count = full
    sender.settimeout(0.05)
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"^timed out$"):
        send()
    assert time.monotonic() - start >= 0.05
    received = [receiver.recv(100) for _ in range(count)]
    assert b"late" not in received
    receiver.setblocking(False)
    with pytest.raises(BlockingIOError):
        receiver.recv(100)


def test_nonblocking_sender_raises(full):
    _, sender, send, _ = full
    sender.setblocking(False)
    with pytest.raises(BlockingIOError) as caught:
        send()
    assert caught.value.errno == errno.EAGAIN


def test_waiting_sender_uses_no_cpu(full):
    _, sender, send, _ = full
    sender.settimeout(0.3)
    start = time.process_time()
    with pytest.raises(TimeoutError):
        send()
    assert time.process_time() - start < 0.15


def test_waiting_receiver_uses_no_cpu(kind):
    with kind.bound(socket) as sock:
        sock.settimeout(0.3)
        start = time.process_time()
        with pytest.raises(TimeoutError):
            sock.recv(100)
        assert time.process_time() - start < 0.15


def test_queued_error_neither_ends_a_wait_nor_uses_cpu(inet):
    # poll(2) reports it repeatedly, until it is read.
    with inet.bound(socket) as sock, inet.bound(std) as dead:
        nobody = dead.getsockname()
        dead.close()
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVERR, 1)
        sock.sendto(b"anybody?", nobody)
        with pytest.raises(ConnectionRefusedError):
            sock.recv(100)
        sock.settimeout(0.3)
        start = time.process_time()
        with pytest.raises(TimeoutError):
            sock.recv(100)
        assert time.process_time() - start < 0.15
        sock.settimeout(DEADLINE)
        call = Call(sock.recv, 100).until_it_waits()
        sock.sendto(b"x", sock.getsockname())
        assert call.result() == b"x"


@every_send
def test_every_send_method_waits_for_room(unix, send):
    with unix.bound(socket) as receiver, unix.open(socket) as sender:
        sender.connect(receiver.getsockname())
        count = fill(sender, receiver.getsockname())
        call = Call(send, sender).until_it_waits()
        for _ in range(count):
            receiver.recv(100)
        assert call.result() in {4, None}
        assert receiver.recv(100) == b"late"


def test_several_senders_wait_for_one_reader(unix):
    with unix.bound(socket) as receiver:
        senders = [unix.open(socket) for _ in range(5)]
        count = fill(senders[0], receiver.getsockname())
        to = receiver.getsockname()
        calls = [Call(sender.sendto, b"late", to).until_it_waits() for sender in senders]
        received = [receiver.recv(100) for _ in range(count + 5)]
        assert received.count(b"late") == 5
        for call, sender in zip(calls, senders, strict=True):
            assert call.result() == 4
            sender.close()


def test_peer_that_closes_ends_the_wait_of_a_sender(unix):
    with unix.bound(socket) as receiver, unix.open(socket) as sender:
        sender.connect(receiver.getsockname())
        fill(sender, receiver.getsockname())
        call = Call(sender.send, b"late").until_it_waits()
        receiver.close()
        with pytest.raises(ConnectionRefusedError):
            call.result()
