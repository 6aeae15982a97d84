"""Lanes of servers: one kind of traffic each, in rounds that begin and end with nothing open."""

from __future__ import annotations

import os
import signal
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from typing import Any

import tomada
from benches.soak.account import Account
from benches.soak.loads import Load, Sent, Settling, end, running

# Room for what comes while a lane waits for its core. The kernel may give less.
BUFFER = 4 << 20

# What a round has found: accounts, by what they are of; and how often something else was done.
Accounts = dict[str, Account]
Deeds = Counter[str]


class Lane(ABC):
    """One kind of traffic."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.deeds: Deeds = Counter()

    @abstractmethod
    def round(self, seconds: float) -> Accounts:
        """Have traffic for so long, and account for it."""

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Close what was open from round to round."""


class Served(Lane):
    """A server that is opened for each round, and closed after it.

    :param run: How many datagrams a drop of the kernel's stands for: see :class:`Account`.
    """

    def __init__(
        self,
        name: str,
        handler: Callable[..., Any],
        *loads: Load,
        run: int | None = 1,
        **options: Any,
    ) -> None:
        super().__init__(name)
        self._handler, self._loads, self._run = handler, loads, run
        self._options = {"rcvbuf": BUFFER, **options}

    def round(self, seconds: float) -> Accounts:
        with self.server() as server:
            accounts = self.account(server, seconds)
        if isinstance(self._handler, Counting):
            accounts[self.name].compare(self._handler.take())
        return accounts

    def server(self) -> tomada.Server:
        self.deeds["servers started"] += 1
        return tomada.Server(("127.0.0.1", 0), self._handler, **self._options)

    def account(self, server: tomada.Server, seconds: float, killed: int = 0) -> Accounts:
        before = server.stats()
        with running(self._loads, server.address[1], seconds) as children:
            self.pass_time(server, seconds)
            sent = end(self._loads, children)

        def total() -> int:
            now = server.stats()
            drops = (now.kernel_drops - before.kernel_drops) * (self._run or 1)
            return now.received - before.received + now.refused - before.refused + drops

        settling = Settling(total, sent.total)
        while not settling.is_over():
            time.sleep(0.01)
        stats = server.stats()
        account = Account.of(
            sent.total, stats, before, singly=sent.singly, run=self._run, killed=killed
        )
        accounts = {self.name: account}
        if not killed and any(load.is_closed for load in self._loads):
            accounts[f"{self.name}: replies"] = replies(stats.sent - before.sent, sent)
        return accounts

    def pass_time(self, _server: tomada.Server, seconds: float) -> None:
        time.sleep(seconds)


class Kept(Served):
    """A server that is open all the time, and whose workers are replaced while it is busy.

    They live for some rounds, so that it shows if they grow.
    """

    LIFE = 20

    _kept: tomada.Server | None = None
    _rounds = 0

    def round(self, seconds: float) -> Accounts:
        if self._kept is None:
            self._kept = self.server()
            self._kept.start()
        return self.account(self._kept, seconds)

    def pass_time(self, server: tomada.Server, seconds: float) -> None:
        time.sleep(seconds / 2)
        if self._rounds % self.LIFE == 0:
            server.replace_workers()
            self.deeds["workers replaced"] += self._options["workers"]
        self._rounds += 1
        time.sleep(seconds / 2)

    def close(self) -> None:
        if self._kept is not None:
            self._kept.stop()


class Killed(Served):
    """A server of which one worker is killed in each round."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._options["init"] = lambda: os.write(self._writer, b"%d\n" % os.getpid())

    def round(self, seconds: float) -> Accounts:
        with self.server() as server:
            return self.account(server, seconds, killed=1)

    def pass_time(self, _server: tomada.Server, seconds: float) -> None:
        time.sleep(seconds / 2)
        # The last of those that have told that they started: the others may be of former rounds.
        os.kill(int(os.read(self._reader, 1 << 16).split()[-1]), signal.SIGKILL)
        self.deeds["workers killed"] += 1
        time.sleep(seconds / 2)


class Arrived:
    """What senders of replies' counters say of their arrival, in the words of ``stats()``."""

    def __init__(self, *results: dict[str, Any]) -> None:
        self.received = sum(result.get("received", 0) for result in results)
        self.kernel_drops = sum(result.get("kernel_drops", 0) for result in results)
        self.refused = 0


def replies(answered: int, sent: Sent) -> Account:
    """Account for replies, which the load generator receives."""
    return Account.of(answered, Arrived(*sent.results), run=None)


def echo(data: bytes, _address: Any) -> bytes:
    return data


def echo_short(data: bytes, _address: Any) -> bytes | None:
    """Answer what is asked; what is longer is only sent, and its sender does not listen."""
    return data if len(data) <= 100 else None


class Counting:
    """A handler of batches that counts what it is handed."""

    def __init__(self, *, echoes: bool = False) -> None:
        self._delivered, self._echoes = 0, echoes

    def __call__(self, datagrams: list[tuple[bytes, Any]]) -> list[bytes] | None:
        self._delivered += len(datagrams)
        return [data for data, _ in datagrams] if self._echoes else None

    def take(self) -> int:
        """Return what was counted since this was last called."""
        delivered, self._delivered = self._delivered, 0
        return delivered
