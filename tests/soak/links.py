"""Lanes of links, which impair the network in front of a server."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import tomada
from tests.soak.account import Account, explained
from tests.soak.lanes import Accounts, Counting, Served
from tests.soak.loads import Load, running, settle
from tomada import testing

# One datagram in twenty meets each of these; all are delayed, by seconds.
IMPAIRMENTS: dict[str, Any] = {
    **dict.fromkeys(("loss", "duplicate", "reorder", "corrupt", "truncate"), 0.05),
    **dict.fromkeys(("delay", "jitter"), 0.001),
    "log_size": 0,
}


@dataclass(frozen=True)
class Arrived:
    """The counters of a link as a receiver, under the names of ``stats()``."""

    received: int
    kernel_drops: int
    refused: int = 0
    filter_drops: int = 0

    @classmethod
    def at(cls, link: testing.Link) -> Arrived:
        stats = link.stats
        return cls(stats.to_server.received, stats.kernel_drops)


class Linked(Served):
    """A server that does not reply, and a link in front of it."""

    _handler: Counting

    def __init__(self, name: str, *loads: Load, **options: Any) -> None:
        super().__init__(name, Counting(), *loads, takes="batch", **options)

    def account(self, server: tomada.Server, seconds: float, killed: int = 0) -> Accounts:
        del killed  # a link has no workers
        with testing.impaired(server, **IMPAIRMENTS) as link:
            with running(self.loads, link.address[1], seconds) as end:
                time.sleep(seconds)
                sent = end()
            settle(lambda: explained(Arrived.at(link)), sent.total)
            wait_for_the_queue(link)
            arrived, path = Arrived.at(link), link.stats.to_server
        settle(lambda: explained(server.stats()), path.sent)
        before = Account.of(sent.total, arrived, singly=sent.singly)
        before.unexplained += path.queued
        before.unexplained += abs(path.received + path.duplicated - path.sent - path.dropped)
        self.deeds["datagrams lost in links"] += path.lost
        self.deeds["datagrams duplicated in links"] += path.duplicated
        return {f"{self.name}: link": before, self.name: Account.of(path.sent, server.stats())}


def wait_for_the_queue(link: testing.Link) -> None:
    """Wait until the link has sent what it delays."""
    settle(lambda: -link.stats.to_server.queued, 0)
