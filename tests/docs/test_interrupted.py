"""Ctrl-C at any line of a program that has said that it listens ends it, without a traceback."""

import socket as std

import pytest
from sybil import Document
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

import skips
from brokers import MockKafka, NatsServer
from documents import INFO, ROOT
from support import FREE, HELPERS, Child

pytestmark = [
    pytest.mark.timeout(330),
    pytest.mark.usefixtures("interruptible"),
    pytest.mark.thread_unsafe(reason="it runs programs"),
]

LISTEN = ("--listen", "127.0.0.1:0")
# The server that they ask is not needed here.
UPSTREAM = (*LISTEN, "--upstream", "127.0.0.1:9")


def assert_ends_cleanly(program, *arguments, step=1):
    """Interrupt a program at every ``step``-th line; check that there were several."""
    given = (HELPERS / "interrupted.py", step, program, *arguments)
    with Child(*given) as child:
        status, output, errors = child.end(300)
    assert (status, errors) == (0, "")
    # Without the global lock, a trace function sometimes misses the lines.
    assert FREE or int(output) > 2


@pytest.mark.parametrize(
    ("name", "arguments", "needs"),
    [
        ("anyio_echo.py", (*LISTEN, "--backend", "asyncio"), ["anyio", "sniffio"]),
        ("anyio_echo.py", (*LISTEN, "--backend", "trio"), ["anyio", "sniffio", "trio"]),
        ("discovery.py", ("--interface", "lo", "offer", "printer", "9100"), []),
        ("dns_cache.py", UPSTREAM, ["dns.message"]),
        ("dns_forwarder.py", UPSTREAM, []),
        ("dns_over_tls.py", (*UPSTREAM, "--plain"), []),
        ("netflow_collector.py", LISTEN, ["numpy"]),
        ("sntp_server.py", LISTEN, []),
        ("statsd_collector.py", LISTEN, []),
        ("syslog_collector.py", LISTEN, []),
    ],
)
def test_interrupted_example_ends_cleanly(name, arguments, needs):
    for module in needs:
        pytest.importorskip(module)
    assert_ends_cleanly(ROOT / "examples" / name, *arguments)


def test_interrupted_coap_server_ends_cleanly():
    pytest.importorskip("aiocoap")
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    assert_ends_cleanly(ROOT / "examples" / "coap.py", "--port", port)


def test_interrupted_publisher_to_nats_ends_cleanly(tmp_path):
    pytest.importorskip("nats")
    skips.program("nats-server")
    with NatsServer(tmp_path) as broker:
        broker.add_stream("statsd")
        given = (*LISTEN, "--nats", broker.url)
        assert_ends_cleanly(ROOT / "examples" / "statsd_to_nats.py", *given, step=20)


def test_interrupted_publisher_to_kafka_ends_cleanly():
    pytest.importorskip("confluent_kafka")
    with MockKafka() as broker:
        given = (*LISTEN, "--kafka", broker.servers)
        assert_ends_cleanly(ROOT / "examples" / "netflow_to_kafka.py", *given, step=20)


@pytest.mark.parametrize("workers", [1, 2])
def test_interrupted_documented_server_ends_cleanly(workers, tmp_path):
    page = Document((ROOT / "docs/explanation/processes.md").read_text(encoding="utf-8"), "page")
    (source,) = (
        region.lexemes["source"]
        for region in RawFencedCodeBlockLexer(INFO)(page)
        if region.lexemes["title"] == "announced.py"
    )
    program = tmp_path / "announced.py"
    program.write_text(source.replace(", shout)", f", shout, workers={workers})"), encoding="utf-8")
    assert_ends_cleanly(program, step=1 if workers == 1 else 10)
