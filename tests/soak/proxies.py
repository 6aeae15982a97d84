"""The lane of a server behind a proxy, and of peers that only pretend to be one."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any, Self

import tomada
from tests.soak.account import Account, explained
from tests.soak.lanes import BUFFER, HERE, Accounts, Counting, Lane
from tests.soak.loads import settle
from tomada import socket
from tomada._proxy_header import header_for

# Addresses of this machine: a proxy's, and one of a peer that is not a proxy.
PROXY, STRANGER = "127.0.0.8", "127.0.0.9"
CLIENT = ("192.0.2.1", 1234)
MANY = 50
# How long the senders pause after MANY datagrams of each kind, in seconds.
PAUSE = 0.005


@dataclass(frozen=True)
class Refused:
    """The counters of a server, with what its proxies' headers refused among the refused."""

    received: int
    refused: int
    kernel_drops: int
    filter_drops: int

    @classmethod
    def of(cls, stats: Any) -> Self:
        refused = stats.refused + stats.proxy_untrusted + stats.proxy_malformed
        return cls(stats.received, refused, stats.kernel_drops, stats.filter_drops)


class Proxied(Lane):
    """A proxy and a stranger, who each send datagrams with a header and without."""

    def round(self, seconds: float) -> Accounts:
        until, counting, sent = time.monotonic() + seconds, Counting(), 0
        with (
            tomada.Server(
                HERE, counting, takes="batch", proxy=[PROXY], rcvbuf=BUFFER, gro=False
            ) as server,
            contextlib.ExitStack() as stack,
        ):
            self.deeds["servers started"] += 1
            plain = [b"without"] * MANY
            headed = [header_for(CLIENT, server.address) + b"with"] * MANY
            senders = []
            for host in (PROXY, STRANGER):
                sender = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                sender.bind((host, 0))
                sender.settimeout(60)
                senders.append(sender)
            while time.monotonic() < until:
                for sender in senders:
                    sent += sender.send_many(headed, server.address)
                    sent += sender.send_many(plain, server.address)
                time.sleep(PAUSE)
            settle(lambda: explained(Refused.of(server.stats())), sent)
            stats = server.stats()
            account = Account.of(sent, Refused.of(stats))
        # Of four datagrams, one is malformed and one not trusted.
        quarter = sent / 4
        both = stats.proxy_malformed, stats.proxy_untrusted
        if any(abs(count - quarter) > stats.kernel_drops for count in both):
            raise RuntimeError(f"of {sent} datagrams, {stats}")
        return {self.name: account.compare(counting.take())}
