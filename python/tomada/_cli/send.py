"""``tomada send``: datagrams from arguments, a file or standard input."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tomada._address import format_address
from tomada._cli.common import (
    FAILURE,
    SUCCESS,
    CommandError,
    UsageError,
    add_address,
    add_json,
    address,
    count,
    count_or_none,
    described,
    family_and_name,
    note,
    put_json,
    rate,
    seconds,
    shown,
)
from tomada._cli.dtls import CLIENT_DTLS, client_context, naming_options, secure
from tomada._cli.options import add_options

if TYPE_CHECKING:
    from tomada._cli.dtls import Secured

EXAMPLES = """
examples:
  tomada send 127.0.0.1:1234 hello           one datagram
  tomada send 127.0.0.1:1234 hello --expect-reply
  tomada send 127.0.0.1:1234 --count 1000 --rate 100 hello
  seq 5 | tomada send 127.0.0.1:1234         one datagram per line
  tomada send 127.0.0.1:1234 --hex 0a0b ff   two datagrams with these bytes
  tomada send example.com:4433 hello --dtls  encrypted

exit status:
  0  everything was sent and, with --expect-reply, every reply arrived
  1  something could not be sent, or a reply is missing
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "send",
        help="send datagrams, and print the replies",
        description="Send datagrams to an address: each TEXT, a file, or each line of standard "
        "input. UDP does not report whether they arrive; use --expect-reply to find out.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_address(parser, "where to send", has_default=False)
    parser.add_argument("text", metavar="TEXT", nargs="*", help="a datagram")
    parser.add_argument("--file", metavar="F", help="a file to send as one datagram; - is stdin")
    parser.add_argument("--hex", action="store_true", help="read TEXT and lines as hexadecimal")
    parser.add_argument(
        "--count", type=count, default=1, metavar="N", help="send everything N times (default: 1)"
    )
    parser.add_argument(
        "--rate", type=rate, metavar="R", help="at most R datagrams per second (default: no limit)"
    )
    parser.add_argument(
        "--expect-reply",
        action="store_true",
        help="wait for the reply to each datagram, and print it",
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=2.0,
        metavar="S",
        help="seconds to wait for a reply, including retries and the DTLS handshake (default: 2)",
    )
    parser.add_argument(
        "--retries",
        type=count_or_none,
        default=3,
        metavar="N",
        help="the maximum number of retransmissions (default: 3)",
    )
    parser.add_argument(
        "--proxy-from",
        type=address,
        metavar="HOST:PORT",
        help="begin each datagram with a PROXY protocol header for this source address",
    )
    add_json(parser, "the replies and a summary")
    add_options(parser, CLIENT_DTLS)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    datagrams = paced(payloads(arguments), arguments.rate)
    secured = client_context(arguments)
    if secured is not None and arguments.proxy_from is not None:
        raise UsageError("--proxy-from cannot be combined with DTLS")
    return (ask if arguments.expect_reply else send)(arguments, datagrams, secured)


def payloads(arguments: argparse.Namespace) -> Iterator[bytes]:
    """Yield the datagrams, as often as requested."""
    if arguments.file is not None:
        if arguments.text:
            raise CommandError("pass either TEXT or --file, not both")
        is_stdin = arguments.file == "-"
        data = sys.stdin.buffer.read() if is_stdin else Path(arguments.file).read_bytes()
        once = [data]
    elif arguments.text:
        once = [encoded(text, arguments.hex) for text in arguments.text]
    elif arguments.count == 1:
        # Send each line as it arrives, in case a user types them.
        yield from (encoded(line.rstrip("\n"), arguments.hex) for line in lines())
        return
    else:
        once = [encoded(line.rstrip("\n"), arguments.hex) for line in lines()]
    for _ in range(arguments.count):
        yield from once


def lines() -> Iterator[str]:
    for line in iter(sys.stdin.buffer.readline, b""):
        yield os.fsdecode(line)


def encoded(text: str, is_hex: bool) -> bytes:
    if not is_hex:
        return os.fsencode(text)
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise CommandError(f"{text!r} is not hexadecimal, such as 0a0b") from None


def paced(datagrams: Iterator[bytes], per_second: float | None) -> Iterator[bytes]:
    """Yield each datagram when it is due."""
    started = time.monotonic()
    for index, data in enumerate(datagrams):
        if per_second is not None:
            time.sleep(max(started + index / per_second - time.monotonic(), 0.0))
        yield data


def proxy_header(client: Any, server: Any) -> bytes:
    """Return the PROXY header to prepend to each datagram."""
    from tomada._proxy_header import header_for

    if client is None:
        return b""
    try:
        return header_for(client, server)
    except (TypeError, ValueError) as error:
        raise CommandError(str(error)) from None


def send(arguments: argparse.Namespace, datagrams: Iterator[bytes], secured: Secured | None) -> int:
    """Send without waiting for replies."""
    from tomada import socket

    sent = size = refused = 0
    family, name = family_and_name(arguments.address)
    header = proxy_header(arguments.proxy_from, name)
    where = format_address(name)
    with socket.socket(family, socket.SOCK_DGRAM) as plain:
        plain.connect(name)
        with secure(plain, secured, arguments.timeout) as sock:
            for data in datagrams:
                try:
                    size += sock.send(header + data)
                except ConnectionRefusedError:
                    # The error is about the previous datagram; this one was not sent.
                    refused += 1
                    size += sock.send(header + data)
                sent += 1
            refused += sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
    if arguments.json:
        put_json({"sent": sent, "bytes": size, "to": where, "is_refused": bool(refused)})
    else:
        note(f"sent {plural(sent)}, {size:,} bytes, to {where}")
    if refused:
        raise CommandError(f"no program is listening on {where}")
    return SUCCESS


def ask(arguments: argparse.Namespace, datagrams: Iterator[bytes], secured: Secured | None) -> int:
    """Send each datagram, and print its reply."""
    from tomada.client import Client

    sent = lost = 0
    proxy_header(arguments.proxy_from, family_and_name(arguments.address)[1])
    context, name = secured or (None, None)
    options = {"proxy_from": arguments.proxy_from, "dtls": context, "server_hostname": name}
    with Client(arguments.address, arguments.timeout, arguments.retries, **options) as client:
        for data in datagrams:
            sent += 1
            started = time.perf_counter()
            try:
                with naming_options():
                    reply = client.request(data)
            except TimeoutError as error:
                lost += 1
                cause = f" ({error.__cause__})" if error.__cause__ else ""
                note(f"tomada send: {error}{cause}")
                continue
            took = time.perf_counter() - started
            if arguments.json:
                put_json({"reply": described(reply), "seconds": took})
            else:
                print(shown(reply), flush=True)
    if arguments.json:
        put_json({"sent": sent, "replies": sent - lost, "lost": lost})
    elif lost or sent > 1:
        note(f"sent {plural(sent)}, {sent - lost:,} answered")
    return FAILURE if lost else SUCCESS


def plural(datagrams: int) -> str:
    return "1 datagram" if datagrams == 1 else f"{datagrams:,} datagrams"
