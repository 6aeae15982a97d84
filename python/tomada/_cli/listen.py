"""``tomada listen``: prints received datagrams, and writes them to a capture file."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tomada._address import format_address
from tomada._advice import OF_BINDING, advise
from tomada._cli import pcap
from tomada._cli.common import (
    FAILURE,
    SUCCESS,
    CommandError,
    add_address,
    add_json,
    count,
    described,
    family_and_name,
    note,
    put_json,
    seconds,
    shown,
)

if TYPE_CHECKING:
    from tomada import Datagram

EXAMPLES = """
examples:
  tomada listen                              on 127.0.0.1:1234, until Ctrl-C
  tomada listen 0.0.0.0:5353 --group 224.0.0.251
  tomada listen :1234 --pcap seen.pcap       read it with tshark -r seen.pcap
  tomada listen :1234 --count 1 --timeout 5  one datagram, or failure after 5 seconds

exit status:
  0  stopped by Ctrl-C, or after --count datagrams
  1  could not listen, or nothing arrived for --timeout seconds
"""

HEX_WIDTH = 16


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "listen",
        help="print the datagrams that arrive",
        description="Print each datagram that arrives: its time, sender, length and content.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_address(parser, "where to listen", has_default=True)
    parser.add_argument("--count", type=count, metavar="N", help="stop after N datagrams")
    parser.add_argument(
        "--timeout", type=seconds, metavar="S", help="stop when nothing arrives for S seconds"
    )
    parser.add_argument("--hex", action="store_true", help="also show the bytes in hexadecimal")
    parser.add_argument("--pcap", metavar="FILE", help="also write the datagrams to a capture file")
    parser.add_argument(
        "--group", metavar="G", action="append", default=[], help="join a multicast group"
    )
    parser.add_argument(
        "--interface", metavar="I", help="the interface to join on: name, index or address"
    )
    add_json(parser, "each datagram")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    show = show_json if arguments.json else show_hex if arguments.hex else show_text
    status, problem = SUCCESS, None
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(opened(arguments))
        own = sock.getsockname()
        writer = None
        if arguments.pcap:
            file = stack.enter_context(Path(arguments.pcap).open("wb", buffering=0))
            writer = pcap.Writer(file)
        note(f"listening on {format_address(own)}; Ctrl-C ends it")
        try:
            for batch in batches(sock, arguments.count):
                try:
                    if writer is not None:
                        capture(writer, batch, own)
                except OSError as error:  # the disk is full
                    problem = error
                for item in batch:
                    show(item)
                if problem is not None:
                    break
        except KeyboardInterrupt:
            pass  # the usual way to end the command
        except TimeoutError:
            note(f"nothing arrived for {arguments.timeout:g} s")
            status = FAILURE
        stats = sock.stats()
    count = f"{stats.received:,} datagram{'' if stats.received == 1 else 's'}"
    lost = f"; the kernel dropped {stats.kernel_drops:,}" if stats.kernel_drops else ""
    note(f"{count}, {stats.received_bytes:,} bytes{lost}")
    if writer is not None and problem is not None:
        note(f"the capture ends after {writer.packets:,} of them")
        raise problem
    return status


def opened(arguments: argparse.Namespace) -> Any:
    """Open the socket to listen on."""
    from tomada import socket
    from tomada._socket_options import SocketOptions

    family, name = family_and_name(arguments.address, is_local=True)
    if arguments.pcap and family == socket.AF_UNIX:
        raise CommandError("--pcap captures only IP: it is not available with AF_UNIX")
    sock: Any = socket.socket(family, socket.SOCK_DGRAM)
    try:
        # Enable the metadata before the first datagram can arrive.
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.recv_datagrams()
        try:
            sock.bind(name)
        except OSError as error:
            advise(error, format_address(name), OF_BINDING)
            raise
        interface = interface_of(arguments.interface)
        groups = [(group, interface) for group in arguments.group]
        SocketOptions(gro=False, groups=groups).apply(sock)
        sock.settimeout(arguments.timeout)
    except ValueError as error:
        sock.close()
        raise CommandError(str(error)) from None
    except BaseException:
        sock.close()
        raise
    return sock


def interface_of(text: str | None) -> str | int | None:
    return int(text) if text is not None and text.isdecimal() else text


def batches(sock: Any, most: int | None) -> Iterator[list[Datagram]]:
    """Yield batches of datagrams as they arrive, up to a total number."""
    left = most
    while left is None or left > 0:
        batch: list[Datagram] = sock.recv_datagrams(64 if left is None else min(left, 64))
        if left is not None:
            left -= len(batch)
        yield batch


def capture(writer: pcap.Writer, batch: list[Datagram], own: Any) -> None:
    """Write datagrams to the capture file."""
    for item in batch:
        if item.host is not None and item.port is not None:
            destination = item.destination or own[0], own[1]
            source = item.host, item.port
            packet = pcap.packet_of(item.data, source, destination, item.ttl, item.tos)
            writer.write(packet, item.timestamp_ns or time.time_ns())
    writer.flush()


def moment(item: Datagram) -> float:
    return (item.timestamp_ns or time.time_ns()) / pcap.NANOSECONDS


def headline(item: Datagram) -> str:
    when = datetime.fromtimestamp(moment(item)).astimezone().strftime("%H:%M:%S.%f")
    return f"{when} {format_address(item.address)} {len(item)} bytes"


def show_text(item: Datagram) -> None:
    print(f"{headline(item)}: {shown(item.data)}" if item.data else headline(item), flush=True)


def show_hex(item: Datagram) -> None:
    lines = [headline(item)]
    for start in range(0, len(item), HEX_WIDTH):
        row = item.data[start : start + HEX_WIDTH]
        text = "".join(
            char if char.isprintable() else "." for char in row.decode("ascii", "replace")
        )
        text = text.replace("\ufffd", ".")
        lines.append(f"  {start:04x}  {row.hex(' '):{3 * HEX_WIDTH - 1}}  {text}")
    print("\n".join(lines), flush=True)


def show_json(item: Datagram) -> None:
    put_json(
        {
            "time": moment(item),
            "from": format_address(item.address),
            "to": item.destination,
            "ttl": item.ttl,
            "tos": item.tos,
            **described(item.data),
        }
    )
