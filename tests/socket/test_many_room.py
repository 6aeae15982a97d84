"""send_many waiting for room: timeouts, partial sends, signals, and closing."""

import contextlib
import errno
import functools
import signal
import threading
import time

import pytest

from support import CLOSED, DEADLINE, Call, Child, RefusalError, eventually, fill, interrupt, run
from tomada import socket
from traffic import everything, numbered, payloads


@pytest.fixture
def full(unix):
    """Fill a socket's queue; provide it, a socket with more to send, and how much it has."""
    with unix.bound(socket) as receiver, unix.open(socket) as sender:
        yield receiver, sender, fill(sender, receiver.getsockname())


@pytest.mark.parametrize("timeout", [None, DEADLINE])
def test_send_many_waits_for_room_until_all_is_sent(full, timeout):
    receiver, sender, count = full
    sender.settimeout(timeout)
    call = Call(sender.send_many, numbered(50), receiver.getsockname()).until_it_waits()
    received = [receiver.recv(100) for _ in range(count + 50)]
    assert call.result() == 50
    assert received[count:] == numbered(50)


def test_send_many_to_a_connected_peer_waits_for_room(unix, peer):
    other = peer(unix)
    with unix.bound(socket) as sender:
        sender.connect(other.address)
        count = fill(sender, other.address)
        call = Call(sender.send_many, numbered(30)).until_it_waits()
        received = other.do("collect", count=count + 30)
        assert call.result() == 30
        assert [data for data, _ in received[count:]] == numbered(30)


def test_send_many_of_a_long_list_waits_for_room_repeatedly(unix):
    datagrams = numbered(5000)
    with unix.bound(socket) as receiver, unix.open(socket) as sender:
        call = Call(sender.send_many, datagrams, receiver.getsockname())
        received = []
        while len(received) < 5000:
            received += [data for data, _ in receiver.recv_many()]
        assert call.result() == 5000
        assert received == datagrams


# A non-blocking socket, and a non-blocking call.
UNWILLING = [(0, 0), (None, socket.MSG_DONTWAIT)]

every_unwilling = pytest.mark.parametrize(("timeout", "flags"), UNWILLING, ids=["socket", "call"])


@every_unwilling
def test_nonblocking_send_many_raises_if_nothing_was_sent(full, timeout, flags):
    receiver, sender, count = full
    sender.settimeout(timeout)
    with pytest.raises(BlockingIOError) as caught:
        sender.send_many([b"a", b"b"], receiver.getsockname(), flags)
    error = caught.value
    assert (error.errno, error.index, error.sent) == (errno.EAGAIN, 0, 0)
    assert len(everything(receiver)) == count


@every_unwilling
@pytest.mark.parametrize("length", [40, 1500, 10_000])
def test_nonblocking_send_many_returns_the_number_sent(full, timeout, flags, length):
    receiver, sender, count = full
    receiver.recv_many(3)
    sender.settimeout(timeout)
    assert sender.send_many(numbered(length), receiver.getsockname(), flags) == 3
    assert payloads(receiver)[count - 3 :] == numbered(length)[:3]


@pytest.mark.parametrize("length", [40, 1500, 10_000])
def test_send_many_does_not_reject_an_item_before_its_turn(full, length):
    receiver, sender, count = full
    receiver.recv_many(3)
    sender.setblocking(False)
    # There is room for three, so the items after those do not matter.
    assert sender.send_many([*numbered(length), None], receiver.getsockname()) == 3
    assert payloads(receiver)[count - 3 :] == numbered(length)[:3]


def test_send_many_propagates_an_exception_of_the_iterable_even_without_room(full):
    receiver, sender, count = full
    receiver.recv_many(3)
    sender.setblocking(False)

    def datagrams():
        yield from numbered(10)
        raise RefusalError("no", "because")

    with pytest.raises(RefusalError):
        sender.send_many(datagrams(), receiver.getsockname())
    assert payloads(receiver)[count - 3 :] == numbered(3)


def test_send_many_exception_of_the_iterable_has_an_earlier_error_as_context(full):
    receiver, sender, _ = full
    sender.settimeout(0.01)

    def datagrams():
        yield b"there is no room for this"
        raise RefusalError("no", "because")

    with pytest.raises(RefusalError) as caught:
        sender.send_many(datagrams(), receiver.getsockname())
    assert isinstance(caught.value.__context__, TimeoutError)


def test_send_many_that_continues_fails_all_the_rest_without_room(full):
    receiver, sender, count = full
    receiver.recv_many(2)
    sender.setblocking(False)
    failures = sender.send_many(numbered(5), receiver.getsockname(), errors="continue")
    assert [(index, type(error)) for index, error in failures] == [
        (2, BlockingIOError),
        (3, BlockingIOError),
        (4, BlockingIOError),
    ]
    assert payloads(receiver)[count - 2 :] == numbered(5)[:2]


def test_send_many_times_out_and_reports_the_number_sent(full):
    receiver, sender, count = full
    receiver.recv_many(2)
    sender.settimeout(0.05)
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"^timed out \(datagram 2.*; 2 sent before it\)$") as c:
        sender.send_many(numbered(9), receiver.getsockname())
    assert time.monotonic() - start >= 0.05
    assert (c.value.index, c.value.sent) == (2, 2)
    assert payloads(receiver)[count - 2 :] == numbered(2)


def test_send_many_timeout_is_for_the_whole_call(full):
    receiver, sender, count = full
    over = threading.Event()
    received = []

    def read_slowly():
        while not over.wait(0.01):
            received.append(receiver.recv(100))

    sender.settimeout(0.1)
    reading = Call(read_slowly)
    start = time.monotonic()
    with pytest.raises(TimeoutError) as caught:
        sender.send_many(numbered(3000), receiver.getsockname())
    elapsed = time.monotonic() - start
    over.set()
    reading.result()
    # A timeout for each datagram would not expire while the reader reads.
    assert 0.1 <= elapsed < 10
    received += payloads(receiver)
    assert received[count:] == numbered(3000)[: caught.value.sent]


def test_waiting_send_many_uses_no_cpu(full):
    receiver, sender, _ = full
    sender.settimeout(0.2)
    start = time.process_time()
    with pytest.raises(TimeoutError):
        sender.send_many([b"late"], receiver.getsockname())
    assert time.process_time() - start < 0.1


@pytest.mark.parametrize("errors", ["raise", "continue"])
def test_close_ends_send_many_in_another_thread(full, unix, errors):
    receiver, _, count = full
    with unix.open(socket) as sender:
        send = functools.partial(sender.send_many, errors=errors)
        call = Call(send, [b"never"] * 3, receiver.getsockname()).until_it_waits()
        sender.close()
        with pytest.raises(OSError, match=CLOSED):
            call.result()
    assert len(everything(receiver)) == count


def test_send_many_continues_after_a_signal_handler_that_returns(full, handler):
    receiver, sender, count = full
    calls = handler()

    def disturb():
        interrupt()
        eventually(lambda: calls)
        return [receiver.recv(100) for _ in range(count + 3)]

    disturbing = Call(disturb)
    assert sender.send_many([b"a", b"b", b"c"], receiver.getsockname()) == 3
    assert disturbing.result()[count:] == [b"a", b"b", b"c"]


# The signal arrives while the thread tries to send, and so does not interrupt a sleep.
AWAKE = """
import signal
from faults import faults
from support import DEADLINE, fill
from tomada import socket

with (
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver,
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
):
    receiver.bind("")
    sender.settimeout(DEADLINE)
    count = fill(sender, receiver.getsockname())
    signal.signal(signal.SIGUSR1, lambda *_: receiver.recv_many(count))
    faults().signal("{call}", signal.SIGUSR1)
    {send}
    print(len(receiver.recv_many()))
"""


@pytest.mark.parametrize(
    ("call", "send"),
    [
        ("sendto", 'sender.sendto(b"a", receiver.getsockname())'),
        ("sendmmsg", 'sender.send_many([b"a"] * 3, receiver.getsockname())'),
    ],
)
def test_send_many_runs_a_signal_handler_that_interrupted_no_sleep(faulty, call, send):
    assert int(faulty.run(AWAKE.format(call=call, send=send))) > 0


@pytest.mark.parametrize("errors", ["raise", "continue"])
@pytest.mark.parametrize(
    "refusal",
    [RefusalError("no", "because"), OSError(errno.ENOSPC, "of the handler"), SystemExit(3)],
    ids=["its own", "an OSError", "an exit"],
)
def test_exception_of_a_signal_handler_ends_send_many(full, handler, refusal, errors):
    receiver, sender, count = full

    def refuse():
        raise refusal

    handler(refuse)
    disturbing = Call(interrupt)
    with pytest.raises(type(refusal)) as caught:
        sender.send_many([b"never"] * 3, receiver.getsockname(), errors=errors)
    disturbing.result()
    assert caught.value.args == refusal.args
    assert len(everything(receiver)) == count


@pytest.mark.thread_unsafe(reason="it uses a signal")
@pytest.mark.parametrize("errors", ["raise", "continue"])
def test_exception_of_a_signal_handler_during_a_failure_is_not_lost(unix, errors):
    calls = []

    def refuse(*_):
        calls.append(1)
        raise RefusalError("no", "because")

    def send_until_it_comes(sock, pairs):
        came = len(calls)
        # pytest-timeout uses the real-time timer.
        signal.setitimer(signal.ITIMER_PROF, 0.001)
        while len(calls) == came:
            with contextlib.suppress(FileNotFoundError):
                sock.send_many(pairs, errors=errors)

    before = signal.signal(signal.SIGPROF, refuse)
    try:
        with unix.bound(socket) as sock:
            pairs = [(b"x", str(unix.address())) for _ in range(50)]
            for _ in range(50):
                with pytest.raises(RefusalError):
                    send_until_it_comes(sock, pairs)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


ENDLESS = """
import faulthandler, itertools, threading
from tomada import socket

# If nothing else ends it, this does.
faulthandler.dump_traceback_later(5, exit=True)
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("127.0.0.1", 0))
"""


STARTED = """
def report():
    while not sock.stats().sent:
        pass
    {action}

threading.Thread(target=report).start()
try:
    sock.send_many(itertools.repeat(b"x" * 100), sock.getsockname(), errors="{errors}")
except BaseException as error:
    print(repr(error))
"""


either = pytest.mark.parametrize("errors", ["raise", "continue"])


@pytest.mark.usefixtures("interruptible")
@either
def test_ctrl_c_ends_an_endless_send_many(errors):
    program = ENDLESS + STARTED.format(action="print(flush=True)", errors=errors)
    with Child("-c", program) as child:
        child.line()
        child.signal(signal.SIGINT)
        status, output, complaints = child.end()
    assert status == 0, complaints
    assert output.startswith("KeyboardInterrupt(")


@either
def test_close_ends_an_endless_send_many(errors):
    output = run(ENDLESS + STARTED.format(action="sock.close()", errors=errors))
    assert output.startswith(f"OSError({errno.EBADF}, ")
