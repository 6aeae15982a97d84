"""asyncio-dgram: ``await stream.recv()``, ``await stream.send()``."""

from __future__ import annotations

import asyncio

import asyncio_dgram

from benches.programs.loops import input_end, start, until_input_ends
from benches.programs.run import Run


def receive(run: Run) -> None:
    async def main() -> None:
        sock = run.bind()
        stream = await asyncio_dgram.from_socket(sock)
        run.announce_socket(sock)
        await until_input_ends(count(stream))

    async def count(stream: asyncio_dgram.DatagramServer) -> None:
        receive, counter = stream.recv, run.counter
        while True:
            _data, _address = await receive()
            counter[0] += 1

    start(run, main())


def send(run: Run) -> None:
    async def main() -> None:
        end, pairs, counter = input_end(), run.pairs(), run.counter
        stream = await asyncio_dgram.bind(("0.0.0.0", 0))  # noqa: S104
        send = stream.send
        while not end.done():
            for data, address in pairs:
                await send(data, address)
            counter[0] += len(pairs)
            await asyncio.sleep(0)

    start(run, main())


def echo(run: Run) -> None:
    async def main() -> None:
        sock = run.bind()
        stream = await asyncio_dgram.from_socket(sock)
        run.announce_socket(sock)
        await until_input_ends(answer(stream))

    async def answer(stream: asyncio_dgram.DatagramServer) -> None:
        receive, send, counter = stream.recv, stream.send, run.counter
        while True:
            data, address = await receive()
            await send(data, address)
            counter[0] += 1

    start(run, main())
