"""Batch: the container itself, and what can be appended to it."""

import array
import gc
import struct
import sys
import threading

import pytest

import tomada
from support import RefusalError, run
from tomada import socket

HERE = ("127.0.0.1", 9)


def batch_of(*datagrams, **options):
    batch = tomada.Batch(**options)
    for data in datagrams:
        batch.append(data)
    return batch


def contents(batch):
    return [bytes(data) for data, _ in batch]


def test_new_batch_is_empty():
    batch = tomada.Batch()
    assert (len(batch), batch.slots) == (0, 64)
    assert (list(batch), batch.addresses, batch.truncated) == ([], [], [])
    assert (batch.offsets.tolist(), batch.lengths.tolist()) == ([], [])
    with pytest.raises(IndexError):
        batch[0]


@pytest.mark.parametrize("slots", [1, 2, 64, 4096])
def test_batch_has_the_requested_number_of_slots(slots):
    assert tomada.Batch(slots).slots == slots
    assert tomada.Batch(slots=slots, slot_size=1).slots == slots


@pytest.mark.parametrize("slots", [0, -1, 4097, 2**70])
def test_batch_slots_must_be_in_1_to_4096(slots):
    with pytest.raises(ValueError, match="slots"):
        tomada.Batch(slots)


@pytest.mark.parametrize("slot_size", [0, -1, 2**32, 2**70])
def test_batch_slot_size_must_be_valid(slot_size):
    with pytest.raises(ValueError, match="slot_size"):
        tomada.Batch(slot_size=slot_size)


@pytest.mark.parametrize("argument", ["1", 1.5, None, b"1"])
def test_batch_slots_must_be_an_int(argument):
    with pytest.raises(TypeError):
        tomada.Batch(argument)
    with pytest.raises(TypeError):
        tomada.Batch(slot_size=argument)


def test_batch_slot_size_is_keyword_only():
    with pytest.raises(TypeError):
        tomada.Batch(1, 2048)


def test_batch_larger_than_the_address_space_raises_memory_error():
    program = """
import resource
from pathlib import Path
import tomada
# An interpreter without a global lock reserves more than a gigabyte for itself.
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))
tomada.Batch(64)
try:
    tomada.Batch(1, slot_size=1 << 31)
except MemoryError as error:
    print(bool(str(error)))
tomada.Batch(64)
"""
    assert run(program) == "True\n"


def test_batch_allocates_memory_only_as_far_as_it_is_used():
    program = """
import resource
import tomada
def used():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = used()
batches = [tomada.Batch(4096) for _ in range(4)]
assert used() - before < 64, (before, used())
batches[0].append(bytes(65_536))
assert used() - before < 64
"""
    assert run(program) == ""


def test_append_keeps_the_order_of_datagrams():
    batch = tomada.Batch()
    for number, data in enumerate([b"one", b"", b"three", bytes(65_507)]):
        assert batch.append(data, ("127.0.0.1", number)) is None
    assert contents(batch) == [b"one", b"", b"three", bytes(65_507)]
    assert batch.addresses == [("127.0.0.1", number) for number in range(4)]
    assert batch.lengths.tolist() == [3, 0, 5, 65_507]
    assert batch.truncated == []
    assert repr(batch) == "<tomada.Batch of 4 datagrams, 65515 bytes>"


def test_append_accepts_every_bytes_like_object():
    items = [b"a", bytearray(b"bc"), memoryview(b"def")[1:], array.array("H", [1, 2])]
    batch = batch_of(*items)
    assert contents(batch) == [bytes(item) for item in items]
    batch.append(batch[1])
    assert contents(batch)[-1] == b"bc"
    batch.clear()
    batch.extend(array.array("I", range(5)), 8)
    assert contents(batch) == [struct.pack("II", 0, 1), struct.pack("II", 2, 3), b"\4\0\0\0"]


def test_append_copies_the_payload():
    data = bytearray(b"before")
    batch = batch_of(data)
    data[:] = b"after"
    assert contents(batch) == [b"before"]


@pytest.mark.parametrize("data", ["text", None, 5, (b"x", HERE)])
def test_append_rejects_objects_that_are_not_bytes_like(data):
    batch = batch_of(b"x")
    with pytest.raises(TypeError):
        batch.append(data)
    with pytest.raises(TypeError):
        batch.extend(data, 1)
    assert contents(batch) == [b"x"]


@pytest.mark.parametrize(
    "address", [("127.0.0.1",), ("127.0.0.1", "9"), (1, 2), ("127.0.0.1", 65_536), 5, ()]
)
def test_append_rejects_invalid_addresses(address):
    batch = batch_of(b"x")
    with pytest.raises((TypeError, OverflowError)):
        batch.append(b"y", address)
    with pytest.raises((TypeError, OverflowError)):
        batch.extend(b"yyy", 1, address)
    assert contents(batch) == [b"x"]


@pytest.mark.parametrize(
    "address",
    [
        HERE,
        ("::1", 9, 0, 0),
        ("::1", 9, 5, 0),
        ("fe80::1", 9, 0, 1),
        "a/relative path",
        b"\0a name",
        None,
    ],
    ids=repr,
)
def test_appended_address_is_returned_as_by_recvfrom(address):
    batch = tomada.Batch()
    batch.append(b"x", address)
    batch.append(b"y", address=address)
    batch.extend(b"zz", 1, address)
    assert batch.addresses == [address] * 4
    assert [to for _, to in batch] == [address] * 4


def test_appended_short_ipv6_address_is_returned_in_full():
    batch = tomada.Batch()
    batch.append(b"x", ("::1", 9))
    batch.append(b"x", ("fe80::1%lo", 9))
    scope = socket.if_nametoindex("lo")
    assert batch.addresses == [("::1", 9, 0, 0), ("fe80::1", 9, 0, scope)]


@pytest.mark.parametrize(
    ("length", "size", "sizes"),
    [(10, 5, [5, 5]), (10, 4, [4, 4, 2]), (3, 100, [3]), (3, 1, [1, 1, 1]), (0, 7, [])],
)
def test_extend_splits_a_buffer_into_datagrams_of_one_size(length, size, sizes):
    data = bytes(range(length))
    batch = batch_of(b"before")
    assert batch.extend(data, size) is None
    assert [len(item) for item in contents(batch)[1:]] == sizes
    assert b"".join(contents(batch)[1:]) == data


def test_extend_rejects_a_size_of_zero():
    batch = tomada.Batch()
    with pytest.raises(ValueError, match="size"):
        batch.extend(b"abc", 0)
    with pytest.raises((ValueError, OverflowError)):
        batch.extend(b"abc", -1)
    assert len(batch) == 0


def test_append_to_a_full_batch_appends_nothing():
    batch = tomada.Batch(1, slot_size=1000)
    room = len(memoryview(batch))
    batch.append(bytes(room - 10))
    with pytest.raises(ValueError, match="no room"):
        batch.append(bytes(11))
    with pytest.raises(ValueError, match="no room"):
        batch.extend(bytes(11), 4)
    assert len(batch) == 1
    batch.append(bytes(10))
    batch.append(b"")
    with pytest.raises(ValueError, match="no room"):
        batch.append(b"x")
    assert [len(item) for item in contents(batch)] == [room - 10, 10, 0]


def test_number_of_datagrams_in_a_batch_is_limited():
    batch = tomada.Batch(1)
    with pytest.raises(ValueError, match="no room"):  # noqa: PT012 - the loop finds the limit
        while len(batch) < 10_000:
            batch.append(b"x")
    count = len(batch)
    # At least as many as the kernel can coalesce into one message, which fills one slot.
    assert count >= 64
    assert contents(batch) == [b"x"] * count
    with pytest.raises(ValueError, match="no room"):
        batch.append(b"")
    batch.clear()
    with pytest.raises(ValueError, match="no room"):
        batch.extend(bytes(count + 1), 1)
    assert len(batch) == 0
    batch.extend(bytes(count), 1)
    assert len(batch) == count


def test_cleared_batch_can_be_filled_again():
    batch = batch_of(b"one", b"two")
    for _ in range(3):
        assert batch.clear() is None
        assert (len(batch), list(batch), batch.addresses) == (0, [], [])
        batch.append(b"three", HERE)
        assert (contents(batch), batch.addresses) == ([b"three"], [HERE])


def test_batch_cannot_be_subclassed():
    with pytest.raises(TypeError):
        type("Mine", (tomada.Batch,), {})


def test_exception_of_a_buffer_leaves_the_batch_unchanged():
    class Refusing:
        def __len__(self):
            raise RefusalError("no", "because")

    batch = batch_of(b"x")
    with pytest.raises(TypeError):
        batch.append(Refusing())
    assert contents(batch) == [b"x"]


def test_threads_may_append_to_a_batch_at_once():
    batch = tomada.Batch()
    begin = threading.Barrier(4)

    def append(letter):
        begin.wait()
        for _ in range(200):
            while True:
                try:
                    batch.append(letter * 10)
                except RuntimeError:
                    continue
                break

    threads = [threading.Thread(target=append, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    begin.wait()
    for thread in threads:
        thread.join()
    assert sorted(contents(batch)) == sorted([letter * 10 for letter in (b"a", b"b", b"c")] * 200)


def test_reading_a_batch_leaks_nothing():
    batch = batch_of(*[bytes(1000)] * 50)  # indexes larger than Python's cached ints
    counts = []
    for _ in range(3):
        for _ in range(20):
            assert len(list(batch)) == 50
            assert len(batch[-1]) == 1000
        gc.collect()
        counts.append(sys.getallocatedblocks())
    assert counts[2] - counts[1] < 100
