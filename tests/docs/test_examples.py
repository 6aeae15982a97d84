"""The examples, each with a client by other authors."""

import contextlib
import importlib.util
import itertools
import os
import re
import signal
import socket as std
import socketserver
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from skips import program
from support import DEADLINE, DEVELOPMENT, Child, eventually
from tomada.testing import impaired

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def start(interruptible):  # noqa: ARG001
    """Start an example server, and provide it with its port."""
    with contextlib.ExitStack() as stack:

        def start(name, *arguments):
            environment = os.environ | DEVELOPMENT
            child = stack.enter_context(Child(EXAMPLES / name, *arguments, env=environment))
            line = child.line()
            assert line.startswith("listening on 127.0.0.1:")
            return child, int(line.rpartition(":")[2])

        yield start


def load(name):
    """Import an example as a module."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, EXAMPLES / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def end(child):
    """Press Ctrl-C, and return the example's last output."""
    child.signal(signal.SIGINT)
    status, output, errors = child.end()
    assert (status, errors) == (0, "")
    return output


def run(*command, **options):
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=DEADLINE, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_example_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 120


# DNS

# A name of maximum length: 255 bytes.
HUGE = ".".join(["x" * 63] * 3 + ["x" * 61]) + "."


def huge_answer(response):
    """Answer with 239 SRV records, each of which refers to the question's name by a pointer.

    dnspython writes the name itself: 65,518 bytes, which DNS allows but UDP over IPv4 does not.
    """
    response.use_edns(False)
    wire = bytearray(response.to_wire())
    wire[6:8] = (239).to_bytes(2, "big")
    for priority in range(239):
        wire += struct.pack("!HHHIH", 0xC00C, 33, 1, 60, 8)
        wire += struct.pack("!HHHH", priority, 0, 0, 0xC00C)
    return wire


@pytest.fixture
def upstream():
    """Serve DNS with dnspython; provide the address and the list of questions."""
    message = pytest.importorskip("dns.message", reason="dnspython is not installed")
    from dns.rrset import from_text

    asked = []

    def serve():
        while True:
            data, address = sock.recvfrom(4096)
            query = message.from_wire(data)
            if not query.question:
                return
            question = query.question[0]
            asked.append((question.name.to_text(), query.id))
            response = message.make_response(query)
            if question.name.to_text() == "silent.example.":
                continue
            if question.name.to_text() == HUGE:
                sock.sendto(huge_answer(response), address)
                continue
            response.answer += [
                from_text(question.name, 60, "IN", "CNAME", "host.example."),
                from_text("host.example.", 120, "IN", "A", "192.0.2.1"),
            ]
            sock.sendto(response.to_wire(), address)

    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=serve)
        thread.start()
        yield sock.getsockname(), asked
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as other:
            other.sendto(message.Message().to_wire(), sock.getsockname())
        thread.join(DEADLINE)


def test_dns_forwarder_caches_answers(start, upstream):
    import dns.message
    import dns.query

    (host, port), asked = upstream
    child, here = start("dns_cache.py", "--listen", "127.0.0.1:0", "--upstream", f"{host}:{port}")
    answers = []
    for name in ("one.example", "two.example", "ONE.example", "one.example"):
        query = dns.message.make_query(name, "A", use_edns=True)
        answer = dns.query.udp(query, "127.0.0.1", port=here, timeout=DEADLINE)
        assert answer.id == query.id
        answers.append([(rrset.ttl, str(rrset[0])) for rrset in answer.answer])
    assert [name for name, _ in asked] == ["one.example.", "two.example."]
    assert answers[0] == answers[1] == [(60, "host.example."), (120, "192.0.2.1")]
    for first, later in zip(answers[0], answers[3], strict=True):
        assert first[1] == later[1]
        assert 0 <= first[0] - later[0] <= DEADLINE
    end(child)


def test_dns_forwarder_gives_up_after_two_attempts(start, upstream):
    import dns.message
    import dns.query

    (host, port), asked = upstream
    arguments = ("--listen", "127.0.0.1:0", "--upstream", f"{host}:{port}", "--timeout", "0.2")
    child, here = start("dns_cache.py", *arguments)
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.sendto(dns.message.make_query("silent.example", "A").to_wire(), ("127.0.0.1", here))
        sock.sendto(b"no query", ("127.0.0.1", here))
        eventually(lambda: len(asked) == 2)
    query = dns.message.make_query("one.example", "A")
    assert dns.query.udp(query, "127.0.0.1", port=here, timeout=DEADLINE).answer
    end(child)


def test_dns_forwarder_asks_again_across_a_bad_link(start, upstream):
    import dns.message
    import dns.query

    address, asked = upstream
    with impaired(address, script=["drop", "pass", "duplicate"]) as link:
        where = f"{link.address[0]}:{link.address[1]}"
        arguments = ("--listen", "127.0.0.1:0", "--upstream", where, "--timeout", "6")
        child, here = start("dns_cache.py", *arguments)
        for name in ("one.example", "two.example"):
            query = dns.message.make_query(name, "A", use_edns=True)
            answer = dns.query.udp(query, "127.0.0.1", port=here, timeout=DEADLINE)
            assert answer.question[0].name.to_text() == f"{name}."
        end(child)
    assert [name for name, _ in asked] == ["one.example.", "two.example."]
    assert (link.stats.to_server.scripted, link.stats.to_client.duplicated) == (1, 1)


@pytest.mark.parametrize("payload", [-1, 65_535], ids=["without EDNS", "with EDNS"])
def test_dns_forwarder_truncates_long_answers(start, upstream, payload):
    import dns.flags
    import dns.message
    import dns.query

    (host, port), _ = upstream
    child, here = start("dns_cache.py", "--listen", "127.0.0.1:0", "--upstream", f"{host}:{port}")
    query = dns.message.make_query(HUGE, "SRV", use_edns=payload > 0 or -1, payload=payload)
    answer = dns.query.udp(query, "127.0.0.1", port=here, timeout=DEADLINE)
    assert answer.flags & dns.flags.TC
    assert not answer.answer
    query = dns.message.make_query("one.example", "A")
    assert dns.query.udp(query, "127.0.0.1", port=here, timeout=DEADLINE).answer
    child.signal(signal.SIGINT)
    status, _, errors = child.end()  # asyncio warns that the long answer blocked the loop
    assert status == 0
    assert "Traceback" not in errors


def test_dns_forwarder_answers_dig(start, upstream):
    dig = program("dig")
    (host, port), _ = upstream
    child, here = start("dns_cache.py", "--listen", "127.0.0.1:0", "--upstream", f"{host}:{port}")
    for _ in range(2):
        output = run(dig, "@127.0.0.1", "-p", str(here), "+short", "one.example", "A")
        assert output.split() == ["host.example.", "192.0.2.1"]
    end(child)


def test_dns_lookup_resolves_many_names_at_once(upstream):
    (host, port), asked = upstream
    names = [f"host{number}.example" for number in range(20)]
    lookup = [sys.executable, EXAMPLES / "dns_lookup.py", "--server", f"{host}:{port}"]
    lines = run(*lookup, *names).splitlines()
    assert lines == [f"{name}: 192.0.2.1" for name in names]
    assert sorted(name for name, _ in asked) == sorted(f"{name}." for name in names)
    (line,) = run(*lookup, "--timeout", "0.2", "silent.example").splitlines()
    assert "no reply from" in line


# anyio


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_anyio_server_echoes(start, backend):
    pytest.importorskip("anyio", reason="anyio is not installed")
    pytest.importorskip("trio", reason="trio is not installed")
    child, port = start("anyio_echo.py", "--listen", "127.0.0.1:0", "--backend", backend)
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.settimeout(DEADLINE)
        sock.connect(("127.0.0.1", port))
        for number in range(20):
            sock.send(b"%d" % number)
        assert {sock.recv(10) for _ in range(20)} == {b"%d" % number for number in range(20)}
    end(child)


# statsd


def test_statsd_collector_adds_up_counters(start):
    statsd = pytest.importorskip("statsd", reason="statsd is not installed")
    child, port = start("statsd_collector.py", "--listen", "127.0.0.1:0", "--every", "1000")
    client = statsd.StatsClient("127.0.0.1", port)
    for _ in range(100):
        client.incr("requests")
    client.decr("requests", 20)
    client.gauge("temperature", 20)
    client.gauge("temperature", 1.5, delta=True)
    for milliseconds in (1, 3, 200):
        client.timing("query", milliseconds)
    client.set("users", "ana")
    client.set("users", "rui")
    client.set("users", "ana")
    with client.pipeline() as pipe:
        pipe.incr("batched")
        pipe.incr("batched", 4)
    client.close()
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.sendto(b"nonsense\nsampled:1|c|@0.1", ("127.0.0.1", port))
    child.until_it_waits()
    assert end(child).splitlines() == [
        "batched 5",
        "requests 80",
        "sampled 10",
        "temperature = 21.5",
        "query n=3 median=3 max=200 ms",
        "users 2 different",
        "1 lines that are not metrics",
    ]


def test_statsd_collector_limits_its_memory(capsys, monkeypatch):
    collector = load("statsd_collector.py")
    monkeypatch.setattr(collector, "MAX_KEPT", 100)
    metrics = collector.Metrics()
    kinds = itertools.cycle(["1|g", "1|c", "1|ms", "1|s"])
    for number, value in zip(range(1000), kinds, strict=False):
        metrics.take(f"{number}:{value}")
    metrics.take("long" * collector.MAX_LINE + ":1|c")
    metrics.take("screen\x1b[2J:1|c")
    assert metrics.bad == 902
    metrics.take("0:5|g")
    assert metrics.gauges["0"] == 5
    metrics.report()
    for number in range(100):
        metrics.take(f"gauge {number}:1|g")
    metrics.report()
    metrics.take("0:6|g")
    metrics.report()
    assert metrics.gauges == {"0": 6}
    output = capsys.readouterr().out
    assert "902 lines that are not metrics" in output
    assert "\x1b" not in output


# syslog


@pytest.fixture
def syslog(start, tmp_path):
    path = tmp_path / "log"
    child, port = start("syslog_collector.py", "--listen", "127.0.0.1:0", "--local", path)
    eventually(path.exists)
    yield child, port, path
    end(child)
    assert not path.exists()


TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"


@pytest.mark.parametrize("form", ["--rfc5424", "--rfc3164"])
def test_syslog_collector_logs_messages_of_logger_over_udp(syslog, form):
    child, port, _ = syslog
    command = [program("logger"), "-d", "-n", "127.0.0.1", "-P", str(port), form]
    run(*command, "-t", "brew", "-p", "daemon.warning", "--", "too hot: 97°")
    host = std.gethostname() if form == "--rfc5424" else std.gethostname().partition(".")[0]
    assert re.fullmatch(
        rf"{TIME} daemon\.warning {re.escape(host)} brew: too hot: 97°", child.line()
    )


def test_syslog_collector_logs_messages_of_logger_over_a_local_socket(syslog):
    child, _, path = syslog
    run(program("logger"), "-u", path, "-t", "brew", "-p", "user.err", "spilt")
    assert re.fullmatch(rf"{TIME} user\.err \S+ brew: spilt", child.line())


def test_syslog_collector_logs_messages_of_the_standard_librarys_handler(syslog):
    import logging.handlers

    child, port, _ = syslog
    handler = logging.handlers.SysLogHandler(("127.0.0.1", port))
    handler.emit(logging.makeLogRecord({"msg": "it happened", "levelname": "ERROR"}))
    handler.close()
    assert re.fullmatch(rf"{TIME} user\.err 127\.0\.0\.1 -: it happened", child.line())


def test_syslog_collector_escapes_control_characters(syslog):
    child, port, _ = syslog
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        data = "<13>\x1b[2Jred \x07café\nsecond\x9b".encode()
        sock.sendto(data, ("127.0.0.1", port))
    assert child.line().endswith(r" -: \x1b[2Jred \x07café\nsecond\x9b")


# SNTP


def test_sntp_server_answers_ntplib(start):
    ntplib = pytest.importorskip("ntplib", reason="ntplib is not installed")
    child, port = start("sntp_server.py", "--listen", "127.0.0.1:0")
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.sendto(b"no question", ("127.0.0.1", port))
    answer = ntplib.NTPClient().request("127.0.0.1", port=port, version=4, timeout=DEADLINE)
    assert (answer.version, answer.mode, answer.stratum) == (4, 4, 10)
    # Both sides use the same clock, so the offset is only the network delay.
    assert answer.orig_time <= answer.recv_time <= answer.tx_time <= answer.dest_time
    end(child)


# DNS over a stream


class Stream(socketserver.StreamRequestHandler):
    """Answers the queries of a stream two by two, the second one first."""

    def handle(self):
        while (first := self.query()) and (second := self.query()):
            for query in (second, first):
                answer = query[:2] + bytes([query[2] | 0x80]) + query[3:] + b" answered"
                self.wfile.write(len(answer).to_bytes(2, "big") + answer)

    def query(self):
        return self.rfile.read(int.from_bytes(self.rfile.read(2), "big"))


def test_dns_over_tls_matches_answers_of_one_stream_to_queries(start):
    with socketserver.TCPServer(("127.0.0.1", 0), Stream) as upstream:
        threading.Thread(target=upstream.serve_forever, daemon=True).start()
        options = "--plain", "--upstream", f"127.0.0.1:{upstream.server_address[1]}"
        child, port = start("dns_over_tls.py", "--listen", "127.0.0.1:0", *options)
        # Two clients that use the same identifier.
        with contextlib.ExitStack() as stack:
            clients = [
                stack.enter_context(std.socket(std.AF_INET, std.SOCK_DGRAM)) for _ in range(2)
            ]
            for _ in range(3):
                for number, sock in enumerate(clients):
                    sock.settimeout(DEADLINE)
                    sock.sendto(b"\x12\x34\1\0" + bytes(8) + b"%d" % number, ("127.0.0.1", port))
                for number, sock in enumerate(clients):
                    assert sock.recv(100) == (
                        b"\x12\x34\x81\0" + bytes(8) + b"%d answered" % number
                    )
        end(child)
        upstream.shutdown()


def test_dns_over_tls_says_that_its_server_cannot_be_reached(start):
    with std.socket(std.AF_INET, std.SOCK_STREAM) as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        options = "--plain", "--upstream", f"127.0.0.1:{nobody.getsockname()[1]}"
        child, port = start("dns_over_tls.py", "--listen", "127.0.0.1:0", *options)
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
            sock.settimeout(DEADLINE)
            sock.sendto(b"\x12\x34\1\0" + bytes(8), ("127.0.0.1", port))
            assert sock.recv(100) == b"\x12\x34\x81\2" + bytes(8)
        end(child)


# Discovery


@pytest.fixture
def discover(tmp_path, interruptible):  # noqa: ARG001
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    common = (EXAMPLES / "discovery.py", "--interface", "lo", "--group-port", port)
    with contextlib.ExitStack() as stack:

        def discover(*arguments):
            return stack.enter_context(Child(*common, *arguments, env=os.environ | DEVELOPMENT))

        yield discover


def test_discovery_finds_services(discover):
    offers = [discover("offer", *service) for service in (("printer", 9100), ("printer", 9101))]
    offers.append(discover("offer", "scanner", 9200))
    for offer in offers:
        assert offer.line().endswith(" is offered")
    find = discover("find", "printer", "--seconds", "0.6")
    status, output, errors = find.end()
    assert (status, errors) == (0, "")
    ports = [re.fullmatch(r"printer is at [\d.]+:(\d+)", line) for line in output.splitlines()]
    assert [match[1] for match in ports] == ["9100", "9101"]
    for offer in offers:
        end(offer)


def test_discovery_does_not_find_unknown_services(discover):
    assert discover("find", "nothing", "--seconds", "0.1").end() == (1, "", "")


# NetFlow


def netflow(flows):
    """Make a NetFlow v5 datagram as Cisco describes it."""
    header = struct.pack("!HHIIIIBBH", 5, len(flows), 1000, 1_700_000_000, 0, 1, 0, 0, 0)
    body = b"".join(
        std.inet_aton(source)
        + std.inet_aton("198.51.100.1")
        + bytes(4)
        + struct.pack(
            "!HHIIIIHHBBBBHHBBH", 1, 2, 10, octets, 0, 9, 53, 5353, 0, 0, 17, 0, 0, 0, 0, 0, 0
        )
        for source, octets in flows
    )
    return header + body


def test_netflow_collector_adds_up_flows(start):
    pytest.importorskip("numpy", reason="numpy is not installed")
    child, port = start("netflow_collector.py", "--listen", "127.0.0.1:0", "--every", "1000")
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", port))
        for _ in range(40):
            sock.send(netflow([(f"192.0.2.{number}", 1000 * number) for number in range(1, 31)]))
        sock.send(netflow([("192.0.2.200", 4_000_000_000), ("192.0.2.200", 4_000_000_000)]))
        sock.send(netflow([("192.0.2.201", 1)])[:-1])
        sock.send(netflow([]))
        sock.send(b"short")
    child.until_it_waits()
    first, *talkers = end(child).splitlines()
    assert first.startswith("1202 flows in 44 datagrams, ")
    assert first.endswith(" 0 datagrams dropped")
    expected = ["192.0.2.200 8000000000"]
    expected += [f"192.0.2.{number} {40 * 1000 * number}" for number in range(30, 21, -1)]
    assert talkers == expected


# The rest


@pytest.mark.parametrize("spin", ["0", "0.001"])
def test_ping_pong_measures_round_trips(spin):
    command = [sys.executable, EXAMPLES / "ping_pong.py", "--rounds", "200", "--spin", spin]
    first, *percentiles = run(*command).splitlines()
    assert first == f"200 round trips of 64 bytes, spin {float(spin)} s"
    names, values = zip(*(line.rsplit(maxsplit=2)[:2] for line in percentiles), strict=True)
    assert [name.strip() for name in names] == ["50 %", "90 %", "99 %", "99.9 %"]
    assert sorted(map(float, values)) == list(map(float, values))
    assert float(values[0]) > 0


CLIENT = """
import asyncio, sys
import aiocoap

async def main(port):
    context = await aiocoap.Context.create_client_context()
    note = f"coap://127.0.0.1:{port}/note"
    put = aiocoap.Message(code=aiocoap.PUT, uri=note, payload=b"bom dia" * 500)
    print((await context.request(put).response).code)
    for uri in (note, f"coap://127.0.0.1:{port}/time"):
        get = aiocoap.Message(code=aiocoap.GET, uri=uri)
        print((await context.request(get).response).payload.decode())
    await context.shutdown()

asyncio.run(main(sys.argv[1]))
"""


def test_coap_server_answers_plain_aiocoap(start, inet):
    pytest.importorskip("aiocoap", reason="aiocoap is not installed")
    with inet.bound(std) as sock:
        port = sock.getsockname()[1]
    child, _ = start("coap.py", "--port", port)
    environment = os.environ | {"AIOCOAP_CLIENT_TRANSPORT": "simple6"}
    code, note, time = run(sys.executable, "-c", CLIENT, str(port), env=environment).splitlines()
    assert code == "2.04 Changed"
    assert note == "bom dia" * 500
    assert re.fullmatch(rf"{TIME}\+00:00", time)
    end(child)


def test_quic_file_arrives_intact_on_every_loop():
    pytest.importorskip("aioquic", reason="aioquic is not installed")
    with Child(EXAMPLES / "quic_transfer.py", "0.125") as child:
        lines = [child.line().split() for _ in range(3)]
        status, rest, errors = child.end()
    assert (status, rest) == (0, ""), errors
    assert [line[0] for line in lines] == ["asyncio", "uvloop", "tomada"]
    assert {line[-1] for line in lines} == {"intact"}
