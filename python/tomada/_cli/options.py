"""The options of ``tomada serve``: one table for its help, environment, file and documentation."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from tomada._cli.dtls import SERVER_DTLS
from tomada._config import (
    ADDRESS,
    NETWORK,
    PATH,
    PREFIXES,
    SIZE,
    SWITCH,
    Kind,
    Option,
    choice,
    number,
    seconds,
    several,
    text,
    whole,
)

SOURCE = "what to serve"
HANDLER = "handler"
WORKERS = "workers"
SOCKET = "socket"
GUARD = "guard"
OBSERVATION = "observation"
DEVELOPMENT = "development"
# The names of groups of options that exclude each other.
ONE_HANDLER, ONE_SOCKET = "handler", "socket"

FUNCTION = text("a function, as MODULE:FUNCTION", "MODULE:FUNCTION")
DIRECTORY = text("a directory", "DIR")


def _parse_steering(given: str) -> Any:
    if given.startswith("key:"):
        from tomada import key

        offset, length = map(int, given.removeprefix("key:").split(","))
        return key(offset, length)
    if given not in ("hash", "cpu", "random"):
        raise ValueError
    return given


STEERING = Kind("hash, cpu, random or key:OFFSET,LENGTH", "HOW", _parse_steering)
RATE = number("a number", "R", is_positive=True)

OPTIONS = (
    Option(
        "address",
        ADDRESS,
        SOURCE,
        "the address to serve; also [::1]:PORT, a path, or @name (AF_UNIX); sockets that systemd "
        "passes (LISTEN_FDS) take precedence over the default",
        "127.0.0.1:1234",
        excludes=ONE_SOCKET,
        is_positional=True,
    ),
    Option(
        "fd", whole(0), SOURCE, "serve the bound socket with this descriptor", excludes=ONE_SOCKET
    ),
    Option(
        "group",
        several(text("a multicast group", "G")),
        SOURCE,
        "join a multicast group; may be repeated",
        parameter="groups",
    ),
    Option(
        "config",
        PATH,
        SOURCE,
        "read options from a TOML file",
        into="command",
        is_in_file=False,
    ),
    Option(
        "echo",
        SWITCH,
        HANDLER,
        "send each datagram back (the default)",
        into="command",
        excludes=ONE_HANDLER,
    ),
    Option(
        "discard",
        SWITCH,
        HANDLER,
        "receive datagrams and send no reply",
        into="command",
        excludes=ONE_HANDLER,
    ),
    Option(
        "print",
        SWITCH,
        HANDLER,
        "print datagrams and send no reply",
        into="command",
        excludes=ONE_HANDLER,
    ),
    Option(
        "app",
        text("a handler, as MODULE:HANDLER", "MODULE:HANDLER"),
        HANDLER,
        "call a handler with each datagram",
        into="command",
        excludes=ONE_HANDLER,
    ),
    Option(
        "sink",
        text("a URL", "URL"),
        HANDLER,
        "publish datagrams to nats://HOST:PORT?subject=S or kafka://HOST:PORT?topic=T",
        into="command",
        excludes=ONE_HANDLER,
    ),
    Option(
        "factory",
        SWITCH,
        HANDLER,
        "--app names a function that returns the handler; each worker calls it once",
        into="command",
    ),
    Option(
        "app-dir",
        DIRECTORY,
        HANDLER,
        "the directory to search for modules first",
        "the current directory",
        into="command",
    ),
    Option(
        "takes",
        choice("data", "datagram", "batch", "timed"),
        HANDLER,
        "the handler's arguments: (data, address), a Datagram, a list of pairs, or a list of "
        "triples with a timestamp",
        "data",
    ),
    Option("init", FUNCTION, HANDLER, "call a function in each worker before its first datagram"),
    Option("exit", FUNCTION, HANDLER, "call a function in each worker after its last datagram"),
    Option(
        "lifespan",
        FUNCTION,
        HANDLER,
        "enter a context manager in each worker before its first datagram",
    ),
    Option("workers", whole(1), WORKERS, "the number of worker processes", 1),
    Option("threads", whole(1), WORKERS, "the number of threads, on free-threaded Python", 1),
    Option(
        "steering",
        STEERING,
        WORKERS,
        "which worker receives a datagram: always the same one for each peer (hash), the one for "
        "the receiving CPU (cpu), any (random), or always the same one for an identifier in the "
        "payload (key:OFFSET,LENGTH)",
        "hash",
    ),
    Option(
        "drain",
        seconds(may_be_inf=True),
        WORKERS,
        "maximum seconds to spend on queued datagrams when stopping; inf means no limit",
        5.0,
    ),
    Option(
        "loop",
        choice("tomada", "asyncio", "uvloop"),
        WORKERS,
        "the event loop of each worker",
    ),
    Option(
        "max-concurrency",
        whole(1),
        WORKERS,
        "maximum concurrent calls to an async handler in each worker",
        1000,
    ),
    Option("max-requests", whole(1), WORKERS, "replace a worker after about this many datagrams"),
    Option(
        "max-age",
        seconds(is_positive=True),
        WORKERS,
        "replace a worker after about this many seconds",
    ),
    Option("rcvbuf", SIZE, SOCKET, "the size of each receive buffer", "the kernel's"),
    Option("pacing", SIZE, SOCKET, "the maximum send rate in bytes per second (needs fq)"),
    Option("gro", SWITCH, SOCKET, "let the kernel deliver coalesced datagrams", True),
    Option(
        "spin",
        seconds(),
        SOCKET,
        "poll for this long before sleeping: shorter round trips, at the cost of a core",
        0.0,
    ),
    Option(
        "coalesce",
        seconds(),
        SOCKET,
        "collect datagrams for this long after the first one: less CPU time, more latency",
        0.0,
    ),
    Option(
        "proxy",
        several(NETWORK),
        SOCKET,
        "read the PROXY headers of load balancers in this network; may be repeated",
    ),
    Option(
        "proxy-flows",
        seconds(is_positive=True),
        SOCKET,
        "the proxies add a header only to the first datagram of a flow, which ends after being "
        "idle for this long",
    ),
    Option(
        "allow",
        several(NETWORK),
        GUARD,
        "accept datagrams only from this network; may be repeated",
        into="guard",
    ),
    Option(
        "deny",
        several(NETWORK),
        GUARD,
        "refuse datagrams from this network; may be repeated",
        into="guard",
    ),
    Option(
        "max-size",
        SIZE,
        GUARD,
        "refuse longer payloads (with DTLS, longer encrypted ones, also during handshakes)",
        into="guard",
    ),
    Option("rate", RATE, GUARD, "maximum datagrams per second from one source", into="guard"),
    Option(
        "burst",
        whole(1, 2**32 - 1),
        GUARD,
        "maximum burst of datagrams from one source",
        "one second's worth",
        into="guard",
    ),
    Option(
        "prefixes",
        PREFIXES,
        GUARD,
        "the prefix lengths that define a source, for IPv4 and IPv6",
        "32,64",
        into="guard",
    ),
    Option(
        "ceiling",
        RATE,
        GUARD,
        "maximum datagrams per second from all sources together",
        into="guard",
    ),
    Option(
        "amplification",
        number("a number", "X", is_positive=True),
        GUARD,
        "maximum bytes to send to an address for each byte admitted from it",
        into="guard",
    ),
    Option("sources", whole(8), GUARD, "the size of the table of sources", 262_144, into="guard"),
    Option(
        "kernel-filter",
        SWITCH,
        GUARD,
        "have the kernel drop datagrams that --allow and --deny refuse; not used with --proxy",
        True,
        into="guard",
    ),
    *SERVER_DTLS,
    Option(
        "health",
        ADDRESS,
        OBSERVATION,
        "answer /live, /ready and /metrics over HTTP at this address",
    ),
    Option(
        "access-log",
        whole(0),
        OBSERVATION,
        "log one in every N datagrams in each worker: peer, bytes, time and outcome; 0 logs none",
        0,
    ),
    Option(
        "log-format",
        choice("console", "text", "json"),
        OBSERVATION,
        "the format of log messages: plain, with time and level, or one JSON object per line",
        "console",
        into="command",
    ),
    Option(
        "log-level",
        choice("debug", "info", "warning", "error"),
        OBSERVATION,
        "the minimum level of messages to log",
        "info",
        into="command",
    ),
    Option(
        "otel",
        SWITCH,
        OBSERVATION,
        "send metrics to the OpenTelemetry collector that the OTEL_... variables name "
        "(tomada[otel])",
        into="command",
    ),
    Option("quiet", SWITCH, OBSERVATION, "do not show the status line", into="command"),
    Option("json", SWITCH, OBSERVATION, "print the counters as JSON when stopping", into="command"),
    Option(
        "reload",
        SWITCH,
        DEVELOPMENT,
        "replace the workers when a Python file under --app-dir changes (tomada[reload])",
        into="command",
    ),
)

BY_NAME = {option.name: option for option in OPTIONS}


def add_options(parser: argparse.ArgumentParser, table: Iterable[Option] = OPTIONS) -> None:
    """Add options to the command line as plain strings, which are validated later.

    The environment and the file give strings too, and all are validated together.
    """
    for section, options in groupby(table, lambda option: option.section):
        group = parser.add_argument_group(section)
        rivals: dict[str, Any] = {}
        for option in options:
            where = group
            if option.excludes:
                if option.excludes not in rivals:
                    rivals[option.excludes] = group.add_mutually_exclusive_group()
                where = rivals[option.excludes]
            _add(where, option)


def _add(parser: Any, option: Option) -> None:
    kind, more = option.kind, _default(option)
    about = {"help": option.help + (f" (default: {more})" if more else ""), "default": None}
    if option.is_positional:
        parser.add_argument(option.name, nargs="?", metavar=kind.metavar, **about)
    elif kind.is_switch:
        action = argparse.BooleanOptionalAction if option.default else "store_const"
        const = {} if option.default else {"const": True}
        parser.add_argument(option.flag, dest=option.name, action=action, **const, **about)
    else:
        action = "append" if kind.is_list else "store"
        parser.add_argument(
            option.flag, dest=option.name, metavar=kind.metavar, action=action, **about
        )


def _default(option: Option) -> str:
    default = option.default
    if default is None or isinstance(default, bool):
        return ""
    return default if isinstance(default, str) else f"{default:g}"


def as_markdown() -> str:
    """Return the table of options for the documentation."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    for section, options in groupby(OPTIONS, lambda option: option.section):
        yield f"## {section[0].upper()}{section[1:]}\n"
        yield "| option | variable | meaning |"
        yield "|---|---|---|"
        for option in options:
            default = _default(option)
            meaning = option.help + (f" (default: {default})" if default else "")
            key = "" if option.is_in_file else "; cannot be set in a file"
            usage = option.usage.replace("|", "\\|")
            yield f"| `{usage}` | `{option.variable}` | {meaning}{key} |"
        yield ""
