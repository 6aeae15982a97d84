"""Several clients at one address, as behind a NAT, or an attacker."""

import contextlib
import select
import socket as std

from dtls_pairs import psk_client
from tomada import socket

# The first byte of a record with a handshake message, and that of a ClientHello after its header.
HANDSHAKE, CLIENT_HELLO, HEADER = 22, 1, 13


class OneAddress:
    """Relays datagrams between clients and a server, which sees all clients at one address."""

    def __init__(self, address):
        self._front, self._back = (std.socket(std.AF_INET, std.SOCK_DGRAM) for _ in range(2))
        self._front.bind(("127.0.0.1", 0))
        self._back.connect(address)
        self._stack = contextlib.ExitStack()

    def client(self, identity, context=None):
        """Return a client that has not begun its handshake."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect(self._front.getsockname())
        sock.setblocking(False)
        context = psk_client(identity) if context is None else context
        near = context.wrap_socket(sock, do_handshake_on_connect=False)
        return self._stack.enter_context(near)

    def connect(self, identity, context=None):
        """Return a client that has a session."""
        near = self.client(identity, context)
        self.shake_hands(near)
        return near

    def shake_hands(self, near, *, holds_last=False):
        """Complete a handshake; or hold back the client's last flight, and return it."""
        to = near.getsockname()
        while near.session is None:
            for sock in select.select([self._front, self._back], [], [], 30)[0]:
                data, sender = sock.recvfrom(2000)
                if sock is self._back:
                    self._front.sendto(data, to)
                elif sender == to:
                    is_hello = (data[0], data[HEADER]) == (HANDSHAKE, CLIENT_HELLO)
                    if holds_last and not is_hello:
                        return [data, *self.sent()]
                    self._back.send(data)
            with contextlib.suppress(BlockingIOError):
                near.do_handshake()
        return []

    def sent(self):
        """Receive the datagrams that clients have sent."""
        with contextlib.suppress(BlockingIOError):
            while True:
                yield self._front.recv(2000, std.MSG_DONTWAIT)

    def pass_on(self, *datagrams):
        """Pass datagrams on to the server: by default, those that clients have sent."""
        for data in datagrams or tuple(self.sent()):
            self._back.send(data)

    def receive(self, near):
        """Pass a datagram from the server on to a client; return the data that the client gets."""
        while True:
            assert select.select([self._back], [], [], 30)[0]
            self._front.sendto(self._back.recv(2000), near.getsockname())
            with contextlib.suppress(BlockingIOError):
                return near.recv(2000)

    def __enter__(self):
        return self

    def __exit__(self, *details):
        self._stack.__exit__(*details)
        self._front.close()
        self._back.close()
