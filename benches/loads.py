"""The kinds of load, and how each of them is measured.

The measured program has one core, the load another. Rates come from the programs' own counters, CPU
time from the kernel, and latencies from the clients.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from benches import brokers
from benches.children import PATIENCE, Child, ChildFailed, Look, memory

# The buffer size of everything that receives. The kernel doubles it, for its own bookkeeping.
RECEIVE_BUFFER = 1 << 20
# Large enough for the drain that a sender sends to, and for a queue that is filled in advance.
SINK_BUFFER = 4 << 20
QUEUE_BUFFER = 256 << 20

# The smallest number of datagrams for a percentile.
FEWEST = 100

# The results of one measurement, by metric.
Sample = dict[str, float]


@dataclass(frozen=True)
class Subject:
    """A measured program: a limit, a peer, or one way to use tomada."""

    name: str
    group: str
    program: str
    options: Mapping[str, object] = field(default_factory=dict)
    # The program at the other end of a round trip, with the same options; otherwise one in Rust.
    client: str | None = None
    # Its interpreter, if not the driver's own.
    python: str | None = None


@dataclass(frozen=True)
class Window:
    """How long to measure, and how long to warm up first, in seconds."""

    seconds: float
    warmup: float

    @property
    def lifetime(self) -> float:
        """The time after which a hanging program ends itself."""
        return self.warmup + self.seconds + 10


@dataclass(frozen=True)
class Load(ABC):
    """A kind of load, and its parameters."""

    size: int = 64

    # The columns of its tables. Charts show the first one.
    metrics: ClassVar[tuple[str, ...]] = ("rate", "cpu_ns", "busy", "lost")
    # The unit of the rate and of the CPU time: per datagram, for example.
    unit: ClassVar[str] = "datagram"

    @abstractmethod
    def measure(self, subject: Subject, window: Window) -> Sample: ...

    def start(self, subject: Subject, window: Window, **options: object) -> Child:
        """Start the measured program on its core."""
        given = {"size": self.size, **options, **subject.options}
        return Child(subject.program, cores()[1], window.lifetime, subject.python, **given)


@dataclass(frozen=True)
class Receive(Load):
    """A sender that never pauses or has a fixed rate, and a program that receives."""

    gso: bool = True
    rate: int | None = None

    def measure(self, subject: Subject, window: Window) -> Sample:
        with self.start(subject, window, rcvbuf=RECEIVE_BUFFER) as receiver:
            program, options = self.source(subject)
            target = {"port": receiver.line()["port"], "size": self.size, **options}
            if self.rate is not None:
                target["rate"] = self.rate
            with Child(program, cores()[0], window.lifetime, **target) as sender:
                sample = watch(receiver, sender, window)
            return sample | receiver.stop()

    def source(self, _subject: Subject) -> tuple[str, Mapping[str, object]]:
        """Return the program that sends, and its options."""
        return "loadgen blast", {"gso": self.gso}


@dataclass(frozen=True)
class Peers(Receive):
    """Peers that send single datagrams in turn, and a program that receives.

    A subject may override the number of peers.
    """

    peers: int = 64
    metrics = ("cpu_ns", "rate", "busy", "lost")

    def source(self, subject: Subject) -> tuple[str, Mapping[str, object]]:
        return "loadgen peers", {"peers": subject.options.get("peers", self.peers)}


@dataclass(frozen=True)
class Publish(Receive):
    """A sender, and a program that publishes the datagrams to NATS, which shares its core."""

    rate: int | None = 1_000_000

    def measure(self, subject: Subject, window: Window) -> Sample:
        with brokers.nats(cores()[0]) as server:
            options = {**subject.options, "url": server.url}
            return super().measure(replace(subject, options=options), window)


@dataclass(frozen=True)
class Timer(Receive):
    """A flood, and the delay of a timer on the loop that receives it."""

    metrics = ("p99", "p50")

    def measure(self, subject: Subject, window: Window) -> Sample:
        # Enough periods for a percentile.
        return super().measure(subject, Window(max(2.0, window.seconds), window.warmup))


@dataclass(frozen=True)
class Work(Receive):
    """More datagrams than one core can process, for a server on all cores."""

    gso: bool = False
    rate: int | None = 50_000
    metrics = ("rate",)

    def measure(self, subject: Subject, window: Window) -> Sample:
        # The server shares its cores with the load, so no other metric means anything.
        return {"rate": super().measure(subject, window)["rate"]}


@dataclass(frozen=True)
class Send(Load):
    """A program that sends, to one peer or to many in turn, and a drain that receives for all."""

    peers: int = 1

    def measure(self, subject: Subject, window: Window) -> Sample:
        with Child("loadgen sink", cores()[0], window.lifetime, rcvbuf=SINK_BUFFER) as sink:
            target = {"port": sink.line()["port"], "peers": self.peers}
            with self.start(subject, window, **target) as sender:
                sample = watch(sender, sender, window)
                sender.stop()
                # The drain empties its queue before it exits.
                return sample | {"lost": share_lost(sender.count, sink.stop()["received"])}


@dataclass(frozen=True)
class Echo(Load):
    """Clients that keep requests in flight, and a server that echoes them."""

    clients: int = 8
    in_flight: int = 8
    gso: bool = False
    metrics = ("rate", "cpu_ns", "busy", "lost", "p50", "p99")

    def measure(self, subject: Subject, window: Window) -> Sample:
        with self.start(subject, window, rcvbuf=RECEIVE_BUFFER) as server:
            common = {"port": server.line()["port"], "size": self.size, "warmup": window.warmup}
            program, python, options = self.client(subject)
            lifetime = window.warmup + window.seconds
            with Child(program, cores()[0], lifetime, python, **common, **options) as client:
                client.wait_until_counting()
                time.sleep(window.warmup)
                before = server.look()
                time.sleep(window.seconds * 0.9)
                server.wait_until_counting(beyond=before.count)
                sample = speed(before, server.look())
                result = client.result(window.seconds + 5)
            server.stop()
        replies = result["replies"]
        sample |= {name: float(result[name]) for name in ("rate", "p50", "p90", "p99", "p999")}
        return sample | {"lost": share_lost(result.get("losses", 0) + replies, replies)}

    def client(self, _subject: Subject) -> tuple[str, str | None, Mapping[str, object]]:
        options = {"clients": self.clients, "window": self.in_flight, "gso": self.gso}
        return "loadgen load", None, options


@dataclass(frozen=True)
class RoundTrip(Echo):
    """One request in flight: nothing but the round trip."""

    metrics = ("p50", "p99", "rate", "busy")

    def client(self, subject: Subject) -> tuple[str, str | None, Mapping[str, object]]:
        if subject.client is None:
            return "loadgen pingpong", None, {}
        return subject.client, subject.python, subject.options


@dataclass(frozen=True)
class RelayedRoundTrip(Load):
    """One request in flight, through a link between the client and the server."""

    metrics = ("p50", "p99", "rate")

    def measure(self, subject: Subject, window: Window) -> Sample:
        with (
            Child("loadgen echo", cores()[1], window.lifetime, size=self.size) as server,
            self.start(subject, window, port=server.line()["port"]) as link,
        ):
            common = {"port": link.line()["port"], "size": self.size, "warmup": window.warmup}
            lifetime = window.warmup + window.seconds
            with Child("loadgen pingpong", cores()[0], lifetime, **common) as client:
                result = client.result(window.seconds + window.warmup + 5)
            link.stop()
            server.stop()
        return {name: float(result[name]) for name in ("rate", "p50", "p99")}


@dataclass(frozen=True)
class Relayed(Load):
    """A sender with a fixed rate, and a receiver behind a link."""

    rate: int = 300_000
    metrics = ("rate", "lost")

    def measure(self, subject: Subject, window: Window) -> Sample:
        receiving = {"rcvbuf": RECEIVE_BUFFER, "size": self.size, "gro": True}
        with (
            Child("loadgen limit-recv", cores()[0], window.lifetime, **receiving) as receiver,
            self.start(subject, window, port=receiver.line()["port"]) as link,
        ):
            target = {"port": link.line()["port"], "size": self.size, "rate": self.rate}
            with Child("loadgen blast", cores()[0], window.lifetime, gso=True, **target) as sender:
                sample = watch(receiver, sender, window)
            link.stop()
            receiver.stop()
        return {name: sample[name] for name in self.metrics}


@dataclass(frozen=True)
class Delayed(Load):
    """A datagram per millisecond through a link with a delay: how early or late each arrives."""

    delay: float = 0.01
    metrics = ("p50", "p99")

    def measure(self, subject: Subject, window: Window) -> Sample:
        lifetime, delay = window.lifetime + PATIENCE, {"delay": self.delay}
        with (
            Child("links arrive", cores()[0], lifetime, **delay) as receiver,
            self.start(subject, window, port=receiver.line()["port"], **delay) as link,
            Child("links depart", cores()[0], lifetime, port=link.line()["port"]) as sender,
        ):
            time.sleep(window.warmup + max(0.5, window.seconds))
            end = time.monotonic() + PATIENCE / 2
            while receiver.look().count < FEWEST and time.monotonic() < end:
                time.sleep(0.05)
            sender.stop()
            result = receiver.stop()
            link.stop()
        return {name: float(result[name]) for name in self.metrics}


@dataclass(frozen=True)
class Operate(Load):
    """A program that generates its own load."""

    metrics = ("rate", "cpu_ns", "busy")
    unit = "operation"

    def measure(self, subject: Subject, window: Window) -> Sample:
        with self.start(subject, window) as program:
            return watch(program, program, window)


@dataclass(frozen=True)
class Ask(Load):
    """A client of a server that replies at once: as many requests as it can make."""

    metrics = ("rate", "busy")

    def measure(self, subject: Subject, window: Window) -> Sample:
        with Child("loadgen echo", cores()[0], window.lifetime, size=self.size) as server:
            with self.start(subject, window, port=server.line()["port"]) as client:
                sample = watch(client, client, window)
                client.stop()
            server.stop()
        return sample


@dataclass(frozen=True)
class Tasks(Load):
    """Tasks that make requests over one socket, to a server that replies at once or later."""

    tasks: int = 1000
    delay: float = 0.0
    metrics = ("rate", "cpu_ns", "busy", "lost", "p50", "p99")

    def measure(self, subject: Subject, window: Window) -> Sample:
        late = {"module": "tomada", "delay": self.delay}
        name, options = ("batches echo_late", late) if self.delay else ("loadgen echo", {})
        # The server has the buffer that an ordinary program would give it.
        common = {"size": self.size, **options}
        with Child(name, cores()[0], window.lifetime, **common) as server:
            target = {"port": server.line()["port"]}
            # A client in Rust has no tasks, but the same number of requests in flight.
            is_rust = subject.group == "limit"
            target |= {"warmup": window.warmup} if is_rust else {"tasks": self.tasks}
            with self.start(subject, window, **target) as client:
                sample = watch(client, client, window)
                result = client.stop()
            served = server.stop()
        dropped = served["kernel_drops"] + result["kernel_drops"]
        sample["lost"] = share_lost(served["echoed"] + dropped, served["echoed"])
        return sample | {name: float(result[name]) for name in ("p50", "p99")}


@dataclass(frozen=True)
class Endpoints(Load):
    """Many endpoints on one loop, and a sender that sends to each of them in turn."""

    endpoints: int = 2000
    metrics = ("rate", "cpu_ns", "busy", "lost", "bytes")

    def measure(self, subject: Subject, window: Window) -> Sample:
        many = {"peers": self.endpoints}
        with self.start(subject, window, **many) as receiver:
            port = receiver.line()["port"]
            before = resident(receiver)
            receiver.line()
            each = (resident(receiver) - before) / self.endpoints
            target = {"mode": "sendmmsg", "port": port, "size": self.size, **many}
            with Child("loadgen limit-send", cores()[0], window.lifetime, **target) as sender:
                sample = watch(receiver, sender, window)
            receiver.stop()
        return sample | {"bytes": each}


@dataclass(frozen=True)
class Memory(Load):
    """Many open sockets, each of which has received datagrams."""

    sockets: int = 10_000
    metrics = ("bytes",)

    def measure(self, subject: Subject, window: Window) -> Sample:
        # The first sockets include memory that is allocated only once, no matter how many follow.
        opens = (self.sockets // 10, self.sockets + self.sockets // 10)
        sizes = []
        with self.start(subject, window, opens=opens) as holder:
            for _ in opens:
                holder.line()
                sizes.append(resident(holder))
                holder.go_on()
            holder.stop()
        return {"bytes": (sizes[1] - sizes[0]) / self.sockets}


@dataclass(frozen=True)
class Call(Load):
    """A program that times a single call by itself."""

    metrics = ("call_ns",)

    def measure(self, subject: Subject, window: Window) -> Sample:
        with self.start(subject, window, round=window.seconds) as child:
            return child.result(window.seconds + PATIENCE)


@dataclass(frozen=True)
class Refuse(Load):
    """A queue of datagrams with forged source addresses, filled while the receiver is stopped."""

    spoofs: bool = True
    queued: int = 50_000
    metrics = ("cpu_ns",)

    def measure(self, subject: Subject, window: Window) -> Sample:
        from benches.programs.guards import Flood  # noqa: PLC0415 - only it needs tomada

        with self.start(subject, window, rcvbuf=QUEUE_BUFFER, force=True) as receiver:
            port = receiver.line()["port"]
            with Flood(port, spoofs=self.spoofs, size=self.size) as flood:
                for _ in range(2):  # the first time is a warm-up
                    with receiver.suspended():
                        flood.send(self.queued)
                        before = receiver.look()
                    receiver.wait_until_counting(beyond=before.count + self.queued - 1)
                    after = receiver.look()
            receiver.stop()
        return {"cpu_ns": (after.cpu_ns - before.cpu_ns) / self.queued}


@dataclass(frozen=True)
class Strangers(Load):
    """A flood from forged source addresses, and a peer that the guard already knows."""

    # For each second of the window; there are 2**24 source addresses.
    sources: int = 20_000_000
    metrics = ("growth", "requests", "lost", "admitted", "over_ceiling", "over_rate", "dropped")

    def measure(self, subject: Subject, window: Window) -> Sample:
        from benches.programs.guards import Flood  # noqa: PLC0415 - as above

        count = min(1 << 24, int(self.sources * window.seconds))
        window = Window(count / 100_000, 30)
        with self.start(subject, window, rcvbuf=QUEUE_BUFFER, force=True) as server:
            port = server.line()["port"]
            with Child("guards known_peer", cores()[0], window.lifetime, port=port) as peer:
                peer.wait_until_counting(beyond=100)  # by then the guard knows it
                before, usable = resident(server), os.sched_getaffinity(0)
                os.sched_setaffinity(0, {cores()[0]})
                try:
                    with Flood(port, size=self.size) as flood:
                        flood.send(count)
                finally:
                    os.sched_setaffinity(0, usable)
                found = {"growth": resident(server) - before, "flood": count, **peer.stop()}
            found["lost"] = share_lost(found["requests"], found["replies"])
            return found | server.stop()


def cores() -> tuple[int, int]:
    """Return the core of the load and that of the measured program."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) == 1:
        raise ChildFailed("the load and the measured program need a core each")
    return usable[0], usable[1]


def resident(child: Child) -> int:
    return memory(child.pid)["Rss"]


def watch(child: Child, source: Child, window: Window) -> Sample:
    """Look at a program twice, and at the source of its datagrams, and compare."""
    source.wait_until_counting()
    time.sleep(window.warmup)
    before, fed_before = child.look(), source.count
    time.sleep(window.seconds)
    child.wait_until_counting(beyond=before.count)
    after, fed = child.look(), source.count - fed_before
    return speed(before, after) | {"lost": share_lost(fed, after.count - before.count)}


def speed(before: Look, after: Look) -> Sample:
    """Return the progress of a program between two looks at it."""
    datagrams = after.count - before.count
    if not datagrams:
        raise ChildFailed("no datagram was counted")
    elapsed = after.time_ns - before.time_ns
    return {
        "rate": datagrams / elapsed * 1e9,
        "cpu_ns": (after.cpu_ns - before.cpu_ns) / datagrams,
        "busy": (after.cpu_ns - before.cpu_ns) / elapsed,
        "disturbed": (after.delay_ns - before.delay_ns) / elapsed,
    }


def share_lost(sent: int, received: int) -> float:
    """Return the share of datagrams that did not arrive.

    It is at least 0: a datagram sent before the measurement may count as received.
    """
    return max(0.0, 1 - received / sent) if sent else 0.0
