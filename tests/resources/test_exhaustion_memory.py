"""No memory (``RLIMIT_AS``): a ``MemoryError`` names its cause, and the process continues."""

import pytest

from support import FREE, run

limits_hold = pytest.mark.skipif(
    FREE, reason="the interpreter's allocator has reserved more than these tests would take"
)

# Separate processes make each attempt with increasing limits: enough for none, some, or all of the
# memory that it needs.
START = """
import os, resource, socket as std, sys, warnings
import tomada, tomada.asyncio
from tomada import socket

warnings.simplefilter("ignore")
UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
ROOMS = [0, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 21, 1 << 22, 1 << 23, 1 << 24, 1 << 26]

def used():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()

def limit(room):
    resource.setrlimit(resource.RLIMIT_AS, (used() + room, resource.RLIM_INFINITY))

def unlimit():
    resource.setrlimit(resource.RLIMIT_AS, UNLIMITED)

def bound():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(30)
    sock.bind(("127.0.0.1", 0))
    return sock

def outcome(attempt, room):
    limit(room)
    try:
        attempt()
    except MemoryError as error:
        unlimit()
        return str(error)
    unlimit()
    return "done"

def sweep(attempt, again=lambda: None, before=lambda: None):
    for room in ROOMS:
        before()
        if os.fork() == 0:
            said = outcome(attempt, room)
            again()
            print(said, flush=True)
            os._exit(0)
        _, status = os.wait()
        assert status == 0, (room, status)  # Rust aborts with SIGABRT when it is out of memory

receiver, sender = bound(), bound()
to = receiver.getsockname()
"""

ATTEMPTS = {
    "a batch": """
sweep(lambda: tomada.Batch(4096, slot_size=64), lambda: tomada.Batch(4096, slot_size=64))
""",
    "appending to a batch": """
batch = tomada.Batch(4096, slot_size=64)
peers = [("127.0.0.1", number) for number in range(65_536)]

def append():
    for peer in peers:
        batch.append(b"x", peer)

def again():
    count = len(batch)
    batch.append(b"more", to)
    assert (len(batch), bytes(batch[-1])) == (count + 1, b"more")

sweep(append, again)
""",
    "sending a batch": """
batch = tomada.Batch(4096, slot_size=64)
batch.extend(bytes(100_000), 1)

def again():
    assert sender.send_batch(batch, to) == 100_000

sweep(lambda: sender.send_batch(batch, to), again)
""",
    "sending many": """
many = [(b"x", ("127.0.0.%d" % (1 + number % 2), to[1])) for number in range(4096)]

def again():
    assert sender.send_many(many) == len(many)

sweep(lambda: sender.send_many(many), again)
""",
    "sending from many buffers": """
buffers = [b""] * 200_000

def send():
    try:
        sender.sendmsg(buffers, [], 0, to)
    except OSError:  # more than the kernel accepts
        pass

sweep(send, lambda: sender.sendmsg([b"x"], [], 0, to))
""",
    "control messages": """
control = [(socket.IPPROTO_IP, 1, bytes(2_000_000))]

def send():
    try:
        sender.sendmsg([b"x"], control, 0, to)
    except OSError:  # more than the kernel accepts
        pass

sweep(send, lambda: sender.sendmsg([b"x"], [], 0, to))
""",
    "receiving many": """
def again():
    sender.sendto(b"more", to)
    while (b"more", sender.getsockname()) not in receiver.recv_many():
        pass

sweep(receiver.recv_many, again, lambda: sender.sendto(b"x", to))
""",
    "a guard": """
sweep(lambda: tomada.Guard(rate=1, burst=1, sources=1 << 16), lambda: tomada.Guard(rate=1, burst=1))
""",
    "a guard's networks": """
networks = ["10.%d.%d.0/24" % (number >> 8, number & 255) for number in range(0, 65_536, 2)]
sweep(lambda: tomada.Guard(deny=networks), lambda: tomada.Guard(deny=networks))
""",
    "a transport": """
import asyncio

async def main():
    loop = asyncio.get_running_loop()

    def make():
        tomada.asyncio.DatagramTransport(loop, bound(), asyncio.DatagramProtocol()).abort()

    sweep(make, make)

tomada.asyncio.run(main())
""",
    "a transport's queue": """
import asyncio

async def main():
    loop = asyncio.get_running_loop()
    folder = sys.argv[1]
    deaf = std.socket(std.AF_UNIX, std.SOCK_DGRAM)
    deaf.bind(f"{folder}/deaf")
    transport, _ = await tomada.asyncio.create_datagram_endpoint(
        loop, asyncio.DatagramProtocol, f"{folder}/own", family=socket.AF_UNIX
    )

    def fill():
        for _ in range(50_000):
            transport.sendto(b"x", f"{folder}/deaf")

    def again():
        # The accepted datagrams are still there, and more are accepted.
        before = transport.get_write_buffer_size()
        assert before > 0
        transport.sendto(b"x", f"{folder}/deaf")
        assert transport.get_write_buffer_size() == before + 1

    sweep(fill, again)
    transport.abort()

tomada.asyncio.run(main())
""",
}


@pytest.mark.parametrize("attempt", ATTEMPTS.values(), ids=ATTEMPTS)
def test_allocation_failures_raise_memory_error(attempt, tmp_path):
    outcomes = run(START + attempt, tmp_path).splitlines()
    # The lowest limit is too low, and the highest is sufficient.
    assert outcomes[0].startswith("not enough memory for ")
    assert outcomes[-1] == "done"
    # If the interpreter itself is out of memory, its error has no message.
    assert {text for text in outcomes if not text.startswith("not enough memory")} <= {"", "done"}


@limits_hold
@pytest.mark.parametrize("room", [0, 1 << 16, 1 << 18])
def test_datagrams_that_cannot_be_returned_stay_in_the_backlog_or_are_counted(room):
    program = """
COUNT, room = 20_000, int(sys.argv[1])
receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 25)
receiver.setblocking(False)
sender.sendto(b"", to)
receiver.recv_many()  # allocates this thread's receive buffers
for _ in range(COUNT // 1000):
    sender.send_many([bytes(100)] * 1000, to)
overflown = receiver.stats().kernel_drops
came = COUNT - overflown

counts = []
limit(room)
try:
    counts.append(len(receiver.recv_many(COUNT)))
except MemoryError:
    counts.append(0)
unlimit()
print(counts[0] < came)
try:
    while True:
        counts.append(len(receiver.recv_many(COUNT)))
except BlockingIOError:
    pass
stats = receiver.stats()
assert stats.received == 1 + sum(counts), (stats, counts)
assert stats.received + stats.kernel_drops == 1 + COUNT, (stats, counts)
"""
    assert run(START + program, room) == "True\n"


@limits_hold
def test_datagrams_that_cannot_be_stored_are_counted():
    program = """
receiver.gro = True

def glued():
    # A run is one message; the receive below takes only its first datagram.
    sender.send_many([bytes(1000)] * 60, to)

glued()
receiver.recv_many(1)
receiver.recv_many()
hold, size = [], 1 << 20
glued()
limit(0)
while size >= 1024:
    try:
        hold.append(bytearray(size))
    except MemoryError:
        size //= 2
try:
    taken = len(receiver.recv_many(1))
except MemoryError:
    taken = 0
hold = None
unlimit()
taken += receiver.pending
stats = receiver.stats()
print(stats.kernel_drops)
assert stats.received == 60 + taken, stats
assert stats.received + stats.kernel_drops == 120, stats
sender.sendto(b"after", to)
while receiver.recv(2000) != b"after":
    pass
"""
    assert int(run(START + program)) > 0


@limits_hold
@pytest.mark.parametrize("takes", ["data", "datagram", "batch"])
def test_server_continues_when_memory_is_available_again(takes, monkeypatch):
    # Otherwise the threads allocate 64 MiB each in advance.
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    program = """
import logging, threading, time
takes, PAYLOAD, COUNT = sys.argv[1], bytes(50_000), 200
logging.basicConfig(level=logging.ERROR)
kept, is_keeping = [], True

def handle(data, _=None):
    if is_keeping:
        kept.append(data)
    if takes == "batch":
        return [payload for payload, _ in data]
    return data.data if takes == "datagram" else data

with (
    tomada.Server(("127.0.0.1", 0), handle, takes=takes, rcvbuf=1 << 25) as server,
    std.socket(std.AF_INET, std.SOCK_DGRAM) as client,
):
    client.settimeout(30)
    client.connect(server.address)
    client.send(b"before")
    assert client.recv(10) == b"before"
    limit(0)
    sent = 0
    while sent < COUNT:
        try:
            client.send(PAYLOAD)
        except MemoryError:
            continue
        sent += 1

    def done():
        stats = server.stats()
        return stats.received + stats.kernel_drops == 1 + sent

    while True:
        try:
            if done():
                break
        except MemoryError:
            pass
    is_keeping = False
    kept.clear()
    unlimit()
    client.setblocking(False)
    try:
        while client.recv(60_000):
            pass
    except BlockingIOError:
        pass
    client.settimeout(30)
    client.send(b"after")
    while client.recv(60_000) != b"after":
        pass
stats = server.stats()
print(stats.handler_errors > 0, stats.kernel_drops)
print(stats.sent + stats.handler_errors + stats.send_errors - stats.received)
"""
    lines = run(START + program, takes).splitlines()
    assert lines[0].startswith("True ")
    if takes != "batch":
        assert lines[1] == "0"


@pytest.mark.parametrize("workers", [1, 2])
def test_server_without_memory_to_receive_does_not_start(workers, monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    program = """
import threading

threading.stack_size(1 << 16)
std.getaddrinfo("127.0.0.1", 0)  # this imports a module
server = tomada.Server(("127.0.0.1", 0), lambda data, _: data, workers=int(sys.argv[1]))
print(outcome(server.start, 1 << 20))
server.stop()
with tomada.Server(("127.0.0.1", 0), lambda data, _: data) as server:
    sender.sendto(b"x", server.address)
    print(sender.recv(10))
"""
    lines = run(START + program, workers).splitlines()
    assert lines[0].startswith("not enough memory for ")
    assert lines[1] == "b'x'"
