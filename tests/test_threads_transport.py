"""A transport whose loop runs in one thread, and threads that ask it and send by way of the loop."""

import asyncio
import threading

import pytest

import tomada
from support import DEADLINE, RACES, eventually, together
from tomada import socket
from traffic import everything
from transports import LOOPS, Recorder, echo, recorder

COUNT = 30 * RACES


class Loop(threading.Thread):
    """An event loop in a thread of its own, with a transport."""

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
    """Run each sort of event loop in turn in another thread."""
    with Loop(request.param) as loop:
        yield loop


def ask(transport):
    """Ask a transport what any thread may ask it."""
    stats = transport.get_extra_info("stats")
    assert stats is None or isinstance(stats, tomada.Stats)
    assert transport.get_extra_info("errors", []) == []
    assert transport.get_extra_info("sockname")[0] == "127.0.0.1"
    assert transport.get_extra_info("nothing", 7) == 7
    assert transport.get_write_buffer_size() >= 0
    assert repr(transport).startswith("<DatagramTransport ")
    return transport.is_closing()


@pytest.mark.parametrize("end", ["close", "abort"])
def test_a_transport_ends_while_threads_send_through_its_loop(loop, inet, end):
    accepted, asked = [], []
    transport = loop.transport
    with inet.bound(socket) as peer:
        peer.settimeout(DEADLINE)
        to = peer.getsockname()

        def send_one(data):
            if not transport.is_closing():
                transport.sendto(data, to)
                accepted.append(data)

        def send(thread):
            for number in range(COUNT):
                loop.call(send_one, b"%d %d" % (thread, number))
                # The peer's queue holds a few hundred.
                eventually(lambda: len(accepted) - peer.stats().received < 100 or closed())

        def closed():
            return transport.is_closing()

        def watch():
            while not ask(transport):
                asked.append(None)

        def receive():
            received = []
            while not closed():
                received += [data for data, _ in everything(peer)]
            eventually(lambda: "lost" in loop.protocol.calls)
            return received + [data for data, _ in everything(peer)]

        def finish():
            eventually(lambda: len(accepted) >= COUNT and asked)
            loop.call(getattr(transport, end))

        received, *_ = together(receive, finish, watch, watch, *[lambda: send(0), lambda: send(1)])
    assert len(received) == len(set(received))
    if end == "close":
        assert sorted(received) == sorted(accepted)
    else:
        assert set(received) <= set(accepted)
    assert ask(transport)


def test_a_transport_ends_while_datagrams_arrive_and_threads_ask(inet):
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
def test_what_a_protocol_answers_is_counted_while_threads_watch(name, inet):
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


def test_loops_in_several_threads_have_transports_of_their_own():
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
