"""dnsdist in front of servers: it prefixes each datagram with a PROXY header."""

import re
import struct
import subprocess

import pytest

import skips
import tomada
import tools
from balanced import BACK, CLIENT, FRONT, PORT, SERVER
from examples import EXAMPLES, end
from support import DEADLINE, Child, eventually

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

UPSTREAM = 5301


def answer(query, address):
    """Answer a DNS query: a TXT record with the client's address."""
    text = "{} {}".format(*address).encode()
    end = query.index(b"\0", 12) + 5
    record = struct.pack("!HHHIHB", 0xC00C, 16, 1, 0, len(text) + 1, len(text)) + text
    flags = b"\x84\0\0\1\0\1\0\0\0\0"
    return query[:2] + flags + query[12:end] + record


@pytest.fixture
def dnsdist(machines, tmp_path):
    skips.program("dnsdist")
    skips.program("dig")
    configuration = tmp_path / "dnsdist.conf"
    configuration.write_text(
        f'setLocal("{FRONT}:53")\n'
        'setACL("0.0.0.0/0")\n'
        "setMaxUDPOutstanding(1000)\n"
        f'newServer{{address="{SERVER}:{PORT}", useProxyProtocol=true, sockets=4, '
        "checkInterval=1, rise=1}\n"
    )

    def start(more=""):
        configuration.write_text(configuration.read_text() + more)
        return machines.program("dnsdist", "--supervised", "--disable-syslog", "-C", configuration)

    return start


def dig(machines):
    """Ask the balancer, and return the text that the server has answered."""
    options = ("+short", "+tries=1", "+time=2", "+noedns")
    command = [tools.find("dig"), f"@{FRONT}", "who.example", "TXT", *options]
    done = machines.client.run(
        lambda: subprocess.run(command, capture_output=True, text=True, check=False)
    )
    return done.stdout.strip().strip('"') if done.returncode == 0 else ""


def test_dnsdist_tells_the_client_and_passes_the_answers_on(machines, dnsdist):
    seen = []

    def handle(query, address):
        seen.append(address)
        return answer(query, address)

    serving = machines.serve(handle, proxy=[BACK])
    dnsdist()
    # Until it is up, and has found the server healthy with a query of its own.
    eventually(lambda: dig(machines))
    assert {address[0] for address in seen} <= {BACK, CLIENT}
    for _ in range(10):
        host, port = eventually(lambda: dig(machines)).split()
        assert host == CLIENT
        assert (host, int(port)) in seen
    stats = serving.stats()
    assert (stats.proxy_malformed, stats.proxy_untrusted, stats.handler_errors) == (0, 0, 0)


def test_dnsdist_that_is_not_trusted_is_refused_and_counted(machines, dnsdist):
    serving = machines.serve(answer, proxy=["10.99.0.0/16"])
    dnsdist()
    eventually(lambda: serving.stats().proxy_untrusted)
    assert dig(machines) == ""
    assert serving.stats().received == 0


@pytest.mark.parametrize("source", [("203.0.113.7", 4242), ("2001:db8::7", 4242)])
def test_dnsdist_reads_the_headers_that_a_client_sends(machines, dnsdist, source):
    serving = machines.serve(answer, proxy=[BACK])
    dnsdist(f'setProxyProtocolACL("{CLIENT}/32")\n')
    eventually(lambda: serving.stats().received)
    query = struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + b"\3who\0\0\x10\0\1"

    def ask():
        match = lambda sent, reply: sent[:2] == reply[:2]  # noqa: E731
        options = {"match": match, "proxy_from": source}
        with tomada.Client((FRONT, 53), DEADLINE, 60, **options) as client:
            return client.request(query)

    reply = machines.client.run(ask)
    assert "{} {}".format(*source).encode() in reply


@pytest.mark.usefixtures("interruptible")
def test_dns_forwarder_example_knows_the_clients_behind_dnsdist(machines, dnsdist):
    machines.serve(answer, UPSTREAM)
    where = ("--listen", f"{SERVER}:{PORT}", "--upstream", f"{SERVER}:{UPSTREAM}")
    command = (EXAMPLES / "dns_forwarder.py", *where, "--proxy", BACK)
    with machines.server.run(Child, *command) as forwarder:
        assert forwarder.line() == f"listening on {SERVER}:{PORT}"
        dnsdist()
        for _ in range(10):
            # The upstream's client is the forwarder.
            assert eventually(lambda: dig(machines)).startswith(f"{SERVER} ")
        queries = dict(re.findall(r"(\d+) queries from (\S+)", end(forwarder)))
    clients = {client: int(count) for count, client in queries.items()}
    assert clients.keys() == {BACK, CLIENT}, "dnsdist itself checks whether the server is healthy"
    assert clients[CLIENT] >= 10
