"""Datagrams that a transport accepts to send, and how it handles a full queue."""

import asyncio
import contextlib
import itertools
import logging
import socket as std

import pytest

from support import Call, fill
from traffic import numbered, payloads
from transports import Recorder, hear, local, recorder, turns

SEND_ONE = {
    "sendto": lambda transport, data, to=None: transport.sendto(data, to),
    "sendto_many": lambda transport, data, to=None: transport.sendto_many([data], to),
}

every_way = pytest.mark.parametrize("send", SEND_ONE.values(), ids=SEND_ONE)


@pytest.fixture
def full(endpoint, unix):
    """Connect a transport to a plain socket whose queue is full, and return both."""
    opened = contextlib.ExitStack()

    async def connect(factory=Recorder):
        other = opened.enter_context(unix.bound(std))
        other.setsockopt(std.SOL_SOCKET, std.SO_RCVBUF, 1)
        transport, protocol = await endpoint(
            factory, remote_addr=other.getsockname(), **local(unix)
        )
        with unix.open(std) as stranger:
            fill(stranger, other.getsockname())
        return transport, protocol, other

    with opened:
        yield connect


def take_all(other):
    """Make room: receive the datagrams of other senders, and return those of the transport."""
    return [data for data in payloads(other) if not data.isdigit()]


@every_way
@pytest.mark.parametrize("data", ["text", 1, None, [b"x"], object()])
async def test_sendto_rejects_types_other_than_bytes(endpoint, send, data):
    transport, _ = await endpoint(remote_addr=("127.0.0.1", 9))
    found = type(data).__name__
    message = f"^data argument must be a bytes-like object, not '{found}'$"
    with pytest.raises(TypeError, match=message):
        send(transport, data)
    assert not transport.is_closing()


@every_way
async def test_sendto_another_address_on_a_connected_transport(endpoint, inet, send):
    with inet.bound(std) as other:
        address = other.getsockname()
        transport, _ = await endpoint(remote_addr=address)
        for wrong in (("127.0.0.1", 1), ("127.0.0.2", address[1]), address[:1], "x", 1):
            with pytest.raises(
                ValueError, match=r"^Invalid address: must be None or \('127"
            ) as info:
                send(transport, b"x", wrong)
            assert str(info.value) == f"Invalid address: must be None or {address}"
        send(transport, b"without", None)
        send(transport, b"with", address)
        send(transport, b"by name", ("localhost", address[1]))
        assert await hear(other, 3) == [b"without", b"with", b"by name"]


@every_way
@pytest.mark.parametrize("to", [None, "text", ("127.0.0.1",), ("127.0.0.1", "port"), 7])
async def test_sendto_without_address_on_an_unconnected_transport(endpoint, inet, send, to):
    with inet.bound(std) as other:
        transport, _ = await endpoint()
        with pytest.raises(TypeError):
            send(transport, b"x", to)
        # A mistake of the caller, which affects no other datagram.
        send(transport, b"after", other.getsockname())
        assert await hear(other) == [b"after"]


async def test_sendto_on_a_broadcast_transport_with_a_remote_address(endpoint, inet):
    # Such a socket is not connected, but its transport still sends to one address only.
    with inet.bound(std) as other:
        address = other.getsockname()
        transport, _ = await endpoint(remote_addr=address, allow_broadcast=True)
        assert transport.get_extra_info("peername") is None
        transport.sendto(b"without")
        transport.sendto(b"with", address)
        with pytest.raises(ValueError, match="Invalid address"):
            transport.sendto(b"x", ("127.0.0.1", 1))
        assert await hear(other, 2) == [b"without", b"with"]


async def test_sendto_many_to_one_address(endpoint, inet):
    with inet.bound(std) as one, inet.bound(std) as two:
        transport, _ = await endpoint()
        transport.sendto_many(numbered(100), one.getsockname())
        transport.sendto_many(iter([b"", bytearray(b"x"), memoryview(b"y")]), two.getsockname())
        assert await hear(one, 100) == numbered(100)
        assert await hear(two, 3) == [b"", b"x", b"y"]


async def test_sendto_many_sends_without_an_iteration_of_the_loop(endpoint, inet):
    with inet.bound(std) as other:
        transport, _ = await endpoint()
        transport.sendto(b"first", other.getsockname())
        transport.sendto(b"second", other.getsockname())
        transport.sendto_many([b"third", b"fourth"], other.getsockname())
        assert payloads(other) == [b"first", b"second", b"third", b"fourth"]
        assert transport.get_extra_info("stats").send_calls < 4


async def test_sendto_many_with_pairs(endpoint, inet):
    with inet.bound(std) as one, inet.bound(std) as two:
        transport, _ = await endpoint()
        addresses = itertools.cycle([one.getsockname(), two.getsockname()])
        transport.sendto_many(list(zip(numbered(10), addresses, strict=False)))
        assert await hear(one, 5) == numbered(10)[::2]
        assert await hear(two, 5) == numbered(10)[1::2]


async def test_sendto_many_to_the_connected_peer(endpoint, inet):
    with inet.bound(std) as other:
        transport, _ = await endpoint(remote_addr=other.getsockname())
        transport.sendto_many(numbered(10))
        transport.sendto_many([])
        assert await hear(other, 10) == numbered(10)
        with pytest.raises(TypeError):
            transport.sendto_many(None)


async def test_sendto_many_sends_accepted_datagrams_though_the_rest_fails(endpoint, inet):
    def some():
        yield b"one"
        yield b"two"
        raise LookupError

    with inet.bound(std) as other:
        transport, _ = await endpoint()
        with pytest.raises(LookupError):
            transport.sendto_many(some(), other.getsockname())
        with pytest.raises(TypeError):
            transport.sendto_many([b"three", "text", b"never"], other.getsockname())
        with pytest.raises(TypeError):
            transport.sendto_many([(b"four", other.getsockname()), (b"never", "text")])
        assert await hear(other, 4) == [b"one", b"two", b"three", b"four"]
        await turns(2)
        assert payloads(other) == []


async def test_sendto_a_host_name(endpoint, inet):
    with inet.bound(std) as other:
        transport, protocol = await endpoint()
        transport.sendto(b"x", ("localhost", other.getsockname()[1]))
        assert await hear(other) == [b"x"]
        transport.sendto(b"x", ("no.such.host.invalid", 9))
        assert [type(error) for error in protocol.errors] == [std.gaierror]


async def test_sendto_closed_ports_reports_errors(endpoint, unix):
    with unix.bound(std) as other:
        transport, protocol = await endpoint(**local(unix))
        nowhere = unix.address()
        transport.sendto_many(
            [(b"one", other.getsockname()), (b"lost", nowhere), (b"two", other.getsockname())]
        )
        assert await hear(other, 2) == [b"one", b"two"]
        assert [type(error) for error in protocol.errors] == [FileNotFoundError]


# A peer without room


async def test_datagrams_without_room_are_sent_later_and_in_order(full):
    transport, protocol, other = await full()
    sent = [b"item %d" % number for number in range(200)]
    for data in sent:
        transport.sendto(data)
    await turns(3)
    assert transport.get_write_buffer_size() == sum(map(len, sent))
    received = []
    while len(received) < len(sent):
        received += take_all(other)
        await turns()
    assert received == sent
    assert transport.get_write_buffer_size() == 0
    assert protocol.calls == ["made"]


async def test_loop_sleeps_while_an_unconnected_peer_has_no_room(endpoint, unix):
    # The socket itself has room, so the kernel reports it as writable all the time.
    transport, protocol = await endpoint(**local(unix))
    attempts = []
    on_room = transport._on_room  # noqa: SLF001 - there is no public view
    transport._on_room = lambda: (attempts.append(1), on_room())  # noqa: SLF001
    with unix.bound(std) as other, unix.open(std) as stranger:
        fill(stranger, other.getsockname())
        transport.sendto(b"x", other.getsockname())
        await asyncio.sleep(0.2)
        assert 0 < len(attempts) < 1000
        assert transport.get_write_buffer_size() == 1
        take_all(other)
        assert await hear(other) == [b"x"]
    assert protocol.errors == []


async def test_pause_writing_above_high_water_and_resume_writing_below_low(full):
    transport, protocol, other = await full()
    transport.set_write_buffer_limits(high=100, low=30)
    sizes = []
    for number in range(10):
        transport.sendto(b"item %05d" % number + bytes(10))
        sizes.append((transport.get_write_buffer_size(), protocol.calls[1:]))
    assert sizes == [(20 * (n + 1), ["paused"] if 20 * (n + 1) > 100 else []) for n in range(10)]
    received = []
    while "resumed" not in protocol.calls:
        assert transport.get_write_buffer_size() > 30
        received += take_all(other)
        await turns()
    assert transport.get_write_buffer_size() <= 30
    assert protocol.calls == ["made", "paused", "resumed"]


@every_way
async def test_pause_writing_at_the_first_datagram_with_high_water_zero(full, send):
    transport, protocol, other = await full()
    transport.set_write_buffer_limits(high=0)
    send(transport, b"item")
    assert protocol.calls == ["made", "paused"]
    assert take_all(other) == []
    await protocol.until(lambda: "resumed" in protocol.calls)
    assert take_all(other) == [b"item"]


async def test_sendto_from_another_thread_does_not_wait_for_the_loop(endpoint, inet):
    with inet.bound(std) as other:
        transport, _ = await endpoint(remote_addr=other.getsockname())

        def send_and_receive():
            for data in numbered(5):
                transport.sendto(data)
            return [other.recv(100) for _ in range(5)]

        # The loop is blocked here, in the middle of an iteration.
        assert Call(send_and_receive).result() == numbered(5)


async def test_write_buffer_limits_may_be_huge(full):
    transport, protocol, _ = await full()
    for high in (1e9, 2**70, 1e300):
        transport.set_write_buffer_limits(high=high)
        assert transport.get_write_buffer_limits() == (high // 4, high)
        transport.sendto(b"item")
    assert protocol.calls == ["made"]


async def test_write_buffer_limits_that_are_lowered_pause_at_once(full):
    transport, protocol, _ = await full()
    transport.sendto(b"item")
    assert protocol.calls == ["made"]
    transport.set_write_buffer_limits(high=3)
    assert protocol.calls == ["made", "paused"]


async def test_protocol_paused_by_lower_limits_resumes_although_the_buffer_was_never_full(
    endpoint, inet
):
    with inet.bound(std) as other:
        transport, protocol = await endpoint(remote_addr=other.getsockname())
        sent = []
        while not transport.get_write_buffer_size():  # the first is sent at once
            sent.append(b"%d" % len(sent))
            transport.sendto(sent[-1])
        transport.set_write_buffer_limits(high=0)
        assert protocol.calls == ["made", "paused"]
        await protocol.until(lambda: "resumed" in protocol.calls)
        assert await hear(other, len(sent)) == sent
    assert protocol.calls == ["made", "paused", "resumed"]


async def test_set_write_buffer_limits_resumes_at_once(full):
    transport, protocol, _ = await full()
    transport.set_write_buffer_limits(high=3)
    transport.sendto(b"item")
    assert protocol.calls == ["made", "paused"]
    transport.set_write_buffer_limits(high=16)
    assert protocol.calls == ["made", "paused", "resumed"]


async def test_abort_of_a_paused_transport_calls_only_connection_lost(full):
    transport, protocol, _ = await full()
    transport.set_write_buffer_limits(high=0)
    transport.sendto(b"item")
    transport.abort()
    await protocol.lost()
    assert protocol.calls == ["made", "paused", "lost"]


async def test_protocol_that_closes_in_resume_writing(full):
    def resume_writing(self):
        self.note("resumed")
        self.transport.close()

    transport, protocol, other = await full(recorder(resume_writing=resume_writing))
    transport.set_write_buffer_limits(high=0)
    transport.sendto(b"item")
    assert take_all(other) == []
    await protocol.lost()
    assert take_all(other) == [b"item"]
    assert protocol.calls == ["made", "paused", "resumed", "lost"]


async def test_protocol_that_sends_in_resume_writing(full):
    def resume_writing(self):
        self.note("resumed")
        while self.calls[-1] == "resumed":
            self.transport.sendto(b"from resume_writing")

    transport, protocol, other = await full(recorder(resume_writing=resume_writing))
    transport.set_write_buffer_limits(high=10, low=0)
    for _ in range(5):
        transport.sendto(b"item")
    received = []
    while len(received) < 50:
        received += take_all(other)
        await turns()
    assert received[:5] == [b"item"] * 5
    assert set(received[5:]) == {b"from resume_writing"}
    assert protocol.calls[1:5] == ["paused", "resumed", "paused", "resumed"]


async def test_protocol_that_raises_in_pause_writing_and_resume_writing(full, problems):
    def pause_writing(self):
        self.note("paused")
        raise LookupError("on pause")

    def resume_writing(self):
        self.note("resumed")
        raise LookupError("on resume")

    methods = {"pause_writing": pause_writing, "resume_writing": resume_writing}
    transport, protocol, other = await full(recorder(**methods))
    transport.set_write_buffer_limits(high=0)
    transport.sendto(b"item")
    assert take_all(other) == []
    await protocol.until(lambda: "resumed" in protocol.calls)
    assert take_all(other) == [b"item"]
    told = [(problem["message"], str(problem["exception"])) for problem in problems]
    assert told == [
        ("protocol.pause_writing() failed", "on pause"),
        ("protocol.resume_writing() failed", "on resume"),
    ]
    assert {problem["protocol"] for problem in problems} == {protocol}
    problems.clear()


async def test_write_buffer_limits(endpoint):
    transport, _ = await endpoint()
    assert transport.get_write_buffer_limits() == (16 * 1024, 64 * 1024)
    for limits, expected in [
        ({"high": 100}, (25, 100)),
        ({"low": 100}, (100, 400)),
        ({"high": 100, "low": 100}, (100, 100)),
        ({"high": 0}, (0, 0)),
        ({}, (16 * 1024, 64 * 1024)),
    ]:
        transport.set_write_buffer_limits(**limits)
        assert transport.get_write_buffer_limits() == expected
    for high, low in [(1, 2), (1, -1)]:
        message = rf"^high \({high}\) must be >= low \({low}\) must be >= 0$"
        with pytest.raises(ValueError, match=message):
            transport.set_write_buffer_limits(high=high, low=low)


async def test_error_and_a_full_buffer_in_one_flush(endpoint, full, unix):
    # The flush must not undo what the callback does about the error.
    def error_received(self, error):
        Recorder.error_received(self, error)
        self.transport.abort()

    _, _, other = await full()
    transport, protocol = await endpoint(recorder(error_received=error_received), **local(unix))
    descriptor = transport.get_extra_info("socket").fileno()
    transport.sendto_many([(b"lost", unix.address()), (b"item", other.getsockname())])
    await protocol.lost()
    loop = asyncio.get_running_loop()
    assert not loop.remove_writer(descriptor)
    assert not loop.remove_reader(descriptor)


async def test_error_received_that_fills_the_buffer(endpoint, full, unix):
    def error_received(self, error):
        Recorder.error_received(self, error)
        self.transport.sendto(b"item", self.full)

    _, _, other = await full()
    transport, protocol = await endpoint(recorder(error_received=error_received), **local(unix))
    protocol.full = other.getsockname()
    transport.sendto(b"lost", unix.address())
    assert transport.get_write_buffer_size() == 4
    transport.close()
    await turns(3)
    assert protocol.calls == ["made"]
    assert take_all(other) == []
    await protocol.lost()
    assert take_all(other) == [b"item"]


async def test_sendto_after_close_warns_like_the_standard_transports(endpoint, inet, caplog):
    with inet.bound(std) as other:
        transport, protocol = await endpoint(remote_addr=other.getsockname())
        transport.close()
        with caplog.at_level(logging.WARNING, "asyncio"):
            for _ in range(10):
                transport.sendto(b"x")
                transport.sendto_many([b"x"])
            await protocol.lost()
            for _ in range(10):
                transport.sendto(b"x")
        assert set(caplog.messages) == {"socket.send() raised exception."}
        # The first few do not warn.
        assert len(caplog.messages) == 30 - 4
        await turns(2)
        assert payloads(other) == []
