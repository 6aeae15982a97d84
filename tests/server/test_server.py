"""The server in one process: the arguments of its handler, and its replies."""

import array
import gc
import os
import socket as std
import threading
import weakref
from pathlib import Path

import pytest

import tomada
from serving import ask, client, refused, server
from support import Call, eventually
from traffic import numbered, send_run


def upper(data, address):
    return data.upper()


def test_server_replies_in_every_family(kind, peer):
    with server(upper, kind.address()) as serving:
        asker = peer(kind)
        asker.do("send", datagrams=[b"abc", b""], to=serving.address)
        assert [tuple(item) for item in asker.do("collect", count=2)] == [
            (b"ABC", serving.address),
            (b"", serving.address),
        ]


def test_handler_gets_the_payload_and_the_peers_address():
    calls = []
    with (
        server(lambda *arguments: calls.append(arguments)) as serving,
        client(serving.address) as sock,
    ):
        sock.send(b"x")
        eventually(lambda: calls)
        assert calls == [(b"x", sock.getsockname())]


def test_handler_none_is_not_a_reply_and_empty_bytes_are_an_empty_datagram():
    with (
        server(lambda data, _: None if data == b"quiet" else b"") as serving,
        client(serving.address) as sock,
    ):
        sock.send(b"quiet")
        sock.send(b"")
        assert sock.recv(10) == b""
        assert eventually(lambda: serving.stats().sent) == 1
        assert serving.stats().received == 2


@pytest.mark.parametrize("make", [bytearray, memoryview, lambda data: array.array("B", data)])
def test_handler_reply_may_be_any_bytes_like_object(make):
    with server(lambda data, _: make(data)) as serving:
        assert ask(serving.address, b"as it is") == b"as it is"


def test_handler_reply_is_copied_before_it_changes():
    buffer = bytearray(b"first")

    def handle(data, _):
        serving.sendto(buffer, _)
        buffer[:] = b"later"

    with server(handle) as serving:
        assert ask(serving.address) == b"first"


def test_handler_gets_metadata_if_requested():
    seen = []

    def handle(datagram):
        seen.append(datagram)
        return datagram.data[::-1]

    with server(handle, takes="datagram") as serving:
        assert ask(serving.address, b"abc") == b"cba"
    (datagram,) = seen
    assert isinstance(datagram, tomada.Datagram)
    assert datagram.destination == "127.0.0.1"
    assert datagram.timestamp_ns > 0
    assert not datagram.truncated


def test_sendto_in_the_handler_is_counted_too():
    def handle(datagram):
        datagram.reply(b"first")
        return b"second"

    with server(handle, takes="datagram") as serving, client(serving.address) as sock:
        sock.send(b"x")
        assert {sock.recv(10), sock.recv(10)} == {b"first", b"second"}
        eventually(lambda: serving.stats().send_calls == 2)  # the last to be counted
        assert (serving.stats().sent, serving.stats().sent_bytes) == (2, 11)


def test_batch_handler_gets_lists_and_returns_replies_in_order():
    sizes, block = [], threading.Event()

    def handle(batch):
        if not sizes:
            block.wait()
        sizes.append(len(batch))
        return (None if data == b"0003" else data for data, _ in batch)

    with server(handle, takes="batch") as serving, client(serving.address) as sock:
        sock.send(b"begin")
        eventually(lambda: serving.stats().received)
        for data in numbered(20, 4):
            sock.send(data)
        block.set()
        expected = [b"begin", *(data for data in numbered(20, 4) if data != b"0003")]
        assert [sock.recv(100) for _ in expected] == expected
    assert sum(sizes) == 21
    assert max(sizes) > 1


def test_batch_handler_may_return_none_or_fewer_replies():
    answers = iter([None, [], [b"only"]])
    with (
        server(lambda batch: next(answers), takes="batch") as serving,
        client(serving.address) as sock,
    ):
        for count in range(1, 4):
            sock.send(b"x")
            eventually(lambda: serving.stats().received == count)  # noqa: B023 - called immediately
        assert sock.recv(100) == b"only"
        assert serving.stats().handler_errors == 0


def test_coalesced_runs_are_handled_one_by_one():
    with server(lambda data, _: b"%d" % len(data)) as serving, client(serving.address) as sock:
        send_run(sock, serving.address, bytes(64 * 1000 - 7), 1000)
        sizes = sorted(int(sock.recv(100)) for _ in range(64))
        assert sizes == [993, *[1000] * 63]
        assert serving.stats().received == 64


def test_largest_datagrams_pass_in_both_directions():
    data = os.urandom(65_507)
    with server(lambda data, _: data) as serving:
        assert ask(serving.address, data) == data
        assert serving.stats().truncated == 0


def test_sendto_from_another_thread_reaches_the_peer():
    peers = []
    with (
        server(lambda _, address: peers.append(address)) as serving,
        client(serving.address) as sock,
    ):
        sock.send(b"later, please")
        eventually(lambda: peers)
        Call(serving.sendto, b"later", peers[0]).result()
        assert sock.recv(100) == b"later"
        # The worker may be counting it.
        eventually(lambda: serving.stats().sent == 1)


def test_sendto_from_the_handler_is_sent_in_order_with_the_reply():
    def handle(data, address):
        serving.sendto(b"1", address)
        serving.sendto(bytearray(b"2"), address)
        return b"3"

    with server(handle) as serving, client(serving.address) as sock:
        sock.send(b"x")
        assert [sock.recv(10) for _ in range(3)] == [b"1", b"2", b"3"]


def test_handler_may_send_thousands_of_datagrams_for_one():
    def handle(data, address):
        for number in range(3000):
            serving.sendto(b"%d" % number, collector.getsockname())

    with std.socket(std.AF_INET, std.SOCK_DGRAM) as collector:
        collector.bind(("127.0.0.1", 0))
        with server(handle) as serving, client(serving.address) as sock:
            sock.send(b"go")
            assert eventually(lambda: serving.stats().sent >= 3000)


def test_sendto_raises_errors():
    with server(upper) as serving:
        with pytest.raises(OSError, match="Message too long"):
            serving.sendto(bytes(70_000), ("127.0.0.1", 9))
        assert serving.stats().send_errors == 1
        with pytest.raises(TypeError):
            serving.sendto("text", ("127.0.0.1", 9))
        with pytest.raises(TypeError):
            serving.sendto(b"", "nowhere")


def test_ready_means_that_the_port_is_bound():
    serving = server(upper)
    assert not serving.ready.is_set()
    forever = Call(serving.serve_forever)
    assert serving.ready.wait(30)
    assert ask(serving.address) == b"PING"
    serving.stop()
    forever.result()
    assert not serving.ready.is_set()


def test_server_cannot_be_started_twice():
    with server(upper) as serving, pytest.raises(RuntimeError, match="once"):
        serving.start()
    serving.stop()
    with pytest.raises(RuntimeError, match="once"):
        serving.start()


def test_server_before_its_start_has_no_address():
    serving = server(upper)
    for ask_it in (lambda: serving.address, serving.stats, lambda: serving.sendto(b"", ("h", 1))):
        with pytest.raises(RuntimeError, match="not been started"):
            ask_it()
    assert "not started" in repr(serving)


def test_stop_replies_to_queued_datagrams_and_refuses_later_ones():
    handling, go_on = threading.Event(), threading.Event()

    def handle(data, _):
        handling.set()
        go_on.wait()
        return data

    with server(handle) as serving, client(serving.address) as sock:
        sock.send(b"first")
        handling.wait()
        queued = numbered(100)
        for data in queued:
            sock.send(data)
        stopping = Call(serving.stop)
        with client(serving.address, 0.01) as stranger:
            eventually(lambda: refused(stranger))
        go_on.set()
        stopping.result()
        assert [sock.recv(100) for _ in range(101)] == [b"first", *queued]
        assert serving.stats().received == serving.stats().sent


def test_drain_ends_after_its_time():
    handling = threading.Event()

    def handle(data, _):
        handling.set()
        threading.Event().wait(0.05)
        return data

    with server(handle, drain=0.2) as serving, client(serving.address) as sock:
        for data in numbered(200):
            sock.send(data)
        handling.wait()
    assert 0 < serving.stats().sent < 200


def test_drain_ends_after_its_time_in_the_first_batch(inet):
    handled = []

    def handle(data, _):
        handled.append(data)
        serving.stop()
        threading.Event().wait(0.01)  # slow; the server learns that from its first call
        return data

    with inet.bound(std) as sock, client(sock.getsockname()) as other:
        for data in numbered(64):
            other.send(data)
        serving = server(handle, None, sock=sock, drain=0)
        forever = Call(serving.serve_forever)
        assert other.recv(100) == numbered(64)[0]
        forever.result()
    assert handled == numbered(64)[:1]


def test_handler_may_stop_its_server():
    def handle(data, _):
        serving.stop()
        return b"the last word"

    serving = server(handle)
    forever = Call(serving.serve_forever)
    serving.ready.wait()
    assert ask(serving.address) == b"the last word"
    forever.result()


def test_stop_in_two_threads_waits_in_both():
    with server(upper) as serving:
        address = serving.address
        for call in [Call(serving.stop) for _ in range(4)]:
            call.result()
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.bind(address)


def test_path_is_removed_by_stop_and_replaced_if_stale(unix):
    path = unix.address()
    with std.socket(std.AF_UNIX, std.SOCK_DGRAM) as stale:
        stale.bind(path)
    with server(upper, path) as serving:
        assert Path(path).is_socket()
        with pytest.raises(OSError, match=r"in use.*" + path):
            server(upper, path).start()
        with client(path, local=unix.address()) as sock:
            sock.send(b"x")
            assert sock.recv(10) == b"X"
        assert repr(serving)
    assert not Path(path).exists()


def test_host_name_is_resolved_and_an_empty_host_is_every_address():
    with server(upper, ("localhost", 0)) as serving:
        assert ask(serving.address) == b"PING"
    with server(upper, ("", 0)) as serving:
        assert serving.address[0] == "0.0.0.0"
        assert ask(("127.0.0.1", serving.address[1])) == b"PING"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"takes": "bytes"}, "takes must be"),
        ({"steering": "fair"}, "steering must be"),
        ({"workers": 0}, "must be at least 1"),
        ({"drain": -1}, "drain"),
        ({"drain": float("nan")}, "drain"),
        ({"fd": 1}, "one of address, sock and fd"),
        ({"threads": 2, "workers": 2}, "either workers or threads"),
    ],
)
def test_server_rejects_invalid_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        server(upper, **options)


def test_handler_must_be_callable():
    with pytest.raises(TypeError, match="callable, not bytes"):
        server(b"echo")


def test_handler_may_have_methods_of_any_name():
    class Handler:
        def __call__(self, data, _address):
            return data.upper()

        def _attach(self):
            raise NotImplementedError  # as a sink's method is called

    with server(Handler()) as serving:
        assert ask(serving.address, b"own") == b"OWN"
        assert serving.sink is None


def test_stats_counts_everything():
    with server(upper) as serving, client(serving.address) as sock:
        for data in (b"a", b"bc", b"def"):
            sock.send(data)
            sock.recv(10)
        # The last reply may arrive before it is counted.
        eventually(lambda: serving.stats().send_calls == 3)
        stats = serving.stats()
        assert (stats.received, stats.received_bytes) == (3, 6)
        assert (stats.sent, stats.sent_bytes) == (3, 6)
        assert stats.receive_calls == stats.send_calls == 3
        assert stats.batch_sizes[1] == 3
        assert sum(stats.batch_sizes.values()) == 3
        assert 0 < stats.handler_time < 3
        assert (stats.truncated, stats.kernel_drops, stats.restarts) == (0, 0, 0)
    assert serving.stats().received == 3
    assert "received=3" in repr(serving.stats())


def test_stopped_server_and_its_handler_are_collected():
    def use():
        def handle(data, _):
            return b"%d" % serving.stats().received

        with server(handle) as serving:
            assert ask(serving.address) == b"1"
        return weakref.ref(serving), weakref.ref(handle)

    references = use()
    gc.collect()
    assert [reference() for reference in references] == [None, None]
