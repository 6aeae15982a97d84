"""Lanes of asyncio: transports and endpoints, on one loop."""

from __future__ import annotations

import asyncio
import contextlib
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import tomada.asyncio
from benches.soak.account import Account
from benches.soak.lanes import BUFFER, Accounts, Lane, replies
from benches.soak.loads import Load, Sent, Settling, end, running
from tomada import socket

HERE = ("127.0.0.1", 0)


class AsyncLane(Lane):
    """A lane whose rounds are coroutines."""

    def round(self, seconds: float) -> Accounts:
        raise NotImplementedError

    @abstractmethod
    async def round_on_loop(self, seconds: float) -> Accounts: ...


class Counting(asyncio.DatagramProtocol):
    """Counts what it is handed."""

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
    """Answers datagrams one by one."""

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.delivered += 1
        self.sendto(data, addr)


class Batches(Counting):
    """Takes whole batches."""

    def datagrams_received(self, datagrams: list[tuple[bytes, Any]]) -> None:
        self.delivered += len(datagrams)


class Transport(AsyncLane):
    """A transport, opened for each round."""

    def __init__(
        self,
        name: str,
        protocol: Callable[[], Counting],
        *loads: Load,
        run: int | None = 1,
        **options: Any,
    ) -> None:
        super().__init__(name)
        self._protocol, self._loads, self._run, self._options = protocol, loads, run, options

    async def round_on_loop(self, seconds: float) -> Accounts:
        transport, protocol = await tomada.asyncio.create_datagram_endpoint(
            asyncio.get_running_loop(), self._protocol, local_addr=HERE, **self._options
        )
        self.deeds["transports opened"] += 1
        sock: Any = transport.get_extra_info("socket")
        enlarge(sock)
        sent = await loaded(self._loads, sock.getsockname()[1], seconds)

        def accounted() -> int:
            now = transport.get_extra_info("stats")
            return int(protocol.delivered + now.refused + now.kernel_drops * (self._run or 1))

        await settled(accounted, sent.total)
        found = transport.get_extra_info("stats")
        transport.close()
        await protocol.lost
        account = Account.of(sent.total, found, singly=sent.singly, run=self._run)
        accounts = {self.name: account.compare(protocol.delivered)}
        if any(load.is_closed for load in self._loads):
            accounts[f"{self.name}: replies"] = replies(found.sent, sent)
        return accounts


class Endpoint(AsyncLane):
    """An endpoint whose receives are cancelled again and again."""

    def __init__(self, name: str, *loads: Load, run: int | None = 1, **options: Any) -> None:
        super().__init__(name)
        self._loads, self._run, self._options = loads, run, options
        self._delivered = 0

    async def round_on_loop(self, seconds: float) -> Accounts:
        self._delivered = 0
        async with tomada.asyncio.open_endpoint(local_addr=HERE, **self._options) as endpoint:
            enlarge(endpoint.socket)
            takers = [
                asyncio.create_task(self._take(endpoint, patience)) for patience in (0.0001, 0.01)
            ]
            port = endpoint.get_extra_info("sockname")[1]
            sent = await loaded(self._loads, port, seconds)

            def accounted() -> int:
                now = endpoint.stats()
                return int(self._delivered + now.refused + now.kernel_drops * (self._run or 1))

            await settled(accounted, sent.total)
            for taker in takers:
                taker.cancel()
            await asyncio.wait(takers)
            for taker in takers:
                if not taker.cancelled():
                    taker.result()  # it has failed
            stats = endpoint.stats()
        account = Account.of(sent.total, stats, singly=sent.singly, run=self._run)
        return {self.name: account.compare(self._delivered)}

    async def _take(self, endpoint: Any, patience: float) -> None:
        """Receive, and give up after a moment, as a task does that has something else to do."""
        for number in range(1 << 62):
            try:
                async with asyncio.timeout(patience):
                    taken = [await endpoint.recv()] if number % 2 else await endpoint.recv_many()
                self._delivered += len(taken)
            except TimeoutError:
                self.deeds["receives cancelled"] += 1


class Asking(AsyncLane):
    """Endpoints that ask somebody who is slow, dead or silent, and send what is too long."""

    async def round_on_loop(self, seconds: float) -> Accounts:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while loop.time() < until:
            await self._answered()
            await self._refused()
            await self._silent()
            await asyncio.sleep(0.01)
        return {}

    async def _answered(self) -> None:
        async with tomada.asyncio.open_endpoint(local_addr=HERE) as server:
            there = server.get_extra_info("sockname")
            async with tomada.asyncio.open_endpoint(remote_addr=there) as client:
                asked = asyncio.create_task(client.request(b"ping", timeout=60, retries=10))
                _, peer = await server.recv()  # to which there is no answer
                _, peer = await server.recv()
                server.send(b"pong", peer)
                if await asked != b"pong":
                    raise RuntimeError("somebody else's reply")
                self.deeds["requests sent again"] += 1

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
                self.deeds["datagrams too long"] += 1

    async def _silent(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(HERE)
            async with tomada.asyncio.open_endpoint(remote_addr=sock.getsockname()) as endpoint:
                with contextlib.suppress(TimeoutError):
                    await endpoint.request(b"ping", timeout=0.02, retries=2)
                self.deeds["requests timed out"] += 1


async def loaded(loads: tuple[Load, ...], port: int, seconds: float) -> Sent:
    """Put loads on a port for so long, and return what they have sent."""
    with running(loads, port, seconds) as children:
        await asyncio.sleep(seconds)
        return await asyncio.to_thread(end, loads, children)


async def settled(accounted: Callable[[], int], sent: int) -> None:
    settling = Settling(accounted, sent)
    while not settling.is_over():  # noqa: ASYNC110 - counters tell nobody that they change
        await asyncio.sleep(0.01)


def enlarge(sock: Any) -> None:
    """Give a socket a large buffer; the privilege for that is not everybody's."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUFFORCE, BUFFER)
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER // 32)
