"""Contexts and connected sockets for tests of DTLS."""

import contextlib
import socket as std

from certificates import certificates
from support import Call
from tomada import Server, dtls, socket

KEYS = {"tester": b"secret", "other": b"another secret"}


def psk_client(identity="tester", key=None):
    """Return a client's context with a pre-shared key."""
    context = dtls.Context(dtls.PROTOCOL_DTLS_CLIENT)
    key = KEYS[identity] if key is None else key
    context.set_psk_client_callback(lambda _hint: (identity, key))
    return context


def psk_server(keys=None):
    """Return a server's context with pre-shared keys."""
    context = dtls.Context(dtls.PROTOCOL_DTLS_SERVER)
    context.set_psk_server_callback((KEYS if keys is None else keys).get)
    return context


def server_of(pair):
    """Return a server's context with a certificate."""
    context = dtls.Context(dtls.PROTOCOL_DTLS_SERVER)
    context.load_cert_chain(*pair)
    return context


def trusting(ca):
    """Return a client's context that trusts an issuer."""
    return dtls.create_default_context(cafile=ca)


@contextlib.contextmanager
def connected():
    """Yield two sockets that are connected to each other."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        for sock in (one, other):
            sock.bind(("127.0.0.1", 0))
            sock.settimeout(30)
        one.connect(other.getsockname())
        other.connect(one.getsockname())
        yield one, other


@contextlib.contextmanager
def session(client, server, server_hostname=None):
    """Yield the two wrapped sockets of a session."""
    with connected() as (one, other):
        accepting = Call(server.wrap_socket, other, True)
        with (
            client.wrap_socket(one, server_hostname=server_hostname) as near,
            accepting.result() as far,
        ):
            yield near, far


def upper(data, _address):
    return data.upper()


def serving(context):
    """Return a server that replies in upper case."""
    return Server(("127.0.0.1", 0), upper, dtls=context)


def of_kind(kind):
    """Return a server's and a client's context for a kind of session."""
    if kind == "psk":
        return psk_server(), psk_client()
    files = certificates()
    server, client = server_of(files.rsa if kind == "rsa" else files.ecdsa), trusting(files.ca)
    if kind == "mutual":
        server.load_verify_locations(files.ca)
        server.verify_mode = dtls.CERT_REQUIRED
        client.load_cert_chain(*files.client)
    if kind == "small":
        server.mtu = client.mtu = 300
    return server, client


@contextlib.contextmanager
def connected_to(address, context, server_hostname=None):
    """Yield a wrapped socket that has a session with a server."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(30)
        sock.connect(address)
        with context.wrap_socket(sock, server_hostname=server_hostname) as wrapped:
            yield wrapped


@contextlib.contextmanager
def beginning():
    """Yield a client's socket during the handshake, and a plain one that receives from it."""
    with (
        std.socket(std.AF_INET, std.SOCK_DGRAM) as tap,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        tap.bind(("127.0.0.1", 0))
        tap.settimeout(30)
        sock.connect(tap.getsockname())
        sock.setblocking(False)
        with psk_client().wrap_socket(sock, do_handshake_on_connect=False) as near:
            yield near, tap


def first_message():
    """Return the first message of a client."""
    with beginning() as (_, tap):
        return tap.recv(2000)
