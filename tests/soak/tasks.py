"""Lanes of tasks: async handlers, asyncio's client, trio, and servers on other sockets."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any

import tomada
import tomada.asyncio
from tests.soak.account import explained
from tests.soak.lanes import HERE, Accounts, Counting, Lane, Served, echo
from tests.soak.loads import PAUSE, Load, Sent, running, settle, settling
from tests.soak.loops import enlarge
from tomada import socket

MANY = [b"%d" % number for number in range(200)]


class Async(Served):
    """A server with an async handler, which counts its datagrams."""

    def __init__(self, name: str, *loads: Load) -> None:
        super().__init__(name, self._echo, *loads)
        self._delivered = 0

    async def _echo(self, data: bytes, _address: Any) -> bytes:
        self._delivered += 1
        await asyncio.sleep(0)  # the other tasks run
        return data

    def round(self, seconds: float) -> Accounts:
        self._delivered = 0
        accounts = super().round(seconds)
        accounts[self.name].compare(self._delivered)
        return accounts


class Given(Served):
    """A server on a socket that the program has opened, and uses after it."""

    def __init__(self, name: str, *loads: Load) -> None:
        self._counting = Counting(echoes=True)
        super().__init__(name, self._counting, *loads)

    def round(self, seconds: float) -> Accounts:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(HERE)
            enlarge(sock)
            self.deeds["servers started"] += 1
            with tomada.Server(None, self._counting, sock=sock, takes="batch") as server:
                accounts = self.account(server, seconds)
            accounts[self.name].compare(self._counting.take())
            sock.settimeout(60)
            sock.sendto(b"own", sock.getsockname())
            while sock.recv(2048) != b"own":
                pass
            return accounts


class Unix(Lane):
    """A server with a path, and a sender that waits for room."""

    def round(self, seconds: float) -> Accounts:
        until, sent, counting = time.monotonic() + seconds, 0, Counting()
        with (
            tempfile.TemporaryDirectory() as folder,
            tomada.Server(str(Path(folder, "server")), counting, takes="batch") as server,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
        ):
            self.deeds["servers started"] += 1
            sock.connect(server.address)
            sock.settimeout(60)
            while time.monotonic() < until:
                sent += sock.send_many(MANY)
                time.sleep(0.01)
            settle(lambda: explained(server.stats()), sent)
            accounts = self.accounts(Sent([], sent, sent), server.stats())
        accounts[self.name].compare(counting.take())
        return accounts


class Clients(Lane):
    """asyncio's clients, with requests that are cancelled."""

    def round(self, seconds: float) -> Accounts:
        with tomada.Server(HERE, echo) as server:
            tomada.asyncio.run(self._ask(server.address, seconds))
        return {}

    async def _ask(self, address: Any, seconds: float) -> None:
        until, rounds = time.monotonic() + seconds, 0
        async with (
            tomada.asyncio.Client(address, timeout=60, key=bytes) as shared,
            tomada.asyncio.Client(address, timeout=60) as separate,
        ):
            for client in (shared, separate):
                await client.request(b"opens its socket")
            while time.monotonic() < until:
                rounds += 1
                for client in (shared, separate):
                    await self._ask_many(client)
            for client in (shared, separate):
                stats = client.stats()
                is_right = (
                    stats.replies == 1 + rounds * len(MANY)
                    and stats.cancelled == rounds
                    and stats.requests == stats.replies + stats.cancelled
                )
                if not is_right:
                    raise RuntimeError(f"{rounds} rounds, and not {stats}")

    async def _ask_many(self, client: tomada.asyncio.Client) -> None:
        asked = asyncio.create_task(client.request(b"cancelled"))
        await asyncio.sleep(0)  # it is sent
        asked.cancel()
        if await client.request_many(MANY) != MANY:
            raise RuntimeError("a reply to another request")
        with contextlib.suppress(asyncio.CancelledError):
            await asked
        self.deeds["requests answered"] += len(MANY)
        self.deeds["requests cancelled"] += asked.cancelled()


class Trio(Lane):
    """An endpoint on trio that replies, and whose receives are cancelled again and again."""

    _delivered = 0

    def round(self, seconds: float) -> Accounts:
        import trio  # optional

        return trio.run(self._round, seconds)

    async def _round(self, seconds: float) -> Accounts:
        import trio

        from tomada.trio import open_endpoint

        self._delivered = 0
        async with open_endpoint(local_addr=HERE) as endpoint, trio.open_nursery() as nursery:
            enlarge(endpoint.socket)
            nursery.start_soon(self._serve, endpoint)
            port = endpoint.get_extra_info("sockname")[1]
            with running(self.loads, port, seconds) as end:
                await trio.sleep(seconds)
                sent = await trio.to_thread.run_sync(end)

            def total() -> int:
                stats = endpoint.stats()
                return explained(stats) - int(stats.received) + self._delivered

            for _ in settling(total, sent.total):
                await trio.sleep(PAUSE)
            nursery.cancel_scope.cancel()
            stats = endpoint.stats()
        accounts = self.accounts(sent, stats, replies=stats.sent)
        accounts[self.name].compare(self._delivered)
        return accounts

    async def _serve(self, endpoint: Any) -> None:
        import trio

        while True:
            with trio.move_on_after(0.01) as scope:
                for data, peer in await endpoint.recv_many():
                    self._delivered += 1
                    endpoint.send(data, peer)
            self.deeds["receives cancelled"] += scope.cancelled_caught
