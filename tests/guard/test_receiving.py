"""Every receive method skips refused datagrams, as if they had not arrived."""

import contextlib
import signal
import threading

import pytest

import tomada
from guards import FAR, NEAR, guarded
from support import Call, interrupt, run, together
from tomada import socket
from traffic import RECEIVE_SOME, send_run

GUARD = {"max_size": 5}


def into_buffer(receive):
    buffer = bytearray(100)
    received = receive(buffer)
    return bytes(buffer[: received if isinstance(received, int) else received[0]])


RECEIVE_ONE = {
    "recv": lambda sock: sock.recv(100),
    "recvfrom": lambda sock: sock.recvfrom(100)[0],
    "recv_into": lambda sock: into_buffer(sock.recv_into),
    "recvfrom_into": lambda sock: into_buffer(sock.recvfrom_into),
    "recvmsg": lambda sock: sock.recvmsg(100, 100)[0],
    "recv_datagram": lambda sock: sock.recv_datagram().data,
    "recv with a small buffer": lambda sock: sock.recv(3),
    "recv with a large buffer": lambda sock: sock.recv(1 << 20),
} | {name: lambda sock, some=some: some(sock, 1)[0][0] for name, some in RECEIVE_SOME.items()}


@pytest.fixture(params=RECEIVE_ONE)
def receive_one(request):
    return RECEIVE_ONE[request.param]


def test_first_admitted_datagram_is_received(receive_one):
    with guarded(tomada.Guard(**GUARD)) as (sock, send):
        for data in (b"too long", b"yes", b"far too long", b""):
            send(data, NEAR)
        assert receive_one(sock) == b"yes"
        assert receive_one(sock) == b""
        assert (sock.stats().received, sock.stats().received_bytes) == (2, 3)
        assert (sock.stats().refused, sock.stats().truncated) == (2, 0)


def test_refused_datagrams_wake_nobody(receive_one):
    with guarded(tomada.Guard(**GUARD)) as (sock, send):
        call = Call(receive_one, sock).until_it_waits()
        for _ in range(100):
            send(b"too long", NEAR)
        call.until_it_waits()
        send(b"yes", NEAR)
        assert call.result() == b"yes"
        assert sock.stats().refused == 100


def test_timeout_holds_if_nothing_is_admitted(receive_one):
    with guarded(tomada.Guard(**GUARD)) as (sock, send):
        send(b"too long", NEAR)
        sock.settimeout(0.01)
        with pytest.raises(TimeoutError):
            receive_one(sock)
        send(b"too long", NEAR)
        sock.settimeout(0)
        with pytest.raises(BlockingIOError):
            receive_one(sock)
        assert sock.stats().refused == 2


@pytest.mark.parametrize("gro", [False, True])
@pytest.mark.parametrize("receive", ["recvfrom", "recvmsg"])
def test_msg_peek_sees_only_admitted_datagrams_and_takes_nothing(gro, receive):
    guard = tomada.Guard(max_size=5, rate=0.001, burst=1)
    with guarded(guard) as (sock, send):
        sock.gro = gro
        send(b"too long", NEAR)
        send(b"yes", NEAR)
        for flags in (socket.MSG_PEEK, socket.MSG_PEEK, 0):
            look = (100, flags) if receive == "recvfrom" else (100, 0, flags)
            assert getattr(sock, receive)(*look)[0] == b"yes"
        assert (sock.stats().refused, sock.stats().received) == (1, 1)
        send(b"no", NEAR)
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recvfrom(100, socket.MSG_PEEK)


def test_msg_peek_does_not_see_the_first_datagram_if_another_thread_took_it():
    with guarded(tomada.Guard(**GUARD)) as (sock, send):
        sock.setblocking(False)
        seen = set()
        buffer = bytearray(100)

        def look():
            looks = 0
            while looks < 2000 or not seen:
                looks += 1
                for receive in (sock.recv_into, lambda *given: sock.recvmsg_into([given[0]])):
                    with contextlib.suppress(BlockingIOError):
                        receive(buffer, 100, socket.MSG_PEEK)
                        seen.add(bytes(buffer))

        def take():
            while not looking.is_over():
                send(b"yes", NEAR)
                send(b"too long", NEAR)
                with contextlib.suppress(BlockingIOError):
                    sock.recv(100)

        looking = Call(look)
        together(take, take)
        assert seen == {b"yes".ljust(100, b"\0")}


def test_truncated_datagram_is_judged_by_its_full_length():
    with guarded(tomada.Guard(**GUARD)) as (sock, send):
        send(b"too long", NEAR)
        send(b"yes", NEAR)
        data, _, flags, _ = sock.recvmsg(2)
        assert (data, flags & socket.MSG_TRUNC) == (b"ye", socket.MSG_TRUNC)
        assert (sock.stats().refused, sock.stats().truncated) == (1, 1)


@pytest.mark.parametrize("receive", RECEIVE_SOME.values(), ids=RECEIVE_SOME)
def test_coalesced_run_is_admitted_as_far_as_the_rate_allows(receive):
    guard = tomada.Guard(rate=0.001, burst=3)
    with guarded(guard) as (sock, _), guarded() as (sender, _):
        sock.gro = True
        send_run(sender, sock.getsockname(), b"11112222333344445", 4)
        received = []
        while len(received) < 3:
            received += [data for data, _ in receive(sock, 2)]
        assert received == [b"1111", b"2222", b"3333"]
        assert (sock.stats().received, sock.stats().refused) == (3, 2)
        assert sock.stats().received_bytes == 12
        assert guard.stats() == guard.stats()
        assert (guard.stats().admitted, guard.stats().over_rate) == (3, 2)


@pytest.mark.parametrize("receive", RECEIVE_SOME.values(), ids=RECEIVE_SOME)
def test_short_last_datagram_of_a_coalesced_run_is_admitted_alone(receive):
    with guarded(tomada.Guard(**GUARD)) as (sock, _), guarded() as (sender, _):
        sock.gro = True
        send_run(sender, sock.getsockname(), b"too long" * 3 + b"short", 8)
        assert [data for data, _ in receive(sock, 8)] == [b"short"]
        assert (sock.stats().received, sock.stats().received_bytes) == (1, 5)
        assert sock.stats().refused == 3


def test_recv_batch_has_the_senders_of_admitted_datagrams():
    with guarded(tomada.Guard(**GUARD)) as (sock, send):
        for data, source in ((b"too long", FAR), (b"a", NEAR), (b"too long", NEAR), (b"b", FAR)):
            send(data, source)
        batch = tomada.Batch(8, slot_size=6)
        assert sock.recv_batch(batch) == 2
        assert [(bytes(data), host) for data, (host, _) in batch] == [(b"a", NEAR), (b"b", FAR)]


def test_nonblocking_receive_gives_up_in_a_flood():
    with guarded(tomada.Guard(**GUARD)) as (sock, send):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_000_000)
        sock.setblocking(False)
        with guarded() as (sender, _):
            sender.send_many([b"too long"] * 1100, sock.getsockname())
        send(b"yes", NEAR)
        with pytest.raises(BlockingIOError):
            sock.recv(100)
        assert sock.stats().refused == 1024
        assert sock.recv(100) == b"yes"
        assert sock.stats().refused == 1100


FLOOD = """
import signal, socket as std, sys, threading
import tomada
from tomada import socket

receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.bind(("127.0.0.1", 0))
receiver.guard = tomada.Guard(max_size=5)
receiver.settimeout(60)
ended = threading.Event()

def flood():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(receiver.getsockname())
        while not ended.is_set():
            sender.send_many([b"too long"] * 2000)

def handle(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, handle)
thread = threading.Thread(target=flood)
thread.start()
signal.setitimer(signal.ITIMER_REAL, 0.2)
try:
    receiver.recv(100)
except KeyboardInterrupt:
    print("heard", receiver.stats().refused > 1000)
ended.set()
thread.join()
"""


def test_signals_are_handled_in_a_flood():
    assert run(FLOOD) == "heard True\n"


def test_signal_handler_runs_while_nothing_is_admitted(handler):
    with guarded(tomada.Guard(**GUARD)) as (sock, send):

        def act():
            send(b"too long", NEAR)
            send(b"yes", NEAR)

        calls = handler(act)
        thread = threading.Thread(target=interrupt)
        thread.start()
        assert sock.recv(100) == b"yes"
        thread.join()
        assert len(calls) == 1
        assert signal.getsignal(signal.SIGUSR1) is not signal.SIG_DFL


def test_close_ends_a_wait_of_a_guarded_socket(receive_one):
    with guarded(tomada.Guard(**GUARD)) as (sock, send):
        send(b"too long", NEAR)
        call = Call(receive_one, sock).until_it_waits()
        sock.close()
        with pytest.raises(OSError, match="closed"):
            call.result()


def test_threads_share_a_guarded_socket():
    guard = tomada.Guard(max_size=5)
    with guarded(guard) as (sock, send):
        calls = [Call(sock.recv, 100) for _ in range(4)]
        for number in range(8):
            send(b"%d" % number if number % 2 else b"too long", NEAR)
        assert sorted(call.result() for call in calls) == [b"1", b"3", b"5", b"7"]
        assert guard.stats().oversized == 4


def test_disabling_gro_keeps_only_admitted_datagrams():
    with guarded(tomada.Guard(**GUARD)) as (sock, send):
        sock.gro = True
        send(b"too long", NEAR)
        send(b"yes", NEAR)
        sock.gro = False
        assert (sock.pending, sock.stats().refused) == (1, 1)
        assert sock.recv(100) == b"yes"
