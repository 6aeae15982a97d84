"""errors(): which datagram failed, who reported it, and how a full error queue affects waits."""

import errno
import select
import socket as std
import time

import pytest

import tomada
from support import CLOSED, DEADLINE, Call, eventually
from tomada import socket

# The ICMP message for a closed port: its origin, type, code.
UNREACHABLE = {
    std.AF_INET: (socket.SO_EE_ORIGIN_ICMP, 3, 3),
    std.AF_INET6: (socket.SO_EE_ORIGIN_ICMP6, 1, 4),
}


def listen(sock):
    """Enable the kernel's error queue, for both families."""
    if sock.family == std.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVERR, 1)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVERR, 1)


def dead(kind):
    """Make a UDP address where no socket is bound."""
    with kind.bound(std) as sock:
        return sock.getsockname()


def send(sock, data, to):
    """Send a datagram; retry if a pending error of an earlier one is raised instead."""
    while True:
        try:
            return sock.sendto(data, to)
        except ConnectionRefusedError:
            continue


@pytest.fixture(params=["inet", "inet6"])
def family(request):
    return request.getfixturevalue(request.param)


def test_errors_names_an_unreachable_peer(family):
    to = dead(family)
    with family.bound(socket) as sock:
        listen(sock)
        assert sock.errors() == []
        sock.sendto(b"anybody?", to)
        (error,) = eventually(sock.errors)
        assert (error.peer, error.errno) == (to, errno.ECONNREFUSED)
        assert error.offender == to[0]
        assert error.mtu is None
        assert (error.origin, error.type, error.code) == UNREACHABLE[family.family]
        assert error.data == b"anybody?"
        assert sock.errors() == []
        assert sock.stats().errors == 1


def test_errors_names_ipv4_peers_of_a_dual_stack_socket(inet, inet6):
    to = dead(inet)
    with inet6.open(socket) as sock:
        listen(sock)
        sock.bind(("::", 0))
        sock.send_many([b"anybody?"], to)
        (error,) = eventually(sock.errors)
        assert (error.peer, error.errno) == ((f"::ffff:{to[0]}", to[1], 0, 0), errno.ECONNREFUSED)
        assert error.offender == "127.0.0.1"


def test_errors_names_each_of_many_peers(inet):
    peers = [dead(inet) for _ in range(3)]
    with inet.bound(socket) as sock:
        listen(sock)
        for number, to in enumerate(peers):
            send(sock, b"%d" % number, to)
        noted = []
        eventually(lambda: noted.extend(sock.errors()) or len(noted) == 3)
        assert [(error.peer, error.data) for error in noted] == [
            (to, b"%d" % number) for number, to in enumerate(peers)
        ]


def test_errors_reports_a_run_once(inet):
    to = dead(inet)
    with inet.bound(socket) as sock:
        listen(sock)
        sock.send_many([b"datagram"] * 10, to)
        errors = eventually(sock.errors)
        assert {error.peer for error in errors} == {to}
        assert all(error.data.startswith(b"datagram") for error in errors)


def test_errors_are_reported_only_if_enabled(inet):
    with inet.bound(socket) as sock:
        sock.sendto(b"anybody?", dead(inet))
        sock.sendto(b"me", sock.getsockname())
        assert sock.recv(10) == b"me"
        assert (sock.errors(), sock.stats().errors) == ([], 0)


def test_next_call_raises_the_error_too(inet):
    to = dead(inet)
    with inet.bound(socket) as sock:
        listen(sock)
        sock.sendto(b"anybody?", to)
        with pytest.raises(ConnectionRefusedError):
            sock.recv_many()
        assert [error.peer for error in sock.errors()] == [to]


@pytest.fixture
def noted(inet):
    """Provide a socket whose error queue has entries, and the address that refused them."""
    to = dead(inet)
    with inet.bound(socket) as sock:
        listen(sock)
        for _ in range(5):
            send(sock, b"anybody?", to)
        poll = select.poll()
        poll.register(sock, 0)
        assert poll.poll(DEADLINE * 1000)
        # The error itself is raised once.
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        yield sock, to


WAITS = {
    "recv": lambda sock: sock.recv(10),
    "recv_many": lambda sock: sock.recv_many(),
    "recv_batch": lambda sock: sock.recv_batch(tomada.Batch()),
    "recv_datagrams": lambda sock: sock.recv_datagrams(),
}

every_wait = pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)


@every_wait
def test_full_error_queue_does_not_keep_a_wait_awake(noted, wait):
    sock, to = noted
    sock.settimeout(0.2)
    start = time.process_time()
    with pytest.raises(TimeoutError):
        wait(sock)
    assert time.process_time() - start < 0.1
    # And its entries can still be read.
    assert [error.peer for error in sock.errors()] == [to] * 5
    assert sock.stats().errors == 5


@every_wait
def test_datagram_is_received_despite_a_full_error_queue(noted, wait):
    sock, _ = noted
    call = Call(wait, sock).until_it_waits()
    sock.sendto(b"x", sock.getsockname())
    assert call.result()
    assert len(sock.errors()) == 5


def test_errors_read_by_a_wait_are_also_returned_by_recvmsg(noted):
    sock, to = noted
    sock.settimeout(0.02)
    with pytest.raises(TimeoutError):
        sock.recv(10)
    for _ in range(5):
        data, ancillary, flags, peer = sock.recvmsg(100, 1000, socket.MSG_ERRQUEUE)
        assert (data, peer) == (b"anybody?", to)
        assert flags & socket.MSG_ERRQUEUE
        assert (socket.IPPROTO_IP, socket.IP_RECVERR) in [item[:2] for item in ancillary]
    assert sock.errors() == []


def test_number_of_stored_errors_is_limited(inet):
    to = dead(inet)
    with inet.bound(socket) as sock:
        listen(sock)
        sock.settimeout(0.005)
        for number in range(300):
            send(sock, b"%d" % number, to)
            with pytest.raises((TimeoutError, ConnectionRefusedError)):
                sock.recv(10)
            with pytest.raises((TimeoutError, ConnectionRefusedError)):
                sock.recv(10)
        errors = sock.errors()
        assert 256 <= len(errors) <= 300
        assert errors[-1].data == b"299"
        assert sock.stats().errors == 300


def test_error_of_a_connected_peer_is_queued_too(inet):
    to = dead(inet)
    with inet.bound(socket) as sock:
        listen(sock)
        sock.connect(to)
        sock.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(10)
        (error,) = sock.errors()
        assert (error.peer, error.errno) == (to, errno.ECONNREFUSED)


def test_transmit_timestamps_are_not_errors_and_stay_queued(inet):
    software = 0x2 | 0x10 | 0x800  # TX_SOFTWARE, SOFTWARE, OPT_TSONLY
    with inet.bound(socket) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_TIMESTAMPING, software)
        sock.sendto(b"x", sock.getsockname())
        poll = select.poll()
        poll.register(sock, 0)
        assert poll.poll(DEADLINE * 1000)
        for _ in range(2):
            assert (sock.errors(), sock.stats().errors) == ([], 0)
        _, ancillary, _, _ = sock.recvmsg(100, 1000, socket.MSG_ERRQUEUE)
        assert (socket.SOL_SOCKET, socket.SO_TIMESTAMPING) in [item[:2] for item in ancillary]


def test_errors_of_af_unix_is_empty(unix):
    with unix.bound(socket) as sock:
        assert sock.errors() == []


def test_errors_takes_no_datagram_of_af_unix(unix):
    with unix.bound(socket) as sock:
        sock.sendto(b"no error", sock.getsockname())
        assert sock.errors() == []
        assert sock.recv(100) == b"no error"


def test_errors_of_a_closed_socket_raises(inet):
    sock = inet.bound(socket)
    sock.close()
    with pytest.raises(OSError, match=CLOSED):
        sock.errors()


def test_error_record_cannot_be_made_or_changed(noted):
    sock, to = noted
    error = sock.errors()[0]
    assert repr(error) == f"<tomada.DatagramError to {to}: Connection refused, says 127.0.0.1>"
    with pytest.raises(TypeError):
        type(error)()
    for name in ("peer", "errno", "offender", "mtu", "origin", "type", "code", "data"):
        with pytest.raises(AttributeError):
            setattr(error, name, None)


def test_errors_stops_a_poll_loop_from_spinning(noted):
    sock, _ = noted
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    # A program that polls by hand is woken until the queue is empty.
    assert poll.poll(0) == [(sock.fileno(), select.POLLERR)]
    assert len(sock.errors()) == 5
    assert poll.poll(0) == []
