"""A session over a connected socket."""

import asyncio
import contextlib
import errno
import os
import select
import socket as std

import pytest

import tomada.asyncio
import tomada.testing
from certificates import certificates
from dtls_pairs import (
    KEYS,
    beginning,
    connected,
    psk_client,
    psk_server,
    server_of,
    session,
    trusting,
)
from skips import NO_GRO
from support import FORKS, Call, eventually, open_descriptors
from tomada import Server, dtls, socket


def test_wrap_socket_encrypts_both_directions():
    with session(psk_client(), psk_server()) as (near, far):
        for sender, receiver in ((near, far), (far, near)):
            assert sender.send(b"plaintext") == 9
            assert receiver.recv(100) == b"plaintext"
        assert near.version() == far.version() == "DTLSv1.2"
        assert near.cipher() == far.cipher()
        assert far.session.psk_identity == "tester"


def test_wrap_socket_puts_no_plaintext_on_the_wire():
    with beginning() as (near, tap):
        hello = tap.recv(2000)
        assert hello[0] == 22
        with pytest.raises(OSError, match="no DTLS session") as caught:
            near.send(b"plaintext")
        assert caught.value.errno == errno.ENOTCONN


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_wrap_socket_verifies_a_certificate(kind):
    files = certificates()
    server = server_of(getattr(files, kind))
    for name in ("localhost", "127.0.0.1"):
        with session(trusting(files.ca), server, name) as (near, far):
            near.send(b"hello")
            assert far.recv(100) == b"hello"
            about = near.getpeercert()
            assert ("DNS", "localhost") in about["subjectAltName"]
            assert about["subject"] == ((("commonName", kind),),)
            assert far.getpeercert() is None


def test_wrap_socket_with_a_client_certificate():
    files = certificates()
    server = server_of(files.ecdsa)
    server.load_verify_locations(files.ca)
    server.verify_mode = dtls.CERT_REQUIRED
    client = trusting(files.ca)
    client.load_cert_chain(*files.client)
    with session(client, server, "localhost") as (near, far):
        near.send(b"hello")
        assert far.recv(100) == b"hello"
        assert far.getpeercert()["subjectAltName"] == (("DNS", "client.example"),)
        assert far.getpeercert(True)[:1] == b"\x30"


def refused(client, server, name="localhost"):
    """Return the exceptions that a handshake ends with, the client's and the server's."""
    with connected() as (one, other):
        accepting = Call(server.wrap_socket, other, True)
        with pytest.raises(dtls.DTLSError) as near:
            client.wrap_socket(one, server_hostname=name)
        with pytest.raises(dtls.DTLSError) as far:
            accepting.result()
    return near.value, far.value


def test_wrap_socket_refuses_an_unknown_issuer_and_another_name():
    files = certificates()
    for pair, client, reason in (
        (files.ecdsa, dtls.create_default_context(cafile=files.self_signed[0]), "local issuer"),
        (files.self_signed, trusting(files.ca), "self-signed"),
        (files.elsewhere, trusting(files.ca), "ostname mismatch"),
    ):
        near, far = refused(client, server_of(pair))
        assert isinstance(near, dtls.DTLSCertVerificationError)
        assert reason in near.verify_message
        assert near.verify_code > 0
        assert "(peer 127.0.0.1:" in str(near)
        assert far.errno == errno.EPROTO


def test_wrap_socket_without_a_common_cipher_says_so():
    files = certificates()
    client, server = trusting(files.ca), server_of(files.ecdsa)
    client.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")
    near, far = refused(client, server)
    assert far.reason == "no shared cipher"
    assert "handshake failure" in str(near)


def test_wrap_socket_requires_a_client_certificate():
    files = certificates()
    server = server_of(files.ecdsa)
    server.load_verify_locations(files.ca)
    server.verify_mode = dtls.CERT_REQUIRED
    near, far = refused(trusting(files.ca), server)
    assert "did not return a certificate" in str(far)
    assert near.errno == errno.EPROTO


def test_wrap_socket_with_alpn():
    client, server = psk_client(), psk_server()
    client.set_alpn_protocols(["coap", "other"])
    server.set_alpn_protocols(["h3", "other", "coap"])
    with session(client, server) as (near, far):
        assert near.selected_alpn_protocol() == far.selected_alpn_protocol() == "other"


def test_wrap_socket_times_out_with_a_wrong_key():
    client = psk_client(key=b"wrong")
    client.handshake_timeout = 0.5
    with connected() as (one, other):
        server = psk_server()
        server.handshake_timeout = 0.5
        accepting = Call(server.wrap_socket, other, True)
        with pytest.raises(dtls.DTLSTimeoutError, match="uses a different pre-shared key"):
            client.wrap_socket(one)
        with pytest.raises(dtls.DTLSTimeoutError):
            accepting.result()


def test_wrap_socket_follows_the_timeout_of_the_socket():
    with connected() as (one, _):
        one.settimeout(0.1)
        with pytest.raises(TimeoutError, match=r"handshake with 127\.0\.0\.1:\d+ was not complete"):
            psk_client().wrap_socket(one)


def test_wrap_socket_retransmits_to_a_peer_that_comes_late():
    with connected() as (one, other):
        calling = Call(psk_client().wrap_socket, one)
        eventually(lambda: select.select([other], [], [], 0)[0])
        other.recv(2000)  # the first message is lost
        with psk_server().wrap_socket(other, True) as far, calling.result() as near:
            near.send(b"after all")
            assert far.recv(100) == b"after all"


def test_wrap_socket_reports_that_nobody_is_there():
    with (
        std.socket(std.AF_INET, std.SOCK_DGRAM) as other,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        other.bind(("127.0.0.1", 0))
        sock.connect(other.getsockname())
        other.close()
        with pytest.raises(ConnectionRefusedError):
            psk_client().wrap_socket(sock)


def test_wrap_socket_without_waiting():
    with connected() as (one, other):
        one.setblocking(False)
        other.setblocking(False)
        near = psk_client().wrap_socket(one, do_handshake_on_connect=False)
        far = psk_server().wrap_socket(other, True, do_handshake_on_connect=False)
        with near, far:
            waiting = {near, far}

            def step():
                for sock in tuple(waiting):
                    sock.handshake_timeout()
                    try:
                        sock.do_handshake()
                    except dtls.DTLSWantReadError:
                        continue
                    waiting.discard(sock)
                return not waiting

            eventually(step)
            with pytest.raises(BlockingIOError):
                near.recv(100)
            far.send(b"at once")
            eventually(lambda: select.select([near], [], [], 0)[0])
            assert near.recv(100) == b"at once"


@pytest.mark.parametrize("ends", [dtls.DTLSSocket.close, dtls.DTLSSocket.unwrap])
def test_recv_returns_nothing_after_the_peer_has_ended_the_session(ends):
    with session(psk_client(), psk_server()) as (near, far):
        near.send(b"last words")
        rest = ends(near)
        assert far.recv(100) == b"last words"
        assert far.recv(100) == b""
        assert far.recv(100) == b""
        with pytest.raises(dtls.DTLSZeroReturnError):
            far.send(b"too late")
        if rest is not None:
            with rest:
                assert type(rest) is socket.socket
                assert rest.fileno() >= 0


def test_send_many_and_recv_many():
    with session(psk_client(), psk_server()) as (near, far):
        texts = [b"%d" % number * 50 for number in range(100)]
        near.send_many(texts)
        received = []
        while len(received) < len(texts):
            received += [data for data, _ in far.recv_many()]
        assert received == texts


def test_send_refuses_what_no_record_can_carry():
    with session(psk_client(), psk_server()) as (near, far):
        limit = near.session.max_datagram_size
        near.send(b"x" * limit)
        assert far.recv(2000) == b"x" * limit
        with pytest.raises(OSError, match=f"which carries {limit}") as caught:
            near.send(b"x" * (limit + 1))
        assert caught.value.errno == errno.EMSGSIZE
        with pytest.raises(OSError, match="empty") as caught:
            near.send(b"")
        assert caught.value.errno == errno.EINVAL


def test_mtu_sets_the_size_of_records():
    client, server = psk_client(), psk_server()
    client.mtu = server.mtu = 9000
    with session(client, server) as (near, far):
        near.send(b"x" * 8900)
        assert far.recv(9000) == b"x" * 8900


def test_a_small_mtu_splits_the_handshake():
    files = certificates()
    client, server = trusting(files.ca), server_of(files.rsa)
    client.mtu = server.mtu = 300
    with session(client, server, "localhost") as (near, far):
        near.send(b"hello")
        assert far.recv(100) == b"hello"


def connected_to(address):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(30)
    sock.connect(address)
    return sock


# At some of these values, little room is left in a datagram after one of the handshake's messages.
@pytest.mark.parametrize("mtu", [280, 300, 354, 360, 530, 690, 708, 1028, 1400])
def test_no_datagram_of_a_handshake_exceeds_the_mtu(mtu):
    files = certificates()
    client, server = trusting(files.ca), server_of(files.ecdsa)
    client.load_cert_chain(*files.ecdsa)
    server.verify_mode = dtls.CERT_REQUIRED
    server.load_verify_locations(files.ca)
    client.mtu = server.mtu = mtu
    headers = 28  # of IPv4 and UDP
    with (
        Server(("127.0.0.1", 0), lambda data, _: data, dtls=server) as serving,
        tomada.testing.impaired(serving.address, mtu=mtu + headers) as link,
        connected_to(link.address) as sock,
        client.wrap_socket(sock, server_hostname="localhost") as near,
    ):
        most = b"x" * near.session.max_datagram_size
        near.send(most)
        assert near.recv(2000) == most
        assert (link.stats.to_server.too_long, link.stats.to_client.too_long) == (0, 0)


@pytest.mark.thread_unsafe(reason="it forks")
@pytest.mark.filterwarnings(FORKS)
def test_a_child_of_a_fork_has_no_session():
    with session(psk_client(), psk_server()) as (near, far):
        pid = os.fork()
        if pid == 0:
            try:
                near.send(b"from the child")
            except OSError as error:
                os._exit(0 if error.errno == errno.ENOTCONN else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        near.send(b"from the parent")
        assert far.recv(100) == b"from the parent"


def test_export_keying_material_is_the_same_on_both_sides():
    with session(psk_client(), psk_server()) as (near, far):
        one, other = (
            sock.session.export_keying_material("EXPORTER-tomada", 60) for sock in (near, far)
        )
        assert one == other
        assert len(one) == 60
        assert one != near.session.export_keying_material("EXPORTER-tomada", 60, b"context")


def test_wrap_socket_refuses_what_it_cannot_wrap():
    context = psk_client()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        with pytest.raises(ValueError, match=r"call connect\(\) first"):
            context.wrap_socket(sock)
        sock.connect(("127.0.0.1", 9))
        with pytest.raises(ValueError, match="PROTOCOL_DTLS_SERVER"):
            context.wrap_socket(sock, True)
        with pytest.raises(ValueError, match="check_hostname requires server_hostname"):
            dtls.create_default_context().wrap_socket(sock)
    with std.socket() as stream, pytest.raises(ValueError, match="datagram socket"):
        context.wrap_socket(stream)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", 9))
        with pytest.raises(ValueError, match="certificate or keys"):
            dtls.Context(dtls.PROTOCOL_DTLS_SERVER).wrap_socket(sock, True)


@pytest.mark.thread_unsafe(reason="it counts descriptors")
def test_wrap_socket_leaves_no_descriptor_behind():
    before, rounds = open_descriptors(), 5
    for _ in range(rounds):
        with session(psk_client(), psk_server()) as (near, far):
            near.send(b"x")
            far.recv(10)
        with connected() as (one, _):
            one.settimeout(0.01)
            with pytest.raises(TimeoutError):
                psk_client().wrap_socket(one)
    assert open_descriptors() < before + rounds


def test_send_many_sends_equal_records_as_one_coalesced_send():
    udp_gro = 104  # linux/udp.h
    with (
        session(psk_client(), psk_server()) as (near, far),
        std.socket(fileno=os.dup(far.fileno())) as raw,
    ):
        try:
            raw.setsockopt(std.IPPROTO_UDP, udp_gro, 1)
        except OSError:
            pytest.skip(NO_GRO)
        near.send_many([bytes(100)] * 10)
        record = 100 + 13 + 8 + 16  # header, nonce and tag of AES-GCM, or less
        assert 10 * 100 < len(raw.recv(1 << 16)) <= 10 * record


def test_a_wrapped_socket_does_not_give_its_descriptor_to_plain_ones():
    with session(psk_client(), psk_server()) as (near, _):
        with pytest.raises(NotImplementedError, match="dup"):
            near.dup()
        with pytest.raises(TypeError, match="wrap_socket"):
            dtls.DTLSSocket(fileno=near.fileno())
        with pytest.raises(TypeError, match="session"):
            Server(None, lambda data, _: data, sock=near)

        async def take_over():
            loop = asyncio.get_running_loop()
            await loop.create_datagram_endpoint(asyncio.DatagramProtocol, sock=near)

        with pytest.raises(TypeError, match="session"):
            tomada.asyncio.run(take_over())
        near.send(b"still encrypted")


def test_a_callback_cannot_close_the_socket_of_its_handshake():
    errors = []

    def give_up(_hint):
        for method in (near.close, near.detach):
            try:
                method()
            except OSError as error:
                errors.append(error.errno)
        return "tester", KEYS["tester"]

    context = dtls.Context(dtls.PROTOCOL_DTLS_CLIENT)
    context.set_psk_client_callback(give_up)
    with connected() as (one, other):
        accepting = Call(psk_server().wrap_socket, other, True)
        near = context.wrap_socket(one, do_handshake_on_connect=False)
        near.do_handshake()
        accepting.result().close()
        assert errors == [errno.EDEADLK] * 2
        near.close()
        assert near.fileno() == -1


def test_a_datagram_that_is_released_into_a_smaller_slot_is_the_only_one():
    with (
        connected() as (one, other),
        std.socket(fileno=os.dup(one.fileno())) as to_near,
        std.socket(fileno=os.dup(other.fileno())) as from_far,
    ):
        one.setblocking(False)
        other.setblocking(False)
        near = psk_client().wrap_socket(one, do_handshake_on_connect=False)
        far = psk_server().wrap_socket(other, True, do_handshake_on_connect=False)
        with near, far:
            while far.session is None:
                for sock in (near, far):
                    with contextlib.suppress(dtls.DTLSWantReadError):
                        sock.do_handshake()
            far.send(bytes(1000))
            sent = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    sent.append(to_near.recv(2000))
            # The data overtakes the end of the handshake.
            from_far.send(sent.pop())
            with pytest.raises(dtls.DTLSWantReadError):
                near.do_handshake()
            for data in sent:
                from_far.send(data)
            batch = tomada.Batch(8, slot_size=512)
            assert near.recv_batch(batch) == 1
            assert bytes(batch[0]) == bytes(512)
            with pytest.raises(BlockingIOError):
                near.recv_batch(batch)
