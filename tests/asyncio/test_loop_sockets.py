"""The loop's own methods for sockets: ``sock_recvfrom`` and the like."""

import asyncio
import contextlib
import socket as std
from asyncio.trsock import TransportSocket

import pytest
import uvloop

import tomada.asyncio
from peer import DEADLINE
from support import fill, open_descriptors
from tomada import socket
from traffic import numbered, send_run
from transports import turns


@pytest.fixture
def sock(inet):
    with inet.bound(socket) as sock:
        sock.setblocking(False)
        yield sock


async def into_a_buffer(loop, sock):
    buffer = bytearray(100)
    length, _ = await loop.sock_recvfrom_into(sock, buffer)
    return bytes(buffer[:length])


async def as_bytes(loop, sock):
    data, _ = await loop.sock_recvfrom(sock, 100)
    return data


@pytest.mark.parametrize("receive", [as_bytes, into_a_buffer])
@pytest.mark.parametrize("gro", [False, True])
def test_sock_recvfrom_in_several_tasks_gives_each_a_datagram_of_a_run(sock, inet, receive, gro):
    sock.gro = gro
    sent = numbered(5)

    async def main():
        loop = asyncio.get_running_loop()
        tasks = [asyncio.create_task(receive(loop, sock)) for _ in sent]
        for _ in range(3):  # until they wait
            await asyncio.sleep(0)
        assert loop._sockets._readiness  # noqa: SLF001
        with inet.bound(std) as sender:
            if gro:
                send_run(sender, sock.getsockname(), b"".join(sent), len(sent[0]))
            else:
                for data in sent:
                    sender.sendto(data, sock.getsockname())
            return await asyncio.wait_for(asyncio.gather(*tasks), DEADLINE)

    assert sorted(tomada.asyncio.run(main())) == sent


def test_sock_recvfrom_that_is_cancelled_loses_nothing(sock, inet):
    async def main():
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(loop.sock_recvfrom(sock, 100))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with inet.bound(std) as sender:
            await loop.sock_sendto(sock, b"to a plain socket", sender.getsockname())
            assert sender.recv(100) == b"to a plain socket"
            sender.sendto(b"x", sock.getsockname())
            assert await asyncio.wait_for(as_bytes(loop, sock), DEADLINE) == b"x"

    tomada.asyncio.run(main())


@pytest.fixture(params=[std, socket], ids=["standard", "tomada"])
def nonblocking(request, inet):
    """Make a socket of the standard library's and one of tomada's, on uvloop."""
    with inet.bound(request.param) as sock:
        sock.setblocking(False)
        yield sock


def on_uvloop(main):
    loop = uvloop.new_event_loop()
    tomada.asyncio.install(loop)
    try:
        return loop.run_until_complete(asyncio.wait_for(main(loop), DEADLINE))
    finally:
        loop.close()


@pytest.mark.parametrize("receive", [as_bytes, into_a_buffer])
def test_install_gives_uvloop_the_methods_that_receive(nonblocking, inet, receive):
    sent = numbered(5)
    on_uvloop(lambda _loop: asyncio.sleep(0))  # the first one opens descriptors of the process
    before = open_descriptors()

    async def main(loop):
        tasks = [asyncio.ensure_future(receive(loop, nonblocking)) for _ in sent]
        cancelled = asyncio.ensure_future(receive(loop, nonblocking))
        await turns(3)
        cancelled.cancel()
        with inet.bound(std) as sender:
            for data in sent:
                sender.sendto(data, nonblocking.getsockname())
            return await asyncio.gather(*tasks)

    assert sorted(on_uvloop(main)) == sent
    assert open_descriptors() == before


def test_install_gives_uvloop_a_method_that_sends(nonblocking, inet):
    async def main(loop):
        with inet.bound(std) as receiver:
            assert await loop.sock_sendto(nonblocking, b"x", receiver.getsockname()) == 1
            return receiver.recv(10)

    assert on_uvloop(main) == b"x"


def test_sock_sendto_on_uvloop_waits_for_room(unix):
    with (
        unix.bound(std) as receiver,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
    ):
        sender.setblocking(False)
        sender.connect(receiver.getsockname())
        count = fill(sender, receiver.getsockname())

        async def main(loop):
            sending = asyncio.ensure_future(
                loop.sock_sendto(sender, b"last", receiver.getsockname())
            )
            await turns(3)
            assert not sending.done()
            received = [receiver.recv(10) for _ in range(count)]
            assert await sending == 4
            received.append(receiver.recv(10))
            return received

        assert on_uvloop(main)[-1] == b"last"


def test_sock_recvfrom_on_uvloop_raises_what_icmp_brings(inet):
    with inet.bound(std) as closed:
        nowhere = closed.getsockname()
    with inet.bound(socket) as sock:
        sock.setblocking(False)
        sock.connect(nowhere)

        async def main(loop):
            waiting = asyncio.ensure_future(loop.sock_recvfrom(sock, 10))
            await turns(3)
            sock.send(b"x")
            with pytest.raises(ConnectionRefusedError):
                await waiting

        on_uvloop(main)


def test_debug_mode_of_uvloop_refuses_blocking_sockets(inet):
    with inet.bound(socket) as sock:

        async def main(loop):
            loop.set_debug(True)
            with pytest.raises(ValueError, match="must be non-blocking"):
                await loop.sock_recvfrom(sock, 10)

        on_uvloop(main)


@pytest.mark.parametrize("cancelled", [False, True], ids=["both wait", "one is cancelled"])
def test_several_tasks_wait_for_room_on_uvloop(unix, cancelled):
    with (
        unix.bound(std) as receiver,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
    ):
        sender.setblocking(False)
        sender.connect(receiver.getsockname())
        count = fill(sender, receiver.getsockname())

        async def main(loop):
            first, second = (
                asyncio.ensure_future(loop.sock_sendto(sender, b"x", receiver.getsockname()))
                for _ in range(2)
            )
            await turns(3)
            if cancelled:
                second.cancel()
                await turns(3)
            for _ in range(count):
                receiver.recv(10)
            assert await first == 1
            if not cancelled:
                assert await second == 1

        on_uvloop(main)


async def sock_recvfrom(sock):
    return await asyncio.get_running_loop().sock_recvfrom(sock, 100)


async def sock_recvfrom_into(sock):
    return await asyncio.get_running_loop().sock_recvfrom_into(sock, bytearray(100))


def watching(name, *args):
    async def use(sock):
        return getattr(asyncio.get_running_loop(), name)(sock, *args)

    return use


TAKEOVERS = {
    "sock_recvfrom": sock_recvfrom,
    "sock_recvfrom_into": sock_recvfrom_into,
    "add_reader": watching("add_reader", print),
    "remove_reader": watching("remove_reader"),
    "add_writer": watching("add_writer", print),
    "remove_writer": watching("remove_writer"),
}


@pytest.mark.parametrize("is_given", [False, True])
@pytest.mark.parametrize("take_over", TAKEOVERS.values(), ids=TAKEOVERS)
async def test_descriptor_of_a_transport_is_refused(
    endpoint, nonblocking, inet, take_over, is_given
):
    how = {"sock": nonblocking} if is_given else {"local_addr": ("127.0.0.1", 0)}
    transport, protocol = await endpoint(**how)
    sock = nonblocking if is_given else transport.get_extra_info("socket")
    if isinstance(sock, TransportSocket):
        sock = sock._sock  # noqa: SLF001 - it has the methods that loops use
    with pytest.raises(RuntimeError, match=r"File descriptor .* is used by transport <Datagram"):
        await asyncio.wait_for(take_over(sock), DEADLINE)
    with inet.bound(std) as sender:
        sender.sendto(b"x", transport.get_extra_info("sockname"))
        assert await protocol.received(1) == [b"x"]


async def test_descriptor_of_a_closed_transport_is_free_again(endpoint, inet):
    transport, _ = await endpoint()
    fd = transport.get_extra_info("socket").fileno()
    transport.abort()
    await turns(2)
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(inet.bound(std))
        while sock.fileno() < fd:  # the kernel gives out the lowest free number
            sock = stack.enter_context(inet.bound(std))
        sender = stack.enter_context(inet.bound(std))
        sock.setblocking(False)
        sender.sendto(b"x", sock.getsockname())
        assert (await asyncio.wait_for(sock_recvfrom(sock), DEADLINE))[0] == b"x"
        sender.sendto(b"y", sock.getsockname())
        readable = asyncio.Event()
        asyncio.get_running_loop().add_reader(fd, readable.set)
        await asyncio.wait_for(readable.wait(), DEADLINE)
        asyncio.get_running_loop().remove_reader(fd)


async def test_watching_something_else_than_a_descriptor_is_the_loops_to_refuse(runner):  # noqa: ARG001
    for wrong in ("x", None, object()):
        with pytest.raises((ValueError, TypeError)):
            asyncio.get_running_loop().add_reader(wrong, print)


def test_transports_wait_for_room_on_a_loop_that_is_installed_twice(unix):
    with unix.bound(std) as receiver:

        async def main(loop):
            tomada.asyncio.install(loop)
            transport, _ = await loop.create_datagram_endpoint(
                asyncio.DatagramProtocol, remote_addr=receiver.getsockname(), family=std.AF_UNIX
            )
            count = 0
            while not transport.get_write_buffer_size():
                transport.sendto(b"x")
                count += 1
            receiver.setblocking(False)
            while count:
                try:
                    receiver.recv(10)
                    count -= 1
                except BlockingIOError:
                    await asyncio.sleep(0)
            transport.close()
            await turns(2)

        on_uvloop(main)
