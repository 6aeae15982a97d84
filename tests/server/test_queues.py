"""Full queues: of an ``AF_UNIX`` peer that does not read, and of a server that stops."""

import contextlib
import logging
import os
import socket as std

import pytest

from serving import client, server, until_refused
from support import Call, eventually, fill

pytestmark = pytest.mark.thread_unsafe(reason="it forks")


def echo(data, _):
    return data


def test_unix_peer_that_does_not_read_delays_no_reply_to_others(unix):
    # Its reply waits for up to a second: if the machine stalls for longer, this proves nothing.
    for _ in range(10):
        with (
            server(echo, unix.address()) as serving,
            unix.bound(std) as filler,
            unix.bound(std) as deaf,
            client(serving.address, local=unix.address()) as other,
        ):
            filled = fill(filler, deaf.getsockname())
            deaf.sendto(b"deaf", serving.address)
            eventually(lambda: serving.stats().received == 1)
            other.send(b"other")
            assert other.recv(100) == b"other"
            if serving.stats().send_errors == 0:
                received = [deaf.recv(100) for _ in range(filled)]
                with contextlib.suppress(TimeoutError):
                    deaf.settimeout(1)
                    received.append(deaf.recv(100))
                if received[filled:] == [b"deaf"]:
                    return
    pytest.fail("a reply to a peer that does not read was not queued")


def test_unix_peer_that_does_not_read_loses_what_exceeds_the_limit(unix):
    with (
        server(echo, unix.address()) as serving,
        unix.bound(std) as filler,
        unix.bound(std) as deaf,
    ):
        fill(filler, deaf.getsockname())
        for number in range(10):
            deaf.sendto(b"%d" % number, serving.address)
        eventually(lambda: serving.stats().send_errors == 10)
    stats = serving.stats()
    assert (stats.received, stats.sent) == (10, 0)


def test_stop_drops_and_counts_replies_to_a_unix_peer_that_does_not_read(unix, caplog):
    with (
        server(echo, unix.address()) as serving,
        unix.bound(std) as filler,
        unix.bound(std) as deaf,
    ):
        fill(filler, deaf.getsockname())
        deaf.sendto(b"x", serving.address)
        eventually(lambda: serving.stats().received == 1)
        serving.stop()
        assert f"not sent to {deaf.getsockname()}" in caplog.text
    stats = serving.stats()
    assert (stats.sent, stats.send_errors) == (0, 1)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("takes", ["data", "batch"])
def test_stop_counts_what_it_leaves_in_the_queue(kind, workers, takes, caplog):
    caplog.set_level(logging.INFO, "tomada")
    in_handler, tell = os.pipe()
    hold, let_go = os.pipe()
    handled = []

    def handle(data, *_):
        handled.extend(data if takes == "batch" else [data])
        os.write(tell, b"x")
        os.read(hold, 1)

    options = {"workers": workers, "takes": takes, "drain": 0}
    with server(handle, kind.address(), **options) as serving, client(serving.address) as sock:
        sock.send(b"first")
        assert os.read(in_handler, 1) == b"x"
        for number in range(7):
            sock.send(b"%d" % number)
        stopping = Call(serving.stop)
        accepted = 8 + until_refused(sock)
        os.write(let_go, bytes(4096))
        stopping.result()
    for fd in (in_handler, tell, hold, let_go):
        os.close(fd)
    stats = serving.stats()
    assert stats.received + stats.kernel_drops == accepted
    if workers == 1:
        left = stats.received - len(handled)
        line = f"stopped with {left} received datagrams unanswered"
        assert (line in caplog.text) == (left > 0)
