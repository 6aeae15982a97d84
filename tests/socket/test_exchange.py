"""Every send and receive method, with a plain ``socket`` at the other end."""

import array

import pytest

from tomada import socket

# The last is the longest payload of a UDP datagram over IPv4.
PAYLOADS = [b"", b"x", "olá, mundo".encode(), bytes(range(256)) * 5 + bytes(192), b"z" * 65_507]
PAYLOAD_NAMES = ["empty", "one byte", "not ASCII", "1472 bytes", "65507 bytes"]

every_payload = pytest.mark.parametrize("payload", PAYLOADS, ids=PAYLOAD_NAMES)


def halves(data):
    return [data[: len(data) // 2], b"", data[len(data) // 2 :]]


SEND_TO = {
    "sendto": lambda sock, data, to: sock.sendto(data, to),
    "sendto with flags": lambda sock, data, to: sock.sendto(data, socket.MSG_NOSIGNAL, to),
    "sendmsg": lambda sock, data, to: sock.sendmsg([data], [], 0, to),
    "sendmsg of several buffers": lambda sock, data, to: sock.sendmsg(halves(data), (), 0, to),
    "sendmsg of an iterator": lambda sock, data, to: sock.sendmsg(iter(halves(data)), [], 0, to),
}

SEND = {
    "send": lambda sock, data: sock.send(data),
    "send with flags": lambda sock, data: sock.send(data, socket.MSG_NOSIGNAL),
    "sendmsg": lambda sock, data: sock.sendmsg([data]),
    "sendmsg of several buffers": lambda sock, data: sock.sendmsg(halves(data)),
    "sendmsg to nobody else": lambda sock, data: sock.sendmsg([data], [], 0, None),
}


def recv_into(sock, size):
    buffer = bytearray(size)
    return bytes(buffer[: sock.recv_into(buffer)]), None


def recvfrom_into(sock, size):
    buffer = bytearray(size)
    length, address = sock.recvfrom_into(buffer)
    return bytes(buffer[:length]), address


def recvmsg(sock, size):
    data, ancillary, flags, address = sock.recvmsg(size)
    assert (ancillary, flags) == ([], 0)
    return data, address


def recvmsg_into(sock, size):
    buffers = [bytearray(100), bytearray(), bytearray(size - 100)]
    length, ancillary, flags, address = sock.recvmsg_into(buffers)
    assert (ancillary, flags) == ([], 0)
    return b"".join(buffers)[:length], address


# None instead of the address if the method does not return it.
RECEIVE = {
    "recv": lambda sock, size: (sock.recv(size), None),
    "recvfrom": lambda sock, size: sock.recvfrom(size),
    "recv_into": recv_into,
    "recvfrom_into": recvfrom_into,
    "recvmsg": recvmsg,
    "recvmsg_into": recvmsg_into,
}


@pytest.mark.parametrize("method", SEND_TO)
def test_send_to_an_address(kind, peer, method):
    other = peer(kind)
    with kind.bound(socket) as sock:
        for payload in PAYLOADS:
            other.ask("collect", count=1)
            assert SEND_TO[method](sock, payload, other.address) == len(payload)
            assert other.answer() == ((payload, sock.getsockname()),)


@pytest.mark.parametrize("method", SEND)
def test_send_on_a_connected_socket(kind, peer, method):
    other = peer(kind)
    with kind.bound(socket) as sock:
        sock.connect(other.address)
        for payload in PAYLOADS:
            other.ask("collect", count=1)
            assert SEND[method](sock, payload) == len(payload)
            assert other.answer() == ((payload, sock.getsockname()),)


@every_payload
def test_sendall_sends_one_datagram(kind, peer, payload):
    other = peer(kind)
    with kind.bound(socket) as sock:
        assert sock.connect_ex(other.address) == 0
        assert sock.sendall(payload) is None
        assert sock.sendall(b"the next", socket.MSG_NOSIGNAL) is None
        me = sock.getsockname()
        assert other.do("collect", count=2) == ((payload, me), (b"the next", me))


@pytest.mark.parametrize("method", RECEIVE)
def test_receive_returns_the_datagram_and_its_sender(kind, peer, method):
    other = peer(kind)
    with kind.bound(socket) as sock:
        for payload in PAYLOADS:
            other.do("send", datagrams=[payload], to=sock.getsockname())
            data, address = RECEIVE[method](sock, 70_000)
            assert data == payload
            assert address in {other.address, None}


@pytest.mark.parametrize("method", RECEIVE)
def test_connected_socket_receives_from_its_peer(kind, peer, method):
    other = peer(kind)
    with kind.bound(socket) as sock:
        sock.connect(other.address)
        other.do("connect", to=sock.getsockname())
        assert sock.getpeername() == other.address
        for payload in PAYLOADS:
            other.do("send", datagrams=[payload], to=None)
            data, address = RECEIVE[method](sock, 70_000)
            assert data == payload
            assert address in {other.address, None}


@every_payload
def test_received_datagram_can_be_sent_back(kind, peer, payload):
    other = peer(kind)
    with kind.bound(socket) as sock:
        other.ask("echo", count=1)
        sock.sendto(payload, other.address)
        assert sock.recvfrom(70_000) == (payload, other.address)


def test_datagrams_keep_their_lengths_and_order(kind, peer):
    other = peer(kind)
    payloads = [bytes([n]) * n for n in range(200)]
    with kind.bound(socket) as sock:
        other.ask("send", datagrams=payloads, to=sock.getsockname())
        assert [sock.recv(1000) for _ in payloads] == payloads
        other.answer()
        other.ask("collect", count=len(payloads))
        for payload in payloads:
            sock.sendto(payload, other.address)
        assert [data for data, _ in other.answer()] == payloads


@pytest.mark.parametrize(
    "data",
    [
        b"some bytes",
        bytearray(b"some bytes"),
        memoryview(b"some bytes"),
        memoryview(b"not some bytes at all")[4:14],
        array.array("B", b"some bytes"),
        array.array("H", b"some bytes"),
        memoryview(b"some bytes").cast("B", (2, 5)),
        type("Bytes", (bytes,), {})(b"some bytes"),
    ],
    ids=lambda data: type(data).__name__,
)
def test_send_accepts_any_bytes_like_object(inet, peer, data):
    other = peer(inet)
    with inet.bound(socket) as sock:
        assert sock.sendto(data, other.address) == 10
        assert sock.sendmsg([data, data], [], 0, other.address) == 20
        sock.connect(other.address)
        assert sock.send(data) == 10
        sock.sendall(data)
        received = [data for data, _ in other.do("collect", count=4)]
        assert received == [b"some bytes", b"some bytes" * 2, b"some bytes", b"some bytes"]


@pytest.mark.parametrize("code", ["B", "H", "I", "d"])
def test_receive_into_any_writable_buffer(inet, peer, code):
    other = peer(inet)
    with inet.bound(socket) as sock:
        for receive in (
            sock.recv_into,
            sock.recvfrom_into,
            lambda buffer: sock.recvmsg_into([buffer]),
        ):
            buffer = array.array(code, bytes(16))
            other.do("send", datagrams=[b"0123456789abcdef"], to=sock.getsockname())
            receive(buffer)
            assert buffer.tobytes() == b"0123456789abcdef"


def test_receive_into_leaves_the_rest_of_the_buffer_unchanged(inet, peer):
    other = peer(inet)
    with inet.bound(socket) as sock:
        for receive in (sock.recv_into, sock.recvfrom_into):
            other.do("send", datagrams=[b"abcdef"] * 2, to=sock.getsockname())
            buffer = bytearray(b"." * 10)
            receive(buffer)
            assert buffer == b"abcdef...."
            buffer = bytearray(b"." * 10)
            receive(buffer, 4)
            assert buffer == b"abcd......"


def test_receive_into_part_of_a_buffer(inet, peer):
    other = peer(inet)
    with inet.bound(socket) as sock:
        other.do("send", datagrams=[b"abc", b"def"], to=sock.getsockname())
        buffer = bytearray(b"." * 10)
        assert sock.recv_into(memoryview(buffer)[2:]) == 3
        assert sock.recvfrom_into(memoryview(buffer)[6:8]) == (2, other.address)
        assert buffer == b"..abc.de.."


def test_recvmsg_into_fills_several_buffers_in_order(kind, peer):
    other = peer(kind)
    with kind.bound(socket) as sock:
        other.do("send", datagrams=[b"abcdefgh"], to=sock.getsockname())
        buffers = [bytearray(2), array.array("B", bytes(3)), memoryview(bytearray(5))]
        assert sock.recvmsg_into(buffers)[0] == 8
        assert [bytes(buffer) for buffer in buffers] == [b"ab", b"cde", b"fgh\0\0"]


def test_sender_without_a_name_has_no_address(unix):
    with unix.bound(socket) as sock, unix.open(socket) as stranger:
        stranger.sendto(b"who", sock.getsockname())
        stranger.sendto(b"am", sock.getsockname())
        stranger.sendto(b"I", sock.getsockname())
        assert sock.recvfrom(10) == (b"who", None)
        assert sock.recvfrom_into(bytearray(10)) == (2, None)
        assert sock.recvmsg(10) == (b"I", [], 0, None)


def test_connect_again_changes_the_peer(kind, peer):
    first, second = peer(kind), peer(kind)
    with kind.bound(socket) as sock:
        for other in (first, second):
            sock.connect(other.address)
            assert sock.getpeername() == other.address
            sock.send(b"for you")
        assert first.do("drain") == second.do("drain") == ((b"for you", sock.getsockname()),)


def test_connected_udp_socket_ignores_other_senders(inet, peer):
    other, stranger = peer(inet), peer(inet)
    with inet.bound(socket) as sock:
        sock.connect(other.address)
        stranger.do("send", datagrams=[b"psst"], to=sock.getsockname())
        other.do("send", datagrams=[b"hello"], to=sock.getsockname())
        assert sock.recvfrom(100) == (b"hello", other.address)


def test_datagram_from_before_connect_is_still_received(inet, peer):
    other, stranger = peer(inet), peer(inet)
    with inet.bound(socket) as sock:
        stranger.do("send", datagrams=[b"psst"], to=sock.getsockname())
        sock.connect(other.address)
        assert sock.recvfrom(100) == (b"psst", stranger.address)


def test_getsockname_of_a_bound_socket(kind):
    with kind.open(socket) as sock:
        address = kind.address()
        sock.bind(address)
        if kind.is_unix:
            assert sock.getsockname() == address
        else:
            host, port, *rest = sock.getsockname()
            assert host == address[0]
            assert 0 < port < 65_536
            assert rest in ([], [0, 0])
