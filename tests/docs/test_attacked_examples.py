"""Attacks on every example that binds a socket, which must keep answering."""

import ast
import contextlib
import json
import re
import signal
import socket as std
import socketserver
import struct
import sys
import threading
from pathlib import Path

import pytest

import skips
from attack import (
    LONGEST,
    answers,
    attack,
    attack_again,
    send_from_port_0,
    sender,
    until,
    vanish,
)
from brokers import MockKafka, NatsServer
from documents import ROOT
from support import DEADLINE, Call, Child, eventually

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

BINDS = re.compile(r"\.bind\(|\bServer\(|local_addr=|\bbind=|open_endpoint\((?!remote_addr)")
NOT_ATTACKED = {
    "ping_pong.py": "it ends by itself, and its sockets receive only from each other",
    "quic_transfer.py": "it ends by itself, and its server is aioquic's",
}


def test_every_example_that_binds_a_socket_is_attacked():
    folder = ROOT / "examples"
    bound = {
        str(path.relative_to(folder))
        for path in folder.rglob("*.py")
        if BINDS.search(path.read_text(encoding="utf-8"))
    }
    # The tests below name the examples that they attack.
    body = ast.parse(Path(__file__).read_text(encoding="utf-8")).body
    named = {
        node.value
        for statement in body
        if not ast.unparse(statement).startswith("NOT_ATTACKED")
        for node in ast.walk(statement)
        if isinstance(node, ast.Constant)
    }
    assert bound - named == set(NOT_ATTACKED)


def example(name, *arguments):
    child = Child("-X", "dev", ROOT / "examples" / name, *arguments)
    line = child.line()
    assert "listening on 127.0.0.1:" in line
    return child, ("127.0.0.1", int(line.rpartition(":")[2]))


def ends_well(child):
    child.signal(signal.SIGINT)
    status, output, errors = child.end()
    assert status == 0, errors
    assert "Traceback" not in errors
    return output


@contextlib.contextmanager
def upstream_that_is(state):
    """Yield the address of an upstream that is down or silent, and a way to let it answer."""
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        address = host, port = sock.getsockname()
        if state == "down":
            sock.close()

        @contextlib.contextmanager
        def returns(answer):
            if state == "down":
                again = std.socket(std.AF_INET, std.SOCK_DGRAM)
                again.bind(address)
            else:
                again = sock.dup()
            with again, answering(again, answer):
                yield

        yield f"{host}:{port}", returns


@contextlib.contextmanager
def answering(sock, answer):
    over = threading.Event()

    def serve():
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                data, address = sock.recvfrom(1 << 16)
                sock.sendto(answer(data), address)

    sock.settimeout(0.1)
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(DEADLINE)


@pytest.mark.parametrize("upstream", ["down", "silent"])
def test_attacked_dns_cache_still_replies(upstream, interruptible):  # noqa: ARG001
    message = pytest.importorskip("dns.message", reason="dnspython is not installed")
    with upstream_that_is(upstream) as (where, returns):
        listen = ("--listen", "127.0.0.1:0", "--upstream", where, "--timeout", "0.2")
        child, address = example("dns_cache.py", *listen)
        query = message.make_query("one.example", "A")

        def answer(data):
            return message.make_response(message.from_wire(data)).to_wire()

        with child:
            attack(address)
            with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
                sock.connect(address)
                # Each request makes the upstream refuse one, between the others.
                for number in range(50):
                    sock.send(message.make_query(f"{number}.example", "A").to_wire())
            send_from_port_0(address)
            vanish(address, 20)
            with returns(answer):
                for _ in range(2):
                    wire = answers(address, query.to_wire())
                    assert message.from_wire(wire).id == query.id
                    attack_again(address, query.to_wire())
                answers(address, query.to_wire())
            ends_well(child)


@pytest.mark.parametrize("upstream", ["down", "silent"])
def test_attacked_dns_forwarder_still_replies(upstream, interruptible):  # noqa: ARG001
    with upstream_that_is(upstream) as (where, returns):
        listen = ("--listen", "127.0.0.1:0", "--upstream", where)
        child, address = example("dns_forwarder.py", *listen)
        with child:
            attack(address)
            attack_again(address, dns_query())
            with returns(dns_answer):
                # Replies to the attack's queries say that the upstream has failed, and so may the
                # first one to this query.
                for _ in range(2):
                    eventually(lambda: answers(address, dns_query()) == dns_answer(dns_query()))
                    attack_again(address, dns_query())
                answers(address, dns_query())
            assert "queries from 127.0.0.2" in ends_well(child)


class DNSStream(socketserver.StreamRequestHandler):
    """Answers the queries of a stream."""

    def handle(self):
        while length := self.rfile.read(2):
            query = self.rfile.read(int.from_bytes(length, "big"))
            self.wfile.write(length + dns_answer(query))


@pytest.mark.parametrize("upstream", ["down", "up"])
def test_attacked_dns_over_tls_still_replies(upstream, interruptible):  # noqa: ARG001
    with socketserver.TCPServer(("127.0.0.1", 0), DNSStream) as above:
        where = "{}:{}".format(*above.server_address)
        serving = None
        if upstream == "up":
            serving = Call(above.serve_forever, 0.01)
        else:
            above.server_close()
        arguments = ("--listen", "127.0.0.1:0", "--upstream", where, "--plain")
        child, address = example("dns_over_tls.py", *arguments)
        with child:
            attack(address)
            reply = dns_answer(dns_query(), failed=upstream == "down")
            assert answers(address, dns_query()) == reply
            attack_again(address, dns_query())
            assert answers(address, dns_query()) == reply
            ends_well(child)
        if serving:
            above.shutdown()
            serving.result()


def dns_query():
    return struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + b"\1x\0\0\1\0\1"


def dns_answer(query, *, failed=False):
    return query[:2] + (b"\x81\2" if failed else b"\x81\x80") + query[4:]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_attacked_anyio_server_still_replies(backend, interruptible):  # noqa: ARG001
    for module in ("anyio", "sniffio", backend):
        pytest.importorskip(module)
    arguments = ("--listen", "127.0.0.1:0", "--backend", backend)
    child, address = example("anyio_echo.py", *arguments)
    with child:
        attack(address)
        assert answers(address) == b"15"
        attack_again(address)
        assert answers(address) == b"15"
        ends_well(child)


def test_attacked_time_server_still_replies(interruptible):  # noqa: ARG001
    child, address = example("sntp_server.py", "--listen", "127.0.0.1:0")
    with child:
        attack(address)
        assert len(answers(address, sntp_question())) == 48
        attack_again(address, sntp_question())
        assert len(answers(address, sntp_question())) == 48
        ends_well(child)


def sntp_question():
    return struct.pack("!B47x", 4 << 3 | 3)


COLLECTORS = {
    "statsd_collector.py": (["--every", "1000"], b"requests:7|c", "requests 7"),
    "syslog_collector.py": ([], b"<13>it happened", "it happened"),
    "netflow_collector.py": (
        ["--every", "1000"],
        struct.pack("!HH", 5, 1) + bytes(20) + std.inet_aton("192.0.2.9") + bytes(44),
        "192.0.2.9 0",
    ),
}


@pytest.mark.parametrize("name", COLLECTORS)
def test_attacked_collector_keeps_running(name, interruptible, tmp_path):  # noqa: ARG001
    if name == "netflow_collector.py":
        pytest.importorskip("numpy", reason="numpy is not installed")
    options, honest, shown = COLLECTORS[name]
    output = tmp_path / "output"
    arguments = [sys.executable, "-u", str(ROOT / "examples" / name), *options]
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        address = sock.getsockname()
    listen = f"{address[0]}:{address[1]}"
    # It prints more than a pipe holds.
    command = " ".join([*arguments, "--listen", listen]) + f" > {output}"
    with Child("-c", f"exec {command}", program="/bin/sh") as child:
        until(lambda: "listening" in output.read_text())
        attack(address)
        child.until_it_waits()
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
            sock.sendto(honest, address)
        until(lambda: not has_unread(address))
        child.until_it_waits()
        ends_well(child)
    assert shown in output.read_text(errors="replace")


@pytest.mark.parametrize("packs", [False, True])
def test_attacked_publisher_to_nats_still_publishes(packs, interruptible, tmp_path):  # noqa: ARG001
    pytest.importorskip("nats")
    if packs:
        pytest.importorskip("pyarrow")
    skips.program("nats-server")
    with NatsServer(tmp_path) as broker:
        broker.add_stream("statsd")
        options = ("--nats", broker.url, *["--pack"] * packs)
        child, address = example("statsd_to_nats.py", "--listen", "127.0.0.1:0", *options)
        with child:
            attack(address)
            publishes(address, b"requests:7|c", lambda: broker.last("statsd"))
            attack_again(address)
            publishes(address, b"requests:8|c", lambda: broker.last("statsd"))
            assert ", dropped 0 of " in ends_well(child)


def test_attacked_publisher_to_kafka_still_publishes(interruptible):  # noqa: ARG001
    pytest.importorskip("confluent_kafka")
    export = b"\0\5an export"
    with MockKafka() as broker:
        where = ("--listen", "127.0.0.1:0", "--kafka", broker.servers)
        child, address = example("netflow_to_kafka.py", *where)
        with child:
            attack(address)
            # Forged exports, which it publishes too.
            attack_again(address, export[:2])
            vanish(address, 3, export[:2].ljust(LONGEST))
            before = broker.count("netflow")
            publishes(address, export, lambda: broker.count("netflow") > before and export)
            counts = re.search(r"published (\d+), dropped 0 of (\d+) exports", ends_well(child))
            assert counts[1] == counts[2]
            messages = broker.messages("netflow", int(counts[1]))
            assert export in [data for _, _, data, _ in messages]


def publishes(address, honest, last):
    """Send a datagram until it is in the last message, because a full buffer loses datagrams."""
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:

        def is_published():
            sock.sendto(honest, address)
            return honest in (last() or b"")

        eventually(is_published)


def test_attacked_seed_server_still_replies(interruptible, port, tmp_path):  # noqa: ARG001
    source = (ROOT / "examples" / "seed/server.py").read_text(encoding="utf-8")
    path, output = tmp_path / "server.py", tmp_path / "output"
    path.write_text(source.replace("1234", str(port)), encoding="utf-8")
    # It prints more than a pipe holds.
    with Child("-c", f"exec {sys.executable} -u {path} > {output}", program="/bin/sh") as child:
        until(output.read_text)
        # An empty datagram ends it, as its comment says: any client may end this first server.
        attack(("127.0.0.1", port), empty=False)
        assert answers(("127.0.0.1", port), b"ping") == b"PING"
        attack_again(("127.0.0.1", port))
        assert answers(("127.0.0.1", port), b"ping") == b"PING"
        ends_well(child)


def has_unread(address):
    """Return whether the socket at an address has datagrams that its program has not received."""
    sockets = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    port = f":{address[1]:04X}"
    return any(one[1].endswith(port) and not one[4].endswith(":00000000") for one in sockets)


def test_attacked_discovery_service_still_replies(interruptible):  # noqa: ARG001
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    common = (ROOT / "examples" / "discovery.py", "--interface", "lo", "--group-port", port)
    question = b'{"find": "printer"}'
    with Child("-X", "dev", *common, "offer", "printer", "9100") as offer:
        assert offer.line().endswith(" is offered")
        group = ("239.255.77.77", port)
        attack(group)
        reply = answers(group, question)
        assert json.loads(reply) == {"name": "printer", "port": 9100}
        with sender(group) as sock:
            for data in (b"[]", b"{", b"[" * 60_000, b"null"):
                sock.sendto(data, group)
        attack_again(group, question)
        assert answers(group, question) == reply
        with Child("-X", "dev", *common, "find", "printer", "--seconds", "0.6") as find:
            assert find.end()[0] == 0
        ends_well(offer)


def test_attacked_coap_server_still_replies(interruptible, port, tmp_path):  # noqa: ARG001
    pytest.importorskip("aiocoap", reason="aiocoap is not installed")
    address = ("127.0.0.1", port)
    # It logs datagrams that it cannot parse, which is more than a pipe holds.
    program = [sys.executable, str(ROOT / "examples" / "coap.py"), "--port", str(port)]
    command = f"exec {' '.join(program)} 2> {tmp_path / 'log'}"
    with Child("-c", command, program="/bin/sh") as child:
        child.line()
        attack(address)
        # GET /time, confirmable, message 1.
        question = b"\x40\x01\x00\x01\xb4time"
        assert answers(address, question)[:4] == b"\x60\x45\x00\x01"
        attack_again(address, question)
        assert answers(address, question)[:4] == b"\x60\x45\x00\x01"
        child.signal(signal.SIGINT)
        assert child.end()[0] == 0
