"""A link between clients and a server that loses, duplicates, reorders and delays datagrams."""

import contextlib
import heapq
import itertools
import random
import selectors
import socket as std
import threading
import time

# How long the link remembers the port of a silent client, in seconds.
FORGET = 3.0


class LossyLink(threading.Thread):
    """A router with address translation between clients and a server of AF_INET.

    The server sees a separate port for each client. The fate of each datagram is drawn from a seed,
    but the order in which datagrams of several clients arrive is not.

    :param loss: The share of datagrams that are lost, in each direction.
    :param duplicate: The share of datagrams that arrive twice. The second copy has its own delay.
    :param delay: The maximum delay of each datagram in seconds, which also reorders them.
    :param late: The share of datagrams that are delayed ten times as long.
    """

    def __init__(  # noqa: PLR0913 - the properties of a network
        self, server, *, seed, loss=0.05, duplicate=0.02, delay=0.002, late=0.02
    ):
        super().__init__(daemon=True)
        self._server = server
        self._chance = random.Random(seed)  # noqa: S311 - not for secrets
        self._loss, self._duplicate, self._delay, self._late = loss, duplicate, delay, late
        self._front = std.socket(std.AF_INET, std.SOCK_DGRAM)
        self._front.setsockopt(std.SOL_SOCKET, std.SO_RCVBUF, 1 << 20)
        self._front.bind(("127.0.0.1", 0))
        self._front.setblocking(False)
        #: The address that clients send to.
        self.address = self._front.getsockname()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._front, selectors.EVENT_READ)
        # By the client's address, the longest-silent one first.
        self._backs = {}
        self._under_way = []
        self._numbers = itertools.count()
        self._is_ending = False
        #: The number of datagrams by fate.
        self.fates = dict.fromkeys(("lost", "duplicated", "late", "passed"), 0)
        self.start()

    def run(self):
        while not self._is_ending:
            due = self._under_way[0][0] - time.monotonic() if self._under_way else 0.05
            for key, _ in self._selector.select(max(due, 0)):
                self._take(key.fileobj, key.data)
            while self._under_way and self._under_way[0][0] <= time.monotonic():
                _, _, sock, data, to = heapq.heappop(self._under_way)
                # Either end may be closed by now, or its queue may be full.
                with contextlib.suppress(OSError):
                    sock.sendto(data, to) if to else sock.send(data)
            self._forget()

    def _take(self, sock, client):
        for _ in range(64):
            try:
                data, sender = sock.recvfrom(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                continue
            if client is None:
                self._pass(self._back(sender), data, None)
            else:
                self._pass(self._front, data, client)

    def _back(self, client):
        """Return the socket for a client. The server sees its port."""
        sock = self._backs.pop(client, (None,))[0]
        if sock is None:
            sock = std.socket(std.AF_INET, std.SOCK_DGRAM)
            sock.connect(self._server)
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ, client)
        self._backs[client] = sock, time.monotonic()
        return sock

    def _forget(self):
        while self._backs:
            client, (sock, used) = next(iter(self._backs.items()))
            if used + FORGET > time.monotonic():
                return
            # Datagrams under way must not reach another client, or reach the server from it.
            if any(item[2] is sock for item in self._under_way):
                return
            del self._backs[client]
            self._selector.unregister(sock)
            sock.close()

    def _pass(self, sock, data, to):
        chance, fates = self._chance, self.fates
        if chance.random() < self._loss:
            fates["lost"] += 1
            return
        copies = 1
        if chance.random() < self._duplicate:
            fates["duplicated"] += 1
            copies = 2
        for _ in range(copies):
            delay = chance.random() * self._delay
            if chance.random() < self._late:
                fates["late"] += 1
                delay *= 10
            fates["passed"] += 1
            due = time.monotonic() + delay
            heapq.heappush(self._under_way, (due, next(self._numbers), sock, data, to))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._is_ending = True
        self.join()
        self._selector.close()
        for sock in (self._front, *(sock for sock, _ in self._backs.values())):
            sock.close()
