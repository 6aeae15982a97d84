"""ICMP messages about requests: none of them ends a request, unless refusals are raised."""

import errno
import math
import socket as std

import pytest

import tomada
from answering import LONG, Server, echo, same
from attacks import ICMP_ERRORS, send_icmp_errors
from support import eventually
from tomada.asyncio import open_endpoint

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

# It does not fit into a packet of 1280 bytes, the minimum MTU of IPv6.
TOO_LONG = b"q" * 1400
PROHIBITED = b"%d" % ICMP_ERRORS[std.AF_INET].index((3, 13))
HOSTS = {"127.0.0.1": std.AF_INET, "::1": std.AF_INET6}


class Kind:
    """A family of sockets with an address, for a server."""

    def __init__(self, host):
        self.family = HOSTS.get(host, std.AF_INET6 if ":" in host else std.AF_INET)
        self.host = host

    def address(self):
        return self.host, 0


class Telling:
    """A server that forges ICMP messages to clients: before its replies, after, or only those.

    The content of a request is the number of the kind of message to send.
    """

    def __init__(self, namespace, host, *, is_late=False, replies=True):
        self.kinds = range(len(ICMP_ERRORS[HOSTS[host]]))
        self.told = 0
        self._is_late = is_late
        self._replies = replies
        self._server = namespace.run(Server, Kind(host), self._answer)
        self.address = self._server.address

    def _answer(self, data):
        peer = self._server.asked[-1][1]
        number = int(data) % len(self.kinds)
        if self._is_late:
            self._server.sock.sendto(data, peer)
        send_icmp_errors(peer, self.address, 1, number)
        self.told += 1
        return [data] if self._replies and not self._is_late else []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.end()


def resting(pool):
    return [connection for _, connection in pool._resting]  # noqa: SLF001


def ask_each(address, questions, match, **options):
    with tomada.Client(address, LONG, match=match, **options) as client:
        return [client.request(question) for question in questions]


def ask_many(address, questions, match, **options):
    with tomada.Client(address, LONG, match=match, **options) as client:
        return client.request_many(questions, errors="return")


def ask_many_raising(address, questions, match, **options):
    with tomada.Client(address, LONG, match=match, **options) as client:
        return client.request_many(questions, 2)


def ask_in_tasks(address, questions, match, **options):
    async def ask():
        async with open_endpoint(remote_addr=address) as endpoint:
            return [
                await endpoint.request(question, timeout=LONG, match=match, **options)
                for question in questions
            ]

    return tomada.asyncio.run(ask())


WAYS = [ask_each, ask_many, ask_many_raising, ask_in_tasks]


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def way(request):
    return request.param


@pytest.fixture
def alone(network):
    """Provide a namespace in which ICMP messages disturb nothing else."""
    return network.namespace()


@pytest.mark.parametrize("host", HOSTS)
def test_icmp_messages_of_any_kind_do_not_end_a_request(alone, way, match, host):
    with Telling(alone, host) as server:
        questions = [b"%d" % number for number in server.kinds]
        assert alone.run(way, server.address[:2], questions, match) == questions


@pytest.mark.parametrize("host", HOSTS)
def test_icmp_message_after_the_reply_does_not_end_the_next_request(alone, way, match, host):
    with Telling(alone, host, is_late=True) as server:
        questions = [b"%d" % number for number in server.kinds] * 5
        assert alone.run(way, server.address[:2], questions, match) == questions


def test_retry_refused_false_raises_only_refusals(alone, way, match):
    kinds = ICMP_ERRORS[std.AF_INET]
    others = [b"%d" % index for index, kind in enumerate(kinds) if kind not in {(3, 3), (3, 2)}]
    refusal = [b"%d" % kinds.index((3, 3))]
    with Telling(alone, "127.0.0.1") as server:
        options = {"retry_refused": False}
        assert alone.run(lambda: way(server.address, others, match, **options)) == others

        def be_refused():
            if way is ask_many:
                return way(server.address, refusal, match, **options)
            with pytest.raises(ConnectionRefusedError) as caught:
                way(server.address, refusal, match, **options)
            return [caught.value]

        assert [type(result) for result in alone.run(be_refused)] == [ConnectionRefusedError]


def test_last_icmp_message_is_the_cause_of_the_timeout(alone, match):
    with Telling(alone, "127.0.0.1", replies=False) as server:

        def ask():
            with tomada.Client(server.address, 0.1, match=match) as client:
                with pytest.raises(TimeoutError, match="4 attempts") as caught:
                    client.request(PROHIBITED)
                results = client.request_many([PROHIBITED] * 2, errors="return")
            return [str(error.__cause__) for error in (caught.value, *results)]

        assert alone.run(ask) == ["[Errno 113] No route to host"] * 3


def test_late_icmp_error_leaks_no_socket(alone, match):
    with Telling(alone, "127.0.0.1", is_late=True) as server:

        def ask():
            with tomada.Client(server.address, 0.3, match=match) as client:
                for number in range(200):
                    assert client.request_many([PROHIBITED]) == [PROHIBITED]
                    eventually(lambda told=number + 1: server.told >= told)
                pool = client._pool  # noqa: SLF001 - its sockets are not public
                assert pool._all <= {*pool.idle, *resting(pool)}  # noqa: SLF001
                assert pool.watched < math.inf  # an error is not a duplicate
                return len(pool._all)  # noqa: SLF001

        # The resting ones, and not one more for each request.
        assert alone.run(ask) <= (100 if match is None else 1)


def test_exception_while_a_socket_is_emptied_does_not_leak_it(inet, monkeypatch):
    with Server(inet, echo) as server, tomada.Client(server.address, LONG, match=same) as client:
        client.request(b"x")
        pool = client._pool  # noqa: SLF001 - its sockets are not public
        (connection,) = pool.idle
        monkeypatch.setattr(pool, "look_for_duplicate", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            client.request_many([b"x"])
        assert resting(pool) == [connection]


# Requests that are too long for the path


@pytest.fixture
def narrow(network):
    """Provide namespaces of a client and a server, with a router whose far link has a small MTU."""
    left, router, right = (network.namespace() for _ in range(3))
    for first, device, second, other_device, net in (
        (left, "left", router, "near", 1),
        (router, "far", right, "right", 2),
    ):
        ends = [
            [f"10.78.{net}.{host}/24", f"fd78:{net}::{host}/64", f"fe80::{host}/64"]
            for host in (1, 2)
        ]
        first.join(device, second, other_device, *ends)
    for namespace, device in ((router, "far"), (right, "right")):
        namespace.command("ip", "link", "set", device, "mtu", "1280")
    for option in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        router.set(option, 1)
    left.command("ip", "route", "add", "default", "via", "10.78.1.2")
    right.command("ip", "route", "add", "default", "via", "10.78.2.1")
    left.command("ip", "-6", "route", "add", "default", "via", "fd78:1::2")
    right.command("ip", "-6", "route", "add", "default", "via", "fd78:2::1")
    for host, here in (("10.78.2.2", "10.78.1.1"), ("fd78:2::2", "fd78:1::1")):
        with left.bound(std, (here, 0)) as sock, right.bound(std, (host, 0)) as other:
            sock.sendto(b"are you there?", other.getsockname())
            other.sendto(*other.recvfrom(100))
            sock.recv(100)
    return left, right


@pytest.mark.parametrize("host", ["10.78.2.2", "fd78:2::2"])
def test_request_too_long_for_the_path_is_resent_in_fragments(narrow, way, match, host):
    left, right = narrow
    server = right.run(Server, Kind(host), echo)
    with server:
        questions = [b"%d" % number + TOO_LONG for number in range(5)]
        assert left.run(way, server.address[:2], [*questions, b"short"], match) == [
            *questions,
            b"short",
        ]


def test_request_too_long_for_the_path_is_not_resent_without_retries(narrow, match):
    left, right = narrow
    with right.run(Server, Kind("10.78.2.2"), echo) as server:

        def ask():
            with tomada.Client(server.address, 0.2, retries=0, match=match) as client:
                with pytest.raises(TimeoutError, match="1 attempt in") as caught:
                    client.request(TOO_LONG)
                assert caught.value.__cause__.errno == errno.EMSGSIZE
            with tomada.Client(server.address, LONG, retries=0, match=match) as client:
                return client.request(TOO_LONG)

        assert left.run(ask) == TOO_LONG


# Requests that this machine cannot send


@pytest.mark.parametrize(
    ("route", "number"),
    [(None, errno.ENETUNREACH), ("unreachable", errno.EHOSTUNREACH), ("prohibit", errno.EACCES)],
)
def test_request_without_a_route_raises_at_once(alone, match, route, number):
    if route:
        alone.command("ip", "route", "add", route, "10.79.0.0/16")

    def ask():
        with tomada.Client(("10.79.0.1", 9), LONG, match=match) as client:
            with pytest.raises(OSError, match=r"10\.79\.0\.1") as caught:
                client.request(b"x")
            results = client.request_many([b"x"] * 5, 2, errors="return")
        return {caught.value.errno, *(result.errno for result in results)}

    assert alone.run(ask) == {number}


def test_endpoint_request_raises_the_reason_why_it_cannot_be_sent(alone):
    alone.command("ip", "address", "add", "10.79.0.1/24", "dev", "lo")

    async def ask():
        async with open_endpoint(remote_addr=("10.79.0.2", 9)) as endpoint:
            alone.command("ip", "route", "replace", "unreachable", "10.79.0.2/32", "table", "local")
            for _ in range(3):
                with pytest.raises(OSError, match="No route to host"):
                    await endpoint.request(b"x", timeout=LONG, match=same)

    alone.run(tomada.asyncio.run, ask())
