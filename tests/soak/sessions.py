"""Lanes of DTLS: clients behind a link that impairs the network, and sockets that are wrapped."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import tomada
from benches.programs.sessions import client_context, server_context
from benches.session_loads import identity
from tests.soak.lanes import HERE, Accounts, Lane, echo
from tomada import dtls, socket, testing

# The impairments of a network that is worse than most.
POOR: dict[str, Any] = {"loss": 0.05, "duplicate": 0.05, "reorder": 0.05, "log_size": 0}
# How long a handshake and a request may take, in seconds. With such losses, some handshakes need
# several retransmissions, each after twice the time of the one before.
PATIENCE = 100.0
MANY = [b"%d" % number for number in range(100)]


def apart() -> tuple[str, int]:
    """Return an address where the ends of sessions disturb no lane with an account.

    A server answers the end of a session when the client has closed its socket. The next socket
    with that port gets the answer. Those lanes are on IPv4, so this is IPv6, if the machine has it.
    """
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::1", 0))
        return "::1", 0
    return HERE


def new_server_context() -> Any:
    """Return a server's context, with a certificate of its own."""
    with identity() as certificate:
        return server_context(certificate)


class Asking(Lane):
    """Clients whose requests are lost, and sent again.

    They have no account: their replies are compared instead.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._server_side = new_server_context()
        self._server_side.handshake_timeout = PATIENCE

    def round(self, seconds: float) -> Accounts:
        until = time.monotonic() + seconds
        client_side = client_context()  # it keeps sessions, to resume them
        client_side.handshake_timeout = PATIENCE
        with tomada.Server(apart(), echo, dtls=self._server_side) as server:
            while time.monotonic() < until:
                self._ask(server, client_side)
        return {}

    def _ask(self, server: tomada.Server, context: Any) -> None:
        patient: dict[str, Any] = {"timeout": PATIENCE, "retries": 1000, "backoff": 1.0}
        with (
            testing.impaired(server, **POOR) as link,
            tomada.Client(link.address, dtls=context, **patient) as client,
        ):
            if list(client.request_many(MANY)) != MANY:
                raise RuntimeError("a reply to another request")
        self.deeds["DTLS clients behind a link"] += 1
        self.deeds["requests answered over DTLS"] += len(MANY)


class Wrapped(Lane):
    """Sockets that are wrapped, ask, and end their session. Their replies are compared, too."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._server_side = new_server_context()

    def round(self, seconds: float) -> Accounts:
        until = time.monotonic() + seconds
        client_side = client_context()
        with tomada.Server(apart(), echo, dtls=self._server_side) as server:
            while time.monotonic() < until:
                self._ask(server.address, client_side)
        return {}

    def _ask(self, address: Any, context: Any) -> None:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        plain = socket.socket(family, socket.SOCK_DGRAM)
        plain.settimeout(PATIENCE)
        plain.connect(address)
        with dtls.wrap_socket(plain, context) as sock:
            sock.send_many(MANY)
            if sorted(sock.recv(2048) for _ in MANY) != sorted(MANY):
                raise RuntimeError("a reply to another request")
        self.deeds["sockets wrapped"] += 1
        self.deeds["requests answered over DTLS"] += len(MANY)
