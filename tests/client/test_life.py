"""How a client is made, closed, forked and imported, and which arguments it rejects."""

import errno
import gc
import socket as std
import subprocess
import sys
import threading
import warnings

import pytest

import tomada
from answering import LONG, Lossy, Server, echo, silence
from support import CLOSED, Call, fill, interrupt, open_descriptors, run
from tomada._client import pool

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")


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


def test_closed_client_raises(inet):
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


def test_number_of_resting_sockets_is_limited(inet, monkeypatch):
    monkeypatch.setattr(pool, "MOST_RESTING", 3)
    with Server(inet, silence) as server, tomada.Client(server.address, 0.002, 0) as client:
        before = open_descriptors()
        for _ in range(10):
            with pytest.raises(TimeoutError):
                client.request(b"x")
        assert open_descriptors() <= before + 4


def test_signal_handler_may_close_a_client_at_any_line(inet):
    # Between any two lines of the client's code, including those that hold its lock.
    def interrupted():
        with Server(inet, echo) as server, tomada.Client(server.address) as client:
            with client._pool._lock:  # noqa: SLF001
                client.close()
            client.request(b"x")

    with pytest.raises(OSError, match=CLOSED):
        Call(interrupted).result()


def test_unclosed_client_warns(inet):
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


def test_client_whose_init_failed_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="timeout"):
            tomada.Client(("127.0.0.1", 1), timeout=0)
        gc.collect()


def test_child_process_has_its_own_sockets(inet):
    # Both send at the same time, and would receive each other's replies from a shared socket.
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
    senders = {name: set() for name in (b"parent", b"child")}
    for data, sender in server.asked[1:]:
        senders[data.split()[0]].add(sender)
    assert senders[b"parent"]
    assert senders[b"child"].isdisjoint(senders[b"parent"])


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


def test_signals_interrupt_a_request_that_waits_for_room(unix, handler):
    class StopError(Exception):
        pass

    def stop():
        raise StopError

    with unix.bound(std) as server, tomada.Client(server.getsockname(), LONG) as client:
        first = Call(client.request, b"x")
        data, sender = server.recvfrom(10)
        server.sendto(data, sender)
        assert first.result() == b"x"
        with unix.open(std) as other:
            fill(other, server.getsockname())
        handler(stop)
        call = threading.Thread(target=interrupt)
        call.start()
        with pytest.raises(StopError):
            client.request(b"y")
        call.join()


def test_name_is_resolved_to_ipv4_first(inet):
    with (
        Server(inet, echo) as server,
        tomada.Client(("localhost", server.address[1]), LONG) as client,
    ):
        assert client.address == server.address
        assert client.request(b"x") == b"x"


@pytest.mark.usefixtures("inet6")
def test_family_selects_the_address(monkeypatch):
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
def test_scope_of_an_address_is_kept():
    with tomada.Client(("fe80::1", 80, 0, std.if_nametoindex("lo"))) as client:
        assert client.address == ("fe80::1", 80, 0, std.if_nametoindex("lo"))


def test_wildcard_address_reaches_a_server_on_this_machine(inet):
    with (
        Server(inet, echo, ("0.0.0.0", 0)) as server,  # noqa: S104 - the wildcard address is tested
        tomada.Client(server.address, LONG) as client,
    ):
        assert client.request(b"x") == b"x"


@pytest.mark.parametrize(
    ("address", "error", "complaint"),
    [
        (5, TypeError, r"address must be \(host, port\), or an AF_UNIX path, not 5"),
        (("127.0.0.1",), TypeError, r"address must be \(host, port\)"),
        (("127.0.0.1", "80"), TypeError, "the address's port must be an int, not '80'"),
        (("127.0.0.1", 0), ValueError, "the address's port must be from 1 to 65535, not 0"),
        (("127.0.0.1", 65536), ValueError, "not 65536"),
        ("", ValueError, "address must not be empty"),
        (("name.invalid", 1), std.gaierror, "Errno"),
    ],
)
def test_invalid_addresses_are_rejected_with_a_hint(address, error, complaint):
    with pytest.raises(error, match=complaint):
        tomada.Client(address)


@pytest.mark.parametrize(
    ("options", "error", "complaint"),
    [
        ({"timeout": -1}, ValueError, "timeout must be"),
        ({"retries": 1.5}, ValueError, "retries must be"),
        ({"match": 5}, TypeError, "match must be a function of a request and a reply, not 5"),
        ({"spin": -1}, ValueError, "spin must be a number of seconds, 0 or more, .* not -1"),
        ({"spin": float("inf")}, ValueError, "spin must be"),
        ({"spin": float("nan")}, ValueError, "spin must be"),
        ({"timeout": 1e10}, ValueError, "timeout must be"),
        ({"spin": None}, TypeError, "spin must be"),
    ],
)
def test_invalid_options_are_rejected_with_a_hint(options, error, complaint):
    with pytest.raises(error, match=complaint):
        tomada.Client(("127.0.0.1", 1), **options)


def test_spin_does_not_change_results(inet):
    with Server(inet, echo) as server, tomada.Client(server.address, LONG, spin=1e-3) as client:
        assert client.request(b"x") == b"x"


def test_importing_tomada_does_not_import_the_client():
    program = "import sys, tomada; print({'asyncio', 'random', 'tomada.client'} & {*sys.modules})"
    assert run(program) == "set()\n"
    assert "Client" in dir(tomada)
    with pytest.raises(AttributeError, match="module 'tomada' has no attribute 'nothing'"):
        _ = tomada.nothing
    subprocess.run([sys.executable, "-c", "from tomada import *; Client"], check=True)
