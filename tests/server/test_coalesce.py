"""coalesce: servers that collect datagrams after the first one, and what ends that at once."""

import signal
import socket as std
import time

import pytest

from serving import HEAD, ask, client, server
from support import Call, Child, eventually
from traffic import numbered

LONG = 60.0
WINDOW = 0.02
LEAST = WINDOW - 0.0005  # the clocks differ


def synchronous(data, _address):
    return data


async def asynchronous(data, _address):
    return data


every_handler = pytest.mark.parametrize("handler", [synchronous, asynchronous])


@every_handler
def test_reply_comes_after_the_window(handler):
    with server(handler, coalesce=WINDOW) as running:
        # The first receive asks for one datagram, to learn what it costs. So it is full, and the
        # next one does not wait.
        for _ in range(3):
            assert ask(running.address, b"x") == b"x"
        for _ in range(3):
            start = time.monotonic()
            assert ask(running.address, b"x") == b"x"
            assert time.monotonic() - start > LEAST


@every_handler
@pytest.mark.parametrize("workers", [1, 2])
def test_every_datagram_of_a_window_is_answered(handler, workers):
    with server(handler, coalesce=0.001, workers=workers) as running:
        for count in (1, 3, 100, 2):
            with client(running.address) as sock:
                for data in numbered(count):
                    sock.send(data)
                assert sorted(sock.recv(100) for _ in range(count)) == numbered(count)


@every_handler
def test_stop_ends_the_window(handler):
    handled = []

    def record(data, address):
        handled.append(data)
        return handler(data, address)

    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        running = server(record, None, sock=sock, coalesce=LONG, loop=LOOP[handler])
        running.start()
        with client(sock.getsockname()) as asker:
            for data in numbered(5):
                asker.send(data)
            Call(running.stop).result()
            assert handled == numbered(5)
            assert [asker.recv(100) for _ in range(5)] == numbered(5)


LOOP = {synchronous: None, asynchronous: "tomada"}


def test_batches_have_the_datagrams_of_a_window():
    batches = []

    def record(batch):
        batches.append([data for data, _ in batch])

    with server(record, takes="batch", coalesce=WINDOW) as running, client(running.address) as sock:
        for data in numbered(200):
            sock.send(data)
        eventually(lambda: sum(map(len, batches)) == 200)
    assert [data for batch in batches for data in batch] == numbered(200)
    assert len(batches) < 200


@pytest.mark.thread_unsafe(reason="it runs a program")
def test_signal_ends_the_window():
    text = (
        HEAD
        + """
server = tomada.Server(address, lambda data, _: data, workers=workers, coalesce=60)
threading.Thread(target=lambda: (server.ready.wait(), say(server.address[1])), daemon=True).start()
server.serve_forever()
say("over")
"""
    )
    with Child("-c", text, 1) as child:
        port = int(child.line())
        with client(("127.0.0.1", port)) as sock:
            sock.send(b"x")
            child.signal(signal.SIGTERM)
            assert sock.recv(100) == b"x"
        assert child.line() == "over"


@pytest.mark.parametrize(
    ("coalesce", "error"), [(-1, ValueError), (200, ValueError), ("1", TypeError)]
)
def test_coalesce_is_checked(coalesce, error):
    with pytest.raises(error, match="coalesce must be a number of seconds"):
        server(synchronous, coalesce=coalesce)


def test_spin_and_coalesce_exclude_each_other():
    with pytest.raises(ValueError, match="spin and coalesce exclude each other"):
        server(synchronous, coalesce=1e-4, spin=1e-3)
