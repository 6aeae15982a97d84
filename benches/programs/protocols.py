"""A DatagramProtocol, on the standard loop and on those that promise to run it faster."""

from __future__ import annotations

import asyncio
import gc
from array import array

from benches.programs.loops import input_end, start
from benches.programs.run import CHUNK, Run

PERIOD = 0.01


class Counting(asyncio.DatagramProtocol):
    """Counts what comes."""

    def __init__(self, counter: memoryview[int]) -> None:
        self.counter = counter
        self.received = 0

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:  # noqa: ARG002
        self.received += 1
        if not self.received % len(CHUNK):
            self.counter[0] = self.received


class CountingBatches(asyncio.DatagramProtocol):
    """Counts what comes, a list of datagrams at a time, as tomada's transport offers it."""

    def __init__(self, counter: memoryview[int]) -> None:
        self.counter = counter
        self.received = 0

    def datagrams_received(self, datagrams: list[tuple[bytes, tuple[str, int]]]) -> None:
        for _data, _address in datagrams:
            pass
        self.received += len(datagrams)
        self.counter[0] = self.received


class Echoing(asyncio.DatagramProtocol):
    """Sends back what comes."""

    def __init__(self, counter: memoryview[int]) -> None:
        self.counter = counter
        self.echoed = 0

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:
        self.sendto = transport.sendto

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.sendto(data, addr)
        self.echoed += 1
        if not self.echoed % len(CHUNK):
            self.counter[0] = self.echoed


def receive(run: Run) -> None:
    start(run, count(run, Counting))


def receive_batches(run: Run) -> None:
    start(run, count(run, CountingBatches))


async def count(run: Run, protocol_type: type[Counting | CountingBatches]) -> None:
    end, sock = input_end(), run.bind()
    endpoint = asyncio.get_running_loop().create_datagram_endpoint
    _, protocol = await endpoint(lambda: protocol_type(run.counter), sock=sock, **options(run))
    run.announce_socket(sock)
    await end
    run.counter[0] = protocol.received


def send(run: Run) -> None:
    """In bursts, one in each turn of the loop: to one peer connected, to many by their address."""

    async def main() -> None:
        end, pairs, counter = input_end(), run.pairs(), run.counter
        endpoint = asyncio.get_running_loop().create_datagram_endpoint
        remote = run.targets()[0] if run.peers == 1 else None
        local = None if remote else ("0.0.0.0", 0)  # noqa: S104 - peers at many addresses
        transport, _ = await endpoint(
            asyncio.DatagramProtocol, local_addr=local, remote_addr=remote
        )
        sendto = transport.sendto
        if remote:
            pairs = [(data, None) for data, _ in pairs]
        while not end.done():
            for data, address in pairs:
                sendto(data, address)
            counter[0] += len(pairs)
            await asyncio.sleep(0)

    start(run, main())


def echo(run: Run) -> None:
    async def main() -> None:
        end, sock = input_end(), run.bind()
        endpoint = asyncio.get_running_loop().create_datagram_endpoint
        await endpoint(lambda: Echoing(run.counter), sock=sock, **options(run))
        run.announce_socket(sock)
        await end

    start(run, main())


def timer(run: Run) -> None:
    """Keep a timer that is due every so often, while datagrams flood the loop."""

    async def main() -> None:
        end, sock, late = input_end(), run.bind(), array("Q")
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(
            lambda: Counting(run.counter), sock=sock, **options(run)
        )

        def tick(due: float) -> None:
            late.append(int((loop.time() - due) * 1e9))
            due += PERIOD
            loop.call_at(due, tick, due)

        loop.call_later(PERIOD, tick, loop.time() + PERIOD)
        run.announce_socket(sock)
        await end
        run.announce_percentiles(late)

    start(run, main())


def endpoints(run: Run) -> None:
    """Many endpoints on one loop, at as many addresses with one port."""

    async def main() -> None:
        end, protocol = input_end(), Counting(run.counter)
        endpoint = asyncio.get_running_loop().create_datagram_endpoint
        with run.open() as probe:
            probe.bind(("0.0.0.0", 0))  # noqa: S104 - a port that is free at every address
            run.port = probe.getsockname()[1]
        gc.collect()
        run.announce(port=run.port)
        transports = []
        for address in run.targets():
            transport, _ = await endpoint(lambda: protocol, local_addr=address, **options(run))
            transports.append(transport)
        gc.collect()
        run.announce(open=len(transports))
        await end
        run.counter[0] = protocol.received

    start(run, main())


def options(run: Run) -> dict[str, bool]:
    """Return what create_datagram_endpoint() takes beside the standard arguments."""
    return {"gro": run.gro} if run.loop == "tomada" else {}
