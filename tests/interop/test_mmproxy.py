"""go-mmproxy reads the PROXY headers that a client sends."""

import contextlib
import signal
import subprocess

import pytest

import skips
import tomada
from support import DEADLINE

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

LISTEN, TARGET = 5300, 5301


@pytest.fixture
def machine(network, tmp_path):
    """Make a machine with go-mmproxy, whose replies to any address stay on it."""
    program = skips.program("go-mmproxy")
    machine = network.namespace()
    machine.command("ip", "rule", "add", "iif", "lo", "lookup", "123")
    machine.command("ip", "route", "add", "local", "default", "dev", "lo", "table", "123")
    log = (tmp_path / "log").open("wb")
    process = machine.run(
        lambda: subprocess.Popen(
            [
                *(program, "-p", "udp", "-v", "2", "-l", f"127.0.0.1:{LISTEN}"),
                *("-4", f"127.0.0.1:{TARGET}"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    )
    with log, contextlib.ExitStack() as stack:
        stack.callback(process.wait, DEADLINE)
        stack.callback(process.send_signal, signal.SIGTERM)
        yield machine


def test_mmproxy_reads_the_headers_that_a_client_sends(machine):
    source = "203.0.113.7", 4242

    def handle(data, address):
        return f"{address[0]} {address[1]} {data.decode()}".encode()

    def ask():
        options = {"match": lambda sent, reply: sent in reply, "proxy_from": source}
        with tomada.Client(("127.0.0.1", LISTEN), DEADLINE, 60, **options) as client:
            return client.request_many([b"one", b"two"])

    serving = tomada.Server(("127.0.0.1", TARGET), handle)
    machine.run(serving.start)
    try:
        replies = machine.run(ask)
    finally:
        serving.stop()
    assert replies == [f"{source[0]} {source[1]} {word}".encode() for word in ("one", "two")]
