"""Errors in a handler or around it are logged and counted, and do not end the server."""

import asyncio
import contextlib
import logging
import os
import resource
import socket as std
import threading

import pytest

from serving import ask, client, server
from skips import NO_IPV6
from support import RefusalError, eventually, open_descriptors, run
from tomada import _core, _reports, socket
from traffic import numbered


@pytest.fixture(autouse=True)
def every_line(monkeypatch, caplog):
    """Disable the limits on log messages."""
    monkeypatch.setattr(_reports, "SECONDS_BETWEEN", 0.0)
    caplog.set_level(logging.INFO, "tomada")


def echo(data, _):
    return data


def stats_after(serving, count):
    """Return the counters once a number of datagrams have been handled."""
    return eventually(lambda: handled(serving, count))


def handled(serving, count):
    stats = serving.stats()
    total = stats.sent + stats.handler_errors + stats.send_errors
    return stats if total >= count else None


def test_exception_is_logged_with_its_traceback_and_counted(caplog):
    def handle(data, _):
        if data == b"bad":
            raise RefusalError("what", "why")
        return data

    with server(handle) as serving, client(serving.address) as sock:
        for data in (b"bad", b"good", b"bad", b"good"):
            sock.send(data)
        assert [sock.recv(10), sock.recv(10)] == [b"good", b"good"]
        assert stats_after(serving, 4).handler_errors == 2
        host, port = sock.getsockname()
    records = [record for record in caplog.records if record.name == "tomada"]
    assert [record.levelname for record in records] == ["ERROR", "ERROR"]
    assert records[0].getMessage() == f"the handler failed with a datagram from {host}:{port}"
    assert records[0].exc_info[0] is RefusalError


@pytest.mark.parametrize("reply", ["text", 7, 1.5, ["list"], ("bytes", 1), object(), {1: 2}])
def test_reply_that_is_not_bytes_is_refused_with_a_hint(reply, caplog):
    answers = iter([reply, b"good"])
    with server(lambda *_: next(answers)) as serving, client(serving.address) as sock:
        sock.send(b"1")
        sock.send(b"2")
        assert sock.recv(10) == b"good"
        assert stats_after(serving, 2).handler_errors == 1
    (error,) = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert isinstance(error, TypeError)
    assert "returns a bytes-like object, or None for no reply" in str(error)
    assert ("encode() it" in str(error)) == isinstance(reply, str)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_reply_that_is_too_long_is_refused_and_the_others_are_sent(host, caplog, speaks_ipv6):
    if ":" in host and not speaks_ipv6:
        pytest.skip(NO_IPV6)
    with (
        server(lambda data, _: bytes(70_000) if data == b"long" else data, (host, 0)) as serving,
        client(serving.address) as sock,
    ):
        for data in (b"one", b"long", b"two"):
            sock.send(data)
        assert [sock.recv(100), sock.recv(100)] == [b"one", b"two"]
        assert stats_after(serving, 3).handler_errors == 1
    (error,) = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert "a reply of 70000 bytes is too long: a datagram takes at most 655" in str(error)


def test_reply_that_only_the_kernel_finds_too_long_is_named(caplog, speaks_ipv6):
    if not speaks_ipv6:
        pytest.skip(NO_IPV6)
    # The limit for an IPv4 peer of an IPv6 socket is lower than for an IPv6 peer.
    with (
        server(lambda data, _: bytes(65_520) if data == b"long" else data, ("::", 0)) as serving,
        client(("127.0.0.1", serving.address[1])) as sock,
    ):
        for data in (b"one", b"long", b"two"):
            sock.send(data)
        assert [sock.recv(100), sock.recv(100)] == [b"one", b"two"]
        assert stats_after(serving, 3).send_errors == 1
    assert "65520 bytes are too long for one datagram" in caplog.text
    assert "::ffff:127.0.0.1" in caplog.text


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (lambda batch: [b"x"] * (len(batch) + 1), ValueError, "more replies than"),
        (lambda _: b"bytes", TypeError, "and not one reply"),
        (lambda _: "text", TypeError, "and not one reply"),
        (lambda _: 7, TypeError, "not iterable"),
        (lambda batch: 1 / 0, ZeroDivisionError, "division"),
        (lambda batch: ["text" for _ in batch], TypeError, "encode"),
    ],
)
@pytest.mark.parametrize("is_async", [False, True])
def test_batch_handler_that_fails_does_not_stop_the_server(answer, error, text, is_async, caplog):
    answers = iter([answer, lambda batch: [data for data, _ in batch]])

    def handle(batch):
        return next(answers)(batch)

    async def handle_later(batch):
        await asyncio.sleep(0)
        return handle(batch)

    with (
        server(handle_later if is_async else handle, takes="batch") as serving,
        client(serving.address) as sock,
    ):
        sock.send(b"first")
        eventually(lambda: serving.stats().handler_errors == 1)
        sock.send(b"second")
        eventually(lambda: sock.recv(10) == b"second")
    (found,) = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert isinstance(found, error)
    assert text in str(found)


def test_batch_with_one_invalid_reply_sends_the_others():
    block = threading.Event()

    def handle(batch):
        block.wait()
        return ["text" if data == b"2" else data for data, _ in batch]

    with server(handle, takes="batch") as serving, client(serving.address) as sock:
        for data in (b"1", b"2", b"3"):
            sock.send(data)
        block.set()
        assert [sock.recv(10), sock.recv(10)] == [b"1", b"3"]
        assert stats_after(serving, 3).handler_errors == 1


def test_flood_of_errors_is_not_a_flood_of_log_lines(caplog, monkeypatch):
    monkeypatch.setattr(_reports, "SECONDS_BETWEEN", 3600.0)
    with server(lambda *_: 1 / 0, rcvbuf=1 << 20) as serving, client(serving.address) as sock:
        for data in numbered(500):
            sock.send(data)
        assert stats_after(serving, 500).handler_errors == 500
        assert len(caplog.records) == 1
        monkeypatch.setattr(_reports, "SECONDS_BETWEEN", 0.0)
        sock.send(b"one more")
        stats_after(serving, 501)
    assert "(499 more of this kind were not logged)" in caplog.text


def test_slow_handler_does_not_delay_finished_replies():
    def handle(data, _):
        if data != b"0":
            block.wait()
        return data

    block = threading.Event()
    with server(handle) as serving, client(serving.address) as sock:
        for data in (b"0", b"0", b"0"):  # the server learns that the handler is slow
            sock.send(data)
            threading.Event().wait(0.01)
        for _ in range(3):
            assert sock.recv(10) == b"0"
        sock.send(b"block")
        eventually(lambda: serving.stats().received == 4)
        block.set()
        assert sock.recv(10) == b"block"


def test_peer_that_does_not_read_is_given_up_and_counted(unix, caplog):
    with server(echo, unix.address()) as serving, contextlib.ExitStack() as stack:
        deaf = stack.enter_context(client(serving.address, local=unix.address()))
        name, sent = deaf.getsockname(), 0
        while serving.stats().send_errors == 0:
            deaf.send(b"%d" % sent)
            sent += 1
        stats = stats_after(serving, sent)
        assert stats.sent + stats.send_errors == sent
        # Other replies wait for it briefly, until it is given up.
        stack.close()
        with client(serving.address, local=unix.address()) as other:
            other.send(b"and I?")
            assert other.recv(100) == b"and I?"
    assert f"not sent to {name}" in caplog.text


def test_peer_without_a_name_cannot_be_replied_to(unix, caplog):
    with server(echo, unix.address()) as serving, client(serving.address) as nameless:
        nameless.send(b"x")
        assert stats_after(serving, 1).handler_errors == 1
    assert "cannot reply: the sender has no address" in caplog.text


def test_port_that_is_taken_is_named(inet):
    with inet.bound(std) as sock:
        host, port = sock.getsockname()
        for workers in (1, 2):
            before = open_descriptors()
            with pytest.raises(OSError, match=rf"Address already in use: {host}:{port}") as caught:
                server(echo, (host, port), workers=workers).start()
            assert caught.value.errno == 98
            eventually(lambda: open_descriptors() <= before)  # noqa: B023 - polled at once


def test_address_of_another_machine_is_named():
    with pytest.raises(OSError, match=r"Cannot assign requested address: 192\.0\.2\.1:\d+"):
        server(echo, ("192.0.2.1", 1234)).start()


def test_start_without_descriptors_fails_and_leaves_none_behind():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for workers in (1, 3):
        for room in range(5):
            before = open_descriptors()
            serving = server(echo, workers=workers)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free() + room, hard))
            try:
                serving.start()
            except OSError as error:
                assert error.errno == 24, error  # noqa: PT017 - a successful start is also right
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            serving.stop()
            eventually(lambda: open_descriptors() <= before)  # noqa: B023 - polled at once


def lowest_free():
    descriptor = os.dup(0)
    os.close(descriptor)
    return descriptor


def test_running_server_needs_no_new_descriptors():
    program = """
import os, resource, socket, tomada

with (
    tomada.Server(("127.0.0.1", 0), lambda data, _: data) as server,
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
):
    sock.settimeout(30)
    resource.setrlimit(resource.RLIMIT_NOFILE, (os.dup(0), 4096))
    for number in range(100):
        sock.sendto(b"%d" % number, server.address)
        assert sock.recv(100) == b"%d" % number
print("done")
"""
    assert run(program) == "done\n"


def test_kernel_drops_are_logged_once_with_a_hint(caplog):
    block = threading.Event()

    def handle(data, _):
        block.wait()

    with server(handle, rcvbuf=4096, gro=False) as serving, client(serving.address) as sock:
        for data in numbered(500, 100):
            sock.send(data)
        assert serving.stats().kernel_drops > 100
        block.set()
        eventually(lambda: "has begun to drop" in caplog.text)
        drops = serving.stats().kernel_drops
    assert serving.stats().kernel_drops == drops
    (line,) = [record.getMessage() for record in caplog.records]
    host, port = serving.address
    assert f"drop datagrams for {host}:{port}" in line
    for word in ("rcvbuf", "net.core.rmem_max", "workers"):
        assert word in line


def test_receive_buffer_that_the_kernel_limits_is_logged(monkeypatch):
    class Unprivileged(socket.socket):
        def setsockopt(self, level, name, *value):
            if name == socket.SO_RCVBUFFORCE:
                raise PermissionError(1, "Operation not permitted")
            super().setsockopt(level, name, *value)

    monkeypatch.setattr(socket, "socket", Unprivileged)
    serving = server(echo, rcvbuf=1 << 30)
    with pytest.warns(RuntimeWarning, match="asked for 1073741824 bytes.*net.core.rmem_max"):
        serving.start()
    assert ask(serving.address, b"x") == b"x"
    serving.stop()


def test_receive_buffer_is_as_large_as_requested(inet):
    with inet.bound(std) as sock, server(echo, None, sock=sock, rcvbuf=100_000):
        assert sock.getsockopt(std.SOL_SOCKET, std.SO_RCVBUF) == 200_000


def test_init_exception_is_raised_by_start():
    def init():
        raise LookupError("no such database")

    serving = server(echo, init=init)
    with pytest.raises(LookupError, match="no such database"):
        serving.start()
    assert not serving.ready.is_set()


def test_handler_that_raises_system_exit_ends_the_server():
    def handle(data, _):
        raise SystemExit(7)

    serving = server(handle)
    serving.start()
    with client(serving.address) as sock:
        sock.send(b"x")
        with pytest.raises(SystemExit, match="7"):
            serving.serve_forever()


def test_handler_that_exits_leaves_later_datagrams_to_the_socket():
    datagrams, seen = numbered(6), []

    def handle(data, _):
        seen.append(data)
        if len(seen) == 3:
            raise SystemExit(7)

    with (
        socket.socket(std.AF_INET, std.SOCK_DGRAM) as sock,
        std.socket(std.AF_INET, std.SOCK_DGRAM) as sender,
    ):
        sock.bind(("127.0.0.1", 0))
        for data in datagrams:
            sender.sendto(data, sock.getsockname())
        core = _core.ServerCore(sock, handle, "data", _core.ServerCounters(1), 0, print)
        with pytest.raises(SystemExit, match="7"):
            core.run()
        sock.setblocking(False)
        assert seen + [data for data, _ in sock.recv_many(6)] == datagrams
