"""``tomada bench``: measures a server's speed, or how tomada compares on this machine."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from tomada._address import format_address
from tomada._cli.common import (
    FAILURE,
    SUCCESS,
    CommandError,
    add_json,
    address,
    console,
    count,
    note,
    seconds,
)
from tomada._cli.dtls import CLIENT_DTLS, client_context
from tomada._cli.load import LABEL, Histogram, Load, Result
from tomada._cli.options import add_options

EXAMPLES = """
examples:
  tomada serve & tomada bench 127.0.0.1:1234
  tomada bench 127.0.0.1:1234 --clients 8 --window 32 --duration 10
  tomada bench example.com:4433 --dtls
  tomada bench --local

The server must send back the datagrams that it receives, as tomada serve does. The load is a closed
loop: the next datagram is sent when a reply arrives, so a slow server gets fewer requests. A single
Python process generates the load, and may itself be the bottleneck.

exit status:
  0  replies arrived
  1  no reply arrived
"""

QUANTILES = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
BAR = 50
LARGEST = 65_507


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="measure the rate, loss and latency of a server, or compare servers on this machine",
        description="Send requests to an echo server as fast as it replies, and show the rate "
        "(datagrams per second), the share that was lost, and the round-trip times.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "address", metavar="HOST:PORT", type=address, nargs="?", help="an echo server"
    )
    parser.add_argument(
        "--local",
        action="store_true",
        help="instead, compare tomada, socket and asyncio servers on this machine",
    )
    parser.add_argument(
        "--clients", type=count, metavar="N", help="sockets to send from (default: 1; local: 8)"
    )
    parser.add_argument(
        "--window",
        type=count,
        metavar="N",
        help="datagrams in flight per socket (default: 1; local: 8)",
    )
    parser.add_argument(
        "--size", type=count, default=64, metavar="B", help="bytes in a datagram (default: 64)"
    )
    parser.add_argument(
        "--duration",
        type=seconds,
        metavar="S",
        help="seconds to measure (default: 5; local: 1 for each)",
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=1.0,
        metavar="S",
        help="seconds after which a datagram counts as lost, or a DTLS handshake as failed "
        "(default: 1)",
    )
    add_json(parser, "the results")
    add_options(parser, CLIENT_DTLS)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from tomada._cli.local import compare

    if arguments.local == (arguments.address is not None):
        raise CommandError("say what to measure: HOST:PORT, or --local")
    if not LABEL.size <= arguments.size <= LARGEST:
        raise CommandError(
            f"a datagram must have {LABEL.size} to {LARGEST:,} bytes, not {arguments.size:,}"
        )
    secured = client_context(arguments)
    if arguments.local:
        return compare(arguments)
    duration = arguments.duration or 5.0
    load = Load(
        arguments.address,
        clients=arguments.clients or 1,
        window=arguments.window or 1,
        size=arguments.size,
        timeout=arguments.timeout,
        secured=secured,
    )
    where = format_address(arguments.address)
    with (
        progress_bar(f"asking {where}", duration) as progress,
        contextlib.suppress(KeyboardInterrupt),
    ):
        load.run(duration, progress)
    result = load.result
    if arguments.json:
        print(json.dumps({"address": where, **as_json(result)}))
    else:
        print("\n".join(report(result)))
    if result.received:
        return SUCCESS
    why = "no program is listening there" if result.refused else "is it an echo server?"
    note(f"tomada bench: no reply from {where}: {why}")
    return FAILURE


def as_json(result: Result) -> dict[str, Any]:
    return {
        "seconds": result.seconds,
        "sent": result.sent,
        "received": result.received,
        "lost": result.lost,
        "loss": result.loss,
        "late": result.late,
        "refused": result.refused,
        "rate": result.rate,
        "latency_us": dict(latencies(result.latency)),
        "histogram_us": [[low / 1e3, times] for low, times in result.latency.doubling()],
    }


def latencies(latency: Histogram) -> Iterator[tuple[str, float | None]]:
    for name, share in QUANTILES.items():
        value = latency.quantile(share)
        yield name, None if value is None else value / 1e3


def report(result: Result) -> Iterator[str]:
    """Yield the lines that report a result."""
    yield f"{result.rate:12,.0f}  round trips per second, for {result.seconds:.2f} s"
    yield f"{result.sent:12,}  datagrams sent"
    yield f"{result.received:12,}  answered"
    yield f"{result.lost:12,}  lost ({result.loss:.3%})"
    if result.late:
        yield f"{result.late:12,}  replies came late, twice, or for somebody else"
    if result.refused:
        yield f"{result.refused:12,}  refused"
    if not result.received:
        return
    yield ""
    yield "  ".join(f"{name} {value:,.1f} µs" for name, value in latencies(result.latency))
    yield ""
    buckets = result.latency.doubling()
    most = max(times for _, times in buckets)
    for low, times in buckets:
        bar = "█" * round(BAR * times / most) or ("▏" if times else "")
        yield f"{low / 1e3:12,.1f} µs {times:10,}  {bar}"


@contextlib.contextmanager
def progress_bar(what: str, total: float) -> Iterator[Callable[[float], None]]:
    """Show progress: a bar if rich is installed, otherwise a line; nothing without a terminal."""
    terminal = console()
    if terminal is not None:
        from rich.progress import Progress

        with Progress(console=terminal, transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda done: bar.update(task, completed=done)
    elif sys.stderr.isatty():
        yield lambda done: print(
            f"\r\x1b[K{what}: {done / total:.0%}", end="", file=sys.stderr, flush=True
        )
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    else:
        yield lambda _: None
