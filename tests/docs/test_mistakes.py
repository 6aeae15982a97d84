"""Common mistakes, and whether the message says what to do."""

import asyncio
import errno
import logging
import os
import socket as std

import pytest

import tomada
from skips import NO_ROOT
from tomada import socket
from tomada.asyncio import Client, open_endpoint

DISCARD = ("127.0.0.1", 9)


def answer(data, address):
    del address
    return data


def udp(family=socket.AF_INET):
    return socket.socket(family, socket.SOCK_DGRAM)


@pytest.fixture
def sock():
    with udp() as sock:
        yield sock


# Bytes


@pytest.mark.parametrize("call", ["send_many", "sendto"])
def test_str_instead_of_bytes(sock, call):
    data = ["olá"] if call == "send_many" else "olá"
    with pytest.raises(TypeError, match="a bytes-like object is required, not 'str'"):
        getattr(sock, call)(data, DISCARD)


def test_one_datagram_instead_of_many(sock):
    with pytest.raises(TypeError, match=r"takes an iterable of datagrams; for one there is send\("):
        sock.send_many(b"hello", DISCARD)


def test_datagram_that_is_too_long(sock):
    limit = "split it: a datagram carries at most 65,507 bytes over IPv4"
    with pytest.raises(OSError, match=rf"datagram 1 to .*; 1 sent before it\): {limit}"):
        sock.send_many([b"short", bytes(70_000)], DISCARD)
    with tomada.Client(DISCARD) as client, pytest.raises(OSError, match=limit):
        client.request(bytes(70_000))


def test_handler_that_returns_str(sock, caplog):
    with tomada.Server(("127.0.0.1", 0), lambda *_: "text") as server:
        sock.sendto(b"x", server.address)  # replied before it has stopped
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "not str; encode() it" in str(record.exc_info[1])


# Addresses


@pytest.mark.parametrize("make", [tomada.Client, lambda at: tomada.Server(at, answer).start()])
@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            "127.0.0.1:1234",
            r"must be a pair, \('127\.0\.0\.1', 1234\), .* write '\./127\.0\.0\.1:1234'",
        ),
        ("localhost:1234", r"must be a pair, \('localhost', 1234\)"),
        ("[::1]:1234", r"must be a pair, \('::1', 1234\)"),
        ("127.0.0.1", r"must be a pair, \('127\.0\.0\.1', port\)"),
        ("::1", r"must be a pair, \('::1', port\)"),
        ("", "must not be empty"),
        (("127.0.0.1",), r"must be \(host, port\), or an AF_UNIX path"),
        (1234, r"must be \(host, port\), or an AF_UNIX path"),
        (("127.0.0.1", "1234"), "port must be an int, not '1234'"),
    ],
)
def test_address_in_a_wrong_format(make, address, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make(address)


@pytest.mark.parametrize("name", ["x:y", "socket", "@name", "a/b:1"])
def test_path_that_looks_like_an_address(name):
    with tomada.Client(name) as client:
        assert client.address == name


def test_unknown_host():
    with pytest.raises(std.gaierror, match=r"no-such-host\.invalid"):
        tomada.Client(("no-such-host.invalid", 1234))
    with pytest.raises(std.gaierror, match=r"no-such-host\.invalid"):
        tomada.Server(("no-such-host.invalid", 1234), answer).start()


def test_bind_to_a_taken_port(sock):
    sock.bind(("127.0.0.1", 0))
    with pytest.raises(OSError, match=r"127\.0\.0\.1:.*uses this address: choose another port"):
        tomada.Server(sock.getsockname(), answer).start()


def test_bind_to_another_machines_address():
    with pytest.raises(OSError, match=r"198\.51\.100\.1:1234 \(this machine does not have this"):
        tomada.Server(("198.51.100.1", 1234), answer).start()


@pytest.mark.thread_unsafe(reason="it drops a privilege")
@pytest.mark.skipif(os.geteuid() != 0, reason=f"{NO_ROOT} give up a privilege")
def test_bind_to_a_privileged_port():
    os.seteuid(65534)
    try:
        with pytest.raises(PermissionError, match=r"127\.0\.0\.1:80 .*choose a higher one"):
            tomada.Server(("127.0.0.1", 80), answer).start()
    finally:
        os.seteuid(0)


def test_send_without_an_address(sock):
    with pytest.raises(OSError, match="pass an address, or connect the socket"):
        sock.send_many([b"x"])


def test_broadcast_without_so_broadcast(sock):
    with pytest.raises(PermissionError, match="to broadcast, set SO_BROADCAST first"):
        sock.send_many([b"x"], ("255.255.255.255", 9))


def test_request_without_a_server():
    message = r"no reply from 127\.0\.0\.1:9: 2 attempts in"
    with (
        tomada.Client(DISCARD, timeout=1, retries=1) as client,
        pytest.raises(TimeoutError, match=message),
    ):
        client.request(b"x")


# Groups and options


@pytest.mark.parametrize(
    ("group", "interface", "message"),
    [
        ("192.0.2.1", None, r"is not a multicast group \(224\.0\.0\.0/4"),
        ("239.1.1.1", "no-such", 'no interface "no-such"'),
        ("ff02::1", None, "the group and the socket belong to different address families"),
        ("239.1.1.1", "127.0.0.77x", "no interface"),
    ],
)
def test_join_group_that_cannot_be_joined(sock, group, interface, message):
    with pytest.raises((OSError, ValueError), match=message):
        sock.join_group(group, interface)


def test_buffer_smaller_than_requested(sock):
    with pytest.warns(RuntimeWarning, match=r"net\.core\.rmem_max"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 30)


def test_gro_on_a_socket_that_is_not_udp():
    with udp(socket.AF_UNIX) as sock, pytest.raises(OSError, match="gro needs AF_INET or AF_INET6"):
        sock.gro = True


# asyncio


ADDRESS_NEEDED = r"^send\(\) needs an address: pass one, or open the endpoint with a remote_addr"
NOT_OPEN = r"not open yet: write async with open_endpoint\(\.\.\.\) as endpoint"


def test_endpoint_that_is_not_awaited():
    with pytest.raises(AttributeError, match=rf"{NOT_OPEN}.* before endpoint\.send"):
        open_endpoint(("127.0.0.1", 0)).send(b"x", DISCARD)


def test_endpoint_receive_before_it_is_open():
    async def main():
        async for _data, _address in open_endpoint(("127.0.0.1", 0)):
            pytest.fail("it is not open")

    with pytest.raises(TypeError, match=rf"{NOT_OPEN}.* before async for"):
        asyncio.run(main())


def test_client_in_a_with_statement():
    message = r"^a client needs async with: write async with Client\(\.\.\.\) as client$"
    with pytest.raises(TypeError, match=message), Client(DISCARD):
        pytest.fail("it is not open")


def test_endpoint_in_a_with_statement():
    message = r"needs async with: write async with open_endpoint\(\.\.\.\) as endpoint$"
    with pytest.raises(TypeError, match=message), open_endpoint(("127.0.0.1", 0)):
        pytest.fail("it is not open")


@pytest.mark.parametrize("where", ["local_addr", "remote_addr"])
def test_endpoint_unknown_host(where):
    addresses = {"local_addr": ("127.0.0.1", 0)} | {where: ("no-such-host.invalid", 1234)}

    async def main():
        message = r"^\[Errno -?\d+\] [^:]+: no-such-host\.invalid$"
        with pytest.raises(std.gaierror, match=message):
            await open_endpoint(**addresses)

    asyncio.run(main())


@pytest.mark.parametrize("where", ["local_addr", "remote_addr"])
@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1234", r"must be a pair, \('127\.0\.0\.1', 1234\)"),
        (("127.0.0.1",), r"must be \(host, port\), or an AF_UNIX path"),
        ("/run/it", r"'/run/it' is a path: pass family=socket\.AF_UNIX"),
    ],
)
def test_endpoint_with_an_invalid_address(where, address, message):
    async def main():
        with pytest.raises((TypeError, ValueError), match=message):
            await open_endpoint(**{where: address})

    asyncio.run(main())


def test_endpoint_on_a_taken_port(sock):
    sock.bind(("127.0.0.1", 0))

    async def main():
        message = r"127\.0\.0\.1:.*another socket uses this address: choose another port"
        with pytest.raises(OSError, match=message):
            await open_endpoint(sock.getsockname())

    asyncio.run(main())


def test_endpoint_entered_without_async():
    async def main():
        opening = open_endpoint(("127.0.0.1", 0))
        async with opening as endpoint:
            for wrong in (opening, endpoint):
                with pytest.raises(TypeError, match="write async with open_endpoint"), wrong:
                    pytest.fail("it is not entered")
            assert not endpoint.is_closing()

    asyncio.run(main())


@pytest.mark.parametrize("where", ["local_addr", "remote_addr"])
def test_endpoint_datagram_that_is_too_long(sock, where):
    sock.bind(("127.0.0.1", 0))
    to = sock.getsockname()
    host, port = to
    match = rf"^\[Errno {errno.EMSGSIZE}\] Message too long: {host}:{port} \(split it: a datagram"

    async def main():
        target = {"local_addr": ("127.0.0.1", 0), "remote_addr": to}[where]
        async with open_endpoint(**{where: target}) as endpoint:
            addr = to if where == "local_addr" else None
            with pytest.raises(OSError, match=match):
                endpoint.send(bytes(65_508), addr)
            with pytest.raises(OSError, match=match):
                endpoint.send_many([b"x", bytes(65_508)], addr)
            if where == "remote_addr":
                for options in ({}, {"match": lambda *_: True}):
                    with pytest.raises(OSError, match=match):
                        await endpoint.request(bytes(65_508), **options)

    asyncio.run(main())


@pytest.mark.usefixtures("inet6")
def test_endpoint_datagram_that_is_too_long_for_the_path():
    match = r"Message too long: \[::1\]:9 \(split it: .* only what fits the path MTU"

    async def main():
        async with open_endpoint(remote_addr=("::1", 9)) as endpoint:
            endpoint.socket.setsockopt(
                socket.IPPROTO_IPV6, socket.IPV6_MTU_DISCOVER, socket.IPV6_PMTUDISC_DO
            )
            with pytest.raises(OSError, match=match):
                endpoint.send(bytes(65_500))  # with its headers, longer than loopback's MTU

    asyncio.run(main())


def test_endpoint_without_a_peer():
    async def main():
        async with open_endpoint(("127.0.0.1", 0)) as endpoint:
            with pytest.raises(TypeError, match=ADDRESS_NEEDED):
                endpoint.send(b"x")
            with pytest.raises(TypeError, match=ADDRESS_NEEDED):
                endpoint.send_many([b"x"])
            with pytest.raises(TypeError, match=r"^send\(\): AF_INET address must be tuple"):
                endpoint.send(b"x", "127.0.0.1")
            with pytest.raises(ValueError, match="open it with a remote_addr"):
                await endpoint.request(b"x")

    asyncio.run(main())


# Servers


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((DISCARD, None), {}, "the handler must be callable, not NoneType"),
        ((answer, DISCARD), {}, "the handler must be callable, not tuple"),
        ((DISCARD, answer), {"init": "start"}, "init must be callable or None, not str"),
        ((DISCARD, answer), {"exit": answer(b"", DISCARD)}, "exit must be callable or None, not "),
        ((DISCARD, answer), {"workers": 0}, "workers must be at least 1, not 0"),
        ((DISCARD, answer), {"takes": "bytes"}, "must be 'data', 'datagram', 'batch' or 'timed'"),
    ],
)
def test_server_with_an_invalid_argument(arguments, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        tomada.Server(*arguments, **options)
