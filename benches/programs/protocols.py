"""A DatagramProtocol, on the standard loop and on loops that promise to run it faster."""

from __future__ import annotations

import asyncio
import functools
import gc
from array import array
from collections.abc import Callable
from typing import Any

from benches.programs.loops import start
from benches.programs.run import CHUNK, WAIT, Run

PERIOD = 0.01


class Counting(asyncio.DatagramProtocol):
    """Counts its datagrams."""

    def __init__(self, counter: memoryview[int]) -> None:
        self.counter = counter
        self.count = 0

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:
        self.sendto = transport.sendto

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:  # noqa: ARG002
        self.count += 1
        if not self.count % len(CHUNK):
            self.counter[0] = self.count


class Echoing(Counting):
    """Sends its datagrams back."""

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.sendto(data, addr)
        self.count += 1
        if not self.count % len(CHUNK):
            self.counter[0] = self.count


class Tasks(Counting):
    """Starts a task for each datagram, which sends it back after a delay."""

    def __init__(self, counter: memoryview[int], wait: float = 0) -> None:
        super().__init__(counter)
        self.wait = wait
        self.create_task = asyncio.get_running_loop().create_task
        self.tasks: set[asyncio.Task[None]] = set()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        task = self.create_task(self.handle(data, addr))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def handle(self, data: bytes, addr: tuple[str, int]) -> None:
        if self.wait:
            await asyncio.sleep(self.wait)
        self.sendto(data, addr)
        self.count += 1
        if not self.count % len(CHUNK):
            self.counter[0] = self.count


class Ending(asyncio.DatagramProtocol):
    """Sets a future when its transport has closed."""

    def __init__(self, ended: asyncio.Future[None]) -> None:
        self.ended = ended

    def connection_lost(self, _error: Exception | None) -> None:
        self.ended.set_result(None)


class CountingBatches(asyncio.DatagramProtocol):
    """Counts its datagrams, a list at a time, a feature of tomada's transport."""

    def __init__(self, counter: memoryview[int]) -> None:
        self.counter = counter

    def datagrams_received(self, datagrams: list[tuple[bytes, tuple[str, int]]]) -> None:
        for _data, _address in datagrams:
            pass
        self.counter[0] += len(datagrams)


async def bind(run: Run, protocol: Callable[[Any], asyncio.DatagramProtocol]) -> None:
    """Receive on a socket."""
    sock = run.bind()
    await endpoint(lambda: protocol(run.counter), sock=sock, **options(run))
    run.announce_socket(sock)


async def endpoint(*arguments: Any, **options: Any) -> Any:
    return await asyncio.get_running_loop().create_datagram_endpoint(*arguments, **options)


def options(run: Run) -> dict[str, Any]:
    """Return the options of create_datagram_endpoint() that only tomada's loop has."""
    return {"gro": run.gro, **run.coalescing} if run.loop == "tomada" else {}


def serve(run: Run, protocol: Callable[[Any], asyncio.DatagramProtocol]) -> None:
    async def main() -> None:
        await bind(run, protocol)
        await asyncio.get_running_loop().create_future()

    start(run, main)


def receive(run: Run) -> None:
    serve(run, Counting)


def receive_batches(run: Run) -> None:
    serve(run, CountingBatches)


def echo(run: Run) -> None:
    serve(run, Echoing)


def echo_in_tasks(run: Run) -> None:
    serve(run, Tasks)


def wait_in_tasks(run: Run) -> None:
    serve(run, lambda counter: Tasks(counter, WAIT))


def send(run: Run) -> None:
    """Send a burst per loop iteration: to one connected peer, or to many by address."""

    async def main() -> None:
        pairs, counter = run.pairs(), run.counter
        remote = run.targets()[0] if run.peers == 1 else None
        local = None if remote else ("0.0.0.0", 0)  # noqa: S104 - peers at many addresses
        transport, _ = await endpoint(
            asyncio.DatagramProtocol, local_addr=local, remote_addr=remote
        )
        sendto = transport.sendto
        if remote:
            pairs = [(data, None) for data, _ in pairs]
        while not run.is_stopped:
            for data, address in pairs:
                sendto(data, address)
            counter[0] += len(pairs)
            await asyncio.sleep(0)

    run.watch_for_end()
    start(run, main, ends=True)


def timer(run: Run) -> None:
    """Keep a periodic timer while datagrams flood the loop, and print how late it is."""

    async def main() -> None:
        late, loop = array("Q"), asyncio.get_running_loop()

        def tick(due: float) -> None:
            late.append(int((loop.time() - due) * 1e9))
            due += PERIOD
            loop.call_at(due, tick, due)

        loop.call_later(PERIOD, tick, loop.time() + PERIOD)
        await bind(run, Counting)
        try:
            await loop.create_future()
        finally:
            run.announce_percentiles(late)

    start(run, main)


def opening(run: Run) -> None:
    """Open an endpoint and close it, again and again."""

    async def main() -> None:
        loop, counter = asyncio.get_running_loop(), run.counter
        while True:
            ended = loop.create_future()
            transport, _ = await endpoint(
                functools.partial(Ending, ended), local_addr=("127.0.0.1", 0)
            )
            transport.close()
            await ended
            counter[0] += 1

    start(run, main)


def endpoints(run: Run) -> None:
    """Receive on many endpoints of one loop, each at its own address, all with one port."""

    async def main() -> None:
        protocol, transports = Counting(run.counter), []
        with run.open() as probe:
            probe.bind(("0.0.0.0", 0))  # noqa: S104 - a port that is free at every address
            run.port = probe.getsockname()[1]
        gc.collect()
        run.announce(port=run.port)
        for address in run.targets():
            transport, _ = await endpoint(lambda: protocol, local_addr=address, **options(run))
            transports.append(transport)
        gc.collect()
        run.announce(open=len(transports))
        await asyncio.get_running_loop().create_future()

    start(run, main)
