"""Code that takes a socket module, class or object, and must accept tomada's as well."""

import inspect
import logging
import logging.handlers
import pydoc
import socket as std
import socketserver
from unittest import mock

import pytest

from support import Call, Child, run
from tomada import socket

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")


def test_socketserver_udp_server_serves_plain_clients(monkeypatch, inet, peer):
    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            data, sock = self.request
            sock.sendto(data.upper(), self.client_address)

    monkeypatch.setattr(socketserver, "socket", socket)
    other = peer(inet)
    with socketserver.UDPServer(("127.0.0.1", 0), Handler) as server:
        assert type(server.socket) is socket.socket
        serving = Call(server.handle_request)
        other.do("send", datagrams=[b"loud"], to=server.server_address)
        assert other.do("collect", count=1) == ((b"LOUD", server.server_address),)
        serving.result()


def test_socketserver_threading_udp_server_shuts_down(monkeypatch, inet, peer):
    class Handler(socketserver.DatagramRequestHandler):
        def handle(self):
            self.wfile.write(self.rfile.readline() * 2)

    monkeypatch.setattr(socketserver, "socket", socket)
    other = peer(inet)
    with socketserver.ThreadingUDPServer(("127.0.0.1", 0), Handler) as server:
        serving = Call(server.serve_forever, 0.01)
        other.do("send", datagrams=[b"line\nrest"], to=server.server_address)
        assert other.do("collect", count=1) == ((b"line\nline\n", server.server_address),)
        server.shutdown()
        serving.result()


def test_logging_datagram_handler_sends_records(monkeypatch, inet, peer):
    monkeypatch.setattr(logging.handlers, "socket", socket)
    other = peer(inet)
    handler = logging.handlers.SysLogHandler(other.address)
    try:
        assert type(handler.socket) is socket.socket
        handler.emit(logging.makeLogRecord({"msg": "it happened"}))
    finally:
        handler.close()
    ((data, _),) = other.do("collect", count=1)
    assert data == b"<12>it happened\x00"


def test_class_has_the_signature_of_the_standard_one():
    assert inspect.signature(socket.socket) == inspect.signature(std.socket)


def test_mock_uses_the_class_as_its_spec():
    double = mock.create_autospec(socket.socket)(socket.AF_INET, socket.SOCK_DGRAM)
    double.recvfrom.return_value = (b"data", ("127.0.0.1", 9))
    assert double.recvfrom(100) == (b"data", ("127.0.0.1", 9))
    assert isinstance(double, socket.socket)
    with pytest.raises(AttributeError):
        double.no_such_method()
    with mock.patch("tomada.socket.socket") as patched:
        assert socket.socket(2, 2) is patched.return_value


def test_pydoc_documents_the_class():
    text = pydoc.plain(pydoc.render_doc(socket.socket))
    assert "recvfrom" in text
    assert "class socket(" in text


@pytest.mark.parametrize("module", ["socket", "tomada.socket"])
def test_multiprocessing_sends_a_socket_to_another_process(module):
    program = """
import importlib, multiprocessing, sys
module = importlib.import_module(sys.argv[1])

def child(pipe):
    with pipe.recv() as sock:
        sock.settimeout(10)
        data, address = sock.recvfrom(100)
        sock.sendto(data.upper(), address)

context = multiprocessing.get_context("fork")
ours, theirs = context.Pipe()
sock = module.socket(module.AF_INET, module.SOCK_DGRAM)
sock.bind(("127.0.0.1", 0))
process = context.Process(target=child, args=(theirs,), daemon=True)
process.start()
ours.send(sock)
with module.socket(module.AF_INET, module.SOCK_DGRAM) as client:
    client.settimeout(10)
    client.sendto(b"loud", sock.getsockname())
    print(client.recv(100))
process.join(10)
sock.close()
"""
    assert run(program, module) == "b'LOUD'\n"


PLACES = ["sock", "sock.itself", "sys.kept", "builtins.kept", "threading.kept"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("warnings", ["always", "ignore"])
def test_program_with_an_unclosed_socket_exits_as_with_the_standard_module(place, warnings):
    # The later the object is destroyed, the less of the interpreter is left to describe it.
    program = f"""
import builtins, importlib, sys, threading
module = importlib.import_module(sys.argv[1])

class Special(module.socket):
    pass

sock = Special(module.AF_INET, module.SOCK_DGRAM)
{place} = sock
if {place!r} != 'sock':
    del sock
"""

    def end_of(module):
        with Child("-W", warnings, "-c", program, module) as child:
            return child.end()

    assert end_of("tomada.socket") == end_of("socket")


@pytest.mark.parametrize("module", ["socket", "tomada.socket"])
def test_program_exits_while_daemon_threads_wait(module):
    program = """
import importlib, sys, threading
module = importlib.import_module(sys.argv[1])
sock = module.socket(module.AF_INET, module.SOCK_DGRAM)
sock.bind(("127.0.0.1", 0))
for timeout in (None, 100, 100):
    sock.settimeout(timeout)
    threading.Thread(target=sock.recvfrom, args=(100,), daemon=True).start()
# One of them is woken while the interpreter shuts down.
sock.sendto(b"x", sock.getsockname())
print("the end")
"""
    assert run(program, module) == "the end\n"


def test_monkeypatched_program_exchanges_datagrams(inet, peer):
    # The other way to replace the module, for programs that cannot be changed.
    program = """
import sys
import tomada.socket
sys.modules["socket"] = tomada.socket
import socket
host, port = sys.argv[1:]
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.settimeout(10)
    sock.sendto(b"there", (host, int(port)))
    print(type(sock).__module__, sock.recv(100))
"""
    other = peer(inet)
    other.ask("echo", count=1)
    assert run(program, *other.address) == "tomada.socket b'there'\n"
