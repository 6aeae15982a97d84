"""Several threads on one batch: each call has exclusive use, or raises if another call has it."""

import contextlib
import itertools

import pytest

import tomada
from support import DEADLINE, RACES, Call, together
from tomada import socket

pytestmark = pytest.mark.thread_unsafe(reason="it starts threads itself")

COUNT = 60 * RACES

IN_USE = "in use by another call"

# Errors that a call may raise if threads share a batch: another call uses it, or it is full or
# empty.
EXPECTED = {RuntimeError: IN_USE, ValueError: "no room for", IndexError: "index out of range"}


def attempt(call, *arguments):
    """Make a call, and return the result, or None if the batch does not allow it at the moment."""
    try:
        return call(*arguments)
    except tuple(EXPECTED) as error:
        if EXPECTED[type(error)] not in str(error):
            raise


@pytest.fixture
def batch():
    return tomada.Batch(8)


def test_threads_that_receive_into_one_batch_count_every_datagram_once(inet, batch):
    with inet.bound(socket) as sock, inet.bound(socket) as sender:
        sock.settimeout(0.01)
        taken, is_over = [], []

        def receive():
            while not is_over or sock.pending:
                with contextlib.suppress(TimeoutError):
                    taken.append(attempt(sock.recv_batch, batch) or 0)

        def send():
            for start in range(0, COUNT, 20):
                assert sender.send_many([b"x" * 20] * 20, sock.getsockname()) == 20
                while sum(taken) < start + 20:
                    attempt(lambda: [len(data) for data, _ in batch])
            is_over.append(True)

        together(receive, receive, receive, send)
        assert sum(taken) == COUNT == sock.stats().received


def test_threads_that_send_one_batch_count_every_datagram_once(inet, batch):
    with inet.bound(socket) as sock, inet.bound(socket) as sender:
        sock.settimeout(DEADLINE)
        to = sock.getsockname()
        batch.extend(b"0123456789" * 5, 10)

        def send():
            left = 0
            while left < COUNT:
                sent = attempt(sender.send_batch, batch, to)
                if sent is not None:
                    assert sent == 5
                    left += sent
                    # The queue has room for more than these.
                    assert [sock.recv(100) for _ in range(5)] == [b"0123456789"] * 5

        together(send, send, send)
        assert sock.stats().received == sender.stats().sent == sum([3 * COUNT])


def test_batch_that_threads_fill_and_clear_is_consistent_at_any_time(batch):
    # All bytes of a payload are equal, and identify the port of its address.
    ports = itertools.cycle(range(1, 200))

    def fill():
        for port in itertools.islice(ports, COUNT):
            data = bytes([port]) * (100 * port)
            attempt(batch.append, data, ("127.0.0.1", port))
            attempt(batch.extend, data, 100, ("127.0.0.1", port))

    def clear():
        for _ in range(COUNT // 4):
            attempt(batch.clear)

    def look():
        for index in range(COUNT):
            pairs = attempt(list, batch) or []
            assert all(len(data) >= 100 for data, _ in pairs)
            assert all(address is not None for _, address in pairs)
            view = attempt(batch.__getitem__, index % 8)
            assert view is None or len(view) % 100 == 0 < len(view)
            addresses = attempt(lambda: batch.addresses) or []
            assert all(1 <= port < 200 for _, port in addresses)
            assert attempt(lambda: batch.truncated) in ([], None)

    def measure():
        for _ in range(COUNT):
            # The current contents, though another thread may remove them before they are read.
            lengths, offsets = batch.lengths, batch.offsets
            assert all(length % 100 == 0 for length in lengths)
            assert all(offset < len(memoryview(batch)) for offset in offsets)
            assert 0 <= len(batch) <= 8 * 128
            assert repr(batch).startswith("<tomada.Batch of ")

    together(fill, fill, clear, look, measure)


USES = {
    "append": lambda batch: batch.append(b"x"),
    "clear": lambda batch: batch.clear(),
    "item": lambda batch: batch[0],
    "iteration": list,
    "addresses": lambda batch: batch.addresses,
    "truncated": lambda batch: batch.truncated,
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_batch_that_waits_for_datagrams_is_in_use(inet, batch, use):
    with inet.bound(socket) as sock:
        sock.sendto(b"first", sock.getsockname())
        assert sock.recv_batch(batch) == 1
        call = Call(sock.recv_batch, batch).until_it_waits()
        with pytest.raises(RuntimeError, match=IN_USE):
            use(batch)
        assert len(batch) == 0  # its contents are gone
        sock.sendto(b"second", sock.getsockname())
        assert call.result() == 1
        batch.clear()
