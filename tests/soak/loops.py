"""Lanes of asyncio: transports and endpoints, on one loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import tomada.asyncio
from tests.soak.account import explained
from tests.soak.lanes import BUFFER, HERE, Accounts, Lane
from tests.soak.loads import PAUSE, Load, Sent, running, settling
from tomada import socket


class Counting(asyncio.DatagramProtocol):
    """Counts its datagrams."""

    def __init__(self) -> None:
        self.delivered = 0
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.sendto = transport.sendto

    def connection_lost(self, _error: Exception | None) -> None:
        self.lost.set_result(None)


class Sink(Counting):
    """Takes datagrams one by one."""

    def datagram_received(self, _data: bytes, _addr: Any) -> None:
        self.delivered += 1


class Echo(Counting):
    """Replies to datagrams one by one."""

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.delivered += 1
        self.sendto(data, addr)


class Batches(Counting):
    """Takes whole batches."""

    def datagrams_received(self, datagrams: list[tuple[bytes, Any]]) -> None:
        self.delivered += len(datagrams)


class AsyncLane(Lane):
    """A lane whose rounds are coroutines, and whose sockets are opened for each round."""

    def __init__(self, name: str, *loads: Load, run: int | None = 1, **options: Any) -> None:
        super().__init__(name, *loads, run=run)
        self.options = options

    async def loaded(
        self, sock: Any, seconds: float, stats: Callable[[], Any], delivered: Callable[[], int]
    ) -> Sent:
        """Run the loads on a socket; wait until the program has all datagrams but the dropped."""
        enlarge(sock)
        with running(self.loads, sock.getsockname()[1], seconds) as end:
            await asyncio.sleep(seconds)
            sent = await asyncio.to_thread(end)

        def total() -> int:
            now = stats()
            return explained(now, run=self.run) - int(now.received) + delivered()

        for _ in settling(total, sent.total):
            await asyncio.sleep(PAUSE)
        return sent


class Transport(AsyncLane):
    """A transport."""

    def __init__(self, name: str, protocol: Callable[[], Counting], *loads: Load, **options: Any):
        super().__init__(name, *loads, **options)
        self._protocol = protocol

    async def round(self, seconds: float) -> Accounts:
        transport, protocol = await tomada.asyncio.create_datagram_endpoint(
            asyncio.get_running_loop(), self._protocol, local_addr=HERE, **self.options
        )
        self.deeds["transports opened"] += 1

        def stats() -> Any:
            return transport.get_extra_info("stats")

        sock = transport.get_extra_info("socket")
        sent = await self.loaded(sock, seconds, stats, lambda: protocol.delivered)
        found = stats()
        transport.close()
        await protocol.lost
        accounts = self.accounts(sent, found, replies=found.sent)
        accounts[self.name].compare(protocol.delivered)
        return accounts


class Endpoint(AsyncLane):
    """An endpoint whose receives are cancelled again and again."""

    _delivered = 0

    async def round(self, seconds: float) -> Accounts:
        self._delivered = 0
        async with tomada.asyncio.open_endpoint(local_addr=HERE, **self.options) as endpoint:
            takers = [
                asyncio.create_task(self._take(endpoint, patience)) for patience in (0.0001, 0.01)
            ]
            sent = await self.loaded(
                endpoint.socket, seconds, endpoint.stats, lambda: self._delivered
            )
            for taker in takers:
                taker.cancel()
            await asyncio.wait(takers)
            for taker in takers:
                if not taker.cancelled():
                    taker.result()  # raises the task's error, if it failed
            accounts = self.accounts(sent, endpoint.stats())
        accounts[self.name].compare(self._delivered)
        return accounts

    async def _take(self, endpoint: Any, patience: float) -> None:
        """Receive with a short timeout, like a task that has something else to do."""
        for number in range(1 << 62):
            try:
                async with asyncio.timeout(patience):
                    taken = [await endpoint.recv()] if number % 2 else await endpoint.recv_many()
                self._delivered += len(taken)
            except TimeoutError:
                self.deeds["receives cancelled"] += 1


class Asking(AsyncLane):
    """Endpoints that send requests to slow, dead and silent peers, and overlong datagrams."""

    async def round(self, seconds: float) -> Accounts:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while loop.time() < until:
            await self._answered()
            await self._refused()
            await self._silent()
            await asyncio.sleep(PAUSE)
        return {}

    async def _answered(self) -> None:
        async with tomada.asyncio.open_endpoint(local_addr=HERE) as server:
            there = server.get_extra_info("sockname")
            async with tomada.asyncio.open_endpoint(remote_addr=there) as client:
                asked = asyncio.create_task(client.request(b"ping", timeout=60, retries=10))
                await server.recv()  # and do not reply
                _, peer = await server.recv()
                server.send(b"pong", peer)
                if await asked != b"pong":
                    raise RuntimeError("a reply to another request")
                self.deeds["requests retransmitted"] += 1

    async def _refused(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(HERE)
            there = sock.getsockname()
        async with tomada.asyncio.open_endpoint(remote_addr=there) as endpoint:
            try:
                await endpoint.request(b"ping", timeout=60, retry_refused=False)
            except ConnectionRefusedError:
                self.deeds["requests refused"] += 1
            try:
                endpoint.send(bytes(70_000))
            except OSError:
                self.deeds["datagrams that were too long"] += 1

    async def _silent(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(HERE)
            async with tomada.asyncio.open_endpoint(remote_addr=sock.getsockname()) as endpoint:
                with contextlib.suppress(TimeoutError):
                    await endpoint.request(b"ping", timeout=0.02, retries=2)
                self.deeds["requests timed out"] += 1


def enlarge(sock: Any) -> None:
    """Give a socket a large buffer; without privileges, a smaller one."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUFFORCE, BUFFER)
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER // 32)
