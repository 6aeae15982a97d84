"""Endpoints on trio: the interface of asyncio's, and trio's rules of cancellation."""

import contextlib
import errno
import inspect
import socket as std
import time

import pytest

from answering import LONG, Lossy, Server, echo, same, silence
from support import DEADLINE, open_descriptors
from tomada import Batch, Guard

trio = pytest.importorskip("trio")
from trio import testing  # noqa: E402 - needs trio

from tomada.trio import open_endpoint  # noqa: E402 - as above


def on_trio(test):
    """Run a test on trio."""

    def run(**fixtures):
        async def main():
            with trio.fail_after(DEADLINE):
                await test(**fixtures)

        before = open_descriptors()
        trio.run(main)
        assert open_descriptors() == before

    run.__signature__ = inspect.signature(test)
    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


@pytest.fixture
def client():
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(DEADLINE)
        yield sock


WAYS = ("recv", "recv_many", "recv_datagram", "anext", "recv_batch")


async def receive(endpoint, way):
    """Receive a datagram, and return its payload."""
    if way == "anext":
        return (await anext(aiter(endpoint)))[0]
    if way == "recv_batch":
        batch = Batch(1)
        assert await endpoint.recv_batch(batch) == 1
        return bytes(batch[0])
    received = await getattr(endpoint, way)()
    if way == "recv_datagram":
        return received.data
    return received[0][0] if way == "recv_many" else received[0]


@pytest.mark.parametrize("way", WAYS)
@on_trio
async def test_receiving_waits_and_is_a_checkpoint(client, way):
    async with open_endpoint(("127.0.0.1", 0)) as endpoint:
        address = endpoint.get_extra_info("sockname")
        got = []

        async def wait():
            got.append(await receive(endpoint, way))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await testing.wait_all_tasks_blocked()
            assert not got
            client.sendto(b"late", address)
        assert got == [b"late"]
        client.sendto(b"early", address)
        await trio.lowlevel.wait_readable(endpoint.socket.fileno())
        with testing.assert_checkpoints():
            assert await receive(endpoint, way) == b"early"


@pytest.mark.parametrize("way", WAYS)
@on_trio
async def test_cancelled_receiving_loses_nothing(client, way):
    async with open_endpoint(("127.0.0.1", 0)) as endpoint:
        with trio.move_on_after(0.01) as scope:
            await receive(endpoint, way)
        assert scope.cancelled_caught
        client.sendto(b"x", endpoint.get_extra_info("sockname"))
        await trio.lowlevel.wait_readable(endpoint.socket.fileno())
        with trio.CancelScope() as scope:
            scope.cancel()
            await receive(endpoint, way)  # there is a datagram, but the task is cancelled
        assert scope.cancelled_caught
        assert await receive(endpoint, way) == b"x"


@on_trio
async def test_several_tasks_receive_each_a_datagram(client):
    async with open_endpoint(("127.0.0.1", 0)) as endpoint:
        got = []

        async def wait():
            got.append((await endpoint.recv())[0])

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(wait)
            await testing.wait_all_tasks_blocked()
            for number in range(5):
                client.sendto(b"%d" % number, endpoint.get_extra_info("sockname"))
        assert sorted(got) == [b"%d" % number for number in range(5)]


@on_trio
async def test_endpoint_replies_from_the_address_that_was_asked():
    async with open_endpoint(("0.0.0.0", 0)) as endpoint:  # noqa: S104 - what is tested
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as client:
            client.settimeout(DEADLINE)
            client.connect(("127.0.0.2", endpoint.get_extra_info("sockname")[1]))
            client.send(b"x")
            data, address = await endpoint.recv()
            endpoint.send(data.upper(), address)
            await endpoint.drain()
            assert await trio.to_thread.run_sync(client.recv, 10) == b"X"


@on_trio
async def test_closing_ends_waiting_tasks_and_the_iteration():
    async with open_endpoint(("127.0.0.1", 0)) as endpoint:
        ends = []

        async def iterate():
            async for _ in endpoint:
                pass
            ends.append("iteration")

        async def wait():
            with pytest.raises(OSError, match="the endpoint is closed"):
                await endpoint.recv()
            ends.append("recv")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(iterate)
            nursery.start_soon(wait)
            await testing.wait_all_tasks_blocked()
            await endpoint.aclose()
        assert sorted(ends) == ["iteration", "recv"]
        with pytest.raises(OSError, match="the endpoint is closed"):
            endpoint.send(b"x", ("127.0.0.1", 9))
        with testing.assert_checkpoints():
            await endpoint.aclose()


@on_trio
async def test_cancelled_aclose_closes_at_once():
    endpoint = await open_endpoint(("127.0.0.1", 0))
    with trio.CancelScope() as scope:
        scope.cancel()
        await endpoint.aclose()
    assert scope.cancelled_caught
    assert endpoint.is_closing()


@on_trio
async def test_shutdown_sends_the_backlog(client):
    async with open_endpoint(("127.0.0.1", 0)) as endpoint:
        for number in range(100):
            endpoint.send(b"%d" % number, client.getsockname())
        assert await endpoint.shutdown(DEADLINE) == 0
        assert [client.recv(10) for _ in range(100)] == [b"%d" % number for number in range(100)]
        with pytest.raises(TypeError, match="leave their nursery"):
            await endpoint.shutdown(1, [None])


@on_trio
async def test_endpoint_that_stops_receiving_still_sends(client):
    async with open_endpoint(("127.0.0.1", 0)) as endpoint:
        endpoint.stop_receiving()
        assert [datagram async for datagram in endpoint] == []
        with pytest.raises(OSError, match="has stopped receiving") as caught:
            await endpoint.recv()
        assert caught.value.errno == errno.ESHUTDOWN
        endpoint.send(b"x", client.getsockname())
        assert client.recv(10) == b"x"


@pytest.mark.parametrize("match", [None, same])
@on_trio
async def test_request(inet, match):
    with Server(inet, Lossy(lambda count: count == 0)) as server:
        async with open_endpoint(remote_addr=server.address) as endpoint:
            assert await endpoint.request(b"x", timeout=LONG, match=match) == b"x"
            results = []

            async def ask(number):
                data = b"%d" % number
                results.append(await endpoint.request(data, timeout=LONG, match=match) == data)

            async with trio.open_nursery() as nursery:
                for number in range(80):
                    nursery.start_soon(ask, number)
            assert results == [True] * 80


@pytest.mark.parametrize("match", [None, same])
@on_trio
async def test_request_times_out_and_may_be_cancelled(inet, match):
    with Server(inet, silence) as server:
        async with open_endpoint(remote_addr=server.address) as endpoint:
            with pytest.raises(TimeoutError, match="2 attempts"):
                await endpoint.request(b"x", timeout=0.1, retries=1, match=match)
            with trio.move_on_after(0.01) as scope:
                await endpoint.request(b"y", timeout=LONG, match=match)
            assert scope.cancelled_caught


@on_trio
async def test_full_buffer_makes_datagrams_wait(unix):
    with std.socket(std.AF_UNIX, std.SOCK_DGRAM) as peer:
        peer.bind(unix.address())
        async with open_endpoint(unix.address(), peer.getsockname()) as endpoint:
            sent = [b"%d" % number for number in range(2000)]
            for data in sent:
                endpoint.send(data)
            peer.setblocking(False)
            received = []
            while len(received) < len(sent):
                with contextlib.suppress(BlockingIOError):
                    received.append(peer.recv(100))
                    continue
                await trio.sleep(0.001)
            assert received == sent


@on_trio
async def test_errors_of_peers_do_not_end_an_endpoint(client):
    async with open_endpoint(("127.0.0.1", 0), guard=Guard()) as endpoint:
        endpoint.send(b"x", ("127.0.0.1", 0))
        client.sendto(b"x", endpoint.get_extra_info("sockname"))
        assert (await endpoint.recv())[0] == b"x"
        assert endpoint.stats().send_errors == 1


@on_trio
async def test_names_and_families(inet, inet6):
    for kind, name, host in ((inet, "localhost", "127.0.0.1"), (inet6, "::1", "::1")):
        with Server(kind, echo) as server:
            remote = (name, server.address[1])
            async with open_endpoint(remote_addr=remote, family=kind.family) as endpoint:
                assert endpoint.get_extra_info("peername")[0] == host
                assert await endpoint.request(b"x", timeout=LONG) == b"x"


@on_trio
async def test_arguments_are_checked(client):
    with pytest.raises(ValueError, match="an address to bind to"):
        open_endpoint()
    with pytest.raises(TypeError, match="address"):
        open_endpoint(5)
    with pytest.raises(ValueError, match="different families"):
        await open_endpoint(("127.0.0.1", 0), ("::1", 9))
    with pytest.raises(OSError, match="in use") as caught:
        await open_endpoint(client.getsockname())
    assert caught.value.errno == errno.EADDRINUSE
    with pytest.raises(std.gaierror, match=r": no-such-host\.invalid$"):
        await open_endpoint(remote_addr=("no-such-host.invalid", 9))
    with pytest.raises(TypeError, match="async with"), open_endpoint(("127.0.0.1", 0)):
        pass


@on_trio
async def test_endpoint_collects(client):
    window = 0.02
    async with open_endpoint(("127.0.0.1", 0), coalesce=window) as endpoint:
        for _ in range(3):
            start = time.monotonic()
            client.sendto(b"x", endpoint.get_extra_info("sockname"))
            assert await receive(endpoint, "recv_many") == b"x"
            assert time.monotonic() - start > window - 0.0005  # the clocks differ
