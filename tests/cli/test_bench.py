"""``tomada bench``: the load, its counters, and its report."""

import json
import re
import signal
import socket as std

import pytest
from hypothesis import given
from hypothesis import strategies as st

from command import Echo, OnTerminal, at, run
from support import DEADLINE, Child, eventually
from tomada import cli
from tomada._cli.bench import report
from tomada._cli.load import LABEL, Histogram, Load, Result

pytestmark = pytest.mark.thread_unsafe(reason="it runs programs")

TIMES = st.lists(st.integers(0, 10**12), min_size=1)


def filled(times):
    histogram = Histogram()
    for time in times:
        histogram.add(time)
    return histogram


@given(TIMES, st.floats(0, 1))
def test_quantile_is_accurate_to_two_percent(times, share):
    exact = sorted(times)[max(-int(-share * len(times) // 1), 1) - 1]
    found = filled(times).quantile(share)
    assert exact * (1 - 1 / 64) <= found <= exact


@given(TIMES)
def test_buckets_cover_all_values_once_without_gaps(times):
    buckets = filled(times).doubling()
    assert sum(count for _, count in buckets) == len(times)
    lows = [low for low, _ in buckets]
    assert lows == [lows[0], *(low << 1 or 1 for low in lows[:-1])]
    for low, count in buckets:
        assert count == sum(low <= time < (low << 1 or 1) for time in times)


def test_quantile_of_nothing_is_none():
    assert Histogram().quantile(0.5) is None
    assert Histogram().doubling() == []


@pytest.mark.parametrize(("clients", "window", "size"), [(1, 1, 16), (3, 4, 100), (1, 32, 1400)])
def test_every_datagram_is_counted_as_answered_or_lost(clients, window, size):
    with Echo() as echo:
        load = Load(echo.address, clients=clients, window=window, size=size, timeout=DEADLINE)
        result = load.run(0.1)
    assert result.sent == result.received == result.latency.total == len(echo.received)
    assert (result.lost, result.late, result.refused) == (0, 0, 0)
    assert {len(data) for data in echo.received} == {size}
    assert result.rate == pytest.approx(result.received / result.seconds)


def test_window_limits_the_datagrams_in_flight():
    with Echo(lambda _data: False) as echo:
        load = Load(echo.address, clients=2, window=5, timeout=0.3)
        load.run(0.1)
    assert len(echo.received) == load.result.sent == load.result.lost == 10


def test_lost_datagrams_are_counted_and_replaced():
    dropped = []

    def answers(data):
        _, number = LABEL.unpack_from(data)
        return number % 10 != 3 or dropped.append(number)

    with Echo(answers) as echo:
        result = Load(echo.address, window=10, timeout=0.05).run(0.6)
    assert result.lost == len(dropped) > 1
    assert result.received + result.lost == result.sent
    assert result.loss == result.lost / result.sent


def test_late_and_unknown_replies_do_not_count():
    class Repeating(Echo):
        def run(self):
            while True:
                data, sender = self._sock.recvfrom(1 << 16)
                if self._is_ending:
                    return
                for reply in (b"short", bytes(LABEL.size), data, data):
                    self._sock.sendto(reply, sender)

    with Repeating() as echo:
        result = Load(echo.address, timeout=DEADLINE).run(0.1)
    assert result.received == result.sent
    # The last replies end the run, and later datagrams are not read.
    assert 3 * result.received - 3 <= result.late + 1 <= 3 * result.received + 1


@pytest.fixture(scope="module")
def told():
    with Echo() as echo:
        plain = run("bench", at(echo.address), "--duration", 0.2, "--window", 4)
        as_json = run("bench", at(echo.address), "--duration", 0.2, "--window", 4, "--json")
    return plain, as_json


def test_report_shows_rate_loss_latency_and_distribution(told):
    (status, output, errors), _ = told
    assert (status, errors) == (0, "")
    assert re.search(r"^ +[\d,]+  round trips per second, for \d\.\d\d s$", output, re.MULTILINE)
    assert re.search(r"^ +0  lost \(0\.000%\)$", output, re.MULTILINE)
    (line,) = re.findall(r"^min .*$", output, re.MULTILINE)
    values = [float(value.replace(",", "")) for value in re.findall(r"([\d,.]+) µs", line)]
    assert len(values) == 6
    assert values == sorted(values)
    bars = re.findall(r"^ +[\d,.]+ µs +([\d,]+)  (█*)", output, re.MULTILINE)
    counts = [int(times.replace(",", "")) for times, _ in bars]
    answered = re.search(r"^ +([\d,]+)  answered$", output, re.MULTILINE)[1]
    assert sum(counts) == int(answered.replace(",", ""))
    assert max(len(bar) for _, bar in bars) == 50


def test_report_as_json(told):
    _, (status, output, _) = told
    found = json.loads(output)
    assert status == 0
    assert found["received"] == found["sent"] > 0
    assert sum(times for _, times in found["histogram_us"]) == found["received"]
    assert found["latency_us"]["min"] <= found["latency_us"]["p50"] <= found["latency_us"]["max"]


def test_report_without_replies_has_no_latencies():
    assert not any("µs" in line for line in report(Result(seconds=1.0, sent=3, lost=3)))


@pytest.mark.usefixtures("interruptible")
def test_interrupt_ends_the_run_with_a_report():
    with Echo() as echo, Child("-m", "tomada", "bench", at(echo.address), "--json") as child:
        eventually(lambda: len(echo.received) > 100)
        child.signal(signal.SIGINT)
        status, output, _ = child.end()
    assert status == 0
    found = json.loads(output)
    assert found["received"] > 0
    assert found["rate"] > 0


@pytest.mark.parametrize("is_there", [False, True])
def test_no_reply_is_a_failure(inet, is_there):
    with inet.bound(std) as sock:
        where = at(sock.getsockname())
        if not is_there:
            sock.close()
        status, _, errors = run("bench", where, "--duration", 0.1, "--timeout", 0.1)
    assert status == 1
    why = "is it an echo server?" if is_there else "no program is listening there"
    assert f"tomada bench: no reply from {where}: {why}" in errors


@pytest.mark.parametrize("has_rich", [True, False])
def test_terminal_shows_progress(has_rich, monkeypatch, tmp_path):
    if has_rich:
        pytest.importorskip("rich")
    else:
        (tmp_path / "rich.py").write_text("raise ImportError")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Echo() as echo, OnTerminal("bench", at(echo.address), "--duration", 1) as command:
        command.until(f"asking {at(echo.address)}")
        command.until("━" if has_rich else "%")
        output, _ = command.process.communicate()
        assert command.process.returncode == 0
        assert b"round trips per second" in output


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "say what to measure: HOST:PORT, or --local"),
        (["127.0.0.1:1", "--local"], "say what to measure: HOST:PORT, or --local"),
        (["127.0.0.1:1", "--size", "15"], "must have 16 to 65,507 bytes, not 15"),
        (["127.0.0.1:1", "--size", "65508"], "must have 16 to 65,507 bytes, not 65,508"),
        (["name.invalid:1"], "Name or service not known"),
    ],
)
def test_errors_exit_with_status_1_and_one_line(arguments, complaint, capsys):
    assert cli.main(["bench", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("tomada bench: ")
    assert complaint in error
    assert error.count("\n") == 1


def test_local_comparison_measures_every_server():
    pytest.importorskip("tomada.server")
    status, output, errors = run("bench", "--local", "--duration", 0.05, "--json")
    assert status == 0, errors
    rows = json.loads(output)
    assert [row["server"] for row in rows] == [
        "asyncio",
        "socket",
        "tomada.asyncio",
        "tomada.socket",
        "tomada.socket, recv_many",
        "tomada.Server",
    ]
    for row in rows:
        assert row["rate"] > 0
        assert 0 < row["p50_us"] <= row["p99_us"]
        assert row["loss"] == 0


def test_local_comparison_as_a_table():
    pytest.importorskip("tomada.server")
    status, output, _ = run("bench", "--local", "--duration", 0.05)
    heads, *rows = output.splitlines()
    assert status == 0
    assert re.split("  +", heads)[:3] == ["server", "datagrams/s", "× socket"]
    assert len(rows) == 6
    assert {len(row) for row in rows} == {len(heads)}
    (base,) = [row for row in rows if row.startswith("socket ")]
    assert re.split("  +", base)[2] == "1.00"
