"""Libraries with ``await receive()`` and ``send(data, address)``.

Each opens a socket bound to a host; ``send`` returns an awaitable or ``None``.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Callable
from typing import Any

from benches.programs.loops import start
from benches.programs.run import Run

# The functions that receive and send, and the socket.
Opened = tuple[Callable[[], Any], Callable[[bytes, Any], Any], Any]


async def open_anyio(run: Run, host: str) -> Opened:
    from anyio.abc import UDPSocket  # noqa: PLC0415 - only where it is measured, like the others

    sock = run.bind(host)
    udp = await UDPSocket.from_socket(sock)
    # sendto() would call send() with a pair, which costs more.
    return udp.receive, lambda data, address: udp.send((data, address)), sock


async def open_asyncio_dgram(run: Run, host: str) -> Opened:
    import asyncio_dgram  # noqa: PLC0415

    sock = run.bind(host)
    stream = await asyncio_dgram.from_socket(sock)
    return stream.recv, stream.send, sock


async def open_asyncudp(run: Run, host: str) -> Opened:
    import asyncudp  # noqa: PLC0415

    udp = await asyncudp.create_socket(local_addr=(host, 0))
    # asyncudp has no interface to pass in a socket, or to set an option.
    sock = udp._transport.get_extra_info("socket")  # noqa: SLF001
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, run.rcvbuf)
    return udp.recvfrom, udp.sendto, sock


async def open_trio(run: Run, host: str) -> Opened:
    import trio  # noqa: PLC0415

    raw = run.bind(host)
    sock = trio.socket.from_stdlib_socket(raw)
    return functools.partial(sock.recvfrom, max(2048, run.size)), sock.sendto, raw


def opened(run: Run, host: str = "127.0.0.1") -> Any:
    return globals()[f"open_{run.library}"](run, host)


def receive(run: Run) -> None:
    async def main() -> None:
        receive, _, sock = await opened(run)
        counter = run.counter
        run.announce_socket(sock)
        while True:
            _data, _address = await receive()
            counter[0] += 1

    start(run, main)


def send(run: Run) -> None:
    async def main() -> None:
        _, send, _ = await opened(run, "0.0.0.0")  # noqa: S104 - peers at many addresses
        pairs, counter = run.pairs(), run.counter
        gives_way = run.library in {"anyio", "trio"}  # each send yields to the loop
        while not run.is_stopped:
            for data, address in pairs:
                if (sending := send(data, address)) is not None:
                    await sending
            counter[0] += len(pairs)
            if not gives_way:
                await asyncio.sleep(0)

    run.watch_for_end()
    start(run, main, ends=True)


def echo(run: Run) -> None:
    async def main() -> None:
        receive, send, sock = await opened(run)
        counter = run.counter
        run.announce_socket(sock)
        while True:
            data, address = await receive()
            if (sending := send(data, address)) is not None:
                await sending
            counter[0] += 1

    start(run, main)
