"""asyncudp: ``await sock.recvfrom()``, ``sock.sendto()``."""

from __future__ import annotations

import asyncio
import socket

import asyncudp

from benches.programs.loops import input_end, start, until_input_ends
from benches.programs.run import Run


async def bind(run: Run) -> asyncudp.Socket:
    sock = await asyncudp.create_socket(local_addr=("127.0.0.1", 0))
    # It has no way to pass a socket in, or to set an option.
    raw = sock._transport.get_extra_info("socket")  # noqa: SLF001
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, run.receive_buffer)
    run.announce_socket(raw)
    return sock


def receive(run: Run) -> None:
    async def main() -> None:
        sock = await bind(run)
        await until_input_ends(count(sock))

    async def count(sock: asyncudp.Socket) -> None:
        receive, counter = sock.recvfrom, run.counter
        while True:
            _data, _address = await receive()
            counter[0] += 1

    start(run, main())


def send(run: Run) -> None:
    async def main() -> None:
        end, pairs, counter = input_end(), run.pairs(), run.counter
        sock = await asyncudp.create_socket(local_addr=("0.0.0.0", 0))  # noqa: S104
        sendto = sock.sendto
        while not end.done():
            for data, address in pairs:
                sendto(data, address)
            counter[0] += len(pairs)
            await asyncio.sleep(0)

    start(run, main())


def echo(run: Run) -> None:
    async def main() -> None:
        sock = await bind(run)
        await until_input_ends(answer(sock))

    async def answer(sock: asyncudp.Socket) -> None:
        receive, sendto, counter = sock.recvfrom, sock.sendto, run.counter
        while True:
            data, address = await receive()
            sendto(data, address)
            counter[0] += 1

    start(run, main())
