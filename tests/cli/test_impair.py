"""``tomada impair``: its options, its counters, its view, and its capture."""

import argparse
import json
import re
import signal
import socket as std

import pytest

from command import Echo, OnTerminal, at, captured, run
from linked import plain
from support import Child
from tomada._cli import impair

pytestmark = [
    pytest.mark.usefixtures("interruptible"),
    pytest.mark.thread_unsafe(reason="it runs programs"),
]


class Impairing(Child):
    """Start ``tomada impair``, and return once it passes datagrams."""

    def __init__(self, upstream, *arguments):
        arguments = ["127.0.0.1:0", at(upstream), *arguments]
        super().__init__("-m", "tomada", "impair", *arguments)
        self.said = self._process.stderr.readline().decode()
        found = re.match(r"impairing 127\.0\.0\.1:(\d+) → ", self.said)
        assert found, self.said + self._process.stderr.read().decode()
        self.address = "127.0.0.1", int(found[1])


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_impair_passes_and_counts(tmp_path, ending):
    capture = tmp_path / "both.pcap"
    options = ["--script", "drop; pass; pass", "--json", "--pcap", capture, "--seed", 5]
    with Echo() as echo, Impairing(echo.address, *options) as link, plain() as client:
        assert link.said.endswith(f"→ {at(echo.address)} (seed 5); Ctrl-C ends it\n")
        client.sendto(b"lost", link.address)
        client.sendto(b"passes", link.address)
        assert client.recv(100) == b"passes"
        link.signal(ending)
        status, output, errors = link.end()
        own = client.getsockname()
    assert (status, errors) == (0, "")
    counts = json.loads(output)
    assert counts["seed"] == 5
    assert (counts["to_server"]["received"], counts["to_server"]["scripted"]) == (2, 1)
    assert (counts["to_client"]["received"], counts["to_client"]["sent"]) == (1, 1)
    packets = [packet for _, packet in captured(capture)]
    ports = [(int.from_bytes(it[20:22]), int.from_bytes(it[22:24]), it[28:]) for it in packets]
    assert ports[:2] == [
        (own[1], link.address[1], b"lost"),
        (own[1], link.address[1], b"passes"),
    ]
    outside = ports[2][0]
    assert ports[2:] == [
        (outside, echo.address[1], b"passes"),
        (echo.address[1], outside, b"passes"),
        (link.address[1], own[1], b"passes"),
    ]


def test_impair_ends_after_a_duration_with_a_report():
    with plain() as server:
        status, output, errors = run("impair", ":0", at(server.getsockname()), "--duration", 0.01)
    assert status == 0
    assert errors.count("\n") == 1
    lines = [line.split() for line in output.splitlines()]
    assert lines == [
        ["to", "the", "server", "to", "clients"],
        ["0", "0", "arrived"],
        ["0", "0", "passed"],
        ["0", "0", "lost"],
    ]


def test_impair_shows_a_live_view():
    pytest.importorskip("rich")
    with Echo() as echo:
        arguments = ["impair", "127.0.0.1:0", at(echo.address), "--loss", "100%"]
        with OnTerminal(*arguments) as link, plain() as client:
            link.until("Ctrl-C ends it")
            port = int(re.search(r"127\.0\.0\.1:(\d+)", link.shown)[1])
            client.sendto(b"x", ("127.0.0.1", port))
            link.until_matching(r"lost +1 +0")
            link.process.send_signal(signal.SIGINT)
            output, _ = link.process.communicate(timeout=60)
        assert link.process.returncode == 0
        assert re.search(r"1 +0  lost", output.decode())


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--loss", "101%"], "argument --loss: '101%' is more than 100%"),
        (["--loss", "x"], "argument --loss: 'x' is not a share, such as 5% or 0.05"),
        (["--delay", "40"], "argument --delay: '40' is not a time, such as 40ms or 0.04s"),
        (["--rate", "2mb"], "argument --rate: '2mb' is not a rate, such as 500kbit or 2mbit"),
        (["--burst-loss", "5%"], "argument --burst-loss: '5%' is not SHARE/LENGTH, such as 5%/4"),
        (["--burst-loss", "90%/1"], "bursts of 1 datagrams cannot lose a share of 0.9"),
    ],
)
def test_impair_explains_wrong_arguments(arguments, problem):
    status, _, errors = run("impair", ":0", "127.0.0.1:9", *arguments)
    assert status == 2
    assert problem in errors


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--queue", "5"], "queue needs a rate"),
        (["--script", "pass; lose"], "a script's step must be pass, drop"),
        (["--seed", "-1"], "seed must be from 0 to 2**64 - 1, not -1"),
    ],
)
def test_impair_explains_wrong_values(arguments, problem):
    status, _, errors = run("impair", ":0", "127.0.0.1:9", *arguments)
    assert status == 1
    assert errors.startswith(f"tomada impair: {problem}")


def test_impair_explains_addresses_that_it_cannot_use():
    with std.socket(std.AF_INET, std.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        status, _, errors = run("impair", at(taken.getsockname()), "127.0.0.1:9")
    assert (status, "in use" in errors) == (1, True)
    status, _, errors = run("impair", "./path", "127.0.0.1:9")
    assert (status, "pass HOST:PORT" in errors) == (1, True)


def test_values_have_units():
    assert impair.share("5%") == impair.share("0.05") == 0.05
    assert impair.delay("40ms±10ms") == impair.delay("0.04s+-10ms") == (0.04, 0.01)
    assert impair.delay("300µs") == (pytest.approx(3e-4), 0.0)
    assert (impair.bit_rate("2mbit"), impair.bit_rate("8")) == (2e6, 8.0)
    assert impair.bursts("20%/5").r == 0.2


def test_options_of_a_direction_replace_the_general_ones():
    commands = argparse.ArgumentParser().add_subparsers()
    impair.add(commands)
    general = [":0", ":9", "--loss", "5%", "--delay", "4ms±1ms"]
    arguments = commands.choices["impair"].parse_args(
        [*general, "--to-client-loss", "0", "--to-server-burst-loss", "20%/5"]
    )
    link = impair.link_of(arguments)
    assert (link.to_client.loss, link.to_client.delay, link.to_client.jitter) == (0, 0.004, 0.001)
    assert (link.to_server.loss.r, link.to_server.delay) == (0.2, 0.004)
