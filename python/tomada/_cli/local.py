"""``tomada bench --local``: compares echo servers on tomada, socket and asyncio under one load."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tomada._cli.common import SUCCESS, CommandError, console, note
from tomada._cli.load import Load
from tomada._cli.peers import end_with_parent, started

CLIENTS, WINDOW, SECONDS = 8, 8, 1.0
LARGEST = 65_535


@dataclass
class Row:
    """The measurements of one server."""

    server: str
    rate: float
    cpu_us: float
    p50_us: float
    p99_us: float
    loss: float


def by_socket() -> None:
    import socket

    echo_one_by_one(socket)


def by_tomada_socket() -> None:
    from tomada import socket

    echo_one_by_one(socket)


def echo_one_by_one(module: Any) -> None:
    with module.socket(module.AF_INET, module.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        announce(sock.getsockname()[1])
        while True:
            sock.sendto(*sock.recvfrom(LARGEST))


def by_batches() -> None:
    from tomada import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        batched: Any = sock
        sock.bind(("127.0.0.1", 0))
        announce(sock.getsockname()[1])
        while True:
            batched.send_many(batched.recv_many())


def by_server() -> None:
    import tomada

    server = tomada.Server(("127.0.0.1", 0), lambda data, _address: data)
    server.start()
    announce(server.address[1])
    server.serve_forever()


def by_asyncio() -> None:
    import asyncio

    asyncio.run(echo_by_protocol())


def by_tomada_asyncio() -> None:
    from tomada import asyncio

    asyncio.run(echo_by_protocol())


async def echo_by_protocol() -> None:
    import asyncio

    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, address: Any) -> None:
            self.transport.sendto(data, address)

    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Echo, ("127.0.0.1", 0))
    announce(transport.get_extra_info("sockname")[1])
    await loop.create_future()


SERVERS: dict[str, Callable[[], None]] = {
    "asyncio": by_asyncio,
    "socket": by_socket,
    "tomada.asyncio": by_tomada_asyncio,
    "tomada.socket": by_tomada_socket,
    "tomada.socket, recv_many": by_batches,
    "tomada.Server": by_server,
}


def announce(port: int) -> None:
    print(port, flush=True)


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system = int(fields[11]), int(fields[12])
    return (user + system) / os.sysconf("SC_CLK_TCK")


def measure(server: str, arguments: argparse.Namespace) -> Row:
    options = {
        "clients": arguments.clients or CLIENTS,
        "window": arguments.window or WINDOW,
        "size": arguments.size,
        "timeout": arguments.timeout,
    }
    duration = arguments.duration or SECONDS
    with started("tomada._cli.local", server) as process:
        assert process.stdout
        line = process.stdout.readline()
        if not line:
            raise CommandError(f"the {server} server did not start")
        address = "127.0.0.1", int(line)
        Load(address, **options).run(duration / 10)  # to warm up
        before = cpu_seconds(process.pid)
        result = Load(address, **options).run(duration)
        used = cpu_seconds(process.pid) - before
    if not result.received:
        raise CommandError(f"the {server} server did not reply")
    return Row(
        server,
        result.rate,
        used / result.received * 1e6,
        (result.latency.quantile(0.5) or 0) / 1e3,
        (result.latency.quantile(0.99) or 0) / 1e3,
        result.loss,
    )


def compare(arguments: argparse.Namespace) -> int:
    """Measure every server, and print a table."""
    note(
        f"an echo of {arguments.size} bytes over 127.0.0.1, {arguments.clients or CLIENTS} clients "
        f"with {arguments.window or WINDOW} datagrams under way each; the load is one Python "
        "process beside it"
    )
    rows = []
    for server in SERVERS:
        row = measure(server, arguments)
        rows.append(row)
        if console() is None:
            note(f"  {server}: {row.rate:,.0f}/s")
    if arguments.json:
        print(json.dumps([vars(row) for row in rows]))
        return SUCCESS
    base = next(row.rate for row in rows if row.server == "socket")
    heads = ("server", "datagrams/s", "× socket", "CPU µs each", "p50 µs", "p99 µs", "lost")
    cells = [
        (
            row.server,
            f"{row.rate:,.0f}",
            f"{row.rate / base:.2f}",
            f"{row.cpu_us:.2f}",
            f"{row.p50_us:,.0f}",
            f"{row.p99_us:,.0f}",
            f"{row.loss:.2%}",
        )
        for row in rows
    ]
    print_table(heads, cells)
    return SUCCESS


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: rich's on a terminal if rich is installed, otherwise plain text."""
    terminal = console() if sys.stdout.isatty() else None
    if terminal is not None:
        from rich.console import Console
        from rich.table import Table

        table = Table(*heads[:1])
        for head in heads[1:]:
            table.add_column(head, justify="right")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, *rows):
        first, *rest = (
            f"{cell:<{width}}" if index == 0 else f"{cell:>{width}}"
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join((first, *rest)))


def main(server: str) -> None:
    """Run a server until the process that started it exits."""
    end_with_parent()
    with contextlib.suppress(KeyboardInterrupt):
        SERVERS[server]()


if __name__ == "__main__":
    main(sys.argv[1])
