"""``tomada impair``: a link that loses, delays, duplicates and reorders datagrams."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tomada._address import format_address
from tomada._advice import OF_BINDING, advised
from tomada._cli import pcap
from tomada._cli.common import (
    SUCCESS,
    CommandError,
    add_json,
    address,
    console,
    count,
    note,
    number,
    seconds,
)

if TYPE_CHECKING:
    from tomada._testing.impairments import LinkStats, PathStats
    from tomada._testing.link import Link

EXAMPLES = """
examples:
  tomada impair :5300 127.0.0.1:53 --loss 5% --delay 40ms±10ms
  tomada impair :4433 127.0.0.1:443 --rate 2mbit --queue 50 --reorder 1%
  tomada impair :1234 10.0.0.7:1234 --loss 0 --to-client-loss 30%
  tomada impair :1234 10.0.0.7:1234 --burst-loss 5%/4 --seed 7 --pcap both.pcap

Clients send to LISTEN instead of UPSTREAM. The server sees a separate port for each client.
Shares are written 5% or 0.05, times 40ms or 0.04s, rates in bits per second: 500kbit, 2mbit.
Options that begin with --to-server- or --to-client- override the general option in one direction.

The capture contains each datagram as it arrived and, if it passed, as it left.

exit status:
  0  stopped by Ctrl-C, SIGTERM or --duration
  1  could not listen
"""

INTERVAL = 0.2
ENDING = (signal.SIGINT, signal.SIGTERM)
UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
RATES = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
SIDES = ("", "to-server-", "to-client-")


def share(text: str) -> float:
    """Parse ``5%`` or ``0.05``."""
    scale = 100 if text.endswith("%") else 1
    value: float = number(text.removesuffix("%"), float, 0, "a share, such as 5% or 0.05")
    if value > scale:
        raise argparse.ArgumentTypeError(f"{text!r} is more than 100%")
    return value / scale


def bursts(text: str) -> Any:
    """Parse ``5%/4``: a share, and the average length of a burst."""
    from tomada._testing.impairments import GilbertElliott

    loss, slash, length = text.partition("/")
    if not slash:
        raise argparse.ArgumentTypeError(f"{text!r} is not SHARE/LENGTH, such as 5%/4")
    length_value: float = number(length, float, 1, "a number of datagrams from 1 up")
    try:
        return GilbertElliott.bursts(share(loss), length_value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def duration(text: str) -> float:
    """Parse ``40ms``, ``0.04s`` or ``40us``."""
    match = re.fullmatch(r"([\d.]+)\s*(s|ms|us|µs)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time, such as 40ms or 0.04s")
    value: float = number(match[1], float, 0, "a number")
    return value * UNITS[match[2]]


def delay(text: str) -> tuple[float, float]:
    """Parse ``40ms``, or ``40ms±10ms`` with a jitter; ``+-`` is the same as ``±``."""
    middle, sign, jitter = text.replace("+-", "±").partition("±")
    return duration(middle), duration(jitter) if sign else 0.0


def bit_rate(text: str) -> float:
    """Parse ``2mbit``, or a number of bits per second."""
    match = re.fullmatch(r"([\d.]+)\s*(bit|kbit|mbit|gbit)?", text.lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate, such as 500kbit or 2mbit")
    value: float = number(match[1], float, 1e-6, "a rate greater than 0")
    return value * RATES[match[2] or "bit"]


# The options of each direction: how they are parsed, what they are called, and what they do.
OPTIONS: dict[str, tuple[Callable[[str], Any], str, str]] = {
    "loss": (share, "SHARE", "the share of datagrams that are lost"),
    "burst-loss": (bursts, "SHARE/N", "the share that is lost, in bursts of N on average"),
    "delay": (delay, "TIME±TIME", "the delay, and the maximum deviation from it"),
    "reorder": (share, "SHARE", "the share that the next datagram overtakes"),
    "duplicate": (share, "SHARE", "the share that arrives twice"),
    "corrupt": (share, "SHARE", "the share in which a bit is flipped"),
    "truncate": (share, "SHARE", "the share that is truncated"),
    "rate": (bit_rate, "RATE", "payload bits per second"),
    "queue": (count, "N", "how many datagrams may wait because of the rate (default: 1000)"),
    "mtu": (count, "BYTES", "the longest IP packet; longer packets are dropped"),
}


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "impair",
        help="forward datagrams between clients and a server, and drop, delay or reorder them",
        description="Forward datagrams between clients and a server, and impair them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "listen", metavar="LISTEN", type=address, help="the address that clients send to"
    )
    parser.add_argument("upstream", metavar="UPSTREAM", type=address, help="the server's address")
    for side in SIDES:
        for name, (kind, metavar, text) in OPTIONS.items():
            shown = text if not side else argparse.SUPPRESS
            parser.add_argument(f"--{side}{name}", type=kind, metavar=metavar, help=shown)
    parser.add_argument("--seed", type=int, metavar="N", help="reproduce another run")
    parser.add_argument(
        "--script",
        metavar="STEPS",
        help="what happens to the first datagrams: 'drop; pass; delay 50ms'",
    )
    parser.add_argument("--duration", type=seconds, metavar="S", help="stop after S seconds")
    parser.add_argument("--pcap", metavar="FILE", help="capture the datagrams on both sides")
    add_json(parser, "the final counters")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    link = link_of(arguments)
    with contextlib.ExitStack() as stack:
        wait_for_end = stack.enter_context(ending_put_off())
        writer = None
        if arguments.pcap:
            file = stack.enter_context(Path(arguments.pcap).open("wb", buffering=0))
            writer = pcap.Writer(file)
        with advised(arguments.listen, OF_BINDING):
            link.start()
        stack.callback(drain_capture, link, writer)  # the rest, after the link is closed
        stack.push(link)
        to = format_address(arguments.upstream)
        note(f"impairing {format_address(link.address)} → {to} (seed {link.seed}); Ctrl-C ends it")
        end = math.inf if arguments.duration is None else time.monotonic() + arguments.duration
        has_ended = False
        with live_view(link) as update:
            while not has_ended and (left := end - time.monotonic()) > 0:
                has_ended = wait_for_end(min(INTERVAL, left))
                drain_capture(link, writer)
                update()
    stats = link.stats
    if arguments.json:
        print(json.dumps({"seed": link.seed, **as_json(stats)}))
    else:
        print("\n".join(report(stats)))
    return SUCCESS


@contextlib.contextmanager
def ending_put_off() -> Iterator[Callable[[float], bool]]:
    """Defer Ctrl-C and SIGTERM; yield a function that waits for them, with a timeout in seconds.

    Then they cannot interrupt a write to the capture file, nor a thread that the block starts.
    """
    numbers = {number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield lambda seconds: signal.sigtimedwait(numbers, seconds) is not None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def link_of(arguments: argparse.Namespace) -> Link:
    """Return the link that the arguments describe."""
    from tomada._testing.impairments import Impairments
    from tomada._testing.link import Link

    for where in (arguments.listen, arguments.upstream):
        if isinstance(where, str):
            raise CommandError("impair works only over IP: pass HOST:PORT for both addresses")
    script = None
    if arguments.script is not None:
        script = [step.strip() for step in arguments.script.split(";")]
    try:
        general = options_of(arguments, "")
        both = [
            Impairments(**{**general, **options_of(arguments, side)})
            for side in ("to_server_", "to_client_")
        ]
        return Link(
            arguments.upstream,
            (both[0], both[1]),
            script=script,
            seed=arguments.seed,
            listen=arguments.listen,
            log_size=0,
            captures=arguments.pcap is not None,
        )
    except ValueError as error:
        raise CommandError(str(error)) from None


def options_of(arguments: argparse.Namespace, side: str) -> dict[str, Any]:
    """Return the impairments that the arguments give for a side."""
    given = {}
    for name in (option.replace("-", "_") for option in OPTIONS):
        value = getattr(arguments, side + name)
        if value is None:
            continue
        if name == "delay":
            given["delay"], given["jitter"] = value
        else:
            given["loss" if name == "burst_loss" else name] = value
    return given


def drain_capture(link: Link, writer: pcap.Writer | None) -> None:
    """Write the datagrams that were captured since the last call."""
    if writer is None:
        return
    captured, missing = link.take_captured()
    for time_ns, source, destination, data in captured:
        writer.write(pcap.packet_of(data, source[:2], destination[:2]), time_ns)
    writer.flush()
    if missing:
        note(f"{missing:,} datagrams were not captured: the disk was too slow")


def as_json(stats: LinkStats) -> dict[str, Any]:
    """Return the counters for JSON."""
    return {
        "to_server": asdict(stats.to_server),
        "to_client": asdict(stats.to_client),
        "kernel_drops": stats.kernel_drops,
        "server_icmp_errors": stats.server_icmp_errors,
        "client_icmp_errors": stats.client_icmp_errors,
    }


ROWS = {
    "received": "arrived",
    "sent": "passed",
    "lost": "lost",
    "scripted": "dropped by the script",
    "queue_full": "dropped, the queue was full",
    "too_long": "dropped, longer than the MTU",
    "unsendable": "dropped, the kernel refused",
    "cut": "in flight at the end",
    "delayed": "delayed",
    "reordered": "reordered",
    "duplicated": "duplicated",
    "corrupted": "corrupted",
    "truncated": "truncated",
    "queued": "in flight",
}
ALWAYS = ("received", "sent", "lost")


def rows(stats: LinkStats) -> Iterator[tuple[str, int, int]]:
    """Yield the lines of the report: a text, and the counters of both directions."""
    for name, text in ROWS.items():
        counts = getattr(stats.to_server, name), getattr(stats.to_client, name)
        if name in ALWAYS or any(counts):
            yield text, *counts
    if stats.kernel_drops:
        yield "dropped by the kernel before the link", stats.kernel_drops, 0
    if stats.server_icmp_errors or stats.client_icmp_errors:
        yield "ICMP errors", stats.server_icmp_errors, stats.client_icmp_errors


def report(stats: LinkStats) -> Iterator[str]:
    """Yield the lines of the report at the end."""
    yield f"{'to the server':>14}  {'to clients':>14}"
    for text, to_server, to_client in rows(stats):
        yield f"{to_server:14,}  {to_client:14,}  {text}"


@contextlib.contextmanager
def live_view(link: Link) -> Iterator[Callable[[], None]]:
    """Show the counters while the link runs: a table if rich is installed, otherwise a line."""
    terminal = console()
    if terminal is not None:
        from rich.live import Live

        with Live(console=terminal, transient=True, auto_refresh=False) as live:
            yield lambda: live.update(table(link.stats), refresh=True)
    elif sys.stderr.isatty():
        try:
            yield lambda: put(line(link.stats))
        finally:  # Ctrl-C ends it
            put("")
    else:
        yield lambda: None


def table(stats: LinkStats) -> Any:
    """Return rich's table of the counters."""
    from rich.table import Table

    shown = Table("", "to the server", "to clients", box=None)
    for column in shown.columns[1:]:
        column.justify = "right"
    for text, to_server, to_client in rows(stats):
        shown.add_row(text, f"{to_server:,}", f"{to_client:,}")
    return shown


def line(stats: LinkStats) -> str:
    """Return the counters on one line."""

    def side(path: PathStats) -> str:
        return f"{path.sent:,} of {path.received:,}, {path.dropped:,} dropped"

    return f"to the server {side(stats.to_server)}; to clients {side(stats.to_client)}"


def put(text: str) -> None:
    print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
