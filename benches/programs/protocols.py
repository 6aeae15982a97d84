"""A DatagramProtocol, on the standard loop and on those that promise to run it faster."""

from __future__ import annotations

import asyncio

from benches.programs.loops import input_end, start
from benches.programs.run import CHUNK, Run


class Counting(asyncio.DatagramProtocol):
    """Counts what comes."""

    def __init__(self, counter: memoryview[int]) -> None:
        self.counter = counter
        self.received = 0

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:  # noqa: ARG002
        self.received += 1
        if not self.received % len(CHUNK):
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
    async def main() -> None:
        end, sock = input_end(), run.bind()
        endpoint = asyncio.get_running_loop().create_datagram_endpoint
        _, protocol = await endpoint(lambda: Counting(run.counter), sock=sock)
        run.announce_socket(sock)
        await end
        run.counter[0] = protocol.received

    start(run, main())


def send(run: Run) -> None:
    async def main() -> None:
        end, pairs, counter = input_end(), run.pairs(), run.counter
        endpoint = asyncio.get_running_loop().create_datagram_endpoint
        transport, _ = await endpoint(asyncio.DatagramProtocol, local_addr=("0.0.0.0", 0))  # noqa: S104
        sendto = transport.sendto
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
        await endpoint(lambda: Echoing(run.counter), sock=sock)
        run.announce_socket(sock)
        await end

    start(run, main())
