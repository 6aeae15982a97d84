"""The Prometheus collector, scraped over HTTP as Prometheus does."""

import os
import re
import threading
import urllib.request

import pytest

from serving import client, server
from support import eventually

prometheus_client = pytest.importorskip("prometheus_client")

from tomada._server.collector import exposition  # noqa: E402 - needs the package above
from tomada.metrics import ServerCollector  # noqa: E402 - as above


def scrape(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        return response.read().decode()


@pytest.fixture
def scraped():
    """Serve a registry over HTTP, and provide it with a function that scrapes it."""
    registry = prometheus_client.CollectorRegistry()
    httpd, thread = prometheus_client.start_http_server(0, "127.0.0.1", registry)
    yield registry, lambda: scrape(httpd.server_port)
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def value(text, name, **labels):
    (line,) = [
        line
        for line in text.splitlines()
        if line.startswith(name + "{") and all(f'{k}="{v}"' in line for k, v in labels.items())
    ]
    return float(line.split()[-1])


@pytest.mark.parametrize("workers", [1, 2])
def test_collector_has_the_counters_of_all_workers(scraped, workers):
    registry, read = scraped

    def handle(data, _):
        return data if data != b"bad" else 1

    with server(handle, workers=workers) as serving:
        ServerCollector(serving, registry)
        for data in (b"one", b"four", b"bad"):
            with client(serving.address) as sock:
                sock.send(data)
                if data != b"bad":
                    assert sock.recv(10) == data
        eventually(lambda: serving.stats().handler_errors and serving.stats().sent == 2)
        text, (host, port) = read(), serving.address
        address = f"{host}:{port}"
        assert value(text, "tomada_server_received_total", address=address) == 3
        assert value(text, "tomada_server_received_bytes_total") == 10
        assert value(text, "tomada_server_sent_total") == 2
        assert value(text, "tomada_server_handler_errors_total") == 1
        assert value(text, "tomada_server_refused_total") == 0
        assert value(text, "tomada_server_kernel_drops_total") == 0
        assert value(text, "tomada_server_batch_size_bucket", le="1.0") == 3
        assert value(text, "tomada_server_batch_size_bucket", le="+Inf") == 3
        assert value(text, "tomada_server_batch_size_sum") == 3
        seconds = value(text, "tomada_server_handler_seconds_total")
        assert 0 < seconds < 3
        # Deprecated until version 0.3.
        assert value(text, "tomada_server_handler_time_total") == seconds
        assert "# HELP tomada_server_handler_time_total Deprecated" in text


def test_collector_can_be_registered_before_start_and_scraped_after_stop(scraped):
    registry, read = scraped
    serving = server(lambda data, _: data)
    ServerCollector(serving, registry)
    with serving, client(serving.address) as sock:
        sock.send(b"x")
        sock.recv(1)
    assert value(read(), "tomada_server_received_total") == 1


def test_every_counter_is_documented(scraped):
    registry, read = scraped
    with server(lambda data, _: data) as serving:
        ServerCollector(serving, registry)
        text = read()
    names = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert len(names) == 26
    for name in names:
        assert re.search(rf"^# HELP {name} \S", text, re.MULTILINE)


def test_collector_of_a_server_that_is_not_started_has_no_values_and_does_not_fail(scraped, unix):
    registry, read = scraped
    prometheus_client.Gauge("of_another", "Of another.", registry=registry).set(7)
    path = os.fsencode(unix.address()) + b"\xff"
    serving = server(lambda data, _: data, path)
    ServerCollector(serving, registry)
    assert "of_another 7" in read()
    assert "# TYPE tomada_server_received_total counter" in read()
    assert "tomada_server_received_total{" not in read()
    with serving:
        # The path is not text, which Prometheus requires.
        assert value(read(), "tomada_server_received_total") == 0
        assert "of_another 7" in read()
    assert value(read(), "tomada_server_received_total") == 0


def test_metrics_of_workers_are_read_while_one_makes_its_file(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    path = tmp_path / "counter_1.db"
    path.touch()
    with server(bytes.upper) as serving:
        timer = threading.Timer(0.1, os.truncate, (path, 1 << 20))
        timer.start()
        text = exposition(serving)
        timer.join()
    assert "tomada_server_state" in text
