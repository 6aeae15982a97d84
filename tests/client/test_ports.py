"""Ports of requests without a match: none is reused while another request's reply may arrive."""

import asyncio
import contextlib
import errno
import gc
import itertools
import math
import os
import socket as std
import time

import pytest

import tomada
from answering import LONG, Server, echo, same, silence
from links import Namespace
from support import FORKS, eventually, open_descriptors, together
from tomada._client import pool, ports
from tomada._client.own_sockets import Separate
from tomada.asyncio import open_endpoint

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

# A range of ports that is soon exhausted, and exceeds the number of sockets that stay open.
LOW, HIGH = 40_000, 40_199
SIZE = HIGH - LOW + 1

# No two servers share it: a client could not tell them apart.
_server_ports = itertools.count(20_000)

NONE_SAFE = "every free port may still get a late reply; pass match=, or lower the rate"


@pytest.fixture(scope="module")
def narrow(namespaces):  # noqa: ARG001 - skips the test without them
    namespace = Namespace()
    namespace.set("ipv4/ip_local_port_range", f"{LOW} {HIGH}")
    namespace.set("ipv4/ip_local_reserved_ports", f"{LOW},{LOW + 2}-{LOW + 3}")
    return namespace


class Silent:
    """A plain socket in a namespace that never replies; it knows the ports of its clients."""

    def __init__(self, namespace, stack):
        self.sock = stack.enter_context(namespace.bound(std, ("127.0.0.1", next(_server_ports))))
        self.sock.setblocking(False)
        self.address = self.sock.getsockname()

    def asked(self):
        senders = []
        with contextlib.suppress(BlockingIOError):
            while True:
                senders.append(self.sock.recvfrom(100)[1][1])
        return senders


@pytest.fixture
def silent(narrow, monkeypatch):
    monkeypatch.setattr(ports, "_machine", None)
    with contextlib.ExitStack() as stack:
        yield Silent(narrow, stack)


def outcome(function, *args):
    try:
        return function(*args)
    except OSError as error:
        return error


def one_client(address, count):
    with tomada.Client(address, 0.001, 0) as client:
        return [outcome(client.request, b"x") for _ in range(count)]


def request_many(address, count):
    with tomada.Client(address, 0.001, 0) as client:
        return client.request_many([b"x"] * count, 20, errors="return")


def a_client_for_each(address, count):
    return [one_client(address, 1)[0] for _ in range(count)]


def endpoint_request(address, count):
    async def ask():
        async with open_endpoint(remote_addr=address) as endpoint:
            requests = (endpoint.request(b"x", timeout=0.001, retries=0) for _ in range(count))
            return await asyncio.gather(*requests, return_exceptions=True)

    return asyncio.run(ask())


def cancelled(address, count):
    async def ask():
        async with open_endpoint(remote_addr=address) as endpoint:
            errors = []
            for _ in range(count):
                task = asyncio.ensure_future(endpoint.request(b"x", timeout=LONG))
                await asyncio.wait({task}, timeout=0.001)
                task.cancel()
                try:
                    await task
                except asyncio.CancelledError:
                    errors.append(TimeoutError())
                except OSError as error:
                    errors.append(error)
            return errors

    return asyncio.run(ask())


WAYS = [one_client, request_many, a_client_for_each, endpoint_request, cancelled]


@pytest.mark.parametrize("way", WAYS)
def test_port_is_not_reused_while_a_late_reply_may_arrive(narrow, silent, way):
    senders, refused = [], []
    for _ in range(30):  # a slow machine does not send each request in time
        errors = narrow.run(way, silent.address, SIZE // 2)  # the server's queue has room for them
        senders += silent.asked()
        refused = [error for error in errors if not isinstance(error, TimeoutError)]
        if refused:
            break
    assert len(senders) == len(set(senders))
    assert not {LOW, LOW + 2, LOW + 3} & set(senders)
    assert refused
    for error in refused:
        assert error.errno == errno.EADDRNOTAVAIL
        assert str(error).endswith(f"cannot send to 127.0.0.1:{silent.address[1]}: {NONE_SAFE}")
    # They do not prevent a request with a match from being sent.
    with tomada.Client(silent.address, 0.001, 0, match=same) as client:
        assert isinstance(narrow.run(outcome, client.request, b"x"), TimeoutError)


def test_request_many_raises_at_the_first_request_without_a_port(narrow, silent):
    narrow.run(one_client, silent.address, SIZE)

    def ask():
        with tomada.Client(silent.address, LONG) as client:
            return outcome(client.request_many, [b"x"] * 3)

    error = narrow.run(ask)
    assert error.errno == errno.EADDRNOTAVAIL
    assert error.index == 0


def test_port_is_reused_when_no_late_reply_can_arrive(narrow, silent, monkeypatch):
    monkeypatch.setattr(ports, "LATE", 0.0)
    errors = []
    for _ in range(3):
        errors += narrow.run(one_client, silent.address, SIZE)
    assert all(isinstance(error, TimeoutError) for error in errors)


def test_error_without_a_free_port_says_so(narrow, silent):
    with contextlib.ExitStack() as stack:

        def fill():
            while True:
                sock = stack.enter_context(std.socket(std.AF_INET, std.SOCK_DGRAM))
                sock.bind(("", 0))

        narrow.run(outcome, fill)
        with tomada.Client(silent.address, LONG) as client:
            error = narrow.run(outcome, client.request, b"x")
    assert error.errno == errno.EADDRNOTAVAIL
    assert "no local port is free" in str(error)


def test_threads_get_no_port_that_another_thread_has_released(narrow, silent):
    own, got = ports.Ports(), []

    def take():
        for _ in range(SIZE // 8 - 4):
            sock = tomada.socket.socket(std.AF_INET, std.SOCK_DGRAM)
            own.bind(sock, ("127.0.0.1",), silent.address)
            port = sock.getsockname()[1]
            got.append(port)
            own.avoid(silent.address, port, math.inf)
            sock.close()

    together(*[lambda: narrow.run(take)] * 8)
    assert len(set(got)) == len(got) == 8 * (SIZE // 8 - 4)


class Kept(ports.Ports):
    """Ports to test with."""

    @property
    def sizes(self):
        return len(self._expiries), sum(map(len, self._avoided.values())), len(self._avoided)


def test_expired_ports_are_forgotten(monkeypatch):
    own, now = Kept(), [0.0]
    monkeypatch.setattr(ports, "monotonic", lambda: now[0])
    for second in range(100):
        now[0] = float(second)
        for port in range(50):
            own.avoid((f"10.0.0.{second}", 1), port, second + 5.0)
        assert own.sizes[0] <= 5 * 50
        assert own.sizes[1] <= 5 * 50
        assert own.sizes[2] <= 5
    now[0] = 200.0
    own.expire()
    assert own.sizes == (0, 0, 0)


def test_later_expiry_wins(monkeypatch):
    own, now, server = Kept(), [0.0], ("10.0.0.1", 1)
    monkeypatch.setattr(ports, "monotonic", lambda: now[0])
    for until in (5.0, 9.0, 7.0):
        own.avoid(server, 1, until)
    now[0] = 8.0
    own.expire()
    assert own.avoided(server) == {1}
    now[0] = 9.0
    own.expire()
    assert own.sizes == (0, 0, 0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("0.0.0.0", 1), ("127.0.0.1", 1)),  # noqa: S104 - no socket is bound to it
        (("::ffff:10.0.0.1", 1, 0, 0), ("10.0.0.1", 1)),
        (("fe80::1%lo", 1, 0, 1), ("fe80::1", 1)),
    ],
)
def test_all_addresses_of_a_server_are_the_same_server(one, other):
    own = ports.Ports()
    own.avoid(one, 5, math.inf)
    assert own.avoided(other) == {5}
    assert not own.avoided(("10.0.0.2", 1))


def left_for(address):
    """Return for how long the ports of requests to a server will be avoided."""
    now = time.monotonic()
    entries = ports.PORTS._avoided.get(ports._key(address), {})  # noqa: SLF001
    return [until - now for until in entries.values()]


async def test_timeout_of_a_request_decides_how_long_its_port_is_avoided(runner, inet):  # noqa: ARG001
    with Server(inet, silence) as server:
        async with open_endpoint(remote_addr=server.address) as endpoint:
            for timeout in (20, 2000):
                task = asyncio.ensure_future(endpoint.request(b"x", timeout=timeout))
                while not server.asked:  # noqa: ASYNC110 - a thread fills the list
                    await asyncio.sleep(0)
                server.asked.clear()
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        short, long = sorted(left_for(server.address))
    assert 30 < short <= 40
    assert 3000 < long <= 4000


def test_ports_of_a_closed_client_are_avoided(inet):
    with Server(inet, echo) as server:
        with tomada.Client(server.address, 5, 0) as client:
            client.request(b"x")
        assert all(left <= 5 for left in left_for(server.address))  # no reply is late
    with Server(inet, silence) as server, tomada.Client(server.address, 0.01, 0) as client:
        with pytest.raises(TimeoutError):
            client.request(b"x")
        client.close()
        assert [left > 10 for left in left_for(server.address)] == [True]


def fork(function, *args):
    """Run a function in a child process, and return its process id."""
    child = os.fork()
    if child:
        return child
    try:
        function(*args)
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.filterwarnings(FORKS)
@pytest.mark.parametrize("is_closed", [True, False], ids=["closed before", "closed after"])
def test_child_process_avoids_the_ports_of_its_parent(narrow, silent, is_closed):
    client = tomada.Client(silent.address, 0.01, 0)
    arguments = [b"x"] * (SIZE // 2), 20  # the server's queue has room for them
    begin, begun = os.pipe()

    def ask_in_the_child():
        os.read(begin, 1)
        with tomada.Client(silent.address, 0.01, 0) as own:
            own.request_many(*arguments, errors="return")

    with contextlib.closing(client):
        narrow.run(lambda: client.request_many(*arguments, errors="return"))
        parents = set(silent.asked())
        if is_closed:
            client.close()
        child = narrow.run(fork, ask_in_the_child)
    os.write(begun, b"x")  # the parent no longer has sockets at its ports
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(begin)
    os.close(begun)
    children = set(silent.asked())
    assert parents
    assert children
    assert not parents & children


def test_af_unix_name_is_used_once(unix):
    with Server(unix, echo) as server, tomada.Client(server.address, LONG) as client:
        client.request(b"x")
        ((_, sender),) = server.asked
    assert len(sender) > 16  # the kernel chooses among a million names


def age(inside):
    """Make all sockets look as if they had rested for long."""
    for connection in inside.idle:
        connection.used_at -= 2 * LONG


@pytest.mark.parametrize("way", ["request", "request_many"])
def test_sockets_that_rested_for_the_timeout_are_closed(inet, way):
    # Requests that were sent once each: sockets of retransmitted ones rest separately, for the
    # timeout.
    with Server(inet, echo) as server, tomada.Client(server.address, LONG, 0) as client:
        client.request(b"x")  # the first one opens what the process keeps
        inside, before = client._pool, open_descriptors()  # noqa: SLF001
        inside.watched = math.inf
        client.request_many([b"x"] * 512, 128)  # the queue has room for them
        assert open_descriptors() > before + 100
        for _ in range(160):
            age(inside)
            inside.sample_due = inside._trim_due = 0.0  # noqa: SLF001
            client.request(b"x") if way == "request" else client.request_many([b"x"])
        assert open_descriptors() <= before + pool.LEAST_IDLE + 1


def test_request_many_reuses_the_sockets_of_the_previous_call(inet, monkeypatch):
    monkeypatch.setattr(pool, "WATCHED", 0)
    with Server(inet, echo) as server, tomada.Client(server.address, LONG, 0) as client:
        for _ in range(10):
            client.request_many([b"x"] * 100, 32)
    assert len({sender for _, sender in server.asked}) <= 2 * 32 + 2 * pool.LEAST_IDLE


def test_sockets_not_needed_for_a_while_are_closed(inet, monkeypatch):
    monkeypatch.setattr(pool, "WATCHED", 0)
    with Server(inet, echo) as server, tomada.Client(server.address, LONG, 0) as client:
        inside = client._pool  # noqa: SLF001
        client.request_many([b"x"] * 512, 128)  # the queue has room for them
        assert len(inside.idle) > 100
        for _ in range(160):
            # As if that was long ago.
            inside._count_due = inside._trim_due = inside.sample_due = 0.0  # noqa: SLF001
            client.request(b"x")
        assert len(inside.idle) <= pool.LEAST_IDLE + 2


async def test_endpoint_request_keeps_no_sockets_that_rested_for_the_timeout(runner, inet):  # noqa: ARG001
    with Server(inet, echo) as server:
        async with open_endpoint(remote_addr=server.address) as endpoint:
            before = open_descriptors()
            await endpoint.request(b"x", timeout=LONG, retries=0)
            inside = endpoint._ports._pool  # noqa: SLF001
            inside.watched = math.inf
            for _ in range(4):
                requests = (endpoint.request(b"x", timeout=LONG, retries=0) for _ in range(64))
                await asyncio.gather(*requests)
            assert open_descriptors() > before + 60
            for _ in range(100):
                age(inside)
                await endpoint.request(b"x", timeout=LONG, retries=0)
            # Three more watch them all.
            assert open_descriptors() <= before + pool.LEAST_IDLE + 3


def test_sockets_of_unanswered_requests_are_closed_after_the_timeout(inet):
    with (
        Server(inet, lambda data: [data] * (data != b"lost")) as server,
        tomada.Client(server.address, 0.05, 0) as client,
    ):
        client.request_many([b"lost"] * 20, errors="return")

        def are_closed():
            with contextlib.suppress(TimeoutError):
                client.request_many([b"x"])
            return not client._pool._resting  # noqa: SLF001

        eventually(are_closed)


async def test_reply_that_arrives_while_the_loop_is_blocked_is_in_time(runner, inet, match):  # noqa: ARG001
    # Earlier datagrams do not match.
    with Server(inet, lambda data: [b"other"] * 20 * (match is same) + [data]) as server:
        async with open_endpoint(remote_addr=server.address) as endpoint:
            request = endpoint.request(b"x", timeout=0.05, retries=0, match=match)
            task = asyncio.ensure_future(request)
            while not server.asked:  # noqa: ASYNC110 - a thread fills the list
                await asyncio.sleep(0)
            end = time.monotonic() + 0.1
            eventually(lambda: endpoint.socket.pending or time.monotonic() > end)
            eventually(lambda: time.monotonic() > end)
            assert await task == b"x"


def test_reply_that_arrives_while_a_thread_is_blocked_is_in_time(inet):
    with Server(inet, lambda data: [b"other"] * 20 + [data]) as server:
        client = tomada.Client(server.address, LONG, match=same)
        connection = client._pool.take()  # noqa: SLF001
        connection.ask(b"x", time.monotonic() + LONG)
        eventually(lambda: len(server.asked) == 1 and connection._is_readable())  # noqa: SLF001
        server.end()
        assert connection.answer(0.0, lambda data: data == b"x") == b"x"
        client.close()


def test_sockets_rest_for_long_once_a_duplicate_was_seen(inet):
    with Server(inet, echo) as server, tomada.Client(server.address, LONG) as client:
        inside = client._pool  # noqa: SLF001
        client.request_many([b"x"] * 100)
        inside.adapt()
        assert inside.rest == inside.round_trip.spread
        inside.watched = math.inf
        client.request(b"x")
        inside.adapt()
        assert inside.rest == max(inside.round_trip.spread, pool.LEAST_REST)


def test_duplicate_that_arrives_before_the_next_request_is_not_its_reply(inet):
    with Server(inet, echo) as server, tomada.Client(server.address, LONG) as client:
        requests = Separate(client._pool, client._retry, client._address)  # noqa: SLF001
        replies = {}
        requests.answered = replies.update

        def ask(data):
            requests.start(data, time.monotonic())
            while requests.requests:
                requests.receive(requests.next_due())
                requests.make_due_attempts()

        ask({index: b"%d" % index for index in range(40)})
        for connection in requests._free:  # noqa: SLF001
            connection.used_at -= LONG
        # It arrives just after the look at all of them.
        requests._drop_late = lambda: None  # noqa: SLF001
        port = requests._free[0].getsockname()[1]  # noqa: SLF001
        data, peer = next(asked for asked in server.asked if asked[1][1] == port)
        server.sock.sendto(data, peer)
        ask({99: b"new"})
        requests.close()
    assert replies[99] == b"new"


async def test_endpoint_that_is_dropped_without_a_close_watches_nothing(runner, inet):  # noqa: ARG001
    with Server(inet, echo) as server:
        before = open_descriptors()
        endpoint = await open_endpoint(remote_addr=server.address)
        await endpoint.request(b"x", timeout=LONG)
        kept = [endpoint]
        del endpoint

        def drop():
            kept.clear()
            gc.collect()

        with pytest.warns(ResourceWarning):
            drop()
        assert open_descriptors() <= before + 1  # the hub of loops without a count of turns
