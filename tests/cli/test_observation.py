"""Watching ``tomada serve``: its log, its access log, its terminal, its metrics, its reloads."""

import http.server
import json
import os
import re
import signal
import threading
import urllib.request
from datetime import datetime

import pytest

from command import OnTerminal, Serving, run
from serving import Load, ask, client
from support import Child, eventually
from tomada._cli.common import CommandError
from tomada._cli.reloading import Reloading

pytestmark = [
    pytest.mark.usefixtures("interruptible"),
    pytest.mark.thread_unsafe(reason="it runs programs"),
]

SERVICE = """
import os

def handle(data, address):
    if data == b"fail":
        raise LookupError("no such thing")
    return None if data == b"quiet" else data

def begin():
    print("begun", flush=True)

def batch(pairs):
    return [data for data, _ in pairs]

def timed(triples):
    return [data for data, _, _ in triples]

def datagram(datagram):
    return datagram.data
"""


@pytest.fixture(autouse=True)
def app(tmp_path, monkeypatch):
    (tmp_path / "service.py").write_text(SERVICE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def records(errors):
    return [json.loads(line) for line in errors.splitlines()]


def started(*arguments):
    """Start a server that logs JSON; return it with its address."""
    child = Child("-m", "tomada", "serve", "127.0.0.1:0", "--log-format", "json", *arguments)
    host, _, port = json.loads(child.error_line())["address"].rpartition(":")
    return child, (host, int(port))


def ended(server):
    server.signal(signal.SIGTERM)
    status, output, errors = server.end()
    assert status == 0, errors
    return output, errors


@pytest.mark.parametrize("workers", [1, 2])
def test_log_as_json(workers):
    server, address = started("--app", "service:handle", "--workers", workers)
    with server, client(address) as sock:
        sock.send(b"fail")
        failed = json.loads(server.error_line())
        assert failed["level"] == "error"
        assert failed["logger"] == "tomada"
        assert failed["message"].startswith("the handler failed with a datagram from 127.0.0.1:")
        assert failed["exception"].splitlines()[-1] == "LookupError: no such thing"
        assert (failed["process"] == server.pid) == (workers == 1)
        assert datetime.fromisoformat(failed["time"]).utcoffset().total_seconds() == 0
        (*_, last) = records(ended(server)[1])
    assert last["message"].startswith("stopped: 1 received, 0 sent, 1 handler errors")
    assert (last["received"], last["handler_errors"]) == (1, 1)


def test_log_as_text():
    arguments = ("127.0.0.1:0", "--log-format", "text", "--log-level", "warning")
    more = ("--app", "service:handle", "--init", "service:begin")
    with Child("-m", "tomada", "serve", *arguments, *more) as server:
        assert server.line() == "begun"
        assert ended(server) == ("", "")
    with Child("-m", "tomada", "serve", *arguments[:3]) as server:
        line = server.error_line()
        ended(server)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO tomada: serving 127.0.0.1:\d+\n", line
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_failed_start_is_logged_in_the_format_too(app, workers):
    (app / "broken.py").write_text("raise LookupError('no such thing')\n")
    arguments = ("--app", "broken:handle", "--workers", workers, "--log-format", "json")
    status, _, errors = run("serve", "127.0.0.1:0", *arguments)
    assert status == 1
    (line,) = records(errors)
    first, *rest = line["message"].splitlines()
    assert (line["level"], first) == ("error", "cannot start: LookupError: no such thing")
    assert rest[-1] == "LookupError: no such thing"


def access(errors):
    return [one for one in records(errors) if one["logger"] == "tomada.access"]


@pytest.mark.parametrize("workers", [1, 2])
def test_access_log_has_peer_bytes_time_and_outcome(workers):
    arguments = ("--app", "service:handle", "--workers", workers, "--access-log", "1")
    server, address = started(*arguments)
    with server, client(address) as sock:
        peer = "{}:{}".format(*sock.getsockname())
        for data in (b"fail", b"quiet", b"abc"):
            sock.send(data)
        assert sock.recv(10) == b"abc"
        lines = access(ended(server)[1])
    assert [(one["peer"], one["bytes"], one["outcome"]) for one in lines] == [
        (peer, 4, "failed: LookupError"),
        (peer, 5, "no reply"),
        (peer, 3, "replied 3 bytes"),
    ]
    assert all(0 <= one["seconds"] < 60 for one in lines)
    assert re.fullmatch(rf"{peer} 3 bytes, replied 3 bytes, \d+ µs", lines[-1]["message"])


@pytest.mark.parametrize("takes", ["data", "datagram", "batch", "timed"])
def test_access_log_has_one_in_n(takes):
    name = "handle" if takes == "data" else takes
    server, address = started("--app", f"service:{name}", "--takes", takes, "--access-log", "10")
    with server, client(address) as sock:
        for _ in range(45):
            sock.send(b"abc")
            assert sock.recv(10) == b"abc"
        lines = access(ended(server)[1])
    assert len(lines) == 4
    outcome = "1 replies" if takes in ("batch", "timed") else "replied 3 bytes"
    assert {(one["bytes"], one["outcome"]) for one in lines} == {(3, outcome)}


@pytest.mark.parametrize(
    ("arguments", "line", "sent"),
    [
        (("--app", "service:handle", "--access-log", 1), "tomada serve: .* µs", 2),
        (("--print",), "127.0.0.1:.* 3 bytes: abc", 0),
        (("--print", "--workers", 2), "127.0.0.1:.* 3 bytes: abc", 0),
    ],
)
def test_lines_are_not_written_into_the_status_line(arguments, line, sent):
    with OnTerminal("serve", "127.0.0.1:0", *arguments, output=None) as server:
        server.until("Ctrl-C ends it")
        _, port = re.search(r"serving (\S+):(\d+)", server.shown).groups()
        with client(("127.0.0.1", int(port))) as sock:
            for count in (1, 2):
                sock.send(b"abc")
                server.until(f"total {count}")
        server.process.send_signal(signal.SIGINT)
        status, shown = server.end()
    assert status == 0
    rows = screen(shown)
    assert rows[0].startswith("serving 127.0.0.1:")
    assert [bool(re.fullmatch(line, row)) for row in rows[1:3]] == [True, True], rows
    assert rows[3].startswith(f"2 received, {sent} sent, ")
    assert rows[4:] == [""]


def screen(shown):
    """Return the rows of a terminal that only knows how to erase a line."""
    rows = [""]
    for part in re.split(r"(\r\x1b\[K|\r?\n)", shown):
        if part == "\r\x1b[K":
            rows[-1] = ""
        elif part.endswith("\n"):
            rows.append("")
        else:
            rows[-1] += part
    return rows


METRICS = """
import prometheus_client, os

HANDLED = prometheus_client.Counter("handled", "Datagrams by worker.")
ALIVE = prometheus_client.Gauge("alive", "Workers.", multiprocess_mode="livesum")
ALIVE.set(1)

def handle(data, address):
    HANDLED.inc()
    return b"%d" % os.getpid()
"""


def scraped(where):
    with urllib.request.urlopen(f"http://{where}/metrics") as response:
        return response.read().decode()


def value(text, name):
    return sum(
        float(line.split()[-1])
        for line in text.splitlines()
        if line.partition(" ")[0].partition("{")[0] == name
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_metrics_of_handlers_are_summed_over_workers(app, workers):
    pytest.importorskip("prometheus_client")
    (app / "service.py").write_text(METRICS)
    arguments = ("--app", "service:handle", "--workers", workers, "--health", "127.0.0.1:0")
    with Serving("127.0.0.1:0", *arguments) as server:
        where = server.error_line().rpartition("/")[2].strip()
        pids = set()
        while len(pids) < workers:
            pids.add(int(ask(server.address)))
        eventually(lambda: value(scraped(where), "alive") == workers)
        text = scraped(where)
        handled = value(text, "handled_total")
        assert handled == value(text, "tomada_server_received_total") >= workers
        if workers > 1:
            # A worker that dies takes its live gauges with it, and not its counters.
            os.kill(pids.pop(), signal.SIGKILL)
            eventually(lambda: value(scraped(where), "tomada_server_restarts_total") == 1)
            eventually(lambda: value(scraped(where), "alive") == workers)
            assert value(scraped(where), "handled_total") == handled
        ended(server)


ECHO = "def handle(data, address):\n    return b'{} ' + data\n"


def test_reload_replaces_workers_when_a_file_changes(app):
    pytest.importorskip("watchfiles")
    (app / "service.py").write_text(ECHO.format("old"))
    with Serving("127.0.0.1:0", "--app", "service:handle", "--reload") as server:
        with Load(server.address) as load:
            eventually(lambda: b"old" in load.replies)
            (app / "service.py").write_text(ECHO.format("new"))
            eventually(lambda: b"new" in load.replies)
        assert (load.lost, load.refused) == (0, 0)
        ended(server)


def test_reload_of_a_directory_that_cannot_be_watched_fails(tmp_path):
    pytest.importorskip("watchfiles")
    reloading = Reloading(tmp_path / "nothing")
    with pytest.raises(CommandError, match=r"reload cannot watch .*nothing: "):
        reloading.start(None)
    reloading.end()


def test_reload_of_one_process_is_not_silent():
    server, address = started()
    with server:
        server.signal(signal.SIGHUP)
        message = json.loads(server.error_line())["message"]
        assert message == "cannot reload: this needs --workers 2 or more"
        assert ask(address) == b"ping"
        ended(server)


@pytest.mark.parametrize(
    ("option", "package", "line"),
    [
        ("--reload", "watchfiles", "reload needs watchfiles: install tomada[reload]"),
        ("--otel", "opentelemetry", "otel needs OpenTelemetry: install tomada[otel]"),
    ],
)
def test_missing_extra_is_named(app, option, package, line):
    (app / f"{package}.py").write_text("raise ImportError\n")
    status, _, errors = run("serve", "127.0.0.1:0", "--app", "service:handle", option)
    assert (status, errors) == (1, f"tomada serve: {line}\n")


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes the metrics that OpenTelemetry sends."""

    def do_POST(self):
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("workers", [1, 2])
def test_opentelemetry_gets_the_counters_of_all_workers(workers):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
        ExportMetricsServiceRequest,
    )

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as collector:
        collector.bodies = []
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        host, port = collector.server_address
        environment = {
            **os.environ,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{host}:{port}",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        }
        arguments = ("127.0.0.1:0", "--otel", "--workers", workers)
        with Serving(*arguments, env=environment) as server:
            for _ in range(5):
                ask(server.address, b"abc")
            ended(server)  # which sends the last values
        collector.shutdown()
    resource = ExportMetricsServiceRequest.FromString(collector.bodies[-1]).resource_metrics[0]
    names = {one.key: one.value.string_value for one in resource.resource.attributes}
    assert names["service.name"] == "tomada"
    found = {one.name: one for one in resource.scope_metrics[0].metrics}
    (point,) = found["tomada.server.received"].sum.data_points
    assert point.as_int == 5
    assert {one.key for one in point.attributes} == {"server.address", "server.port"}
    assert found["tomada.server.received"].sum.is_monotonic
    assert found["tomada.server.received_bytes"].unit == "By"
    assert found["tomada.server.handler_time"].sum.data_points[0].as_double > 0


@pytest.mark.parametrize("workers", [2, 3])
def test_reload_under_load_loses_nothing(app, workers):
    (app / "service.py").write_text(ECHO.format("0"))
    arguments = ("127.0.0.1:0", "--app", "service:handle", "--workers", workers)
    with Serving(*arguments) as server, Load(server.address) as load:
        for number in range(1, 4):
            (app / "service.py").write_text(ECHO.format(number))
            server.signal(signal.SIGHUP)
            word = b"%d" % number
            eventually(lambda word=word: all(word in ask(server.address) for _ in range(9)))
        load.stop()
        assert (load.lost, load.refused) == (0, 0)
        assert {b"0", b"3"} <= load.replies.keys()
        ended(server)
