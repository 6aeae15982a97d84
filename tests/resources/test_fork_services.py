"""Servers, guards and batches across ``fork``; none of them across ``exec``."""

from forking import run_forking


def test_child_that_stops_its_parents_server_stops_nothing():
    program = """
import tomada
server = tomada.Server(("127.0.0.1", 0), lambda data, peer: data.upper())
with server, tomada.Client(server.address, timeout=10) as client:
    def child():
        server.stop()
        return b"stopped"

    print(in_child(child), client.request(b"heard"))
"""
    assert run_forking(program) == "b'stopped' b'HEARD'\n"


def test_child_may_use_a_batch_that_a_parents_thread_receives_into():
    program = """
import tomada
sock = bound()
batch = tomada.Batch(4)
batch.append(b"before")
call = Call(sock.recv_batch, batch).until_it_waits()

def child():
    assert (len(batch), list(batch), batch.addresses, batch.truncated) == (0, [], [], [])
    batch.append(b"appended")
    assert [bytes(data) for data, _ in batch] == [b"appended"]
    with bound() as other:
        for round in range(3):
            sent = other.send_many([b"%d" % round] * 6, other.getsockname())
            assert other.recv_batch(batch) == 4
            assert [bytes(data) for data, _ in batch] == [b"%d" % round] * 4
            assert set(batch.addresses) == {other.getsockname()}
            assert len(other.recv_many()) == 2
    return b"used"

print(in_child(child).decode())
sock.sendto(b"x", sock.getsockname())
print(call.result(), [bytes(data) for data, _ in batch])
"""
    assert run_forking(program) == "used\n1 [b'x']\n"


def test_child_has_the_contents_of_its_parents_batch():
    program = """
import tomada
batch = tomada.Batch(4)
batch.append(b"before", ("127.0.0.1", 9))
print(in_child(lambda: bytes(batch[0]) + repr(batch.addresses).encode()).decode())
"""
    assert run_forking(program) == "before[('127.0.0.1', 9)]\n"


def test_recv_batch_continues_in_a_child_that_a_signal_handler_forked():
    program = """
import signal, tomada
from support import interrupt
sock = bound()
batch = tomada.Batch(4)
parent, children = os.getpid(), []

def fork(*_):
    pid = os.fork()
    if pid:
        children.append(os.waitpid(pid, 0)[1])
    try:
        batch.clear()
    except RuntimeError:
        os.write(1, b"in use\\n")
    sock.sendto(b"x", sock.getsockname())

signal.signal(signal.SIGUSR1, fork)
Call(interrupt)
assert (sock.recv_batch(batch), bytes(batch[0])) == (1, b"x")
batch.clear()
if os.getpid() != parent:
    os._exit(0)
assert children == [0]
"""
    assert run_forking(program) == "in use\nin use\n"


def test_guard_in_a_child_remembers_the_sources_of_its_parent():
    program = """
import tomada
guard = tomada.Guard(rate=1e-6, burst=2)

def passing(count):
    with bound() as sock:
        sock.guard = guard
        sock.send_many([b"x"] * count, sock.getsockname())
        sock.setblocking(False)
        try:
            return len(sock.recv_many(count))
        except BlockingIOError:
            return 0

print(passing(1), in_child(lambda: b"%d" % passing(2)), passing(2))
"""
    assert run_forking(program) == "1 b'1' 1\n"


def test_started_program_inherits_no_descriptor():
    program = """
import asyncio, subprocess
import tomada
from tomada.asyncio import EventLoop

# Reading the folder takes a descriptor itself.
LIST = [sys.executable, "-c", "import os; print(*os.listdir('/proc/self/fd'))"]

def inherited():
    return subprocess.check_output(LIST, close_fds=False)

async def endpoints():
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0))
    transport.sendto(b"x", transport.get_extra_info("sockname"))
    async with tomada.asyncio.open_endpoint(("127.0.0.1", 0)):
        listing = inherited()
    transport.close()
    return listing

def reply(data, peer):
    return inherited()

before = inherited()
sock = bound()
call = Call(sock.recv_many, 10).until_it_waits()
with asyncio.Runner(loop_factory=EventLoop) as runner:
    print(runner.run(endpoints()) == before)
for options in {}, {"workers": 2}:
    with (
        tomada.Server(("127.0.0.1", 0), reply, **options) as server,
        tomada.Client(server.address, timeout=10) as client,
    ):
        print(client.request(b"?") == before, inherited() == before)
sock.sendto(b"x", sock.getsockname())
call.result()
"""
    assert run_forking(program) == "True\nTrue True\nTrue True\n"
