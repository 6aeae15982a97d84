"""trio: ``await sock.recvfrom()``, ``await sock.sendto()``."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable

import trio

from benches.programs.run import Run


async def until_input_ends(work: Callable[[], Awaitable[None]]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        await trio.lowlevel.wait_readable(sys.stdin)
        nursery.cancel_scope.cancel()


def receive(run: Run) -> None:
    async def count() -> None:
        receive, bufsize, counter = sock.recvfrom, max(2048, run.size), run.counter
        while True:
            _data, _address = await receive(bufsize)
            counter[0] += 1

    sock = trio.socket.from_stdlib_socket(run.bind())
    run.announce_socket(sock)
    trio.run(until_input_ends, count)


def send(run: Run) -> None:
    async def send_all() -> None:
        pairs, counter = run.pairs(), run.counter
        sock = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        sendto = sock.sendto
        while not run.is_stopped:
            for data, address in pairs:
                await sendto(data, address)
            counter[0] += len(pairs)

    run.watch_for_end()
    trio.run(send_all)


def echo(run: Run) -> None:
    async def answer() -> None:
        receive, sendto, counter = sock.recvfrom, sock.sendto, run.counter
        while True:
            data, address = await receive(2048)
            await sendto(data, address)
            counter[0] += 1

    sock = trio.socket.from_stdlib_socket(run.bind())
    run.announce_socket(sock)
    trio.run(until_input_ends, answer)
