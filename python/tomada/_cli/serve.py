"""``tomada serve``: runs a server with your handler, or one for testing clients."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from tomada._address import format_address
from tomada._cli.common import (
    SUCCESS,
    CommandError,
    add_address,
    add_json,
    count,
    note,
    seconds,
    shown,
)

if TYPE_CHECKING:
    from collections.abc import Callable

EXAMPLES = """
examples:
  tomada serve                               an echo on 127.0.0.1:1234, until Ctrl-C
  tomada serve 0.0.0.0:1234 --app service:handle --workers 4
  tomada serve :1234 --discard               receives everything, sends no reply

A handler is a function of the datagram's bytes and the sender's address; it returns the
reply, or None for no reply. The current directory is searched for the module, too. With several
workers, each imports the module itself.

signals:
  SIGINT, SIGTERM  handle all queued datagrams, and exit
  SIGHUP           with several workers: replace them one by one, without losing a datagram. The
                   new workers import the module of --app, and what it imports, again. If that
                   fails, the log says why, and the old workers continue

exit status:
  0  a signal ended it
  1  it could not start, or its workers could not
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "serve",
        help="reply to datagrams: with an echo, or with a handler of your own",
        description="Serve an address. Without an option, send every datagram back.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_address(parser, "where to serve", has_default=True)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--echo", action="store_true", help="send each datagram back (the default)")
    what.add_argument("--discard", action="store_true", help="receive datagrams, and send no reply")
    what.add_argument("--print", action="store_true", help="print datagrams, and send no reply")
    what.add_argument("--app", metavar="MODULE:HANDLER", help="call a handler with each datagram")
    parser.add_argument(
        "--workers", type=count, default=1, metavar="N", help="processes to serve with (default: 1)"
    )
    parser.add_argument(
        "--group", metavar="G", action="append", default=[], help="join a multicast group"
    )
    parser.add_argument(
        "--drain",
        type=seconds,
        default=5.0,
        metavar="S",
        help="maximum seconds to handle queued datagrams at the end (default: 5)",
    )
    parser.add_argument("--quiet", action="store_true", help="no status line")
    add_json(parser, "the counters, at the end,")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from tomada import Server
    from tomada._server.app import AppError

    status = StatusLine()

    class Announced(Server):
        """Prints that it has started, once signals are handled and the workers are forked."""

        def start(self) -> None:
            super().start()
            where = format_address(self.address)
            note(f"serving {where} (process {os.getpid()}); Ctrl-C ends it")
            if sys.stderr.isatty() and not arguments.quiet:
                status.start(self)

    logging.basicConfig(format="tomada serve: %(message)s", level=logging.INFO)
    try:
        handler = handler_of(arguments)
    except AppError as error:
        raise CommandError(str(error)) from None
    try:
        server = Announced(
            arguments.address,
            handler,
            workers=arguments.workers,
            groups=arguments.group,
            drain=arguments.drain,
        )
        server.serve_forever()
    except ValueError as error:
        if hasattr(error, "__notes__") and not isinstance(error, AppError):
            raise  # the module itself failed; its author needs the traceback
        raise CommandError(str(error)) from None
    finally:
        status.end()
    try:
        stats = counters(server.stats())
    except RuntimeError:  # it was stopped before it had a socket
        return SUCCESS
    if arguments.json:
        print(json.dumps(stats))
    else:
        note(", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in stats.items()))
    return SUCCESS


def handler_of(arguments: argparse.Namespace) -> Callable[[bytes, Any], bytes | None]:
    if arguments.app is not None:
        from tomada._server.app import App

        app = App(arguments.app)
        # Workers import the app themselves. If this process had imported it, its forks would
        # already contain it, and would not import new code.
        return app if arguments.workers > 1 else app.load()
    if arguments.print:
        return show
    return discard if arguments.discard else echo


def echo(data: bytes, _address: Any) -> bytes:
    return data


def discard(_data: bytes, _address: Any) -> None:
    return None


def show(data: bytes, address: Any) -> None:
    print(f"{format_address(address)} {len(data)} bytes: {shown(data)}", flush=True)


def counters(stats: Any) -> dict[str, int]:
    """Return the numeric counters by name."""
    names = [name for name in dir(stats) if not name.startswith("_")]
    values = {name: getattr(stats, name) for name in names}
    return {name: value for name, value in values.items() if isinstance(value, int)}


class StatusLine:
    """A line on the terminal that shows once per second what a server is doing."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, server: Any) -> None:
        self._thread = threading.Thread(target=self._show, args=(server,), daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._put("")

    def _show(self, server: Any) -> None:
        before, then = counters(server.stats()), time.monotonic()
        while not self._ended.wait(1.0):
            now, at = counters(server.stats()), time.monotonic()
            rates = [
                f"{name} {(now[name] - before[name]) / (at - then):,.0f}/s"
                for name in ("received", "sent")
            ]
            troubles = [
                f"{name.replace('_', ' ')} {now[name]:,}"
                for name in ("handler_errors", "send_errors", "kernel_drops", "restarts")
                if now.get(name)
            ]
            self._put("  ".join([*rates, f"total {now['received']:,}", *troubles]))
            before, then = now, at

    @staticmethod
    def _put(line: str) -> None:
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
