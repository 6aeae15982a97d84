"""Libraries that check a socket's class accept ours as the standard class."""

import asyncio
import contextlib
import copy
import functools
import gc
import pickle
import socket as std
import weakref
from unittest import mock

import pytest

from support import DEADLINE, run
from tomada import socket


@pytest.fixture
def anyio():
    return pytest.importorskip("anyio")


@pytest.fixture
def trio():
    return pytest.importorskip("trio")


class Own(socket.socket):
    """A user-defined subclass."""

    limit = 512

    def limited(self):
        return self.__class__.limit


@pytest.fixture
def sock(inet):
    with inet.bound(socket) as sock:
        yield sock


def test_socket_is_an_instance_of_both_classes(sock):
    assert isinstance(sock, std.socket)
    assert isinstance(sock, socket.socket)
    assert sock.__class__ is std.socket
    assert type(sock) is socket.socket
    match sock:
        case std.socket(family=family):
            assert family == std.AF_INET
        case _:
            raise AssertionError


def test_stream_socket_is_an_instance_of_both_classes():
    with socket.socket(std.AF_INET, std.SOCK_STREAM) as sock:
        assert isinstance(sock, std.socket)
        assert isinstance(sock, socket.socket)


def test_subclass_instance_has_its_own_class():
    with Own(std.AF_INET, std.SOCK_DGRAM) as sock:
        assert sock.__class__ is Own
        assert sock.limited() == 512
        assert isinstance(sock, socket.socket)
        with sock.dup() as twin:
            assert type(twin) is Own
        assert repr(sock).startswith(f"<{__name__}.Own fd=")


def test_dup_is_of_the_same_class(sock):
    sock.settimeout(1.5)
    with sock.dup() as twin:
        assert type(twin) is socket.socket
        assert twin.gettimeout() == 1.5
        assert not twin.get_inheritable()
        assert twin.getsockname() == sock.getsockname()


def test_repr_shows_the_real_class(sock):
    assert repr(sock).startswith(f"<tomada.socket.socket fd={sock.fileno()}, ")
    assert {"recv_many", "gro", "recvfrom", "__class__"} <= set(dir(sock))
    with Own(std.AF_INET, std.SOCK_DGRAM) as own:
        own.colour = "red"
        assert {"limited", "colour", "recv_many"} <= set(dir(own))


@pytest.mark.parametrize("do", [copy.copy, copy.deepcopy, pickle.dumps])
def test_copy_fails_with_the_standard_message(sock, do):
    with pytest.raises(TypeError, match=r"^cannot pickle 'socket' object$"):
        do(sock)


def test_weak_reference_dies_with_the_socket(inet):
    sock = inet.open(socket)
    reference = weakref.ref(sock)
    assert reference() is sock
    sock.close()
    del sock
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize("registered", [std.socket, socket.socket])
def test_singledispatch_finds_functions_for_either_class(sock, registered):
    @functools.singledispatch
    def what(_):
        return "anything"

    what.register(registered, lambda _: "a socket")
    assert what(sock) == "a socket"


def test_mock_with_a_socket_as_its_spec_has_its_methods(sock):
    for double in (mock.Mock(spec=sock), mock.create_autospec(sock)):
        assert isinstance(double, socket.socket)
        double.recv_many()
        with pytest.raises(AttributeError):
            double.no_such_method()


def test_class_attribute_cannot_be_assigned(sock):
    with pytest.raises((AttributeError, TypeError)):
        sock.__class__ = std.socket
    assert type(sock) is socket.socket


async def exchange_by_anyio(anyio, kind):
    """Pass a socket to anyio, receive a request with it and send the reply."""
    with kind.bound(socket) as own, kind.bound(std) as other:
        here, there = own.getsockname(), other.getsockname()
        wrapper = anyio.abc.UNIXDatagramSocket if kind.is_unix else anyio.abc.UDPSocket
        async with await wrapper.from_socket(own) as endpoint:
            with anyio.fail_after(DEADLINE):
                other.sendto(b"question", here)
                data, address = await endpoint.receive()
                await endpoint.send((b"answer", address))
        if kind.name == "AF_INET6":
            there = there[:2]  # anyio omits the rest
        assert address == there
        return data, other.recvfrom(100) == (b"answer", here)


def test_anyio_accepts_a_socket_on_asyncio(anyio, kind):
    assert anyio.run(exchange_by_anyio, anyio, kind) == (b"question", True)


async def connect_by_anyio(anyio):
    """Exchange bytes over a stream and datagrams over sockets, all opened by anyio itself."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - not Django's

    async def answer(stream):
        async with stream:
            await stream.send((await stream.receive()).upper())

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, answer)
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                await stream.send(b"stream")
                received = [await stream.receive()]
            first, second = std.socketpair()
            with second:
                async with await anyio.abc.SocketStream.from_socket(first) as stream:
                    await stream.send(b"pair")
                    received.append(second.recv(100))
            group.cancel_scope.cancel()
    await listener.aclose()
    return received


def test_anyio_opens_streams_where_the_class_is_replaced(anyio, monkeypatch):
    monkeypatch.setattr(std, "socket", socket.socket)
    assert anyio.run(connect_by_anyio, anyio) == [b"STREAM", b"pair"]


def test_trio_rejects_a_socket_but_can_wait_for_it(trio, sock, inet):
    with pytest.raises(TypeError, match=r"socket\.socket"):
        trio.socket.from_stdlib_socket(sock)

    async def receive(other):
        sock.setblocking(False)
        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.lowlevel.wait_readable, sock)
                await trio.lowlevel.checkpoint()
                other.sendto(b"x", sock.getsockname())
        return sock.recv_many()

    with inet.bound(std) as other:
        assert trio.run(receive, other) == [(b"x", other.getsockname())]


def test_trio_accepts_a_standard_socket_with_the_same_descriptor(trio, sock, inet):
    async def receive(other):
        with trio.socket.from_stdlib_socket(std.socket(fileno=sock.detach())) as wrapped:
            other.sendto(b"x", wrapped.getsockname())
            with trio.fail_after(DEADLINE):
                return await wrapped.recvfrom(100)

    with inet.bound(std) as other:
        assert trio.run(receive, other) == (b"x", other.getsockname())


def test_multiprocessing_sends_a_socket_to_another_process():
    program = """
import multiprocessing, socket as std
from tomada import socket

def answer(sock):
    data, address = sock.recvfrom(100)
    sock.sendto(type(sock).__module__.encode(), address)

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    with socket.socket(2, 2) as sock, std.socket(2, 2) as other:
        sock.bind(("127.0.0.1", 0))
        ours, theirs = context.Pipe()
        ours.send(sock)
        twin = theirs.recv()
        process = context.Process(target=answer, args=(twin,))
        process.start()
        other.settimeout(30)
        other.sendto(b"x", sock.getsockname())
        print(other.recv(100).decode())
        process.join()
        twin.close()
"""
    assert run(program) == "tomada.socket\n"


def test_asyncio_accepts_a_socket_in_every_way(sock, inet):
    async def main(other):
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        other.sendto(b"one", sock.getsockname())
        async with asyncio.timeout(DEADLINE):
            received = [(await loop.sock_recvfrom(sock, 100))[0]]
            arrived = loop.create_future()
            protocol = mock.Mock(spec=asyncio.DatagramProtocol)
            protocol.datagram_received.side_effect = lambda data, _: arrived.set_result(data)
            transport, _ = await loop.create_datagram_endpoint(lambda: protocol, sock=sock)
            other.sendto(b"two", sock.getsockname())
            received.append(await arrived)
        with contextlib.closing(transport):
            assert transport.get_extra_info("socket").getsockname() == sock.getsockname()
        return received

    with inet.bound(std) as other:
        assert asyncio.run(main(other)) == [b"one", b"two"]
