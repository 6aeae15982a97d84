"""A transport, the thread of its loop, and other threads that read it and send through the loop."""

import asyncio
import threading

import pytest

import tomada
from support import DEADLINE, RACES, eventually, together
from tomada import socket
from traffic import payloads
from transports import LOOPS, Recorder, echo, recorder

pytestmark = pytest.mark.thread_unsafe(reason="it starts threads itself")

COUNT = 30 * RACES


class Loop(threading.Thread):
    """An event loop in its own thread, with a transport."""

    def __init__(self, name, factory=Recorder):
        super().__init__(daemon=True)
        self._name, self._factory = name, factory
        self._made = threading.Event()
        self.problems = []
        self.start()
        assert self._made.wait(DEADLINE)

    def run(self):
        with asyncio.Runner(loop_factory=LOOPS[self._name]) as runner:
            self.loop = runner.get_loop()
            self.loop.set_exception_handler(lambda _, context: self.problems.append(context))
            runner.run(self._main())

    async def _main(self):
        self._over = asyncio.Event()
        self.transport, self.protocol = await self.loop.create_datagram_endpoint(
            self._factory, local_addr=("127.0.0.1", 0)
        )
        self.address = self.transport.get_extra_info("sockname")
        self._made.set()
        await self._over.wait()
        self.transport.abort()
        await self.protocol.lost()

    def call(self, function, *arguments):
        self.loop.call_soon_threadsafe(function, *arguments)

    def end(self):
        self.call(self._over.set)
        self.join(DEADLINE)
        assert not self.is_alive(), "the loop does not end"
        assert not self.problems

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()


@pytest.fixture(params=LOOPS)
def loop(request):
    """Run each kind of event loop in turn in another thread."""
    with Loop(request.param) as loop:
        yield loop


def ask(transport):
    """Call everything on a transport that any thread may call."""
    stats = transport.get_extra_info("stats")
    assert stats is None or isinstance(stats, tomada.Stats)
    assert transport.get_extra_info("errors", []) == []
    assert transport.get_extra_info("sockname")[0] == "127.0.0.1"
    assert transport.get_extra_info("nothing", 7) == 7
    assert transport.get_write_buffer_size() >= 0
    assert repr(transport).startswith("<DatagramTransport ")
    return transport.is_closing()


class Traffic:
    """Datagrams that threads send to a peer through a transport's loop."""

    def __init__(self, loop, peer):
        self._loop, self._transport, self._peer = loop, loop.transport, peer
        self._to = peer.getsockname()
        self._asked, self.received, self.accepted = [], [], []

    def send(self, thread):
        for number in range(COUNT):
            self._asked.append(None)
            self._loop.call(self._send_one, b"%d %d" % (thread, number))
            # The peer's queue holds a few hundred datagrams.
            eventually(
                lambda: len(self._asked) - len(self.received) < 100 or self._transport.is_closing()
            )

    def _send_one(self, data):
        if not self._transport.is_closing():
            self._transport.sendto(data, self._to)
            self.accepted.append(data)

    def receive(self):
        while "lost" not in self._loop.protocol.calls:
            self.received += payloads(self._peer)
        self.received += payloads(self._peer)


@pytest.mark.parametrize("end", ["close", "abort"])
def test_transport_closes_while_threads_send_through_its_loop(loop, inet, end):
    with inet.bound(socket) as peer:
        traffic = Traffic(loop, peer)

        def watch():
            while not ask(loop.transport):
                pass

        def finish():
            eventually(lambda: len(traffic.accepted) >= COUNT)
            loop.call(getattr(loop.transport, end))

        senders = [lambda: traffic.send(0), lambda: traffic.send(1)]
        together(traffic.receive, finish, watch, watch, *senders)
    received, accepted = traffic.received, traffic.accepted
    assert len(received) == len(set(received))
    assert set(received) <= set(accepted)
    if end == "close":
        assert len(received) == len(accepted)
    assert ask(loop.transport)


def test_transport_closes_while_datagrams_arrive_and_threads_read_it(inet):
    for name in LOOPS:
        for _ in range(max(1, RACES // 5)):
            with inet.bound(socket) as sender, Loop(name) as loop:
                protocol, transport = loop.protocol, loop.transport

                def send(sender=sender, protocol=protocol, loop=loop):
                    sent = 0
                    while sent < 50 * RACES and "lost" not in protocol.calls:
                        sent += sender.send_many([b"%d" % sent], loop.address)

                def watch(transport=transport):
                    while not ask(transport):
                        pass

                def finish(protocol=protocol, transport=transport, loop=loop):
                    eventually(lambda: len(protocol.datagrams) > 20)
                    loop.call(transport.close)

                together(send, watch, watch, finish)
                eventually(lambda protocol=protocol: "lost" in protocol.calls)
                # Each once, and in order.
                numbers = [int(data) for data in protocol.payloads]
                assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("name", LOOPS)
def test_protocol_replies_are_counted_while_threads_read_the_counters(name, inet):
    is_over = []
    with inet.bound(socket) as peer, Loop(name, recorder(datagram_received=echo)) as loop:
        peer.settimeout(DEADLINE)

        def exchange():
            for number in range(COUNT):
                peer.sendto(b"%d" % number, loop.address)
                assert peer.recv(100) == b"%d" % number
            is_over.append(True)

        def watch():
            last = 0
            while not is_over:
                stats = loop.transport.get_extra_info("stats")
                assert stats.received >= last
                last = stats.received

        together(exchange, watch, watch)
        eventually(lambda: loop.transport.get_extra_info("stats").sent == COUNT)
        assert loop.transport.get_extra_info("stats").received == COUNT


def test_loops_in_several_threads_have_their_own_transports():
    counts = [0] * 4

    def run(index):
        async def main():
            loop = asyncio.get_running_loop()
            transport, protocol = await loop.create_datagram_endpoint(
                Recorder, local_addr=("127.0.0.1", 0)
            )
            to = transport.get_extra_info("sockname")
            for start in range(0, COUNT, 10):
                for number in range(10):
                    transport.sendto(b"%d" % number, to)
                await protocol.received(start + 10)
            counts[index] = len(protocol.datagrams)
            transport.close()
            await protocol.lost()

        tomada.asyncio.run(main())

    together(*(lambda index=index: run(index) for index in range(4)))
    assert counts == [COUNT] * 4
