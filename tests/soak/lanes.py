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
from tests.soak.account import REPLIES, Account, explained
from tests.soak.loads import Load, Sent, running, settle
from tests.soak.watch import workers

HERE = ("127.0.0.1", 0)
# Room for the datagrams that arrive while a lane waits for its core. The kernel may give less.
BUFFER = 4 << 20

# The accounts of a round, by the name of the traffic.
Accounts = dict[str, Account]


class Lane(ABC):
    """One kind of traffic.

    :param run: How many datagrams each drop of the kernel stands for: see :func:`explained`.
    """

    #: Whether the child processes of the program are servers' supervisors, with workers.
    has_supervisors = True

    def __init__(self, name: str, *loads: Load, run: int | None = 1) -> None:
        self.name, self.loads, self.run = name, loads, run
        # The number of actions of each kind, other than sending and receiving.
        self.deeds: Counter[str] = Counter()

    @abstractmethod
    def round(self, seconds: float) -> Any:
        """Run traffic for a number of seconds, and return the accounts of it."""

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Close anything that stays open between rounds."""

    def accounts(
        self, sent: Sent, stats: Any, before: Any = None, *, killed: int = 0, replies: int = 0
    ) -> Accounts:
        """Draw up the account of a round, and another one for its replies, if any."""
        found = {
            self.name: Account.of(
                sent.total, stats, before, singly=sent.singly, run=self.run, killed=killed
            )
        }
        if replies and any(load.is_closed for load in self.loads):
            if any(load.is_secured for load in self.loads):
                # The counter `sent` includes handshakes. There is one reply to each request.
                replies = found[self.name].received
            # The load generator receives the replies.
            found[f"{self.name}{REPLIES}"] = Account.of(replies, Drained(*sent.results), run=None)
        return found


class Drained:
    """The counters of receivers in Rust, under the names of ``stats()``."""

    refused = filter_drops = 0

    def __init__(self, *results: dict[str, Any]) -> None:
        self.received = sum(result.get("received", 0) for result in results)
        self.kernel_drops = sum(result.get("kernel_drops", 0) for result in results)


class Served(Lane):
    """A server that is started for each round, and stopped after it."""

    def __init__(
        self,
        name: str,
        handler: Callable[..., Any],
        *loads: Load,
        run: int | None = 1,
        **options: Any,
    ) -> None:
        super().__init__(name, *loads, run=run)
        self._handler, self._options = handler, {"rcvbuf": BUFFER, **options}

    def round(self, seconds: float) -> Accounts:
        with self.server() as server:
            accounts = self.account(server, seconds)
        if isinstance(self._handler, Counting):
            accounts[self.name].compare(self._handler.take())
        return accounts

    def server(self) -> tomada.Server:
        self.deeds["servers started"] += 1
        return tomada.Server(HERE, self._handler, **self._options)

    def account(self, server: tomada.Server, seconds: float, killed: int = 0) -> Accounts:
        before = server.stats()
        with running(self.loads, server.address[1], seconds) as end:
            self.pass_time(server, seconds)
            sent = end()
        settle(lambda: explained(server.stats(), before, run=self.run), sent.total)
        stats = server.stats()
        replies = 0 if killed else stats.sent - before.sent
        return self.accounts(sent, stats, before, killed=killed, replies=replies)

    def pass_time(self, _server: tomada.Server, seconds: float) -> None:
        time.sleep(seconds)


class Kept(Served):
    """A server that keeps running, and whose workers are replaced under load.

    Each worker lives for several rounds, so that its growth can be measured.
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
            old = workers()
            server.replace_workers()
            self.deeds["workers replaced"] += self._options["workers"]
            while old & workers():  # the sample after the round must not see two generations
                time.sleep(0.01)
        self._rounds += 1
        time.sleep(seconds / 2)

    def close(self) -> None:
        if self._kept is not None:
            self._kept.stop()


class Killed(Served):
    """A server that loses one worker to SIGKILL in each round."""

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
        # Use the last PID in the pipe: the others may be from earlier rounds.
        os.kill(int(os.read(self._reader, 1 << 16).split()[-1]), signal.SIGKILL)
        self.deeds["workers killed"] += 1
        time.sleep(seconds / 2)


def echo(data: bytes, _address: Any) -> bytes:
    return data


def echo_short(data: bytes, _address: Any) -> bytes | None:
    """Reply to requests. Longer datagrams come from senders that do not receive."""
    return data if len(data) <= 100 else None


class Counting:
    """A handler of batches that counts its datagrams."""

    def __init__(self, *, echoes: bool = False) -> None:
        self._delivered, self._echoes = 0, echoes

    def __call__(self, datagrams: list[tuple[bytes, Any]]) -> list[bytes] | None:
        self._delivered += len(datagrams)
        return [data for data, _ in datagrams] if self._echoes else None

    def take(self) -> int:
        """Return the number of datagrams since the last call."""
        delivered, self._delivered = self._delivered, 0
        return delivered
