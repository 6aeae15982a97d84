"""``tomada listen``, and the captures that it writes."""

import json
import signal
import socket as std
import struct
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from command import at, captured, run
from skips import NO_IPV6, needs
from support import DEADLINE
from tomada import cli
from tomada._cli import pcap

pytestmark = [
    pytest.mark.usefixtures("interruptible"),
    pytest.mark.thread_unsafe(reason="it runs programs"),
]


def test_listen_prints_time_peer_and_size_of_datagrams(listening, sender):
    listener = listening("127.0.0.1:0")
    before = time.time()
    sender.sendto("olá\n".encode(), listener.address)
    sender.sendto(b"", listener.address)
    sender.sendto(b"\xff\0", listener.address)
    lines = [listener.line() for _ in range(3)]
    peer = at(sender.getsockname())
    assert lines[0].split(" ", 1)[1] == f"{peer} 5 bytes: olá\\n"
    assert lines[1].split(" ", 1)[1] == f"{peer} 0 bytes"
    assert lines[2].split(" ", 1)[1] == f"{peer} 2 bytes: 0xff00"
    shown = time.strptime(lines[0].split(".")[0], "%H:%M:%S")
    at_least = time.localtime(int(before))
    elapsed = (shown.tm_hour - at_least.tm_hour) * 3600 + (shown.tm_min - at_least.tm_min) * 60
    assert 0 <= (elapsed + shown.tm_sec - at_least.tm_sec) % 86_400 < 3600


def test_listen_exits_with_status_0_when_interrupted(listening, sender):
    listener = listening("127.0.0.1:0")
    sender.sendto(b"abc", listener.address)
    listener.line()
    listener.signal(signal.SIGINT)
    status, _, errors = listener.end()
    assert status == 0
    assert errors == "1 datagram, 3 bytes\n"


def test_listen_count_limits_the_datagrams(listening, sender):
    listener = listening("127.0.0.1:0", "--count", 70)
    for number in range(100):
        sender.sendto(b"%d" % number, listener.address)
    status, output, errors = listener.end()
    assert status == 0
    assert [line.rpartition(" ")[2] for line in output.splitlines()] == [*map(str, range(70))]
    assert errors.startswith("70 datagrams")


def test_listen_timeout_without_datagrams_is_a_failure():
    status, output, errors = run("listen", "127.0.0.1:0", "--timeout", 0.05)
    assert (status, output) == (1, "")
    assert "nothing arrived for 0.05 s" in errors


def test_listen_prints_hexadecimal(listening, sender):
    listener = listening("127.0.0.1:0", "--hex", "--count", 1)
    sender.sendto(bytes(range(0x3C, 0x50)), listener.address)
    _, output, _ = listener.end()
    assert output.splitlines()[1:] == [
        "  0000  3c 3d 3e 3f 40 41 42 43 44 45 46 47 48 49 4a 4b  <=>?@ABCDEFGHIJK",
        "  0010  4c 4d 4e 4f                                      LMNO",
    ]


def test_listen_prints_json(listening, sender):
    listener = listening("127.0.0.1:0", "--json", "--count", 2)
    before = time.time()
    sender.sendto(b"abc", listener.address)
    sender.sendto(b"\xff", listener.address)
    _, output, _ = listener.end()
    first, second = map(json.loads, output.splitlines())
    assert before - 1 <= first.pop("time") <= time.time()
    assert first == {
        "from": at(sender.getsockname()),
        "to": "127.0.0.1",
        "ttl": 64,
        "tos": 0,
        "size": 3,
        "text": "abc",
    }
    assert second["hex"] == "ff"


def test_listen_accepts_a_path_as_address(listening, unix):
    listener = listening(unix.address(), "--count", 1)
    with unix.bound(std) as sock:
        sock.sendto(b"abc", listener.address)
        status, output, _ = listener.end()
        assert status == 0
        assert output.split(" ", 1)[1] == f"{sock.getsockname()} 3 bytes: abc\n"


def test_listen_joins_a_group(listening, sender):
    group = "239.255.12.34"
    listener = listening("0.0.0.0:0", "--group", group, "--interface", "lo", "--count", 1)
    sender.setsockopt(std.IPPROTO_IP, std.IP_MULTICAST_IF, std.inet_aton("127.0.0.1"))
    sender.sendto(b"abc", (group, listener.address[1]))
    status, output, _ = listener.end()
    assert status == 0
    assert output.endswith("abc\n")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["192.0.2.1:1"], "192.0.2.1:1 (this machine does not have this address"),
        (["127.0.0.1:0", "--group", "127.0.0.1"], "127.0.0.1"),
        (["/tmp/never-made", "--pcap", "x"], "--pcap captures only IP"),  # noqa: S108 - nor is it
        (["127.0.0.1:0", "--pcap", "/no/such/folder/x"], "/no/such/folder/x"),
    ],
)
def test_listen_errors_exit_with_status_1_and_one_line(arguments, complaint):
    status, _, errors = run("listen", *arguments)
    assert status == 1
    assert errors.startswith("tomada listen: ")
    assert complaint in errors
    assert errors.count("\n") == 1


def test_listen_closed_pipe_prints_no_traceback(sender):
    command = [sys.executable, "-m", "tomada", "listen", "127.0.0.1:0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        host, port = process.stderr.readline().split()[2].rstrip(";").split(":")
        process.stdout.close()
        sender.sendto(b"x", (host, int(port)))
        assert process.wait(DEADLINE) == 1
        assert process.stderr.read() == ""


def folded_sum(data):
    """Add 16-bit words in one's complement, slowly and simply."""
    data += b"\0" * (len(data) % 2)
    total = 0
    for (word,) in struct.iter_unpack("!H", data):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total


@given(st.binary(max_size=300))
def test_checksum_makes_the_sum_all_ones(data):
    check = pcap.checksum(data)
    padded = data + b"\0" * (len(data) % 2)
    assert folded_sum(padded + check.to_bytes(2)) == 0xFFFF


PORTS = st.integers(0, 65_535)


@given(
    st.binary(max_size=2000),
    st.tuples(st.ip_addresses(v=4).map(str), PORTS),
    st.tuples(st.ip_addresses(v=4).map(str), PORTS),
    st.integers(1, 255),
    st.integers(0, 255),
)
def test_capture_ipv4_packet_has_the_right_header(data, source, destination, ttl, tos):
    packet = pcap.packet_of(data, source, destination, ttl, tos)
    first, kind, length, _, _, life, protocol, _, ours, theirs = struct.unpack_from(
        "!BBHHHBBH4s4s", packet
    )
    assert (first, kind, length, life, protocol) == (0x45, tos, len(packet), ttl, 17)
    assert folded_sum(packet[:20]) == 0xFFFF
    assert (std.inet_ntoa(ours), std.inet_ntoa(theirs)) == (source[0], destination[0])
    check_udp(packet[20:], data, ours + theirs, source[1], destination[1])


@given(
    st.binary(max_size=2000),
    st.tuples(st.ip_addresses(v=6).map(str), PORTS),
    st.tuples(st.ip_addresses(v=6).map(str), PORTS),
    st.integers(1, 255),
    st.integers(0, 255),
)
def test_capture_ipv6_packet_has_the_right_header(data, source, destination, ttl, tos):
    packet = pcap.packet_of(data, source, destination, ttl, tos)
    first, length, protocol, life, ours, theirs = struct.unpack_from("!IHBB16s16s", packet)
    assert first == 0x6000_0000 | tos << 20
    assert (length, protocol, life) == (len(packet) - 40, 17, ttl)
    assert std.inet_ntop(std.AF_INET6, ours) == std.inet_ntop(
        std.AF_INET6, std.inet_pton(std.AF_INET6, source[0])
    )
    assert theirs == std.inet_pton(std.AF_INET6, destination[0])
    check_udp(packet[40:], data, ours + theirs, source[1], destination[1])


def check_udp(udp, data, ends, source_port, destination_port):
    ports_and_length = struct.unpack_from("!HHH", udp)
    assert ports_and_length == (source_port, destination_port, len(udp))
    assert udp[8:] == data
    assert udp[6:8] != b"\0\0"
    assert folded_sum(ends + struct.pack("!II", len(udp), 17) + udp) == 0xFFFF


def test_capture_packet_omits_the_interface_name():
    packet = pcap.packet_of(b"x", ("fe80::1%eth0", 1), ("fe80::2", 2))
    assert packet == pcap.packet_of(b"x", ("fe80::1", 1), ("fe80::2", 2))


def test_capture_packet_rejects_addresses_of_two_families():
    with pytest.raises(ValueError, match="have different families"):
        pcap.packet_of(b"", ("127.0.0.1", 1), ("::1", 1))


PAYLOADS = [b"abc", b"", bytes(range(256)), b"x" * 65_507]


@pytest.fixture(params=["AF_INET", "AF_INET6", "both"])
def capture(request, listening, tmp_path, speaks_ipv6):
    """Send the payloads; return the capture, the senders, and the times before and after."""
    if request.param != "AF_INET" and not speaks_ipv6:
        pytest.skip(NO_IPV6)
    path = tmp_path / "capture.pcap"
    where = {"AF_INET": "127.0.0.1:0", "AF_INET6": "[::1]:0", "both": "[::]:0"}[request.param]
    listener = listening(where, "--pcap", path, "--count", len(PAYLOADS))
    host = "::1" if request.param == "AF_INET6" else "127.0.0.1"
    with std.socket(std.AF_INET6 if ":" in host else std.AF_INET, std.SOCK_DGRAM) as sock:
        before = time.time_ns()
        for payload in PAYLOADS:
            sock.sendto(payload, (host, listener.address[1]))
        status, _, errors = listener.end()
        assert status == 0, errors
        yield path, sock.getsockname()[1], listener.address[1], (before, time.time_ns())


def test_capture_has_the_payloads_and_times(capture):
    path, source, destination, (before, after) = capture
    packets = captured(path)
    headers = [packet[: 28 if packet[0] >> 4 == 4 else 48] for _, packet in packets]
    assert [
        packet[len(header) :] for (_, packet), header in zip(packets, headers, strict=True)
    ] == PAYLOADS
    for header in headers:
        assert struct.unpack("!HH", header[-8:-4]) == (source, destination)
    times = [when for when, _ in packets]
    assert times == sorted(times)
    second = 10**9  # the kernel's clock and this one's may differ by a step
    assert before - second < times[0]
    assert times[-1] < after + second


@needs("tshark")
def test_tshark_reads_a_capture(capture):
    path, source, destination, _ = capture
    fields = [
        "frame.time_epoch",
        "udp.srcport",
        "udp.dstport",
        "udp.payload",
        "udp.checksum.status",
    ]
    options = [word for field in fields for word in ("-e", field)]
    checks = ["-o", "udp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"]
    command = ["tshark", "-r", path, "-T", "fields", *options, *checks]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = [line.split("\t") for line in output.splitlines()]
    expected = captured(path)
    assert len(rows) == len(expected) == len(PAYLOADS)
    for row, payload, (when, _) in zip(rows, PAYLOADS, expected, strict=True):
        shown, one, other, data, is_good = row
        assert (int(one), int(other)) == (source, destination)
        assert bytes.fromhex(data.replace(":", "")) == payload
        assert is_good == "1"
        whole, _, fraction = shown.partition(".")
        assert int(whole) * 10**9 + int(fraction.ljust(9, "0")) == when


def test_listen_default_port_is_the_examples_port():
    arguments = cli.parser().parse_args(["listen"])
    assert arguments.address == ("127.0.0.1", 1234)
