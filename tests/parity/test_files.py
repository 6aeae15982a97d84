"""Files, copies and ``with``: the same results as with the standard class."""

import contextlib
import copy
import pickle

import pytest

from parity import assert_same, assert_same_outcome


@pytest.mark.parametrize(
    "mode",
    ["r", "w", "rw", "rb", "wb", "rwb", "", "b", "x", "a", "r+", "rbx", None, 5],
    ids=repr,
)
def test_makefile_in_every_mode(mode):
    def case(side):
        sock, peer = side.connected()
        sock.settimeout(None)
        file = sock.makefile(mode, encoding=None if mode and "b" in str(mode) else "utf-8")
        with file:
            if "w" in mode:
                file.write(b"line" if "b" in mode else "line")
                file.flush()
                assert peer.recv(100) == b"line"
            if "r" in mode:
                peer.send(b"one\n")
                line = file.readline()
                return type(file), line
            return type(file)

    assert_same_outcome(case)


@pytest.mark.parametrize("buffering", [-1, 0, 1, 100, -2, None, "x"])
@pytest.mark.parametrize("mode", ["rb", "wb", "r"])
def test_makefile_with_every_buffer_size(mode, buffering):
    def case(side):
        sock, _ = side.connected()
        sock.settimeout(None)
        with sock.makefile(mode, buffering) as file:
            return type(file), file.readable(), file.writable(), file.fileno() == sock.fileno()

    assert_same_outcome(case)


def test_socket_closes_after_its_last_file():
    def case(side):
        sock, _ = side.connected()
        sock.settimeout(None)
        first, second = sock.makefile("rb"), sock.makefile("wb")
        states = []
        for closing in (sock, first, second):
            states.append(sock.fileno() >= 0)
            closing.close()
        return states, sock.fileno()

    assert_same(case)


def test_makefile_of_a_nonblocking_socket_has_nothing_to_read():
    def case(side):
        sock, _ = side.connected()
        with sock.makefile("rb", 0) as file:
            return file.read(10)

    assert_same(case)


def test_makefile_of_a_socket_with_a_timeout_fails_after_it():
    def case(side):
        sock, _ = side.connected()
        sock.settimeout(0.01)
        with sock.makefile("rb", 0) as file:
            with contextlib.suppress(TimeoutError):
                file.read(10)
            return file.read(10)

    assert_same(case, OSError)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_socket_cannot_be_pickled(protocol):
    assert_same(lambda side: pickle.dumps(side.open(), protocol), TypeError)


def test_socket_cannot_be_copied():
    assert_same(lambda side: copy.copy(side.open()), TypeError)
    assert_same(lambda side: copy.deepcopy(side.open()), TypeError)


def test_with_statement_closes_the_socket_even_after_exceptions():
    def case(side):
        def fail():
            with sock:
                raise ZeroDivisionError

        sock = side.open()
        with pytest.raises(ZeroDivisionError):
            fail()
        with side.module.socket(2, 2) as second:
            second.close()
        return sock.fileno(), second.fileno()

    assert_same(case)
