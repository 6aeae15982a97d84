"""The examples that hand datagrams on, each with the engine or the program that it is made for."""

import contextlib
import socket as std
import struct
import subprocess
import sys

import pytest

import skips
import tomada
from brokers import MockKafka, NatsServer
from examples import EXAMPLES, end
from support import DEADLINE, eventually

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")


@pytest.fixture
def sender():
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as sock:
        sock.settimeout(DEADLINE)
        yield sock


def test_statsd_to_nats_and_back_with_polars(start, sender, tmp_path):
    pytest.importorskip("nats")
    pytest.importorskip("polars")
    pytest.importorskip("pyarrow")
    skips.program("nats-server")
    with NatsServer(tmp_path) as broker:
        broker.add_stream("statsd")
        child, port = start("statsd_to_nats.py", "--nats", broker.url, "--pack")
        for number in range(30):
            sender.sendto(b"requests:%02d|c" % number, ("127.0.0.1", port))
        eventually(lambda: broker.count("statsd"))
        assert "published 30, dropped 0 of 30 datagrams" in end(child)
        command = [sys.executable, EXAMPLES / "read_stream.py", "--nats", broker.url]
        read = subprocess.run(command, capture_output=True, text=True, check=False)
    assert read.returncode == 0, read.stderr
    assert read.stdout.startswith("30 datagrams of 390 bytes from 127.0.0.1, last 20")


def test_netflow_to_kafka(start, sender):
    pytest.importorskip("confluent_kafka")
    with MockKafka() as broker:
        child, port = start("netflow_to_kafka.py", "--kafka", broker.servers)
        exports = [struct.pack("!H", version) + b"export" for version in (5, 9, 10)]
        for data in [*exports, b"", b"\0\7 of another version"]:
            sender.sendto(data, ("127.0.0.1", port))
        messages = broker.messages("netflow", 3)
        ended = end(child)
    assert sorted(data for _, _, data, _ in messages) == sorted(exports)
    assert {key for key, *_ in messages} == {b"127.0.0.1"}
    assert "published 3, dropped 0 of 3 exports" in ended


def test_dns_forwarder_knows_clients_behind_a_proxy(start):
    def resolve(query, _):
        return query[:2] + b"\x81\x80" + query[4:] + b"answer"

    def query(number):
        return struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 0) + b"\1x\0\0\1\0\1"

    with tomada.Server(("127.0.0.1", 0), resolve) as upstream:
        arguments = ("--upstream", "{}:{}".format(*upstream.address), "--proxy", "127.0.0.0/8")
        child, port = start("dns_forwarder.py", *arguments)
        for host in ("192.0.2.1", "192.0.2.2", "192.0.2.1"):
            with tomada.Client(("127.0.0.1", port), DEADLINE, proxy_from=(host, 53)) as proxy:
                reply = proxy.request(query(7))
                assert reply == query(7)[:2] + b"\x81\x80" + query(7)[4:] + b"answer"
        assert end(child).splitlines() == [
            "2 queries from 192.0.2.1",
            "1 queries from 192.0.2.2",
        ]


def test_dns_forwarder_answers_without_its_upstream(start):
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        _, port = start("dns_forwarder.py", "--upstream", "{}:{}".format(*silent.getsockname()))
        query = struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + b"\1x\0\0\1\0\1"
        with tomada.Client(
            ("127.0.0.1", port), DEADLINE, match=lambda sent, got: sent[:2] == got[:2]
        ) as asker:
            reply = asker.request(query)
    assert (reply[2] & 0x80, reply[3] & 0xF) == (0x80, 2)


def test_kubernetes_manifest_is_valid():
    validate = pytest.importorskip("kubernetes_validate")
    yaml = pytest.importorskip("yaml")
    manifests = [*yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())]
    assert [manifest["kind"] for manifest in manifests] == [
        "Deployment",
        "Service",
        "PodDisruptionBudget",
    ]
    for manifest in manifests:
        validate.validate(manifest, "1.30", strict=True)
    pod = manifests[0]["spec"]["template"]["spec"]
    port = pod["containers"][0]["ports"][0]
    service = manifests[1]["spec"]["ports"][0]
    assert (port["protocol"], service["protocol"]) == ("UDP", "UDP")
    assert service["targetPort"] == port["name"]
    assert pod["terminationGracePeriodSeconds"] > 10 + 5, "preStop, and the drain"


@pytest.mark.usefixtures("interruptible")
def test_collectors_on_three_machines_behind_nftables(network, tmp_path):
    """Three collectors, a balancer that also runs NATS, and a program that sends metrics."""
    pytest.importorskip("nats")
    from tomada.sinks import JetStream

    skips.program("nft")
    skips.program("nats-server")
    client, balancer = network.namespace(), network.namespace()
    client.join("front", balancer, "front", ["10.79.0.2/24"], ["10.79.0.1/24"])
    client.command("ip", "route", "add", "default", "via", "10.79.0.1")
    collectors = []
    for number in (1, 2, 3):
        machine = network.namespace()
        ends = [f"10.79.{number}.1/24"], [f"10.79.{number}.2/24"]
        balancer.join(f"back{number}", machine, "back", *ends)
        machine.command("ip", "route", "add", "default", "via", f"10.79.{number}.1")
        collectors.append(machine)
    balancer.set("ipv4/ip_forward", 1)
    choice = "numgen inc mod 3 map { 0 : 10.79.1.2, 1 : 10.79.2.2, 2 : 10.79.3.2 }"
    rule = f"ip daddr 10.79.0.1 udp dport 8125 dnat to {choice}"
    chain = f"type nat hook prerouting priority dstnat;\n{rule}"
    balancer.command("nft", f"table ip balancer {{\nchain before {{\n{chain}\n}}\n}}\n")
    with contextlib.ExitStack() as stack:
        broker = balancer.run(NatsServer, tmp_path, "10.79.0.1")
        stack.enter_context(broker)
        balancer.run(broker.add_stream, "statsd")
        servers, sinks = [], []
        for number, machine in enumerate(collectors, 1):
            sink = JetStream(broker.url, "statsd", key="source")
            server = tomada.Server((f"10.79.{number}.2", 8125), sink)
            machine.run(server.start)
            stack.callback(server.stop)
            servers.append(server)
            sinks.append(sink)
        for number in range(30):
            with client.open(std) as sock:
                client.run(sock.sendto, b"%d" % number, ("10.79.0.1", 8125))
        eventually(lambda: sum(sink.stats().published for sink in sinks) == 30)
        assert [server.stats().received for server in servers] == [10, 10, 10]
        found = balancer.run(broker.messages, "statsd")
    assert sorted(int(data) for _, _, data in found) == list(range(30))
    assert {subject for subject, _, _ in found} == {"statsd.10_79_0_2"}
