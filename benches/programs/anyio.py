"""anyio, on its asyncio backend: ``await udp.receive()``, ``await udp.sendto()``."""

from __future__ import annotations

import anyio
from anyio.abc import UDPSocket

from benches.programs.loops import input_end, start, until_input_ends
from benches.programs.run import Run


async def bind(run: Run) -> UDPSocket:
    sock = run.bind()
    udp = await UDPSocket.from_socket(sock)
    run.announce_socket(sock)
    return udp


def receive(run: Run) -> None:
    async def main() -> None:
        async with await bind(run) as udp:
            await until_input_ends(count(udp))

    async def count(udp: UDPSocket) -> None:
        receive, counter = udp.receive, run.counter
        while True:
            _data, _address = await receive()
            counter[0] += 1

    start(run, main())


def send(run: Run) -> None:
    async def main() -> None:
        end, pairs, counter = input_end(), run.pairs(), run.counter
        async with await anyio.create_udp_socket(local_host="0.0.0.0") as udp:  # noqa: S104
            sendto = udp.sendto
            while not end.done():
                for data, (host, port) in pairs:
                    await sendto(data, host, port)
                counter[0] += len(pairs)

    start(run, main())


def echo(run: Run) -> None:
    async def main() -> None:
        async with await bind(run) as udp:
            await until_input_ends(answer(udp))

    async def answer(udp: UDPSocket) -> None:
        receive, sendto, counter = udp.receive, udp.sendto, run.counter
        while True:
            data, (host, port) = await receive()
            await sendto(data, host, port)
            counter[0] += 1

    start(run, main())
