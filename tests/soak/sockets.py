"""Lanes of sockets and clients, each in a thread."""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable
from typing import Any

import tomada
from benches.children import Child
from tests.soak.account import Account, explained
from tests.soak.lanes import BUFFER, HERE, Accounts, Drained, Lane
from tests.soak.loads import END, Load, running, settle
from tests.soak.loops import enlarge
from tomada import socket

# The timeout of a receive, in seconds.
PATIENCE = 0.02


def bound() -> Any:
    sock: Any = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(HERE)
    sock.settimeout(PATIENCE)
    return sock


class Receiver(Lane):
    """A socket that receives in several ways in turn.

    :param ways: Functions that receive something, and return the number of datagrams.
    """

    def __init__(
        self,
        name: str,
        ways: tuple[Callable[[Any], int], ...],
        *loads: Load,
        gro: bool = False,
        run: int | None = 1,
    ) -> None:
        super().__init__(name, *loads, run=run)
        self._ways, self._gro = ways, gro

    def round(self, seconds: float) -> Accounts:
        with bound() as sock:
            self.deeds["sockets opened"] += 1
            sock.gro = self._gro
            enlarge(sock)
            over = threading.Event()
            taken: list[int] = [0]
            thread = threading.Thread(target=self._take, args=(sock, taken, over))
            thread.start()
            try:
                with running(self.loads, sock.getsockname()[1], seconds) as end:
                    time.sleep(seconds)
                    sent = end()
                settle(lambda: explained(sock.stats(), run=self.run), sent.total)
            finally:
                over.set()
                thread.join()
            accounts = self.accounts(sent, sock.stats())
            accounts[self.name].compare(taken[0] + sock.pending)
            return accounts

    def _take(self, sock: Any, taken: list[int], over: threading.Event) -> None:
        while not over.is_set():
            for way in self._ways:
                with contextlib.suppress(TimeoutError):
                    taken[0] += way(sock)


class Sender(Lane):
    """A socket that sends to a drain: batches, lists and single datagrams."""

    def __init__(self, name: str, rate: int) -> None:
        super().__init__(name)
        self._rate = rate

    def round(self, seconds: float) -> Accounts:
        batch, data = tomada.Batch(), [bytes(64)] * 64
        for item in data:
            batch.append(item)
        drain = Child("loadgen sink", 0, seconds + END, rcvbuf=BUFFER)
        with drain, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
            sock: Any = opened
            sock.connect(("127.0.0.1", drain.line()["port"]))
            started = time.monotonic()
            while (elapsed := time.monotonic() - started) < seconds:
                if sock.stats().sent > elapsed * self._rate:
                    time.sleep(0.001)
                    continue
                sock.send_batch(batch)
                sock.send_many(data)
                sock.send(data[0])
            sent = sock.stats().sent
            return {self.name: Account.of(sent, Drained(drain.stop(END)), run=None)}


class Churn(Lane):
    """Sockets that are opened, misused and closed: dead peers, long datagrams, the error queue."""

    def round(self, seconds: float) -> Accounts:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._dead_peer()
            self._too_long()
            self._closed_while_waiting()
            time.sleep(0.01)
        return {}

    def _dead_peer(self) -> None:
        with bound() as dead:
            there = dead.getsockname()
        with bound() as sock:
            self.deeds["sockets opened"] += 2
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVERR, 1)
            for _ in range(5):
                with contextlib.suppress(ConnectionRefusedError):
                    sock.sendto(b"hello", there)
            self.deeds["entries in the error queue"] += len(sock.errors())

    def _too_long(self) -> None:
        with bound() as sock, bound() as other:
            self.deeds["sockets opened"] += 2
            data = [b"short", bytes(70_000), b"short"]
            failed = sock.send_many(data, other.getsockname(), errors="continue")
            self.deeds["datagrams that were too long"] += 1
            if sock.stats().sent != 2 or not failed:
                raise RuntimeError(f"of three datagrams, one too long: {sock.stats()}")
            other.gro = True
            while other.stats().received < 2:
                other.recv_many(1)

    def _closed_while_waiting(self) -> None:
        sock = bound()
        sock.settimeout(60)
        seen: list[OSError] = []

        def wait() -> None:
            try:
                sock.recv_many()
            except OSError as error:
                seen.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        sock.close()
        thread.join()
        if seen[0].errno != errno.EBADF:
            raise seen[0]
        self.deeds["sockets opened"] += 1
        self.deeds["sockets closed during a receive"] += 1


class Asking(Lane):
    """Clients of a server that replies to only some requests, and clients without a server."""

    def round(self, seconds: float) -> Accounts:
        heard = 0

        def answer(data: bytes, _address: Any) -> bytes | None:
            nonlocal heard
            heard += 1
            if data.startswith(b"never"):
                return None
            return data if heard % 3 else None

        until = time.monotonic() + seconds
        with tomada.Server(HERE, answer) as server:
            while time.monotonic() < until:
                self._ask(server.address)
            there = server.address
        with tomada.Client(there, timeout=60, retry_refused=False) as client:
            try:
                client.request(b"ping")
            except ConnectionRefusedError:
                self.deeds["requests refused"] += 1
        return {}

    def _ask(self, address: Any) -> None:
        with tomada.Client(address, timeout=20, retries=400, backoff=1.0) as client:
            many = [b"%d" % number for number in range(100)]
            if list(client.request_many(many)) != many or client.request(b"one") != b"one":
                raise RuntimeError("a reply to another request")
            self.deeds["requests answered"] += len(many) + 1
        with tomada.Client(address, timeout=0.02, retries=2) as client:
            try:
                client.request(b"never")
            except TimeoutError:
                self.deeds["requests timed out"] += 1


def one(sock: Any) -> int:
    sock.recvfrom(2048)
    return 1


def many(sock: Any) -> int:
    return len(sock.recv_many())


def with_metadata(sock: Any) -> int:
    return len(sock.recv_datagrams())


def into_batch() -> Callable[[Any], int]:
    batch = tomada.Batch()
    return lambda sock: int(sock.recv_batch(batch))
