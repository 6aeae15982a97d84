"""``tomada serve --sink``: its log, its summary and its metrics, without an engine."""

import json
import re
import signal
import urllib.request

import pytest

from serving import client
from support import Child, eventually

pytestmark = [
    pytest.mark.usefixtures("interruptible"),
    pytest.mark.thread_unsafe(reason="it runs programs"),
]

# No engine listens there. The password must not appear anywhere.
NATS = "nats://user:hunter2@127.0.0.1:1?subject=udp"
KAFKA = "kafka://127.0.0.1:1?topic=udp"


def serve(*arguments):
    """Start a server that logs JSON."""
    words = ("127.0.0.1:0", "--log-format", "json", "--health", "127.0.0.1:0")
    return Child("-m", "tomada", "serve", *words, *map(str, arguments))


def until(server, text, lines):
    """Read lines of the log, which have any order, until one has a text; return its message."""
    while True:
        lines.append(server.error_line())
        message = json.loads(lines[-1])["message"]
        if text in message:
            return message


def ended(server, lines):
    """Stop a server, and return its last record."""
    server.signal(signal.SIGTERM)
    status, output, errors = server.end()
    lines += errors.splitlines()
    assert (status, output) == (0, ""), errors
    assert "hunter2" not in "".join(lines)
    return [json.loads(line) for line in lines][-1]


def address_in(message):
    host, port = re.search(r"(\S+):(\d+)$", message).groups()
    return host.removeprefix("http://"), int(port)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("url", "package"), [(NATS, "nats"), (KAFKA, "confluent_kafka")], ids=["nats", "kafka"]
)
def test_log_of_a_sink_whose_engine_is_down(url, package, workers):
    pytest.importorskip(package)
    lines = []
    with serve("--sink", f"{url}&linger=0.1", "--workers", workers) as server:
        where = address_in(until(server, "serving ", lines))
        if not any("127.0.0.1:1" in line for line in lines):
            until(server, "127.0.0.1:1", lines)
        with client(where) as sock:
            sock.send(b"lost")
            last = ended(server, lines)
    start = "stopped: 1 received, 0 sent, 0 published, 1 dropped by the sink"
    assert last["message"].startswith(start)
    names = ("sink_received", "sink_published", "sink_dropped", "sink_in_flight")
    assert [last[name] for name in names] == [1, 0, 1, 0]


@pytest.mark.parametrize("workers", [1, 2])
def test_metrics_of_a_sink(workers):
    pytest.importorskip("nats")
    pytest.importorskip("prometheus_client")
    lines = []
    with serve("--sink", f"{NATS}&capacity=2&linger=0", "--workers", workers) as server:
        where = address_in(until(server, "serving ", lines))
        host, port = address_in(until(server, "health at ", lines))

        def scraped():
            with urllib.request.urlopen(f"http://{host}:{port}/metrics") as response:
                text = response.read().decode()
            found = re.findall(r"^tomada_sink_(\w+)\{.*\} (\S+)$", text, re.MULTILINE)
            return {name: float(value) for name, value in found}

        with client(where) as sock:  # one peer, so one worker
            for _ in range(3):
                sock.send(b"data")
            counts = {"received_total": 3, "published_total": 0, "dropped_total": 1, "in_flight": 2}
            eventually(lambda: scraped() == counts)
        assert ended(server, lines)["sink_dropped"] == 3
