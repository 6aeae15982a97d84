"""Two machines: namespaces connected by veth devices, which drop, fragment, and refuse.

The plain ``socket`` peers here are in the other namespace.
"""

import errno
import itertools
import socket as std

import pytest

import tomada
from links import drop
from skips import program
from support import DEADLINE, eventually
from tomada import socket
from traffic import RECEIVE_SOME, SEND_ALL, numbered, payloads, receive

FAMILIES = {"IPv4": ("10.77.0.1", "10.77.0.2"), "IPv6": ("fd77::1", "fd77::2")}


@pytest.fixture
def link(network):
    return network.link()


@pytest.fixture(params=FAMILIES)
def addresses(request):
    """Provide an address on the left and one on the right, of either family."""
    return FAMILIES[request.param]


# The settings of the devices: which offloads are on or off.
OFFLOADS = {
    "all offloads": [],
    "no segmentation": [("left", "tx-udp-segmentation", "off")],
    "no checksums": [("left", "tx", "off"), ("right", "rx", "off")],
    "coalescing": [("right", "gro", "on"), ("right", "rx-udp-gro-forwarding", "on")],
    "no segmentation, coalescing": [("left", "tx-udp-segmentation", "off"), ("right", "gro", "on")],
    "nothing": [
        ("left", "tx", "off"),
        ("left", "gso", "off"),
        ("left", "sg", "off"),
        ("right", "rx", "off"),
        ("right", "gro", "off"),
    ],
}


def set_offload(link, features):
    if features:
        program("ethtool")
    for device, feature, value in features:
        namespace = link[0] if device == "left" else link[1]
        namespace.command("ethtool", "-K", device, feature, value)


every_offload = pytest.mark.parametrize("features", OFFLOADS.values(), ids=OFFLOADS)


@every_offload
@pytest.mark.parametrize("gro", [False, True], ids=["plain", "coalescing"])
def test_datagrams_cross_a_link_in_order(link, addresses, features, gro):
    left, right = link
    set_offload(link, features)
    here, there = addresses
    with left.bound(socket, (here, 0)) as sender, right.bound(socket, (there, 0)) as receiver:
        receiver.gro = gro
        to = receiver.getsockname()
        for size, way in itertools.product((1, 100, 1000, 1452, 1472, 5000), RECEIVE_SOME):
            datagrams = numbered(20, size) if size > 1 else [b"x"] * 20
            for send in (SEND_ALL["send_many"], SEND_ALL["send_batch"]):
                send(sender, [(data, to) for data in datagrams])
                assert receive(receiver, 20, way) == [
                    (data, sender.getsockname()) for data in datagrams
                ]
        assert receiver.stats().kernel_drops == 0


@every_offload
def test_plain_peer_receives_datagrams_over_a_link(link, addresses, features):
    left, right = link
    set_offload(link, features)
    here, there = addresses
    with left.bound(socket, (here, 0)) as sender, right.bound(std, (there, 0)) as receiver:
        sender.connect(receiver.getsockname())
        for _ in range(3):
            assert sender.send_many(numbered(30, 1200)) == 30
            assert [receiver.recv(9000) for _ in range(30)] == numbered(30, 1200)
            # Longer than the link's MTU: the kernel fragments each, and none is sent in a run.
            assert sender.send_many(numbered(10, 4000)) == 10
            assert [receiver.recv(9000) for _ in range(10)] == numbered(10, 4000)


def test_device_that_loses_checksum_offload_continues(link):
    program("ethtool")
    left, right = link
    with left.bound(socket, ("10.77.0.1", 0)) as sender, right.bound(std, ("10.77.0.2", 0)) as peer:
        sender.connect(peer.getsockname())
        assert sender.send_many(numbered(10)) == 10
        # Before Linux 6.11 this makes the kernel refuse runs (EIO).
        left.command("ethtool", "-K", "left", "tx", "off")
        for _ in range(3):
            assert sender.send_many(numbered(10)) == 10
            assert sender.send_many(numbered(10), errors="continue") == []
        assert [peer.recv(100) for _ in range(70)] == numbered(10) * 7


@pytest.mark.parametrize(
    ("bound", "asked"),
    [
        ("0.0.0.0", "10.77.0.2"),  # noqa: S104 - the wildcard address is tested
        ("0.0.0.0", "10.77.0.22"),  # noqa: S104
        ("::", "fd77::2"),
        ("::", "fd77::22"),
        ("::", "10.77.0.22"),
    ],
)
def test_reply_comes_from_the_requested_address(link, bound, asked):
    left, right = link
    family = std.AF_INET6 if ":" in asked else std.AF_INET
    with right.bound(socket, (bound, 0)) as server, left.open(std, family) as client:
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.recv_datagrams()
        server.settimeout(DEADLINE)
        client.connect((asked, server.getsockname()[1]))
        client.send(b"question")
        datagram = server.recv_datagram()
        assert (datagram.destination, datagram.interface) == (asked, right.index("right"))
        datagram.reply(b"answer")
        assert client.recv(100) == b"answer"


def test_link_decrements_the_ttl(link):
    left, right = link
    with left.bound(std, ("10.77.0.1", 0)) as client, right.bound(socket, ("10.77.0.2", 0)) as sock:
        client.setsockopt(std.IPPROTO_IP, std.IP_TTL, 3)
        client.sendto(b"x", sock.getsockname())
        sock.recv(10)
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv_datagrams()
        sock.settimeout(DEADLINE)
        client.sendto(b"x", sock.getsockname())
        assert sock.recv_datagram().ttl == 3


def test_error_has_the_mtu_of_the_local_device(link, addresses):
    left, right = link
    here, there = addresses
    is_six = ":" in here
    level = socket.IPPROTO_IPV6 if is_six else socket.IPPROTO_IP
    names = ("IPV6_RECVERR", "IPV6_MTU_DISCOVER", "IPV6_PMTUDISC_DO")
    recverr, discover, do = (
        getattr(socket, name if is_six else name.replace("IPV6", "IP")) for name in names
    )
    with left.bound(socket, (here, 0)) as sender, right.bound(std, (there, 0)) as peer:
        sender.setsockopt(level, recverr, 1)
        sender.setsockopt(level, discover, do)
        to = peer.getsockname()
        failures = sender.send_many([b"a", bytes(2000), b"b"], to, errors="continue")
        assert [(index, error.errno) for index, error in failures] == [(1, errno.EMSGSIZE)]
        assert [peer.recv(100), peer.recv(100)] == [b"a", b"b"]
        errors = sender.errors()
        # sendmmsg(2) stops at a datagram that fails, and only the next call, which begins with it,
        # raises.
        assert len(errors) in {1, 2}
        for error in errors:
            # Without a connection Linux does not report the port here.
            assert (error.peer[0], error.errno, error.mtu) == (there, errno.EMSGSIZE, 1500)
            assert (error.origin, error.offender) == (socket.SO_EE_ORIGIN_LOCAL, None)


@pytest.fixture
def routed(network):
    """Make a client and a server, with a router between them whose far side has an MTU of 1300."""
    client, router, server = (network.namespace() for _ in range(3))
    for end, device, prefix in ((client, "near", 78), (server, "far", 79)):
        # A router discovers its neighbours from an address of the link.
        own = [f"10.{prefix}.0.1/24", f"fd{prefix}::1/64", "fe80::1/64"]
        routers = [f"10.{prefix}.0.9/24", f"fd{prefix}::9/64", "fe80::9/64"]
        end.join("wire", router, device, own, routers)
        end.command("ip", "route", "add", "default", "via", f"10.{prefix}.0.9")
        end.command("ip", "-6", "route", "add", "default", "via", f"fd{prefix}::9")
    router.set("ipv4/ip_forward", 1)
    router.set("ipv6/conf/all/forwarding", 1)
    router.command("ip", "link", "set", "far", "mtu", "1300")
    server.command("ip", "link", "set", "wire", "mtu", "1300")
    return client, router, server


@pytest.mark.parametrize(
    ("here", "there", "router"),
    [("10.78.0.1", "10.79.0.1", "10.78.0.9"), ("fd78::1", "fd79::1", "fd78::9")],
    ids=FAMILIES,
)
def test_error_has_the_mtu_of_a_path_reported_by_a_router(routed, here, there, router):
    client, _, server = routed
    is_six = ":" in here
    level = socket.IPPROTO_IPV6 if is_six else socket.IPPROTO_IP
    with client.bound(socket, (here, 0)) as sender, server.bound(std, (there, 0)) as peer:
        sender.setsockopt(level, socket.IPV6_RECVERR if is_six else socket.IP_RECVERR, 1)
        discover = (
            (socket.IPV6_MTU_DISCOVER, socket.IPV6_PMTUDISC_DO)
            if is_six
            else (socket.IP_MTU_DISCOVER, socket.IP_PMTUDISC_DO)
        )
        sender.setsockopt(level, *discover)
        to = peer.getsockname()
        assert sender.send_many([bytes(1400)], to) == 1
        (error,) = eventually(sender.errors)
        assert (error.peer, error.errno, error.mtu) == (to, errno.EMSGSIZE, 1300)
        assert error.offender == router
        # From now on the kernel knows the MTU, and raises immediately.
        failures = sender.send_many([bytes(1400), b"fits"], to, errors="continue")
        assert [(index, error.errno) for index, error in failures][-1] == (0, errno.EMSGSIZE)
        assert peer.recv(2000) == b"fits"


@pytest.mark.parametrize(
    ("here", "there"), [("10.78.0.1", "10.79.0.1"), ("fd78::1", "fd79::1")], ids=FAMILIES
)
def test_run_crosses_a_path_with_a_small_mtu(routed, here, there):
    client, _, server = routed
    with client.bound(socket, (here, 0)) as sender, server.bound(socket, (there, 0)) as receiver:
        receiver.gro = True
        sender.connect(receiver.getsockname())
        for size in (100, 1200, 1230):
            assert sender.send_many(numbered(20, size)) == 20
            assert [data for data, _ in receive(receiver, 20, "recv_many")] == numbered(20, size)


@pytest.mark.parametrize(
    ("here", "there", "router"),
    [("10.78.0.1", "10.99.0.1", "10.78.0.9"), ("fd78::1", "fd99::1", "fd78::9")],
    ids=FAMILIES,
)
def test_error_without_a_route_names_the_router(routed, here, there, router):
    client, _, _ = routed
    is_six = ":" in here
    with client.bound(socket, (here, 0)) as sender:
        level = socket.IPPROTO_IPV6 if is_six else socket.IPPROTO_IP
        sender.setsockopt(level, socket.IPV6_RECVERR if is_six else socket.IP_RECVERR, 1)
        sender.send_many([b"anybody?"], (there, 9))
        (error,) = eventually(sender.errors)
        assert error.peer[:2] == (there, 9)
        assert error.errno in {errno.ENETUNREACH, errno.EHOSTUNREACH}
        assert (error.offender, error.data) == (router, b"anybody?")


def test_error_names_datagrams_dropped_by_the_senders_firewall(link, addresses):
    left, right = link
    here, there = addresses
    with (
        left.bound(socket, (here, 0)) as sender,
        right.bound(std, (there, 0)) as good,
        right.bound(std, (there, 0)) as bad,
    ):
        drop(left, f"output udp dport {bad.getsockname()[1]} drop")
        order = [good, bad, bad, good, bad, good]
        pairs = [(b"%08d" % at, peer.getsockname()) for at, peer in enumerate(order)]
        failures = sender.send_many(pairs, errors="continue")
        assert [(index, error.errno) for index, error in failures] == [
            (index, errno.EPERM) for index in (1, 2, 4)
        ]
        assert [good.recv(100) for _ in range(3)] == [pairs[at][0] for at in (0, 3, 5)]
        with pytest.raises(PermissionError) as caught:
            sender.send_many(pairs)
        assert (caught.value.index, caught.value.sent) == (1, 1)
        assert payloads(bad) == []


def test_datagrams_dropped_by_the_receivers_firewall_are_lost_and_the_rest_arrives(link, addresses):
    left, right = link
    here, there = addresses
    with left.bound(socket, (here, 0)) as sender, right.bound(socket, (there, 0)) as receiver:
        # By their length, plus 8 bytes of header. The filter sees a run as one datagram if it was
        # not split.
        set_offload(link, [("left", "tx-udp-segmentation", "off")])
        drop(right, "input udp length 58 drop")
        receiver.gro = True
        datagrams = [b"%02d" % at * (25 if at % 3 else 10) for at in range(60)]
        assert sender.send_many(datagrams, receiver.getsockname()) == 60
        kept = [data for data in datagrams if len(data) != 50]
        assert [data for data, _ in receive(receiver, len(kept))] == kept
        # No queue overflowed.
        assert receiver.stats().kernel_drops == 0


def test_error_names_a_firewall_that_rejects(link):
    left, right = link
    with left.bound(socket, ("10.77.0.1", 0)) as sender, right.bound(std, ("10.77.0.2", 0)) as peer:
        port = peer.getsockname()[1]
        drop(right, f"input udp dport {port} reject with icmp type admin-prohibited")
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_RECVERR, 1)
        sender.send_many([b"let me in"], peer.getsockname())
        (error,) = eventually(sender.errors)
        assert (error.peer, error.offender) == (peer.getsockname(), "10.77.0.2")
        assert (error.errno, error.type, error.code) == (errno.EHOSTUNREACH, 3, 13)
        assert payloads(peer) == []


@pytest.mark.parametrize("way", RECEIVE_SOME)
def test_scope_id_survives_the_round_trip_over_a_link(link, way):
    left, right = link
    near, far = left.index("left"), right.index("right")
    with (
        left.bound(socket, ("fe80::1", 0, 0, near)) as client,
        right.bound(socket, ("::", 0)) as server,
    ):
        port = server.getsockname()[1]
        to = ("fe80::2", port, 0, near)
        assert client.send_many([b"a", b"b"], to) == 2
        assert client.send_many([(b"c", to)]) == 1
        received = receive(server, 3, way)
        there = ("fe80::1", client.getsockname()[1], 0, far)
        assert received == [(data, there) for data in (b"a", b"b", b"c")]
        assert server.send_many(received) == 3
        assert receive(client, 3, way) == [(data, to) for data in (b"a", b"b", b"c")]


def test_scope_may_be_part_of_the_host(link):
    left, right = link
    with left.bound(socket, ("fe80::1%left", 0)) as client, right.bound(std, ("::", 0)) as server:
        to = ("fe80::2%left", server.getsockname()[1])
        assert left.run(client.send_many, [b"x"], to) == 1
        data, address = server.recvfrom(100)
        assert (data, address[3]) == (b"x", right.index("right"))
        assert client.getsockname()[3] == left.index("left")
        batch = tomada.Batch()
        left.run(batch.append, b"y", to)
        assert client.send_batch(batch) == 1
        assert server.recv(100) == b"y"


def test_reply_on_a_link_leaves_by_that_link(link):
    left, right = link
    with left.open(std, std.AF_INET6) as client, right.bound(socket, ("::", 0)) as server:
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.recv_datagrams()
        server.settimeout(DEADLINE)
        client.connect(("fe80::2", server.getsockname()[1], 0, left.index("left")))
        client.send(b"question")
        datagram = server.recv_datagram()
        assert (datagram.destination, datagram.host) == ("fe80::2", "fe80::1")
        datagram.reply(b"answer")
        assert client.recv(100) == b"answer"


def test_network_leaves_nothing_behind(network):
    before = network.namespace().command("ip", "-brief", "link")
    left, right = network.link()
    left.close = right.close = lambda: None
    assert "left" in left.command("ip", "-brief", "link")
    assert network.namespace().command("ip", "-brief", "link") == before
