"""Socket options are validated once, in the same way, wherever a socket is opened."""

import asyncio
import dataclasses

import pytest

import tomada
from tomada import socket
from tomada._socket_options import SocketOptions
from tomada.asyncio import create_datagram_endpoint, open_endpoint

ADDRESS = ("127.0.0.1", 9)


def make_server(**options):
    tomada.Server(("127.0.0.1", 0), print, **options)


def make_client(**options):
    tomada.Client(ADDRESS, **options).close()


def make_endpoint(**options):
    open_endpoint(("127.0.0.1", 0), **options)


def make_transport(**options):
    async def main():
        loop = asyncio.get_running_loop()
        where = ("127.0.0.1", 0)
        await create_datagram_endpoint(loop, asyncio.DatagramProtocol, where, **options)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (make_server, {"spin": -1}, ValueError, "spin must be .* 0 or more, .* not -1"),
        (make_client, {"spin": -1}, ValueError, "spin must be .* 0 or more, .* not -1"),
        (make_server, {"coalesce": -1}, ValueError, "coalesce must be .* up to 60, not -1"),
        (make_server, {"spin": "1"}, TypeError, "spin must be a number of seconds, not '1'"),
        (make_client, {"spin": "1"}, TypeError, "spin must be a number of seconds, not '1'"),
        (make_server, {"rcvbuf": "1M"}, TypeError, "rcvbuf must be a number of bytes, not '1M'"),
        (make_server, {"rcvbuf": -1}, ValueError, "rcvbuf must be at least 0 bytes, not -1"),
        (make_server, {"rcvbuf": 2**31}, ValueError, "rcvbuf must be at most 2147483647 bytes"),
        (make_endpoint, {"pacing": "1M"}, TypeError, "pacing must be a number of bytes, not '1M'"),
        (make_transport, {"pacing": 0}, ValueError, "pacing must be at least 1 byte per .*, not 0"),
        (make_server, {"pacing": 0}, ValueError, "pacing must be at least 1 byte per .*, not 0"),
        (make_server, {"groups": "239.1.1.1"}, TypeError, r"write \['239\.1\.1\.1'\]"),
        (make_server, {"guard": 5}, TypeError, r"guard must be a tomada\.Guard, not 5"),
        (make_endpoint, {"guard": 5}, TypeError, r"guard must be a tomada\.Guard, not 5"),
        (make_transport, {"guard": 5}, TypeError, r"guard must be a tomada\.Guard, not 5"),
    ],
)
def test_socket_options_that_are_invalid_are_rejected_at_once(make, options, error, message):
    with pytest.raises(error, match=message):
        make(**options)


def test_socket_options_are_applied():
    guard = tomada.Guard(deny=["192.0.2.1"])
    groups = [("239.255.3.4", "lo")]
    options = SocketOptions(spin=1e-3, rcvbuf=100_000, pacing=5000, guard=guard, groups=groups)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", 0))
        options.apply(sock)
        assert (sock.gro, sock.spin, sock.guard) == (True, 1e-3, guard)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 200_000
        assert sock.pacing == 5000
        sock.leave_group("239.255.3.4", "lo")  # fails if the group was not joined


@pytest.mark.parametrize("is_given", [False, True])
def test_socket_options_limit_the_rate_of_an_endpoint(is_given):
    async def main():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            where = {"sock": sock} if is_given else {"local_addr": ("127.0.0.1", 0)}
            async with open_endpoint(**where, pacing=123_456) as endpoint:
                shown = endpoint.get_extra_info("socket")
                return shown.getsockopt(socket.SOL_SOCKET, socket.SO_MAX_PACING_RATE)

    assert asyncio.run(main()) == 123_456


@pytest.mark.parametrize(("gro", "is_on"), [(None, True), (True, True), (False, False)])
def test_socket_options_coalesce_by_default(gro, is_on):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        SocketOptions(gro=gro).apply(sock)
        assert sock.gro is is_on


def test_socket_options_are_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SocketOptions().spin = 1.0
