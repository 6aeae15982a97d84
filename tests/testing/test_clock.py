"""The loop whose clock jumps over waits."""

import asyncio
import contextlib
import socket as std
import threading
import time

import pytest

import tomada.testing
from tomada.asyncio import create_datagram_endpoint
from tomada.testing import VirtualClockLoop


def test_waits_take_no_real_time():
    async def main():
        loop = asyncio.get_running_loop()
        assert loop.time() == 0
        await asyncio.sleep(30)
        assert loop.time() == 30
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await loop.create_future()
        return loop.time()

    start = time.monotonic()
    assert tomada.testing.run(main()) == 3630
    assert time.monotonic() - start < 10


def test_timers_fire_in_order_at_their_times():
    async def main():
        loop, fired = asyncio.get_running_loop(), []
        for delay in (0.3, 0.1, 1e-9, 86_400 * 365, 0.1 + 0.2, 2 / 3):
            loop.call_later(delay, lambda delay=delay: fired.append((delay, loop.time())))
        await asyncio.sleep(86_400 * 366)
        return fired

    fired = tomada.testing.run(main())
    assert [delay for delay, _ in fired] == [1e-9, 0.1, 0.3, 0.1 + 0.2, 2 / 3, 86_400 * 365]
    assert all(when == pytest.approx(delay) for delay, when in fired)


def test_ready_sockets_come_before_timers():
    async def main():
        loop = asyncio.get_running_loop()
        received = loop.create_future()

        class Protocol(asyncio.DatagramProtocol):
            def datagram_received(self, data, _):
                received.set_result((data, loop.time()))

        transport, _ = await create_datagram_endpoint(loop, Protocol, ("127.0.0.1", 0))
        loop.call_later(30, received.cancel)
        transport.sendto(b"x", transport.get_extra_info("sockname"))
        try:
            return await received
        finally:
            transport.close()

    assert tomada.testing.run(main()) == (b"x", 0.0)


def test_time_stands_still_for_threads():
    async def main():
        loop = asyncio.get_running_loop()
        is_timed_out = threading.Event()
        loop.call_later(1, is_timed_out.set)
        early = await asyncio.to_thread(is_timed_out.wait, 0.05)
        await asyncio.sleep(2)
        return early, is_timed_out.is_set(), loop.time()

    assert tomada.testing.run(main()) == (False, True, 2)


def test_patience_waits_for_peers_elsewhere():
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(20)

        def echo():
            with contextlib.suppress(OSError):
                data, address = server.recvfrom(100)
                time.sleep(0.02)
                server.sendto(data, address)

        async def main():
            thread = threading.Thread(target=echo)
            thread.start()
            remote = server.getsockname()
            async with tomada.asyncio.open_endpoint(remote_addr=remote) as endpoint:
                endpoint.send(b"x")
                async with asyncio.timeout(1):
                    reply, _ = await endpoint.recv()
            thread.join()
            return reply

        assert tomada.testing.run(main(), patience=20) == b"x"


def test_it_is_an_event_loop_of_tomada():
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        assert isinstance(runner.get_loop(), tomada.asyncio.EventLoop)
