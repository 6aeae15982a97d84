"""Services that find each other by multicast, with no list of addresses.

python discovery.py offer printer 9100      # in one terminal, or on one machine
python discovery.py find printer            # in another
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time

from tomada import socket

GROUP, PORT = "239.255.77.77", 17777


def offer(name: str, port: int, interface: str | None, group_port: int) -> None:
    """Reply to queries for a service of this name, until Ctrl-C."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        # The services on a machine share the group's port, and each of them gets every query.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((GROUP, group_port))
        sock.join_group(GROUP, interface)
        print(f"{name} is offered", flush=True)
        while True:
            for question in sock.recv_datagrams():
                # Skip invalid queries and replies that cannot be sent, to port 0 for example.
                with contextlib.suppress(ValueError, AttributeError, RecursionError, OSError):
                    if json.loads(question.data).get("find") == name:
                        # The reply to the group's query leaves from the interface's own address.
                        question.reply(json.dumps({"name": name, "port": port}).encode())


def find(name: str, seconds: float, interface: str | None, group_port: int) -> int:
    """Query the group, print the services that reply, and return their number."""
    found = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        if interface is not None:
            index = socket.if_nametoindex(interface)
            chosen = bytes(8) + index.to_bytes(4, sys.byteorder)  # struct ip_mreqn, ip(7)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, chosen)
        end = time.monotonic() + seconds
        question = json.dumps({"find": name}).encode()
        # Sent three times, because the network may lose a datagram.
        for attempt in range(3):
            sock.sendto(question, (GROUP, group_port))
            until = end - seconds * (2 - attempt) / 3
            while (left := until - time.monotonic()) > 0:
                sock.settimeout(left)
                try:
                    answers = sock.recv_many()
                except TimeoutError:
                    break
                for data, (host, _) in answers:
                    with contextlib.suppress(
                        ValueError, LookupError, TypeError, ArithmeticError, RecursionError
                    ):
                        found.add((host, int(json.loads(data)["port"])))
    for host, port in sorted(found):
        print(f"{name} is at {host}:{port}")
    return len(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--interface", help="by name, such as eth0")
    parser.add_argument("--group-port", type=int, default=PORT)
    commands = parser.add_subparsers(dest="command", required=True)
    offering = commands.add_parser("offer")
    offering.add_argument("name")
    offering.add_argument("port", type=int)
    finding = commands.add_parser("find")
    finding.add_argument("name")
    finding.add_argument("--seconds", type=float, default=1.0)
    given = parser.parse_args()
    if given.command == "find":
        return 0 if find(given.name, given.seconds, given.interface, given.group_port) else 1
    with contextlib.suppress(KeyboardInterrupt):
        offer(given.name, given.port, given.interface, given.group_port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
