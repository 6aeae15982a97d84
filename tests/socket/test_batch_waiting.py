"""Batches that wait: timeouts, closing, signals, and several threads with one batch."""

import threading
import time

import pytest

import tomada
from support import CLOSED, Call, RefusalError, eventually, fill, interrupt
from tomada import socket
from traffic import everything, numbered, payloads


def contents(batch):
    return [bytes(data) for data, _ in batch]


def test_recv_batch_obeys_the_timeout(kind):
    batch = tomada.Batch()
    with kind.bound(socket) as sock:
        sock.settimeout(0.02)
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            sock.recv_batch(batch)
        assert time.monotonic() - start >= 0.02
        sock.settimeout(None)
        with pytest.raises(BlockingIOError):
            sock.recv_batch(batch, socket.MSG_DONTWAIT)
        call = Call(sock.recv_batch, batch).until_it_waits()
        sock.sendto(b"x", sock.getsockname())
        assert call.result() == 1


def test_close_ends_recv_batch_and_the_batch_stays_usable(kind):
    batch = tomada.Batch()
    sock = kind.bound(socket)
    call = Call(sock.recv_batch, batch).until_it_waits()
    sock.close()
    with pytest.raises(OSError, match=CLOSED):
        call.result()
    with kind.bound(socket) as other:
        other.sendto(b"x", other.getsockname())
        assert other.recv_batch(batch) == 1


def test_exception_of_a_signal_handler_ends_recv_batch_and_loses_nothing(inet, handler):
    def refuse():
        raise RefusalError("no", "because")

    handler(refuse)
    batch = tomada.Batch()
    with inet.bound(socket) as sock:
        disturbing = Call(interrupt)
        with pytest.raises(RefusalError):
            sock.recv_batch(batch)
        disturbing.result()
        sock.sendto(b"still here", sock.getsockname())
        assert sock.recv_batch(batch) == 1
        assert contents(batch) == [b"still here"]


def test_signal_handler_cannot_use_a_batch_in_use(inet, handler):
    batch = tomada.Batch()
    refused = []

    def use():
        for call in (lambda: batch.append(b"x"), batch.clear, lambda: sock.recv_batch(batch)):
            with pytest.raises(RuntimeError):
                call()
            refused.append(1)

    handler(use)
    with inet.bound(socket) as sock:

        def disturb():
            interrupt()
            while len(refused) < 3:
                pass
            sock.sendto(b"x", sock.getsockname())

        disturbing = Call(disturb)
        assert sock.recv_batch(batch) == 1
        disturbing.result()


def test_batch_in_use_is_refused_to_other_threads_and_nothing_is_lost(inet):
    batch = tomada.Batch()
    batch.append(b"before")
    with inet.bound(socket) as sock, inet.bound(socket) as other:
        call = Call(sock.recv_batch, batch).until_it_waits()
        other.sendto(b"other's", other.getsockname())
        for use in (
            lambda: other.recv_batch(batch),
            lambda: other.send_batch(batch, other.getsockname()),
            lambda: batch.append(b"x"),
            lambda: batch.extend(b"x", 1),
            batch.clear,
        ):
            with pytest.raises(RuntimeError, match="in use by another call"):
                use()
        sock.sendto(b"x", sock.getsockname())
        assert call.result() == 1
        assert contents(batch) == [b"x"]
        assert payloads(other) == [b"other's"]


def test_batch_in_use_still_has_a_len_and_repr(inet):
    batch = tomada.Batch(7)
    with inet.bound(socket) as sock:
        call = Call(sock.recv_batch, batch).until_it_waits()
        assert (len(batch), batch.slots) == (0, 7)
        assert repr(batch) == "<tomada.Batch of 0 datagrams, 0 bytes>"
        assert len(memoryview(batch)) >= 7 * 65_536
        sock.sendto(b"x", sock.getsockname())
        assert call.result() == 1


def test_two_threads_with_one_batch_lose_nothing(inet):
    batch = tomada.Batch(4)
    with inet.bound(socket) as sock:
        sock.settimeout(0)
        received, refused = [], []
        done = threading.Event()

        def take():
            while not done.is_set():
                try:
                    refused.append(sock.recv_batch(batch) * 0)
                except (BlockingIOError, RuntimeError) as error:
                    refused.append(type(error))

        calls = [Call(take) for _ in range(2)]
        for _ in range(300):
            sock.send_many(numbered(10), sock.getsockname())
        done.set()
        for call in calls:
            call.result()
        rest = len(everything(sock))
        stats = sock.stats()
        assert stats.received + stats.kernel_drops == 3000
        assert rest <= 3000
        assert received == []


def test_send_batch_waits_for_room(unix):
    batch = tomada.Batch()
    for data in numbered(50):
        batch.append(data)
    with unix.bound(socket) as receiver, unix.open(socket) as sender:
        count = fill(sender, receiver.getsockname())
        call = Call(sender.send_batch, batch, receiver.getsockname()).until_it_waits()
        received = [receiver.recv(100) for _ in range(count + 50)]
        assert call.result() == 50
        assert received[count:] == numbered(50)


def test_send_batch_returns_the_number_sent(unix):
    batch = tomada.Batch()
    batch.extend(bytes(500), 10)
    with unix.bound(socket) as receiver, unix.open(socket) as sender:
        to = receiver.getsockname()
        count = fill(sender, to)
        sender.setblocking(False)
        with pytest.raises(BlockingIOError) as caught:
            sender.send_batch(batch, to)
        assert (caught.value.index, caught.value.sent) == (0, 0)
        receiver.recv_many(3)
        assert sender.send_batch(batch, to) == 3
        receiver.recv_many(2)
        sender.settimeout(0.02)
        with pytest.raises(TimeoutError) as caught:
            sender.send_batch(batch, to)
        assert (caught.value.index, caught.value.sent) == (2, 2)
        assert len(everything(receiver)) == count


def test_two_threads_echo_with_a_batch_each(inet, peer):
    first, second = peer(inet), peer(inet)
    with inet.bound(socket) as sock:

        def echo():
            batch = tomada.Batch()
            while sock.recv_batch(batch):
                if b"end" in contents(batch):
                    return
                assert sock.send_batch(batch) == len(batch)

        calls = [Call(echo).until_it_waits() for _ in range(2)]
        for number in range(20):
            datagrams = [b"%d %d" % (number, at) for at in range(5)]
            for other in (first, second):
                other.do("send", datagrams=datagrams, to=sock.getsockname())
            for other in (first, second):
                echoed = other.do("collect", count=5)
                assert sorted(echoed) == sorted((data, sock.getsockname()) for data in datagrams)
        for left in (1, 0):
            # One at a time, because one thread would receive both.
            sock.sendto(b"end", sock.getsockname())
            eventually(lambda left=left: sum(call.is_alive() for call in calls) == left)
        for call in calls:
            call.result()
