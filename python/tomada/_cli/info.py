"""``tomada info``: tests the features of this machine, and recommends changes."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import struct
import sys
from pathlib import Path
from typing import Any

import tomada
from tomada import _devices
from tomada._cli.common import SUCCESS, add_json

# The sysctls that limit how many datagrams a machine can receive and send.
LIMITS = {
    "net.core.rmem_max": "the largest receive buffer that a program can request, in bytes",
    "net.core.rmem_default": "the default receive buffer, in bytes",
    "net.core.wmem_max": "the largest send buffer that a program can request, in bytes",
    "net.core.netdev_max_backlog": "received packets that can wait for a CPU",
    "net.core.somaxconn": "stream connections that can wait to be accepted",
    "net.core.busy_poll": "microseconds that poll and select busy-wait",
    "net.ipv4.igmp_max_memberships": "the multicast groups that a socket can join",
    "net.ipv4.udp_rmem_min": "the receive buffer that a socket keeps if memory is short, in bytes",
    "net.unix.max_dgram_qlen": "the datagrams that an AF_UNIX socket can queue",
}
PACKAGES = ("rich", "prometheus-client", "uvloop")

GOOD_RMEM_MAX = 8 << 20
# The receive buffer space that a small datagram takes, in bytes, with the kernel's bookkeeping.
SMALL_DATAGRAM = 768
FEW_DESCRIPTORS = 4096


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "info",
        help="show versions, kernel features, limits and recommended changes",
        description="Show versions, the kernel features that work here (tested over loopback), "
        "the limits, and recommended changes.",
    )
    add_json(parser, "everything")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    found = {
        "versions": versions(),
        "features": features(),
        "limits": limits(),
        "devices": devices(),
    }
    advice = recommendations(found)
    if arguments.json:
        print(json.dumps({**found, "advice": advice}, indent=2))
        return SUCCESS
    for title, items in found.items():
        print(f"{title}:")
        width = max(map(len, items))
        for name, value in items.items():
            told = f"  ({LIMITS[name]})" if name in LIMITS else ""
            print(f"  {name:{width}}  {in_words(value)}{told}")
        print()
    print("\n".join(advice) if advice else "nothing to change")
    return SUCCESS


def in_words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if value is None else str(value)


def versions() -> dict[str, Any]:
    found: dict[str, Any] = {
        "tomada": tomada.__version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "global interpreter lock": getattr(sys, "_is_gil_enabled", lambda: True)(),
        "kernel": f"{platform.system()} {platform.release()} ({platform.machine()})",
        "processors": len(os.sched_getaffinity(0)),
    }
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def features() -> dict[str, Any]:
    """Test the kernel's features over loopback."""
    return {
        "IPv6": works(speaks_ipv6),
        "GSO (UDP_SEGMENT): one send for many datagrams": works(segments),
        "GRO (UDP_GRO): one receive for many datagrams": works(coalesces),
        "kernel timestamps (SO_TIMESTAMPNS)": works(lambda: received().timestamp_ns is not None),
        "destination address (IP_PKTINFO)": works(lambda: received().destination is not None),
        "drop counter (SO_MEMINFO)": works(counts_drops),
        "several sockets on one port (SO_REUSEPORT)": works(shares_a_port),
    }


def works(feature: Any) -> bool:
    try:
        return bool(feature())
    except OSError:
        return False


def pair() -> Any:
    """Open a socket on the loopback interface, and another one that is connected to it."""
    from tomada import socket

    receiver: Any = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender: Any = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        receiver.settimeout(1)
        receiver.bind(("127.0.0.1", 0))
        sender.connect(receiver.getsockname())
    except BaseException:
        receiver.close()
        sender.close()
        raise
    return receiver, sender


def speaks_ipv6() -> bool:
    from tomada import socket

    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::1", 0))
    return True


def segments() -> bool:
    from tomada import socket

    receiver, sender = pair()
    with receiver, sender:
        size = [(socket.IPPROTO_UDP, socket.UDP_SEGMENT, struct.pack("=H", 100))]
        sender.sendmsg([bytes(300)], size)
        return [len(receiver.recv(1000)) for _ in range(3)] == [100, 100, 100]


def coalesces() -> bool:
    from tomada import socket

    receiver, sender = pair()
    with receiver, sender:
        receiver.gro = True
        size = [(socket.IPPROTO_UDP, socket.UDP_SEGMENT, struct.pack("=H", 100))]
        sender.sendmsg([bytes(300)], size)
        taken = len(receiver.recv_many())
        return taken == len([100, 100, 100]) and receiver.stats().receive_calls <= 2  # noqa: PLR2004


def received() -> Any:
    """Send a datagram over loopback, and return it as received with all metadata."""
    receiver, sender = pair()
    with receiver, sender:
        receiver.setblocking(False)
        try:
            receiver.recv_datagrams()
        except BlockingIOError:
            receiver.settimeout(1)
        sender.send(b"datagram")
        return receiver.recv_datagram()


def counts_drops() -> bool:
    from tomada import socket

    receiver, sender = pair()
    with receiver, sender:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        for _ in range(100):
            sender.send(bytes(1000))
        drops: int = receiver.stats().kernel_drops
        return drops > 0


def shares_a_port() -> bool:
    from tomada import socket

    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        for sock in (one, other):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind(("127.0.0.1", 0))
        other.bind(one.getsockname())
    return True


def limits() -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for name in LIMITS:
        try:
            found[name] = int(Path("/proc/sys", *name.split(".")).read_text())
        except (OSError, ValueError):
            found[name] = None  # not in this namespace, or not in this kernel
    found["open files (ulimit -n)"] = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return found


def devices() -> dict[str, str]:
    """Describe each network device: its queueing discipline, and its timestamps."""
    try:
        disciplines = _devices.queueing_disciplines()
    except OSError:
        return {}  # the system does not allow this process to ask
    return {name: device(name, kinds) for name, kinds in disciplines.items()}


def device(name: str, disciplines: list[str]) -> str:
    # mq has one discipline for each queue of the device.
    is_fair = {"fq"} <= set(disciplines) <= {"fq", "mq"}
    queue = "/".join(dict.fromkeys(disciplines)) or "no queueing discipline"
    told = [
        queue,
        "pacing and transmit times" if is_fair else "no pacing, no transmit times (no fq)",
    ]
    try:
        can = _devices.timestamping(name)
    except OSError:
        return "; ".join(told)  # the device has been removed
    for where, sent, received in (
        ("software", can.transmit_software, can.receive_software),
        ("hardware", can.transmit_hardware, can.receive_hardware),
    ):
        ways = [way for way, there in (("transmit", sent), ("receive", received)) if there]
        if ways:
            told.append(f"{where} timestamps ({', '.join(ways)})")
    if can.clock is not None:
        told.append(f"clock /dev/ptp{can.clock}")
    return "; ".join(told)


def recommendations(found: dict[str, dict[str, Any]]) -> list[str]:
    """Return the recommended changes, with commands."""
    advice = []
    limits, features = found["limits"], found["features"]
    most = limits["net.core.rmem_max"]
    if most is not None and most < GOOD_RMEM_MAX:
        advice.append(
            f"A receive buffer holds at most about {2 * most // SMALL_DATAGRAM:,} small datagrams; "
            "the rest of a longer burst is lost. Raise the limit:\n"
            f"  sudo sysctl -w net.core.rmem_max={GOOD_RMEM_MAX}\n"
            "and request the larger buffer: sock.setsockopt(SOL_SOCKET, SO_RCVBUF, …), "
            "Server(…, rcvbuf=…)."
        )
    descriptors = limits["open files (ulimit -n)"]
    if descriptors != resource.RLIM_INFINITY and descriptors < FEW_DESCRIPTORS:
        advice.append(f"A process may open {descriptors:,} sockets. To allow more: ulimit -n 65536")
    missing = [name for name, is_there in features.items() if not is_there]
    if missing:
        advice.append(f"Not available here, so tomada works without: {'; '.join(missing)}.")
    if found["versions"]["rich"] is None:
        advice.append("For colours and progress bars: pip install 'tomada[cli]'")
    return advice
