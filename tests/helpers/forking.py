"""Programs that fork, each in its own process, because pytest must not fork."""

from support import HELPERS, run

HEAD = """
import os, sys, threading
sys.path.insert(0, sys.argv[1])
from support import Call
from tomada import socket

def bound():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.settimeout(10)
    return sock

def in_child(function):
    # The result arrives through a pipe; the exit status reports an exception.
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.write(writer, function())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as answer:
        text = answer.read()
    assert os.waitpid(pid, 0)[1] == 0, "the child failed"
    return text
"""


def run_forking(program):
    return run(HEAD + program, str(HELPERS))
