"""A connected peer that does not exist, which its host reports with an ICMP error."""

import errno
import socket as std

import pytest

from support import DEADLINE, Call
from tomada import socket

pytestmark = pytest.mark.thread_unsafe(reason="ports are reused")

SEND = {
    "send": lambda sock: sock.send(b"into the void"),
    "sendall": lambda sock: sock.sendall(b"into the void"),
    "sendto": lambda sock: sock.sendto(b"into the void", sock.getpeername()),
    "sendmsg": lambda sock: sock.sendmsg([b"into the ", b"void"]),
}

RECEIVE = {
    "recv": lambda sock: sock.recv(100),
    "recvfrom": lambda sock: sock.recvfrom(100),
    "recv_into": lambda sock: sock.recv_into(bytearray(100)),
    "recvfrom_into": lambda sock: sock.recvfrom_into(bytearray(100)),
    "recvmsg": lambda sock: sock.recvmsg(100),
    "recvmsg_into": lambda sock: sock.recvmsg_into([bytearray(100)]),
}

every_send = pytest.mark.parametrize("send", SEND.values(), ids=SEND)
every_receive = pytest.mark.parametrize("receive", RECEIVE.values(), ids=RECEIVE)
both_modules = pytest.mark.parametrize("module", [std, socket], ids=["standard", "tomada"])

# An address of this machine that other programs are unlikely to use, so that a released port can be
# bound again.
QUIET = "127.9.8.7"


@pytest.fixture
def nobody():
    """Find an address where no socket is bound."""
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.bind((QUIET, 0))
        return sock.getsockname()


def connected(module, to):
    sock = module.socket(module.AF_INET, module.SOCK_DGRAM)
    sock.settimeout(DEADLINE)
    sock.connect(to)
    return sock


@both_modules
@every_receive
def test_refusal_is_raised_by_the_next_receive(nobody, module, receive):
    with connected(module, nobody) as sock:
        assert sock.send(b"anybody?") == 8
        with pytest.raises(ConnectionRefusedError) as caught:
            receive(sock)
        assert caught.value.errno == errno.ECONNREFUSED
        # And only once.
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            receive(sock)


@both_modules
@every_send
def test_refusal_is_raised_by_the_next_send_which_sends_nothing(nobody, module, send):
    with connected(module, nobody) as sock:
        sock.send(b"anybody?")
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as late:
            late.bind(nobody)
            late.settimeout(DEADLINE)
            with pytest.raises(ConnectionRefusedError):
                send(sock)
            sock.send(b"now")
            assert late.recv(100) == b"now"


@both_modules
@pytest.mark.parametrize("timeout", [None, DEADLINE])
def test_refusal_ends_a_wait(inet, module, timeout):
    with inet.bound(std) as peer, connected(module, peer.getsockname()) as sock:
        sock.settimeout(timeout)
        call = Call(sock.recv, 100).until_it_waits()
        peer.close()
        sock.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            call.result()


@both_modules
def test_refusal_can_be_read_with_so_error(nobody, module):
    with connected(module, nobody) as sock:
        sock.send(b"anybody?")
        option = module.SOL_SOCKET, module.SO_ERROR
        assert sock.getsockopt(*option) == errno.ECONNREFUSED
        assert sock.getsockopt(*option) == 0
        assert sock.send(b"anybody?") == 8


@both_modules
def test_refusal_is_not_reported_to_an_unconnected_socket(nobody, module):
    with module.socket(module.AF_INET, module.SOCK_DGRAM) as sock:
        for _ in range(3):
            assert sock.sendto(b"anybody?", nobody) == 8
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(100)


@both_modules
def test_datagrams_from_before_the_refusal_are_received_after_it(inet, module):
    with inet.bound(std) as peer, connected(module, peer.getsockname()) as sock:
        peer.connect(sock.getsockname())
        peer.send(b"farewell")
        peer.close()
        sock.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(100)
        assert sock.recv(100) == b"farewell"


@both_modules
def test_unix_peer_that_is_gone_refuses_and_is_forgotten(unix, module):
    with unix.bound(std) as peer, unix.open(module) as sock:
        sock.connect(peer.getsockname())
        peer.close()
        with pytest.raises(ConnectionRefusedError):
            sock.send(b"anybody?")
        with pytest.raises(OSError, match=rf"^\[Errno {errno.ENOTCONN}\] "):
            sock.send(b"anybody?")


@both_modules
def test_socketpair_datagrams_outlive_their_sender(module):
    left, right = module.socketpair(module.AF_UNIX, module.SOCK_DGRAM)
    with left:
        left.settimeout(DEADLINE)
        with right:
            right.send(b"farewell")
        assert left.recv(100) == b"farewell"
        with pytest.raises(ConnectionRefusedError):
            left.send(b"anybody?")
