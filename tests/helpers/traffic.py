"""Many datagrams: coalesced or split runs, and every way to send and receive them."""

import itertools
import socket as std
import struct

import tomada
from tomada import socket

LO = std.if_nametoindex("lo")


def numbered(count, size=8):
    """Create datagrams of one size, each of which contains its number."""
    return [b"%0*d" % (size, number) for number in range(count)]


def send_run(sender, to, data, size):
    """Send a buffer from a plain socket as one run, which the kernel splits into datagrams."""
    segment = (std.IPPROTO_UDP, socket.UDP_SEGMENT, struct.pack("H", size))
    assert sender.sendmsg([data], [segment], 0, to) == len(data)


def everything(sock):
    """Receive the queued datagrams with their senders, without waiting."""
    timeout = sock.gettimeout()
    sock.setblocking(False)
    received = []
    try:
        while True:
            received.append(sock.recvfrom(1 << 18))
    except BlockingIOError:
        return received
    finally:
        sock.settimeout(timeout)


def payloads(sock):
    """Receive the queued payloads, without waiting."""
    return [data for data, _ in everything(sock)]


def from_batch(sock, count):
    batch = tomada.Batch(min(count, 64))
    sock.recv_batch(batch)
    return [(bytes(data), address) for data, address in batch]


# Each function receives one or more datagrams, with their senders.
RECEIVE_SOME = {
    "recvfrom": lambda sock, _: [sock.recvfrom(1 << 17)],
    "recv_many": lambda sock, count: sock.recv_many(count),
    "recv_batch": from_batch,
    "recv_datagrams": lambda sock, count: [
        (item.data, item.address) for item in sock.recv_datagrams(count)
    ],
}


def receive(sock, count, way="recvfrom"):
    """Wait for a number of datagrams, and return them with their senders."""
    received = []
    while len(received) < count:
        received += RECEIVE_SOME[way](sock, count - len(received))
    return received


def by_sendto(sock, pairs):
    for data, to in pairs:
        assert sock.sendto(data, to) == len(data)


def by_send_many(sock, pairs):
    assert sock.send_many(pairs) == len(pairs)


def by_send_batch(sock, pairs):
    batch = tomada.Batch()
    for data, to in pairs:
        batch.append(data, to)
    assert sock.send_batch(batch) == len(pairs)


def by_run(sock, pairs):
    """Send consecutive datagrams of one size to one peer as a run; plain sockets can, too."""
    for (size, to), run in itertools.groupby(pairs, lambda pair: (len(pair[0]), pair[1])):
        data = [item for item, _ in run]
        most = max(1, min(64, 65_507 // max(size, 1)))
        for start in range(0, len(data), most):
            chunk = data[start : start + most]
            if len(chunk) == 1 or size == 0:
                by_sendto(sock, [(item, to) for item in chunk])
            else:
                send_run(sock, to, b"".join(chunk), size)


SEND_ALL = {
    "sendto": by_sendto,
    "send_many": by_send_many,
    "send_batch": by_send_batch,
    "a run": by_run,
}
