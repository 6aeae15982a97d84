"""DTLS: servers that send back the data of every record, and a client of such a server."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import Any

from benches.programs import loops
from benches.programs.clients import ask_each
from benches.programs.run import CHUNK, Run
from benches.programs.servers import serve_handler
from tomada import Client, dtls

MTU = 1400


def server(run: Run) -> None:
    """``tomada.Server``."""
    counter, received = run.counter, 0

    def handle(data: bytes, _address: object) -> bytes:
        nonlocal received
        received += 1
        if not received % len(CHUNK):
            counter[0] = received
        return data

    serve_handler(run, handle, dtls=server_context(run.certificate))


def server_context(certificate: str) -> dtls.Context:
    """Create a server's context, with the certificate and the key in a file."""
    context = dtls.Context(dtls.PROTOCOL_DTLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def client(run: Run) -> None:
    """``tomada.Client``."""
    with Client(("127.0.0.1", run.port), dtls=client_context()) as client:
        ask_each(run, client.request)


def client_context() -> dtls.Context:
    """Create a client's context, which accepts any certificate."""
    context = dtls.Context(dtls.PROTOCOL_DTLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = dtls.CERT_NONE
    return context


def trio(run: Run) -> None:
    """``trio.DTLSEndpoint``."""
    from OpenSSL import SSL  # noqa: PLC0415 - only where it is measured
    from trio import DTLSEndpoint, socket  # noqa: PLC0415 - as above

    async def main() -> None:
        context = make_context(run)
        sock = socket.from_stdlib_socket(run.bind())
        with sock, DTLSEndpoint(sock) as endpoint:
            run.announce_socket(sock)
            await endpoint.serve(context, echo)

    async def echo(channel: Any) -> None:
        with contextlib.suppress(SSL.Error):  # the peer has closed the session
            async for data in channel:
                await channel.send(data)
                run.counter[0] += 1

    run.loop = "trio"
    loops.start(run, main)


def pyopenssl(run: Run) -> None:
    """Serve with pyOpenSSL on asyncio: a cookie exchange, then a session for each peer."""

    async def main() -> None:
        sock = run.bind()
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: Sessions(run), sock=sock)
        run.announce_socket(sock)
        await loop.create_future()

    loops.start(run, main)


class Sessions(asyncio.DatagramProtocol):
    """The sessions of a socket, by peer address."""

    def __init__(self, run: Run) -> None:
        from OpenSSL import SSL  # noqa: PLC0415 - only where it is measured

        self._ssl, self._counter, self._context = SSL, run.counter, make_context(run)
        self._sessions: dict[Any, Any] = {}
        cookie = secrets.token_bytes(32)
        self._context.set_cookie_generate_callback(lambda _connection: cookie)
        self._context.set_cookie_verify_callback(lambda _connection, given: given == cookie)
        self._gate = self._connection()

    def _connection(self) -> Any:
        connection = self._ssl.Connection(self._context, None)
        connection.set_options(self._ssl.OP_NO_QUERY_MTU)
        connection.set_ciphertext_mtu(MTU)
        connection.set_accept_state()
        return connection

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        connection = self._sessions.get(address)
        if connection is None:
            connection = self._gate
        connection.bio_write(data)
        try:
            if connection is self._gate:
                connection.DTLSv1_listen()
                self._sessions[address], self._gate = connection, self._connection()
            while True:
                connection.send(connection.recv(1 << 14))  # recv() also continues a handshake
                self._counter[0] += 1
        except self._ssl.WantReadError:
            pass
        except self._ssl.Error:
            self._sessions.pop(address, None)
        self._flush(connection, address)

    def _flush(self, connection: Any, address: Any) -> None:
        try:
            while True:
                self._transport.sendto(connection.bio_read(1 << 14), address)
        except self._ssl.WantReadError:
            pass


def make_context(run: Run) -> Any:
    """Create pyOpenSSL's context."""
    from OpenSSL import SSL  # noqa: PLC0415 - only where it is measured

    context = SSL.Context(SSL.DTLS_SERVER_METHOD)
    context.use_certificate_chain_file(run.certificate)
    context.use_privatekey_file(run.certificate)
    return context
