"""Any datagrams, sent by any method, arrive unchanged and in order from each peer."""

import contextlib
import socket as std

import hypothesis
import pytest
from hypothesis import strategies as st

from families import length
from tomada import socket
from traffic import RECEIVE_SOME, SEND_ALL

# A receiver's buffer holds at least this much, as the kernel counts: each datagram takes at most
# twice its length, plus a constant.
ROOM = 150_000

sizes = st.one_of(
    st.integers(0, 3),
    st.integers(0, 1500),
    st.sampled_from([1, 64, 512, 1200, 1472, 8000]),
    st.integers(0, 65_507),
)
# Offload needs runs of one size to one peer, so these are also generated on purpose.
runs = st.tuples(sizes, st.integers(0, 2), st.integers(1, 70))
plans = st.lists(runs, min_size=1, max_size=8)


def datagrams_of(plan):
    """Make the datagrams of a plan, each with the index of its receiver."""
    number, made = 0, []
    for size, receiver, count in plan:
        for _ in range(min(count, 1 + 300_000 // (size + 1))):
            made.append(((b"%d," % number * (size // 2 + 1))[:size], receiver))
            number += 1
    return made


def portions(datagrams):
    """Divide datagrams into parts that a receiver has room for."""
    part, room = [], ROOM
    for item in datagrams:
        need = 2 * len(item[0]) + 1000
        if part and need > room:
            yield part
            part, room = [], ROOM
        part.append(item)
        room -= need
    yield part


@pytest.fixture(params=["inet", "inet6"])
def kind_of_ip(request):
    return request.getfixturevalue(request.param)


ENDS = [
    pytest.param(
        (sending, receiving, gro), id=f"{sending} {receiving}{' coalescing' if gro else ''}"
    )
    for sending in ("tomada", "plain")
    for receiving, gro in (("tomada", False), ("tomada", True), ("plain", False))
    if "tomada" in {sending, receiving}
]
MODULES = {"tomada": socket, "plain": std}


@pytest.mark.parametrize("ends", ENDS)
@hypothesis.given(plan=plans, data=st.data())
@hypothesis.settings(
    max_examples=length(60),
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_sent_datagrams_arrive_unchanged(kind_of_ip, ends, plan, data):
    sending, receiving, gro = ends
    sends = st.sampled_from(list(SEND_ALL) if sending == "tomada" else ["sendto", "a run"])
    ways = st.sampled_from(list(RECEIVE_SOME) if receiving == "tomada" else ["recvfrom"])
    with contextlib.ExitStack() as stack:
        sender = stack.enter_context(kind_of_ip.bound(MODULES[sending]))
        receivers = [stack.enter_context(kind_of_ip.bound(MODULES[receiving])) for _ in range(3)]
        if gro:
            for receiver in receivers:
                receiver.gro = True
        addresses = [receiver.getsockname() for receiver in receivers]
        for portion in portions(datagrams_of(plan)):
            send = SEND_ALL[data.draw(sends, "way to send")]
            send(sender, [(item, addresses[number]) for item, number in portion])
            for number, receiver in enumerate(receivers):
                expected = [(item, sender.getsockname()) for item, to in portion if to == number]
                received = []
                while len(received) < len(expected):
                    way = RECEIVE_SOME[data.draw(ways, "way to receive")]
                    received += way(receiver, data.draw(st.integers(1, 100), "at most"))
                assert received == expected
        for receiver in receivers:
            receiver.setblocking(False)
            with pytest.raises(BlockingIOError):
                receiver.recv(1)
            if receiving == "tomada":
                stats = receiver.stats()
                assert (receiver.pending, stats.kernel_drops, stats.truncated) == (0, 0, 0)


@hypothesis.given(sizes=st.lists(st.integers(0, 66_000), max_size=40))
@hypothesis.settings(
    max_examples=length(100),
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_every_failure_is_reported_and_the_rest_arrives(inet, sizes):
    with inet.bound(socket) as sock, inet.bound(std) as receiver:
        to = receiver.getsockname()
        datagrams = [bytes([at]) * size for at, size in enumerate(sizes)]
        wrong = [at for at, size in enumerate(sizes) if size > 65_507]
        received, failed, done = [], [], 0
        for portion in portions([(data, 0) for data in datagrams]):
            some = [data for data, _ in portion]
            failures = sock.send_many(some, to, errors="continue")
            failed += [done + index for index, _ in failures]
            done += len(some)
            expected = [data for data in some if len(data) <= 65_507]
            received += [receiver.recv(1 << 17) for _ in expected]
        assert failed == wrong
        assert received == [data for data in datagrams if len(data) <= 65_507]
        assert sock.stats().sent == len(received)
