"""Attacks on every server of the documentation and the examples, which must keep answering."""

import ast
import asyncio
import contextlib
import errno
import itertools
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
from sybil import Document
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

import skips
import tomada
import tomada.asyncio
from attack import LONGEST, attack, attack_again, is_group, send_from_port_0, sender, vanish
from brokers import MockKafka, NatsServer
from documents import INFO, ROOT, documents
from skips import HAS_DTLS, NO_DTLS
from support import DEADLINE, Call, Child, eventually
from tomada import socket
from transports import LOOPS

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

# An honest client's requests, for handlers that require a certain form; others accept any text.
QUESTIONS = {
    "add": b"ana 1 5",
    "somar": b"ana 1 5",
    "somar_uma_vez": b"1 5",
    "factors": b"15",
    "docs/how-to/connections.md:handle": b"15".ljust(13),
    "docs/pt/para-quem-ensina.md:somar": b"15",
}

# A request and its reply, for programs that do not send requests back in capital letters.
EXCHANGES = {"offer.py": (b"find printer", b"printer 9100")}

# The options of a server that say what its handler needs.
OPTIONS = {"lifespan", "takes"}

# The values that handlers keep in global variables, beside constants.
HELD = ("asyncio.Semaphore(", "contextvars.ContextVar(", "set(")
LITERALS = (ast.Constant, ast.Dict, ast.List)

# The programs of this page are tests, which have their own peers.
TESTS = "docs/how-to/testing.md"


def blocks():
    """Yield Python blocks: the page, the source, its syntax tree, and the name of its file."""
    for name in documents():
        if name == TESTS:
            continue
        document = Document((ROOT / name).read_text(encoding="utf-8"), name)
        for region in RawFencedCodeBlockLexer(INFO)(document):
            if region.lexemes["language"] == "python":
                source = region.lexemes["source"]
                yield name, source, ast.parse(source), region.lexemes["title"]


@contextlib.contextmanager
def modules_of(page, folder):
    """Let a program import the modules that its page has as files."""
    for name, source, _, title in blocks():
        if name == page and title:
            (folder / title).write_text(source, encoding="utf-8")
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if (folder / f"{name}.py").exists():
                del sys.modules[name]


def definitions(tree):
    """Run the definitions of a program, without its other statements."""
    kept = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    body = [
        node
        for node in tree.body
        if isinstance(node, kept)
        or (isinstance(node, ast.Assign) and isinstance(node.value, LITERALS))
        or (isinstance(node, ast.Assign) and ast.unparse(node.value).startswith(HELD))
    ]
    names = {}
    exec(compile(ast.Module(body, []), "a block", "exec"), names)  # noqa: S102 - our own code
    return names


def handlers():
    """Find the handlers that are passed to ``Server`` and ``serve``.

    Sinks have tests of their own, with the engines that they need.
    """
    for page, _, tree, _ in blocks():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in {"Server", "serve"}
                and len(node.args) > 1
                and ast.unparse(node.args[1]) != "sink"
            ):
                options = {word.arg: word.value for word in node.keywords if word.arg in OPTIONS}
                for handler in meanings(node.args[1], tree):
                    name = f"{page}:{ast.unparse(handler)}"
                    yield pytest.param(tree, (name, handler, options), id=name)


def meanings(handler, tree):
    """Return the handlers that a name stands for in a loop over several, or else the name."""
    loops = [node for node in tree.body if isinstance(node, ast.For)]
    for loop in loops:
        names = [ast.unparse(name) for name in getattr(loop.target, "elts", [loop.target])]
        if ast.unparse(handler) in names:
            place = names.index(ast.unparse(handler))
            return [each.elts[place] for each in loop.iter.elts]
    return [handler]


def loops():
    """Find functions that serve an endpoint: ``async for data, address in endpoint``."""
    for page, tree, name, _ in endpoint_functions():
        yield pytest.param(tree, name, id=f"{page}:{name}")


def trio_loops():
    """Find such functions in programs for trio."""
    for page, tree, name, source in endpoint_functions():
        if "from tomada.trio import" in source:
            yield pytest.param(tree, name, id=f"{page}:{name}")


def endpoint_functions():
    for page, source, tree, _ in blocks():
        for node in tree.body:
            if isinstance(node, ast.AsyncFunctionDef) and any(
                isinstance(inner, ast.AsyncFor) for inner in ast.walk(node)
            ):
                yield page, tree, node.name, source


def protocols():
    """Find protocols that reply."""
    for page, source, tree, _ in blocks():
        for node in tree.body:
            text = ast.get_source_segment(source, node) or ""
            if isinstance(node, ast.ClassDef) and "sendto" in text and "_received" in text:
                yield pytest.param(page, tree, node.name, id=f"{page}:{node.name}")


def programs():
    """Find servers that are loops around receiving and ``sendto`` or ``reply``."""
    for page, source, _, title in blocks():
        replies = ".sendto(" in source or ".reply(" in source
        if ".bind(" in source and replies and "while True" in source:
            group = re.search(r'"(239\.[\d.]+)"', source)
            host = group[1] if group else "127.0.0.1"
            exchange = EXCHANGES.get(title, (b"ping", b"PING"))
            yield pytest.param(source, host, exchange, id=page)


def request_handlers():
    """Find handler classes for ``socketserver``."""
    for page, source, tree, _ in blocks():
        if "UDPServer(" in source:
            names = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
            yield from (pytest.param(tree, name, id=f"{page}:{name}") for name in names)


def answers(address, question=b"15"):
    """Send a request as an honest client, retrying if it was lost in the flood."""
    with sender(address) as sock:
        sock.settimeout(DEADLINE / 20)
        # A late reply to a closed socket of the attack cannot arrive at this address.
        sock.bind(("127.0.0.2", 0))
        if not is_group(address):  # whose members reply from their own addresses
            sock.connect(address)
        for _ in range(40):
            try:
                sock.sendto(question, address)
                return sock.recv(1 << 16)
            except (TimeoutError, ConnectionRefusedError):
                continue
    raise AssertionError("the server no longer replies")


def test_all_kinds_of_servers_are_found():
    # Check that the search works: servers that it misses would not be attacked.
    assert len(list(handlers())) >= 8
    assert len(list(loops())) >= 1
    assert len(list(trio_loops())) == 1
    assert len(list(protocols())) >= 2
    assert len(list(programs())) == 4
    assert len(list(request_handlers())) == 2


@pytest.mark.parametrize(("tree", "given"), [*handlers()])
@pytest.mark.parametrize("guarded", [False, True])
def test_attacked_documented_handler_still_replies(tree, given, guarded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place, handler, options = given
    page = place.partition(":")[0]
    with modules_of(page, tmp_path):
        names = definitions(tree)

    def value(node):
        return eval(compile(ast.Expression(node), "a block", "eval"), names)  # noqa: S307

    question = QUESTIONS.get(place) or QUESTIONS.get(ast.unparse(handler), b"15")
    options = {name: value(node) for name, node in options.items()}
    guard = tomada.Guard(amplification=1) if guarded else None
    server = tomada.Server(("127.0.0.1", 0), value(handler), guard=guard, **options)
    names["server"] = server
    with server:
        attack(server.address)
        assert answers(server.address, question.ljust(64) if guarded else question)


def run_on(new_loop, main):
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(main)


@pytest.mark.parametrize("new_loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize(("tree", "name"), [*loops()])
@pytest.mark.parametrize("guarded", [False, True])
def test_attacked_documented_endpoint_still_replies(tree, name, guarded, new_loop):
    serve = definitions(tree)[name]

    async def main():
        # A guard that denies replies to frequent senders; and ICMP errors are enabled.
        guard = tomada.Guard(amplification=0.5) if guarded else None
        async with tomada.asyncio.open_endpoint(("127.0.0.1", 0), guard=guard) as endpoint:
            endpoint.socket.setsockopt(std.IPPROTO_IP, socket.IP_RECVERR, 1)
            task = asyncio.create_task(serve(endpoint))
            address = endpoint.get_extra_info("sockname")
            has_port_0 = await asyncio.to_thread(attack, address)
            if guarded:
                with contextlib.suppress(AssertionError):
                    await asyncio.to_thread(answers, address, b"")
                assert not task.done()
                endpoint.socket.guard = None
            assert await asyncio.to_thread(answers, address) == b"15"
            if has_port_0:
                # Once more, now that the buffer has room for it.
                await asyncio.to_thread(send_from_port_0, address)
                assert await asyncio.to_thread(answers, address) == b"15"
            assert not task.done()
            stats, found = endpoint.stats(), {error.errno for error in endpoint.errors()}
            assert errno.ECONNREFUSED in found or stats.errors > 256
            if has_port_0 or guarded:
                assert stats.send_errors > 0
            # Requests that were sent again may still be handled, and may be replied to.
            assert await endpoint.shutdown(DEADLINE, [task]) == 0
        await task

    run_on(new_loop, main())


@pytest.mark.parametrize(("tree", "name"), [*trio_loops()])
@pytest.mark.parametrize("guarded", [False, True])
def test_attacked_documented_endpoint_still_replies_on_trio(tree, name, guarded):
    trio = pytest.importorskip("trio")
    from tomada.trio import open_endpoint

    serve, ended = definitions(tree)[name], trio.Event()
    in_thread = trio.to_thread.run_sync

    async def serve_to_the_end(endpoint):
        await serve(endpoint)
        ended.set()

    async def main():
        guard = tomada.Guard(amplification=0.5) if guarded else None
        async with (
            open_endpoint(("127.0.0.1", 0), guard=guard) as endpoint,
            trio.open_nursery() as nursery,
        ):
            endpoint.socket.setsockopt(std.IPPROTO_IP, socket.IP_RECVERR, 1)
            nursery.start_soon(serve_to_the_end, endpoint)
            address = endpoint.get_extra_info("sockname")
            has_port_0 = await in_thread(attack, address)
            endpoint.socket.guard = None
            assert await in_thread(answers, address) == b"15"
            if has_port_0:
                # Once more, now that the buffer has room for it.
                await in_thread(send_from_port_0, address)
                assert await in_thread(answers, address) == b"15"
            assert not ended.is_set()
            stats, found = endpoint.stats(), {error.errno for error in endpoint.errors()}
            assert errno.ECONNREFUSED in found or stats.errors > 256
            if has_port_0 or guarded:
                assert stats.send_errors > 0
            endpoint.stop_receiving()
        assert ended.is_set()

    trio.run(main)


@pytest.mark.parametrize("new_loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize(("page", "tree", "name"), [*protocols()])
def test_attacked_documented_protocol_still_replies(page, tree, name, new_loop):
    if not HAS_DTLS and page.endswith("dtls.md"):
        pytest.skip(NO_DTLS)
    protocol = definitions(tree)[name]

    async def main():
        loop = asyncio.get_running_loop()
        problems = []
        loop.set_exception_handler(lambda _, context: problems.append(context))
        transport, _ = await loop.create_datagram_endpoint(protocol, local_addr=("127.0.0.1", 0))
        transport.get_extra_info("socket").setsockopt(std.IPPROTO_IP, socket.IP_RECVERR, 1)
        address = transport.get_extra_info("sockname")
        await asyncio.to_thread(attack, address)
        assert await asyncio.to_thread(answers, address) == b"15"
        assert not transport.is_closing()
        assert not problems
        transport.close()

    run_on(new_loop, main())


@pytest.mark.parametrize(("tree", "name"), [*request_handlers()])
def test_attacked_documented_request_handler_still_replies(tree, name, capsys, monkeypatch):
    monkeypatch.setattr(socketserver, "socket", socket)
    handler = definitions(tree)[name]
    with socketserver.UDPServer(("127.0.0.1", 0), handler) as server:
        serving = Call(server.serve_forever, 0.01)
        attack(server.server_address)
        assert answers(server.server_address) == b"15"
        server.shutdown()
        serving.result()
    capsys.readouterr()  # it prints the error of each request


@pytest.fixture
def port():
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.mark.parametrize(("source", "host", "exchange"), [*programs()])
def test_attacked_documented_program_still_replies(source, host, exchange, port, tmp_path):
    address, (request, reply) = (host, port), exchange
    path = tmp_path / "server.py"
    path.write_text(source.replace("1234", str(port)), encoding="utf-8")
    output = tmp_path / "output"
    command = f"exec {sys.executable} -u {path} 127.0.0.1 > {output}"
    with Child("-c", command, program="/bin/sh"):
        until(output.read_text)
        answers(address, request)
        attack(address)
        assert answers(address, request) == reply
        attack_again(address, request)
        assert answers(address, request) == reply


# The examples

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


@pytest.mark.parametrize("upstream", ["down", "silent"])
def test_attacked_dns_cache_still_replies(upstream, interruptible):  # noqa: ARG001
    message = pytest.importorskip("dns.message", reason="dnspython is not installed")
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as above:
        above.bind(("127.0.0.1", 0))
        host, port = above.getsockname()
        if upstream == "down":
            above.close()
        listen = ("--listen", "127.0.0.1:0", "--upstream", f"{host}:{port}", "--timeout", "0.2")
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
            if upstream == "down":
                again = std.socket(std.AF_INET, std.SOCK_DGRAM)
                again.bind((host, port))
            else:
                again = above.dup()
            with again, answering(again, answer):
                for _ in range(2):
                    wire = answers(address, query.to_wire())
                    assert message.from_wire(wire).id == query.id
                    attack_again(address, query.to_wire())
                answers(address, query.to_wire())
            ends_well(child)


@pytest.mark.parametrize("upstream", ["down", "silent"])
def test_attacked_dns_forwarder_still_replies(upstream, interruptible):  # noqa: ARG001
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as above:
        above.bind(("127.0.0.1", 0))
        host, port = above.getsockname()
        if upstream == "down":
            above.close()
        listen = ("--listen", "127.0.0.1:0", "--upstream", f"{host}:{port}")
        child, address = example("dns_forwarder.py", *listen)
        with child:
            attack(address)
            attack_again(address, dns_query())
            if upstream == "down":
                again = std.socket(std.AF_INET, std.SOCK_DGRAM)
                again.bind((host, port))
            else:
                again = above.dup()
            with again, answering(again, dns_answer):
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


def until(condition):
    for _ in itertools.count():
        with contextlib.suppress(FileNotFoundError):
            if condition():
                return


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
