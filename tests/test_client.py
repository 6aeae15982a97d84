"""The client, against plain ``socket`` servers that lose, delay, repeat and refuse."""

import contextlib
import errno
import gc
import itertools
import queue
import socket as std
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

import tomada
from support import DEADLINE, Call, RefusalError, eventually, interrupt, open_descriptors, run
from tomada import _connection

# As long as no test waits for it.
LONG = DEADLINE


class Server(threading.Thread):
    """A plain socket that answers each datagram as a function says: with a list of datagrams."""

    def __init__(self, kind, answer, address=None):
        super().__init__(daemon=True)
        self.sock = std.socket(kind.family, std.SOCK_DGRAM)
        self.sock.bind(address or kind.address())
        self.address = self.sock.getsockname()
        self.asked = []
        self._answer = answer
        self._is_ending = False
        self.start()

    def run(self):
        while not self._is_ending:
            self.sock.settimeout(0.05)  # between looks at whether to end
            try:
                data, sender = self.sock.recvfrom(1 << 17)
            except TimeoutError:
                continue
            self.asked.append((data, sender))
            self.sock.settimeout(DEADLINE)
            for reply in self._answer(data):
                # A client that was answered once may have closed its end to the second answer.
                with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
                    self.sock.sendto(reply, sender)

    def end(self):
        self._is_ending = True
        self.join()
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()


def echo(data):
    return [data]


def silence(_data):
    return []


class Lossy:
    """Answers with what was asked, but drops a request or a reply wherever a function says so."""

    def __init__(self, drops):
        self._number = itertools.count()
        self._drops = drops

    def __call__(self, data):
        return [] if self._drops(next(self._number)) else [data]


def same(request, reply):
    return request == reply


@pytest.fixture(params=[None, same], ids=["without match", "with match"])
def match(request):
    return request.param


def test_a_request_gets_its_reply(kind, match):
    with (
        Server(kind, lambda data: [data]) as server,
        tomada.Client(server.address, LONG, match=match) as client,
    ):
        for size in (0, 1, 1000, 9000, 60_000):
            assert client.request(b"x" * size) == b"x" * size


def test_a_request_may_be_any_bytes_like_object(inet):
    with Server(inet, echo) as server, tomada.Client(server.address, LONG) as client:
        assert client.request(bytearray(b"abc")) == b"abc"
        assert client.request(memoryview(b"abcdef")[::1][2:4]) == b"cd"


def test_a_reply_from_another_process(peer, kind):
    server = peer(kind)
    server.ask("echo", count=3)
    with tomada.Client(server.address, LONG) as client:
        assert [client.request(b"%d" % number) for number in range(3)] == [b"0", b"1", b"2"]
    assert server.answer() is None


def test_what_is_lost_is_asked_for_again(kind, match):
    with (
        Server(kind, Lossy(lambda number: number % 3 != 2)) as server,
        tomada.Client(server.address, LONG, retries=12, match=match) as client,
    ):
        for number in range(3):
            assert client.request(b"%d" % number) == b"%d" % number
    assert [data for data, _ in server.asked] == [b"0"] * 3 + [b"1"] * 3 + [b"2"] * 3


def test_no_reply_ends_at_the_deadline_and_says_how_often_it_was_asked(inet, match):
    with (
        Server(inet, silence) as server,
        tomada.Client(server.address, 0.05, retries=3, match=match) as client,
    ):
        started = time.monotonic()
        host, port = server.address
        with pytest.raises(
            TimeoutError, match=rf"^no reply from {host}:{port}: 4 attempts in 0\.\d\d\d s$"
        ):
            client.request(b"hello?")
        assert time.monotonic() - started >= 0.05
        eventually(lambda: len(server.asked) == 4)
    assert {data for data, _ in server.asked} == {b"hello?"}


def test_without_retries_it_is_asked_once(inet):
    with Server(inet, silence) as server, tomada.Client(server.address, 0.02, 0) as client:
        for _ in range(2):
            with pytest.raises(TimeoutError, match="1 attempt in"):
                client.request(b"hello?")
        eventually(lambda: len(server.asked) == 2)


@pytest.mark.parametrize("is_many", [False, True])
def test_a_late_reply_is_not_the_next_ones(inet, is_many):
    late = queue.SimpleQueue()

    def answer(data):
        if data == b"first":
            late.put(data)
            return []
        # What is late comes just before the answer.
        return [] if data == b"last" else [data]

    with Server(inet, answer) as server, tomada.Client(server.address, 0.05, 1) as client:
        with pytest.raises(TimeoutError):
            client.request(b"first")
        for _, sender in list(server.asked):
            server.sock.sendto(b"late", sender)
        if is_many:
            assert client.request_many([b"second"] * 5, 2) == [b"second"] * 5
        else:
            assert client.request(b"second") == b"second"
        # Two attempts from one port, at which nobody asks again.
        ports = [sender for _, sender in server.asked]
        assert ports[0] == ports[1]
        assert ports[0] not in ports[2:]


def test_with_match_a_late_reply_is_passed_over(inet):
    def answer(data):
        return [b"reply to " + data[:-1] + b"%d" % (int(data[-1:]) - 1), b"reply to " + data]

    def matches(request, reply):
        return reply == b"reply to " + request

    with (
        Server(inet, answer) as server,
        tomada.Client(server.address, LONG, match=matches) as client,
    ):
        for number in range(1, 9):
            assert client.request(b"%d" % number) == b"reply to %d" % number
    # It could go on with one socket.
    assert len({sender for _, sender in server.asked}) == 1


@pytest.mark.parametrize("is_many", [False, True])
def test_a_second_reply_that_has_come_is_thrown_away(inet, is_many):
    with (
        Server(inet, lambda data: [data, b"again " + data]) as server,
        tomada.Client(server.address, LONG) as client,
    ):
        ask = (lambda data: client.request_many([data])[0]) if is_many else client.request
        for number in range(20):
            assert ask(b"%d" % number) == b"%d" % number
            with std.socket(std.AF_INET, std.SOCK_DGRAM) as other:
                other.connect(server.address)
                other.settimeout(DEADLINE)
                other.send(b"x")
                other.recv(10)  # now the second reply has left, too


def test_strangers_are_not_heard(inet, match):
    with (
        Server(inet, silence) as server,
        tomada.Client(server.address, LONG, match=match) as client,
        std.socket(std.AF_INET, std.SOCK_DGRAM) as stranger,
    ):
        call = Call(client.request, b"question")
        eventually(lambda: server.asked)
        _, sender = server.asked[0]
        stranger.sendto(b"question", sender)
        server.sock.sendto(b"question", sender)
        assert call.result() == b"question"


def test_a_stranger_from_before_the_connection_is_not_heard(inet, monkeypatch):
    real = _connection.Connection.reconnect

    def after_a_stranger(self):
        _, port = self.getsockname()
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as stranger:
            stranger.sendto(b"from a stranger", ("127.0.0.1", port))
        real(self)

    monkeypatch.setattr(_connection.Connection, "reconnect", after_a_stranger)
    with Server(inet, echo) as server, tomada.Client(server.address, LONG) as client:
        assert client.request(b"question") == b"question"


def test_a_server_that_comes_later_is_found(kind, match):
    address = kind.address()
    with std.socket(kind.family, std.SOCK_DGRAM) as taken:
        taken.bind(address)
        address = taken.getsockname()
    if kind.name == "path":
        Path(address).unlink()
    with tomada.Client(address, LONG, retries=12, match=match) as client:
        call = Call(client.request, b"anybody?")
        call.until_it_waits()
        with Server(kind, echo, address):
            assert call.result() == b"anybody?"


@pytest.mark.parametrize("is_many", [False, True])
def test_a_server_that_dies_and_comes_back_is_found(kind, match, is_many):
    with Server(kind, echo) as server:
        address = server.address
        client = tomada.Client(address, LONG, retries=12, match=match)
        ask = (lambda data: client.request_many([data] * 3)[0]) if is_many else client.request
        assert ask(b"before") == b"before"
    if kind.name == "path":
        Path(address).unlink()
    with client:
        call = Call(ask, b"between")
        call.until_it_waits()
        with Server(kind, echo, address):
            assert call.result() == b"between"
            assert ask(b"after") == b"after"


@pytest.mark.parametrize("is_many", [False, True])
def test_a_server_that_dies_is_said_at_once_when_asked_for(kind, match, is_many):
    with Server(kind, echo) as server:
        client = tomada.Client(server.address, LONG, match=match, retry_refused=False)
        ask = (lambda data: client.request_many([data] * 3)[0]) if is_many else client.request
        assert ask(b"before") == b"before"
    with client:
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                ask(b"after")
        if kind.name == "path":
            Path(server.address).unlink()
            with pytest.raises(FileNotFoundError):
                ask(b"after")


def test_a_refusal_is_the_timeouts_cause(kind):
    with Server(kind, echo) as server:
        address = server.address
    with (
        tomada.Client(address, 0.05) as client,
        pytest.raises(TimeoutError, match="4 attempts") as caught,
    ):
        client.request(b"anybody?")
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


def test_what_no_datagram_can_hold_is_refused_at_once(inet, match):
    with Server(inet, echo) as server, tomada.Client(server.address, LONG, match=match) as client:
        with pytest.raises(OSError, match="Message too long") as caught:
            client.request(b"x" * 65_508)
        assert caught.value.errno == errno.EMSGSIZE
        assert client.request(b"x") == b"x"


@pytest.mark.parametrize("item", ["text", 5, None, (b"x", ("127.0.0.1", 1))])
def test_what_is_no_datagram_is_a_type_error(inet, match, item):
    with Server(inet, echo) as server, tomada.Client(server.address, LONG, match=match) as client:
        for _ in range(2):
            with pytest.raises(TypeError, match="bytes-like"):
                client.request(item)
            with pytest.raises(TypeError, match="bytes-like"):
                client.request_many([b"x", item])
            assert client.request(b"x") == b"x"


@pytest.mark.parametrize("is_many", [False, True])
def test_an_exception_of_match_goes_to_the_caller(inet, is_many):
    def refuse(*_):
        raise RefusalError("this", "that")

    with Server(inet, echo) as server, tomada.Client(server.address, LONG, match=refuse) as client:
        ask = (lambda data: client.request_many([data])) if is_many else client.request
        for _ in range(3):
            with pytest.raises(RefusalError):
                ask(b"x")
    assert len({sender for _, sender in server.asked}) == 1  # no socket was lost over it


def test_many_threads_ask_at_once(kind, match):
    def ask(client, name):
        for number in range(100):
            data = b"%d %d" % (name, number)
            assert client.request(data) == data

    with (
        Server(kind, echo) as server,
        tomada.Client(server.address, LONG, match=match) as client,
    ):
        calls = [Call(ask, client, name) for name in range(8)]
        for call in calls:
            call.result()
    # As many sockets as there were requests at once.
    assert len({sender for _, sender in server.asked}) <= 8


def test_one_thread_uses_one_socket(inet):
    with Server(inet, echo) as server, tomada.Client(server.address, LONG) as client:
        for _ in range(50):
            client.request(b"x")
    assert len({sender for _, sender in server.asked}) == 1


@pytest.mark.parametrize("window", [1, 5, 32, 1000])
def test_many_requests_get_their_replies_in_order(kind, match, window):
    # More at once than any queue has room for.
    requests = [b"%d" % number * (number % 7) for number in range(300)]
    with (
        Server(kind, echo) as server,
        tomada.Client(server.address, LONG, retries=12, match=match) as client,
    ):
        for _ in range(2):
            assert client.request_many(iter(requests), window) == requests


@pytest.mark.parametrize("size", [9000, 60_000])
def test_many_long_requests_do_not_block_each_other(kind, match, size):
    requests = [b"%d" % number * (size // 2) for number in range(10, 40)]
    with (
        Server(kind, echo) as server,
        tomada.Client(server.address, LONG, retries=12, match=match) as client,
    ):
        assert client.request_many(requests) == requests


def test_replies_out_of_order_find_their_requests(inet, match):
    held = []

    def answer(data):
        held.append(data)
        return []

    with Server(inet, answer) as server, tomada.Client(server.address, LONG, match=match) as client:
        requests = [b"%d" % number for number in range(10)]
        call = Call(client.request_many, requests)
        eventually(lambda: len(server.asked) == 10)
        for data, sender in reversed(server.asked):
            server.sock.sendto(data, sender)
        assert call.result() == requests


def test_no_more_are_under_way_than_the_window_says(inet, match):
    with (
        Server(inet, silence) as server,
        tomada.Client(server.address, LONG, match=match) as client,
    ):
        taken = []
        call = Call(client.request_many, (taken.append(n) or b"%d" % n for n in range(9)), 4)
        for number in range(9):
            under_way = min(4 + number, 9)
            eventually(lambda expected=under_way: len(server.asked) == expected)
            assert len(taken) == under_way
            data, sender = server.asked[number]
            server.sock.sendto(data, sender)
        assert call.result() == [b"%d" % number for number in range(9)]


def test_of_many_the_lost_ones_are_asked_for_again(kind, match):
    with (
        Server(kind, Lossy(lambda number: number % 10 == 3)) as server,
        tomada.Client(server.address, LONG, retries=12, match=match) as client,
    ):
        requests = [b"%d" % number for number in range(200)]
        assert client.request_many(requests, 8) == requests
        assert client.request_many(requests, 8) == requests


def test_of_many_the_first_that_fails_ends_the_call_with_its_index(inet, match):
    with (
        Server(inet, lambda data: [] if data == b"3" else [data]) as server,
        tomada.Client(server.address, 0.1, match=match) as client,
    ):
        requests = [b"%d" % number for number in range(6)]
        with pytest.raises(TimeoutError, match="4 attempts in") as caught:
            client.request_many(requests, 2)
        assert caught.value.index == 3
        assert client.request_many(requests[:3]) == requests[:3]


def test_of_many_exceptions_are_returned_when_asked_for(inet, match):
    def answer(data):
        return [] if data == b"lost" else [data]

    with (
        Server(inet, answer) as server,
        tomada.Client(server.address, 0.2, match=match) as client,
    ):
        requests = [b"a", b"lost", b"b", b"x" * 65_508, b"c", b"lost"]
        results = client.request_many(requests, 2, errors="return")
    assert [results[place] for place in (0, 2, 4)] == [b"a", b"b", b"c"]
    for place in (1, 5):
        assert isinstance(results[place], TimeoutError)
        assert results[place].args[0].startswith("no reply from 127.0.0.1:")
    assert results[3].errno == errno.EMSGSIZE


def test_of_many_refusals_are_returned_when_asked_for(inet, match):
    with Server(inet, echo) as server:
        address = server.address
    with tomada.Client(address, LONG, match=match, retry_refused=False) as client:
        results = client.request_many([b"x"] * 5, 2, errors="return")
    assert [type(result) for result in results] == [ConnectionRefusedError] * 5


def test_no_requests_have_no_replies(inet, match):
    with Server(inet, echo) as server, tomada.Client(server.address, match=match) as client:
        assert client.request_many([]) == []


def test_an_exception_of_the_iterable_goes_to_the_caller(inet, match):
    def requests():
        yield b"x"
        raise RefusalError("this", "that")

    with Server(inet, echo) as server, tomada.Client(server.address, LONG, match=match) as client:
        with pytest.raises(RefusalError):
            client.request_many(requests())
        assert client.request_many([b"y"]) == [b"y"]


@pytest.mark.parametrize("is_many", [False, True])
def test_close_ends_the_requests_of_other_threads(kind, match, is_many):
    with Server(kind, silence) as server:
        client = tomada.Client(server.address, LONG, match=match)
        ask = (lambda: client.request_many([b"x"] * 3)) if is_many else lambda: client.request(b"x")
        calls = [Call(ask).until_it_waits() for _ in range(3)]
        client.close()
        for call in calls:
            with pytest.raises(OSError, match="the client is closed") as caught:
                call.result()
            assert caught.value.errno == errno.EBADF


def test_a_closed_client_asks_no_more(inet):
    with Server(inet, echo) as server, tomada.Client(server.address, LONG) as client:
        assert repr(client) == f"<tomada.Client of 127.0.0.1:{server.address[1]}>"
        client.request(b"x")
        client.close()
        client.close()
        assert repr(client) == f"<tomada.Client of 127.0.0.1:{server.address[1]} closed>"
        with pytest.raises(OSError, match="the client is closed"):
            client.request(b"x")
        with pytest.raises(OSError, match="the client is closed"):
            client.request_many([b"x"])


def test_close_leaves_no_descriptor_open(inet, match):
    with Server(inet, Lossy(lambda number: number % 3 == 0)) as server:
        before = open_descriptors()
        with tomada.Client(server.address, LONG, 12, match=match) as client:
            client.request_many([b"%d" % number for number in range(9)], 4)
            client.request(b"x")
        assert open_descriptors() == before


def test_sockets_that_rest_are_not_more_than_so_many(inet, monkeypatch):
    monkeypatch.setattr(_connection, "MOST_RESTING", 3)
    with Server(inet, silence) as server, tomada.Client(server.address, 0.002, 0) as client:
        before = open_descriptors()
        for _ in range(10):
            with pytest.raises(TimeoutError):
                client.request(b"x")
        assert open_descriptors() <= before + 4


def test_an_unclosed_client_warns(inet):
    with Server(inet, echo) as server:
        before = open_descriptors()
        client = tomada.Client(server.address, LONG)
        client.request(b"x")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del client
            gc.collect()
        assert [item.category for item in caught] == [ResourceWarning]
        assert str(caught[0].message).startswith("unclosed <tomada.Client of 127.0.0.1:")
        assert open_descriptors() == before


def test_a_client_that_could_not_be_made_warns_not():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="timeout"):
            tomada.Client(("127.0.0.1", 1), timeout=0)
        gc.collect()


def test_a_child_process_has_sockets_of_its_own(inet):
    # Both ask at the same time, and would take each other's replies from a shared socket.
    program = """
import os, sys, warnings
import tomada
client = tomada.Client(("127.0.0.1", int(sys.argv[1])), 30)
client.request(b"x")
child = os.fork()
name = b"parent" if child else b"child"
for number in range(200):
    data = b"%s %d" % (name, number)
    assert client.request(data) == data
client.close()
if not child:
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""
    with Server(inet, echo) as server:
        assert run(program, server.address[1]) == "0\n"
    assert len({sender for _, sender in server.asked}) == 2


def test_signals_interrupt_a_request(inet, handler):
    class StopError(Exception):
        pass

    def stop():
        raise StopError

    handler(stop)
    with Server(inet, silence) as server, tomada.Client(server.address, LONG) as client:
        call = threading.Thread(target=interrupt)
        call.start()
        with pytest.raises(StopError):
            client.request(b"x")
        call.join()


def test_a_name_is_resolved_to_ipv4_first(inet):
    with (
        Server(inet, echo) as server,
        tomada.Client(("localhost", server.address[1]), LONG) as client,
    ):
        assert client.address == server.address
        assert client.request(b"x") == b"x"


@pytest.mark.usefixtures("inet6")
def test_a_family_can_be_asked_for(monkeypatch):
    asked = []

    def both(host, port, family, *_):
        asked.append((host, port, family))
        found = [(std.AF_INET6, "::1"), (std.AF_INET, "127.0.0.1")]
        return [(kind, 2, 17, "", (host, port)) for kind, host in found if family in {0, kind}]

    monkeypatch.setattr(std, "getaddrinfo", both)
    for family, address in ((0, "127.0.0.1"), (std.AF_INET, "127.0.0.1"), (std.AF_INET6, "::1")):
        with tomada.Client(("a.name", 80), family=family) as client:
            assert client.address[0] == address
    assert {host for host, *_ in asked} == {"a.name"}


@pytest.mark.usefixtures("inet6")
def test_a_scope_is_kept():
    with tomada.Client(("fe80::1", 80, 0, std.if_nametoindex("lo"))) as client:
        assert client.address == ("fe80::1", 80, 0, std.if_nametoindex("lo"))


def test_the_address_of_a_server_on_every_address_will_do(inet):
    with (
        Server(inet, echo, ("0.0.0.0", 0)) as server,  # noqa: S104 - that is what is tested
        tomada.Client(server.address, LONG) as client,
    ):
        assert client.request(b"x") == b"x"


@pytest.mark.parametrize(
    ("address", "error", "complaint"),
    [
        (5, TypeError, r"address must be \(host, port\), or a path of AF_UNIX, not 5"),
        (("127.0.0.1",), TypeError, r"address must be \(host, port\)"),
        (("127.0.0.1", "80"), TypeError, "the address's port must be an int, not '80'"),
        (("127.0.0.1", 0), ValueError, "the address's port must be from 1 to 65535, not 0"),
        (("127.0.0.1", 65536), ValueError, "not 65536"),
        ("", ValueError, "address must not be empty"),
        (("name.invalid", 1), std.gaierror, "Errno"),
    ],
)
def test_bad_addresses_are_refused_with_what_would_do(address, error, complaint):
    with pytest.raises(error, match=complaint):
        tomada.Client(address)


@pytest.mark.parametrize(
    ("options", "error", "complaint"),
    [
        ({"timeout": -1}, ValueError, "timeout must be"),
        ({"retries": 1.5}, ValueError, "retries must be"),
        ({"match": 5}, TypeError, "match must be a function of a request and a reply, not 5"),
        ({"spin": -1}, ValueError, "spin must be a number of seconds, 0 or more, not -1"),
        ({"spin": None}, TypeError, "spin must be"),
    ],
)
def test_bad_options_are_refused_with_what_would_do(options, error, complaint):
    with pytest.raises(error, match=complaint):
        tomada.Client(("127.0.0.1", 1), **options)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "complaint"),
    [
        ((0,), {}, ValueError, "window must be 1 or more, not 0"),
        (("5",), {}, TypeError, "window must be an int, not '5'"),
        ((), {"errors": "ignore"}, ValueError, "errors must be 'raise' or 'return', not 'ignore'"),
    ],
)
def test_bad_windows_are_refused(inet, arguments, options, error, complaint):
    with (
        Server(inet, echo) as server,
        tomada.Client(server.address) as client,
        pytest.raises(error, match=complaint),
    ):
        client.request_many([b"x"], *arguments, **options)


def test_spinning_changes_nothing_else(inet):
    with Server(inet, echo) as server, tomada.Client(server.address, LONG, spin=1e-3) as client:
        assert client.request(b"x") == b"x"


def test_importing_tomada_imports_nothing_of_it():
    program = "import sys, tomada; print({'asyncio', 'random', 'tomada.client'} & {*sys.modules})"
    assert run(program) == "set()\n"
    assert "Client" in dir(tomada)
    with pytest.raises(AttributeError, match="module 'tomada' has no attribute 'nothing'"):
        _ = tomada.nothing
    subprocess.run([sys.executable, "-c", "from tomada import *; Client"], check=True)
