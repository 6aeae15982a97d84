"""Transports and their loop: debug mode, contexts, tasks, forks."""

import asyncio
import contextvars
import gc
import itertools
import logging
import math
import socket as std
import sys
import weakref

import pytest
import uvloop

import tomada.asyncio
from support import run
from tomada import socket
from traffic import numbered
from transports import LOOPS, Recorder, echo, hear, recorder, turns

number = contextvars.ContextVar("number")


async def test_callbacks_run_in_the_context_where_the_endpoint_was_made(endpoint, inet):
    seen = []

    class Noting(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            seen.append(("made", number.get()))

        def datagram_received(self, data, addr):
            seen.append((data, number.get()))
            super().datagram_received(data, addr)

        def connection_lost(self, error):
            seen.append(("lost", number.get()))
            super().connection_lost(error)

    number.set("of the maker")
    transport, protocol = await endpoint(Noting)
    number.set("of the closer")
    with inet.bound(std) as other:
        for data in numbered(3):
            other.sendto(data, transport.get_extra_info("sockname"))
        await protocol.received(3)
        transport.close()
        await protocol.lost()
    assert seen == [
        ("made", "of the maker"),
        *((data, "of the maker") for data in numbered(3)),
        ("lost", "of the closer"),
    ]


@pytest.mark.parametrize("new_loop", LOOPS.values(), ids=LOOPS)
def test_transport_in_a_reference_cycle_with_its_socket_is_collected(new_loop):
    class Knowing(socket.socket):
        pass

    async def open_and_close():
        loop = asyncio.get_running_loop()
        sock = Knowing(std.AF_INET, std.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        sock.transport, protocol = await loop.create_datagram_endpoint(Recorder, sock=sock)
        sock.transport.close()
        await protocol.lost()
        await turns()
        return weakref.ref(sock)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        known = runner.run(open_and_close())
    gc.collect()
    assert known() is None


class Interrupted(tomada.asyncio.EventLoop):
    """A loop whose clock raises KeyboardInterrupt when it is read for the nth time."""

    reads_left = math.inf
    timer = None

    def time(self):
        self.reads_left -= 1
        if self.reads_left == 0:
            raise KeyboardInterrupt
        return super().time()

    def schedule(self):
        self.timer = self.call_later(1000, print)

    def turn(self, *, schedules):
        if schedules:
            self.call_soon(self.schedule)
        self.call_soon(self.stop)
        try:
            self.run_forever()
        finally:
            if schedules and self.timer is not None:
                self.timer.cancel()


# The next timer is the reason to read the clock: when a turn begins to run callbacks or, if there
# was none yet, before datagrams are delivered.
@pytest.mark.parametrize(("has_timer", "least"), [(True, 1), (False, 2)])
def test_interrupt_while_the_loop_reads_its_clock_ends_it(has_timer, least):
    loop = Interrupted()
    try:
        transport, protocol = loop.run_until_complete(
            loop.create_datagram_endpoint(Recorder, local_addr=("127.0.0.1", 0))
        )
        if has_timer:
            loop.schedule()
        for reads in itertools.count(1):
            transport.sendto(b"%d" % reads, transport.get_extra_info("sockname"))
            loop.reads_left = reads
            try:
                while len(protocol.payloads) < reads:
                    loop.turn(schedules=not has_timer)
                break
            except KeyboardInterrupt:
                loop.reads_left = math.inf
            # It has cost no datagram.
            while len(protocol.payloads) < reads:
                loop.turn(schedules=not has_timer)
        assert reads > least
        assert protocol.payloads == [b"%d" % number for number in range(1, reads + 1)]
        loop.reads_left = math.inf
        transport.close()
        loop.run_until_complete(protocol.lost())
    finally:
        loop.close()


async def test_context_variables_set_by_callbacks_stay(endpoint, inet):
    # Each callback sees the changes of the previous one, even if a drain is interrupted.
    class Counting(Recorder):
        def datagram_received(self, data, addr):
            number.set(number.get() + 1)
            self.last = number.get()
            for _ in range(2_000):
                pass
            super().datagram_received(data, addr)

    number.set(0)
    transport, protocol = await endpoint(Counting)
    with inet.bound(std) as other:
        for data in numbered(100):
            other.sendto(data, transport.get_extra_info("sockname"))
        await protocol.received(50)
        for data in numbered(100):
            other.sendto(data, transport.get_extra_info("sockname"))
        await protocol.received(200)
    assert protocol.last == 200
    assert number.get() == 0


def test_debug_mode(runner, endpoint, inet, caplog):
    loop = runner.get_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 0

    async def main():
        transport, protocol = await endpoint(recorder(datagram_received=echo))
        with inet.bound(std) as other:
            other.sendto(b"x", transport.get_extra_info("sockname"))
            assert await hear(other) == [b"x"]
        transport.pause_reading()
        transport.resume_reading()
        transport.close()
        await protocol.lost()

    with caplog.at_level(logging.DEBUG, "asyncio"):
        runner.run(main())
    text = "\n".join(caplog.messages)
    assert "Datagram endpoint local_addr=('127.0.0.1', 0) remote_addr=None created" in text
    assert "created: (<DatagramTransport " in text
    assert "pauses reading" in text
    assert "resumes reading" in text
    if not isinstance(loop, uvloop.Loop):
        # uvloop does not report how long a descriptor's callback took.
        assert "Executing <Handle Context.run(<built-in met" in text


async def test_transport_needs_no_task(endpoint, inet):
    before = asyncio.all_tasks()
    transport, protocol = await endpoint()
    with inet.bound(std) as other:
        other.sendto(b"x", transport.get_extra_info("sockname"))
        await protocol.received(1)
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("new_loop", LOOPS.values(), ids=LOOPS)
def test_tasks_cancelled_at_shutdown_may_still_send(new_loop, inet):
    async def say_goodbye(to):
        transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
            Recorder, local_addr=("127.0.0.1", 0)
        )
        try:
            await asyncio.Event().wait()
        finally:
            transport.sendto(b"good", to)
            transport.sendto(b"bye", to)
            transport.close()
            await protocol.lost()

    async def main(to):
        task = asyncio.ensure_future(say_goodbye(to))
        await turns(5)
        return task

    with inet.bound(std) as other:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            task = runner.run(main(other.getsockname()))
        assert task.cancelled()
        assert [other.recv(10) for _ in range(2)] == [b"good", b"bye"]


def test_run_makes_the_loop():
    async def main():
        loop = asyncio.get_running_loop()
        return type(loop), loop.get_debug()

    assert tomada.asyncio.run(main()) == (tomada.asyncio.EventLoop, False)
    assert tomada.asyncio.run(main(), debug=True) == (tomada.asyncio.EventLoop, True)
    # The same exception as asyncio.run, which differs since CPython 3.14.
    with pytest.raises((ValueError, TypeError), match=r"[Cc]oroutine"):
        tomada.asyncio.run(main)


def test_new_event_loop_is_like_asyncios():
    async def main():
        return type(asyncio.get_running_loop())

    if sys.version_info >= (3, 12):
        assert (
            asyncio.run(main(), loop_factory=tomada.asyncio.EventLoop) is tomada.asyncio.EventLoop
        )
    with asyncio.Runner(loop_factory=tomada.asyncio.EventLoop) as runner:
        assert runner.run(main()) is tomada.asyncio.EventLoop


FORKS = """
import asyncio, os, socket, sys, tomada.asyncio

class Echo(asyncio.DatagramProtocol):
    def __init__(self):
        self.heard = asyncio.get_running_loop().create_future()
    def connection_made(self, transport):
        self.transport = transport
    def datagram_received(self, data, addr):
        if not self.heard.done():
            self.heard.set_result(data)

async def exchange():
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    transport.sendto(b"to myself", transport.get_extra_info("sockname"))
    data = await asyncio.wait_for(protocol.heard, 30)
    return transport, data

async def main():
    transport, data = await exchange()
    assert data == b"to myself"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        other.settimeout(30)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                # The child has the transport too, but must not use its loop.
                transport.sendto(b"from the child", other.getsockname())
                asyncio.events._set_running_loop(None)
                child = asyncio.Runner(loop_factory=tomada.asyncio.EventLoop)
                _, data = child.run(exchange())
                assert data == b"to myself"
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert other.recv(100) == b"from the child"
        transport.sendto(b"from the parent", other.getsockname())
        assert other.recv(100) == b"from the parent"
    _, data = await exchange()
    assert data == b"to myself"
    transport.close()
    print("done")

tomada.asyncio.run(main())
"""


def test_forked_child_uses_its_own_loop():
    assert run(FORKS) == "done\n"


async def test_two_loops_in_two_threads(endpoint):
    # Receive buffers belong to a thread: neither thread sees the other's.
    def in_a_thread():
        async def main():
            transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
                Recorder, local_addr=("127.0.0.1", 0)
            )
            for data in numbered(500):
                transport.sendto(data, transport.get_extra_info("sockname"))
                await turns()
            await protocol.received(500)
            transport.close()
            await protocol.lost()
            return protocol.payloads

        return tomada.asyncio.run(main())

    other = asyncio.ensure_future(asyncio.to_thread(in_a_thread))
    transport, protocol = await endpoint()
    for data in numbered(500, size=20):
        transport.sendto(data, transport.get_extra_info("sockname"))
        await turns()
    assert await protocol.received(500) == numbered(500, size=20)
    assert await other == numbered(500)


async def test_datagrams_wake_a_sleeping_loop(endpoint, inet, peer):
    transport, protocol = await endpoint()
    other = peer(inet)
    for count in range(1, 6):
        other.ask("send", datagrams=[b"x"], to=transport.get_extra_info("sockname"))
        await protocol.received(count)
        await asyncio.to_thread(other.answer)
