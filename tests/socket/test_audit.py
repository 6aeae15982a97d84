"""Audit events (PEP 578): the same as the standard class raises; a hook can reject each call."""

import json

import pytest

from support import run

pytestmark = pytest.mark.thread_unsafe(reason="audit hooks see every thread")

# A hook stays for the life of its process, so each test has its own process.
HEAD = """
import importlib, json, socket as std, sys
module = importlib.import_module(sys.argv[1])
inet, dgram = std.AF_INET, std.SOCK_DGRAM
"""

# Convert objects to text that is the same in both processes.
RECORD = """
events = []
ports = {}

def hook(event, args):
    if event.startswith("socket."):
        events.append([event, [describe(item) for item in args]])

def describe(item):
    if isinstance(item, module.socket):
        return "a socket"
    if isinstance(item, tuple):
        return [ports.get(part, part) for part in item]
    return item if item is None or isinstance(item, (int, str)) else repr(item)

def attempt(call, *args):
    try:
        return call(*args)
    except Exception as error:
        events.append(type(error).__name__)

sys.addaudithook(hook)
"""

CALLS = """
peer = std.socket(inet, dgram)
peer.bind(("127.0.0.1", 0))
here = peer.getsockname()
ports[here[1]] = "the peer's port"
events.clear()

sock = module.socket(inet, dgram)
sock.bind(("127.0.0.1", 0))
ports[sock.getsockname()[1]] = "the socket's port"
attempt(sock.bind, ("127.0.0.1", 0))
attempt(sock.bind, ("127.0.0.1", 99999))
attempt(sock.bind, "nonsense")
sock.connect(here)
sock.connect_ex(here)
attempt(sock.connect, None)
attempt(sock.connect_ex, ("127.0.0.1",))
attempt(sock.connect, ("255.255.255.255", 9))
sock.send(b"x")
sock.sendall(b"x")
sock.sendto(b"x", here)
sock.sendto(b"x", 0, here)
attempt(sock.sendto, b"x", None)
attempt(sock.sendto, "text", here)
attempt(sock.sendto, b"x" * 70000, here)
sock.sendmsg([b"x"])
sock.sendmsg([b"x"], [], 0, None)
sock.sendmsg([b"x"], [], 0, here)
attempt(sock.sendmsg, None)
attempt(sock.sendmsg, [b"x"], None)
attempt(sock.sendmsg, [b"x"], [], 0, "nonsense")
peer.recv(10)
peer.connect(sock.getsockname())
peer.send(b"back")
sock.recv(10)
sock.getsockname(), sock.getpeername(), sock.getsockopt(1, 3), sock.setsockopt(1, 6, 1)
sock.settimeout(3)
sock.setblocking(True)
twin = sock.dup()
fd = twin.detach()
adopted = module.socket(fileno=fd)
again = module.fromfd(adopted.fileno(), inet, dgram, 17)
given = module.socket(inet, dgram, 17, adopted.detach())
attempt(module.socket, inet, dgram, std.IPPROTO_TCP)
attempt(module.socket, inet, dgram, 0, 1000000)
attempt(sock.shutdown, 2)
for item in (sock, adopted, again, given, peer):
    item.close()
attempt(sock.bind, here)
attempt(sock.sendto, b"x", here)

unix = module.socket(std.AF_UNIX, dgram)
unix.bind("")
attempt(unix.sendto, b"x", "/no/such/path")
attempt(unix.sendto, b"x", b"\\0no such name")
attempt(unix.connect, 5)
unix.close()

print(json.dumps(events))
"""


def events(module, program):
    return json.loads(run(HEAD + RECORD + program, module))


def test_audit_events_are_the_standard_classs():
    ours, theirs = events("tomada.socket", CALLS), events("socket", CALLS)
    assert len(theirs) > 30
    assert ours == theirs


def test_audit_events_of_socketpair_are_the_standard_modules():
    program = """
for sock in module.socketpair(std.AF_UNIX, dgram):
    sock.close()
print(json.dumps(events))
"""
    ours, theirs = events("tomada.socket", program), events("socket", program)
    assert len(theirs) > 1
    assert ours == theirs


EVENTS = {
    "socket.__new__": "module.socket(inet, dgram)",
    "socket.bind": "sock.bind(('127.0.0.1', 0))",
    "socket.connect": "sock.connect(there)",
    "socket.connect of connect_ex": "sock.connect_ex(there)",
    "socket.sendto": "sock.sendto(b'x', there)",
    "socket.sendmsg": "sock.sendmsg([b'x'], [], 0, there)",
}

REFUSE = """
import os, gc
peer = std.socket(inet, dgram)
peer.bind(("127.0.0.1", 0))
there = peer.getsockname()
sock = module.socket(inet, dgram)
before = sock.getsockname()
descriptors = os.listdir("/proc/self/fd")

class Refused(Exception):
    pass

def hook(event, args):
    if event == sys.argv[2]:
        raise Refused("by the hook")

sys.addaudithook(hook)
try:
    {call}
except Refused as error:
    print(error)
gc.collect()
assert sock.getsockname() == before
assert os.listdir("/proc/self/fd") == descriptors
try:
    sock.getpeername()
except OSError:
    print("unconnected")
try:
    print(peer.recv(10, std.MSG_DONTWAIT))
except BlockingIOError:
    print("nothing sent")
sock.close()
peer.close()
"""


@pytest.mark.parametrize("name", EVENTS)
def test_audit_hook_that_raises_prevents_the_call(name):
    program = HEAD + REFUSE.replace("{call}", EVENTS[name])
    expected = "by the hook\nunconnected\nnothing sent\n"
    assert run(program, "socket", name.split()[0]) == expected
    assert run(program, "tomada.socket", name.split()[0]) == expected


TRANSPORT = """
import asyncio, importlib
loops = {"tomada.socket": "tomada.asyncio", "socket": "asyncio"}
run = importlib.import_module(loops[sys.argv[1]]).run

async def main():
    loop = asyncio.get_running_loop()
    here = ("127.0.0.1", 0)
    first, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, here)
    there = first.get_extra_info("sockname")
    second, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, here, there)
    ports[there[1]] = "its port"
    events.clear()
    first.sendto(b"x", there)
    first.sendto(b"x", there)
    second.sendto(b"x")
    second.sendto(b"x", there)
    print(json.dumps(events))
    first.close()
    second.close()

run(main())
"""


def test_audit_events_of_a_transport_are_the_standard_ones():
    ours, theirs = events("tomada.socket", TRANSPORT), events("socket", TRANSPORT)
    assert len(theirs) > 1
    assert ours == theirs


def test_audit_hook_gets_the_socket_object_and_the_given_address():
    program = """
seen = []
sys.addaudithook(lambda event, args: seen.append(args) if event.startswith("socket.") else None)
sock = module.socket(inet, dgram)
address = ("127.0.0.1", 0)
sock.bind(address)
assert len(seen) == 2
assert seen[0][0] is sock
assert seen[1][0] is sock
assert seen[1][1] is address
seen.clear()
sock.close()
print("yes")
"""
    assert run(HEAD + program, "tomada.socket") == "yes\n"
