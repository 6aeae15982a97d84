"""Batch: its payloads, memory and columns as Python buffers."""

import array
import gc
import struct

import pytest

import tomada


def batch_of(*datagrams):
    batch = tomada.Batch()
    for data in datagrams:
        batch.append(data)
    return batch


def contents(batch):
    return [bytes(data) for data, _ in batch]


def test_payload_by_index():
    batch = batch_of(b"a", b"bb", b"ccc")
    assert [bytes(batch[index]) for index in range(3)] == [b"a", b"bb", b"ccc"]
    assert [bytes(batch[index]) for index in range(-3, 0)] == [b"a", b"bb", b"ccc"]
    for index in (3, -4, 2**31, -(2**31)):
        with pytest.raises(IndexError):
            batch[index]
    for index in (2**70, "0", None, 1.0):
        with pytest.raises((IndexError, TypeError, OverflowError)):
            batch[index]


def test_payload_is_a_view_of_the_memory():
    batch = batch_of(b"abc", b"def")
    view = batch[1]
    assert isinstance(view, memoryview)
    assert (view.readonly, view.format, view.nbytes) == (False, "B", 3)
    view[0:2] = b"xy"
    assert contents(batch) == [b"abc", b"xyf"]
    start = batch.offsets[1]
    assert memoryview(batch)[start : start + 3] == b"xyf"


def test_index_after_the_last_datagram_shows_nothing_of_an_earlier_one():
    batch = batch_of(b"secret")
    batch.clear()
    with pytest.raises(IndexError):
        batch[0]
    assert list(batch) == []
    assert batch.lengths.tolist() == []


def test_iterating_a_batch_uses_the_datagrams_at_its_start():
    batch = batch_of(b"a", b"b")
    pairs = iter(batch)
    assert next(pairs) == (b"a", None)
    batch.append(b"c")
    assert [data for data, _ in pairs] == [b"b"]


def test_columns_are_read_only_unsigned_ints():
    batch = batch_of(b"a", b"bb")
    for column in (batch.offsets, batch.lengths):
        assert isinstance(column, memoryview)
        assert (column.format, column.itemsize, column.shape) == ("I", 4, (2,))
        assert column.readonly
        with pytest.raises(TypeError):
            column[0] = 5
        assert struct.unpack("2I", column.tobytes()) == tuple(column)
        assert array.array("I", column).tolist() == column.tolist()
        assert column[::-1].tolist() == column.tolist()[::-1]


def test_views_show_the_current_contents_of_the_batch():
    batch = batch_of(b"aaaa", b"bb")
    memory, lengths, first = memoryview(batch), batch.lengths, batch[0]
    batch.clear()
    batch.append(b"xyz")
    batch.append(b"12345")
    assert lengths.tolist() == [3, 5]
    assert first[:3] == b"xyz"
    assert memory[batch.offsets[1] :][:5] == b"12345"


def test_views_keep_their_batch_alive():
    views = [batch_of(b"abc", b"de")[1]]
    batch = batch_of(b"abc", b"de")
    views += [memoryview(batch), batch.offsets, batch.lengths]
    del batch
    gc.collect()
    # Code that reused the memory would write there.
    others = [batch_of(b"z" * 1000) for _ in range(10)]
    assert views[0] == b"de"
    offsets, lengths = views[2], views[3]
    assert lengths.tolist() == [3, 2]
    assert views[1][offsets[1] :][:2] == b"de"
    assert len(others) == 10


def test_numpy_reads_memory_and_columns_without_a_copy():
    numpy = pytest.importorskip("numpy")
    batch = batch_of(b"\1\2\3", b"\4\5")
    memory = numpy.asarray(memoryview(batch))
    offsets, lengths = numpy.asarray(batch.offsets), numpy.asarray(batch.lengths)
    assert (memory.dtype, offsets.dtype, lengths.dtype) == ("uint8", "uint32", "uint32")
    assert lengths.tolist() == [3, 2]
    assert numpy.add.reduceat(memory, offsets).tolist()[0] == 6
    memory[offsets[1]] = 9
    assert bytes(batch[1]) == b"\x09\5"
