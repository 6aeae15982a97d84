"""The signal handlers of a server's process are restored, whatever interrupts that."""

import signal
import socket as std
import threading
import weakref

import pytest

from tomada._core import SignalHandlers

NUMBERS = signal.SIGUSR1, signal.SIGUSR2


class AlarmError(Exception):
    """The exception of a handler that runs meanwhile."""


def handle(*_):
    """Do nothing."""


@pytest.fixture(autouse=True)
def before():
    old = [signal.signal(number, signal.SIG_IGN) for number in NUMBERS]
    yield installed()
    for number, handler in zip(NUMBERS, old, strict=True):
        signal.signal(number, handler)
    signal.set_wakeup_fd(-1)


@pytest.fixture
def pair():
    ours, theirs = std.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        yield ours, theirs


def installed():
    fileno = signal.set_wakeup_fd(-1)
    if fileno != -1:
        signal.set_wakeup_fd(fileno)
    return fileno, [signal.getsignal(number) for number in NUMBERS]


def handlers(owner):
    return SignalHandlers(dict.fromkeys(NUMBERS, handle), owner.fileno(), owner)


def raise_in_call(monkeypatch, number, times=1):
    """Have calls of signal.signal() raise, as they do if they run a handler that raises."""
    calls, real = iter(range(100)), signal.signal

    def call(*args):
        if number <= next(calls) < number + times:
            raise AlarmError
        return real(*args)

    monkeypatch.setattr(signal, "signal", call)


def test_handlers_and_wakeup_are_installed_and_restored(pair, before):
    ours, theirs = pair
    with handlers(theirs):
        assert installed() == (theirs.fileno(), [handle, handle])
        signal.raise_signal(signal.SIGUSR1)
        assert ours.recv(10) == bytes([signal.SIGUSR1])
    assert installed() == before


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("number", range(len(NUMBERS)))
def test_exception_while_they_are_restored_is_raised_after_that(
    pair, before, monkeypatch, number, times
):
    ours = handlers(pair[1])
    ours.__enter__()
    raise_in_call(monkeypatch, number, times)
    with pytest.raises(AlarmError):
        ours.__exit__(None, None, None)
    assert installed() == before


@pytest.mark.parametrize("number", range(len(NUMBERS)))
def test_exception_while_they_are_installed_restores_them(pair, before, monkeypatch, number):
    raise_in_call(monkeypatch, number)
    with pytest.raises(AlarmError), handlers(pair[1]):
        pass
    assert installed() == before


def test_exception_in_the_block_is_raised_after_they_are_restored(pair, before):
    with pytest.raises(AlarmError), handlers(pair[1]):
        raise AlarmError
    assert installed() == before


def test_they_are_restored_if_the_block_is_never_entered(pair, before):
    # CPython 3.14 can run a signal handler between __enter__ and the block.
    ours = handlers(pair[1])
    ours.__enter__()
    assert installed() != before
    del ours
    assert installed() == before


def test_object_that_is_dropped_by_an_exception_restores_them_and_keeps_the_exception(pair, before):
    def enter():
        ours = handlers(pair[1])
        ours.__enter__()
        return ours

    def fail():
        assert installed() != before
        raise AlarmError

    with pytest.raises(AlarmError):
        print(enter(), fail())  # only the interpreter's stack has the object
    assert installed() == before


def test_handlers_that_are_installed_for_good_keep_their_wakeup_open(pair):
    class Owner:
        def __init__(self, sock):
            self.fileno = sock.fileno

    owner = Owner(pair[1])
    kept = weakref.ref(owner)
    handlers(owner).install()
    del owner
    assert kept() is not None
    assert installed() == (pair[1].fileno(), [handle, handle])


def test_previous_wakeup_that_is_closed_meanwhile_is_not_restored(pair):
    theirs, other = std.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno())
    with handlers(pair[1]):
        theirs.close()
        other.close()
    assert installed()[0] == -1


def test_other_threads_install_nothing(pair, before):
    found = []

    def enter():
        with handlers(pair[1]):
            found.append(signal.getsignal(NUMBERS[0]))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == before[1][:1]
