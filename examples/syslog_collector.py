"""A syslog collector: prints the messages of a UDP socket and a local socket like /dev/log.

python syslog_collector.py --listen 127.0.0.1:5514 --local /tmp/log
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import selectors
import sys
from datetime import UTC, datetime
from logging.handlers import SysLogHandler

from tomada import Datagram, socket

SEVERITIES = ["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"]
# If a number has several names, use the first one.
FACILITIES = {number: name for name, number in reversed(SysLogHandler.facility_names.items())}
PRIORITY = re.compile(rb"<(\d{1,3})>")
# RFC 5424: version, time, host, program, process, message id, structured data, text.
NEW = re.compile(
    rb"1 \S+ (?P<host>\S+) (?P<program>\S+) \S+ \S+ (?:-|(?:\[(?:[^\]\\]|\\.)*\])+) ?(?P<text>.*)",
    re.DOTALL,
)
# RFC 3164: time, host (not on a local socket), program with its number, text.
OLD = re.compile(
    rb"\w{3} [ \d]\d \d\d:\d\d:\d\d (?:(?P<host>[^\s:\[]+) )?(?P<program>[^\s:\[]+)(?:\[\d+\])?: ?"
    rb"(?P<text>.*)",
    re.DOTALL,
)


def describe(datagram: Datagram) -> str:
    """Return a line: time of arrival, facility and severity, host, program and text."""
    data, severity, facility = datagram.data.rstrip(b"\0\n"), "notice", "user"
    if priority := PRIORITY.match(data):
        number = int(priority[1])
        severity = SEVERITIES[number & 7]
        facility = FACILITIES.get(number >> 3, f"{number >> 3}")
        data = data[priority.end() :]
    found = NEW.match(data) or OLD.match(data)
    host = (found["host"] or b"") if found else b""
    program = found["program"] if found else b"-"
    text = (found["text"] if found else data).removeprefix(b"\xef\xbb\xbf")  # byte order mark
    arrived = datetime.fromtimestamp((datagram.timestamp_ns or 0) / 1e9, UTC)
    sender = host.decode(errors="replace") or datagram.host or "local"
    line = (
        f"{arrived:%Y-%m-%dT%H:%M:%S} {facility}.{severity} {sender} "
        f"{program.decode(errors='replace')}: {text.decode(errors='replace')}"
    )
    return printable(line)


def printable(text: str) -> str:
    """Escape control characters, which a terminal would execute: a sender can send any."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def open_socket(family: int, address: object) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_TIMESTAMPNS, 1)  # from the first datagram on
    sock.bind(address)
    return sock


def collect(sockets: list[socket.socket]) -> None:
    with selectors.DefaultSelector() as selector:
        for sock in sockets:
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ, sock)
        while True:
            for key, _ in selector.select():
                for datagram in key.data.recv_datagrams():
                    print(describe(datagram))
            sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:5514")
    parser.add_argument("--local", help="the path of a local socket")
    given = parser.parse_args()
    host, _, port = given.listen.rpartition(":")
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        opened = [stack.enter_context(open_socket(socket.AF_INET, (host, int(port))))]
        print("listening on {}:{}".format(*opened[0].getsockname()), flush=True)
        if given.local:
            opened.append(stack.enter_context(open_socket(socket.AF_UNIX, given.local)))
            stack.callback(os.unlink, given.local)
        collect(opened)
