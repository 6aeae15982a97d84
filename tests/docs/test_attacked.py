"""Attacks on every server of the documentation, which must keep answering."""

import ast
import asyncio
import contextlib
import errno
import re
import socket as std
import socketserver
import sys

import pytest
from sybil import Document
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

import tomada
import tomada.asyncio
from attack import answers, attack, attack_again, send_from_port_0, until
from documents import INFO, ROOT, documents
from skips import HAS_DTLS, NO_DTLS
from support import DEADLINE, Call, Child
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
