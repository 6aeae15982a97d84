"""The lock-free event: threads and signal handlers set it and wait for it at any line."""

import signal
import sys
import threading

import pytest

from support import Call, together
from tomada._server.wakeup import Latch

pytestmark = pytest.mark.thread_unsafe(reason="only the main thread handles signals")


def test_latch_is_an_event():
    latch = Latch()
    assert isinstance(latch, threading.Event)
    assert not latch.is_set()
    assert not latch.wait(0)
    assert not latch.wait(0.001)
    call = Call(latch.wait)
    latch.set()
    assert call.result() is True
    assert latch.is_set()
    assert latch.wait(0)
    latch.clear()
    assert not latch.is_set()


def test_latch_set_wakes_all_waiting_threads():
    latch = Latch()
    results = together(*[latch.wait] * 5, latch.set, latch.set)
    assert results[:5] == [True] * 5


def test_latch_wait_that_times_out_leaves_nothing_behind():
    latch = Latch()
    for _ in range(100):
        latch.wait(1e-5)
    assert not latch._waiters  # noqa: SLF001 - there is no public view of them


@pytest.mark.parametrize("line", range(1, 13))
def test_latch_may_be_set_by_a_signal_handler_at_every_line_of_a_wait(line):
    latch, left = Latch(), [line]

    def local(_frame, event, _argument):
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                latch.set()
        return local

    call = threading.Timer(0.3, latch.set)
    call.start()
    sys.settrace(lambda frame, *_: local if frame.f_code is Latch.wait.__code__ else None)
    try:
        assert latch.wait(30)
    finally:
        sys.settrace(None)
        call.cancel()


def test_latch_set_in_a_signal_handler_ends_the_wait_it_interrupts():
    latch = Latch()
    before = signal.signal(signal.SIGALRM, lambda *_: latch.set())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        assert latch.wait(30)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
