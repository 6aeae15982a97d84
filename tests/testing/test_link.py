"""A link on real sockets: what it does to datagrams, and what it says about that."""

import asyncio
import contextlib
import gc
import math
import os
import socket as std
import subprocess
import sys
import time
from pathlib import Path

import pytest

from linked import assert_balanced, plain, until
from skips import NO_IPV6
from support import FORKS
from tomada._testing.link import _resolve
from tomada.asyncio import open_endpoint
from tomada.testing import Arrival, GilbertElliott, Impairments, impaired, network


@pytest.fixture
def server():
    with plain() as sock:
        yield sock


@pytest.fixture
def client():
    with plain() as sock:
        yield sock


def test_a_link_without_impairments_passes_everything_in_order(server, client):
    datagrams = [b"%d" % number * (number % 7) for number in range(100)]
    with impaired(server.getsockname()) as link:
        for data in datagrams:
            client.sendto(data, link.address)
        received = [server.recvfrom(1000) for _ in datagrams]
        assert [data for data, _ in received] == datagrams
        (outside,) = {address for _, address in received}
        assert link.clients == [(0, client.getsockname(), outside)]
        server.sendto(b"reply", outside)
        assert client.recvfrom(1000) == (b"reply", link.address)
        assert len(link.log) == len(datagrams) + 1
    stats = link.stats
    assert (stats.to_server.sent, stats.to_client.sent) == (len(datagrams), 1)
    assert_balanced(stats)


def test_each_client_has_its_own_port(server):
    with contextlib.ExitStack() as stack, impaired(server.getsockname()) as link:
        clients = [stack.enter_context(plain()) for _ in range(20)]
        outside = {}
        for number, client in enumerate(clients):
            client.sendto(b"%d" % number, link.address)
            data, address = server.recvfrom(1000)
            outside[address] = data
        assert len(outside) == len(clients)
        for address, data in outside.items():
            server.sendto(data, address)
        assert [client.recv(1000) for client in clients] == [b"%d" % n for n in range(20)]
        assert [item.outside for item in link.clients] == list(outside)


def test_a_script_decides_about_both_directions_in_turn(server, client):
    with impaired(server.getsockname(), script=["pass", "drop", None, "duplicate"]) as link:
        for expected in (b"first", b"second"):
            client.sendto(expected, link.address)
            data, outside = server.recvfrom(1000)
            assert data == expected
            server.sendto(data, outside)
            replies = 1 if expected == b"first" else 2
            until(lambda replies=replies: link.stats.to_client.received == replies)
        assert [client.recv(1000) for _ in range(2)] == [b"second"] * 2
    fates = [(fate.direction, fate.dropped, fate.copies) for fate in link.log]
    assert fates == [
        ("to_server", None, 1),
        ("to_client", "scripted", 0),
        ("to_server", None, 1),
        ("to_client", None, 2),
    ]


def test_a_direction_has_its_own_impairments_and_script(server, client):
    to_client = Impairments(script=["drop", "truncate 2, delay 1ms"])
    with impaired(server.getsockname(), loss=1.0, to_client=to_client, script=["pass"] * 2) as link:
        for number in range(3):
            client.sendto(b"%d" % number, link.address)
        outside = {server.recvfrom(1000)[1] for _ in range(2)}.pop()
        for data in (b"lost", b"cut off", b"complete"):
            server.sendto(data, outside)
        assert {client.recv(1000), client.recv(1000)} == {b"cu", b"complete"}
        until(lambda: link.stats.to_server.received == 3)
    assert link.stats.to_server.lost == 1
    assert (link.stats.to_client.scripted, link.stats.to_client.truncated) == (1, 1)


def test_a_function_sees_each_datagram_and_decides(server, client):
    seen = []

    def script(arrival):
        seen.append(arrival)
        return "drop" if arrival.data == b"bad" else None

    with impaired(server.getsockname(), script=script) as link:
        for data in (b"good", b"bad", b"also good"):
            client.sendto(data, link.address)
        assert [server.recv(1000) for _ in range(2)] == [b"good", b"also good"]
    assert seen[1] == Arrival("to_server", 0, 1, b"bad")
    assert [item.index for item in seen] == [0, 1, 2]


@pytest.mark.parametrize("wrong", [ZeroDivisionError("x"), "lose", 7])
def test_what_a_function_does_wrong_is_raised_at_the_end(server, client, wrong):
    def script(arrival):
        if arrival.index == 0:
            if isinstance(wrong, Exception):
                raise wrong
            return wrong
        return "pass"

    link = impaired(server.getsockname(), script=script)
    expected = {str: ValueError, int: TypeError}.get(type(wrong), ZeroDivisionError)
    link.start()
    client.sendto(b"passes", link.address)
    assert server.recv(1000) == b"passes"
    with pytest.raises(expected):
        link.close()
    link.close()  # once is enough


def test_an_exception_of_the_block_is_not_hidden_by_one_of_a_function(server, client):
    def script(_):
        raise ZeroDivisionError

    link = impaired(server.getsockname(), script=script)
    link.start()
    client.sendto(b"x", link.address)
    server.recv(1000)
    link.__exit__(LookupError, LookupError(), None)


def test_bursts_of_a_share_and_a_length():
    model = GilbertElliott.bursts(loss=0.2, length=5)
    assert (model.p, model.r) == (pytest.approx(0.05), 0.2)


def test_reordering_shows_at_the_server(server, client):
    with impaired(server.getsockname(), script=["reorder"]) as link:
        for number in range(4):
            client.sendto(b"%d" % number, link.address)
        assert [server.recv(10) for _ in range(4)] == [b"1", b"0", b"2", b"3"]


def test_a_rate_with_a_queue_drops_what_does_not_fit(server, client):
    # A datagram takes a minute, so the machine's speed does not matter.
    with impaired(server.getsockname(), rate=8000 / 60, queue=2) as link:
        for _ in range(5):
            client.sendto(b"x" * 1000, link.address)
        until(lambda: link.stats.to_server.received == 5)
        assert (link.stats.to_server.queued, link.stats.to_server.queue_full) == (3, 2)
    assert link.stats.to_server.cut == 3
    assert_balanced(link.stats)


def test_an_mtu_counts_headers(server, client):
    with impaired(server.getsockname(), mtu=528) as link:
        client.sendto(b"x" * 501, link.address)
        client.sendto(b"x" * 500, link.address)
        assert len(server.recv(1000)) == 500
    assert link.stats.to_server.too_long == 1


def test_nothing_arrives_between_cut_and_heal(server, client):
    with impaired(server.getsockname()) as link:
        client.sendto(b"before", link.address)
        _, outside = server.recvfrom(100)
        link.cut("to_server")
        client.sendto(b"cut", link.address)
        until(lambda: link.stats.to_server.cut == 1)
        server.sendto(b"passes", outside)
        assert client.recv(100) == b"passes"
        link.cut()
        server.sendto(b"cut", outside)
        until(lambda: link.stats.to_client.cut == 1)
        link.heal()
        client.sendto(b"after", link.address)
        assert server.recv(100) == b"after"


def test_rebind_changes_the_port_that_the_server_sees(server, client):
    with impaired(server.getsockname()) as link:
        client.sendto(b"1", link.address)
        _, old = server.recvfrom(100)
        link.rebind()
        client.sendto(b"2", link.address)
        _, new = server.recvfrom(100)
        assert new != old
        server.sendto(b"to the old port", old)
        until(lambda: link.stats.to_client.rebound == 1)
        server.sendto(b"to the new port", new)
        assert client.recv(100) == b"to the new port"
        assert link.clients == [(0, client.getsockname(), new)]


def test_impairments_change_while_it_runs(server, client):
    with impaired(server.getsockname(), loss=1.0) as link:
        client.sendto(b"lost", link.address)
        until(lambda: link.stats.to_server.lost == 1)
        link.change(loss=0.0, script=["duplicate"])
        client.sendto(b"twice", link.address)
        assert [server.recv(100) for _ in range(2)] == [b"twice"] * 2
        link.change(to_server=Impairments(mtu=30))
        assert (link.to_server.mtu, link.to_client.mtu) == (30, None)
        client.sendto(b"too long", link.address)
        until(lambda: link.stats.to_server.too_long == 1)


def test_a_delay_holds_back_for_at_least_as_long(server, client):
    with impaired(server.getsockname(), delay=0.02, jitter=0.01) as link:
        for _ in range(20):
            start = time.monotonic()
            client.sendto(b"x", link.address)
            server.recv(100)
            assert time.monotonic() - start >= link.log[-1].delay
    assert all(0.01 <= fate.delay <= 0.03 for fate in link.log)


def test_a_server_that_is_not_there_is_counted(client):
    with plain() as gone:
        address = gone.getsockname()
    with impaired(address) as link:

        def refused():
            client.sendto(b"x", link.address)
            return link.stats.server_icmp_errors > 0

        until(refused)
    assert_balanced(link.stats)


def test_ipv6(speaks_ipv6):
    if not speaks_ipv6:
        pytest.skip(NO_IPV6)
    with (
        plain(std.AF_INET6, ("::1", 0)) as server,
        plain(std.AF_INET6, ("::1", 0)) as client,
        impaired(server.getsockname(), mtu=1280) as link,
    ):
        assert link.address[0] == "::1"
        client.sendto(b"x" * 1233, link.address)
        client.sendto(b"x" * 1232, link.address)
        data, outside = server.recvfrom(2000)
        server.sendto(data, outside)
        assert client.recvfrom(2000)[1] == link.address


def test_listening_everywhere_replies_come_from_the_asked_address(server):
    with impaired(server.getsockname(), listen=("0.0.0.0", 0)) as link, plain() as client:  # noqa: S104
        asked = ("127.0.0.2", link.address[1])
        client.connect(asked)
        client.send(b"x")
        _, outside = server.recvfrom(100)
        server.sendto(b"reply", outside)
        assert client.recvfrom(100) == (b"reply", asked)


def test_async_with(server):
    async def main():
        async with (
            impaired(server.getsockname()) as link,
            open_endpoint(remote_addr=link.address) as endpoint,
        ):
            endpoint.send(b"x")
            data, outside = await asyncio.to_thread(server.recvfrom, 100)
            server.sendto(data, outside)
            return await endpoint.recv()

    assert asyncio.run(main())[0] == b"x"


def test_the_log_keeps_the_latest(server, client):
    with impaired(server.getsockname(), log_size=3) as link:
        for _ in range(5):
            client.sendto(b"x", link.address)
            server.recv(10)
        assert [fate.index for fate in link.log] == [2, 3, 4]
        assert link.stats.to_server.received == 5


def names_of_threads():
    """Return the names of the threads of this process, Rust's included."""
    names = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            names.append((task / "comm").read_text().strip())
    return names


def test_closing_ends_the_thread_and_frees_the_port(server, client):
    with impaired(server.getsockname(), delay=1000) as link:
        client.sendto(b"x", link.address)
        until(lambda: link.stats.to_server.queued == 1)
        address = link.address
        assert "tomada-link" in names_of_threads()
    link.close()
    until(lambda: "tomada-link" not in names_of_threads())
    with plain(address=address):
        pass  # the port is free
    assert link.stats.to_server.cut == 1
    with pytest.raises(RuntimeError, match="once"):
        link.start()


def test_a_link_that_is_not_started_says_so(server):
    link = impaired(server.getsockname())
    with pytest.raises(RuntimeError, match="with impaired"):
        link.address  # noqa: B018
    assert "not started" in repr(link)
    link.close()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"loss": 1.5}, "loss must be a share from 0 to 1, not 1.5"),
        ({"delay": -1}, "delay must be a number of seconds from 0 up, not -1"),
        ({"jitter": math.nan}, "jitter must be a number of seconds"),
        ({"rate": 0}, "rate must be a number of bits per second greater than 0, not 0"),
        ({"queue": 5}, "queue needs a rate"),
        ({"script": ["pass", "lose"]}, "a script's step must be"),
        ({"seed": -1}, "seed must be from 0"),
        ({"seed": 1 << 64}, "seed must be from 0"),
        ({"loss": GilbertElliott(0.1, 2)}, "r must be a share"),
        ({"mtu": -1}, "mtu must be a number from 0"),
        ({"rate": 1e6, "queue": 1 << 64}, "queue must be a number from 0"),
        ({"log_size": -1}, "log_size must be at least 0, not -1"),
    ],
)
def test_wrong_options_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        impaired(("127.0.0.1", 1), **options)


@pytest.mark.parametrize("opens", [impaired, lambda _, **options: network(**options)])
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"script": "drop"}, "script must be a list of steps, or a function, not 'drop'"),
        ({"script": iter(["drop"])}, "script must be a list of steps"),
        ({"script": {"drop"}}, "script must be a list of steps"),
        ({"script": [1]}, "a script's step must be a str or None, not 1"),
        ({"to_client": Impairments}, "to_client must be Impairments, not <class"),
        ({"loss": "5%"}, "loss must be a number, not '5%'"),
        ({"loss": None}, "loss must be a number, not None"),
        ({"delay": "1s"}, "delay must be a number, not '1s'"),
        ({"mtu": 1.5}, "mtu must be a number, not 1.5"),
        ({"seed": "a"}, "seed must be an int, not 'a'"),
        ({"log_size": 1.5}, "log_size must be a number of fates, not 1.5"),
    ],
)
def test_wrong_types_are_refused(opens, options, text):
    with pytest.raises(TypeError, match=text):
        opens(("127.0.0.1", 1), **options)


@pytest.mark.parametrize("upstream", [5, None, b"x", "/a/path", ("127.0.0.1",)])
def test_only_ip_addresses_have_links(upstream):
    with pytest.raises(TypeError, match="address of IPv4 or IPv6"), impaired(upstream):
        pass


def test_a_server_has_a_port():
    with pytest.raises(ValueError, match="needs a port, not 0"), impaired(("127.0.0.1", 0)):
        pass


def test_an_address_keeps_its_scope():
    assert _resolve(("fe80::1", 5, 0, 7)) == (std.AF_INET6, ("fe80::1", 5, 0, 7))
    assert _resolve(("::1", 5)) == (std.AF_INET6, ("::1", 5, 0, 0))


@pytest.mark.parametrize("length", [0.5, math.nan, math.inf])
def test_bursts_have_a_length(length):
    with pytest.raises(ValueError, match="length at least 1"):
        GilbertElliott.bursts(0.1, length)


def test_bursts_cannot_be_denser_than_their_length():
    with pytest.raises(ValueError, match="bursts"):
        GilbertElliott.bursts(0.9, 1)


FORGOTTEN = """
import socket
import time
from tomada.testing import impaired

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.bind(("127.0.0.1", 0))
    server.settimeout(30)
    link = impaired(server.getsockname(), script=lambda _: time.sleep(0.001))
    link.start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for _ in range(200):
            client.sendto(b"x", link.address)
    server.recv(10)
print("end")
"""


def test_a_program_ends_although_a_link_still_calls_its_function():
    ended = subprocess.run(
        [sys.executable, "-c", FORGOTTEN], capture_output=True, text=True, check=False, timeout=60
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "end\n", "")


@pytest.mark.filterwarnings(FORKS)
def test_a_forked_child_closes_its_copy_and_the_link_continues(server, client):
    with impaired(server.getsockname()) as link:
        client.sendto(b"before", link.address)
        assert server.recv(100) == b"before"
        child = os.fork()
        if child == 0:
            link.stats  # noqa: B018 - it must not wait for a thread of the parent
            link.rebind()
            link.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        client.sendto(b"after", link.address)
        assert server.recv(100) == b"after"


@pytest.mark.filterwarnings(FORKS)
def test_the_link_of_a_parent_leaves_those_of_a_child_alone(server, client):
    link = impaired(server.getsockname())
    link.start()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with impaired(server.getsockname()) as other:
                # Its thread may have the stack that the first link's has in the parent.
                del link
                gc.collect()
                client.sendto(b"from the child", other.address)
                assert server.recv(100) == b"from the child"
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    link.close()


def test_a_function_may_close_its_link(server, client):
    link = impaired(server.getsockname(), script=lambda _: link.close())
    link.start()
    client.sendto(b"x", link.address)
    until(lambda: "tomada-link" not in names_of_threads())
    link.close()
    with plain(address=link.address):
        pass  # the port is free


def test_many_rebinds_leave_few_ports_open(server, client):
    before = len(list(Path("/proc/self/fd").iterdir()))
    with impaired(server.getsockname()) as link:
        for _ in range(50):
            link.rebind()
            client.sendto(b"x", link.address)
            server.recv(10)
        assert len(list(Path("/proc/self/fd").iterdir())) < before + 25


def test_a_cut_empties_the_queue_of_the_rate(server, client):
    with impaired(server.getsockname(), rate=8000 / 60, queue=0) as link:
        client.sendto(b"x" * 1000, link.address)
        until(lambda: link.stats.to_server.queued == 1)
        link.cut()
        link.heal()
        client.sendto(b"x" * 1000, link.address)
        until(lambda: link.stats.to_server.received == 2)
        assert (link.stats.to_server.queued, link.stats.to_server.queue_full) == (1, 0)
