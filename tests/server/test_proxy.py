"""PROXY protocol headers: the client's address behind trusted proxies."""

import asyncio
import contextlib
import logging
import socket as std
import struct
import threading

import pytest

import tomada
from proxied import LOCAL, SIGNATURE, headed
from serving import client, server
from support import DEADLINE, Call, eventually
from tomada import _reports
from traffic import send_run

LOCALHOST = ["127.0.0.0/8"]


def crc32c(data):
    """Return the CRC-32C (Castagnoli) of bytes, bit by bit."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def with_checksum(source, payload):
    whole = headed(source, fields=b"\x04\0\x01x\x03\0\x04\0\0\0\0\xea\0\x02yz")
    at = whole.index(b"\x03\0\x04") + 3
    return whole[:at] + crc32c(whole).to_bytes(4, "big") + whole[at + 4 :] + payload


def named(data, address):
    """Reply with what the handler was given."""
    return repr((data, address)).encode()


@pytest.mark.parametrize(
    "source", [("192.0.2.1", 1234), ("2001:db8::1", 5), ("0.0.0.0", 0)], ids=str
)
@pytest.mark.parametrize("kind", [1, 2])
def test_handler_gets_the_client_and_the_proxy_the_reply(source, kind):
    expected = source if "." in source[0] else (*source, 0, 0)
    with server(named, proxy=LOCALHOST) as serving, client(serving.address) as proxy:
        for payload in (b"abc", b""):
            proxy.send(headed(source, payload, kind=kind))
            assert proxy.recv(200) == repr((payload, expected)).encode()
        # The last reply may arrive before it is counted.
        eventually(lambda: serving.stats().sent == 2)
        stats = serving.stats()
        assert (stats.received, stats.received_bytes, stats.sent) == (2, 3, 2)
        assert (stats.proxy_malformed, stats.proxy_untrusted) == (0, 0)


def test_ipv6_server_sees_ipv4_clients_as_mapped():
    with server(named, ("::", 0), proxy=["127.0.0.1", "::1"]) as serving:
        port = serving.address[1]
        for address in [("127.0.0.1", port), ("::1", port, 0, 0)]:
            with client(address) as proxy:
                proxy.send(headed(("192.0.2.1", 9), b"x"))
                assert proxy.recv(200) == repr((b"x", ("::ffff:192.0.2.1", 9, 0, 0))).encode()
                proxy.send(headed(("2001:db8::1", 9), b"x"))
                assert proxy.recv(200) == repr((b"x", ("2001:db8::1", 9, 0, 0))).encode()


def test_ipv4_server_sees_mapped_clients_as_ipv4():
    with server(named, proxy=LOCALHOST) as serving, client(serving.address) as proxy:
        proxy.send(headed(("::ffff:192.0.2.1", 9), b"x"))
        assert proxy.recv(200) == repr((b"x", ("192.0.2.1", 9))).encode()


def test_reply_leaves_from_the_address_that_the_proxy_sent_to():
    with (
        server(named, ("0.0.0.0", 0), proxy=LOCALHOST) as serving,
        client(("127.0.0.5", serving.address[1])) as proxy,
    ):
        proxy.send(headed(("192.0.2.1", 9), b"x"))
        assert proxy.recv(200)  # the kernel drops a reply from another address


def test_local_datagram_is_the_proxys_own():
    with server(named, proxy=LOCALHOST) as serving, client(serving.address) as proxy:
        proxy.send(SIGNATURE + struct.pack("!BBH", LOCAL, 0, 0) + b"health")
        assert proxy.recv(200) == repr((b"health", proxy.getsockname())).encode()
        proxy.send(headed(("192.0.2.1", 9), b"health", command=LOCAL))
        assert proxy.recv(200) == repr((b"health", proxy.getsockname())).encode()


def test_checksum_is_checked_and_other_fields_are_skipped():
    right = with_checksum(("192.0.2.1", 9), b"x")
    wrong = right.replace(b"yz", b"zy")
    with server(named, proxy=LOCALHOST) as serving, client(serving.address) as proxy:
        proxy.send(wrong)
        proxy.send(right)
        assert proxy.recv(200) == repr((b"x", ("192.0.2.1", 9))).encode()
        assert serving.stats().proxy_malformed == 1


def test_header_of_an_untrusted_address_is_refused_and_counted():
    with (
        server(named, proxy=["127.0.0.2", "10.0.0.0/8"]) as serving,
        client(serving.address) as stranger,
    ):
        stranger.send(headed(("192.0.2.1", 9), b"x"))
        stranger.send(SIGNATURE)
        stranger.send(b"direct")
        assert stranger.recv(200) == repr((b"direct", stranger.getsockname())).encode()
        stats = serving.stats()
        assert (stats.received, stats.proxy_untrusted, stats.proxy_malformed) == (1, 2, 0)


@pytest.mark.parametrize("loop", [None, "asyncio"])
def test_first_datagram_refused_for_its_header_is_logged(loop, caplog):
    options = {} if loop is None else {"loop": loop}
    with (
        server(named, proxy=["127.0.0.2"], **options) as serving,
        client(serving.address) as sender,
    ):
        for _ in range(2):
            sender.send(headed(("192.0.2.1", 9), b"x"))
            eventually(lambda: "PROXY header from an address that is not in proxy" in caplog.text)
    with server(named, proxy=LOCALHOST, **options) as serving, client(serving.address) as sender:
        for _ in range(2):
            sender.send(b"no header")
            eventually(lambda: "from a trusted proxy without a valid PROXY header" in caplog.text)
    assert len(caplog.records) == 2


def test_datagram_of_a_proxy_without_a_valid_header_is_refused_and_counted():
    whole = headed(("192.0.2.1", 9))
    wrong = [b"no header", b"", whole[:-1], SIGNATURE, whole.replace(b"\x21\x12", b"\x31\x12")]
    with server(named, proxy=LOCALHOST) as serving, client(serving.address) as proxy:
        for datagram in wrong:
            proxy.send(datagram)
        proxy.send(whole)
        assert proxy.recv(200) == repr((b"", ("192.0.2.1", 9))).encode()
        stats = serving.stats()
        assert (stats.received, stats.proxy_malformed) == (1, len(wrong))


def test_coalesced_datagrams_have_each_their_client():
    clients = [("192.0.2.1", 1000 + number) for number in range(40)]
    batches = []

    def handle(batch):
        batches.append(len(batch))
        return [named(data, address) for data, address in batch]

    with (
        server(handle, takes="batch", proxy=LOCALHOST) as serving,
        client(serving.address) as proxy,
    ):
        datagrams = [headed(source, b"%4d" % source[1]) for source in clients]
        send_run(proxy, serving.address, b"".join(datagrams), len(datagrams[0]))
        replies = [proxy.recv(200) for _ in clients]
    assert replies == [repr((b"%4d" % source[1], source)).encode() for source in clients]
    assert sum(batches) == len(clients)


def test_clients_of_two_proxies_get_their_replies_each_through_its_own():
    source = ("192.0.2.1", 9)
    started = threading.Event()

    def handle(batch):
        started.wait(DEADLINE)
        return [data for data, _ in batch]

    with (
        server(handle, takes="batch", proxy=LOCALHOST) as serving,
        contextlib.ExitStack() as stack,
    ):
        proxies = [stack.enter_context(client(serving.address)) for _ in range(5)]
        for number, proxy in enumerate(proxies):
            proxy.send(headed(source, b"%d" % number))
        started.set()
        for number, proxy in enumerate(proxies):
            assert proxy.recv(200) == b"%d" % number


def test_datagram_reply_goes_through_the_proxy():
    seen = []

    def handle(datagram):
        seen.append((datagram.address, datagram.host, datagram.port))
        datagram.reply(datagram.data)

    with (
        server(handle, takes="datagram", proxy=LOCALHOST) as serving,
        client(serving.address) as proxy,
    ):
        proxy.send(headed(("192.0.2.1", 9), b"x"))
        assert proxy.recv(200) == b"x"
        assert seen == [(("192.0.2.1", 9), "192.0.2.1", 9)]


@pytest.mark.parametrize("max_concurrency", [1, 1000])
@pytest.mark.parametrize("takes", ["data", "datagram", "batch", "timed"])
def test_async_handler_replies_through_the_proxy_of_each_client(takes, max_concurrency):
    async def handle(*arguments):
        await asyncio.sleep(0)
        if takes == "data":
            return named(*arguments)
        if takes == "datagram":
            (datagram,) = arguments
            return named(datagram.data, datagram.address)
        (batch,) = arguments
        return [named(row[0], row[1]) for row in batch]

    sources = [("192.0.2.1", 1000 + number) for number in range(20)]
    with (
        server(handle, takes=takes, max_concurrency=max_concurrency, proxy=LOCALHOST) as serving,
        client(serving.address) as first,
        client(serving.address) as second,
    ):
        proxies = (first, second)
        for number, source in enumerate(sources):
            proxies[number % 2].send(headed(source, b"%d" % number))
        for start, proxy in enumerate(proxies):
            expected = {
                repr((b"%d" % number, sources[number])).encode()
                for number in range(start, len(sources), 2)
            }
            assert {proxy.recv(200) for _ in expected} == expected


@pytest.mark.parametrize("source", [("192.0.2.1", 9), ("2001:db8::1", 9)])
def test_late_reply_goes_through_the_clients_last_proxy(source):
    with (
        server(named, proxy=LOCALHOST) as serving,
        client(serving.address) as first,
        client(serving.address) as second,
    ):
        for proxy in (first, second):
            proxy.send(headed(source, b"x"))
            proxy.recv(200)
        address = source if "." in source[0] else (*source, 0, 0)
        serving.sendto(b"late", address)
        assert second.recv(200) == b"late"


def test_guard_sees_the_client():
    guard = tomada.Guard(deny=["192.0.2.0/24"], rate=0.001, burst=2)
    with (
        server(named, proxy=LOCALHOST, guard=guard) as serving,
        client(serving.address) as proxy,
    ):
        for source in [("192.0.2.1", 1), *[("203.0.113.1", port) for port in range(1, 6)]]:
            proxy.send(headed(source, b"x"))
        proxy.send(headed(("203.0.113.2", 1), b"last"))
        replies = [proxy.recv(200) for _ in range(3)]
        assert replies[-1] == repr((b"last", ("203.0.113.2", 1))).encode()
        stats = guard.stats()
        assert (stats.admitted, stats.denied, stats.over_rate) == (3, 1, 3)
        assert (serving.stats().refused, serving.stats().filter_drops) == (4, 0)


def test_guard_list_without_the_proxy_admits_its_clients():
    guard = tomada.Guard(allow=["192.0.2.0/24"])
    with (
        server(named, proxy=LOCALHOST, guard=guard) as serving,
        client(serving.address) as proxy,
    ):
        proxy.send(headed(("192.0.2.1", 1), b"x"))
        assert proxy.recv(200)
        proxy.send(headed(("203.0.113.1", 1), b"x"))
        eventually(lambda: guard.stats().denied == 1)


@pytest.mark.parametrize("is_async", [False, True])
def test_guard_limits_the_amplification_to_the_client(is_async):
    async def repeat_later(data, _):
        await asyncio.sleep(0)
        return data * 4

    def repeat(data, _):
        return data * 4

    guard = tomada.Guard(amplification=3)
    with (
        server(repeat_later if is_async else repeat, proxy=LOCALHOST, guard=guard) as serving,
        client(serving.address) as proxy,
    ):
        proxy.send(headed(("192.0.2.1", 1), b"12345678"))
        eventually(lambda: guard.stats().over_amplification == 1)
        guard.validate("192.0.2.1")
        proxy.send(headed(("192.0.2.1", 1), b"12345678"))
        assert proxy.recv(200) == b"12345678" * 4
        eventually(lambda: serving.stats().sent == 1)
    assert serving.stats().sent == 1


def test_log_names_the_client(caplog):
    def fail(*_):
        raise ValueError

    with (
        caplog.at_level(logging.ERROR, "tomada"),
        server(fail, proxy=LOCALHOST) as serving,
        client(serving.address) as proxy,
    ):
        proxy.send(headed(("192.0.2.1", 1234), b"x"))
        eventually(lambda: "192.0.2.1:1234" in caplog.text)


def test_flow_has_the_client_of_its_first_datagram():
    with (
        server(named, proxy=LOCALHOST, proxy_flows=60) as serving,
        client(serving.address) as flow,
        client(serving.address) as other,
    ):
        flow.send(b"before")
        flow.send(headed(("192.0.2.1", 9), b"first"))
        flow.send(b"second")
        other.send(b"of no flow")
        for payload in (b"first", b"second"):
            assert flow.recv(200) == repr((payload, ("192.0.2.1", 9))).encode()
        other.send(headed(("2001:db8::1", 9), b"x"))
        assert other.recv(200) == repr((b"x", ("2001:db8::1", 9, 0, 0))).encode()
        assert serving.stats().proxy_malformed == 2


def test_client_of_a_flow_cannot_forge_another_address():
    with (
        server(named, proxy=LOCALHOST, proxy_flows=60) as serving,
        client(serving.address) as flow,
    ):
        flow.send(headed(("192.0.2.1", 9), b"first"))
        assert flow.recv(200)
        for _ in range(3):
            flow.send(headed(("203.0.113.9", 9), b"forged"))
        eventually(lambda: serving.stats().proxy_malformed == 3)
        assert serving.stats().received == 1


@pytest.mark.parametrize("match", [None, lambda request, reply: request in reply])
@pytest.mark.parametrize("source", [("192.0.2.1", 9), ("2001:db8::1", 9)])
def test_client_speaks_for_another(source, match):
    address = source if "." in source[0] else (*source, 0, 0)
    with (
        server(named, proxy=LOCALHOST) as serving,
        tomada.Client(serving.address, DEADLINE, match=match, proxy_from=source) as proxy,
    ):
        for payload in (b"abc", bytearray(b"abc"), memoryview(b"abc")):
            assert proxy.request(payload) == repr((b"abc", address)).encode()
        expected = [repr((b"%d" % number, address)).encode() for number in range(9)]
        assert proxy.request_many([b"%d" % number for number in range(9)]) == expected


def test_key_of_a_client_is_that_of_its_requests_without_the_header():
    with (
        server(lambda data, _: data + b"!", proxy=LOCALHOST) as serving,
        tomada.Client(
            serving.address,
            DEADLINE,
            key=lambda data: data[:2],
            proxy_from=("192.0.2.1", 9),
        ) as proxy,
    ):
        assert proxy.request(b"01") == b"01!"
        requests = [b"%2d" % number for number in range(30)]
        assert proxy.request_many(requests) == [data + b"!" for data in requests]


def test_client_sends_the_header_of_the_specification():
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as receiver:
        receiver.settimeout(DEADLINE)
        receiver.bind(("127.0.0.1", 0))
        port = receiver.getsockname()[1]
        with tomada.Client(("127.0.0.1", port), proxy_from=("192.0.2.1", 9)) as proxy:
            asking = Call(proxy.request, b"x")
            data, address = receiver.recvfrom(100)
            receiver.sendto(b"done", address)
            assert asking.result() == b"done"
    to = struct.pack("!4sHH", bytes([127, 0, 0, 1]), 9, port)
    assert data == SIGNATURE + b"\x21\x12\0\x0c" + bytes([192, 0, 2, 1]) + to + b"x"


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("192.0.2.1:9", TypeError, "proxy_from must be"),
        (("192.0.2.1",), TypeError, "proxy_from must be"),
        (("example.org", 9), ValueError, 'the address must be numeric, not "example.org"'),
        (("192.0.2.1", 65536), ValueError, "the port of proxy_from"),
    ],
)
def test_client_wrong_proxy_from(source, error, message):
    with pytest.raises(error, match=message):
        tomada.Client(("127.0.0.1", 9), proxy_from=source)


def test_client_proxy_from_needs_an_ip_server():
    with pytest.raises(ValueError, match="a server with an IP address"):
        tomada.Client("/run/socket", proxy_from=("192.0.2.1", 9))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proxy": ["10.0.0.1/8"]}, "10.0.0.1/8"),
        ({"proxy": ["example.org"]}, "example.org"),
        ({"proxy_flows": 5}, "proxy_flows needs proxy"),
        ({"proxy": LOCALHOST, "proxy_flows": 0}, "more than 0 seconds, not 0"),
        ({"proxy": LOCALHOST, "proxy_flows": float("nan")}, "not nan"),
        ({"proxy": LOCALHOST, "proxy_flows": 5, "workers": 2, "steering": "cpu"}, "'hash'"),
    ],
)
def test_proxy_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        tomada.Server(("127.0.0.1", 0), named, **options)


def test_proxy_flows_need_a_socket_per_worker():
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(ValueError, match="a socket for each worker"):
            server(named, None, sock=sock, workers=2, proxy=LOCALHOST, proxy_flows=5).start()


def test_proxy_must_be_a_list():
    with pytest.raises(TypeError, match="proxy must be a list of networks, not a single str"):
        tomada.Server(("127.0.0.1", 0), named, proxy="10.0.0.0/8")


def test_workers_read_headers():
    with server(named, proxy=LOCALHOST, workers=2) as serving:
        for port in range(1, 9):
            with client(serving.address) as proxy:
                proxy.send(headed(("192.0.2.1", port), b"x"))
                assert proxy.recv(200) == repr((b"x", ("192.0.2.1", port))).encode()
                proxy.send(b"no header")
        eventually(lambda: serving.stats().proxy_malformed == 8)


def test_adopted_socket_reads_headers():
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        with (
            server(named, None, sock=sock, proxy=LOCALHOST) as serving,
            client(serving.address) as proxy,
        ):
            proxy.send(headed(("192.0.2.1", 9), b"x"))
            assert proxy.recv(200) == repr((b"x", ("192.0.2.1", 9))).encode()


def test_notice_that_cannot_be_logged_does_not_stop_the_server(monkeypatch):
    failures = []
    monkeypatch.setattr("sys.unraisablehook", failures.append)

    def fail(*_):
        raise MemoryError("no room for a line")

    monkeypatch.setattr(_reports.logger, "warning", fail)
    with server(named, proxy=LOCALHOST) as serving, client(serving.address) as proxy:
        proxy.send(b"no header")
        eventually(lambda: proxy.send(b"no header") and failures)
        proxy.send(headed(("192.0.2.1", 9), b"x"))
        assert proxy.recv(200) == repr((b"x", ("192.0.2.1", 9))).encode()
    assert isinstance(failures[0].exc_value, MemoryError)
