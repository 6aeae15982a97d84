"""The results of type checkers for programs that use the package."""

import json
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

GOOD = """
import asyncio
import contextlib
import socket as std
from collections.abc import AsyncIterator, Iterator
from typing import Any, assert_type

import tomada
import tomada.asyncio
import tomada.sinks
import tomada.trio
from tomada import socket

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    assert_type(sock, socket.socket)
    sock.bind(("127.0.0.1", 0))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.setsockopt(socket.SOL_UDP, socket.UDP_GRO, 1)
    sock.spin = 1e-3
    sock.coalesce = 200e-6
    assert_type(sock.recvfrom(2048), tuple[bytes, Any])
    assert_type(sock.recv_many(), list[tuple[bytes, Any]])
    assert_type(sock.send_many([b"x"], ("127.0.0.1", 9)), int)
    assert_type(sock.send_many([(b"x", ("::1", 9))], errors="continue"), list[tuple[int, OSError]])
    batch = tomada.Batch(8)
    assert_type(sock.recv_batch(batch), int)
    assert_type(batch.timestamps, memoryview)
    assert_type(batch.rows("u4", errors="skip"), Any)
    datagram = sock.recv_datagram()
    assert_type(datagram, tomada.Datagram)
    assert_type(datagram.timestamp_ns, int | None)
    assert_type(sock.stats(), tomada.Stats)
    assert_type(sock.errors(), list[tomada.DatagramError])


def takes_a_standard_socket(sock: std.socket) -> None: ...


takes_a_standard_socket(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
assert_type(one, socket.socket)
assert_type(socket.fromfd(3, socket.AF_INET, socket.SOCK_DGRAM), socket.socket)
try:
    socket.getaddrinfo("localhost", 9, type=socket.SOCK_DGRAM)
except (socket.gaierror, socket.timeout, socket.herror):
    pass
family: socket.AddressFamily = socket.AF_INET6


class Special(socket.socket):
    def recv_two(self) -> list[tuple[bytes, Any]]:
        return self.recv_many(2)


assert_type(Special().recv_two(), list[tuple[bytes, Any]])


async def main() -> int:
    async with tomada.asyncio.open_endpoint(("127.0.0.1", 0)) as endpoint:
        assert_type(endpoint, tomada.asyncio.Endpoint)
        endpoint.send(b"ping", endpoint.get_extra_info("sockname"))
        assert_type(await endpoint.recv(), tuple[bytes, Any])
        assert_type([pair async for pair in endpoint], list[tuple[bytes, Any]])
        assert_type(await endpoint.recv_batch(tomada.Batch(8)), int)
        assert_type(await endpoint.shutdown(1, set[asyncio.Task[None]]()), int)
    async with tomada.asyncio.Client(
        ("127.0.0.1", 9), timeout=1, key=lambda data: data[:2], max_in_flight=10
    ) as client:
        assert_type(await client.request(bytearray(b"x")), bytes)
        assert_type(await client.request_many([b"x"]), list[bytes])
        assert_type(await client.request_many([b"x"], errors="return"), list[bytes | OSError])
        assert_type(client.stats(), tomada.asyncio.ClientStats)
        assert_type(client.stats().replies, int)
    return 0


class Twice(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, tomada.asyncio.DatagramTransport)
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(memoryview(data), addr)
        self.transport.sendto_many([data], addr)
        self.transport.sendto_many((data, ("::1", port, 0, 0)) for port in (8, 9))


async def transports(own: tomada.asyncio.EventLoop) -> None:
    pair = await tomada.asyncio.create_datagram_endpoint(
        asyncio.get_running_loop(), Twice, ("127.0.0.1", 0), gro=True
    )
    assert_type(pair, tuple[tomada.asyncio.DatagramTransport, Twice])
    made = await own.create_datagram_endpoint(
        lambda: Twice(), remote_addr=("::1", 9), family=socket.AF_INET6, coalesce=1e-3
    )
    assert_type(made, tuple[tomada.asyncio.DatagramTransport, Twice])
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        assert_type(await own.sock_recvfrom(sock, 100), tuple[bytes, Any])
        assert_type(await own.sock_sendto(sock, b"x", ("127.0.0.1", 9)), int)


async def on_trio() -> None:
    async with tomada.trio.open_endpoint(("127.0.0.1", 0)) as endpoint:
        assert_type(endpoint, tomada.trio.Endpoint)
        assert_type(await endpoint.recv(), tuple[bytes, Any])


tomada.Client(("127.0.0.1", 9), key=lambda data: bytes(data[:2])).request_many([b"x"])


assert_type(tomada.asyncio.run(main()), int)


def reply(data: bytes, address: tuple[str, int]) -> bytes | None:
    return data


async def later(data: bytes, address: Any) -> bytearray:
    return bytearray(data)


async def look(datagram: tomada.Datagram) -> None: ...


def count(batch: list[tuple[bytes, Any]]) -> list[bytes | None]:
    return [None for _ in batch]


async def store(batch: list[tuple[bytes, Any]]) -> None: ...


def keep(batch: list[tuple[bytes, Any, int | None]]) -> None: ...


@contextlib.contextmanager
def database(server: tomada.Server) -> Iterator[int]:
    yield 3


@contextlib.asynccontextmanager
async def pool(server: tomada.Server) -> AsyncIterator[str]:
    yield "state"


tomada.Server(None, reply, workers=2, lifespan=database, max_requests=1000, max_age=60.0)
tomada.Server(None, later, takes="data", loop="uvloop", max_concurrency=10, lifespan=pool)
tomada.Server(None, lambda data, address: data.upper(), loop=tomada.asyncio.EventLoop)
tomada.Server(None, look, takes="datagram")
tomada.Server(None, count, takes="batch")
tomada.serve(None, store, takes="batch")
tomada.Server(None, keep, takes="timed", steering=tomada.key(0, 4))
tomada.serve(None, tomada.sinks.from_url("nats://127.0.0.1?subject=s"), proxy=["10.0.0.0/8"])
tomada.serve(None, reply, workers=2)
"""

MISTAKES = """
import asyncio

import tomada.asyncio
from tomada import socket

sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.sendto("text", ("127.0.0.1", 9))  # call-overload
sock.recv_many("many")  # arg-type
sock.receive_many()  # attr-defined
socket.UDP_GROW  # attr-defined
data: str = sock.recv(100)  # assignment
opening = tomada.asyncio.open_endpoint(("127.0.0.1", 0))
opening.send(b"x")  # attr-defined
with opening:  # attr-defined  # attr-defined
    pass


def reply(data: bytes, address: object) -> bytes:
    return data


def text(data: bytes, address: object) -> str:
    return "text"


async def later(data: bytes, address: object) -> str:
    return "text"


def look(datagram: tomada.Datagram) -> bytes:
    return datagram.data


def one(batch: list[tuple[bytes, object]]) -> bytes:
    return b"one reply for all"


tomada.serve(None, reply, wrokers=2)  # call-overload  # call-overload
tomada.serve(None, text)  # arg-type
tomada.serve(None, later)  # arg-type
tomada.serve(None, look)  # arg-type
tomada.serve(None, reply, takes="datagram")  # call-overload
tomada.serve(None, reply, takes="batches")  # call-overload
tomada.Server(None, one, takes="batch")  # call-overload
tomada.Server(None, one, takes="timed")  # call-overload
tomada.Server(None, reply, loop="libuv")  # call-overload
tomada.Server(None, reply, lifespan=reply)  # arg-type
def pair(request: bytes, reply: bytes) -> bool:
    return request == reply


tomada.asyncio.Client(("127.0.0.1", 9), tiemout=1)  # call-arg
client = tomada.asyncio.Client(("127.0.0.1", 9), key=pair)  # arg-type
tomada.asyncio.Client(("127.0.0.1", 9), key=list)  # arg-type
client.request("text")  # unused-coroutine  # arg-type
client.request_many([b"x"], errors="ignore")  # call-overload
client.stats().replied  # attr-defined
with client:  # attr-defined  # attr-defined
    pass


class Counting(asyncio.DatagramProtocol):
    count = 0


async def transports(own: tomada.asyncio.EventLoop) -> None:
    create = tomada.asyncio.create_datagram_endpoint
    transport, protocol = await create(own, Counting, remote_addr=("127.0.0.1", 9))
    protocol.counted  # attr-defined
    transport.sendto("text")  # arg-type
    transport.sendto(b"x", 0.9)  # arg-type
    transport.sendto_many(["text"])  # arg-type
    await create(own, Counting, coalese=1.0)  # call-arg
    await create(own, object)  # type-var
    await own.create_datagram_endpoint(Counting, coalese=1.0)  # call-arg
    await own.create_datagram_endpoint(Counting, gro="yes")  # arg-type
    _, own_protocol = await own.create_datagram_endpoint(Counting)
    own_protocol.counted  # attr-defined
    await own.sock_sendto(sock, "text", ("127.0.0.1", 9))  # arg-type


async def tasks() -> None:
    async with tomada.asyncio.open_endpoint(remote_adr=("127.0.0.1", 9)) as endpoint:  # call-arg
        endpoint.send("text")  # arg-type
        endpoint.send(("127.0.0.1", 9), b"x")  # arg-type
        endpoint.send_many([b"x"], 0.9)  # arg-type
        await endpoint.request("text")  # arg-type
"""


def marked(program):
    """Return the numbers and codes of the errors that the comments of a program announce."""
    lines = enumerate(program.splitlines(), 1)
    return [(number, code) for number, line in lines for code in line.split("  # ")[1:]]


@pytest.fixture
def check(tmp_path):
    """Run mypy on a program, and return the lines and codes of its errors."""

    def run(program):
        path = tmp_path / "program.py"
        path.write_text(program, encoding="utf-8")
        command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", path.name]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode in {0, 1}, done.stdout + done.stderr
        pattern = r"^program\.py:(\d+): error: .*\[([a-z-]+)\]$"
        found = re.findall(pattern, done.stdout, re.MULTILINE)
        return [(int(number), code) for number, code in found]

    return run


def test_mypy_accepts_a_program_that_uses_everything(check):
    assert check(GOOD) == []


def test_mypy_finds_mistakes(check):
    assert len(marked(MISTAKES)) == 43
    assert check(MISTAKES) == marked(MISTAKES)


def test_pyright_accepts_the_program_and_finds_the_mistakes(tmp_path):
    pytest.importorskip("basedpyright")
    (tmp_path / "good.py").write_text(GOOD, encoding="utf-8")
    (tmp_path / "mistakes.py").write_text(MISTAKES, encoding="utf-8")
    # The mode is pyright's own. typeshed calls a decorated function that returns an Iterator
    # deprecated.
    config = {"typeCheckingMode": "strict", "reportDeprecated": "none", "pythonVersion": "3.11"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config), encoding="utf-8")
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    errors = [
        (error["file"].rpartition("/")[2], error["range"]["start"]["line"] + 1)
        for error in json.loads(done.stdout)["generalDiagnostics"]
    ]
    assert set(errors) == {("mistakes.py", number) for number, _ in marked(MISTAKES)}
