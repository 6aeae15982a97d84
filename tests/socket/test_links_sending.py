"""Runs of datagrams to several destinations, while routes and firewalls change."""

import contextlib
import socket as std
import struct

import pytest

from links import Network
from skips import program
from tomada import socket
from traffic import payloads

DISCOVERY = {
    "inet": (std.IPPROTO_IP, getattr(std, "IP_MTU_DISCOVER", 10)),
    "inet6": (std.IPPROTO_IPV6, getattr(std, "IPV6_MTU_DISCOVER", 23)),
}
# The sender's address, and two of the receiver's.
ADDRESSES = {
    "inet": ("10.77.0.1", "10.77.0.2", "10.77.0.22"),
    "inet6": ("fd77::1", "fd77::2", "fd77::22"),
}

every_family = pytest.mark.parametrize("family", ADDRESSES)


@pytest.fixture(scope="module")
def link(namespaces):  # noqa: ARG001 - skips the tests without them
    """Connect two namespaces by a second pair of devices, which has a small MTU."""
    with contextlib.ExitStack() as stack:
        left, right = Network(stack).link()
        left.join(
            "narrow", right, "wide", ["10.78.0.1/24", "fd78::1/64"], ["10.78.0.2/24", "fd78::2/64"]
        )
        left.command("ip", "link", "set", "narrow", "mtu", "1280")
        for there in ("10.78.0.2", "fd78::2"):
            Network.find(left, right, there)
        yield left, right


@contextlib.contextmanager
def route(namespace, to, *options):
    bits = "128" if ":" in to else "32"
    family = "-6" if ":" in to else "-4"
    namespace.command("ip", family, "route", "add", f"{to}/{bits}", "dev", "left", *options)
    try:
        yield
    finally:
        namespace.command("ip", family, "route", "del", f"{to}/{bits}", "dev", "left")


def pieces(receiver):
    """Receive all datagrams, as (length, segment length)."""
    receiver.setblocking(False)
    seen = []
    with contextlib.suppress(BlockingIOError):
        while True:
            data, ancillary, _, _ = receiver.recvmsg(1 << 17, 100)
            sizes = [struct.unpack("i", value)[0] for *_, value in ancillary]
            seen.append((len(data), sizes[0] if sizes else None))
    return seen


@every_family
def test_destination_that_refuses_runs_costs_the_others_nothing(link, family):
    left, right = link
    here, usual, short = ADDRESSES[family]
    with (
        left.bound(socket, (here, 0)) as sender,
        right.bound(std, (usual, 0)) as one,
        right.bound(std, (short, 0)) as other,
        route(left, short, "mtu", "1280"),
    ):
        for receiver in (one, other):
            receiver.setsockopt(std.IPPROTO_UDP, socket.UDP_GRO, 1)
        for _ in range(3):
            calls = sender.stats().send_calls
            datagrams = [bytes(1300)] * 10
            # The first run is refused, and its datagrams are sent one by one. Refused calls are
            # not counted.
            assert sender.send_many(datagrams, other.getsockname()) == 10
            assert pieces(other) == [(1300, None)] * 10
            assert sender.stats().send_calls - calls == 1
            # Shorter runs are sent in one call, and so are those to another peer.
            assert sender.send_many([bytes(1000)] * 10, other.getsockname()) == 10
            assert pieces(other) == [(10_000, 1000)]
            assert sender.send_many(datagrams, one.getsockname()) == 10
            assert pieces(one) == [(13_000, 1300)]


@every_family
@pytest.mark.parametrize("discover", [None, 0, 2, 3], ids=["default", "dont", "do", "probe"])
@pytest.mark.parametrize("last", [1300, 100], ids=["even", "shorter"])
def test_run_that_a_firewall_reroutes_arrives_at_most_once(link, family, discover, last):
    program("nft")
    left, right = link
    here, usual, _ = ADDRESSES[family]
    version, via = ("-6", "fd78::2") if family == "inet6" else ("-4", "10.78.0.2")
    # The run is rerouted after the kernel has checked it against the MTU of its first route.
    rules = """
        add table inet test
        add chain inet test out { type route hook output priority 0; }
        add rule inet test out meta l4proto udp meta mark set 7
    """
    narrow = f"""
        nft '{rules}'
        ip {version} rule add fwmark 7 lookup 77
        ip {version} route replace default via {via} dev narrow table 77
    """
    with left.bound(socket, (here, 0)) as sender, right.bound(std, (usual, 0)) as receiver:
        if discover is not None:
            sender.setsockopt(*DISCOVERY[family], discover)
        left.command("sh", "-ec", narrow)
        try:
            datagrams = [b"%04d" % number + bytes(1296) for number in range(6)]
            datagrams.append(b"last" + bytes(last - 4))
            failures = sender.send_many(datagrams, receiver.getsockname(), errors="continue")
        finally:
            left.command(
                "sh", "-ec", f"nft delete table inet test; ip {version} rule del fwmark 7 lookup 77"
            )
        failed = [index for index, _ in failures]
        received = [data[:4] for data in payloads(receiver)]
        assert sorted(set(received)) == sorted(received), "a datagram arrived twice"
        sent = [data[:4] for index, data in enumerate(datagrams) if index not in failed]
        assert set(received) <= {data[:4] for data in datagrams}
        assert set(sent) == set(received)
