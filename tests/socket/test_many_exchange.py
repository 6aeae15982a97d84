"""send_many and recv_many: many datagrams per call, with plain ``socket`` peers."""

import array
import collections
import itertools
import mmap

import pytest

from support import DEADLINE
from tomada import socket
from traffic import everything, numbered, payloads

SEVERAL = [b"one", b"", b"three", b"three", "olá".encode()]


def test_recv_many_receives_from_plain_sockets(kind, peer):
    first, second = peer(kind), peer(kind)
    with kind.bound(socket) as sock:
        first.do("send", datagrams=SEVERAL, to=sock.getsockname())
        second.do("send", datagrams=[b"mine"], to=sock.getsockname())
        expected = [(data, first.address) for data in SEVERAL] + [(b"mine", second.address)]
        assert sock.recv_many() == expected


@pytest.mark.parametrize("count", [63, 64, 65, 128])
def test_recv_many_that_fills_its_last_slot_misses_nothing(count):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        for _ in range(3):
            sent = numbered(count)
            sock.send_many(sent, sock.getsockname())
            assert [data for data, _ in sock.recv_many(1024)] == sent


def test_send_many_sends_to_plain_sockets_in_order(kind, peer):
    first, second = peer(kind), peer(kind)
    with kind.bound(socket) as sock:
        pairs = [(data, first.address) for data in SEVERAL] + [(b"yours", second.address)]
        pairs.insert(2, (b"between", second.address))
        assert sock.send_many(pairs) == 7
        here = sock.getsockname()
        assert first.do("drain") == tuple((data, here) for data in SEVERAL)
        assert second.do("drain") == ((b"between", here), (b"yours", here))


def test_send_many_without_addresses_sends_to_the_connected_peer(kind, peer):
    other = peer(kind)
    with kind.bound(socket) as sock:
        sock.connect(other.address)
        assert sock.send_many(SEVERAL) == 5
        assert other.do("drain") == tuple((data, sock.getsockname()) for data in SEVERAL)


def test_send_many_to_one_address(kind, peer):
    other = peer(kind)
    with kind.bound(socket) as sock:
        assert sock.send_many(SEVERAL[:3], other.address) == 3
        assert sock.send_many(SEVERAL[3:], address=other.address, flags=0) == 2
        assert other.do("drain") == tuple((data, sock.getsockname()) for data in SEVERAL)


def test_send_many_address_overrides_the_connected_peer(kind, peer):
    near, far = peer(kind), peer(kind)
    with kind.bound(socket) as sock:
        sock.connect(near.address)
        assert sock.send_many([b"a", b"b"], far.address) == 2
        assert sock.send_many([(b"c", far.address)]) == 1
        assert [data for data, _ in far.do("drain")] == [b"a", b"b", b"c"]
        assert near.do("drain") == ()


def test_send_many_sends_received_datagrams_back(kind, peer):
    other = peer(kind)
    with kind.bound(socket) as sock:
        other.do("send", datagrams=SEVERAL, to=sock.getsockname())
        assert sock.send_many(sock.recv_many()) == 5
        assert other.do("drain") == tuple((data, sock.getsockname()) for data in SEVERAL)


def test_recv_many_returns_pairs_like_recvfrom(kind):
    with kind.bound(socket) as sock, kind.bound(socket) as sender:
        for _ in range(2):
            sender.sendto(b"x", sock.getsockname())
        (many,) = sock.recv_many(1)
        single = sock.recvfrom(10)
        assert many == single
        assert [type(part) for part in (many, *many)] == [type(part) for part in (single, *single)]


def test_recv_many_returns_none_for_a_sender_without_a_name(unix):
    with unix.bound(socket) as sock, unix.open(socket) as nameless:
        assert nameless.send_many([b"a", b"b"], sock.getsockname()) == 2
        assert sock.recv_many() == [(b"a", None), (b"b", None)]


@pytest.mark.parametrize("count", [63, 64, 65, 128, 200])
def test_recv_many_that_empties_the_queue_leaves_no_error(inet, count):
    with inet.bound(socket) as sock:
        sock.settimeout(None)
        for _ in range(2):
            sock.send_many(numbered(count), sock.getsockname())
            assert [data for data, _ in sock.recv_many(1000)] == numbered(count)
        sock.settimeout(0)
        with pytest.raises(BlockingIOError):
            sock.recv_many(1000)


@pytest.mark.parametrize("most", [1, 2, 63, 64, 65, 150, 200])
def test_recv_many_takes_at_most_the_maximum(inet, most):
    datagrams = numbered(200)
    with inet.bound(socket) as sock, inet.open(socket) as sender:
        assert sender.send_many(datagrams, sock.getsockname()) == 200
        assert [data for data, _ in sock.recv_many(most)] == datagrams[:most]
        assert payloads(sock) == datagrams[most:]


def test_recv_many_does_not_wait_for_the_maximum(kind):
    with kind.bound(socket) as sock:
        sock.settimeout(None)
        for count in (1, 5):
            for number in range(count):
                sock.sendto(b"%d" % number, sock.getsockname())
            assert len(sock.recv_many(max_datagrams=1_000_000, flags=0)) == count


def test_recv_many_takes_64_by_default(inet):
    with inet.bound(socket) as sock:
        sock.send_many(numbered(70), sock.getsockname())
        assert len(sock.recv_many()) == 64
        assert len(sock.recv_many()) == 6


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 128, 129, 1000, 4095, 4096, 4097])
def test_send_many_sends_any_number_of_datagrams(inet, count):
    datagrams = numbered(count)
    with inet.bound(socket) as sock, inet.open(socket) as sender:
        sender.connect(sock.getsockname())
        received = []
        for start in range(0, count, 200):
            # First as many as the buffer holds, then all others at once.
            sent = sender.send_many(datagrams[start : start + 200])
            assert sent == len(datagrams[start : start + 200])
            received += payloads(sock)
        assert received == datagrams
        assert sender.send_many(datagrams) == count
        assert sender.stats().sent == 2 * count


def test_datagrams_of_every_size_arrive_whole(inet, peer):
    other = peer(inet)
    content = bytes(range(256)) * 256
    with inet.bound(socket) as sock, inet.bound(socket) as sender:
        sizes = [*range(0, 65_508, 193), *range(1, 16), *range(1465, 1480), 65_506, 65_507]
        for size in sizes:
            # Twice, so that equal sizes can be sent as a run.
            datagrams = [content[size % 256 :][:size], content[:size]]
            assert sender.send_many(datagrams, sock.getsockname()) == 2
            assert [data for data, _ in sock.recv_many()] == datagrams, size
        for size in (0, 1, 1472, 1473, 65_507):
            assert sender.send_many([content[:size]] * 2, other.address) == 2
            assert other.do("drain") == ((content[:size], sender.getsockname()),) * 2


def test_rising_and_falling_sizes_keep_their_order(inet):
    sizes = [5, 5, 5, 3, 5, 0, 0, 5, 6, 6, 1, 1, 1, 0, 1, 1000, 999, 1000, 1000, 1]
    datagrams = [bytes([number]) * size for number, size in enumerate(sizes)]
    with inet.bound(socket) as sock, inet.open(socket) as sender:
        assert sender.send_many(datagrams, sock.getsockname()) == len(sizes)
        assert payloads(sock) == datagrams


def test_send_many_accepts_every_bytes_like_object(kind):
    class Bytes(bytes):
        pass

    with kind.bound(socket) as sock, mmap.mmap(-1, 4096) as mapped:
        mapped[:] = b"m" * 4096
        items = [
            b"bytes",
            bytearray(b"bytearray"),
            memoryview(b"a memoryview")[2:],
            memoryview(array.array("I", [1, 2])),
            array.array("H", [3, 4, 5]),
            array.array("d"),
            Bytes(b"of a subclass"),
            mapped,
            memoryview(bytearray(6)).cast("B", (2, 3)),
        ]
        assert sock.send_many(items, sock.getsockname()) == 9
        assert payloads(sock) == [bytes(item) for item in items[:7]] + [b"m" * 4096, bytes(6)]
        assert sock.send_many([(item, sock.getsockname()) for item in items]) == 9
        assert len(payloads(sock)) == 9


def sequence(items):
    """Make an object that is iterable by ``__getitem__`` only."""

    class Sequence:
        def __getitem__(self, index):
            return items[index]

    return Sequence()


class List(list):
    """A list whose iterator does not yield its items."""

    def __iter__(self):
        return iter([b"other", b"things"])


ITERABLES = {
    "list": list,
    "tuple": tuple,
    "iterator": iter,
    "generator": lambda items: (item for item in items),
    "deque": collections.deque,
    "keys of a dictionary": dict.fromkeys,
    "map": lambda items: map(bytearray, items),
    "chain": lambda items: itertools.chain(items[:1], items[1:]),
    "sequence": sequence,
}


@pytest.mark.parametrize("iterable", ITERABLES.values(), ids=ITERABLES)
def test_send_many_accepts_any_iterable(inet, iterable):
    datagrams = numbered(5)
    with inet.bound(socket) as sock:
        assert sock.send_many(iterable(datagrams), sock.getsockname()) == 5
        assert payloads(sock) == datagrams
        if iterable is not ITERABLES["map"]:
            pairs = [(data, sock.getsockname()) for data in datagrams]
            assert sock.send_many(iterable(pairs)) == 5
            assert payloads(sock) == datagrams


def test_send_many_uses_the_iterator_of_a_list_subclass(inet):
    with inet.bound(socket) as sock:
        assert sock.send_many(List([b"x"]), sock.getsockname()) == 2
        assert payloads(sock) == [b"other", b"things"]


@pytest.mark.parametrize("nothing", [[], (), iter([]), {}])
def test_send_many_of_an_empty_iterable_sends_nothing(inet, nothing):
    with inet.bound(socket) as sock:
        assert sock.send_many(nothing) == 0
        assert sock.send_many(nothing, sock.getsockname(), errors="continue") == []
        assert payloads(sock) == []


def test_send_many_iterable_may_use_the_same_socket(inet):
    with inet.bound(socket) as sock:

        def datagrams():
            yield b"first"
            sock.sendto(b"before", sock.getsockname())
            assert sock.send_many([b"too"], sock.getsockname()) == 1
            assert sock.recv_many() == [(data, sock.getsockname()) for data in (b"before", b"too")]
            yield b"second"

        assert sock.send_many(datagrams(), sock.getsockname()) == 2
        assert payloads(sock) == [b"first", b"second"]


def test_send_many_accepts_named_tuples_with_equal_addresses(inet):
    pair = collections.namedtuple("pair", "data to")  # noqa: PYI024 - a class made at run time
    with inet.bound(socket) as sock:
        pairs = [pair(b"%d" % number, (*sock.getsockname(),)) for number in range(5)]
        assert sock.send_many(pairs) == 5
        assert len(payloads(sock)) == 5


def test_send_many_to_different_peers_in_turn(kind):
    with (
        kind.bound(socket) as sender,
        kind.bound(socket) as first,
        kind.bound(socket) as second,
        kind.bound(socket) as third,
    ):
        peers = [first, second, third]
        order = [0, 1, 2, 0, 0, 1, 1, 2, 1, 0]
        pairs = [(b"%d" % at, peers[to].getsockname()) for at, to in enumerate(order)]
        assert sender.send_many(pairs) == 10
        for number, sock in enumerate(peers):
            mine = [b"%d" % at for at, to in enumerate(order) if to == number]
            assert everything(sock) == [(data, sender.getsockname()) for data in mine]


def test_send_many_accepts_an_ipv4_address_on_an_ipv6_socket(inet, inet6, peer):
    four, six = peer(inet), peer(inet6)
    with inet6.open(socket) as sock:
        sock.bind(("::", 0))
        port = sock.getsockname()[1]
        assert sock.send_many([b"a", b"b"], four.address) == 2
        pairs = [(b"c", four.address), (b"six", six.address), (b"d", four.address)]
        assert sock.send_many(pairs) == 3
        assert four.do("drain") == tuple((data, ("127.0.0.1", port)) for data in b"a b c d".split())
        assert six.do("drain") == ((b"six", ("::1", port, 0, 0)),)
        four.do("send", datagrams=[b"back"], to=("127.0.0.1", port))
        mapped = ("::ffff:127.0.0.1", four.address[1], 0, 0)
        assert sock.recv_many() == [(b"back", mapped)]
        assert sock.send_many([(b"to the mapped one", mapped)]) == 1
        assert four.do("drain") == ((b"to the mapped one", ("127.0.0.1", port)),)


def test_send_many_reads_an_address_again_after_it_changed(unix):
    with unix.bound(socket) as first, unix.bound(socket) as second, unix.open(socket) as sender:
        address = bytearray()

        def pairs():
            for data, peer in ((b"1", first), (b"2", second), (b"3", first)):
                address[:] = peer.getsockname().encode()
                yield data, address

        assert sender.send_many(pairs()) == 3
        assert payloads(first) == [b"1", b"3"]
        assert payloads(second) == [b"2"]


def test_send_many_resolves_host_names(inet, peer):
    other = peer(inet)
    with inet.bound(socket) as sock:
        to = ("localhost", other.address[1])
        assert sock.send_many([b"a"], to) == 1
        assert sock.send_many([(b"b", to)]) == 1
        assert [data for data, _ in other.do("drain")] == [b"a", b"b"]


def test_send_many_has_the_same_results_with_and_without_a_timeout(inet):
    with inet.bound(socket) as sock:
        for timeout in (None, DEADLINE, 0):
            sock.settimeout(timeout)
            assert sock.send_many(SEVERAL, sock.getsockname()) == 5
            assert [data for data, _ in sock.recv_many()] == SEVERAL
