"""How each kind of load is put on a program, and what is read off it.

The program that is measured has one core, the load another. Rates come from the programs' own
counters, processor time from the operating system, latencies from the clients that see them.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from benches.children import Child, ChildFailed, Look, resident_bytes

# Of everything that receives. The kernel doubles it, for its own bookkeeping.
RECEIVE_BUFFER = 1 << 20
# The drain behind a sender is not what is measured.
SINK_BUFFER = 4 << 20

# What one measurement found, by the names of the metrics.
Sample = dict[str, float]


@dataclass(frozen=True)
class Subject:
    """A program that is measured: a limit, a peer, or one way to use tomada."""

    name: str
    group: str
    program: str
    options: Mapping[str, object] = field(default_factory=dict)
    # Of a round trip the other end, with the same options; else a neutral one.
    client: str | None = None
    # The interpreter that runs it, where that is not the driver's own.
    python: str | None = None


@dataclass(frozen=True)
class Window:
    """How long to measure, in seconds, after how long a warm-up."""

    seconds: float
    warmup: float

    @property
    def lifetime(self) -> float:
        """The time after which a program ends of its own accord, whatever has gone wrong."""
        return self.warmup + self.seconds + 10


@dataclass(frozen=True)
class Load(ABC):
    """A kind of load, and its parameters."""

    size: int = 64

    # What its table shows, and, first, what its plot does.
    metrics: ClassVar[tuple[str, ...]]

    @abstractmethod
    def measure(self, subject: Subject, window: Window) -> Sample: ...

    def start(self, subject: Subject, window: Window, **options: object) -> Child:
        """Start the program that is measured, on its core."""
        given = {"size": self.size, **options, **subject.options}
        return Child(subject.program, cores()[1], window.lifetime, subject.python, **given)


@dataclass(frozen=True)
class Receive(Load):
    """A sender that never pauses, and a program that receives."""

    gso: bool = True
    metrics = ("rate", "cpu_ns", "busy", "lost")

    def measure(self, subject: Subject, window: Window) -> Sample:
        with self.start(subject, window, rcvbuf=RECEIVE_BUFFER) as receiver:
            target = {"port": receiver.line()["port"], "size": self.size, "gso": self.gso}
            with Child("loadgen blast", cores()[0], window.lifetime, **target) as sender:
                sample = watch(receiver, sender, window)
            receiver.stop()
        return sample


@dataclass(frozen=True)
class Send(Load):
    """A program that sends, to one peer or to many in turn, and a drain for all of them."""

    peers: int = 1
    metrics = ("rate", "cpu_ns", "busy", "lost")

    def measure(self, subject: Subject, window: Window) -> Sample:
        with Child("loadgen sink", cores()[0], window.lifetime, rcvbuf=SINK_BUFFER) as sink:
            target = {"port": sink.line()["port"], "peers": self.peers}
            with self.start(subject, window, **target) as sender:
                sample = watch(sender, sender, window)
                sender.stop()
                # The drain empties its queue before it ends.
                sample["lost"] = share_lost(sender.count, sink.stop()["received"])
        return sample


@dataclass(frozen=True)
class Echo(Load):
    """Clients that keep requests in flight, and a server that sends back what comes."""

    clients: int = 8
    in_flight: int = 8
    gso: bool = False
    metrics = ("rate", "cpu_ns", "busy", "lost", "p50", "p99")

    def measure(self, subject: Subject, window: Window) -> Sample:
        with self.start(subject, window, rcvbuf=RECEIVE_BUFFER) as server:
            load = Child(
                "loadgen load",
                cores()[0],
                window.warmup + window.seconds,
                port=server.line()["port"],
                size=self.size,
                clients=self.clients,
                window=self.in_flight,
                gso=self.gso,
                warmup=window.warmup,
            )
            with load:
                load.wait_until_counting()
                time.sleep(window.warmup)
                before = server.look()
                time.sleep(window.seconds * 0.9)
                server.wait_until_counting(beyond=before.count)
                sample = speed(before, server.look()) | answers(load, window)
            server.stop()
        return sample


@dataclass(frozen=True)
class RoundTrip(Load):
    """One request in flight: nothing but the way there and back."""

    metrics = ("p50", "p99", "rate", "busy")

    def measure(self, subject: Subject, window: Window) -> Sample:
        with self.start(subject, window, rcvbuf=RECEIVE_BUFFER) as server:
            options = subject.options if subject.client else {}
            client = Child(
                subject.client or "loadgen pingpong",
                cores()[0],
                window.warmup + window.seconds,
                subject.python if subject.client else None,
                port=server.line()["port"],
                size=self.size,
                warmup=window.warmup,
                **options,
            )
            with client:
                client.wait_until_counting()
                before = server.look()
                time.sleep(window.seconds * 0.9)
                sample = occupied(before, server.look()) | answers(client, window)
            server.stop()
        return sample


@dataclass(frozen=True)
class Ask(Load):
    """A client of a server that echoes at once: requests, as many as it can make."""

    metrics = ("rate", "busy")

    def measure(self, subject: Subject, window: Window) -> Sample:
        with Child("loadgen echo", cores()[0], window.lifetime, size=self.size) as server:
            with self.start(subject, window, port=server.line()["port"]) as client:
                sample = watch(client, client, window)
                client.stop()
            server.stop()
        return sample


@dataclass(frozen=True)
class Timer(Load):
    """A flood, and a timer on the loop that receives it: how late it is."""

    metrics = ("p99", "p50")

    def measure(self, subject: Subject, window: Window) -> Sample:
        # Enough of its periods for a percentile.
        window = Window(max(2.0, window.seconds), window.warmup)
        with self.start(subject, window, rcvbuf=RECEIVE_BUFFER) as receiver:
            target = {"port": receiver.line()["port"], "size": self.size, "gso": True}
            with Child("loadgen blast", cores()[0], window.lifetime, **target) as sender:
                sample = watch(receiver, sender, window)
            return sample | receiver.stop()


@dataclass(frozen=True)
class Endpoints(Load):
    """Many endpoints on one loop, and a datagram to each of them in turn."""

    endpoints: int = 2000
    metrics = ("rate", "cpu_ns", "busy", "lost", "bytes")

    def measure(self, subject: Subject, window: Window) -> Sample:
        many = {"peers": self.endpoints}
        with self.start(subject, window, **many) as receiver:
            port = receiver.line()["port"]
            before = resident_bytes(receiver.pid)
            receiver.line()
            each = (resident_bytes(receiver.pid) - before) / self.endpoints
            target = {"mode": "sendmmsg", "port": port, "size": self.size, **many}
            with Child("loadgen limit-send", cores()[0], window.lifetime, **target) as sender:
                sample = watch(receiver, sender, window)
            receiver.stop()
        return sample | {"bytes": each}


@dataclass(frozen=True)
class Work(Load):
    """More datagrams than one core's worth of work, for a server on all cores."""

    offered: int = 50_000
    metrics = ("rate",)

    def measure(self, subject: Subject, window: Window) -> Sample:
        with self.start(subject, window) as server:
            target = {"port": server.line()["port"], "size": self.size, "rate": self.offered}
            with Child("loadgen blast", cores()[0], window.lifetime, **target) as sender:
                sample = watch(server, sender, window)
            server.stop()
        return {"rate": sample["rate"]}


@dataclass(frozen=True)
class Memory(Load):
    """Many open sockets, each of which has received."""

    sockets: int = 10_000
    metrics = ("bytes",)

    def measure(self, subject: Subject, window: Window) -> Sample:
        # The first ones bring what is there once, however many follow.
        opens = (self.sockets // 10, self.sockets + self.sockets // 10)
        resident = []
        with self.start(subject, window, opens="{} {}".format(*opens)) as holder:
            for _ in opens:
                holder.line()
                resident.append(resident_bytes(holder.pid))
                holder.go_on()
            holder.stop()
        return {"bytes": (resident[1] - resident[0]) / self.sockets}


def cores() -> tuple[int, int]:
    """Return the core for the load, and the one for what is measured."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) == 1:
        raise ChildFailed("the load and what it is put on need a core each, and there is but one")
    return usable[0], usable[1]


def watch(child: Child, source: Child, window: Window) -> Sample:
    """Look at a program twice, and at what has fed it."""
    source.wait_until_counting()
    time.sleep(window.warmup)
    before, fed_before = child.look(), source.count
    time.sleep(window.seconds)
    child.wait_until_counting(beyond=before.count)
    after, fed = child.look(), source.count - fed_before
    return speed(before, after) | {"lost": share_lost(fed, after.count - before.count)}


def answers(client: Child, window: Window) -> Sample:
    """Wait for a client's end, and return what it has seen."""
    result = client.result(window.seconds + 5)
    sample = {name: float(result[name]) for name in ("rate", "p50", "p90", "p99", "p999")}
    losses = result.get("losses", 0)
    sample["lost"] = share_lost(losses + result["replies"], result["replies"])
    return sample


def speed(before: Look, after: Look) -> Sample:
    """Return what a program has done between two looks at it."""
    datagrams = after.count - before.count
    if not datagrams:
        raise ChildFailed("no datagram was counted")
    return {
        "rate": datagrams / (after.time_ns - before.time_ns) * 1e9,
        "cpu_ns": (after.cpu_ns - before.cpu_ns) / datagrams,
        **occupied(before, after),
    }


def occupied(before: Look, after: Look) -> Sample:
    """Return for how much of the time a program had its core, and others kept it from there."""
    elapsed = after.time_ns - before.time_ns
    return {
        "busy": (after.cpu_ns - before.cpu_ns) / elapsed,
        "disturbed": (after.delay_ns - before.delay_ns) / elapsed,
    }


def share_lost(sent: int, received: int) -> float:
    """Return the share of datagrams that did not arrive; one more may have, from before."""
    return max(0.0, 1 - received / sent) if sent else 0.0
