"""The examples, each with a client by other authors."""

import contextlib
import itertools
import os
import re
import socket as std
import struct
import sys

import pytest

from examples import EXAMPLES, end, load, run
from skips import program
from support import DEADLINE, DEVELOPMENT, Child, eventually

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_example_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 120


# anyio


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_anyio_server_echoes(start, backend):
    pytest.importorskip("anyio", reason="anyio is not installed")
    pytest.importorskip("trio", reason="trio is not installed")
    child, port = start("anyio_echo.py", "--backend", backend)
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
    child, port = start("statsd_collector.py", "--every", "1000")
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
    child, port = start("syslog_collector.py", "--local", path)
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
    child, port = start("sntp_server.py")
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.sendto(b"no question", ("127.0.0.1", port))
    answer = ntplib.NTPClient().request("127.0.0.1", port=port, version=4, timeout=DEADLINE)
    assert (answer.version, answer.mode, answer.stratum) == (4, 4, 10)
    # Both sides use the same clock, so the offset is only the network delay.
    assert answer.orig_time <= answer.recv_time <= answer.tx_time <= answer.dest_time
    end(child)


def test_sntp_client_measures_an_offset_within_its_error(start):
    child, port = start("sntp_server.py", "--listen", "127.0.0.1:0")
    arguments = EXAMPLES / "sntp_client.py", "--server", f"127.0.0.1:{port}", "--count", "20"
    with Child(*arguments) as client:
        status, output, errors = client.end()
    assert (status, errors) == (0, "")
    found = re.fullmatch(
        r"offset ([+-][\d.]+) us, error at most ([\d.]+) us \(round trip ([\d.]+) us\)\n", output
    )
    offset, error, round_trip = map(float, found.groups())
    # Both use the same clock.
    assert abs(offset) <= error
    assert round_trip / 2 <= error
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
    child, port = start("netflow_collector.py", "--every", "1000")
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
    child, _ = start("coap.py", where=("--port", port))
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
