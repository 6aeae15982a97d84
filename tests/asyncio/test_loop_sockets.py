"""The loop's own methods for sockets: ``sock_recvfrom`` and the like."""

import asyncio
import socket as std

import pytest

import tomada.asyncio
from peer import DEADLINE
from tomada import socket
from traffic import numbered, send_run


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
        assert loop._readiness  # noqa: SLF001
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
