"""Load balancers in front of servers: dnsdist with PROXY headers, nginx, and nftables.

Each machine is a network namespace: a client at 10.78.1.2, a balancer at 10.78.1.1 and 10.78.2.1,
and a server at 10.78.2.2, whose network the client cannot reach.
"""

import contextlib
import itertools
import json
import operator
import os
import re
import select
import signal
import socket as std
import struct
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

import skips
import tomada
import tools
from command import Serving
from support import DEADLINE, Call, eventually

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

CLIENT, FRONT, BACK, SERVER = "10.78.1.2", "10.78.1.1", "10.78.2.1", "10.78.2.2"
PORT = 5300
BACKENDS = [5301, 5302, 5303]


@dataclass
class Machines:
    client: object
    balancer: object
    server: object
    stack: contextlib.ExitStack

    def program(self, *command):
        """Run a program on the balancer until the test ends."""
        path = tools.find(command[0])
        process = self.balancer.run(
            lambda: subprocess.Popen(
                [path, *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
        self.stack.callback(process.wait, DEADLINE)
        self.stack.callback(process.send_signal, signal.SIGTERM)
        return process

    def serve(self, handler, port=PORT, **options):
        """Serve on the server's machine until the test ends."""
        serving = tomada.Server((SERVER, port), handler, **options)
        self.server.run(serving.start)
        self.stack.callback(serving.stop)
        return serving


@pytest.fixture
def machines(network):
    client, balancer, server = (network.namespace() for _ in range(3))
    client.join("front", balancer, "front", [f"{CLIENT}/24"], [f"{FRONT}/24"])
    balancer.join("back", server, "back", [f"{BACK}/24"], [f"{SERVER}/24"])
    server.command("ip", "route", "add", "default", "via", BACK)
    with contextlib.ExitStack() as stack:
        yield Machines(client, balancer, server, stack)


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


@pytest.fixture
def nginx(machines, tmp_path):
    return start_nginx(machines, tmp_path)


@pytest.fixture
def transparent_nginx(machines, tmp_path):
    """Start an nginx that sends from the clients' addresses, and gets the replies to them."""
    machines.balancer.set("ipv4/ip_forward", 1)
    machines.balancer.command("ip", "rule", "add", "iif", "back", "lookup", "100")
    local = ("local", "default", "dev", "lo", "table", "100")
    machines.balancer.command("ip", "route", "add", *local)
    return start_nginx(machines, tmp_path, "proxy_bind $remote_addr transparent;")


def start_nginx(machines, tmp_path, options=""):
    skips.program("nginx")
    module = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
    load = f"load_module {module};\n" if module.exists() else ""
    servers = "".join(f"server {SERVER}:{port} fail_timeout=1s;" for port in BACKENDS)
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(
        f"{load}daemon off; master_process off; user root; pid {tmp_path}/pid;\n"
        f"error_log {tmp_path}/log;\n"
        "events {}\n"
        f"stream {{ upstream backends {{ {servers} }}\n"
        f"server {{ listen {FRONT}:{PORT} udp; proxy_pass backends; proxy_responses 1; "
        f"proxy_timeout 1s; {options} }} }}\n"
    )
    return machines.program("nginx", "-p", tmp_path, "-c", configuration)


@pytest.fixture
def nftables(machines):
    skips.program("nft")
    backends = ", ".join(f"{number} : {SERVER} . {port}" for number, port in enumerate(BACKENDS))
    choice = f"numgen inc mod {len(BACKENDS)} map {{ {backends} }}"
    rules = f"""
table ip balancer {{
    chain before {{
        type nat hook prerouting priority dstnat;
        ip daddr {FRONT} udp dport {PORT} dnat ip to {choice}
    }}
}}
"""
    machines.balancer.set("ipv4/ip_forward", 1)
    machines.balancer.command("nft", rules)


@pytest.mark.parametrize("balancer", ["nginx", "transparent_nginx", "nftables"])
def test_backend_is_drained_and_replaced_under_load(machines, balancer, request):
    request.getfixturevalue(balancer)
    hosts, answered, over = set(), [], threading.Event()

    def handle(data, address):
        hosts.add(address[0])
        return data

    def ask(number):
        # Where a backend refuses a datagram, nginx sends an empty one to the client.
        with tomada.Client((FRONT, PORT), DEADLINE, 60, match=operator.eq) as client:
            for index in itertools.count():
                data = b"%d of %d" % (index, number)
                assert client.request(data) == data
                answered.append(data)
                if over.is_set():
                    return

    def progress():
        before = len(answered)
        eventually(lambda: len(answered) >= before + 50)

    backends = [machines.serve(handle, port) for port in BACKENDS]
    clients = [Call(machines.client.run, ask, number) for number in range(4)]
    progress()
    for index, drained in enumerate(backends):
        machines.server.run(drained.stop)
        stats = drained.stats()
        assert stats.received == stats.sent, "what it has accepted, it has answered"
        progress()
        backends[index] = machines.serve(handle, BACKENDS[index])
        progress()
    over.set()
    for client in clients:
        client.result()
    # nginx hides the client, which a translation of the destination does not.
    assert hosts == ({BACK} if balancer == "nginx" else {CLIENT})


# Works long enough that a backend always has some, and keeps a note of it in a file: how many
# datagrams it has accepted, and how many of them were answered.
APP = """
import mmap, time

def made():
    with open("notes", "r+b") as file:
        notes = memoryview(mmap.mmap(file.fileno(), 16)).cast("Q")

    def handle(batch):
        notes[1] = notes[0]
        notes[0] += len(batch)
        time.sleep(0.0005 * len(batch))
        return [data for data, _ in batch]

    return handle
"""
SCALE = Path(__file__).parents[2] / "docs/how-to/scale.md"


class Backend:
    """A backend in a process of its own, which can be killed."""

    def __init__(self, machines, folder, port):
        self._notes = folder / "notes"
        self._notes.write_bytes(bytes(16))
        (folder / "service.py").write_text(APP)
        app = ("--app", "service:made", "--factory", "--takes", "batch")
        arguments = (f"{SERVER}:{port}", *app, "--json")
        self._child = machines.server.run(lambda: Serving(*arguments, cwd=folder))
        machines.stack.enter_context(self._child)

    def drain(self):
        """Stop it; return how many datagrams it had accepted, and how many it has answered."""
        self._child.signal(signal.SIGTERM)
        found = json.loads(self._child.end()[1])
        return found["received"], found["sent"]

    def kill(self):
        """Kill it, and return the same. It may have received more than its handler knew."""
        self._child.signal(signal.SIGKILL)
        self._child.end()
        return struct.unpack("=QQ", self._notes.read_bytes())


class Asking(threading.Thread):
    """Peers with many requests under way, each of them sent once."""

    PEERS, AT_ONCE, PATIENCE = 8, 8, 2.0

    def __init__(self):
        super().__init__(daemon=True)
        self.answered = self._sent = 0
        self._over = threading.Event()

    def run(self):
        with contextlib.ExitStack() as stack:
            peers = [
                stack.enter_context(std.socket(std.AF_INET, std.SOCK_DGRAM))
                for _ in range(self.PEERS)
            ]
            for peer in peers:
                peer.connect((FRONT, PORT))
                peer.setblocking(False)
            waiting = [{} for _ in peers]  # when each request was sent
            while any(waiting) or not self._over.is_set():
                select.select(peers, [], [], 0.01)
                for peer, mine in zip(peers, waiting, strict=True):
                    self._receive(peer, mine)
                    self._forget(mine)
                    while len(mine) < self.AT_ONCE and not self._over.is_set():
                        self._send(peer, mine)

    def _receive(self, peer, mine):
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            while True:  # nginx sends an empty datagram where a backend refuses one
                self.answered += mine.pop(peer.recv(100), None) is not None

    def _forget(self, mine):
        now = time.monotonic()
        for request in [one for one, at in mine.items() if at + self.PATIENCE < now]:
            del mine[request]

    def _send(self, peer, mine):
        self._sent += 1
        request = b"%d" % self._sent
        mine[request] = time.monotonic()
        with contextlib.suppress(ConnectionRefusedError):
            peer.send(request)

    def stop(self):
        self._over.set()
        self.join(2 * DEADLINE)
        assert not self.is_alive(), "the peers hang"


@pytest.mark.parametrize("end", ["drained", "killed"])
@pytest.mark.usefixtures("nftables")
def test_what_is_lost_when_backends_end(machines, end, tmp_path):
    """Every request that a drained backend has accepted is answered; compare with a killed one."""

    def start(port):
        folder = tmp_path / str(port)
        folder.mkdir(exist_ok=True)
        return Backend(machines, folder, port)

    def progress():
        before = asking.answered
        eventually(lambda: asking.answered >= before + 300)

    backends = [start(port) for port in BACKENDS]
    asking = machines.client.run(_started, Asking())
    accepted = answered = 0
    for index, port in enumerate(BACKENDS):
        progress()
        ended = backends[index]
        counts = ended.drain() if end == "drained" else ended.kill()
        accepted, answered = accepted + counts[0], answered + counts[1]
        progress()
        backends[index] = start(port)
    progress()
    asking.stop()
    assert accepted > 0
    assert (accepted == answered) == (end == "drained")
    note(end, accepted, accepted - answered)


def _started(thread):
    """Start a thread, which inherits this one's network."""
    thread.start()
    return thread


def note(row, accepted, lost):
    """Write a row of the table, if that is asked for."""
    if os.environ.get("TOMADA_WRITE_BALANCERS") == "1":
        text = SCALE.read_text(encoding="utf-8")
        pattern = rf"(?m)^(\| {row} [^|]*\|).*$"
        assert re.search(pattern, text), row
        line = rf"\1 {accepted:,} | {lost:,} |"
        SCALE.write_text(re.sub(pattern, line, text), encoding="utf-8")
