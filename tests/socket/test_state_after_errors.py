"""Batches and buffers after a failed call, which must not contain refused datagrams."""

import random
import socket as std
import struct

import pytest

import tomada
from families import length
from guards import FAR, NEAR, guarded
from support import Call, RefusalError, interrupt
from traffic import send_run

EVIL = b"REFUSED!"
SEQUENCES = length(60)


def deny_far():
    return tomada.Guard(deny=[FAR], kernel_filter=False)


def assert_is_empty(batch):
    assert len(batch) == 0
    assert list(batch) == []
    assert (batch.addresses, batch.truncated) == ([], [])
    assert (batch.offsets.tolist(), batch.lengths.tolist()) == ([], [])


INTO = {
    "recv_into": lambda sock, buffer, flags: sock.recv_into(buffer, 0, flags),
    "recvfrom_into": lambda sock, buffer, flags: sock.recvfrom_into(buffer, 0, flags),
    "recvmsg_into": lambda sock, buffer, flags: sock.recvmsg_into([buffer], 0, flags),
    "recvmsg_into two": lambda sock, buffer, flags: sock.recvmsg_into(
        [memoryview(buffer)[:3], memoryview(buffer)[3:]], 0, flags
    ),
}


@pytest.mark.parametrize("name", INTO)
@pytest.mark.parametrize("limit", ["timeout", "MSG_DONTWAIT", "SO_RCVTIMEO", "setblocking"])
@pytest.mark.parametrize("gro", [False, True])
def test_recv_into_leaves_the_buffer_unchanged_if_everything_is_refused(name, limit, gro):
    with guarded(deny_far()) as (sock, send):
        sock.gro = gro
        send(EVIL * 4, FAR)
        buffer = bytearray(b"." * 40)
        sock.settimeout({"timeout": 0.02, "setblocking": 0}.get(limit))
        if limit == "SO_RCVTIMEO":
            sock.setsockopt(std.SOL_SOCKET, std.SO_RCVTIMEO, struct.pack("ll", 0, 20_000))
        flags = std.MSG_DONTWAIT if limit == "MSG_DONTWAIT" else 0
        with pytest.raises(OSError):  # noqa: PT011 - a TimeoutError or a BlockingIOError
            INTO[name](sock, buffer, flags)
        assert buffer == b"." * 40
        assert sock.guard.stats().denied == 1


@pytest.mark.parametrize("name", INTO)
@pytest.mark.parametrize("size", [1, 5, 40])
def test_recv_into_stores_nothing_of_datagrams_refused_before(name, size):
    with guarded(deny_far()) as (sock, send):
        send(EVIL * 4, FAR)
        send(b"good", NEAR)
        buffer = bytearray(b"." * size)
        INTO[name](sock, buffer, 0)
        assert buffer == (b"good" + b"." * 40)[:size]


def test_recv_into_with_msg_trunc_returns_the_full_length_of_the_admitted_datagram():
    with guarded(deny_far()) as (sock, send):
        send(EVIL * 9, FAR)
        send(b"12345678", NEAR)
        buffer = bytearray(3)
        assert sock.recv_into(buffer, 0, std.MSG_TRUNC) == 8
        assert buffer == b"123"


def failing(sock, kind, handler):
    """Make the next receive fail."""
    if kind == "refused":
        return TimeoutError
    if kind == "closed":
        sock.close()
        return OSError
    if kind == "icmp":
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as nobody:
            nobody.bind((NEAR, 0))
            sock.connect(nobody.getsockname())
        sock.send(b"to nobody")
        return ConnectionRefusedError
    handler(lambda: (_ for _ in ()).throw(RefusalError("no", "because")))
    sock.settimeout(None)
    return RefusalError


@pytest.mark.parametrize("kind", ["refused", "closed", "icmp", "signal"])
@pytest.mark.parametrize("size", [256, 65_536])
@pytest.mark.parametrize("gro", [False, True])
def test_batch_is_empty_after_a_failed_receive(kind, size, gro, handler):
    batch = tomada.Batch(8, slot_size=size)
    with guarded(deny_far()) as (sock, send):
        sock.gro = gro
        send(b"trusted", NEAR)
        assert sock.recv_batch(batch) == 1
        send(EVIL * 9, FAR)
        sock.settimeout(0.02)
        error = failing(sock, kind, handler)
        disturbing = Call(interrupt) if kind == "signal" else None
        with pytest.raises(error):
            sock.recv_batch(batch)
        assert disturbing is None or disturbing.result() is None
        assert_is_empty(batch)
        assert EVIL not in bytes(batch)


def test_batch_is_unchanged_after_a_call_with_invalid_arguments():
    batch = tomada.Batch(8)
    with guarded() as (sock, send):
        send(b"trusted", NEAR)
        sock.recv_batch(batch)
        with pytest.raises(ValueError, match="MSG_PEEK"):
            sock.recv_batch(batch, std.MSG_PEEK)
        with pytest.raises(TypeError):
            sock.recv_batch(batch, "flags")
        assert [bytes(data) for data, _ in batch] == [b"trusted"]


def test_batch_of_a_run_contains_nothing_of_its_refused_part():
    with guarded(tomada.Guard(rate=1e-9, burst=2)) as (sock, _):
        sock.gro = True
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as sender:
            send_run(sender, sock.getsockname(), b"one.two." + EVIL, 4)
        batch = tomada.Batch(8)
        assert sock.recv_batch(batch) == 2
        assert [bytes(data) for data, _ in batch] == [b"one.", b"two."]
        assert EVIL[:4] not in bytes(batch)


def test_random_receives_show_nothing_refused():
    for seed in range(SEQUENCES):
        chance = random.Random(seed)  # noqa: S311 - not for secrets
        batch = tomada.Batch(4, slot_size=chance.choice([64, 65_536]))
        buffer = bytearray(b"." * 50)
        with guarded(deny_far()) as (sock, send):
            sock.settimeout(0)
            done = []
            for _ in range(20):
                step = chance.choice(["good", "evil", "gro", "batch", "many", *INTO])
                done.append(step)
                if step == "good":
                    send(b"good" * chance.randint(0, 9), NEAR)
                elif step == "evil":
                    send(EVIL * chance.randint(1, 9), FAR)
                elif step == "gro":
                    sock.gro = chance.random() < 0.5
                else:
                    receive(sock, step, batch, buffer)
                assert EVIL not in bytes(batch), (seed, done)
                assert EVIL not in buffer, (seed, done)


def receive(sock, step, batch, buffer):
    """Make a call and, if it fails, check the state that it leaves."""
    before = bytes(buffer)
    try:
        if step == "batch":
            sock.recv_batch(batch)
        elif step == "many":
            assert all(EVIL not in data for data, _ in sock.recv_many(2))
        else:
            INTO[step](sock, buffer, 0)
    except BlockingIOError:
        assert buffer == before
        if step == "batch":
            assert_is_empty(batch)
    else:
        if step == "batch":
            assert len(batch) > 0
            assert all(address[0] == NEAR for _, address in batch)


def test_datagrams_that_do_not_fit_into_a_batch_are_received_next():
    with guarded() as (sock, _):
        sock.gro = True
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as sender:
            send_run(sender, sock.getsockname(), b"1234567890", 1)
        batch = tomada.Batch(1, slot_size=64)
        assert sock.recv_batch(batch) + sock.pending == 10
        received = [bytes(data) for data, _ in batch]
        while sock.pending:
            sock.recv_batch(batch)
            received += [bytes(data) for data, _ in batch]
        assert b"".join(received) == b"1234567890"
