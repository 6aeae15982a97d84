"""Servers among peers without keys, and on a network that reorders."""

import contextlib
import select
import socket as std

import pytest

import skips
from dtls_pairs import KEYS, psk_client, psk_server, upper
from programs import Program
from support import eventually
from tomada import Client, Server, socket


def serving(**settings):
    context = psk_server()
    for name, value in settings.items():
        setattr(context, name, value)
    return Server(("127.0.0.1", 0), upper, dtls=context)


class Relay:
    """A client's session with a server, through a socket that each takes for the other one.

    As the sender of forged datagrams has no keys, it might as well forge its address.
    """

    def __init__(self, server, sock, near):
        self.server, self.sock, self.near = server, sock, near
        self.seen = []

    def pass_on(self):
        """Pass a datagram on; return who sent it."""
        data, sender = self.sock.recvfrom(2000)
        self.seen.append(data)
        to = self.near.getsockname() if sender == self.server.address else self.server.address
        self.sock.sendto(data, to)
        return sender


@contextlib.contextmanager
def relayed(server, context):
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as middle:
        middle.bind(("127.0.0.1", 0))
        middle.settimeout(30)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(middle.getsockname())
            sock.setblocking(False)
            with context.wrap_socket(sock, do_handshake_on_connect=False) as near:
                relay = Relay(server, middle, near)
                while near.session is None or server.dtls_stats()["sessions"] == 0:
                    relay.pass_on()
                    with contextlib.suppress(BlockingIOError):
                        near.do_handshake()
                yield relay


def test_server_drops_replayed_records():
    with serving() as server, relayed(server, psk_client()) as relay:
        relay.near.send(b"only once")
        relay.pass_on()
        eventually(lambda: server.stats().received == 1)
        for data in relay.seen * 3:
            relay.sock.sendto(data, server.address)
        relay.near.send(b"and again")
        data, sender = relay.sock.recvfrom(2000)
        while sender == server.address:
            data, sender = relay.sock.recvfrom(2000)
        relay.sock.sendto(data, server.address)
        eventually(lambda: server.stats().received == 2)
        assert server.dtls_stats()["ended"] == 0


@pytest.mark.parametrize(
    "cipher",
    [
        "PSK-AES128-GCM-SHA256",
        "PSK-AES128-CCM8",
        "PSK-CHACHA20-POLY1305",
        "PSK-AES128-CBC-SHA",
        "ECDHE-PSK-AES128-CBC-SHA256",
    ],
)
def test_forged_records_of_any_length_end_no_session(cipher):
    client, context = psk_client(), psk_server()
    for each in (client, context):
        each.set_ciphers(f"{cipher}:@SECLEVEL=0")
    with (
        Server(("127.0.0.1", 0), upper, dtls=context) as server,
        relayed(server, client) as relay,
    ):
        for length in range(100):
            for kind in (21, 22, 23):
                header = bytes((kind, 254, 253, 0, 1, 0, kind, length, 0, 0, 0, 0, length))
                for to in (server.address, relay.near.getsockname()):
                    relay.sock.sendto(header + bytes(length), to)
                with pytest.raises(BlockingIOError):
                    relay.near.recv(2000)  # or its queue would be full soon
        relay.near.settimeout(30)
        relay.near.send(b"still here")
        while relay.pass_on() != server.address:
            pass
        assert relay.near.recv(2000) == b"STILL HERE"
        assert server.dtls_stats()["ended"] == 0


@pytest.mark.thread_unsafe(reason="it runs a program")
def test_forged_record_longer_than_the_agreed_fragment_ends_no_session():
    # Of such a record, OpenSSL drops the header only, and takes its content for records.
    short = bytes((23, 254, 253, 0, 1, 0, 9, 9, 9, 9, 9, 0, 5)) + bytes(5)
    header = bytes((23, 254, 253, 0, 1, 0, 9, 9, 9, 9, 8))
    long = [header + size.to_bytes(2, "big") + short + bytes(size - 18) for size in (832, 833, 900)]
    key = ["-psk_identity", "tester", "-psk", KEYS["tester"].hex(), "-cipher", "PSK"]
    with serving() as server, std.socket(std.AF_INET, std.SOCK_DGRAM) as middle:
        middle.bind(("127.0.0.1", 0))
        middle.settimeout(30)
        where = "127.0.0.1:{1}".format(*middle.getsockname())
        with Program(
            skips.program("openssl"),
            *("s_client", "-dtls1_2", "-maxfraglen", "512", "-connect", where, *key),
        ) as program:
            near = None

            def pass_on():
                nonlocal near
                data, sender = middle.recvfrom(2000)
                if sender == server.address:
                    middle.sendto(data, near)
                else:
                    near = sender
                    middle.sendto(data, server.address)

            while server.dtls_stats()["sessions"] == 0:
                pass_on()
            for datagram in [*long, *(each[:200] for each in long)]:
                middle.sendto(datagram, server.address)
            program.write(b"still here\n")
            while server.stats().received == 0:
                pass_on()
            assert server.dtls_stats()["ended"] == 0


def records(datagram):
    """Split a datagram into its records."""
    while datagram:
        end = 13 + int.from_bytes(datagram[11:13], "big")
        yield datagram[:end]
        datagram = datagram[end:]


@pytest.mark.parametrize(
    ("count", "size", "kept"),
    [
        (60, 1300, 60),  # together they are longer than any datagram
        (18, 8000, 16),  # 128 KiB
    ],
)
def test_server_gets_data_that_overtake_the_end_of_a_handshake(count, size, kept):
    change_cipher_spec = 20
    context = psk_server()
    context.mtu = 9000
    serving = Server(("127.0.0.1", 0), upper, dtls=context, rcvbuf=212_992)  # for them all
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as front, serving as server:
        front.bind(("127.0.0.1", 0))

        @contextlib.contextmanager
        def connected():
            with (
                std.socket(std.AF_INET, std.SOCK_DGRAM) as back,
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
            ):
                back.connect(server.address)
                sock.connect(front.getsockname())
                sock.setblocking(False)
                with context.wrap_socket(sock, do_handshake_on_connect=False) as near:
                    yield near, back

        def shake_hands(near, back, *, keeps_last=False):
            """Complete a handshake; return the client's last datagram if it is to be kept."""
            to_client = near.getsockname()
            while keeps_last or near.session is None:
                for sock in select.select([front, back], [], [], 30)[0]:
                    data, sender = sock.recvfrom(2000)
                    if sock is back:
                        front.sendto(data, to_client)
                    elif sender != to_client:
                        pass  # the end of an earlier session
                    elif keeps_last and data[0] == change_cipher_spec:
                        return data
                    else:
                        back.send(data)
                with contextlib.suppress(BlockingIOError):
                    near.do_handshake()
            return b""

        context = psk_client()
        context.mtu = 9000
        with connected() as (near, back):  # whose session the next one resumes
            shake_hands(near, back)
        with connected() as (near, back):
            last = list(records(shake_hands(near, back, keeps_last=True)))
            assert near.session.session_reused
            back.send(last[0])
            for _ in range(count):
                near.send(b"x" * size)
                back.send(front.recv(9000))
            back.send(b"".join(last[1:]))
            eventually(lambda: server.stats().received == kept)
        with Client(server.address, timeout=30, dtls=psk_client()) as client:
            assert client.request(b"still here") == b"STILL HERE"
