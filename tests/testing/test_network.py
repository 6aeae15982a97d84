"""The network in memory: endpoints, transports, impairments, and the order of events."""

import asyncio
import dataclasses
import inspect
import itertools
import operator
import selectors
import socket as std

import pytest

import tomada.testing
from tomada.asyncio import Endpoint
from tomada.testing import Impairments, MemoryEndpoint, MemoryStats, network

SERVER = ("10.0.0.1", 53)


async def echo(net, address=SERVER, received=None):
    """Serve an echo until it is cancelled."""
    async with net.open_endpoint(local_addr=address) as endpoint:
        async for data, sender in endpoint:
            if received is not None:
                received.append(data)
            endpoint.send(data, sender)


def run(main, **options):
    """Run a function with a network on the virtual clock, beside an echo server."""

    async def everything():
        async with network(**{"seed": 1, **options}) as net, asyncio.TaskGroup() as tasks:
            server = tasks.create_task(echo(net))
            await asyncio.sleep(0.001)  # it has bound its address
            try:
                return await main(net)
            finally:
                server.cancel()

    return tomada.testing.run(everything())


def test_endpoints_exchange_datagrams():
    async def main(net):
        async with net.open_endpoint(remote_addr=SERVER) as endpoint:
            assert endpoint.get_extra_info("peername") == SERVER
            assert endpoint.get_extra_info("sockname") == ("127.0.0.1", 49152)
            endpoint.send_many([b"1", b"", b"3"])
            received = [await endpoint.recv()]
            while len(received) < 3:
                received += await endpoint.recv_many()
            assert received == [(b"1", SERVER), (b"", SERVER), (b"3", SERVER)]
            assert endpoint.stats() == MemoryStats(3, 2, 3, 2, 0)
        assert net.stats.sent == 6
        assert [item.destination for item in net.log][:3] == [SERVER] * 3

    run(main)


def test_endpoint_that_stops_receiving_still_sends_and_asks():
    async def main(net):
        endpoint = await net.open_endpoint(remote_addr=SERVER)
        waiting = asyncio.ensure_future(endpoint.recv())
        iterating = asyncio.ensure_future(anext(aiter(endpoint), None))
        await asyncio.sleep(0)
        endpoint.stop_receiving()
        with pytest.raises(OSError, match="has stopped receiving"):
            await waiting
        assert await iterating is None
        assert await endpoint.request(b"x", match=operator.eq) == b"x"
        late = asyncio.ensure_future(asyncio.sleep(1000))
        assert await endpoint.shutdown(0.01, [late]) == 1
        assert late.cancelled()
        assert endpoint.is_closing()

    run(main)


def test_endpoints_have_the_methods_of_real_ones():
    def methods(of):
        return {name: method for name, method in vars(of).items() if not name.startswith("_")}

    ours, real = methods(MemoryEndpoint), methods(Endpoint)
    assert set(real) - set(ours) == {"socket", "recv_datagram", "recv_batch"}
    for name in ours:
        parameters = (inspect.signature(it[name]).parameters for it in (ours, real))
        ours_of, reals = (list(given.items()) for given in parameters)
        kinds = [[(each, it.kind, it.default) for each, it in them] for them in (ours_of, reals)]
        assert kinds[0] == kinds[1], name
    assert {field.name for field in dataclasses.fields(MemoryStats)} <= set(dir(tomada.Stats))


def test_delays_are_those_of_the_clock():
    async def main(net):
        loop = asyncio.get_running_loop()
        start = loop.time()
        async with net.open_endpoint(remote_addr=SERVER) as endpoint:
            endpoint.send(b"x")
            await endpoint.recv()
        return loop.time() - start

    assert run(main, delay=15.0) == pytest.approx(30.0)


def test_request_retries_until_there_is_an_answer():
    async def main(net):
        loop = asyncio.get_running_loop()
        start = loop.time()
        async with net.open_endpoint(remote_addr=SERVER) as endpoint:
            reply = await endpoint.request(b"x", timeout=30, retries=5)
            assert [item.fate.dropped for item in net.log][:3] == ["scripted"] * 3
            assert loop.time() - start > 1
            net.cut()
            with pytest.raises(TimeoutError, match=r"no reply from 10\.0\.0\.1:53: 3 attempts"):
                await endpoint.request(b"y", timeout=30, retries=2)
            net.heal()
            match = lambda request, reply: request == reply  # noqa: E731
            assert await endpoint.request(b"z", match=match) == b"z"
        return reply

    assert run(main, script=["drop"] * 3) == b"x"


def test_a_port_that_nobody_has_is_refused():
    async def main(net):
        async with net.open_endpoint(remote_addr=("10.0.0.1", 54)) as endpoint:
            endpoint.send(b"x")
            with pytest.raises(ConnectionRefusedError):
                await endpoint.recv()
            with pytest.raises(ConnectionRefusedError):
                await endpoint.request(b"x", retry_refused=False)
        async with net.open_endpoint() as endpoint:
            endpoint.send(b"x", ("10.0.0.1", 54))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await endpoint.recv()
        assert net.stats.unsendable == 3

    run(main)


def test_an_address_belongs_to_one_endpoint_until_it_closes():
    async def main(net):
        with pytest.raises(OSError, match=r"address already in use: 10\.0\.0\.1:53"):
            await net.open_endpoint(local_addr=SERVER)
        endpoint = await net.open_endpoint(local_addr=("10.0.0.2", 7))
        waiting = asyncio.create_task(endpoint.recv())
        await asyncio.sleep(0)
        await endpoint.aclose()
        with pytest.raises(OSError, match="closed"):
            await waiting
        with pytest.raises(OSError, match="closed"):
            endpoint.send(b"x", SERVER)
        async with net.open_endpoint(local_addr=("10.0.0.2", 7)):
            pass

    run(main)


def test_a_wildcard_replies_from_the_address_that_was_asked():
    async def main(net):
        task = asyncio.create_task(echo(net, ("0.0.0.0", 99)))  # noqa: S104
        await asyncio.sleep(0)
        async with net.open_endpoint(remote_addr=("10.9.9.9", 99)) as endpoint:
            endpoint.send(b"x")
            assert await endpoint.recv() == (b"x", ("10.9.9.9", 99))
        task.cancel()

    run(main)


def test_a_full_queue_drops():
    async def main(net):
        async with net.open_endpoint(local_addr=("10.0.0.3", 1)) as slow, net.open_endpoint() as it:
            for _ in range(10):
                it.send(b"x" * 60_000, ("10.0.0.3", 1))
            await asyncio.sleep(1)
            assert slow.stats().kernel_drops == 7
            assert len(await slow.recv_many()) == 3

    run(main)


def test_cancelling_a_receive_loses_nothing():
    async def main(net):
        async with net.open_endpoint(remote_addr=SERVER) as endpoint:
            first, second = (asyncio.create_task(endpoint.recv()) for _ in range(2))
            await asyncio.sleep(0)
            # The datagram wakes the first task, which is cancelled before it runs.
            endpoint._queue.datagram_received(b"x", SERVER)  # noqa: SLF001
            first.cancel()
            assert (await second)[0] == b"x"
            assert first.cancelled()

    run(main)


def test_protocols_work_as_on_a_loop():
    class Recorder(asyncio.DatagramProtocol):
        def __init__(self):
            self.events = []

        def connection_made(self, _transport):
            self.events.append("made")

        def datagram_received(self, data, addr):
            self.events.append((data, addr))

        def error_received(self, exc):
            self.events.append(type(exc))

        def connection_lost(self, exc):
            self.events.append(exc)

    async def main(net):
        loop = asyncio.get_running_loop()
        net.install(loop)
        transport, protocol = await loop.create_datagram_endpoint(Recorder, remote_addr=SERVER)
        assert protocol.events == ["made"]
        assert isinstance(transport, asyncio.DatagramTransport)
        transport.sendto(b"x")
        await asyncio.sleep(0.1)
        transport.sendto(b"x" * 70_000)
        await asyncio.sleep(0.1)
        with pytest.raises(ValueError, match="Invalid address"):
            transport.sendto(b"x", ("10.0.0.1", 99))
        transport.close()
        transport.sendto(b"ignored")
        await asyncio.sleep(0.1)
        assert protocol.events == ["made", (b"x", SERVER), OSError, None]

    run(main)


def test_a_given_socket_lends_its_address():
    async def main(net):
        sock = std.socket(std.AF_INET, std.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        name = sock.getsockname()
        transport, _ = await net.create_datagram_endpoint(asyncio.DatagramProtocol, sock=sock)
        assert transport.get_extra_info("sockname") == name
        assert sock.fileno() == -1

    run(main)


def race(seed, jitter=0.0):
    """Return the order in which the datagrams of several clients arrive at once."""
    received = []

    async def main():
        async with network(seed=seed, delay=1.0, jitter=jitter) as net:
            server = asyncio.create_task(echo(net, received=received))
            await asyncio.sleep(0)
            clients = [await net.open_endpoint(remote_addr=SERVER) for _ in range(4)]
            for client, number in itertools.product(clients, range(3)):
                client.send(b"%d %d" % (clients.index(client), number))
            await asyncio.sleep(5)
            server.cancel()

    tomada.testing.run(main())
    return received


def test_the_seed_decides_the_order_of_simultaneous_datagrams():
    orders = [race(seed) for seed in range(5)]
    assert [race(seed) for seed in range(5)] == orders
    assert len({tuple(order) for order in orders}) > 1
    for order in orders:
        for client in range(4):
            mine = [data for data in order if data.startswith(b"%d" % client)]
            assert mine == [b"%d %d" % (client, number) for number in range(3)]


def test_one_seed_gives_one_log():
    options = {"loss": 0.2, "duplicate": 0.2, "jitter": 0.1, "delay": 0.1, "corrupt": 0.1}

    def once(seed):
        async def main(net):
            async with net.open_endpoint(remote_addr=SERVER) as endpoint:
                for number in range(50):
                    endpoint.send(b"%d" % number)
                await asyncio.sleep(10)
            return [(item.fate, item.fate.time) for item in net.log]

        return run(main, seed=seed, **options)

    assert once(5) == once(5)
    assert once(5) != once(6)


def test_the_log_keeps_the_latest_of_each_direction():
    async def main(net):
        async with net.open_endpoint(remote_addr=SERVER) as endpoint:
            for number in range(5):
                endpoint.send(b"x" * number)
                await endpoint.recv()
        return [(item.source == SERVER, item.fate.size) for item in net.log]

    assert run(main, log_size=2) == [(False, 3), (True, 3), (False, 4), (True, 4)]
    assert run(main, log_size=0) == []


def test_directions_and_functions():
    seen = []

    def script(arrival):
        seen.append((arrival.direction, arrival.client, arrival.index, arrival.data))
        return "duplicate"

    async def main(net):
        async with net.open_endpoint(remote_addr=SERVER) as endpoint:
            endpoint.send(b"x")
            await asyncio.sleep(1)
            assert len(await endpoint.recv_many()) == 2
            net.change(to_server=Impairments(loss=1.0))
            endpoint.send(b"lost")
            await asyncio.sleep(1)
            assert net.stats.lost == 1
            net.cut("to_client")

    run(main, to_client=Impairments(script=script))
    assert seen == [("to_client", 0, 0, b"x")]


def test_a_new_script_begins_with_the_next_datagram():
    async def main(net):
        async with net.open_endpoint(remote_addr=SERVER) as endpoint:

            async def copies():
                endpoint.send(b"x")
                await asyncio.sleep(1)
                return len(await endpoint.recv_many())

            assert await copies() == 2
            net.change(delay=0.1)
            assert await copies() == 3  # the list continues
            net.change(script=["pass", "duplicate"])
            assert await copies() == 2
            net.change(to_client=Impairments(script=["duplicate 3"]), delay=0.0)
            assert await copies() == 4
            net.change(script=None)
            assert await copies() == 1
            with pytest.raises(ValueError, match="must be"):
                net.change(script=["lose"])

    run(main, script=["pass", "duplicate", "duplicate", "duplicate 2", "drop"])


def test_thirty_seconds_of_backoff_take_no_real_wait(monkeypatch):
    waits = []

    class CountingSelector(selectors.DefaultSelector):
        def select(self, timeout=None):
            waits.append(timeout)
            return super().select(timeout)

    async def main():
        async with (
            network(loss=1.0) as net,
            net.open_endpoint(remote_addr=("10.0.0.9", 9)) as endpoint,
        ):
            with pytest.raises(TimeoutError):
                await endpoint.request(b"x", timeout=30, retries=8)
            assert net.stats.lost == 9
            return asyncio.get_running_loop().time()

    monkeypatch.setattr(selectors, "DefaultSelector", CountingSelector)
    assert tomada.testing.run(main()) == 30
    # The loop looks for ready descriptors, but never sleeps.
    assert set(waits) == {0}
    assert len(waits) < 1000


def test_an_exception_of_a_protocol_loses_no_other_datagram():
    received, problems = [], []

    class Protocol(asyncio.DatagramProtocol):
        def datagram_received(self, data, _):
            received.append(data)
            if data == b"bad":
                raise ZeroDivisionError

    async def main(net):
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: problems.append(context["exception"]))
        await net.create_datagram_endpoint(Protocol, ("10.0.0.2", 1))
        async with net.open_endpoint(remote_addr=("10.0.0.2", 1)) as endpoint:
            endpoint.send_many([b"bad", b"2", b"3"])
            await asyncio.sleep(1)

    run(main)
    assert received == [b"bad", b"2", b"3"]
    assert [type(problem) for problem in problems] == [ZeroDivisionError]


def test_a_wrong_step_of_a_function_leaves_the_log_in_order():
    async def main(net):
        async with (
            net.open_endpoint(remote_addr=("10.0.0.2", 1)) as first,
            net.open_endpoint(remote_addr=("10.0.0.2", 2)) as second,
        ):
            first.send(b"x")
            with pytest.raises(ValueError, match="a script's step must be"):
                second.send(b"bad")
            assert [item.destination for item in net.log] == [("10.0.0.2", 1)]

    run(main, script=lambda arrival: "lose" if arrival.data == b"bad" else "pass")
