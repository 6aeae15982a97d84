"""recv_batch and send_batch, with plain ``socket`` peers at the other end."""

import errno
import socket as std

import pytest

import tomada
from support import CLOSED
from tomada import socket
from traffic import numbered, payloads

SEVERAL = [b"one", b"", b"three", b"three", "olá".encode()]


def contents(batch):
    return [bytes(data) for data, _ in batch]


def test_recv_batch_receives_from_plain_sockets(kind, peer):
    first, second = peer(kind), peer(kind)
    batch = tomada.Batch()
    with kind.bound(socket) as sock:
        first.do("send", datagrams=SEVERAL, to=sock.getsockname())
        second.do("send", datagrams=[b"mine"], to=sock.getsockname())
        assert sock.recv_batch(batch) == len(batch) == 6
        assert contents(batch) == [*SEVERAL, b"mine"]
        assert batch.addresses == [first.address] * 5 + [second.address]
        assert [to for _, to in batch] == batch.addresses
        assert batch.lengths.tolist() == [len(data) for data in contents(batch)]
        memory = memoryview(batch)
        found = [
            memory[at : at + size] for at, size in zip(batch.offsets, batch.lengths, strict=True)
        ]
        assert found == contents(batch)
        assert batch.truncated == []


def test_send_batch_sends_to_plain_sockets_in_order(kind, peer):
    first, second = peer(kind), peer(kind)
    batch = tomada.Batch()
    with kind.bound(socket) as sock:
        for data in SEVERAL:
            batch.append(data, first.address)
        batch.append(b"yours", second.address)
        assert sock.send_batch(batch) == 6
        here = sock.getsockname()
        assert first.do("drain") == tuple((data, here) for data in SEVERAL)
        assert second.do("drain") == ((b"yours", here),)


def test_send_batch_sends_received_datagrams_back(kind, peer):
    other = peer(kind)
    batch = tomada.Batch()
    with kind.bound(socket) as sock:
        for _ in range(3):
            other.do("send", datagrams=SEVERAL, to=sock.getsockname())
            assert sock.recv_batch(batch) == 5
            assert sock.send_batch(batch) == 5
            assert other.do("drain") == tuple((data, sock.getsockname()) for data in SEVERAL)


def test_send_batch_sends_datagrams_without_an_address_to_the_connected_peer(kind, peer):
    near, far = peer(kind), peer(kind)
    batch = tomada.Batch()
    for data, to in ((b"a", None), (b"b", far.address), (b"c", None)):
        batch.append(data, to)
    with kind.bound(socket) as sock:
        sock.connect(near.address)
        assert sock.send_batch(batch) == 3
        assert [data for data, _ in near.do("drain")] == [b"a", b"c"]
        assert [data for data, _ in far.do("drain")] == [b"b"]


def test_send_batch_address_overrides_the_datagrams_addresses(kind, peer):
    near, far = peer(kind), peer(kind)
    batch = tomada.Batch()
    for data, to in ((b"a", None), (b"b", near.address), (b"c", None)):
        batch.append(data, to)
    with kind.bound(socket) as sock:
        assert sock.send_batch(batch, far.address) == 3
        assert sock.send_batch(batch, address=far.address, flags=0, errors="continue") == []
        assert [data for data, _ in far.do("drain")] == [b"a", b"b", b"c"] * 2
        assert near.do("drain") == ()


def test_send_batch_without_any_address_fails_at_the_index(inet):
    batch = tomada.Batch()
    with inet.bound(socket) as sock:
        batch.append(b"a", sock.getsockname())
        batch.append(b"b")
        with pytest.raises(OSError, match="Destination address required") as caught:
            sock.send_batch(batch)
        assert (caught.value.index, caught.value.sent) == (1, 1)
        failures = sock.send_batch(batch, errors="continue")
        assert [(index, error.errno) for index, error in failures] == [(1, errno.EDESTADDRREQ)]
        assert payloads(sock) == [b"a", b"a"]


def test_send_batch_accepts_ipv4_addresses_on_an_ipv6_socket(inet, inet6, peer):
    four, six = peer(inet), peer(inet6)
    batch = tomada.Batch()
    for data, to in ((b"a", four.address), (b"six", six.address), (b"b", four.address)):
        batch.append(data, to)
    with inet6.open(socket) as sock:
        sock.bind(("::", 0))
        port = sock.getsockname()[1]
        assert sock.send_batch(batch) == 3
        assert sock.send_batch(batch, four.address) == 3
        here = ("127.0.0.1", port)
        expected = (b"a", b"b", b"a", b"six", b"b")
        assert four.do("drain") == tuple((data, here) for data in expected)
        assert six.do("drain") == ((b"six", ("::1", port, 0, 0)),)
        four.do("send", datagrams=[b"back"], to=here)
        assert sock.recv_batch(batch) == 1
        assert batch.addresses == [("::ffff:127.0.0.1", four.address[1], 0, 0)]
        assert sock.send_batch(batch) == 1
        assert four.do("drain") == ((b"back", here),)


def test_send_batch_sends_a_buffer_split_into_datagrams(inet, peer):
    other = peer(inet)
    data = bytes(range(256)) * 40
    batch = tomada.Batch()
    batch.extend(data, 1000, other.address)
    with inet.bound(socket) as sock:
        assert sock.send_batch(batch) == 11
        expected = [data[at : at + 1000] for at in range(0, len(data), 1000)]
        assert [item for item, _ in other.do("drain")] == expected


def test_datagrams_of_every_size_are_sent_and_received(inet):
    there, back = tomada.Batch(2), tomada.Batch(2)
    content = bytes(range(256)) * 256
    with inet.bound(socket) as sock:
        for size in [*range(0, 65_508, 509), 1472, 1473, 65_507]:
            there.clear()
            there.append(content[:size], sock.getsockname())
            there.append(content[1:][:size], sock.getsockname())
            assert sock.send_batch(there) == 2
            assert sock.recv_batch(back) == 2
            assert contents(back) == contents(there), size


@pytest.mark.parametrize("slots", [1, 2, 63, 64, 65, 150])
def test_recv_batch_receives_at_most_as_many_datagrams_as_slots(inet, slots):
    batch = tomada.Batch(slots)
    with inet.bound(socket) as sock:
        sock.send_many(numbered(150), sock.getsockname())
        received = []
        while len(received) < 150:
            count = sock.recv_batch(batch)
            assert count == min(slots, 150 - len(received))
            received += contents(batch)
        assert received == numbered(150)


def test_recv_batch_overwrites_the_batch(inet):
    batch = tomada.Batch()
    with inet.bound(socket) as sock:
        for received in ([b"first", b"second"], [b"x"], [b"", b"longer than before", b"z"]):
            batch.clear()
            batch.extend(b"appended", 3)
            sock.send_many(received, sock.getsockname())
            memory = memoryview(batch)
            assert sock.recv_batch(batch) == len(received)
            assert contents(batch) == received
            assert batch.addresses == [sock.getsockname()] * len(received)
            at, size = batch.offsets[-1], batch.lengths[-1]
            assert memory[at : at + size] == received[-1]


def test_recv_batch_that_fails_leaves_the_batch_empty(inet):
    batch = tomada.Batch()
    with inet.bound(socket) as sock:
        sock.sendto(b"received", sock.getsockname())
        sock.recv_batch(batch)
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv_batch(batch)
        assert contents(batch) == batch.addresses == []


def test_append_after_recv_batch_requires_clear(inet):
    batch = tomada.Batch()
    with inet.bound(socket) as sock:
        sock.sendto(b"received", sock.getsockname())
        sock.recv_batch(batch)
        with pytest.raises(ValueError, match="clear"):
            batch.append(b"x")
        assert contents(batch) == [b"received"]
        batch.clear()
        batch.append(b"x")
        assert contents(batch) == [b"x"]


@pytest.mark.parametrize("slot_size", [1, 10, 100, 1000])
def test_recv_batch_truncates_and_reports_datagrams_longer_than_a_slot(kind, slot_size):
    batch = tomada.Batch(slot_size=slot_size)
    with kind.bound(socket) as sock:
        long = bytes(range(256)) * 8
        datagrams = [b"x", long, b"", long[:slot_size], long]
        for data in datagrams:
            sock.sendto(data, sock.getsockname())
        assert sock.recv_batch(batch) == 5
        room = len(batch[1])
        assert slot_size <= room < slot_size + 64
        assert contents(batch) == [data[:room] for data in datagrams]
        assert batch.truncated == [1, 4]
        assert sock.stats().truncated == 2
        sock.sendto(b"y", sock.getsockname())
        sock.recv_batch(batch)
        assert batch.truncated == []


def test_recv_batch_truncates_and_reports_long_af_unix_datagrams(unix):
    batch = tomada.Batch(2)
    # Two senders, because poll() reports a sender with this much in flight as not writable.
    with unix.bound(socket) as sock, unix.open(std) as sender, unix.open(std) as other:
        sender.sendto(bytes(100_000), sock.getsockname())
        other.sendto(b"x", sock.getsockname())
        assert sock.recv_batch(batch) == 2
        assert (batch.lengths.tolist(), batch.truncated) == ([65_536, 1], [0])
        larger = tomada.Batch(2, slot_size=1 << 17)
        sender.sendto(bytes(100_000), sock.getsockname())
        assert sock.recv_batch(larger) == 1
        assert (larger.lengths.tolist(), larger.truncated) == ([100_000], [])
        assert larger.addresses == [None]


def test_send_batch_of_an_empty_batch_sends_nothing(inet):
    with inet.bound(socket) as sock:
        assert sock.send_batch(tomada.Batch(), sock.getsockname()) == 0
        assert sock.send_batch(tomada.Batch(), errors="continue") == []
        assert payloads(sock) == []


def test_closed_socket_raises_for_a_batch(inet):
    sock = inet.bound(socket)
    here = sock.getsockname()
    sock.close()
    full = tomada.Batch()
    full.append(b"x")
    for batch in (tomada.Batch(), full):
        with pytest.raises(OSError, match=CLOSED):
            sock.send_batch(batch, here)
        with pytest.raises(OSError, match=CLOSED):
            sock.send_batch(batch, here, errors="continue")
        with pytest.raises(OSError, match=CLOSED):
            sock.recv_batch(batch)


def test_send_batch_may_send_a_batch_repeatedly(inet):
    batch = tomada.Batch()
    batch.extend(b"abcdef", 2)
    with inet.bound(socket) as sock:
        for _ in range(3):
            assert sock.send_batch(batch, sock.getsockname()) == 3
        assert payloads(sock) == [b"ab", b"cd", b"ef"] * 3
        assert contents(batch) == [b"ab", b"cd", b"ef"]


def test_send_batch_failures_have_an_index(inet):
    batch = tomada.Batch()
    with inet.bound(socket) as sock:
        for data in (b"a", bytes(65_508), b"b", bytes(65_508)):
            batch.append(data, sock.getsockname())
        with pytest.raises(OSError, match=r"datagram 1 to .*; 1 sent before it") as caught:
            sock.send_batch(batch)
        assert (caught.value.errno, caught.value.index) == (errno.EMSGSIZE, 1)
        failures = sock.send_batch(batch, errors="continue")
        assert [(index, error.errno) for index, error in failures] == [
            (1, errno.EMSGSIZE),
            (3, errno.EMSGSIZE),
        ]
        assert payloads(sock) == [b"a", b"a", b"b"]


def test_send_batch_fails_at_the_index_of_an_address_of_another_family(inet):
    batch = tomada.Batch()
    with inet.bound(socket) as sock:
        for data, to in ((b"a", sock.getsockname()), (b"b", ("::1", 9)), (b"c", "a path")):
            batch.append(data, to)
        failures = sock.send_batch(batch, errors="continue")
        assert [index for index, _ in failures] == [1, 2]
        assert all(isinstance(error, OSError) for _, error in failures)
        assert payloads(sock) == [b"a"]


@pytest.mark.parametrize("flag", ["MSG_PEEK", "MSG_ERRQUEUE"])
def test_batch_calls_reject_flags_that_they_do_not_support(inet, flag):
    with inet.bound(socket) as sock:
        sock.sendto(b"x", sock.getsockname())
        with pytest.raises(ValueError):  # noqa: PT011 - each flag has its own message
            sock.recv_batch(tomada.Batch(), getattr(socket, flag))
        assert payloads(sock) == [b"x"]


def test_batch_calls_reject_objects_that_are_not_a_batch(inet):
    with inet.bound(socket) as sock:
        for nothing in (None, [], b"x", bytearray(100)):
            with pytest.raises(TypeError):
                sock.recv_batch(nothing)
            with pytest.raises(TypeError):
                sock.send_batch(nothing, sock.getsockname())
