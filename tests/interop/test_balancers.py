"""Load balancers in front of servers: nginx and nftables."""

import contextlib
import itertools
import operator
import os
import re
import select
import signal
import socket as std
import threading
import time
from pathlib import Path

import pytest

import skips
import tomada
from balanced import BACK, CLIENT, FRONT, PORT, SERVER
from command import Serving
from support import DEADLINE, Call, eventually

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

BACKENDS = [5301, 5302, 5303]


@pytest.fixture
def nginx(machines, tmp_path):
    start_nginx(machines, tmp_path, "proxy_requests 1;")


@pytest.fixture
def nginx_with_sessions(machines, tmp_path):
    """Start an nginx that keeps a client with its backend."""
    start_nginx(machines, tmp_path)


@pytest.fixture
def transparent_nginx(machines, tmp_path):
    """Start an nginx that sends from the clients' addresses, and gets the replies to them."""
    machines.balancer.set("ipv4/ip_forward", 1)
    machines.balancer.command("ip", "rule", "add", "iif", "back", "lookup", "100")
    local = ("local", "default", "dev", "lo", "table", "100")
    machines.balancer.command("ip", "route", "add", *local)
    start_nginx(machines, tmp_path, "proxy_bind $remote_addr transparent;")


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
        f"proxy_timeout 10s; {options} }} }}\n"
    )
    machines.program("nginx", "-p", tmp_path, "-c", configuration)


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


# Works long enough that a backend always has requests in flight, and records which it has accepted.
APP = """
import os, time

def made():
    accepted = os.open("accepted", os.O_WRONLY | os.O_APPEND)

    def handle(batch):
        os.write(accepted, b"".join(b"%s\\n" % data for data, _ in batch))
        time.sleep(0.0005 * len(batch))
        return [data for data, _ in batch]

    return handle
"""
SCALE = Path(__file__).parents[2] / "docs/how-to/scale.md"
# The balancers' names in the table of that page.
ROWS = {
    "nftables": "nftables",
    "nginx": "nginx, `proxy_requests 1`",
    "nginx_with_sessions": "nginx, without `proxy_requests`",
}


class Backend:
    """A backend in a process of its own, which can be killed."""

    def __init__(self, machines, folder, port):
        folder.mkdir(exist_ok=True)
        self._accepted = folder / "accepted"
        self._accepted.write_bytes(b"")
        (folder / "service.py").write_text(APP)
        app = ("--app", "service:made", "--factory", "--takes", "batch")
        self._child = machines.server.run(lambda: Serving(f"{SERVER}:{port}", *app, cwd=folder))
        machines.stack.enter_context(self._child)

    def end(self, number):
        """End it by a signal, and return the requests that its handler has accepted."""
        self._child.signal(number)
        self._child.end()
        return set(self._accepted.read_bytes().split())


class Asking(threading.Thread):
    """Peers with many requests in flight, each of them sent once."""

    PEERS, AT_ONCE, PATIENCE = 8, 8, 2.0

    def __init__(self):
        super().__init__(daemon=True)
        self.answered = set()
        self._sent = 0
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
                answer = peer.recv(100)
                mine.pop(answer, None)
                self.answered.add(answer)

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

    def progress(self):
        """Wait for more answers."""
        enough = len(self.answered) + 300
        eventually(lambda: len(self.answered) >= enough)

    def stop(self):
        self._over.set()
        self.join(2 * DEADLINE)
        assert not self.is_alive(), "the peers hang"


@pytest.mark.parametrize(
    ("balancer", "end"),
    [
        ("nftables", "drained"),
        ("nftables", "killed"),
        ("nginx", "drained"),
        ("nginx", "killed"),
        ("nginx_with_sessions", "drained"),
    ],
)
def test_what_is_lost_when_backends_end(machines, balancer, end, request, tmp_path):
    """The clients get the answers to all requests that a drained backend has accepted.

    Compare with killed backends, and with an nginx that ends a session as soon as the backend
    refuses one of its datagrams, even if other requests of the session are in flight.
    """
    request.getfixturevalue(balancer)
    folders = [tmp_path / str(port) for port in BACKENDS]
    backends = [Backend(machines, *place) for place in zip(folders, BACKENDS, strict=True)]
    asking = machines.client.run(_started, Asking())
    accepted = set()
    for index, port in enumerate(BACKENDS):
        asking.progress()
        accepted |= backends[index].end(signal.SIGTERM if end == "drained" else signal.SIGKILL)
        asking.progress()
        backends[index] = Backend(machines, folders[index], port)
    asking.progress()
    asking.stop()
    assert accepted
    lost = len(accepted - asking.answered)
    if balancer != "nginx_with_sessions":
        assert (lost == 0) == (end == "drained")
    note(balancer, end, len(accepted), lost)


def _started(thread):
    """Start a thread, which inherits this one's network."""
    thread.start()
    return thread


def note(balancer, end, accepted, lost):
    """Write a row of the table, if that is asked for."""
    if os.environ.get("TOMADA_WRITE_BALANCERS") == "1":
        text = SCALE.read_text(encoding="utf-8")
        row = rf"(?m)^(\| {ROWS[balancer]} \| {end} [^|]*\|).*$"
        assert re.search(row, text), row
        line = rf"\1 {accepted:,} | {lost:,} |"
        SCALE.write_text(re.sub(row, line, text), encoding="utf-8")
