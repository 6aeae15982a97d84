"""The event loop's own turns: order, timers, exceptions, and programs that change the loop."""

import asyncio
import collections
import contextlib
import contextvars
import gc
import os
import random
import selectors
import signal
import socket as std
import subprocess
import sys
import time
import weakref
from functools import partial
from unittest import mock

import pytest
import uvloop

import tomada.asyncio
from transports import LOOPS, Recorder, hear

DEADLINE = 10


@pytest.fixture
def loop():
    with asyncio.Runner(loop_factory=tomada.asyncio.EventLoop) as runner:
        yield runner.get_loop()


def run_for(loop, condition):
    """Run a loop until a condition holds."""
    end = loop.time() + DEADLINE
    while not condition():
        assert loop.time() < end
        loop.call_soon(loop.stop)
        loop.run_forever()


def test_turn_calls_what_was_waiting_then_descriptors_then_timers(loop):
    called = []
    reader, writer = os.pipe()
    os.write(writer, b"x")
    loop.add_reader(reader, called.append, "descriptor")
    loop.call_at(loop.time() - 1, called.append, "timer")
    loop.call_soon(called.append, "waiting")
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.remove_reader(reader)
    os.close(reader)
    os.close(writer)
    assert called == ["waiting", "descriptor", "timer"]


@pytest.mark.parametrize("cancelled", [0, 0.3, 0.9])
def test_timers_are_called_in_the_order_of_their_times(loop, cancelled):
    called = []
    chance = random.Random(cancelled)  # noqa: S311 - it repeats
    now = loop.time()
    delays = [chance.randrange(1000) * 1e-6 for _ in range(1000)]
    timers = [(delay, loop.call_at(now + delay, called.append, delay)) for delay in delays]
    kept = []
    for delay, timer in timers:
        if chance.random() < cancelled:
            timer.cancel()
        else:
            kept.append(delay)
    run_for(loop, lambda: len(called) == len(kept))
    assert called == sorted(kept)


def test_timers_take_times_that_are_not_floats(loop):
    called = []
    loop.call_at(int(loop.time()) - 1, called.append, "int")
    loop.call_later(0, called.append, "at once")
    run_for(loop, lambda: len(called) == 2)
    with pytest.raises(TypeError, match="delay must not be None"):
        loop.call_later(None, print)
    with pytest.raises(TypeError, match="when cannot be None"):
        loop.call_at(None, print)


def of_failure(new_loop, schedule):
    """Return what a loop tells its exception handler when a callback raises an exception."""
    found = []
    with asyncio.Runner(loop_factory=new_loop) as runner:
        loop = runner.get_loop()
        loop.set_exception_handler(lambda _, context: found.append(context))
        schedule(loop)
        run_for(loop, lambda: found)
    (context,) = found
    handle = context["handle"]
    return context["message"], type(context["exception"]), type(handle), sorted(context)


def fail(*_):
    raise ZeroDivisionError


@pytest.mark.parametrize("args", [(), (1,), (1, 2), (1, 2, 3)])
@pytest.mark.parametrize("method", ["call_soon", "call_later"])
def test_exception_of_a_callback_is_reported_like_the_standard_loop_reports_it(method, args):
    def schedule(loop):
        before = () if method == "call_soon" else (0,)
        getattr(loop, method)(*before, fail, *args)

    ours = of_failure(tomada.asyncio.EventLoop, schedule)
    assert ours == of_failure(asyncio.SelectorEventLoop, schedule)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_exception_that_ends_the_program_leaves_the_other_callbacks_for_later(loop, error):
    called = []

    def end():
        raise error

    loop.call_soon(end)
    loop.call_soon(called.append, "later")
    with pytest.raises(error):
        loop.run_forever()
    assert called == []
    run_for(loop, lambda: called == ["later"])


@pytest.mark.parametrize("new_loop", [tomada.asyncio.EventLoop, asyncio.SelectorEventLoop])
def test_exception_of_a_callback_that_cancelled_itself_is_reported(new_loop):
    def schedule(loop):
        def cancel_and_fail(_):
            handle.cancel()
            fail()

        handle = loop.call_soon(cancel_and_fail, 1)

    assert of_failure(new_loop, schedule)[1] is ZeroDivisionError


def test_handles_arguments_may_be_a_list(loop):
    called = []
    loop._add_callback(asyncio.Handle(called.append, [1], loop))  # noqa: SLF001 - programs do
    run_for(loop, lambda: called == [1])


@pytest.mark.parametrize("timer", ["", "loop.call_later(60, print)"])
def test_signal_ends_a_wait(timer):
    program = (
        "import os, signal, threading, tomada.asyncio\n"
        "loop = tomada.asyncio.EventLoop()\n"
        "loop.call_soon(os.write, 1, b'.')\n"
        f"{timer}\n"
        "loop.run_forever()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=-1, stderr=-1) as child:
        assert child.stdout.read(1) == b"."
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=6 * DEADLINE)
    assert child.returncode == -signal.SIGINT, errors
    assert b"KeyboardInterrupt" in errors


def test_handles_have_all_attributes_of_the_standard_librarys(loop):
    def attributes(handle):
        names = (name for kind in type(handle).__mro__ for name in vars(kind).get("__slots__", ()))
        return {name for name in names if hasattr(handle, name)}

    standard = asyncio.SelectorEventLoop()
    try:
        for method, *args in (("call_soon", print), ("call_later", 60, print)):
            handles = [getattr(each, method)(*args) for each in (loop, standard)]
            ours, theirs = map(attributes, handles)
            assert ours == theirs
            for handle in handles:
                handle.cancel()
    finally:
        standard.close()


def test_replaced_select_of_the_selector_is_called():
    called = []
    selector = selectors.EpollSelector()
    select = selector.select

    def selecting(timeout=None):
        called.append(timeout)
        return select(timeout)

    with asyncio.Runner(loop_factory=lambda: tomada.asyncio.EventLoop(selector)) as runner:
        runner.run(asyncio.sleep(0))
        selector.select = selecting
        runner.run(asyncio.sleep(0))
        del selector.select
    assert called


def test_handles_are_the_standard_librarys(loop):
    handle, timer = loop.call_soon(print, "never"), loop.call_later(60, print, "never")
    assert type(handle) is asyncio.Handle
    assert type(timer) is asyncio.TimerHandle
    assert "print" in repr(handle)
    assert timer.when() > loop.time()
    handle.cancel()
    timer.cancel()
    assert handle.cancelled()
    assert timer.cancelled()


def test_replaced_run_method_of_handles_is_called(loop, monkeypatch):
    called = []
    original = vars(asyncio.Handle)["_run"]

    def run(handle):
        called.append(handle)
        original(handle)

    monkeypatch.setattr(asyncio.Handle, "_run", run)
    handle = loop.call_soon(loop.stop)
    loop.run_forever()
    assert handle in called


class Polling(selectors.SelectSelector):
    calls = 0

    def select(self, timeout=None):
        self.calls += 1
        return super().select(timeout)


def test_other_selector_is_polled():
    selector = Polling()
    with asyncio.Runner(loop_factory=lambda: tomada.asyncio.EventLoop(selector)) as runner:
        runner.run(asyncio.sleep(0))
        assert selector.calls


class Wrapping(asyncio.SelectorEventLoop):
    """A mixin that polls a selector of its own."""

    def __init__(self, _selector):
        self.polling = Polling()
        super().__init__(self.polling)


def test_selector_that_a_mixin_has_chosen_is_polled():
    class Mixed(tomada.asyncio.EventLoop, Wrapping):
        pass

    with asyncio.Runner(loop_factory=Mixed) as runner:
        runner.run(asyncio.sleep(0.01))
        assert runner.get_loop().polling.calls


def test_replaced_selector_is_polled_until_it_is_put_back(loop):
    own, other = loop._selector, Polling()  # noqa: SLF001 - programs do
    for key in own.get_map().values():
        other.register(key.fileobj, key.events, key.data)
    loop._selector = other  # noqa: SLF001
    loop.run_until_complete(asyncio.sleep(0.01))
    calls = other.calls
    assert calls
    loop._selector = own  # noqa: SLF001
    loop.run_until_complete(asyncio.sleep(0.01))
    assert other.calls == calls
    other.close()


@pytest.mark.parametrize("name", ["_ready", "_scheduled", "_selector", "_debug", "_closed"])
def test_attribute_can_be_patched(loop, name):
    before = getattr(loop, name)
    patched = mock.Mock()
    with mock.patch.object(loop, name, patched):
        assert getattr(loop, name) is patched
    assert getattr(loop, name) is before
    loop.run_until_complete(asyncio.sleep(0))


def test_attribute_that_is_missing_says_so():
    loop = tomada.asyncio.EventLoop.__new__(tomada.asyncio.EventLoop)
    with pytest.raises(AttributeError, match="_ready"):
        loop._ready.clear()  # noqa: SLF001
    with pytest.raises(AttributeError, match="_ready"):
        tomada.asyncio.EventLoop.call_soon(loop, print)
    loop._closed = True  # noqa: SLF001 - or it would warn


def test_subclass_must_not_replace_an_attribute():
    with pytest.raises(TypeError, match="Debugging must not replace _debug"):
        type("Debugging", (tomada.asyncio.EventLoop,), {"_debug": True})


def test_overridden_method_is_called():
    class Counting(tomada.asyncio.EventLoop):
        calls = 0

        def _process_events(self, event_list):
            self.calls += 1
            super()._process_events(event_list)

    with asyncio.Runner(loop_factory=Counting) as runner:
        runner.run(asyncio.sleep(0))
        assert runner.get_loop().calls


def test_call_from_another_thread_wakes_the_loop(loop):
    woken = loop.create_future()

    async def wait():
        await asyncio.to_thread(loop.call_soon_threadsafe, woken.set_result, 1)
        assert await asyncio.wait_for(woken, DEADLINE) == 1

    loop.run_until_complete(wait())


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("is_watched", [False, True])
def test_reader_runs_in_the_given_context(loop, is_watched, debug):
    loop.set_debug(debug)
    number, called = contextvars.ContextVar("number", default=0), []
    context = contextvars.copy_context()
    context.run(number.set, 1)
    first, second = std.socketpair()
    with first, second:
        second.send(b"x")
        # The standard library's streams call it, since CPython 3.15 with a context.
        watch = partial(loop._add_reader, first.fileno())  # noqa: SLF001
        if is_watched:
            watch(print)
        watch(lambda: called.append(number.get()), context=context)
        run_for(loop, lambda: called)
        loop.remove_reader(first)
        with pytest.raises(TypeError, match="nonsense"):
            watch(print, nonsense=1)
    assert set(called) == {1}


@pytest.mark.parametrize("method", ["call_soon", "call_later"])
def test_context_that_is_in_use_is_refused_like_by_the_standard_loop(method):
    def refusal(new_loop):
        found, context = [], contextvars.copy_context()
        with asyncio.Runner(loop_factory=new_loop) as runner:
            loop = runner.get_loop()
            loop.set_exception_handler(lambda _, about: found.append(about))
            before = () if method == "call_soon" else (0,)
            getattr(loop, method)(*before, fail, context=context)
            context.run(run_for, loop, lambda: found)
        (about,) = found
        return about["message"], type(about["exception"]), str(about["exception"]).split(":")[0]

    ours = refusal(tomada.asyncio.EventLoop)
    assert ours[1] is RuntimeError
    assert ours == refusal(asyncio.SelectorEventLoop)


def test_context_may_be_any_object_that_runs_functions(loop):
    class Context:
        def run(self, callback, *args):
            ran.append(callback)
            callback(*args)

    ran, called = [], []
    loop.call_soon(called.append, 1, context=Context())
    loop.call_later(0, called.append, 2, context=Context())
    run_for(loop, lambda: called == [1, 2])
    assert ran == [called.append, called.append]


def test_handle_without_an_attribute_is_reported(loop):
    handle = loop.call_soon(print)
    del handle._callback  # noqa: SLF001 - nothing prevents it
    loop.call_soon(loop.stop)
    with pytest.raises(AttributeError, match="_callback"):
        loop.run_forever()


def test_replaced_clock_is_read(loop, monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 2.0**40)
    assert loop.time() == 2.0**40
    timer = loop.call_later(1, print)
    assert timer.when() == 2.0**40 + 1
    monkeypatch.setattr(loop, "time", lambda: 5.0)
    called = []
    loop.call_at(4.0, called.append, 1)
    loop.call_at(6.0, called.append, 2)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert called == [1]


@pytest.mark.parametrize("base", [asyncio.SelectorEventLoop, asyncio.BaseEventLoop])
def test_replaced_clock_of_the_standard_loop_is_read(loop, monkeypatch, base):
    # freezegun does it, so that the loop's clock goes on while time.monotonic() stands still.
    monkeypatch.setattr(base, "time", lambda _: 7.0, raising=False)
    assert loop.time() == 7.0
    assert loop.call_later(1, print).when() == 8.0


def test_clock_that_was_replaced_before_the_first_loop_is_read():
    program = """
import asyncio, time
import tomada.asyncio
real = time.monotonic
asyncio.SelectorEventLoop.time = lambda self: real()
time.monotonic = lambda: 5.0
tomada.asyncio.run(asyncio.sleep(0.01), loop="asyncio")
loop = tomada.asyncio.EventLoop()
print(loop.call_later(0, print).when() != 5.0)
del asyncio.SelectorEventLoop.time
print(loop.call_later(0, print).when())
class Module:
    monotonic = staticmethod(lambda: 6.0)
asyncio.base_events.time = Module
print(loop.call_later(0, print).when())
loop.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["True", "5.0", "6.0"]


def test_run_method_that_was_replaced_before_the_first_loop_is_called():
    program = """
import asyncio
import tomada.asyncio
original, called = asyncio.Handle._run, []
def run(handle):
    called.append(handle)
    original(handle)
asyncio.Handle._run = run
tomada.asyncio.run(asyncio.sleep(0), loop="asyncio")
print(bool(called))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "True\n"


def test_watch_of_a_method_without_a_context_is_called():
    class Watching(tomada.asyncio.EventLoop):
        watched = 0

        def _add_reader(self, fd, callback, *args):
            self.watched += 1
            return super()._add_reader(fd, callback, *args)

    async def hear_one():
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_datagram_endpoint(
            Recorder, local_addr=("127.0.0.1", 0)
        )
        transport.sendto(b"heard", transport.get_extra_info("sockname"))
        assert await protocol.received(1) == [b"heard"]
        transport.close()

    with asyncio.Runner(loop_factory=Watching) as runner:
        runner.run(hear_one())
        assert runner.get_loop().watched


def test_clock_of_another_base_class_is_read():
    class Other(asyncio.SelectorEventLoop):
        def time(self):
            return 7.0

    class Both(tomada.asyncio.EventLoop, Other):
        pass

    class Own(tomada.asyncio.EventLoop, Other):
        def time(self):
            return super().time() + 1

    with contextlib.closing(Both()) as loop:
        assert loop.time() == 7.0
    with contextlib.closing(Own()) as loop:
        assert loop.call_later(1, print).when() == 9.0


def test_any_object_with_a_run_method_may_wait(loop):
    class Waiting:
        _cancelled = False

        def _run(self):
            called.append(self)

    called, waiting = [], Waiting()
    loop._ready.append(waiting)  # noqa: SLF001 - programs do
    run_for(loop, lambda: called == [waiting])


def test_replaced_queue_of_callbacks_is_used(loop):
    class Queue(collections.deque):
        """Programs put one in the loop's place to see what it calls."""

        def append(self, item):
            seen.append(item)
            super().append(item)

    seen, called = [], []
    loop._ready = Queue()  # noqa: SLF001 - programs do
    handle = loop.call_soon(called.append, 1)
    timer = loop.call_later(0, called.append, 2)
    run_for(loop, lambda: called == [1, 2])
    assert {handle, timer} <= set(seen)


def test_timer_is_due_even_if_the_clocks_value_is_huge():
    class Frozen(tomada.asyncio.EventLoop):
        def time(self):
            return 2.0**40

    called, loop = [], Frozen()
    loop.call_at(loop.time(), called.append, 1)
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert called == [1]


def test_reader_that_removes_itself_is_not_called_again(loop):
    called = []
    first, second = std.socketpair()
    with first, second:

        def read():
            called.append(first.recv(1))
            assert loop.remove_reader(first)
            assert not loop.remove_reader(first)

        loop.add_reader(first, read)
        second.send(b"ab")
        run_for(loop, lambda: called)
        loop.call_soon(loop.stop)
        loop.run_forever()
        assert called == [b"a"]
        loop.add_reader(first.fileno(), print)
        loop.add_reader(first.fileno(), called.append, "replaced")
        loop.add_writer(first, called.append, "writable")
        run_for(loop, lambda: {"replaced", "writable"} <= set(called))
        loop.remove_reader(first)
        loop.remove_writer(first)


# Where the loop does not count its turns


@pytest.mark.parametrize("new_loop", [LOOPS["asyncio"], LOOPS["uvloop"]], ids=["asyncio", "uvloop"])
def test_datagram_that_is_sent_alone_costs_no_turn_of_the_loop(new_loop, inet):
    async def send():
        loop = asyncio.get_running_loop()
        with inet.bound(std) as other:
            transport, _ = await loop.create_datagram_endpoint(
                Recorder, remote_addr=other.getsockname()
            )
            scheduled = []
            loop.call_soon = lambda *args, **_: scheduled.append(args)
            transport.sendto(b"alone")
            del loop.call_soon
            assert scheduled == []
            assert await hear(other) == [b"alone"]
            transport.close()
            await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(send())


# Which loop a program runs on


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (None, tomada.asyncio.EventLoop),
        ("asyncio", tomada.asyncio.EventLoop),
        ("auto", uvloop.Loop),
        ("uvloop", uvloop.Loop),
    ],
)
def test_run_chooses_the_loop_and_gives_it_the_transports(name, expected):
    async def main():
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
        )
        transport.close()
        return type(loop), type(transport)

    options = {} if name is None else {"loop": name}
    assert tomada.asyncio.run(main(), **options) == (expected, tomada.asyncio.DatagramTransport)


def test_run_without_uvloop(monkeypatch):
    async def main():
        return type(asyncio.get_running_loop())

    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert tomada.asyncio.run(main(), loop="auto") is tomada.asyncio.EventLoop
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'tomada\[uvloop\]'$"):
        tomada.asyncio.run(main(), loop="uvloop")


@pytest.mark.parametrize("name", ["tomada", "trio"])
def test_run_refuses_a_loop_that_it_does_not_know(name):
    message = rf"""must be "asyncio" \(tomada's own loop\), "auto" or "uvloop", not '{name}'$"""
    with pytest.raises(ValueError, match=message):
        tomada.asyncio.run(asyncio.sleep(0), loop=name)
    with pytest.raises(ValueError, match=message):
        tomada.asyncio.run(asyncio.sleep, loop=name)


@pytest.mark.parametrize("new_loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("name", ["asyncio", "auto", "trio"])
def test_run_in_a_running_loop(recwarn, new_loop, name):
    async def main():
        message = r"^tomada\.asyncio\.run\(\) cannot be called from a running event loop$"
        with pytest.raises(RuntimeError, match=message):
            tomada.asyncio.run(asyncio.sleep(0), loop=name)
        return await asyncio.sleep(0, "still running")

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(main()) == "still running"
    gc.collect()
    assert [str(warning.message) for warning in recwarn] == []


def test_closed_loop_that_refers_to_itself_is_collected():
    loop = tomada.asyncio.EventLoop()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    loop.itself = loop
    known = weakref.ref(loop)
    del loop
    gc.collect()
    assert known() is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_run_ignores_the_event_loop_policy(monkeypatch):
    async def main():
        return type(asyncio.get_running_loop())

    monkeypatch.setattr(asyncio.get_event_loop_policy(), "new_event_loop", uvloop.new_event_loop)
    assert tomada.asyncio.run(main()) is tomada.asyncio.EventLoop
