"""The examples about DNS, with dnspython and dig."""

import asyncio
import contextlib
import re
import runpy
import signal
import socket as std
import socketserver
import struct
import sys
import threading

import pytest

from examples import EXAMPLES, end, run
from skips import program
from support import DEADLINE, eventually
from tomada.asyncio import Client
from tomada.testing import impaired

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

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
    child, here = start("dns_cache.py", "--upstream", f"{host}:{port}")
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
    arguments = ("--upstream", f"{host}:{port}", "--timeout", "0.2")
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
        arguments = ("--upstream", where, "--timeout", "6")
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
    child, here = start("dns_cache.py", "--upstream", f"{host}:{port}")
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
    child, here = start("dns_cache.py", "--upstream", f"{host}:{port}")
    for _ in range(2):
        output = run(dig, "@127.0.0.1", "-p", str(here), "+short", "one.example", "A")
        assert output.split() == ["host.example.", "192.0.2.1"]
    end(child)


def test_dns_forwarder_answers_every_query_of_dnsperf(start, upstream, tmp_path):
    dnsperf = program("dnsperf")
    (host, port), asked = upstream
    names = [f"name{number}.example." for number in range(20)]
    queries = tmp_path / "queries"
    queries.write_text("".join(f"{name} A\n" for name in names), encoding="utf-8")
    child, here = start("dns_cache.py", "--listen", "127.0.0.1:0", "--upstream", f"{host}:{port}")
    where = ("-s", "127.0.0.1", "-p", str(here), "-d", queries)
    # 25 times 20 queries from 4 sockets, of which at most 20 wait for an answer.
    output = run(dnsperf, *where, "-n", "25", "-c", "4", "-q", "20", "-t", str(DEADLINE))
    print(output)  # the rate depends on the machine
    assert re.search(r"Queries sent: +500$", output, re.MULTILINE)
    assert re.search(r"Queries completed: +500 \(100.00%\)", output)
    assert re.search(r"Response codes: +NOERROR 500 \(100.00%\)", output)
    assert {name for name, _ in asked} == set(names)
    assert len(asked) < 500  # most answers are from the cache
    end(child)


def test_dns_forwarder_limits_the_queries_that_wait():
    pytest.importorskip("dns.message", reason="dnspython is not installed")
    example = runpy.run_path(str(EXAMPLES / "dns_cache.py"))

    async def main(address):
        async with Client(address, timeout=DEADLINE, key=lambda data: data[:2]) as above:
            forwarder = example["Forwarder"](above)
            tasks = [asyncio.create_task(forwarder.ask(bytes(12))) for _ in range(1100)]
            done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            assert (len(done), len(waiting)) == (100, 1000)
            for task in done:
                assert "too many queries" in str(task.exception())
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
            assert forwarder.waiting == 0

    with std.socket(std.AF_INET, std.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        asyncio.run(main(silent.getsockname()))


def test_dns_lookup_resolves_many_names_at_once(upstream):
    (host, port), asked = upstream
    names = [f"host{number}.example" for number in range(20)]
    lookup = [sys.executable, EXAMPLES / "dns_lookup.py", "--server", f"{host}:{port}"]
    lines = run(*lookup, *names).splitlines()
    assert lines == [f"{name}: 192.0.2.1" for name in names]
    # One query for each name. A slow machine sees some again, with the same identifier.
    assert sorted(name for name, _ in set(asked)) == sorted(f"{name}." for name in names)
    (line,) = run(*lookup, "--timeout", "0.2", "silent.example").splitlines()
    assert "no reply from" in line


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
        child, port = start("dns_over_tls.py", *options)
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
        child, port = start("dns_over_tls.py", *options)
        with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
            sock.settimeout(DEADLINE)
            sock.sendto(b"\x12\x34\1\0" + bytes(8), ("127.0.0.1", port))
            assert sock.recv(100) == b"\x12\x34\x81\2" + bytes(8)
        end(child)


@pytest.mark.parametrize("name", ["dns_cache.py", "dns_forwarder.py", "dns_lookup.py"])
def test_dns_examples_take_a_server_without_a_port(name):
    if name != "dns_forwarder.py":
        pytest.importorskip("dns")
    address = runpy.run_path(str(EXAMPLES / name))["address"]
    assert address("9.9.9.9") == ("9.9.9.9", 53)
    assert address("localhost:5353") == ("localhost", 5353)
