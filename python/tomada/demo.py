"""``tomada demo``: sends the lines of a text to a server in another process and checks the replies.

It runs three times: with tomada's :class:`~tomada.Server` and :class:`~tomada.Client`, with a
client that uses the standard ``socket`` module, and with a server that uses it.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import tomada
from tomada._cli.peers import end_with_parent, started

HOST, PORT = "127.0.0.1", 1234
LARGEST = 65_507  # bytes in a UDP datagram over IPv4
TIMEOUT = 2.0
SHOWN = 5
WIDTH = 34


class DemoError(Exception):
    """The demonstration failed."""


@dataclass
class Result:
    """The measurements of one client."""

    datagrams: int = 0
    bytes: int = 0
    mismatches: int = 0
    median_us: float = 0.0
    shown: list[tuple[str, str]] = field(default_factory=list)


def answer(line: bytes) -> bytes:
    """Return the server's reply to a line."""
    return line.decode().upper().encode()


def serve(port: int) -> None:
    """Answer every datagram until the process is killed. Print the address first."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.bind((HOST, port))
        except OSError:
            s.bind((HOST, 0))
        print(json.dumps(s.getsockname()), flush=True)
        while True:
            line, client = s.recvfrom(65_535)
            s.sendto(answer(line), client)


def serve_with_tomada(port: int) -> None:
    """Do the same as :func:`serve`, with tomada."""

    def handle(line: bytes, _client: object) -> bytes:
        return answer(line)

    server = tomada.Server((HOST, port), handle)
    try:
        server.start()
    except OSError:
        server = tomada.Server((HOST, 0), handle)
        server.start()
    try:
        print(json.dumps(server.address), flush=True)
        signal.pause()
    finally:
        server.stop()


@contextlib.contextmanager
def asking(port: int) -> Iterator[Callable[[bytes], bytes]]:
    """Yield a function that sends a line and returns the reply, or raises a TimeoutError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect((HOST, port))
        s.settimeout(TIMEOUT)

        def ask(line: bytes) -> bytes:
            s.send(line)
            return s.recv(65_535)

        yield ask


@contextlib.contextmanager
def asking_with_tomada(port: int) -> Iterator[Callable[[bytes], bytes]]:
    """Do the same as :func:`asking`, with tomada."""
    with tomada.Client((HOST, port), timeout=TIMEOUT, retry_refused=False) as client:
        yield client.request


def converse(ask: Callable[[bytes], bytes], lines: Sequence[bytes]) -> Result:
    """Send each line, wait for its reply, and compare."""
    result, times = Result(), []
    for line in lines:
        started = time.perf_counter()
        try:
            reply = ask(line)
        except TimeoutError:
            reply = b"(no answer)"
        times.append(time.perf_counter() - started)
        result.datagrams += 1
        result.bytes += len(line)
        result.mismatches += reply != answer(line)
        if len(result.shown) < SHOWN and line:
            result.shown.append((line.decode(), reply.decode()))
    result.median_us = statistics.median(times) * 1e6
    return result


def peer(role: str, module: str, port: str) -> None:
    """Run one of the two processes: ``server`` or ``client``."""
    is_ours = module == "tomada"
    with contextlib.suppress(KeyboardInterrupt):
        if role == "client":
            lines = sys.stdin.buffer.read().splitlines()
            with (asking_with_tomada if is_ours else asking)(int(port)) as ask:
                print(json.dumps(asdict(converse(ask, lines))))
        else:
            end_with_parent()
            (serve_with_tomada if is_ours else serve)(int(port))


def run_pair(server: str, client: str, port: int, text: bytes) -> Result:
    """Run one server and one client, and print their address."""
    with started("tomada.demo", "server", server, str(port)) as serving:
        assert serving.stdout
        address = serving.stdout.readline()
        if not address:
            raise DemoError(f"the {name(server)} server did not start")
        _, bound = json.loads(address)
        if bound != port:
            print(f"port {port} is taken, so the server uses {bound}")
        print(f"{name(server)} server on {HOST}:{bound} (process {serving.pid})", end=", ")
        with started("tomada.demo", "client", client, str(bound)) as conversing:
            print(f"{name(client)} client (process {conversing.pid})", flush=True)
            output, _ = conversing.communicate(text)
    if not output:
        raise DemoError(f"the {name(client)} client ended without a result")
    result = Result(**json.loads(output))
    for line, reply in result.shown:
        print(f"  {shorten(line)} -> {shorten(reply).rstrip()}")
    print(flush=True)
    return result


def name(module_name: str) -> str:
    return "tomada" if module_name == "tomada" else "plain socket"


def shorten(text: str) -> str:
    return (text if len(text) <= WIDTH else text[: WIDTH - 1] + "…").ljust(WIDTH)


def read_text(file: str | None) -> tuple[str, bytes]:
    """Return a text's name and bytes: those of a file, or of tomada's README."""
    if file is None:
        readme: Any = metadata("tomada")
        return "tomada's README", (readme.get_payload() or readme["Description"]).encode()
    text = Path(file).read_bytes()
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise DemoError(f"{file} is not UTF-8 text: {error}") from None
    longest = max(map(len, text.splitlines()), default=0)
    if longest > LARGEST:
        raise DemoError(f"{file} has a line of {longest:,} bytes; a datagram carries {LARGEST:,}")
    return file, text


def main(file: str | None = None, port: int = PORT) -> int:
    """Run the demonstration; return 0 only if every reply was right.

    :raises DemoError: It failed; the message says why.
    """
    title, text = read_text(file)
    lines = text.splitlines()
    print(f"{title}: {len(lines)} lines, each a datagram; the server answers in capitals.\n")
    pairs = [
        ("tomada", "tomada"),
        ("tomada", "socket"),
        ("socket", "tomada"),
    ]
    results = [(*pair, run_pair(*pair, port, text)) for pair in pairs]
    print("server        client        datagrams    bytes  mismatches  round trip (median)")
    for server, client, result in results:
        print(
            f"{name(server):12}  {name(client):12}  {result.datagrams:9,}  {result.bytes:7,}"
            f"  {result.mismatches:10,}  {result.median_us:11.1f} µs"
        )
    wrong = sum(result.mismatches for *_, result in results)
    expected = len(pairs) * len(lines)
    if wrong or sum(result.datagrams for *_, result in results) != expected:
        print(f"\n{wrong} replies were wrong or missing")
        return 1
    print("\nevery reply matched")
    return 0


if __name__ == "__main__":
    peer(*sys.argv[1:])
