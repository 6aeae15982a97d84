"""Batch: the container itself, and what may be put into it."""

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


def test_a_new_batch_is_empty():
    batch = tomada.Batch()
    assert (len(batch), batch.slots) == (0, 64)
    assert (list(batch), batch.addresses, batch.truncated) == ([], [], [])
    assert (batch.offsets.tolist(), batch.lengths.tolist()) == ([], [])
    with pytest.raises(IndexError):
        batch[0]


@pytest.mark.parametrize("slots", [1, 2, 64, 4096])
def test_a_batch_has_the_slots_that_were_asked_for(slots):
    assert tomada.Batch(slots).slots == slots
    assert tomada.Batch(slots=slots, slot_size=1).slots == slots


@pytest.mark.parametrize("slots", [0, -1, 4097, 2**70])
def test_slots_are_in_1_to_4096(slots):
    with pytest.raises(ValueError, match="slots"):
        tomada.Batch(slots)


@pytest.mark.parametrize("slot_size", [0, -1, 2**32, 2**70])
def test_slots_have_a_size(slot_size):
    with pytest.raises(ValueError, match="slot_size"):
        tomada.Batch(slot_size=slot_size)


@pytest.mark.parametrize("argument", ["1", 1.5, None, b"1"])
def test_slots_are_counted_in_ints(argument):
    with pytest.raises(TypeError):
        tomada.Batch(argument)
    with pytest.raises(TypeError):
        tomada.Batch(slot_size=argument)


def test_the_size_of_slots_is_given_by_name():
    with pytest.raises(TypeError):
        tomada.Batch(1, 2048)


def test_a_batch_beyond_the_address_space_is_a_memory_error():
    program = """
import resource
from pathlib import Path
import tomada
# An interpreter without a global lock has reserved more than a gigabyte for itself.
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


def test_a_batch_takes_memory_only_as_far_as_it_is_used():
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


def test_appended_datagrams_are_there_in_order():
    batch = tomada.Batch()
    for number, data in enumerate([b"one", b"", b"three", bytes(65_507)]):
        assert batch.append(data, ("127.0.0.1", number)) is None
    assert contents(batch) == [b"one", b"", b"three", bytes(65_507)]
    assert batch.addresses == [("127.0.0.1", number) for number in range(4)]
    assert batch.lengths.tolist() == [3, 0, 5, 65_507]
    assert batch.truncated == []
    assert repr(batch) == "<tomada.Batch of 4 datagrams, 65515 bytes>"


def test_every_bytes_like_object_can_be_appended():
    items = [b"a", bytearray(b"bc"), memoryview(b"def")[1:], array.array("H", [1, 2])]
    batch = batch_of(*items)
    assert contents(batch) == [bytes(item) for item in items]
    batch.append(batch[1])
    assert contents(batch)[-1] == b"bc"
    batch.clear()
    batch.extend(array.array("I", range(5)), 8)
    assert contents(batch) == [struct.pack("II", 0, 1), struct.pack("II", 2, 3), b"\4\0\0\0"]


def test_what_was_appended_is_a_copy():
    data = bytearray(b"before")
    batch = batch_of(data)
    data[:] = b"after"
    assert contents(batch) == [b"before"]


@pytest.mark.parametrize("data", ["text", None, 5, (b"x", HERE)])
def test_what_is_no_datagram_is_not_appended(data):
    batch = batch_of(b"x")
    with pytest.raises(TypeError):
        batch.append(data)
    with pytest.raises(TypeError):
        batch.extend(data, 1)
    assert contents(batch) == [b"x"]


@pytest.mark.parametrize(
    "address", [("127.0.0.1",), ("127.0.0.1", "9"), (1, 2), ("127.0.0.1", 65_536), 5, ()]
)
def test_what_is_no_address_is_not_appended(address):
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
def test_an_address_comes_back_as_recvfrom_would_tell_it(address):
    batch = tomada.Batch()
    batch.append(b"x", address)
    batch.append(b"y", address=address)
    batch.extend(b"zz", 1, address)
    assert batch.addresses == [address] * 4
    assert [to for _, to in batch] == [address] * 4


def test_a_short_address_of_ipv6_comes_back_in_full():
    batch = tomada.Batch()
    batch.append(b"x", ("::1", 9))
    batch.append(b"x", ("fe80::1%lo", 9))
    scope = socket.if_nametoindex("lo")
    assert batch.addresses == [("::1", 9, 0, 0), ("fe80::1", 9, 0, scope)]


@pytest.mark.parametrize(
    ("length", "size", "sizes"),
    [(10, 5, [5, 5]), (10, 4, [4, 4, 2]), (3, 100, [3]), (3, 1, [1, 1, 1]), (0, 7, [])],
)
def test_a_buffer_is_cut_into_datagrams_of_one_size(length, size, sizes):
    data = bytes(range(length))
    batch = batch_of(b"before")
    assert batch.extend(data, size) is None
    assert [len(item) for item in contents(batch)[1:]] == sizes
    assert b"".join(contents(batch)[1:]) == data


def test_datagrams_of_no_size_cannot_be_cut():
    batch = tomada.Batch()
    with pytest.raises(ValueError, match="size"):
        batch.extend(b"abc", 0)
    with pytest.raises((ValueError, OverflowError)):
        batch.extend(b"abc", -1)
    assert len(batch) == 0


def test_where_there_is_no_room_nothing_is_appended():
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


def test_there_is_an_end_to_the_number_of_datagrams_too():
    batch = tomada.Batch(1)
    with pytest.raises(ValueError, match="no room"):  # noqa: PT012 - the end is what is looked for
        while len(batch) < 10_000:
            batch.append(b"x")
    count = len(batch)
    # At least what the kernel glues into the one message that a slot is for.
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


def test_a_cleared_batch_can_be_filled_again():
    batch = batch_of(b"one", b"two")
    for _ in range(3):
        assert batch.clear() is None
        assert (len(batch), list(batch), batch.addresses) == (0, [], [])
        batch.append(b"three", HERE)
        assert (contents(batch), batch.addresses) == ([b"three"], [HERE])


def test_a_batch_cannot_be_subclassed():
    with pytest.raises(TypeError):
        type("Mine", (tomada.Batch,), {})


def test_an_exception_of_a_buffer_leaves_the_batch_as_it_is():
    class Refusing:
        def __len__(self):
            raise RefusalError("no", "because")

    batch = batch_of(b"x")
    with pytest.raises(TypeError):
        batch.append(Refusing())
    assert contents(batch) == [b"x"]


def test_threads_may_append_at_once():
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


def test_looking_at_datagrams_leaves_nothing_behind():
    batch = batch_of(*[bytes(1000)] * 50)  # places beyond the numbers that Python keeps
    counts = []
    for _ in range(3):
        for _ in range(20):
            assert len(list(batch)) == 50
            assert len(batch[-1]) == 1000
        gc.collect()
        counts.append(sys.getallocatedblocks())
    assert counts[2] - counts[1] < 100
