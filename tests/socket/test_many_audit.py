"""Audit events of send_many, send_batch and reply: a hook sees, and can reject, every address."""

import pytest

from support import run

pytestmark = pytest.mark.thread_unsafe(reason="audit hooks see every thread")

HEAD = """
import sys
import socket as std
import tomada
from tomada import socket

def bound(module):
    sock = module.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.settimeout(30)
    return sock

first, second, sender = bound(std), bound(std), bound(socket)
near, far = first.getsockname(), second.getsockname()
sender.connect(near)
seen = []
refused = set()

class Refused(Exception):
    pass

def hook(event, args):
    if event.startswith("socket.send"):
        seen.append((event, args[0] is sender, args[1]))
        if args[1] in refused:
            raise Refused

sys.addaudithook(hook)

def drained(sock):
    sock.setblocking(False)
    data = []
    try:
        while True:
            data.append(sock.recv(100))
    except BlockingIOError:
        return data
"""


def test_every_address_raises_an_event_of_sendto():
    program = """
sender.send_many([b"to the peer"])
assert seen == []
sender.send_many([b"a", b"b"], far)
assert seen == [("socket.sendto", True, far)], seen
seen.clear()
sender.send_many([(b"a", near), (b"b", far), (b"c", near)])
assert seen == [("socket.sendto", True, to) for to in (near, far, near)], seen
seen.clear()
# Repeating the same object raises only one event.
sender.send_many([(b"a", far)] * 5)
assert set(seen) == {("socket.sendto", True, far)}
"""
    assert run(HEAD + program) == ""


@pytest.mark.parametrize(
    ("call", "left"),
    [
        ("sender.send_many([b'a', b'b'], far)", ([], [])),
        ("sender.send_many([(b'a', near), (b'b', far), (b'c', near)])", ([b"a"], [])),
        ("sender.send_many([(b'a', far), (b'b', near)], errors='continue')", ([], [])),
        ("sender.send_batch(batch, far)", ([], [])),
        ("sender.send_batch(batch)", ([], [])),
    ],
    ids=["one address", "pairs", "continuing", "a batch", "a batch's own addresses"],
)
def test_hook_that_rejects_an_address_prevents_its_datagrams(call, left):
    program = """
batch = tomada.Batch()
batch.append(b"a", far)
refused.add(far)
try:
    {call}
except Refused:
    print("refused")
print((drained(first), drained(second)))
"""
    assert run(HEAD + program.format(call=call)) == f"refused\n{left}\n"


def test_hook_can_reject_a_reply():
    program = """
first.sendto(b"question", sender.getsockname())
asked = sender.recv_datagram()
refused.add(near)
try:
    asked.reply(b"answer")
except Refused:
    print("refused")
print(drained(first))
"""
    assert run(HEAD + program) == "refused\n[]\n"
