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
from tests.soak.lanes import HERE, Accounts, Lane, Served, echo
from tests.soak.loads import Sent, running, settle, settling
from tests.soak.loops import enlarge
from tomada import socket

MANY = [b"%d" % number for number in range(200)]


async def echo_in_turn(data: bytes, _address: Any) -> bytes:
    """Reply when the other tasks have run."""
    await asyncio.sleep(0)
    return data


class Given(Served):
    """A server on a socket that the program has opened, and keeps."""

    def round(self, seconds: float) -> Accounts:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(HERE)
            enlarge(sock)
            self.deeds["servers started"] += 1
            with tomada.Server(None, self._handler, sock=sock) as server:
                return self.account(server, seconds)


class Unix(Lane):
    """A server with a path, and a sender that waits for room."""

    def round(self, seconds: float) -> Accounts:
        until, sent = time.monotonic() + seconds, 0
        with (
            tempfile.TemporaryDirectory() as folder,
            tomada.Server(str(Path(folder, "server")), lambda *_: None) as server,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
        ):
            self.deeds["servers started"] += 1
            sock.connect(server.address)
            sock.settimeout(60)
            while time.monotonic() < until:
                sent += sock.send_many(MANY)
                time.sleep(0.01)
            settle(lambda: explained(server.stats()), sent)
            return self.accounts(Sent([], sent, sent), server.stats())


class Clients(Lane):
    """asyncio's clients, with requests that are cancelled."""

    def round(self, seconds: float) -> Accounts:
        with tomada.Server(HERE, echo) as server:
            tomada.asyncio.run(self._ask(server.address, seconds))
        return {}

    async def _ask(self, address: Any, seconds: float) -> None:
        until = time.monotonic() + seconds
        async with (
            tomada.asyncio.Client(address, timeout=60, key=bytes) as shared,
            tomada.asyncio.Client(address, timeout=60) as separate,
        ):
            while time.monotonic() < until:
                for client in (shared, separate):
                    await self._ask_many(client)
            for client in (shared, separate):
                stats = client.stats()
                ended = stats.replies + stats.timeouts + stats.errors + stats.cancelled
                if stats.requests != ended or stats.timeouts or stats.errors:
                    raise RuntimeError(f"requests without an outcome: {stats}")

    async def _ask_many(self, client: tomada.asyncio.Client) -> None:
        asked = asyncio.create_task(client.request(b"cancelled"))
        await asyncio.sleep(0)
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
                await trio.sleep(0.01)
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
