"""Batch as arrays: senders, timestamps, and rows of records."""

import socket as std
import sys
import time

import pytest

import tomada
from support import DEADLINE
from tomada import socket
from traffic import numbered, send_run

IPV4 = ("127.0.0.1", 9)
IPV6 = ("fe80::1", 65535, 0, 3)
MAPPED = ("::ffff:192.0.2.1", 53, 0, 0)


@pytest.fixture(scope="module")
def numpy():
    return pytest.importorskip("numpy")


@pytest.fixture
def record(numpy):
    return numpy.dtype([("sensor", ">u2"), ("value", ">f4")])


def batch_of(*datagrams, address=None):
    batch = tomada.Batch()
    for data in datagrams:
        batch.append(data, address)
    return batch


def by_hand(address):
    """Return an address as its record has it."""
    if address is None:
        return 0, 0, 0, bytes(16)
    family = std.AF_INET if len(address) == 2 else std.AF_INET6
    packed = std.inet_pton(family, address[0]).ljust(16, b"\0")
    return family, address[1], address[3] if len(address) > 2 else 0, packed


def from_array(records):
    return [(row["family"], row["port"], row["scope"], row["address"].tobytes()) for row in records]


@pytest.fixture(params=["slots", "copies"])
def stamped(request, inet):
    """Provide a socket that asks for timestamps, a batch for it, and a plain sender.

    A socket that coalesces copies datagrams into a batch of short slots.
    """
    is_copying = request.param == "copies"
    with inet.bound(socket) as sock, inet.bound(std) as sender:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_TIMESTAMPNS, 1)
        sock.settimeout(DEADLINE)
        sock.gro = is_copying
        yield sock, tomada.Batch(16, slot_size=128 if is_copying else 65536), sender


def test_timestamps_are_the_kernels(stamped):
    sock, batch, sender = stamped
    before = time.time_ns()
    for data in numbered(3):
        sender.sendto(data, sock.getsockname())
    assert sock.recv_batch(batch) == 3
    # A datagram that was queued before the option took effect gets its stamp only now.
    after = time.time_ns()
    times = batch.timestamps
    assert (times.format, times.itemsize, times.shape, times.readonly) == ("q", 8, (3,), True)
    assert all(before <= stamp <= after for stamp in times)


def test_timestamps_of_a_run_are_those_of_its_message(stamped):
    sock, batch, sender = stamped
    before = time.time_ns()
    send_run(sender, sock.getsockname(), b"".join(numbered(5)), len(numbered(1)[0]))
    sender.sendto(b"later", sock.getsockname())
    assert sock.recv_batch(batch) == 6
    assert all(before <= stamp <= time.time_ns() for stamp in batch.timestamps)
    if sock.gro:
        assert len(set(batch.timestamps[:5])) == 1


def test_timestamps_are_zero_without_the_option(inet):
    batch = batch_of(b"own")
    assert batch.timestamps.tolist() == [0]
    with inet.bound(socket) as sock, inet.bound(std) as sender:
        sender.sendto(b"x", sock.getsockname())
        sock.settimeout(DEADLINE)
        sock.recv_batch(batch)
    assert batch.timestamps.tolist() == [0]
    batch.clear()
    assert batch.timestamps.tolist() == []


def test_timestamps_of_earlier_datagrams_do_not_reappear(stamped):
    sock, batch, sender = stamped
    sender.sendto(b"x", sock.getsockname())
    sock.recv_batch(batch)
    kept = batch.timestamps
    first = kept[0]
    batch.clear()
    batch.append(b"own")
    assert batch.timestamps.tolist() == [0]
    sender.sendto(b"y", sock.getsockname())
    sock.recv_batch(batch)
    assert first <= batch.timestamps[0]
    assert kept.tolist() == [first]  # a copy


@pytest.mark.parametrize("kind", ["inet", "inet6"])
def test_addresses_array_has_the_senders(numpy, request, kind):
    kind = request.getfixturevalue(kind)
    batch = tomada.Batch()
    with kind.bound(socket) as sock, kind.bound(std) as one, kind.bound(std) as other:
        sock.settimeout(DEADLINE)
        for sender in (one, one, other, one):
            sender.sendto(b"x", sock.getsockname())
        assert sock.recv_batch(batch) == 4
        kept = batch.addresses_array
        sender.sendto(b"x", sock.getsockname())
        expected = [by_hand(address) for address in batch.addresses]
        assert sock.recv_batch(batch) == 1
    assert kept.shape == (4,)
    assert kept.dtype.itemsize == 24
    assert from_array(kept) == expected
    assert len(numpy.unique(kept)) == 2
    assert (kept == kept[0]).tolist() == [True, True, False, True]


@pytest.mark.usefixtures("numpy")
def test_addresses_array_has_every_kind_of_ip_address():
    batch = tomada.Batch()
    addresses = [IPV4, None, IPV6, MAPPED, MAPPED, IPV4]
    for address in addresses:
        batch.append(b"x", address)
    records = batch.addresses_array
    assert from_array(records) == [by_hand(address) for address in addresses]
    assert std.inet_ntop(records["family"][2], records["address"][2].tobytes()) == "fe80::1"
    records["port"] = 7  # the array is a copy
    assert batch.addresses == addresses


@pytest.mark.usefixtures("numpy")
def test_addresses_array_of_an_empty_batch_is_empty():
    assert tomada.Batch().addresses_array.shape == (0,)


@pytest.mark.usefixtures("numpy")
def test_addresses_array_refuses_af_unix():
    with pytest.raises(ValueError, match="IP addresses only"):
        _ = batch_of(b"x", address="/run/name").addresses_array


def test_rows_have_the_fields_of_each_datagram(record, numpy, inet):
    sent = numpy.array([(number, number / 2) for number in range(20)], record)
    batch = tomada.Batch(32)
    with inet.bound(socket) as sock, inet.bound(std) as sender:
        sock.settimeout(DEADLINE)
        for row in sent:
            sender.sendto(row.tobytes(), sock.getsockname())
        assert sock.recv_batch(batch) == 20
        rows = batch.rows(record)
        sender.sendto(bytes(record.itemsize), sock.getsockname())
        assert sock.recv_batch(batch) == 1
    assert rows.dtype == record
    assert rows.tolist() == sent.tolist()  # the next receive did not change them
    assert rows.flags.c_contiguous
    rows["sensor"] += 1  # they may be changed
    assert batch.rows(record).tolist() == [(0, 0)]


def test_rows_of_a_run(record, numpy, inet):
    sent = numpy.array([(number, number / 2) for number in range(20)], record)
    batch = tomada.Batch()
    with inet.bound(socket) as sock, inet.bound(std) as sender:
        sock.settimeout(DEADLINE)
        sock.gro = True
        send_run(sender, sock.getsockname(), sent.tobytes(), record.itemsize)
        assert sock.recv_batch(batch) == 20
    assert batch.rows(record).tolist() == sent.tolist()


@pytest.mark.usefixtures("numpy")
def test_rows_of_anything_that_numpy_takes_as_a_dtype():
    batch = batch_of(b"\1\0\2\0", b"\3\0\4\0")
    assert batch.rows("<u4").tolist() == [0x20001, 0x40003]
    assert batch.rows("(2,)<u2").tolist() == [[1, 2], [3, 4]]
    assert batch.rows([("first", "u1"), ("rest", "V3")])["first"].tolist() == [1, 3]
    assert tomada.Batch().rows("<u4").shape == (0,)


@pytest.mark.usefixtures("numpy")
def test_rows_refuse_or_skip_datagrams_of_another_length():
    batch = batch_of(b"four", b"five5", b"", b"more")
    with pytest.raises(ValueError, match=r"datagram 1 has 5 bytes, but a row .* has 4; .*'skip'"):
        batch.rows("S4")
    assert batch.rows("S4", errors="skip").tolist() == [b"four", b"more"]
    assert batch.rows("u8", errors="skip").tolist() == []
    with pytest.raises(ValueError, match="errors must be 'raise' or 'skip'"):
        batch.rows("S4", errors="ignore")


@pytest.mark.parametrize("dtype", [object, [("a", "O")], "V0", "no dtype", 3])
@pytest.mark.usefixtures("numpy")
def test_rows_refuse_dtypes_without_a_size(dtype):
    with pytest.raises((TypeError, ValueError)):
        batch_of(bytes(8)).rows(dtype)


@pytest.mark.parametrize(
    "use", [lambda batch: batch.addresses_array, lambda batch: batch.rows("u1")]
)
@pytest.mark.thread_unsafe(reason="it hides a module")
def test_arrays_without_numpy_say_what_to_install(use, monkeypatch):
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(ModuleNotFoundError, match="pip install numpy"):
        use(batch_of(b"x"))
    assert batch_of(b"x").timestamps.tolist() == [0]
