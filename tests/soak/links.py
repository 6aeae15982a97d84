"""Lanes of links, which impair the network in front of a server."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import tomada
from tests.soak.account import AT_LINK, Account, explained
from tests.soak.lanes import Accounts, Counting, Served
from tests.soak.loads import Load, running, settle
from tomada import testing

# One datagram in twenty meets each of the first; all are delayed. Times are in seconds.
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
        del killed  # this server has no workers
        with testing.impaired(server, **IMPAIRMENTS) as link:
            with running(self.loads, link.address[1], seconds) as end:
                time.sleep(seconds)
                sent = end()
            settle(lambda: explained(Arrived.at(link)), sent.total)
            wait_for_the_queue(link)
            arrived, path = Arrived.at(link), link.stats.to_server
        settle(lambda: explained(server.stats()), path.sent)
        at_link = Account.of(sent.total, arrived, singly=sent.singly)
        # Nothing else may be dropped there, or still be in the queue.
        at_link.unexplained += abs(path.received + path.duplicated - path.sent - path.lost)
        self.deeds["datagrams lost in links"] += path.lost
        self.deeds["datagrams duplicated in links"] += path.duplicated
        # The link sends runs where it can, and a drop is one of them.
        at_server = Account.of(path.sent, server.stats(), singly=path.sent, run=None)
        return {f"{self.name}{AT_LINK}": at_link, self.name: at_server}


def wait_for_the_queue(link: testing.Link) -> None:
    """Wait until the link has sent what it delays."""
    settle(lambda: -link.stats.to_server.queued, 0)
