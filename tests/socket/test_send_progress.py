"""Progress of senders: each call returns or advances, whatever guards and the kernel do.

Every datagram is sent once, or reported as failed, or not sent and accounted for. Calls that might
never return run in a separate program that a test can kill.
"""

import errno

import pytest

import tomada
from families import length
from faults import START
from support import DEADLINE, Child
from tomada import socket
from traffic import numbered, payloads

ROUNDS = length(8, 200)

SWAPPING = """
import itertools, sys, threading
import tomada
from tomada import socket

rounds, count, errors = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.bind(("127.0.0.1", 0))
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.bind(("127.0.0.1", 0))
to = receiver.getsockname()
over = threading.Event()

def guards():
    # Guards with high limits, guards with low limits, and none.
    for allowed in itertools.cycle([0, 1, 10_000]):
        guard = tomada.Guard(amplification=1 + allowed)
        if allowed:
            receiver.sendto(b"x" * 8, sender.getsockname())
            sender.guard = guard
            sender.recv(100)
        yield guard
        yield None

def swap():
    for guard in guards():
        if over.is_set():
            return
        sender.guard = guard

swapping = threading.Thread(target=swap)
swapping.start()
try:
    for size in itertools.islice(itertools.cycle([8, 0]), rounds):
        datagrams = [bytes(size)] * count
        before = sender.stats().sent
        try:
            result = sender.send_many(datagrams, to, errors=errors)
        except PermissionError as error:
            assert errors == "raise", error
            failed, sent = 0, error.sent
            assert error.index == sent, (error.index, sent)
        else:
            failed, sent = (0, result) if errors == "raise" else (len(result), count - len(result))
            if errors == "continue":
                indexes = [index for index, _ in result]
                assert indexes == sorted(set(indexes)), "reported twice"
                assert all(type(error) is PermissionError for _, error in result)
            assert failed + sent == count, (failed, sent)
        print(failed, sent, flush=True)
finally:
    over.set()
    swapping.join()
"""


@pytest.mark.parametrize("errors", ["raise", "continue"])
def test_send_many_ends_while_another_thread_swaps_guards(errors):
    with Child("-c", SWAPPING, ROUNDS, 5000, errors) as child:
        for _ in range(ROUNDS):
            child.line()
        status, _, problems = child.end()
    assert status == 0, problems


TAKING_AWAY = """
import sys, threading
import tomada
from tomada import socket

count = int(sys.argv[1])
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.bind(("127.0.0.1", 0))
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
guard = sender.guard = tomada.Guard(amplification=1)
gone = threading.Event()

def take_away():
    while not guard.stats().over_amplification:
        pass
    sender.guard = None
    gone.set()

taking = threading.Thread(target=take_away)
taking.start()
while not gone.is_set():
    failures = sender.send_many([b"x"] * count, receiver.getsockname(), errors="continue")
    assert len(failures) <= count
taking.join()
assert sender.send_many([b"x"] * count, receiver.getsockname(), errors="continue") == []
print("over")
"""


@pytest.mark.parametrize("count", [100, 5000])
def test_send_many_ends_when_another_thread_has_removed_the_guard(count):
    for _ in range(max(1, ROUNDS // 4)):
        with Child("-c", TAKING_AWAY, count) as child:
            assert child.line() == "over"
            status, _, problems = child.end()
        assert status == 0, problems


def test_guard_removed_by_a_signal_handler_is_gone(faulty):
    # The handler runs between two steps of one call, after the first datagram was refused.
    program = """
import signal
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.bind(("127.0.0.1", 0))
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.guard = tomada.Guard(amplification=1)

class Address(str):
    pass

def take_away(*_):
    sender.guard = None

signal.signal(signal.SIGUSR1, take_away)

def items():
    yield b"refused"
    os.kill(os.getpid(), signal.SIGUSR1)
    for number in range(6000):
        yield b"sent"

failures = sender.send_many(items(), receiver.getsockname(), errors="continue")
print(sender.guard, len(failures) + sender.stats().sent)
"""
    assert faulty.run(START + program) == "None 6001\n"


@pytest.mark.parametrize("error", [errno.ENOBUFS, errno.EPERM, errno.EIO, errno.ECONNREFUSED])
@pytest.mark.parametrize("size", [8, 0], ids=["runs", "single"])
@pytest.mark.parametrize("count", [1, 64, 5000])
def test_send_many_with_a_kernel_that_always_fails(faulty, error, size, count):
    program = """
number, size, count = map(int, sys.argv[1:])
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("127.0.0.1", 0))
failing.set("send", number)
failures = sock.send_many([bytes(size)] * count, sock.getsockname(), errors="continue")
assert [index for index, _ in failures] == list(range(count))
assert all(error.errno == number and error.index == index for index, error in failures)
assert len({id(error) for _, error in failures}) == count
error = attempt(sock.send_many, [bytes(size)] * count, sock.getsockname())
print(error.errno, error.index, error.sent, sock.stats().sent)
"""
    assert faulty.run(START + program, error, size, count) == f"{error} 0 0 0\n"


@pytest.mark.parametrize("size", [8, 0], ids=["runs", "single"])
@pytest.mark.parametrize("most", [0, 1, 3])
def test_send_many_with_a_kernel_that_takes_few(faulty, size, most):
    program = """
size, most = map(int, sys.argv[1:])
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("127.0.0.1", 0))
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
sock.settimeout(DEADLINE)
failing.limit("sendmmsg", most)
datagrams = [bytes(size + (number % 64 == 0)) for number in range(200)]
failures = sock.send_many(datagrams, sock.getsockname(), errors="continue")
# If it takes nothing, the last message is sent all the same: alone, by another call.
taken = datagrams[len(failures):]
assert len(taken) in range(1, 65) if not most else not failures, failures
received = []
while len(received) < len(taken):
    received += [data for data, _ in sock.recv_many()]
assert received == taken, "not each once, or not in order"
print(sock.stats().sent == len(taken))
"""
    assert faulty.run(START + program, size, most) == "True\n"


@pytest.mark.usefixtures("interruptible")
def test_send_many_with_a_kernel_that_takes_nothing_obeys_ctrl_c(faulty):
    program = """
import _thread
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("127.0.0.1", 0))
failing.set("send", errno.EINTR)
threading.Timer(0.05, _thread.interrupt_main).start()
try:
    sock.send_many([b"x"] * 5000, sock.getsockname(), errors="continue")
except KeyboardInterrupt:
    print("interrupted")
"""
    assert faulty.run(START + program) == "interrupted\n"


def test_server_gives_up_replies_if_the_kernel_always_returns_eintr(faulty):
    program = """
with tomada.Server(("127.0.0.1", 0), echo) as server:
    failing.set("send", errno.EINTR)
    with std.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(server.address)
        client.send(b"ping")
        eventually(lambda: server.stats().send_errors == 1)
    failing.set("send", 0)
    assert ask(server.address) == b"ping"
print("served")
"""
    assert faulty.run(START + program) == "served\n"


def test_datagrams_that_a_guard_refuses_cost_the_others_nothing():
    guard = tomada.Guard(amplification=1)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
    ):
        for each in (sock, peer):
            each.bind(("127.0.0.1", 0))
            each.settimeout(DEADLINE)
        sock.guard = guard
        peer.sendto(bytes(160), sock.getsockname())
        sock.recv(200)
        items = [(data, peer.getsockname()) for data in numbered(30)]
        items[5:5] = [(b"to a stranger", ("127.0.0.2", 9))] * 3
        failures = sock.send_many(items, errors="continue")
        # 20 datagrams of 8 bytes use up the budget of 160 bytes.
        assert [index for index, _ in failures] == [5, 6, 7, *range(23, 33)]
        assert payloads(peer) == numbered(30)[:20]
        assert guard.stats().over_amplification == 13
