"""send_many and recv_many: many datagrams a call, with plain ``socket`` peers at the other end."""

import array
import collections
import itertools
import mmap

import pytest

from support import DEADLINE
from tomada import socket
from traffic import everything, numbered, payloads

SEVERAL = [b"one", b"", b"three", b"three", "olá".encode()]


def test_what_plain_sockets_send_is_received_together(kind, peer):
    first, second = peer(kind), peer(kind)
    with kind.bound(socket) as sock:
        first.do("send", datagrams=SEVERAL, to=sock.getsockname())
        second.do("send", datagrams=[b"mine"], to=sock.getsockname())
        expected = [(data, first.address) for data in SEVERAL] + [(b"mine", second.address)]
        assert sock.recv_many() == expected


@pytest.mark.parametrize("count", [63, 64, 65, 128])
def test_a_receive_that_empties_the_queue_at_its_last_slot_is_no_end(count):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        for _ in range(3):
            sent = numbered(count)
            sock.send_many(sent, sock.getsockname())
            assert [data for data, _ in sock.recv_many(1024)] == sent


def test_what_is_sent_together_reaches_plain_sockets_in_order(kind, peer):
    first, second = peer(kind), peer(kind)
    with kind.bound(socket) as sock:
        pairs = [(data, first.address) for data in SEVERAL] + [(b"yours", second.address)]
        pairs.insert(2, (b"between", second.address))
        assert sock.send_many(pairs) == 7
        here = sock.getsockname()
        assert first.do("drain") == tuple((data, here) for data in SEVERAL)
        assert second.do("drain") == ((b"between", here), (b"yours", here))


def test_what_is_sent_without_an_address_reaches_the_connected_peer(kind, peer):
    other = peer(kind)
    with kind.bound(socket) as sock:
        sock.connect(other.address)
        assert sock.send_many(SEVERAL) == 5
        assert other.do("drain") == tuple((data, sock.getsockname()) for data in SEVERAL)


def test_one_address_will_do_for_all(kind, peer):
    other = peer(kind)
    with kind.bound(socket) as sock:
        assert sock.send_many(SEVERAL[:3], other.address) == 3
        assert sock.send_many(SEVERAL[3:], address=other.address, flags=0) == 2
        assert other.do("drain") == tuple((data, sock.getsockname()) for data in SEVERAL)


def test_an_address_goes_before_the_connected_peer(kind, peer):
    near, far = peer(kind), peer(kind)
    with kind.bound(socket) as sock:
        sock.connect(near.address)
        assert sock.send_many([b"a", b"b"], far.address) == 2
        assert sock.send_many([(b"c", far.address)]) == 1
        assert [data for data, _ in far.do("drain")] == [b"a", b"b", b"c"]
        assert near.do("drain") == ()


def test_what_was_received_can_be_sent_back_as_it_is(kind, peer):
    other = peer(kind)
    with kind.bound(socket) as sock:
        other.do("send", datagrams=SEVERAL, to=sock.getsockname())
        assert sock.send_many(sock.recv_many()) == 5
        assert other.do("drain") == tuple((data, sock.getsockname()) for data in SEVERAL)


def test_received_datagrams_are_pairs_as_of_recvfrom(kind):
    with kind.bound(socket) as sock, kind.bound(socket) as sender:
        for _ in range(2):
            sender.sendto(b"x", sock.getsockname())
        (many,) = sock.recv_many(1)
        single = sock.recvfrom(10)
        assert many == single
        assert [type(part) for part in (many, *many)] == [type(part) for part in (single, *single)]


def test_a_sender_without_a_name_is_none(unix):
    with unix.bound(socket) as sock, unix.open(socket) as nameless:
        assert nameless.send_many([b"a", b"b"], sock.getsockname()) == 2
        assert sock.recv_many() == [(b"a", None), (b"b", None)]


@pytest.mark.parametrize("count", [63, 64, 65, 128, 200])
def test_a_receive_that_finds_no_more_leaves_no_error_behind(inet, count):
    with inet.bound(socket) as sock:
        sock.settimeout(None)
        for _ in range(2):
            sock.send_many(numbered(count), sock.getsockname())
            assert [data for data, _ in sock.recv_many(1000)] == numbered(count)
        sock.settimeout(0)
        with pytest.raises(BlockingIOError):
            sock.recv_many(1000)


@pytest.mark.parametrize("most", [1, 2, 63, 64, 65, 150, 200])
def test_no_more_than_the_maximum_is_taken_and_the_rest_stays(inet, most):
    datagrams = numbered(200)
    with inet.bound(socket) as sock, inet.open(socket) as sender:
        assert sender.send_many(datagrams, sock.getsockname()) == 200
        assert [data for data, _ in sock.recv_many(most)] == datagrams[:most]
        assert payloads(sock) == datagrams[most:]


def test_a_maximum_beyond_what_is_there_is_not_waited_for(kind):
    with kind.bound(socket) as sock:
        sock.settimeout(None)
        for count in (1, 5):
            for number in range(count):
                sock.sendto(b"%d" % number, sock.getsockname())
            assert len(sock.recv_many(max_datagrams=1_000_000, flags=0)) == count


def test_without_a_maximum_64_are_taken(inet):
    with inet.bound(socket) as sock:
        sock.send_many(numbered(70), sock.getsockname())
        assert len(sock.recv_many()) == 64
        assert len(sock.recv_many()) == 6


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 128, 129, 1000, 4095, 4096, 4097])
def test_any_number_can_be_sent_at_once(inet, count):
    datagrams = numbered(count)
    with inet.bound(socket) as sock, inet.open(socket) as sender:
        sender.connect(sock.getsockname())
        received = []
        for start in range(0, count, 200):
            # As many as the buffer holds, and then, beyond that, all the rest at once.
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
            # Twice, so that those that can leave as a run do.
            datagrams = [content[size % 256 :][:size], content[:size]]
            assert sender.send_many(datagrams, sock.getsockname()) == 2
            assert [data for data, _ in sock.recv_many()] == datagrams, size
        for size in (0, 1, 1472, 1473, 65_507):
            assert sender.send_many([content[:size]] * 2, other.address) == 2
            assert other.do("drain") == ((content[:size], sender.getsockname()),) * 2


def test_sizes_that_rise_and_fall_keep_their_order(inet):
    sizes = [5, 5, 5, 3, 5, 0, 0, 5, 6, 6, 1, 1, 1, 0, 1, 1000, 999, 1000, 1000, 1]
    datagrams = [bytes([number]) * size for number, size in enumerate(sizes)]
    with inet.bound(socket) as sock, inet.open(socket) as sender:
        assert sender.send_many(datagrams, sock.getsockname()) == len(sizes)
        assert payloads(sock) == datagrams


def test_every_bytes_like_object_is_a_datagram(kind):
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
    """Make an object that is iterable as old sequences are."""

    class Sequence:
        def __getitem__(self, index):
            return items[index]

    return Sequence()


class List(list):
    """A list that is not what it holds."""

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
def test_datagrams_may_come_from_any_iterable(inet, iterable):
    datagrams = numbered(5)
    with inet.bound(socket) as sock:
        assert sock.send_many(iterable(datagrams), sock.getsockname()) == 5
        assert payloads(sock) == datagrams
        if iterable is not ITERABLES["map"]:
            pairs = [(data, sock.getsockname()) for data in datagrams]
            assert sock.send_many(iterable(pairs)) == 5
            assert payloads(sock) == datagrams


def test_a_subclass_of_list_is_iterated_its_own_way(inet):
    with inet.bound(socket) as sock:
        assert sock.send_many(List([b"x"]), sock.getsockname()) == 2
        assert payloads(sock) == [b"other", b"things"]


@pytest.mark.parametrize("nothing", [[], (), iter([]), {}])
def test_no_datagrams_are_none_sent(inet, nothing):
    with inet.bound(socket) as sock:
        assert sock.send_many(nothing) == 0
        assert sock.send_many(nothing, sock.getsockname(), errors="continue") == []
        assert payloads(sock) == []


def test_an_iterable_may_use_the_socket_that_sends_it(inet):
    with inet.bound(socket) as sock:

        def datagrams():
            yield b"first"
            sock.sendto(b"before", sock.getsockname())
            assert sock.send_many([b"too"], sock.getsockname()) == 1
            assert sock.recv_many() == [(data, sock.getsockname()) for data in (b"before", b"too")]
            yield b"second"

        assert sock.send_many(datagrams(), sock.getsockname()) == 2
        assert payloads(sock) == [b"first", b"second"]


def test_pairs_may_be_named_tuples_with_equal_addresses(inet):
    pair = collections.namedtuple("pair", "data to")  # noqa: PYI024 - a class made at run time
    with inet.bound(socket) as sock:
        pairs = [pair(b"%d" % number, (*sock.getsockname(),)) for number in range(5)]
        assert sock.send_many(pairs) == 5
        assert len(payloads(sock)) == 5


def test_neighbours_go_to_different_peers(kind):
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


def test_an_ipv4_address_will_do_on_a_socket_of_ipv6(inet, inet6, peer):
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


def test_an_address_that_changes_between_datagrams_is_read_again(unix):
    with unix.bound(socket) as first, unix.bound(socket) as second, unix.open(socket) as sender:
        address = bytearray()

        def pairs():
            for data, peer in ((b"1", first), (b"2", second), (b"3", first)):
                address[:] = peer.getsockname().encode()
                yield data, address

        assert sender.send_many(pairs()) == 3
        assert payloads(first) == [b"1", b"3"]
        assert payloads(second) == [b"2"]


def test_names_of_hosts_are_resolved(inet, peer):
    other = peer(inet)
    with inet.bound(socket) as sock:
        to = ("localhost", other.address[1])
        assert sock.send_many([b"a"], to) == 1
        assert sock.send_many([(b"b", to)]) == 1
        assert [data for data, _ in other.do("drain")] == [b"a", b"b"]


def test_a_socket_without_a_deadline_passes_what_one_with_a_deadline_does(inet):
    with inet.bound(socket) as sock:
        for timeout in (None, DEADLINE, 0):
            sock.settimeout(timeout)
            assert sock.send_many(SEVERAL, sock.getsockname()) == 5
            assert [data for data, _ in sock.recv_many()] == SEVERAL
