"""Servers with many sessions on one socket."""

import contextlib
import os
import socket as std

import pytest

from certificates import certificates
from dtls_pairs import psk_client, psk_server, server_of, trusting
from support import eventually
from tomada import Server, dtls, socket


def connect(address, context, name=None):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.settimeout(30)
        sock.connect(address)
        return context.wrap_socket(sock, server_hostname=name)
    except BaseException:
        sock.close()
        raise


def test_server_serves_many_peers_on_one_socket():
    with (
        Server(("127.0.0.1", 0), lambda data, _: data.upper(), dtls=psk_server()) as server,
        contextlib.ExitStack() as stack,
    ):
        context = psk_client()
        peers = [stack.enter_context(connect(server.address, context)) for _ in range(20)]
        for round in range(3):
            for number, peer in enumerate(peers):
                peer.send(b"peer %d round %d" % (number, round))
            for number, peer in enumerate(peers):
                assert peer.recv(100) == b"PEER %d ROUND %d" % (number, round)
        assert server.stats().received == 60


@pytest.mark.parametrize("takes", ["datagram", "batch"])
def test_handler_sees_the_session(takes):
    seen = []

    def handle(first, *_):
        if takes == "datagram":
            seen.append(first.session)
            return first.data
        seen.extend(server.dtls_session(address) for _, address in first)
        return [data for data, _ in first]

    server = Server(("127.0.0.1", 0), handle, takes=takes, dtls=psk_server())
    with server, connect(server.address, psk_client("other")) as peer:
        peer.send(b"who am I?")
        assert peer.recv(100) == b"who am I?"
        assert [session.psk_identity for session in seen] == ["other"]
        assert server.dtls_session(peer.getsockname()).version() == "DTLSv1.2"
        assert server.dtls_session(("127.0.0.1", 1)) is None


def test_server_drops_plain_datagrams():
    handled = []
    with (
        Server(("127.0.0.1", 0), lambda data, _: handled.append(data), dtls=psk_server()) as server,
        std.socket(std.AF_INET, std.SOCK_DGRAM) as plain,
        connect(server.address, psk_client()) as peer,
    ):
        plain.sendto(b"in the clear", server.address)
        peer.send(b"encrypted")
        eventually(lambda: handled)
        assert handled == [b"encrypted"]


def test_server_with_certificates():
    files = certificates()
    context = server_of(files.rsa)
    context.load_cert_chain(*files.ecdsa)  # a server may have one of each kind
    with (
        Server(("127.0.0.1", 0), lambda data, _: data, dtls=context) as server,
        connect(server.address, trusting(files.ca), "localhost") as peer,
    ):
        peer.send(b"hello")
        assert peer.recv(100) == b"hello"


def test_server_ends_its_sessions_when_it_stops():
    server = Server(("127.0.0.1", 0), lambda data, _: data, dtls=psk_server())
    with server, connect(server.address, psk_client()) as peer:
        peer.send(b"hello")
        assert peer.recv(100) == b"hello"
        server.stop()
        assert peer.recv(100) == b""


@pytest.mark.parametrize("sizes", [[100], [100, 7], [50, 100, 100]])
@pytest.mark.parametrize("takes", ["data", "batch"])
def test_server_opens_runs_of_records(sizes, takes):
    handle = (
        (lambda data, _: data) if takes == "data" else lambda batch: [data for data, _ in batch]
    )
    with (
        Server(("127.0.0.1", 0), handle, takes=takes, dtls=psk_server()) as server,
        connect(server.address, psk_client()) as peer,
    ):
        sent = [bytes([number]) * sizes[number % len(sizes)] for number in range(60)]
        peer.send_many(sent)
        received = []
        while len(received) < len(sent):
            received += [data for data, _ in peer.recv_many()]
        assert sorted(received) == sorted(sent)


@pytest.mark.parametrize("kind", ["psk", "certificate"])
def test_a_client_resumes_its_session(kind):
    if kind == "psk":
        context, client, name = psk_server(), psk_client(), None
    else:
        files = certificates()
        context, client, name = server_of(files.ecdsa), trusting(files.ca), "localhost"
    with Server(("127.0.0.1", 0), lambda data, _: data, dtls=context) as server:
        for is_resumed in (False, True):
            with connect(server.address, client, name) as peer:
                assert peer.session.session_reused is is_resumed
                peer.send(b"hello")
                assert peer.recv(100) == b"hello"
        with connect(
            server.address, psk_client() if name is None else trusting(files.ca), name
        ) as peer:
            assert not peer.session.session_reused


def test_sendto_needs_a_session():
    with (
        Server(("127.0.0.1", 0), lambda _data, _address: None, dtls=psk_server()) as server,
        connect(server.address, psk_client()) as peer,
    ):
        server.sendto(b"news", peer.getsockname())
        assert peer.recv(100) == b"news"
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.1", 0))
            with pytest.raises(OSError, match="no DTLS session"):
                server.sendto(b"secret", stranger.getsockname())


@pytest.mark.thread_unsafe(reason="it forks")
def test_workers_have_the_sessions_of_their_peers():
    with (
        Server(
            ("127.0.0.1", 0),
            lambda _data, _address: b"%d" % os.getpid(),
            workers=2,
            dtls=psk_server(),
        ) as server,
        contextlib.ExitStack() as stack,
    ):
        peers = [stack.enter_context(connect(server.address, psk_client())) for _ in range(12)]
        workers = set()
        for peer in peers:
            pids = set()
            for _ in range(5):
                peer.send(b"who?")
                pids.add(peer.recv(100))
            assert len(pids) == 1
            workers |= pids
        assert len(workers) == 2
        with pytest.raises(OSError, match="no DTLS session"):
            server.sendto(b"secret", peers[0].getsockname())


def test_a_peer_that_comes_back_from_its_address_gets_a_new_session():
    with Server(("127.0.0.1", 0), lambda data, _: data, dtls=psk_server()) as server:
        with connect(server.address, psk_client()) as peer:
            peer.send(b"first")
            assert peer.recv(100) == b"first"
            name = peer.getsockname()
            os.close(peer.detach())  # as if the process had crashed
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(name)
            sock.settimeout(30)
            sock.connect(server.address)
            with psk_client().wrap_socket(sock) as peer:
                peer.send(b"second")
                assert peer.recv(100) == b"second"


@pytest.mark.thread_unsafe(reason="it reads the log of the process")
def test_server_logs_a_reply_that_no_record_can_carry(caplog):
    with (
        Server(("127.0.0.1", 0), lambda _data, _address: b"x" * 5000, dtls=psk_server()) as server,
        connect(server.address, psk_client()) as peer,
    ):
        peer.send(b"a lot, please")
        eventually(lambda: "too long for one record" in caplog.text)
        assert server.stats().send_errors == 1


def test_server_checks_the_context():
    handle = lambda data, _: data  # noqa: E731
    with pytest.raises(TypeError, match=r"tomada\.dtls\.Context"):
        Server(("127.0.0.1", 0), handle, dtls=True)
    with pytest.raises(ValueError, match="PROTOCOL_DTLS_SERVER"):
        Server(("127.0.0.1", 0), handle, dtls=psk_client())
    with pytest.raises(ValueError, match="certificate or keys"):
        Server(("127.0.0.1", 0), handle, dtls=dtls.Context(dtls.PROTOCOL_DTLS_SERVER))
    with pytest.raises(ValueError, match="steering"):
        Server(("127.0.0.1", 0), handle, dtls=psk_server(), workers=2, steering="random")
    with pytest.raises(ValueError, match="proxy cannot be combined with dtls"):
        Server(("127.0.0.1", 0), handle, dtls=psk_server(), proxy=["10.0.0.0/8"])


@pytest.mark.thread_unsafe(reason="it forks")
def test_workers_that_share_a_socket_cannot_have_sessions():
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        serving = Server(None, lambda data, _: data, sock=sock, dtls=psk_server(), workers=2)
        with pytest.raises(ValueError, match="dtls needs a socket for each worker"):
            serving.start()
        with (
            Server(None, lambda data, _: data, sock=sock, dtls=psk_server()) as serving,
            connect(serving.address, psk_client()) as peer,
        ):
            peer.send(b"one worker")
            assert peer.recv(100) == b"one worker"


def test_clients_are_told_of_the_end_from_the_address_that_they_have_sent_to():
    everywhere = "0.0.0.0", 0  # noqa: S104 - any address of this machine
    with (
        Server(everywhere, lambda data, _: data.upper(), dtls=psk_server()) as server,
        connect(("127.0.0.2", server.address[1]), psk_client()) as near,
    ):
        near.send(b"hello")
        assert near.recv(100) == b"HELLO"
        server.stop()
        assert near.recv(100) == b""
