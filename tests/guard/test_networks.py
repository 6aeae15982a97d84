"""Guards that admit some networks: in Rust, in the kernel, and on a standard socket."""

import ctypes
import ipaddress
import socket as std
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tomada
from families import length
from guards import FAR, NEAR, guarded
from tomada import socket
from traffic import payloads


@pytest.mark.parametrize("in_kernel", [True, False])
@pytest.mark.parametrize(
    "lists",
    [
        {"deny": ["127.9.0.0/16"]},
        {"allow": ["127.0.0.0/16"]},
        {"allow": [NEAR]},
        {"deny": [ipaddress.ip_network("127.8.0.0/14"), ipaddress.ip_address("127.0.0.9")]},
        {"allow": ["127.0.0.0/16"], "deny": ["127.0.0.0/8"]},
        {"allow": ["127.0.0.0/8"], "deny": ["127.9.8.7/32"]},
        {"deny": ["::ffff:127.9.0.0/112"]},
    ],
    ids=str,
)
def test_guard_admits_only_allowed_networks(lists, in_kernel):
    guard = tomada.Guard(**lists, kernel_filter=in_kernel)
    with guarded(guard) as (sock, send):
        send(b"no", FAR)
        send(b"yes", NEAR)
        send(b"no", FAR)
        assert payloads(sock) == [b"yes"]
        stats = sock.stats()
        # While other sockets of the machine overflow, some count as kernel_drops.
        refused, dropped = stats.refused, stats.kernel_drops + stats.filter_drops
        assert (refused, dropped) == ((0, 2) if in_kernel else (2, 0))
        assert (guard.stats().admitted, guard.stats().denied) == (1, refused)


@pytest.mark.parametrize("in_kernel", [True, False])
def test_guard_on_an_ipv6_socket_checks_both_families(in_kernel, inet6):
    guard = tomada.Guard(allow=["127.0.0.0/16"], deny=["::/0"], kernel_filter=in_kernel)
    with guarded(guard, host="::") as (sock, send):
        send(b"no", inet6.address()[0])
        send(b"yes", NEAR)
        send(b"no", FAR)
        assert payloads(sock) == [b"yes"]
        sock.guard = tomada.Guard(allow=["::1"], kernel_filter=in_kernel)
        send(b"yes", "::1")
        send(b"no", NEAR)
        assert payloads(sock) == [b"yes"]


def test_guard_checks_datagrams_queued_before_it_was_set():
    with guarded() as (sock, send):
        send(b"no", FAR)
        send(b"yes", NEAR)
        sock.guard = tomada.Guard(deny=[FAR])
        assert payloads(sock) == [b"yes"]
        assert sock.stats().refused == 1


def test_guard_can_be_replaced_and_removed():
    first, second = tomada.Guard(deny=[FAR]), tomada.Guard(max_size=5)
    with guarded() as (sock, send):
        assert sock.guard is None
        sock.guard = first
        assert sock.guard is first
        sock.guard = second
        send(b"hello", FAR)
        assert payloads(sock) == [b"hello"]
        sock.guard = first
        sock.guard = None
        send(b"hello", FAR)
        assert payloads(sock) == [b"hello"]
        assert sock.guard is None


def test_guard_can_be_shared_by_sockets():
    guard = tomada.Guard(max_size=3)
    with guarded(guard) as (one, send_one), guarded(guard) as (other, send_other):
        send_one(b"four", NEAR)
        send_other(b"five.", NEAR)
        assert (payloads(one), payloads(other)) == ([], [])
    assert guard.stats().oversized == 2


def test_guard_leaves_a_user_filter_attached():
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    with guarded() as (sock, send):
        program = struct.pack("HL", 1, ctypes.addressof(drop_all))
        sock.setsockopt(std.SOL_SOCKET, socket.SO_ATTACH_FILTER, program)
        sock.guard = tomada.Guard(deny=[FAR])
        send(b"no", NEAR)
        assert payloads(sock) == []
        sock.guard = None
        send(b"no", NEAR)
        assert payloads(sock) == []
        assert sock.stats().kernel_drops + sock.stats().filter_drops == 2


def test_guard_filter_can_be_attached_to_a_standard_socket():
    guard = tomada.Guard(deny=[FAR])
    with guarded(module=std) as (sock, send):
        guard.attach(sock)
        send(b"no", FAR)
        send(b"yes", NEAR)
        assert sock.recv(100) == b"yes"
    assert guard.stats().admitted == 0


def test_guard_without_networks_has_no_filter():
    assert tomada.Guard(rate=1).kernel_filter is None
    assert tomada.Guard(deny=[FAR], kernel_filter=False).kernel_filter is None
    assert len(tomada.Guard(deny=[FAR]).kernel_filter) % 8 == 0
    with guarded() as (sock, _), pytest.raises(ValueError, match="no kernel filter"):
        tomada.Guard(rate=1).attach(sock)


def test_guard_with_too_many_networks_for_the_kernel_filters_in_rust():
    deny = [f"127.{net >> 8}.{net & 255}.1" for net in range(5000)]
    guard = tomada.Guard(deny=deny)
    assert guard.kernel_filter is None
    with guarded(guard) as (sock, send):
        send(b"no", "127.9.9.1")
        send(b"yes", "127.9.9.2")
        assert payloads(sock) == [b"yes"]
        assert guard.stats().denied == 1


NETWORKS = st.lists(
    st.builds(
        lambda low, bits: ipaddress.ip_network((0x7F000000 | low, bits), strict=False),
        st.integers(0, 0xFF),
        st.integers(20, 32),
    ),
    max_size=12,
)


@settings(max_examples=length(30), deadline=None)
@given(allow=st.none() | NETWORKS, deny=NETWORKS)
def test_kernel_filter_drops_what_the_guard_would_refuse(allow, deny):
    deny = [network for network in deny if network not in (allow or [])]
    lists = dict.fromkeys(allow or [], True) | dict.fromkeys(deny, False)

    def is_heard(host):
        holding = [network for network in lists if ipaddress.ip_address(host) in network]
        if not holding:
            return allow is None
        return lists[max(holding, key=lambda network: network.prefixlen)]

    hosts = [f"127.0.0.{last}" for last in range(1, 255, 7)]
    expected = [host.encode() for host in hosts if is_heard(host)]
    for in_kernel in (True, False):
        guard = tomada.Guard(allow=allow, deny=deny, kernel_filter=in_kernel)
        with guarded(guard) as (sock, send):
            for host in hosts:
                send(host.encode(), host)
            assert payloads(sock) == expected
            assert guard.stats().denied == (0 if in_kernel else len(hosts) - len(expected))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"allow": ["10.0.0.1/8"]}, ValueError, '"10.0.0.1/8" has host bits set'),
        ({"deny": ["ten"]}, ValueError, '"ten" is not an IP network'),
        ({"deny": [""]}, ValueError, "is not an IP network"),
        ({"deny": ["10.0.0.0/8"], "allow": ["10.0.0.0/8"]}, ValueError, "both allowed and denied"),
        ({"deny": "10.0.0.0/8"}, TypeError, "deny must be a list of networks"),
        ({"allow": 5}, TypeError, "not iterable"),
        ({"rate": 0}, ValueError, "rate must be a positive number"),
        ({"rate": float("nan")}, ValueError, "rate must be a positive number"),
        ({"rate": 1, "burst": 0}, ValueError, "burst at least 1"),
        ({"burst": 5}, ValueError, "burst needs a rate"),
        ({"ceiling": -1}, ValueError, "ceiling must be a positive number"),
        ({"amplification": 0}, ValueError, "amplification must be a positive number"),
        ({"prefixes": (33, 64)}, ValueError, "prefixes must be at most 32 and 128"),
        ({"sources": 1}, ValueError, "sources must be from 8 to"),
        ({"max_size": -1}, OverflowError, "negative"),
    ],
    ids=str,
)
def test_guard_names_invalid_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        tomada.Guard(**arguments)


def test_guard_requires_an_ip_socket(unix):
    with unix.bound(socket) as sock, pytest.raises(OSError, match="Address family not supported"):
        sock.guard = tomada.Guard(rate=1)
    with guarded() as (sock, _), pytest.raises(TypeError):
        sock.guard = "guard"
