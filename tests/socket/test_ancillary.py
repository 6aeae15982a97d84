"""Control messages: descriptors, credentials, packet information."""

import array
import errno
import os
import resource
import socket as std
import struct

import pytest

from support import open_descriptors
from tomada import socket

SPACE_FOR_INT = socket.CMSG_SPACE(4)


def file_with(text):
    file = os.memfd_create("text")
    os.write(file, text)
    os.lseek(file, 0, os.SEEK_SET)
    return file


def contents(file):
    with os.fdopen(file, "rb") as stream:
        stream.seek(0)
        return stream.read()


def rights(*files):
    return (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))


def test_send_fds_sends_a_file_that_arrives(unix, peer):
    other = peer(unix)
    with unix.bound(socket) as sock:
        file = file_with(b"what is in it")
        sock.connect(other.address)
        other.ask("receive_file")
        assert socket.send_fds(sock, [b"a ", b"file"], [file]) == 6
        os.close(file)
        assert other.answer() == (b"a file", "what is in it")


def test_recv_fds_receives_a_file_that_can_be_read(unix, peer):
    other = peer(unix)
    with unix.bound(socket) as sock:
        other.do("send_file", text="what is in it", to=sock.getsockname())
        data, files, flags, address = socket.recv_fds(sock, 100, 4)
        assert (data, flags & socket.MSG_CTRUNC, address) == (b"a file", 0, other.address)
        assert [contents(file) for file in files] == [b"what is in it"]


def test_received_descriptors_are_as_inheritable_as_the_standard_classs(unix, peer):
    other = peer(unix)
    inheritable = []
    for module in (std, socket):
        with unix.bound(module) as sock:
            other.do("send_file", text="", to=sock.getsockname())
            _, (file,), _, _ = module.recv_fds(sock, 100, 1)
            inheritable.append(os.get_inheritable(file))
            os.close(file)
    assert inheritable[0] == inheritable[1]


def test_file_arrives_on_a_socket_that_cannot_coalesce(unix, peer):
    other = peer(unix)
    with unix.bound(socket) as sock:
        with pytest.raises(OSError, match="not supported"):
            sock.gro = True
        other.do("send_file", text="what is in it", to=sock.getsockname())
        _, files, _, _ = socket.recv_fds(sock, 100, 4)
        assert [contents(file) for file in files] == [b"what is in it"]


def test_recvmsg_with_excess_ancbufsize_allocates_no_memory(inet):
    with inet.bound(socket) as sock:
        sock.sendto(b"x", sock.getsockname())
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert sock.recvmsg(10, 2**31 - 1)[:2] == (b"x", [])
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**10


def test_sendmsg_sends_several_files_in_one_datagram_to_an_address(unix):
    with unix.bound(socket) as sock, unix.bound(socket) as sender:
        sent = [file_with(text) for text in (b"one", b"two", b"three")]
        sender.sendmsg([b"x"], [rights(*sent)], 0, sock.getsockname())
        for file in sent:
            os.close(file)
        data, ancillary, flags, address = sock.recvmsg(10, socket.CMSG_SPACE(12))
        assert (data, flags & socket.MSG_CTRUNC, address) == (b"x", 0, sender.getsockname())
        ((level, kind, received),) = ancillary
        assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        files = struct.unpack("3i", received)
        assert [contents(file) for file in files] == [b"one", b"two", b"three"]


def test_recvmsg_into_receives_a_file(unix, peer):
    other = peer(unix)
    with unix.bound(socket) as sock:
        other.do("send_file", text="read me", to=sock.getsockname())
        buffers = [bytearray(2), bytearray(10)]
        length, ancillary, _, address = sock.recvmsg_into(buffers, SPACE_FOR_INT)
        assert (length, address) == (6, other.address)
        assert contents(struct.unpack("i", ancillary[0][2])[0]) == b"read me"


def test_recvmsg_reports_files_that_do_not_fit_and_closes_them(unix, peer):
    other = peer(unix)
    with unix.bound(socket) as sock:
        other.do("send_file", text="", to=sock.getsockname())
        before = open_descriptors()
        data, ancillary, flags, _ = sock.recvmsg(100)
        assert (data, ancillary) == (b"a file", [])
        assert flags & socket.MSG_CTRUNC
        assert open_descriptors() == before


def test_recvmsg_truncates_a_control_message_that_does_not_fit(unix):
    with unix.bound(socket) as sock, unix.open(socket) as sender:
        file = file_with(b"")
        sender.sendmsg([b"x"], [rights(file, file, file)], 0, sock.getsockname())
        os.close(file)
        _, ancillary, flags, _ = sock.recvmsg(10, socket.CMSG_LEN(4))
        assert flags & socket.MSG_CTRUNC
        ((_, _, received),) = ancillary
        assert len(received) == 4
        os.close(struct.unpack("i", received)[0])


def test_recvmsg_returns_the_peers_credentials(unix, peer):
    other = peer(unix)
    with unix.bound(socket) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        other.do("send", datagrams=[b"who am I"], to=sock.getsockname())
        _, ancillary, _, _ = sock.recvmsg(100, socket.CMSG_SPACE(12))
        credentials = struct.pack("iII", other.pid, os.getuid(), os.getgid())
        assert ancillary == [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)]


def test_recvmsg_returns_the_destination_and_ttl(inet, peer):
    other = peer(inet)
    with inet.open(socket) as sock:
        sock.bind(("0.0.0.0", 0))  # noqa: S104 - only a wildcard address has several destinations
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_PKTINFO, 1)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTTL, 1)
        other.do("send", datagrams=[b"x"], to=("127.0.0.5", sock.getsockname()[1]))
        data, ancillary, flags, address = sock.recvmsg(10, 100)
        assert (data, flags, address) == (b"x", 0, other.address)
        messages = {kind: data for level, kind, data in ancillary if level == socket.IPPROTO_IP}
        assert set(messages) == {socket.IP_PKTINFO, socket.IP_TTL}
        assert messages[socket.IP_PKTINFO][8:] == socket.inet_aton("127.0.0.5")
        assert messages[socket.IP_TTL] == struct.pack("i", 64)


def test_sendmsg_sets_the_source_and_ttl(inet):
    with inet.open(socket) as sock, inet.bound(socket) as receiver:
        receiver.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTTL, 1)
        source = bytes(4) + socket.inet_aton("127.0.0.7") + bytes(4)
        ancillary = [
            (socket.IPPROTO_IP, socket.IP_PKTINFO, source),
            (socket.IPPROTO_IP, socket.IP_TTL, memoryview(struct.pack("i", 7))),
        ]
        assert sock.sendmsg([b"y"], ancillary, 0, receiver.getsockname()) == 1
        data, received, _, (host, _) = receiver.recvmsg(10, SPACE_FOR_INT)
        assert (data, host) == (b"y", "127.0.0.7")
        assert received == [(socket.IPPROTO_IP, socket.IP_TTL, struct.pack("i", 7))]


def test_recvmsg_returns_the_destination_of_an_ipv6_datagram(inet6, peer):
    other = peer(inet6)
    with inet6.bound(socket) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
        other.do("send", datagrams=[b"x"], to=sock.getsockname())
        _, ancillary, _, _ = sock.recvmsg(10, 100)
        messages = {kind: data for _, kind, data in ancillary}
        loopback = struct.pack("I", socket.if_nametoindex("lo"))
        destination = socket.inet_pton(socket.AF_INET6, "::1")
        assert messages[socket.IPV6_PKTINFO] == destination + loopback
        assert messages[socket.IPV6_HOPLIMIT] == struct.pack("i", 64)


def test_recvmsg_reads_errors_of_a_dead_peer_from_the_error_queue(inet):
    with inet.bound(socket) as sock, inet.bound(socket) as dead:
        nobody = dead.getsockname()
        dead.close()
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVERR, 1)
        sock.sendto(b"anybody?", nobody)
        # Wait for an error, not for a datagram: none will arrive.
        data, ancillary, flags, address = sock.recvmsg(100, 100, socket.MSG_ERRQUEUE)
        assert (data, address) == (b"anybody?", nobody)
        assert flags & socket.MSG_ERRQUEUE
        ((level, kind, error),) = ancillary
        assert (level, kind) == (socket.IPPROTO_IP, socket.IP_RECVERR)
        assert struct.unpack_from("I", error) == (errno.ECONNREFUSED,)
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recvmsg(100, 100, socket.MSG_ERRQUEUE)
