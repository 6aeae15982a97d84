"""Sockets across ``fork`` and ``exec``."""

import subprocess
import sys

import pytest

from forking import run_forking
from support import DEADLINE
from tomada import socket

pytestmark = pytest.mark.thread_unsafe(reason="it forks")


def test_child_may_close_a_socket_that_a_parents_thread_waits_for():
    program = """
sock = bound()
call = Call(sock.recvfrom, 100).until_it_waits()

def child():
    sock.close()
    assert sock.fileno() == -1
    return b"closed"

print(in_child(child))
# The parent's descriptor is still open.
assert call.is_alive()
sock.sendto(b"x", sock.getsockname())
print(call.result()[0])
sock.close()
"""
    assert run_forking(program) == "b'closed'\nb'x'\n"


def test_child_wakes_no_thread_of_its_parent():
    program = """
sock = bound()
sock.settimeout(None)
call = Call(sock.recvfrom, 100).until_it_waits()
status = f"/proc/self/task/{call.native_id}/status"

def switches():
    with open(status) as lines:
        return [line for line in lines if "ctxt_switches" in line]

before = switches()

def child():
    sock.getsockname()
    sock.close()
    return b"closed"

in_child(child)
print(switches() == before)
sock.sendto(b"x", sock.getsockname())
print(call.result()[0])
"""
    assert run_forking(program) == "True\nb'x'\n"


def test_child_uses_its_own_sockets_while_its_parent_waits():
    program = """
sock = bound()
calls = [Call(sock.recvfrom, 100).until_it_waits() for _ in range(10)]

def child():
    sock.close()
    mine = bound()
    mine.sendto(b"one", mine.getsockname())
    assert mine.recv(100) == b"one"
    waiting = Call(mine.recv, 100).until_it_waits()
    mine.sendto(b"two", mine.getsockname())
    assert waiting.result() == b"two"
    ended = Call(mine.recv, 100).until_it_waits()
    mine.close()
    try:
        ended.result()
    except OSError as error:
        return error.strerror.encode() and b"ended"

print(in_child(child))
for call in calls:
    sock.sendto(b"x", sock.getsockname())
print({call.result()[0] for call in calls})
sock.close()
"""
    assert run_forking(program) == "b'ended'\n{b'x'}\n"


def test_child_receives_from_an_inherited_socket():
    program = """
sock = bound()
sock.sendto(b"for the child", sock.getsockname())

def child():
    data = sock.recv(100)
    sock.settimeout(0.01)
    try:
        sock.recv(100)
    except TimeoutError:
        return data

print(in_child(child))
sock.sendto(b"for the parent", sock.getsockname())
print(sock.recv(100))
sock.close()
"""
    assert run_forking(program) == "b'for the child'\nb'for the parent'\n"


def test_child_may_wait_for_a_socket_that_a_parents_thread_waits_for():
    program = """
sock = bound()
call = Call(sock.recv, 100).until_it_waits()

def child():
    mine = Call(sock.recv, 100).until_it_waits()
    # Either process may get either datagram: one for each.
    sock.sendto(b"x", sock.getsockname())
    sock.sendto(b"x", sock.getsockname())
    data = mine.result()
    sock.close()
    return data

print(in_child(child))
print(call.result())
sock.close()
"""
    assert run_forking(program) == "b'x'\nb'x'\n"


def test_child_may_detach_and_adopt_inherited_sockets():
    program = """
sock = bound()
call = Call(sock.recv, 100).until_it_waits()

def child():
    number = sock.fileno()
    fd = sock.detach()
    assert fd == number
    with socket.socket(fileno=fd) as same:
        return b"%d" % (same.getsockname()[1])

print(int(in_child(child)) == sock.getsockname()[1])
sock.close()
try:
    call.result()
except OSError:
    print("ended")
"""
    assert run_forking(program) == "True\nended\n"


def test_child_exits_normally():
    program = """
sock = bound()
calls = [Call(sock.recv, 100).until_it_waits() for _ in range(5)]
sys.stdout.flush()
pid = os.fork()
if pid == 0:
    # Finalizers run, with the parent's waiting threads in the socket's memory.
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
for call in calls:
    sock.sendto(b"x", sock.getsockname())
for call in calls:
    call.result()
sock.close()
"""
    assert run_forking(program) == "7\n"


def test_grandchildren_use_inherited_sockets():
    program = """
sock = bound()
call = Call(sock.recv, 100).until_it_waits()

def child():
    waiting = Call(sock.recv, 100).until_it_waits()

    def grandchild():
        sock.close()
        mine = bound()
        mine.sendto(b"grandchild", mine.getsockname())
        return mine.recv(100)

    answer = in_child(grandchild)
    sock.close()
    try:
        waiting.result()
    except OSError:
        return answer

print(in_child(child))
sock.sendto(b"x", sock.getsockname())
print(call.result())
sock.close()
"""
    assert run_forking(program) == "b'grandchild'\nb'x'\n"


def test_child_does_not_deliver_the_parents_backlog():
    program = """
from traffic import send_run
sock = bound()
sock.gro = True
send_run(sock, sock.getsockname(), b"onetwosix", 3)
assert sock.recv(100) == b"one" and sock.pending == 2

def child():
    assert sock.pending == 0
    sock.settimeout(0.01)
    try:
        return sock.recv(100)
    except TimeoutError:
        sock.sendto(b"another", sock.getsockname())
        return sock.recv(100)

print(in_child(child))
print(sock.pending, sock.recv(100), sock.recv(100))
"""
    assert run_forking(program) == "b'another'\n2 b'two' b'six'\n"


@pytest.mark.parametrize("inheritable", [True, False])
def test_started_program_inherits_an_inheritable_socket(inet, inheritable):
    program = """
import os, sys
try:
    os.fstat(int(sys.argv[1]))
    print("open")
except OSError:
    print("closed")
"""
    with inet.bound(socket) as sock:
        sock.set_inheritable(inheritable)
        answer = subprocess.run(
            [sys.executable, "-c", program, str(sock.fileno())],
            close_fds=False,
            capture_output=True,
            timeout=DEADLINE,
            check=True,
        ).stdout
    assert answer == (b"open\n" if inheritable else b"closed\n")


def test_started_program_adopts_an_inherited_socket(inet):
    program = """
import sys
from tomada import socket
with socket.socket(fileno=int(sys.argv[1])) as sock:
    data, address = sock.recvfrom(100)
    sock.sendto(data.upper(), address)
"""
    with inet.bound(socket) as sock, inet.bound(socket) as client:
        client.sendto(b"loud", sock.getsockname())
        subprocess.run(
            [sys.executable, "-c", program, str(sock.fileno())],
            pass_fds=[sock.fileno()],
            timeout=DEADLINE,
            check=True,
        )
        assert client.recvfrom(100) == (b"LOUD", sock.getsockname())


def test_child_closes_a_socket_that_a_parents_thread_was_closing():
    program = """
import socket as std
from support import eventually

class Stream(socket.socket):
    pass

# A connection that waits for room in the listener's queue is in flight; close() waits for it.
listener = std.socket(std.AF_UNIX, std.SOCK_STREAM)
listener.bind("")
listener.listen(0)
ahead = std.socket(std.AF_UNIX, std.SOCK_STREAM)
ahead.connect(listener.getsockname())
sock = Stream(std.AF_UNIX, std.SOCK_STREAM)
number = sock.fileno()
connecting = Call(sock.connect, listener.getsockname()).until_it_waits()
closing = Call(sock.close)
eventually(lambda: sock.fileno() == -1)
assert closing.is_alive()

def is_open():
    try:
        os.fstat(number)
    except OSError:
        return False
    return True

def child():
    before = is_open()
    sock.close()
    between = is_open()
    sock.close()
    return b"%d %d %d %d" % (before, between, is_open(), sock.fileno())

print(in_child(child))
assert is_open()  # the parent's own
listener.accept()
connecting.result()
closing.result()
print(is_open())
"""
    assert run_forking(program) == "b'1 0 0 -1'\nFalse\n"


def test_fork_does_not_wait_for_a_lingering_close():
    program = """
import socket as std, struct

class Stream(socket.socket):
    pass

listener = std.create_server(("127.0.0.1", 0))
sock = Stream(std.AF_INET, std.SOCK_STREAM)
sock.connect(listener.getsockname())
peer, _ = listener.accept()
sock.setsockopt(std.SOL_SOCKET, std.SO_LINGER, struct.pack("ii", 1, 3600))
sock.setblocking(False)
try:
    while True:
        sock.send(bytes(1 << 16))
except BlockingIOError:
    pass
sock.setblocking(True)
number = sock.fileno()
closing = Call(sock.close).until_it_waits()
# close(2) releases the number before it waits. Something else has it now.
null = os.open("/dev/null", os.O_RDONLY)
os.dup2(null, number)

def child():
    sock.close()
    return b"%d" % os.fstat(number).st_ino

is_other = lambda: int(in_child(child)) == os.fstat(null).st_ino
print(Call(is_other).result(deadline=30), closing.is_alive())
peer.close()  # this resets the connection
closing.result()
"""
    assert run_forking(program) == "True True\n"


def test_recv_does_not_wait_after_a_child_has_set_o_nonblock():
    program = """
sock = bound()
sock.settimeout(None)
in_child(lambda: sock.setblocking(False) or b"")
try:
    Call(sock.recv, 100).result()
except BlockingIOError:
    print("as the kernel says")
"""
    assert run_forking(program) == "as the kernel says\n"


def test_send_many_coalesces_after_a_child_has_corked_the_socket():
    program = """
receiver, sender = bound(), bound()
sender.connect(receiver.getsockname())
in_child(lambda: sender.setsockopt(socket.IPPROTO_UDP, socket.UDP_CORK, 1) or b"")
sender.send_many([b"a", b"b"])
sender.setsockopt(socket.IPPROTO_UDP, socket.UDP_CORK, 0)
print(receiver.recv(100))
"""
    assert run_forking(program) == "b'ab'\n"


def test_child_collects_from_a_socket_whose_window_its_parent_has_begun():
    program = """
sock = bound()
sock.coalesce = 60
sock.sendto(b"for the child", sock.getsockname())
call = Call(sock.recv_many).until_it_waits()

def child():
    sock.coalesce = 0.001
    return sock.recv_many()[0][0]

print(in_child(child))
sock.sendto(b"for the parent", sock.getsockname())
sock.coalesce = 0
print(call.result()[0][0])
"""
    assert run_forking(program) == "b'for the child'\nb'for the parent'\n"


def test_child_collects_whatever_its_parents_threads_are_doing():
    program = """
import contextlib, signal

sock = bound()
sock.settimeout(0.01)  # the child may take every datagram
sock.coalesce = 1e-6
is_over = False

def receive():
    while not is_over:
        sock.sendto(b"x", sock.getsockname())
        with contextlib.suppress(TimeoutError):
            sock.recv_many()

def child():
    signal.alarm(20)
    with contextlib.suppress(TimeoutError):
        sock.recv_many()
    return b"x"

calls = [Call(receive) for _ in range(4)]
print(b"".join(in_child(child) for _ in range(100)) == b"x" * 100)
is_over = True
for call in calls:
    call.result()
"""
    assert run_forking(program) == "True\n"
