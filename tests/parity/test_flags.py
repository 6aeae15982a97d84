"""Flags of single calls, and what they return."""

import pytest

from support import fill
from tomada import socket


def test_msg_peek_leaves_the_datagram_in_the_queue(kind, peer):
    other = peer(kind)
    with kind.bound(socket) as sock:
        other.do("send", datagrams=[b"once"], to=sock.getsockname())
        assert sock.recv(100, socket.MSG_PEEK) == b"once"
        assert sock.recvfrom(100, socket.MSG_PEEK) == (b"once", other.address)
        assert sock.recv_into(bytearray(100), 0, socket.MSG_PEEK) == 4
        assert sock.recvfrom_into(bytearray(100), 2, socket.MSG_PEEK) == (2, other.address)
        assert sock.recvmsg(2, 0, socket.MSG_PEEK)[0] == b"on"
        assert sock.recvmsg_into([bytearray(1)], 0, socket.MSG_PEEK)[0] == 1
        assert sock.recv(100) == b"once"
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(100)


def test_recv_truncates_a_datagram_longer_than_the_buffer(kind, peer):
    other = peer(kind)
    with kind.bound(socket) as sock:
        other.do("send", datagrams=[b"0123456789"] * 4 + [b"next"], to=sock.getsockname())
        assert sock.recv(4) == b"0123"
        assert sock.recvfrom(1) == (b"0", other.address)
        buffer = bytearray(b"......")
        assert sock.recv_into(buffer, 3) == 3
        assert buffer == b"012..."
        assert sock.recvfrom_into(buffer) == (6, other.address)
        assert sock.recv(100) == b"next"


def test_recvmsg_sets_msg_trunc_for_a_truncated_datagram(kind, peer):
    other = peer(kind)
    with kind.bound(socket) as sock:
        other.do("send", datagrams=[b"0123456789"] * 4, to=sock.getsockname())
        expected = ([], socket.MSG_TRUNC, other.address)
        assert sock.recvmsg(4) == (b"0123", *expected)
        assert sock.recvmsg_into([bytearray(2), bytearray(3)]) == (5, *expected)
        assert sock.recvmsg_into([]) == (0, *expected)
        assert sock.recvmsg(10) == (b"0123456789", [], 0, other.address)


def test_msg_trunc_returns_the_full_length(kind, peer):
    other = peer(kind)
    with kind.bound(socket) as sock:
        other.do("send", datagrams=[b"0123456789"] * 2, to=sock.getsockname())
        buffer = bytearray(4)
        assert sock.recv_into(buffer, 0, socket.MSG_TRUNC | socket.MSG_PEEK) == 10
        assert sock.recv_into(buffer, 0, socket.MSG_TRUNC) == 10
        assert buffer == b"0123"
        assert sock.recvfrom_into(buffer, 2, socket.MSG_TRUNC) == (10, other.address)


def test_empty_datagram_is_received(kind, peer):
    other = peer(kind)
    with kind.bound(socket) as sock:
        other.do("send", datagrams=[b"", b"", b"", b"end"], to=sock.getsockname())
        assert sock.recvfrom(100) == (b"", other.address)
        assert sock.recvfrom_into(bytearray(100)) == (0, other.address)
        assert sock.recvmsg(100) == (b"", [], 0, other.address)
        assert sock.recv(100) == b"end"


def test_recvfrom_of_zero_bytes_takes_a_datagram(kind, peer):
    other = peer(kind)
    with kind.bound(socket) as sock:
        other.do("send", datagrams=[b"1", b"2", b"3", b"4"], to=sock.getsockname())
        assert sock.recvfrom(0) == (b"", other.address)
        assert sock.recvfrom_into(bytearray()) == (0, other.address)
        assert sock.recvmsg(0) == (b"", [], socket.MSG_TRUNC, other.address)
        assert sock.recv(100) == b"4"


def test_recv_of_zero_bytes_takes_nothing(kind, peer):
    # The standard class does not call the kernel, and so does not wait.
    other = peer(kind)
    with kind.bound(socket) as sock:
        assert sock.recv(0) == b""
        assert sock.recv_into(bytearray()) == 0
        other.do("send", datagrams=[b"here"], to=sock.getsockname())
        assert sock.recv(0) == b""
        assert sock.recv_into(bytearray()) == 0
        assert sock.recv(100) == b"here"


def test_large_bufsize_allocates_no_memory(kind, peer):
    other = peer(kind)
    with kind.bound(socket) as sock:
        other.do("send", datagrams=[b"a", b"b", b"c"], to=sock.getsockname())
        assert sock.recv(1 << 20) == b"a"
        assert sock.recvfrom(1 << 20) == (b"b", other.address)
        assert sock.recvmsg(1 << 20) == (b"c", [], 0, other.address)


def test_msg_dontwait_does_not_block_recv(kind):
    with kind.bound(socket) as sock:
        sock.settimeout(None)
        flag = socket.MSG_DONTWAIT
        for receive in (
            lambda: sock.recv(100, flag),
            lambda: sock.recvfrom(100, flag),
            lambda: sock.recv_into(bytearray(100), 0, flag),
            lambda: sock.recvfrom_into(bytearray(100), 0, flag),
            lambda: sock.recvmsg(100, 0, flag),
            lambda: sock.recvmsg_into([bytearray(100)], 0, flag),
        ):
            with pytest.raises(BlockingIOError):
                receive()


def test_msg_dontwait_does_not_block_send(unix):
    with unix.bound(socket) as full, unix.open(socket) as sender:
        sender.settimeout(None)
        sender.connect(full.getsockname())
        assert fill(sender, full.getsockname()) > 0
        for send in (
            lambda: sender.send(b"x", socket.MSG_DONTWAIT),
            lambda: sender.sendall(b"x", socket.MSG_DONTWAIT),
            lambda: sender.sendto(b"x", socket.MSG_DONTWAIT, full.getsockname()),
            lambda: sender.sendmsg([b"x"], [], socket.MSG_DONTWAIT),
        ):
            with pytest.raises(BlockingIOError):
                send()


def test_msg_dontroute_and_msg_confirm_are_passed_to_the_kernel(inet, peer):
    other = peer(inet)
    with inet.bound(socket) as sock:
        sock.sendto(b"a", socket.MSG_DONTROUTE, other.address)
        sock.sendto(b"b", socket.MSG_CONFIRM, other.address)
        sock.sendto(b"c, ", socket.MSG_MORE, other.address)
        sock.sendto(b"d", other.address)
        received = [data for data, _ in other.do("collect", count=3)]
        assert received == [b"a", b"b", b"c, d"]


@pytest.mark.parametrize("method", ["recv", "recvfrom", "recvmsg"])
def test_msg_trunc_shows_nothing_of_earlier_datagrams(kind, peer, method):
    other = peer(kind)
    with kind.bound(socket) as sock:
        other.do("send", datagrams=[b"private", b"0123456"], to=sock.getsockname())
        assert sock.recv(100) == b"private"
        flags = (0, socket.MSG_TRUNC) if method == "recvmsg" else (socket.MSG_TRUNC,)
        received = getattr(sock, method)(3, *flags)
        data = received if method == "recv" else received[0]
        assert data[:3] == b"012"
        # The standard class returns as many bytes as the datagram had, partly garbage.
        assert data[3:].strip(b"\0") == b""
