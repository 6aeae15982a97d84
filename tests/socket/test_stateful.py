"""Any sequence of calls has the same outcome as with the standard module, and as in a model."""

import contextlib
import socket as std
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, multiple, rule

import tomada
from families import length
from tomada import socket

pytestmark = pytest.mark.thread_unsafe(reason="hypothesis's state machines are classes")

PAYLOADS = st.binary(max_size=40) | st.sampled_from([b"same size", b"size same", b"", b"x" * 1500])
MANY = st.lists(PAYLOADS, min_size=1, max_size=12)


@dataclass(eq=False)
class Port:
    """The kernel's socket behind one or more objects: where it is bound, and its queue."""

    number: int
    queue: list = field(default_factory=list)
    peer: "Port | None" = None
    objects: int = 1
    is_shared: bool = False
    was_coalescing: bool = False

    def hears(self, other):
        return self.objects and self.peer in {None, other}

    def may_send(self, to):
        """Return whether no ICMP error will follow, which would arrive at an unpredictable time."""
        return (
            to.objects
            and (self.peer is None or self.peer.objects)
            and (self.peer is not to or to.hears(self))
        )


@dataclass(eq=False)
class Twins:
    """A tomada socket, a standard one with the same history, and the expected state of both."""

    ours: socket.socket
    theirs: std.socket
    port: Port

    def close(self):
        self.ours.close()
        self.theirs.close()
        self.port.objects -= 1


class Sockets(RuleBasedStateMachine):
    """Bound non-blocking sockets on loopback. A port is identified by its index."""

    twins = Bundle("twins")

    def __init__(self):
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.names = ({}, {})
        self.count = 0

    def teardown(self):
        self.stack.close()

    def track(self, ours, theirs, port):
        for sock in (ours, theirs):
            self.stack.callback(sock.close)
            sock.setblocking(False)
        return Twins(ours, theirs, port)

    def both(self, twins, call):
        """Make a call on both sides, and return their common outcome."""
        outcomes = [
            self.outcome(names, lambda side=side: call(side))
            for names, side in zip(self.names, (twins.ours, twins.theirs), strict=True)
        ]
        assert outcomes[0] == outcomes[1]
        return outcomes[0]

    def outcome(self, names, call):
        try:
            return self.known(names, call())
        except OSError as error:
            return type(error), error.errno

    def known(self, names, value):
        """Replace addresses with the indexes of their ports."""
        if isinstance(value, list):
            return [self.known(names, item) for item in value]
        if isinstance(value, tuple) and value not in names:
            return tuple(self.known(names, item) for item in value)
        return names.get(value, value)

    def arrive(self, to, sender, datagrams):
        if to.hears(sender):
            to.queue += [(data, sender.number) for data in datagrams]

    @rule(target=twins)
    def open(self):
        port = Port(self.count)
        self.count += 1
        # A separate address, so that no later socket can have the same.
        host = f"127.9.{port.number >> 8}.{port.number & 0xFF}"
        twins = self.track(
            socket.socket(std.AF_INET, std.SOCK_DGRAM),
            std.socket(std.AF_INET, std.SOCK_DGRAM),
            port,
        )
        for names, sock in zip(self.names, (twins.ours, twins.theirs), strict=True):
            sock.bind((host, 0))
            names[sock.getsockname()] = port.number
        return twins

    @rule(twins=twins)
    def bind_again(self, twins):
        self.both(twins, lambda sock: sock.bind(("127.0.0.1", 0)))

    @rule(twins=twins, peer=twins)
    def connect(self, twins, peer):
        if peer.port.objects:
            done = self.both(twins, lambda sock: sock.connect(self.name(sock, peer)))
            if done is None:
                twins.port.peer = peer.port

    def name(self, sock, peer):
        names = self.names[not isinstance(sock, tomada._core.Socket)]  # noqa: SLF001
        return next(name for name, number in names.items() if number == peer.port.number)

    @rule(twins=twins, data=PAYLOADS, flags=st.sampled_from([0, std.MSG_DONTWAIT]))
    def send(self, twins, data, flags):
        peer = twins.port.peer
        if peer is None or twins.port.may_send(peer):
            outcome = self.both(twins, lambda sock: sock.send(data, flags))
            if outcome == len(data) and peer:
                self.arrive(peer, twins.port, [data])

    @rule(twins=twins, peer=twins, data=PAYLOADS)
    def sendto(self, twins, peer, data):
        if twins.port.may_send(peer.port):
            outcome = self.both(twins, lambda sock: sock.sendto(data, self.name(sock, peer)))
            if outcome == len(data) and twins.port.objects:
                self.arrive(peer.port, twins.port, [data])

    @rule(twins=twins, peer=twins, items=MANY, as_batch=st.booleans())
    def send_many(self, twins, peer, items, as_batch):
        if not twins.port.may_send(peer.port):
            return

        def send(sock):
            to = self.name(sock, peer)
            if sock is twins.theirs:
                sent = [sock.sendto(data, to) for data in items]
                return len(sent)
            if not as_batch:
                return sock.send_many(items, to)
            batch = tomada.Batch(16)
            for data in items:
                batch.append(data, to)
            return sock.send_batch(batch)

        if self.both(twins, send) == len(items):
            self.arrive(peer.port, twins.port, items)

    @rule(twins=twins, size=st.sampled_from([0, 5, 2000]), peek=st.booleans())
    def receive(self, twins, size, peek):
        if peek and twins.port.is_shared and twins.port.was_coalescing:
            return  # as documented for gro: the datagram moves to the backlog of one object
        flags = std.MSG_PEEK if peek else 0
        outcome = self.both(twins, lambda sock: sock.recvfrom(size, flags))
        if twins.ours.fileno() == -1:
            return
        if not twins.port.queue:
            assert outcome[0] is BlockingIOError
            return
        data, sender = twins.port.queue[0]
        assert outcome == (data[:size], sender)
        if not peek:
            del twins.port.queue[0]

    @rule(twins=twins, most=st.integers(1, 20), way=st.sampled_from(["list", "batch", "records"]))
    def receive_many(self, twins, most, way):
        queue = twins.port.queue

        def receive(sock):
            if sock is twins.theirs:
                received = [sock.recvfrom(2000)]
                with contextlib.suppress(BlockingIOError):
                    while len(received) < most:
                        received.append(sock.recvfrom(2000))
                return received
            if way == "batch":
                batch, received = tomada.Batch(1), []
                while len(received) < min(most, max(1, len(queue))):
                    sock.recv_batch(batch)
                    received += [(bytes(data), address) for data, address in batch]
                return received
            if way == "records":
                return [(item.data, item.address) for item in sock.recv_datagrams(most)]
            return sock.recv_many(most)

        if way == "batch" and twins.ours.fileno() != -1 and (twins.ours.gro or twins.ours.pending):
            return  # a slot may have more datagrams than requested
        outcome = self.both(twins, receive)
        if twins.ours.fileno() != -1 and queue:
            assert outcome == queue[:most]
            del queue[:most]

    @rule(twins=twins)
    def switch_gro(self, twins):
        # The backlog of one object is invisible to others that share its port.
        if twins.ours.fileno() != -1 and not twins.port.is_shared:
            twins.ours.gro = not twins.ours.gro
            twins.port.was_coalescing = True

    @rule(target=twins, twins=twins)
    def dup(self, twins):
        if twins.ours.fileno() == -1 or twins.ours.gro or twins.ours.pending:
            return multiple()
        twins.port.objects += 1
        twins.port.is_shared = True
        return self.track(twins.ours.dup(), twins.theirs.dup(), twins.port)

    @rule(target=twins, twins=consumes(twins))
    def detach(self, twins):
        if twins.ours.fileno() == -1 or twins.ours.gro or twins.ours.pending:
            return twins
        ours, theirs = twins.ours.detach(), twins.theirs.detach()
        assert (twins.ours.fileno(), twins.ours.detach()) == (-1, -1)
        return self.track(socket.socket(fileno=ours), std.socket(fileno=theirs), twins.port)

    @rule(twins=twins)
    def close(self, twins):
        if twins.ours.fileno() != -1:
            twins.close()
        assert twins.ours.fileno() == twins.theirs.fileno() == -1

    @rule(twins=twins)
    def ask(self, twins):
        self.both(twins, lambda sock: sock.getsockname())
        self.both(twins, lambda sock: sock.getpeername())
        self.both(twins, lambda sock: sock.gettimeout())


TestSockets = Sockets.TestCase
TestSockets.settings = settings(
    max_examples=length(100),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
